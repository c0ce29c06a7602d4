"""The recipe as users meet it: options, hostile names, what is done again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional

import pytest

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
    cwd: Optional[Path] = None,
    env: Optional[Dict[str, str]] = None,
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


def stages_that_ran(done: subprocess.CompletedProcess) -> List[int]:
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
        (["--skip_train", "yes"], "--skip_train must be true or false"),
        (["--method", "lora"], "'lora' is not built yet; built: hra"),
        (["--method", "magic"], "no method 'magic'; built: hra"),
        (["--skip_packing", "false"], "not built yet"),
        (["--corpus", "/no/such/folder"], "no folder '/no/such/folder'"),
        (["--corpus", "mini_an4", "--asr_config", "no.yaml"], "no file 'no.yaml'"),
        (["--corpus", "mini_an4", "--regime", "new_task"], "--init_adapter"),
        (["--corpus", "mini_an4", "--pretrained_model", "no.zip"], "no file"),
    ],
)
def test_mistakes_are_refused_in_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_options_take_an_equals_sign_and_the_last_one_wins():
    done = run("--method=lora", "--method=full")
    assert "'full' is not built yet" in done.stderr


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
    done = run(*options, "--tasks", "male", script=script, cwd=tmp_path)
    assert stages_that_ran(done) == [3, 4, 5]
    assert (work / "dump" / "tasks").read_text() == "male\n"
    (work / "dump" / "dev" / "audio_stamp").unlink()
    done = run(*options, "--tasks", "male", script=script, cwd=tmp_path)
    assert stages_that_ran(done) == [4]

    # A failure names the log, keeps no mark and is tried again.
    done = run(*options, "--tasks", "male opera", script=script, cwd=tmp_path)
    assert done.returncode == 1
    assert "has no task opera; it has: female, male" in done.stderr
    assert "exp/mini_an4/logs/stage3.log" in done.stderr


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
    assert done.returncode == 1 and "a command stands in place" in done.stderr
    assert not list(tmp_path.rglob("oops"))


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
    assert "it shows that the machinery works" in (work / "RESULTS.md").read_text()

    # The same once more: nothing; another seed: the adaptation and what follows.
    assert stages_that_ran(run(*options, script=script)) == []
    done = run(*options, "--seed", "2", script=script)
    assert stages_that_ran(done) == [11, 12, 13]
    assert len(read_rows(work)) == len(rows) + 4
    assert stages_that_ran(run(*options, "--seed", "1", script=script)) == []
    uninterrupted = [row for row in read_rows(work) if row["seed"] == "2"]

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
    assert "epoch 1:" not in done.stdout and "epoch 4:" in done.stdout
    assert [row for row in read_rows(work) if row["seed"] == "2"] == uninterrupted


def read_rows(work: Path) -> List[Dict[str, str]]:
    """The rows of results.tsv."""
    lines = (work / "results.tsv").read_text(encoding="utf-8").splitlines()
    header = lines[0].split("\t")
    return [dict(zip(header, line.split("\t"))) for line in lines[1:]]
