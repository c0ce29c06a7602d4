"""A stage whose outputs were damaged since it was done is done again, and says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: A recipe of two stages: one that prepares, and a training.
SCRIPT = f"""
set -euo pipefail
work=$1 done_dir=$1/.done log_dir=$1/logs times=$1/times.tsv
prepare_python={sys.executable}
mkdir -p "${{done_dir}}" "${{log_dir}}"
. local/stages.sh
stage_1() {{
    remove_changed 1 -
    mkdir -p "${{work}}/data/audio"
    [ -e "${{work}}/data/audio/a.flac" ] || echo sound >"${{work}}/data/audio/a.flac"
    echo "a ${{work}}/data/audio/a.flac" >"${{work}}/data/wav.scp"
    echo "a yes" >"${{work}}/data/text"
}}
stage_11() {{
    mkdir -p "${{work}}/asr"
    printf 'weights' >"${{work}}/asr/3epoch.pth"
    ln -sf 3epoch.pth "${{work}}/asr/valid.best.pth"
    echo state >"${{work}}/asr/checkpoint.pth"
}}
run_stage 1 Data - "key${{2:-}}" all stage_1 "${{work}}/data/*" \\
    --within "${{work}}/data" --lists "${{work}}/data/wav.scp"
keep_training 11 "a tag" "${{work}}/asr" key
run_stage 11 Training "a tag" key progress stage_11 "${{work}}/asr/valid.*.pth"
"""


def run(work: Path, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", SCRIPT, "bash", work, *more],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def ran(done: subprocess.CompletedProcess) -> list[int]:
    lines = [line for line in done.stdout.splitlines() if ": done in " in line]
    return [int(line.split("Stage ")[1].split(":")[0]) for line in lines]


@pytest.fixture
def work(tmp_path) -> Path:
    """A run that is done, in a folder with an awkward name."""
    folder = tmp_path / "it's $HOME"
    done = run(folder)
    assert ran(done) == [1, 11], done.stdout + done.stderr
    assert ran(run(folder)) == []
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """All files but logs and times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name in ("data", "audio", "asr")
    }


@pytest.mark.parametrize("file", ["text", "wav.scp", "audio/a.flac"])
@pytest.mark.parametrize("damage", ["cut short", "changed", "gone"])
def test_damaged_outputs_are_made_again(damage, file, work):
    before, path = content(work), work / "data" / file
    seconds = path.stat().st_mtime_ns
    if damage == "gone":
        path.unlink()
    elif damage == "changed":
        path.write_bytes(path.read_bytes().replace(b"a", b"b").replace(b"o", b"0"))
    else:
        path.write_bytes(path.read_bytes()[:3])
    done = run(work)
    assert ran(done) == [1] and done.returncode == 0, done.stdout + done.stderr
    assert f"not what it wrote: {path} ({damage}" in done.stdout
    assert content(work) == before
    # What it is made of again is the same: what depends on it need not be done again.
    assert path.stat().st_mtime_ns == seconds
    assert ran(run(work)) == []


@pytest.mark.parametrize("damage", ["cut short", "changed", "gone"])
def test_a_damaged_training_is_told_and_not_done_again_unasked(damage, work):
    path = work / "asr" / "3epoch.pth"
    kept = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(kept[:3] if damage == "cut short" else b"WEIGHTS")
    done = run(work)
    assert done.returncode == 1 and ran(done) == []
    (line,) = done.stderr.splitlines()
    assert f"{work}/asr/valid.best.pth ({damage}" in line
    assert "not what stage 11 has trained" in line
    for remedy in ("Put it back from a copy", "remove", "to go on with what is there"):
        assert remedy in line
    # All three remedies that the line names.
    if damage != "gone":
        note = work / ".done" / "outputs" / "stage11_a,tag"
        assert str(note) in line
        kept_note = note.read_bytes()
        note.unlink()
        assert run(work).returncode == 0 and note.exists()
        note.write_bytes(kept_note)
    path.write_bytes(kept)
    assert run(work).returncode == 0
    shutil.rmtree(work / "asr")
    done = run(work)
    assert ran(done) == [11] and content(work)["asr/3epoch.pth"] == kept


def test_what_moves_or_is_copied_is_as_it_was(work, tmp_path):
    """Paths inside the run's folder are kept from there; times are not all."""
    moved = work.with_name("moved")
    work.rename(moved)
    os.utime(moved / "data" / "text", (1, 1))
    (moved / "data" / "wav.scp").write_text(
        (moved / "data" / "wav.scp").read_text()  # the same, at another time
    )
    assert ran(run(moved)) == []
    shutil.copytree(moved, tmp_path / "copy", copy_function=shutil.copy, symlinks=True)
    assert ran(run(tmp_path / "copy")) == []


def test_a_run_from_before_outputs_were_recorded_is_taken_as_it_is(work):
    shutil.rmtree(work / ".done" / "outputs")
    assert ran(run(work)) == []
    (work / "data" / "text").write_text("")
    assert ran(run(work)) == [1]  # and recorded then
    shutil.rmtree(work / ".done" / "outputs")
    shutil.rmtree(work / "data")
    assert ran(run(work)) == [1]


def test_a_damaged_note_is_as_good_as_none(work):
    note = work / ".done" / "outputs" / "stage1_-"
    note.write_bytes(note.read_bytes()[:-20])
    done = run(work)
    assert ran(done) == [1] and "stage1_- (damaged)" in done.stdout
    assert ran(run(work)) == []


def test_other_options_do_the_stage_again_whatever_its_outputs_are(work):
    (work / "data" / "text").unlink()
    done = run(work, "2")
    assert ran(done) == [1] and "not what it wrote" not in done.stdout
    assert ran(run(work, "2")) == []


def test_a_full_disk_does_not_make_a_training_seem_another(tmp_path):
    """Its key is kept; a new one is whole or not there."""
    (tmp_path / "asr").mkdir()
    (tmp_path / "asr" / ".key").write_text("key\n")
    script = f"""
        set -euo pipefail
        log_dir=$1 done_dir=$1 times=t
        . {ROOT}/local/stages.sh
        ln -s /dev/full "$1/asr/.key.part"  # where there is no room
        put "$1/asr/.key" key
        put "$1/asr/.key" other
    """
    done = subprocess.run(
        ["bash", "-c", script, "bash", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 1 and f"cannot write {tmp_path}/asr/.key" in done.stderr
    assert "run the same command again" in done.stderr
    assert (tmp_path / "asr" / ".key").read_text() == "key\n"
    assert [p.name for p in (tmp_path / "asr").iterdir()] == [".key"]
