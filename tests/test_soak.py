"""A short version of `make soak`: kills, two at once, full disks, load, damage."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from adaptations import make_adaptation, waves
from conftest import ROOT

from espnet_hra.bench.soak import adapt, damage, disk, forks, load, recipe, tasks
from espnet_hra.bench.soak.rows import BEGIN, END, Row, put, table, write_page
from espnet_hra.errors import BaseModelError, UserError
from espnet_hra.espnet.trainer import repair
from espnet_hra.files import archive, atomic
from espnet_hra.files.checkpoint import read_state, read_training
from espnet_hra.tasks.store import TaskStore

COMMAND = "espnet-hra bench soak"


@pytest.fixture(scope="module")
def model(base, tmp_path_factory) -> Path:
    """An adaptation; not to be changed."""
    return make_adaptation(tmp_path_factory.mktemp("adapted") / "exp", base)


def fine(rows: list[Row], tried: int) -> None:
    """Nothing went wrong, and something was tried."""
    assert rows and all(row.wrong == 0 for row in rows), rows
    assert rows[0].tried >= tried


# ---------------------------------------------------------------------- interruption


def test_tasks_stand_kills(model, an4, tmp_path):
    forks.preload()
    trials = tasks.Trials(tmp_path / "tasks", model, an4["train"].parent)
    del trials.commands["add"]  # a training: in `make soak`
    fine(tasks.kill(trials, 5, 3, COMMAND), 5)


@pytest.mark.slow
def test_training_of_a_task_stands_kills(model, an4, tmp_path):
    forks.preload()
    trials = tasks.Trials(tmp_path / "tasks", model, an4["train"].parent)
    trials.commands = {"add": trials.commands["add"]}
    fine(tasks.kill(trials, 6, 3, COMMAND), 6)


@pytest.mark.slow
def test_adapt_stands_kills(model, an4, tmp_path):
    forks.preload()
    data = adapt.make_data(an4["train"].parent, tmp_path / "data")
    words = adapt.words_of(model, data, tmp_path)
    fine(adapt.kill(words, tmp_path, 4, 3, COMMAND), 4)


def test_the_recipe_stands_kills_while_it_prepares_data(tmp_path):
    options = ["--stop_stage", "3"]
    fine(recipe.soak(tmp_path, 2, 5, COMMAND, options), 2)


def full(folder: Path, stages: tuple[int, ...]) -> list[Row]:
    """The disk is full, twice at each of these stages."""
    try:
        disk.SmallDisk(folder / "probe", 2**20).close()
    except UserError:
        pytest.skip("no file systems of one's own here")
    return disk.fill(folder, 2, 1, COMMAND, stages)


def test_the_recipe_stands_a_full_disk_while_it_prepares_data(tmp_path):
    fine(full(tmp_path, (1, 3)), 3)


@pytest.mark.slow
def test_the_recipe_stands_a_full_disk_at_each_stage(tmp_path):
    rows = full(tmp_path, disk.STAGES)
    fine(rows, len(disk.STAGES))


def test_a_kill_at_a_change_leaves_the_old_file_or_the_new(tmp_path, model):
    """Every single change of `tasks remove` and `tasks import`, one after the other."""
    forks.preload()
    trials = tasks.Trials(tmp_path / "tasks", model, model)
    for name in ("import --replace", "remove (in the checkpoint)"):
        whole, after = trials.undisturbed(name)
        for change in range(1, whole.changes + 1):
            trials.fresh()
            before = trials.state()
            at = forks.Moment("change", change)
            words = trials.commands[name][0]
            done = forks.command(words, tmp_path / "hook", at)
            assert done.killed, (name, change, done)
            assert trials.state() in (before, after)
            store = TaskStore(trials.model / "tasks")
            for task in store.names:
                store.verify(task)


def test_a_checksum_that_cannot_be_made_stops_the_recipe(tmp_path):
    """Else its results would seem to be of other data, and be moved aside."""
    (tmp_path / "file").write_text("x")
    script = f"""
        set -euo pipefail
        log_dir=. done_dir=. times=t
        . {ROOT}/local/stages.sh
        key=$(digest a "@$1/file")
        echo "${{#key}}"
        sha256sum() {{ return 137; }}
        key=$(digest a "@$1/file")
        echo not reached
    """
    done = subprocess.run(
        ["bash", "-c", script, "bash", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == "64\n"
    assert "cannot compute checksums" in done.stderr


def test_what_was_half_written_goes_when_a_training_is_resumed(tmp_path):
    with pytest.raises(ValueError), atomic.replacing(tmp_path / "1epoch.pth") as file:
        file.write(b"half")
        left = tmp_path / f"{Path(file.name).name}"
        kept = left.read_bytes()
        raise ValueError
    assert not left.exists() and kept in (b"", b"half")
    left.write_bytes(b"half")  # as a kill leaves it
    (tmp_path / ".hidden").write_bytes(b"mine")
    (tmp_path / "2epoch.pth").write_bytes(b"whole")
    repair(tmp_path, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "2epoch.pth"]


# ------------------------------------------------------------------------- load, damage


def test_requests_are_answered_as_alone_while_tasks_change(model, an4, tmp_path):
    torch.set_num_threads(1)
    speech2text = load.prepare(model, tmp_path / "load")
    found = load.Load(speech2text, tmp_path / "load", waves(an4["test"]))
    several, alone = load.serve(found, 3.0, COMMAND)
    fine([several], 20)
    assert found.counts.changes >= 4
    # How long it takes in so short a time depends on what else the machine does.
    assert alone.tried > 0 and alone.wrong <= 1
    assert "99th percentile of the wait for a head" in alone.outcome


def test_damaged_files_of_strangers_are_refused(model, tmp_path):
    rows = damage.damage(model, tmp_path, 40, 1, COMMAND)
    fine(rows, 40)
    assert [row.fault for row in rows][:2] == [
        "damaged base packs",
        "damaged task packs",
    ]


@pytest.mark.parametrize("name", ["model.pth", "last.ckpt"])
def test_a_flipped_bit_of_a_checkpoint_does_not_pass(name, tmp_path):
    path = tmp_path / name
    weights = {"a.weight": torch.arange(4096.0)}
    torch.save({"state_dict": weights} if name == "last.ckpt" else weights, path)
    assert torch.equal(read_state(path)["a.weight"], weights["a.weight"])
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        data = max(opened.infolist(), key=lambda member: member.file_size)
    for at in (data.header_offset + 200, data.header_offset + data.file_size):
        content[at] ^= 1
        path.write_bytes(content)
        assert not torch.equal(
            _weights(torch.load(path, weights_only=True)), weights["a.weight"]
        )  # torch itself says nothing
        with pytest.raises(BaseModelError, match="damaged checkpoint"):
            read_state(path)
        content[at] ^= 1


def test_a_part_that_is_marked_as_a_folder_does_not_pass(tmp_path):
    """torch would take whatever is in memory for it."""
    path = tmp_path / "model.pth"
    torch.save({"a.weight": torch.arange(64.0)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        (name,) = [n for n in opened.namelist() if n.endswith("/data/0")]
    at = content.rindex(name.encode())  # in the list at the end
    content[at - 8] |= 0x10
    path.write_bytes(content)
    with pytest.raises(BaseModelError, match="is marked as a folder"):
        read_state(path)


def test_a_zip_whose_list_hides_members_is_refused(tmp_path):
    """A base would be opened without its tasks."""
    path = tmp_path / "pack.zip"
    with zipfile.ZipFile(path, "w") as pack:
        for name in ("config.yaml", "model.pth", "tasks/a.safetensors"):
            pack.writestr(name, name)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"model.pth")  # in the list at the end
    content[at - 14] = 66  # the length of a comment, which swallows the next entry
    path.write_bytes(content)
    assert len(zipfile.ZipFile(path).namelist()) == 2
    with pytest.raises(BaseModelError, match="expected 3 members, found 2"):
        archive.unpack(path, tmp_path / "cache")


@pytest.mark.parametrize("asked", ["by a variable", "at a terminal"])
def test_objects_are_not_unpickled_whoever_asks_for_it(asked, tmp_path, monkeypatch):
    """ESPnet's reader would, and would wait for an answer at a terminal."""
    if asked == "by a variable":
        monkeypatch.setenv("ESPNET_ALLOW_UNSAFE_TORCH_LOAD", "1")
    else:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", lambda *_: "I_UNDERSTAND_THE_RISK")
    torch.save({"a": Bomb(tmp_path / "oops")}, tmp_path / "model.pth")
    for read in (read_state, read_training):
        with pytest.raises(BaseModelError) as refused:
            read(tmp_path / "model.pth")
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "oops").exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _weights(loaded):
    return loaded.get("state_dict", loaded)["a.weight"]


# ----------------------------------------------------------------------------- results


def test_a_part_replaces_its_own_rows_and_the_page_keeps_its_text(tmp_path):
    results, page = tmp_path / "r.tsv", tmp_path / "page.md"
    put(results, [Row("a", "x|y", 3, 0, "fine", "cmd a")], "a", 0.0)
    put(results, [Row("b", "z", 1, 1, "bad", "cmd b")], "b", 0.0)
    put(results, [Row("a", "new", 1234, 0, "fine", "cmd a")], "a", 0.0)
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(page, results)
    text = page.read_text()
    assert (
        text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    )
    assert "|new|1,234|0|fine|`cmd a`|" in text and "|z|1|1|bad|" in text
    assert "x\\|y" not in text
    page.write_text("no marks")
    with pytest.raises(UserError, match="expected the lines"):
        write_page(page, results)
    assert "x\\|y" in table([Row("a", "x|y", 3, 0, "fine", "cmd")])
