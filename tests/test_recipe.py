"""The recipe as users meet it: options, hostile names, what is done again."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from espnet_hra import cli
from espnet_hra.data.lists import read_entries

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "egs2" / "hra_asr"
SCRIPTS = [
    *sorted(RECIPE.glob("*.sh")),
    *sorted((ROOT / "local").glob("*.sh")),
    ROOT / ".ci" / "run",
]


def run(
    *arguments: object,
    script: Path = RECIPE / "run.sh",
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """Run a script without a terminal."""
    return subprocess.run(
        ["bash", str(script), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def stages_that_ran(done: subprocess.CompletedProcess) -> list[int]:
    """The numbers of the stages that were not skipped."""
    lines = [line for line in done.stdout.splitlines() if ": done in " in line]
    return [int(line.split("Stage ")[1].split(":")[0]) for line in lines]


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A copy of the recipe in a folder whose name breaks careless scripts."""
    top = tmp_path / "it's a $HOME of `mine` (1)"
    (top / "egs2").mkdir(parents=True)
    for name in ("conf", "local"):
        shutil.copytree(ROOT / name, top / name)
    ignored = shutil.ignore_patterns("data", "downloads", "dump", "exp")
    shutil.copytree(RECIPE, top / "egs2" / "hra_asr", symlinks=True, ignore=ignored)
    (top / "espnet_hra").symlink_to(ROOT / "espnet_hra")
    return top / "egs2" / "hra_asr"


