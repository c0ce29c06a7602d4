"""The machine around it: full disks, read-only folders, clocks that jump, moves."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from adaptations import make_adaptation

import espnet_hra
from espnet_hra import TaskError, cli
from espnet_hra.bench.soak.disk import SmallDisk
from espnet_hra.commands.recipe import copy_recipe
from espnet_hra.errors import UserError
from espnet_hra.files import atomic
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.store import TaskStore


@pytest.fixture(scope="module")
def original(base, tmp_path_factory) -> Path:
    """An adaptation; not to be changed."""
    return make_adaptation(tmp_path_factory.mktemp("adapted") / "exp", base)


@pytest.fixture
def model(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "exp"))


def opened(model, **kwargs):
    return espnet_hra.Speech2Text.from_pretrained(
        str(model), ctc_greedy=True, ctc_weight=1.0, **kwargs
    )


# ---------------------------------------------------------------------- a full disk

FULL = """
import os, sys
from pathlib import Path
import torch
from espnet_hra.errors import TaskError
from espnet_hra.files import atomic
from espnet_hra.tasks.store import TaskStore

disk = Path(sys.argv[1])


def save(obj, path):
    with atomic.replacing(path) as file:  # as the trainer does
        torch.save(obj, file)


old = b"old" * 10
store = TaskStore(disk / "tasks")
store.put(old, "a")
atomic.write(disk / "page.md", "old")
save({"w": torch.zeros(10)}, disk / "model.pth")
before = {p: p.read_bytes() for p in disk.rglob("*") if p.is_file()}
(disk / "filler").write_bytes(b"x" * 40_000)
new = os.urandom(100_000)
for what, write in {
    "a task": lambda: store.put(new, "a", replace=True),
    "a new task": lambda: store.put(new, "b"),
    "a page": lambda: atomic.write(disk / "page.md", new),
    "a table": lambda: atomic.write_all(disk, {"one.tsv": b"x", "two.tsv": new}),
    "a checkpoint": lambda: save({"w": torch.zeros(50_000)}, disk / "model.pth"),
}.items():
    try:
        write()
    except (TaskError, OSError, RuntimeError) as e:
        assert "\\n" not in str(e).strip() or isinstance(e, RuntimeError), e
        print(what, type(e).__name__, flush=True)
    else:
        sys.exit(f"{what}: written to a full disk")
