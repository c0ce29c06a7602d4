"""The command `espnet-hra`: its table, its help, its errors in one line."""

import subprocess
import sys

import pytest

from espnet_hra import cli


def call(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return ended.value.code


#: Those with ESPnet's own parser: its options are known once it is imported.
ESPNETS = ("train", "decode", "align")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_that_begins_with_its_name(command, capsys):
    assert call(command, "--help") == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: ") and len(said) > 200
    if command not in ESPNETS:
        assert said.startswith(f"usage: espnet-hra {command}")


def test_help_lists_all_commands_and_needs_neither_torch_nor_espnet():
    code = (
        "import sys\nfrom espnet_hra import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit as e: assert not e.code\n"
        "slow = {'torch', 'espnet2.tasks.asr', 'numpy', 'matplotlib', 'distributed'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    for name, (_, text) in cli.COMMANDS.items():
        assert f"  {name:<12}{text}" in done.stdout


def test_the_help_of_our_own_commands_does_not_wait_for_torch():
    own = [name for name in cli.COMMANDS if name not in ESPNETS]
    code = (
        "import sys\nfrom espnet_hra import cli\n"
        "for name in sys.argv[1:]:\n"
        "    try: cli.main([name, '--help'])\n"
        "    except SystemExit as e: assert not e.code\n"
        "    assert not {'torch', 'distributed'} & set(sys.modules), name"
    )
    subprocess.run([sys.executable, "-c", code, *own], check=True)


@pytest.mark.parametrize("kind", ["asr", "s2t"])
def test_decoding_starts_in_a_fresh_process_and_says_what_is_missing(kind, tmp_path):
    """Our class is a subclass of ESPnet's, whose place it takes while decoding."""
    gone = tmp_path / "config.yaml"
    done = subprocess.run(
        [sys.executable, "-m", f"espnet_hra.bin.{kind}_inference"]
        + ["--data_path_and_name_and_type", f"{tmp_path}/wav.scp,speech,sound"]
        + ["--output_dir", str(tmp_path / "out"), f"--{kind}_train_config", str(gone)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"{kind}_inference: {gone}: cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_is_not_there_is_refused_with_those_that_are(capsys):
    assert call("serv") == 2
    assert "'serv'" in (said := capsys.readouterr().err) and "validate" in said


def test_a_mistake_is_one_line(tmp_path):
    said = call("params", str(tmp_path / "no.yaml"))
    assert said.startswith(f"espnet-hra params: {tmp_path / 'no.yaml'}: cannot be read")
    assert "\n" not in said