def test_help_lists_options_with_their_defaults():
    done = run("--help")
    assert done.returncode == 0 and done.stderr == ""
    for option in ("--stop_stage", "--corpus", "--tasks", "--pretrained_model"):
        assert option in done.stdout
    assert "(default: debian_voices)" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--colour", "red"], "unknown option '--colour'"),
        (["stage"], "unexpected argument 'stage'"),
        (["--stage"], "option '--stage' needs a value"),
        (["--stage", "two"], "--stage must be a whole number"),
        (["--speed_perturb_factors", "1.1 3"], "numbers from 0.5 to 2"),
        (["--speed_perturb_factors", "0.9,1.1"], "not '0.9,1.1'"),
        (["--train_utterances", "0"], "a number from 1 on, not '0'"),
        (["--train_utterances", "few"], "a number from 1 on, not 'few'"),
        (["--skip_train", "yes"], "--skip_train must be true or false"),
        (["--method", "magic"], "no method 'magic'; there are: hra residual"),
        (["--method", "none", "--asr_args", "--max_epoch 2"], "none adapts nothing"),
        (["--asr_args", "--encoder_conf adapter=lora"], "cannot choose the adapter"),
        (["--skip_upload_hf", "false"], "needs --hf_repo"),
        (["--clean_text", "yes"], "--clean_text must be auto or none, not 'yes'"),
        (["--corpus", "/no/such/folder"], "no folder '/no/such/folder'"),
        (["--corpus", "mini_an4", "--asr_config", "no.yaml"], "no file 'no.yaml'"),
        (["--corpus", "mini_an4", "--regime", "new_task"], "--init_adapter"),
        (
            ["--corpus", "mini_an4", "--method", "none", "--classify", "spk"],
            "--classify is of an adaptation",
        ),
        (["--corpus", "mini_an4", "--pretrained_model", "no.zip"], "no file"),
    ],
)
def test_mistakes_are_refused_in_one_line(arguments, message):
    # A backbone is asked for before all of these; the default one may be missing.
    done = run("--corpus", "mini_an4", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_options_take_an_equals_sign_and_the_last_one_wins():
    done = run("--nj=two", "--nj=three")
    assert "not 'three'" in done.stderr


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> Path:
    """Configurations of adaptations, called as users call them."""
    folder = tmp_path_factory.mktemp("configs")
    for name, adapter in {
        "train_residual_r8": "{adapter: residual}",
        "mine": "{adapter: residual}",
        "train_hra_x": "{}",
        "broken": "[",
    }.items():
        (folder / f"{name}.yaml").write_text(f"encoder_conf: {adapter}\n")
    return folder


@pytest.mark.parametrize(
    "options, label",
    [
        (["--asr_config", "train_residual_r8.yaml"], "residual_r8"),
        (["--asr_config", "mine.yaml", "--method", "residual"], "residual_mine"),
        (["--asr_config", "train_hra_x.yaml"], "hra_x"),
        (["--tasks", "male"], "hra_tasks-male"),
        (["--tasks", "male female male"], "hra_tasks-2-"),
        (["--train_utterances", "3"], "hra_train-3"),
        (["--tasks", "male", "--train_utterances", "3"], "hra_tasks-male_train-3"),
        (["--method", "none", "--tasks", "male"], "none"),
        ([], "hra"),
    ],
)
def test_labels_begin_with_the_adapter(configs, tmp_path, options, label):
    done = run(
        *("--corpus", "mini_an4", "--python", sys.executable, "--stage", "2"),
        *("--pretrained_model", configs, "--stop_stage", "2", "--expdir", tmp_path),
        *options,
        cwd=configs,
    )
    assert done.returncode == 0, done.stderr
    assert f"method {label}" in done.stdout.splitlines()[0]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--asr_config", "train_residual_r8.yaml", "--method", "lora"],
            "--method lora contradicts train_residual_r8.yaml, whose adapter is "
            "residual: leave one of the two out",
        ),
        (["--asr_config", "broken.yaml"], "broken.yaml: not readable as YAML"),
    ],
)
def test_method_and_configuration_must_agree(configs, options, message):
    options = ["--corpus", "mini_an4", "--python", sys.executable, *options]
    done = run(*options, cwd=configs)
    assert done.returncode and len(done.stderr.splitlines()) == 1
    assert message in done.stderr.replace(f"{configs}/", "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    assert run(script, script=Path("-n")).returncode == 0


def test_data_stages_in_a_folder_with_a_hostile_name(recipe, tmp_path):
    options = ["--corpus", "mini_an4", "--python", sys.executable]
    options += ["--stop_stage", "5"]
    script = recipe / "run.sh"
    done = run(*options, script=script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert stages_that_ran(done) == [1, 3, 4, 5]
    work = recipe / "exp" / "mini_an4"
    assert (work / "dump" / "tasks").read_text() == "female\nmale\n"
    tokens = (work / "tokens.txt").read_text().split()
    assert tokens[:2] == ["<blank>", "<unk>"] and tokens[-1] == "<sos/eos>"
    shapes = (work / "dump" / "train" / "speech_shape").read_text()
    assert "fash-an251 16000\n" in shapes

    # Nothing is done twice, another choice redoes what depends on it.
    done = run(*options, script=script, cwd=recipe)
    assert done.returncode == 0 and stages_that_ran(done) == []
    done = run(*options, "--skip_bad", "true", script=script, cwd=tmp_path)
    assert done.returncode == 0 and stages_that_ran(done) == [4]
    # Tasks are adapted from the backbone of all tasks, which is not there yet.
    done = run(*options, "--tasks", "male", script=script, cwd=tmp_path)
    assert done.returncode == 0 and stages_that_ran(done) == [4]
    assert "come before all that concerns tasks-male" in done.stdout
    (work / "dump" / "dev" / "audio_stamp").unlink()
    assert stages_that_ran(run(*options, script=script, cwd=tmp_path)) == [4]


def test_some_of_the_tasks_are_data_of_their_own(recipe, base, tmp_path):
    options = ["--corpus", "mini_an4", "--python", sys.executable]
    options += ["--pretrained_model", base, "--stop_stage", "5"]
    script = recipe / "run.sh"
    work = recipe / "exp" / "mini_an4"
    done = run(*options, script=script)
    assert stages_that_ran(done) == [1, 8, 3, 4]
    done = run(*options, "--tasks", "male", script=script, cwd=tmp_path)
    assert stages_that_ran(done) == [8, 3, 4]
    assert (work / "dump_tasks-male" / "tasks").read_text() == "male\n"
    assert (work / "dump" / "tasks").read_text() == "female\nmale\n"
    for some in (["--tasks", "male"], []):
        assert stages_that_ran(run(*options, *some, script=script)) == []

    # So is a part of the sentences: few of each task, of which fewer are a part.
    kept = {}
    for number in (1, 2):
        done = run(*options, "--train_utterances", number, script=script)
        assert stages_that_ran(done) == [8, 3, 4]
        dump = work / f"dump_train-{number}"
        of = read_entries(dump / "train" / "utt2task")
        assert sorted(of.values()) == ["female"] * number + ["male"] * number
        kept[number] = set(of)
        for name in ("dev", "test"):
            whole = (work / "dump" / name / "text").read_text()
            assert (dump / name / "text").read_text() == whole
    assert kept[1] < kept[2] < set(read_entries(work / "dump" / "train" / "utt2task"))

    # A failure names the log, keeps no mark and is tried again.
    done = run(*options, "--tasks", "male opera", script=script, cwd=tmp_path)
    assert done.returncode == 1
    assert "has no task opera; it has: female, male" in done.stderr
    assert "exp/mini_an4/logs/stage3.log" in done.stderr
    assert len(done.stderr.splitlines()) == 3


def test_a_folder_of_ones_own(recipe, an4, tmp_path):
    """Kaldi-style folders, speakers as tasks, and texts that a shell must not see."""
    source = tmp_path / "my corpus; touch oops"
    trap = "$(touch oops) `touch oops` '; touch oops; \" * \\"
    for name in ("train", "dev", "test"):
        folder = source / name
        folder.mkdir(parents=True)
        lines = (an4[name] / "wav.scp").read_text().splitlines()
        copies = []
        for number, line in enumerate(lines):
            utterance, path = line.split(None, 1)
            audio = folder / f"a {number} $x.flac"
            shutil.copy(path, audio)
            copies.append((f"{name}-{utterance}", audio.name))
        columns = {
            "wav.scp": [f"{u} {audio}" for u, audio in copies],
            "text": [f"{u} go  {trap if name == 'test' else 'on'}" for u, _ in copies],
            "utt2spk": [f"{u} me" for u, _ in copies],
        }
        for file, content in columns.items():
            (folder / file).write_text("\r\n".join(content), encoding="utf-8")
    before = sorted(recipe.iterdir())
    options = ["--python", sys.executable, "--train_backbone", "true"]
    options += ["--clean_text", "none"]
    done = run(
        *options,
        *("--corpus", source.name, "--stop_stage", "5"),
        script=recipe / "run.sh",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    work = recipe / "exp" / "my_corpus__touch_oops"
    assert (work / "dump" / "tasks").read_text() == "me\n"
    text = (work / "dump" / "test" / "text").read_text().splitlines()
    assert text[0].split(None, 1)[1] == f"go {trap}"
    assert "stand in train too" in done.stdout  # the same words in dev
    assert not list(tmp_path.rglob("oops"))
    assert {p.name for p in set(recipe.iterdir()) - set(before)} == {"data", "exp"}

    # A command in wav.scp is refused, not executed.
    scp = source / "train" / "wav.scp"
    scp.write_text("train-fash-an251 touch oops |\n")
    done = run(
        *options,
        *("--corpus", source, "--stop_stage", "1"),
        script=recipe / "run.sh",
    )
    assert done.returncode == 1 and "commands stand in place" in done.stderr
    assert not list(tmp_path.rglob("oops"))


FORMATS = [(8000, "flac", 1), (44100, "ogg", 2), (16000, "wav", 1), (48000, "wav", 2)]


def write_folder(folder: Path, an4: Path, extra: dict[str, str]) -> None:
    """A data set as people have them: any rate, format and channels, raw texts.

    Args:
        folder: Where to write.
        an4: A data set of AN4.
        extra: Further texts; half a second of noise, or what the id says.
    """
    folder.mkdir(parents=True)
    audio = dict(line.split(None, 1) for line in (an4 / "wav.scp").open())
    texts = dict(line.split(None, 1) for line in (an4 / "text").open())
    columns: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": []}
    noise = np.random.default_rng(0).normal(0, 0.05, 4000)
    for number, name in enumerate([*sorted(texts), *extra]):
        rate, ending, channels = FORMATS[number % len(FORMATS)]
        if name in extra:
            samples, rate = noise[: 100 if "short" in name else None], 8000
            text, ending = extra[name], "wav"
        else:
            samples, known = soundfile.read(audio[name].strip())
            samples = soxr.resample(samples, known, rate)
            text = f"{texts[name].strip().upper()}!"
            if channels == 2:
                samples = np.stack([samples, 0.5 * samples], axis=1)
        name = f"{folder.name}-{name}"
        soundfile.write(folder / f"{name}.{ending}", samples, rate)
        columns["wav.scp"].append(f"{name} {name}.{ending}")
        columns["text"].append(f"{name} {text}")
        columns["utt2spk"].append(f"{name} {'J\u00f6rg 1' if number % 2 else 'ann'}")
    for file, lines in columns.items():
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_texts_and_recordings_as_people_have_them(recipe, an4, base, tmp_path):
    """Case and punctuation are folded; what cannot be learned is left out, and told."""
    extra = {
        "empty": "",
        "digits": "ROOM 101",
        "short": "YES",
        "dots": "...",
        "fast": "YES " * 20,
    }
    for name in ("train", "dev", "test"):
        write_folder(tmp_path / "own" / name, an4[name], extra)
    options = ["--corpus", tmp_path / "own", "--python", sys.executable]
    options += ["--pretrained_model", base, "--stop_stage", "5"]
    done = run(*options, script=recipe / "run.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the task of speaker J\u00f6rg 1 is called Jorg_1" in done.stdout
    for line in (
        "to lower case: ",
        "characters without a token, and utterances: ",
        "'1' (U+0031 DIGIT ONE) in 3",
        "left out of train: 5 of 10 (characters without a token 1, no text 2, "
        "too short 1, too short for its text 1)",
        "left out of dev: 5 of 10",
        "2 of 7 utterances of test have characters that the backbone cannot write; "
        "these count as errors: test-digits, test-mmxg-cen8",
        "test: 1 recordings too short for the encoder, made longer with silence: "
        "test-short",
    ):
        assert line in done.stdout, done.stdout
    assert "left out of test" not in done.stdout
    work = recipe / "exp" / "own"
    dump = work / "dump"
    text = (dump / "train" / "text").read_text(encoding="utf-8")
    assert text == text.lower() and "!" not in text
    assert (dump / "tasks").read_text() == "Jorg_1\nann\n"
    texts = (dump / "test" / "text").read_text().splitlines()
    assert "test-digits room 101" in texts  # errors, not silence
    assert "test-empty" in [line.strip() for line in texts] and len(texts) == 7
    assert "test-dots" in [line.strip() for line in texts]
    assert "train train-short: too short: 200 samples" in (
        work / "logs" / "clean_text.txt"
    ).read_text(encoding="utf-8")
    note = (dump / "note.txt").read_text(encoding="utf-8")
    assert "Texts were cleaned (lower case, punctuation to spaces)" in note
    for line in (dump / "train" / "wav.scp").read_text().splitlines():
        info = soundfile.info(line.split(None, 1)[1])
        assert (info.samplerate, info.channels) == (16000, 1)

    # Without it, the validation says what the texts lack, and stops.
    done = run(*options, "--clean_text", "none", script=recipe / "run.sh")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Stage 4, Validation, failed" in done.stderr
    log = (work / "logs" / "stage4.log").read_text(encoding="utf-8")
    assert "Write the text in lower case." in log


@pytest.mark.parametrize(
    "tokens, text, folded",
    [
        ("ab'", "A\u2019B, \u00abb\u00bb a-b", "a'b b a b"),
        ("AB", "ab\u00ad\u200bb, 5", "ABB 5"),
        ("aB", "Ab aB", "Ab aB"),  # the backbone knows both cases
        ("ab.", "a.b!", "a.b"),
        ("abe\u0301", "\u00e9 e\u0301", "\u00e9 \u00e9"),
        ("ab", "a & b 10 % @ \u20ac", "a & b 10 % @ \u20ac"),  # these are read out
        ("\u0430\u0431", "\u0410\u0411", "\u0430\u0431"),
        ("\u3042", "\u3042\u3001\u3042\u3002", "\u3042 \u3042"),  # no case at all
    ],
)
def test_folding(tokens, text, folded):
    sys.path.insert(0, str(ROOT / "local"))
    try:
        from clean_text import Folding, known_characters
    finally:
        sys.path.remove(str(ROOT / "local"))
    known = known_characters(
        ["<blank>", "<unk>", "<space>", *tokens, "\u2581" + tokens]
    )
    assert Folding(known)(text) == folded


def test_language_tags_and_noises_are_units(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "local"))
    from clean_text import Folding, known_characters, known_symbols

    tokens = ["<blank>", "<unk>", "<space>", *"ab", "<en>", "[noise]", "<sos/eos>"]
    assert known_symbols(tokens) == {"<en>", "[noise]"}
    assert known_characters(tokens) == {"a", "b"}
    folding = Folding(known_characters(tokens), known_symbols(tokens))
    assert folding("<en> A[b]! [noise]") == "<en> a b [noise]"
    assert folding("[NOISE] AB") == "[noise] ab"


def test_one_run_at_a_time(recipe):
    work = recipe / "exp" / "mini_an4"
    work.mkdir(parents=True)
    if shutil.which("flock") is None:
        pytest.skip("no flock")
    lock = ["flock", str(work / ".lock"), "sleep", "60"]
    holder = subprocess.Popen(lock, start_new_session=True)
    try:
        time.sleep(0.5)
        done = run(
            *("--corpus", "mini_an4", "--python", sys.executable),
            script=recipe / "run.sh",
        )
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
    assert done.returncode == 1 and "another run works in" in done.stderr


def test_find_python_passes_over_a_shim_that_fails(tmp_path):
    shims, versions = tmp_path / "shims", tmp_path / "pyenv" / "versions"
    real = versions / "3.12.99" / "bin" / "python3"
    shims.mkdir()
    real.parent.mkdir(parents=True)
    for name in ("python3.13", "python3.12", "python3", "python"):
        shim = shims / name
        shim.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
        shim.chmod(0o755)
    real.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    real.chmod(0o755)
    tools = ["bash", "env"]
    for tool in tools:
        (shims / tool).symlink_to(shutil.which(tool))
    env = {"PATH": str(shims), "PYENV_ROOT": str(tmp_path / "pyenv"), "PYTHON": ""}
    script = ROOT / "local" / "find_python.sh"
    done = run(script=script, env=env)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).exists()
    real.unlink()
    done = run(script=script, env=env)
    assert done.returncode == 1 and "No Python 3.12 or 3.13 found" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_copy_stands_on_its_own(tmp_path, capsys):
    destination = tmp_path / "espnet" / "egs2"
    destination.mkdir(parents=True)
    for force in ("false", "true"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["recipe", str(destination), "--force", force])
        assert ended.value.code == 0
        copy = destination / "hra_asr"
        if force == "true":
            assert (copy / "exp").is_dir()  # what was made stays
            break
        for path in copy.rglob("*"):
            assert not path.is_symlink()
        assert not (copy / "exp").exists() and (copy / "conf" / "mini_an4").is_dir()
        done = run(
            *("--corpus", "mini_an4", "--stop_stage", "3"),
            script=copy / "run.sh",
            cwd=tmp_path,
            # Nothing but the copy's own memory leads to this Python.
            env={"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": "", "PYTHONPATH": ""},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert stages_that_ran(done) == [1, 3]
        with pytest.raises(SystemExit, match="is there already.*--force true"):
            cli.main(["recipe", str(destination)])
    with pytest.raises(SystemExit) as ended:
        cli.main(["recipe", str(tmp_path / "a" / "copy")])
    assert (tmp_path / "a" / "copy" / "run.sh").stat().st_mode & 0o100
    with pytest.raises(SystemExit, match="is the recipe itself"):
        cli.main(["recipe", str(RECIPE)[: -len("/hra_asr")], "--force", "true"])


@pytest.mark.shows(encoder="conformer", objective="CTC", entrance="recipe")
@pytest.mark.slow
def test_mini_an4_from_data_to_results(recipe, tmp_path):
    """All stages; then what another seed redoes, and what a kill leaves behind."""
    options = ["--corpus", "mini_an4", "--python", sys.executable]
    script = recipe / "run.sh"
    done = run(*options, script=script, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_that_ran(done) == [1, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13]
    work = recipe / "exp" / "mini_an4"
    rows = read_rows(work)
    assert {(r["method"], r["task"], r["split"]) for r in rows} == {
        (method, task, split)
        for method in ("none", "hra")
        for task in ("female", "male")
        for split in ("dev", "test")
    }
    rate = {(r["method"], r["split"]): float(r["cer"]) for r in rows}
    assert rate["hra", "dev"] < rate["none", "dev"]  # it was trained on this
    page = (work / "RESULTS.md").read_text()
    assert "it shows that the machinery works" in page
    assert "![CER of each task, test](results.png)" in page
    assert "## Comparison with hra on test" in page
    utterances = (work / "utterances.tsv").read_text().splitlines()
    assert len(utterances) == 1 + 2 * 7
    assert "What to try next:" in done.stdout and "Picture: " in done.stdout
    assert re.search(r"\n +all  .* \d+\n", done.stdout)
    # The command that is shown works as it stands, from where it was shown.
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if " transcribe " in line)
    command = lines[at].rstrip("\\") + lines[at + 1]
    said = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr

    # The same once more: nothing; another seed: the adaptation and what follows.
    assert stages_that_ran(run(*options, script=script)) == []
    done = run(*options, "--seed", "2", script=script)
    assert stages_that_ran(done) == [11, 12, 13]
    assert len(read_rows(work)) == len(rows) + 4
    assert stages_that_ran(run(*options, "--seed", "1", script=script)) == []
    uninterrupted = [row for row in read_rows(work) if row["seed"] == "2"]

    # What was damaged since is said, and made again; what depends on it is not.
    adaptation = work / "asr_hra_seed1"
    lists, tables = work / "dump" / "dev" / "text", work / "results.tsv"
    for path, stages in (
        (work / "dump" / "dev" / "text", [4]),
        (adaptation / "decode_greedy" / "dev" / "text", [12]),
        (recipe / "data" / "mini_an4" / "audio", [1]),
        (work / "RESULTS.md", [13]),
    ):
        path = next(iter(sorted(path.glob("*")))) if path.is_dir() else path
        path.write_bytes(path.read_bytes()[:10])
        done = run(*options, script=script)
        assert done.returncode == 0, done.stdout + done.stderr
        assert stages_that_ran(done) == stages, path
        assert (
            "not what it wrote: " in done.stdout and "cut short, 10 of" in done.stdout
        )
    assert lists.stat().st_size > 10
    # A table of results that is not whole is moved aside; other seeds are asked for.
    table = tables.read_text()
    tables.write_text(table[: len(table) // 2])
    done = run(*options, script=script)
    assert stages_that_ran(done) == [13]
    assert len(read_rows(work)) == len(rows) and list(work.glob("results.old-*"))
    assert stages_that_ran(run(*options, "--seed", "2", script=script)) == [13]
    assert sorted(tables.read_text().splitlines()) == sorted(table.splitlines())
    # A training is not done again unasked.
    model = adaptation / "valid.cer_ctc.ave.pth"
    weights = model.read_bytes()
    model.resolve().write_bytes(weights[:-9])
    for first in ("1", "12"):
        done = run(*options, "--stage", first, script=script)
        assert done.returncode == 1 and stages_that_ran(done) == []
        assert "not what stage 11 has trained. Put it back from a copy" in done.stderr
    model.resolve().write_bytes(weights)
    assert stages_that_ran(run(*options, script=script)) == []

    # Killed in the middle of the adaptation: resumed, to the same result.
    shutil.rmtree(work / "asr_hra_seed2")
    first = work / "asr_hra_seed2" / "2epoch.pth"
    killed = subprocess.Popen(
        ["bash", str(script), *options, "--seed", "2"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not first.exists() and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = run(*options, "--seed", "2", script=script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_that_ran(done)[0] == 11
    assert "epoch 1 of 4:" not in done.stdout and "epoch 4 of 4:" in done.stdout
    assert [row for row in read_rows(work) if row["seed"] == "2"] == uninterrupted


def read_rows(work: Path) -> list[dict[str, str]]:
    """The rows of results.tsv."""
    lines = (work / "results.tsv").read_text(encoding="utf-8").splitlines()
    header = lines[0].split("\t")
    return [dict(zip(header, line.split("\t"))) for line in lines[1:]]


# ------------------------------------------------------------- names and many tasks


def lines_of(*tasks):
    from folder import Line

    return {f"u{i}": Line("a.wav", "yes", task, task) for i, task in enumerate(tasks)}


def test_speakers_whose_names_become_the_same_are_numbered(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "local"))
    from folder import name_tasks

    sets = {"train": lines_of("Анна", "Борис", "Ёж", "speaker_", "ann")}
    renamed = name_tasks(sets)
    assert set(renamed) == {"Анна", "Борис", "Ёж"}
    found = {line.task for line in sets["train"].values()}
    assert len(found) == 5 and {"speaker_", "ann"} <= found
    assert set(renamed.values()) == {"speaker__2", "speaker__3", "speaker__4"}


def test_of_many_tasks_some_are_shown_and_the_others_counted(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "local"))
    from folder import count_table

    names = [f"t{i:03d}" for i in range(300)]
    table = count_table({"train": lines_of(*names, *names), "dev": lines_of(*names)})
    lines = table.splitlines()
    assert len(lines) == 1 + 20 + 1 + 1
    assert lines[-2].split() == ["280", "more", "tasks", "560", "280"]
    assert lines[-1].split() == ["all", "600", "300"]


@pytest.mark.slow
@pytest.mark.parametrize("why", ["in dev only", "lost to cleaning"])
def test_a_speaker_with_nothing_to_train_on_is_left_out_and_told(
    why, recipe, an4, base, tmp_path
):
    for name in ("train", "dev", "test"):
        write_folder(tmp_path / "own" / name, an4[name], {})
    if why == "lost to cleaning":
        for file, entry in (("utt2spk", "stranger"), ("text", "ROOM 101")):
            path = tmp_path / "own" / "train" / file
            first, *others = path.read_text().splitlines()
            path.write_text("\n".join([f"{first.split()[0]} {entry}", *others]) + "\n")
    path = tmp_path / "own" / "dev" / "utt2spk"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([f"{first.split()[0]} stranger", *others]) + "\n")
    options = ["--corpus", tmp_path / "own", "--python", sys.executable]
    options += ["--pretrained_model", base, "--stop_stage", "4"]
    done = run(*options, script=recipe / "run.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    dump = recipe / "exp" / "own" / "dump"
    log = (recipe / "exp" / "own" / "logs" / "stage4.log").read_text()
    said = "left out, as nothing is there to train them on: stranger"
    assert said in log + done.stdout
    left_out = first.split()[0]
    for name in ("wav.scp", "text", "utt2task", "speech_shape", "text_shape"):
        ids = [line.split()[0] for line in (dump / "dev" / name).open()]
        assert ids and left_out not in ids


@pytest.mark.slow
def test_skip_bad_says_which_tasks_have_lost_all(recipe, an4, base, tmp_path):
    for name in ("train", "dev", "test"):
        write_folder(tmp_path / "own" / name, an4[name], {})
    train = tmp_path / "own" / "train"
    lines = (train / "utt2spk").read_text().splitlines()
    speakers, lost = dict(line.split(None, 1) for line in lines), "ann"
    lines = (train / "wav.scp").read_text().splitlines()
    (train / "wav.scp").write_text(
        "".join(
            f"{line.split()[0]} /nowhere.wav\n"
            if speakers[line.split()[0]] == lost
            else f"{line}\n"
            for line in lines
        )
    )
    options = ["--corpus", tmp_path / "own", "--python", sys.executable]
    options += ["--pretrained_model", base, "--stop_stage", "4"]
    done = run(*options, script=recipe / "run.sh")
    assert done.returncode == 1 and "--skip_bad true" in done.stdout + done.stderr
    done = run(*options, "--skip_bad", "true", script=recipe / "run.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    count = list(speakers.values()).count(lost)
    said = f"train: left out in the validation: {count}, all utterances of: {lost}."
    assert said in done.stdout
    assert f"  {lost}: nothing; all of its {count} utterance" in done.stdout
    dump = recipe / "exp" / "own" / "dump"
    assert (dump / "left_out.txt").read_text().startswith(f"{said}\n")
    assert lost not in (dump / "tasks").read_text().split()


def test_the_base_decides_the_sampling_rate(recipe, an4, tmp_path):
    from conftest import BASE_CONFIG, make_base

    config = {**BASE_CONFIG, "frontend_conf": {"fs": "8k"}}
    base = make_base(tmp_path / "base", an4["tokens"], config)
    for name in ("train", "dev", "test"):
        write_folder(tmp_path / "own" / name, an4[name], {})
    options = ["--corpus", tmp_path / "own", "--python", sys.executable]
    options += ["--pretrained_model", base, "--stop_stage", "4"]
    done = run(*options, script=recipe / "run.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    dump = recipe / "exp" / "own" / "dump"
    for name in ("train", "dev", "test"):
        for line in (dump / name / "wav.scp").open():
            info = soundfile.info(line.strip().split(None, 1)[1])
            assert (info.samplerate, info.channels) == (8000, 1)
    # The same, said by hand, against the base: the check says what does not fit.
    done = run(*options, "--fs", "16000", script=recipe / "run.sh")
    assert done.returncode == 1
    log = (recipe / "exp" / "own" / "logs" / "stage4.log").read_text()
    assert "sample rate" in log and "expected 8000 Hz" in log