(disk / "filler").unlink()
after = {p: p.read_bytes() for p in disk.rglob("*") if p.is_file()}
assert after == before, set(after) ^ set(before)
store.put(b"new", "b")  # and goes on
print("fine")
"""


def on_a_small_disk(
    folder: Path, size: str, script: str
) -> subprocess.CompletedProcess:
    """Run Python with a file system of its own; skips where there can be none."""
    disk = folder / "disk"
    disk.mkdir()
    shell = f'mount -t tmpfs -o size={size} tmpfs "$1" || exit 99; exec "${{@:2}}" "$1"'
    unshare = shutil.which("unshare") or "false"
    (folder / "script.py").write_text(script)
    command = [unshare, "-rm", "bash", "-c", shell, "bash", disk]
    done = subprocess.run(
        [*command, sys.executable, folder / "script.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if done.returncode == 99 or "unshare" in done.stderr or unshare == "false":
        pytest.skip("no file systems of one's own here")
    return done


def test_a_full_disk_leaves_all_files_as_they_were(tmp_path):
    done = on_a_small_disk(tmp_path, "64k", FULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "fine"


def test_a_page_of_two_tables_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """The disk is full at the second: the first keeps its content."""
    atomic.write_all(tmp_path, {"a.tsv": "1", "b.tsv": "1"})
    fsync = os.fsync
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_all(tmp_path, {"a.tsv": "2", "b.tsv": "2"})
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == {"a.tsv": "1", "b.tsv": "1"}


@pytest.mark.parametrize("name", ["pack.zip", "pack"])
def test_a_pack_that_does_not_fit_on_the_disk_is_one_line(model, name, tmp_path):
    """torch.save ends with an error of its own where it cannot write."""
    try:
        disk = SmallDisk(tmp_path / "disk", 2**16)
    except UserError:
        pytest.skip("no file systems of one's own here")
    try:
        command = [sys.executable, "-m", "espnet_hra.cli", "pack", "--model"]
        command += [str(model), "--out", str(disk.folder / name)]
        status, _, said = disk.run(command, {})
        assert status == 1 and "Traceback" not in said, said
        assert said.splitlines()[-1] == (
            "espnet-hra pack: no room is left on the disk: make room, then run the "
            "same command again"
        )
        assert list(disk.path.iterdir()) == []
    finally:
        disk.close()


# -------------------------------------------------------------- read-only, and moved


def unwritable(folder: Path) -> None:
    """Take the right to write away; root has it anyway."""
    folder.chmod(0o555)
    try:
        (folder / "probe").touch()
    except OSError:
        return
    (folder / "probe").unlink()
    pytest.skip("this user may write everywhere")


def test_tasks_beside_a_model_that_cannot_be_written_to(tmp_path):
    (tmp_path / "tasks").write_text("a file in the place of the folder")
    with pytest.raises(TaskError, match="tasks cannot be kept here"):
        TaskStore(tmp_path / "tasks").put(b"x", "a")
    (tmp_path / "tasks").unlink()
    (tmp_path / "tasks").mkdir()
    unwritable(tmp_path / "tasks")
    with pytest.raises(TaskError, match="tasks cannot be kept here"):
        TaskStore(tmp_path / "tasks").put(b"x", "a")


def test_a_model_that_moved_is_the_same_model(model, an4, tmp_path):
    """Its configuration names the base, not itself."""
    encoder = opened(model).asr_model.encoder
    (model / "tasks").mkdir()
    encoder.save_task("female", model / "tasks" / "female.safetensors")
    moved = tmp_path / "it's another place"
    os.rename(model, moved)
    speech2text = opened(moved, task="female")
    checksum = taskfile.read(moved / "tasks" / "female.safetensors").checksum
    assert speech2text.asr_model.encoder.task_checksum("female") == checksum


def prepare(recipe: Path, *options: object, **kwargs) -> subprocess.CompletedProcess:
    """Prepare mini AN4 with a copy of the recipe."""
    command = ["bash", recipe / "run.sh", "--corpus", "mini_an4"]
    command += ["--python", sys.executable, *options]
    return subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        **kwargs,
    )


def stages_that_ran(done: subprocess.CompletedProcess) -> list[str]:
    return re.findall(r"Stage (\d+): done in", done.stdout)


def marks(recipe: Path, exp: str = "exp/mini_an4") -> dict[str, str]:
    folder = recipe / exp / ".done"
    return {path.name: path.read_text() for path in folder.glob("stage*")}


def test_a_recipe_that_moved_goes_on_where_it_was(tmp_path, base):
    """Its lists are made again, with the new paths; digests are what they were, so that
    nothing that was computed of them is computed again."""
    options = ["--pretrained_model", base, "--stop_stage", "4"]
    recipe = copy_recipe(tmp_path / "first")
    assert prepare(recipe, *options).returncode == 0
    before = marks(recipe)
    moved = tmp_path / "it's elsewhere"
    recipe.rename(moved)
    done = prepare(moved, *options)
    assert done.returncode == 0, done.stderr
    assert "A folder has moved since the last run" in done.stdout
    assert stages_that_ran(done) == ["1", "8", "3", "4"]
    assert marks(moved) == before and set(before) == {f"stage{n}" for n in (1, 3, 4, 8)}
    listed = (moved / "exp" / "mini_an4" / "dump" / "train" / "wav.scp").read_text()
    for line in listed.splitlines():
        path = line.split(maxsplit=1)[1]
        assert path.startswith(f"{moved}/") and Path(path).is_file()
    assert stages_that_ran(prepare(moved, *options)) == []
    moved.rename(recipe)  # and back
    assert stages_that_ran(prepare(recipe, *options)) == ["1", "8", "3", "4"]
    assert marks(recipe) == before


@pytest.mark.slow
def test_results_that_moved_go_on_where_they_were(tmp_path, base):
    """Those of --expdir, wherever it is: nothing that was computed is done again."""
    recipe = copy_recipe(tmp_path / "recipe")
    options = ["--pretrained_model", base, "--asr_args", "--max_epoch 1"]
    options += ["--skip_stages", "9", "--stop_stage", "11"]
    done = prepare(recipe, *options)
    assert done.returncode == 0, done.stderr
    before, place = marks(recipe), recipe / "exp"
    assert "stage11" in before
    # From where they are usually, to a place of their own, to another.
    for moved in (tmp_path / "it's elsewhere", tmp_path / "c" / "d"):
        moved.parent.mkdir(exist_ok=True)
        place.rename(moved)
        done = prepare(recipe, *options, "--expdir", moved)
        assert done.returncode == 0, done.stderr
        assert "A folder has moved since the last run" in done.stdout
        assert stages_that_ran(done) == ["1", "8", "3", "4"]
        assert marks(moved, "mini_an4") == before
        assert stages_that_ran(prepare(recipe, *options, "--expdir", moved)) == []
        place = moved
    place.rename(recipe / "exp")  # and back, with the recipe elsewhere
    recipe = recipe.rename(tmp_path / "another")
    assert stages_that_ran(prepare(recipe, *options)) == ["1", "8", "3", "4"]
    assert marks(recipe) == before


def test_a_recipe_in_a_place_that_cannot_be_written_to_says_so(tmp_path):
    recipe = copy_recipe(tmp_path / "recipe")
    try:
        disk = SmallDisk(tmp_path / "disk", 2**24)
    except UserError:
        pytest.skip("no file systems of one's own here")
    try:
        command = ["bash", str(recipe / "run.sh"), "--corpus", "mini_an4"]
        command += ["--python", sys.executable, "--expdir", str(disk.folder)]
        command += ["--stop_stage", "3"]
        for done_before in (False, True):
            assert disk.run(["mount", "-o", "remount,ro", str(disk.folder)], {})[0] == 0
            status, out, said = disk.run(command, {})
            assert status == 1 and len(said.splitlines()) == 1, said
            assert f"cannot write in {disk.folder}/mini_an4/" in said
            assert (
                "another place with --expdir; then run the same command again" in said
            )
            assert disk.run(["mount", "-o", "remount,rw", str(disk.folder)], {})[0] == 0
            status, out, said = disk.run(command, {})
            assert status == 0, said
            assert ("Stage 3: Format wav.scp: done before" in out) == done_before
    finally:
        disk.close()


# ------------------------------------------------------------------ clocks that jump


def test_the_recipe_does_not_mind_a_clock_that_is_set_back(tmp_path):
    recipe = copy_recipe(tmp_path / "recipe")
    (tmp_path / "bin").mkdir()
    date = tmp_path / "bin" / "date"
    date.write_text(
        f"#!/bin/sh\necho >>{tmp_path}/calls\ncalls=$(wc -l <{tmp_path}/calls)\n"
        f'exec {shutil.which("date")} -d "@$((2000000000 - 90000 * calls))" "$@"\n'
    )
    date.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = prepare(recipe, "--stop_stage", "3", env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    assert stages_that_ran(done) == ["1", "3"]
    times = (recipe / "exp" / "mini_an4" / "times.tsv").read_text().splitlines()
    assert [line.split("\t")[-1] for line in times] == ["0", "0"]
    assert len((tmp_path / "calls").read_text()) > 8
    # By a clock that is right again, all that was done is done.
    assert stages_that_ran(prepare(recipe, "--stop_stage", "3")) == []


def test_a_clock_that_jumps_changes_nothing(model, monkeypatch):
    """Files from the future and from 1970 are read, replaced and removed as others."""
    speech2text = opened(model)
    encoder = speech2text.asr_model.encoder
    folder = model / "tasks"
    folder.mkdir()
    path = folder / "new.safetensors"
    encoder.add_task("new")
    outputs = []
    for seconds in (4_000_000_000, 1, 4_000_000_000, 1):
        with torch.no_grad():
            encoder.adapter.heads.vector("new").add_(0.1)
        encoder.save_task("new", path)
        os.utime(path, (seconds, seconds))
        outputs.append(encoder.adapter.heads.vector("new").clone())
        found = opened(model).asr_model.encoder  # a fresh process
        assert torch.equal(found.adapter.heads.vector("new"), outputs[-1])
    encoder.remove_task("new")
    for expected in (outputs[-1], None):
        # While a model is open: the same time of change, other bytes.
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: 1.0)
            if expected is None:
                TaskStore(folder).remove("new")
                assert "new" not in encoder.tasks
            else:
                assert torch.equal(encoder.adapter.heads.vector("new"), expected)


def test_transcribe_of_a_model_without_a_folder_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="nowhere"):
        cli.main(["transcribe", "x.wav", "--model", str(tmp_path / "nowhere")])
