"""Files that are written: whole or not at all, with the rights that the umask gives."""

import os
import stat
import threading
from dataclasses import dataclass

import pytest
import torch
from small_encoders import adapted_encoder

from espnet_hra import cli
from espnet_hra.commands.recipe import copy_recipe
from espnet_hra.data.lists import write_list, write_subset
from espnet_hra.espnet.seam import standing_in
from espnet_hra.espnet.trainer import save
from espnet_hra.files import archive, atomic, checkpoint, config, tables
from espnet_hra.names import from_key, to_key
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.store import TaskStore

UMASKS = [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)]


@dataclass
class Line:
    name: str
    rate: float


def write_everything(folder):
    """A file of each writer; the folder's name is the writer's."""
    folder.mkdir()
    encoder = adapted_encoder("transformer", ["a"])
    encoder.save_task("a", folder / "save_task")
    identity, tensors = encoder.identity(), encoder.adapter.heads.tensors("a")
    store = TaskStore(folder / "tasks")
    store.put(taskfile.pack("a", tensors, identity), "a")
    store.remove("b", in_checkpoint=True)
    atomic.write(folder / "write", "text")
    atomic.write_all(folder / "all", {"one": "1", "two": b"2"})
    config.write_yaml(folder / "write_yaml", {"a": 1})
    tables.write_table(folder / "write_table", [Line("a", 1.5)], Line)
    write_list(folder / "lists" / "text", ["a b"])
    write_subset({"wav.scp": folder / "lists" / "text"}, folder / "subset", ["a"])
    save({"a": torch.ones(1)}, folder / "torch_save.pth")
    (folder / "inside").mkdir()
    archive.write_zip(folder / "all", folder / "write_zip.zip")


@pytest.mark.parametrize("umask, mode", UMASKS, ids=oct)
def test_files_have_the_rights_that_the_umask_gives(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        write_everything(tmp_path / "out")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) >= 12
    assert {str(p): oct(stat.S_IMODE(p.stat().st_mode)) for p in files} == {
        str(p): oct(mode) for p in files
    }
    assert not [p for p in files if p.name.startswith(".") and "lock" not in p.name]


@pytest.mark.parametrize("umask, mode", UMASKS[:2], ids=oct)
def test_so_have_packs_and_exported_tasks(umask, mode, tmp_path, base):
    from adaptations import make_adaptation

    model = make_adaptation(tmp_path / "exp", base, ("a", "b"))
    before = os.umask(umask)
    try:
        for words in (
            ["tasks", "export", "a", "--out", tmp_path / "a.safetensors"],
            ["pack", "--out", tmp_path / "pack.zip", "--tasks", "all"],
            ["pack", "--out", tmp_path / "pack", "--tasks", "a"],
        ):
            with pytest.raises(SystemExit) as ended:
                cli.main([*map(str, words), "--model", str(model)])
            assert not ended.value.code
    finally:
        os.umask(before)
    found = [tmp_path / "a.safetensors", tmp_path / "pack.zip"]
    found += [path for path in (tmp_path / "pack").rglob("*") if path.is_file()]
    assert len(found) >= 7
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in found} == {oct(mode)}


@pytest.mark.parametrize("umask, mode", UMASKS, ids=oct)
def test_so_has_a_copy_of_the_recipe(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        copy = copy_recipe(tmp_path / "copy")
        copy_recipe(tmp_path / "copy", force=True)
    finally:
        os.umask(before)
    program = mode | (mode & 0o444) >> 2  # whoever may read it may run it
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in (copy, *copy.rglob("*"))}
    assert {modes[p] for p in modes if p.is_dir()} == {0o777 & ~umask}
    files = {p.relative_to(copy).as_posix(): modes[p] for p in modes if p.is_file()}
    assert {files.pop(name) for name in ("run.sh", "hra.sh")} == {program}
    assert {files["conf/quality.yaml"], files["path.sh"]} == {mode}
    assert set(files.values()) <= {mode, program}
    assert not [p for p in modes if p.is_symlink() or "__pycache__" in p.parts]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    atomic.write(path, "old")
    with pytest.raises(ZeroDivisionError), atomic.replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_of_several_files_none_changes_if_one_cannot_be_written(tmp_path, monkeypatch):
    atomic.write_all(tmp_path, {"a": "1", "b": "1", "c": "1"})
    with pytest.raises(TypeError):
        atomic.write_all(tmp_path, {"a": "2", "b": 2, "c": None})
    assert [(tmp_path / n).read_text() for n in "abc"] == ["1", "1", "1"]
    atomic.write_all(tmp_path, {"a": "2", "c": None})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


# ------------------------------------------------------------------ names and keys


@pytest.mark.parametrize("name", ["a", "it.carlo", "a..b", "end.", "x-1_2"])
def test_a_task_s_key_is_its_name_without_dots(name):
    assert "." not in to_key(name) and from_key(to_key(name)) == name


def test_what_differs_between_two_checkpoints_is_said_in_words():
    one, two = torch.ones(2), torch.ones(3)
    assert checkpoint.differences({"a": one}, {"a": one}) == ""
    found = checkpoint.differences({"a": one, "b": one, "c": one}, {"a": two, "d": one})
    assert found == (
        "2 keys are missing (b, c); 1 keys are surplus (d); "
        "1 shapes differ (a (3,) instead of (2,))"
    )


# ------------------------------------------------------------------------- the seam


class Parent:
    @classmethod
    def build(cls):
        return cls.__name__


class Child(Parent):
    pass


def test_what_stands_in_goes_again_as_it_was_written():
    with standing_in(Child, build=lambda: "ours"):
        assert Child.build() == "ours" and Parent.build() == "Parent"
    assert Child.build() == "Child" and "build" not in vars(Child)
    with pytest.raises(ZeroDivisionError), standing_in(Parent, build=None):
        raise ZeroDivisionError
    assert Child.build() == "Child"  # still a classmethod
    with pytest.raises(AttributeError):
        with standing_in(Parent, bild=None):
            pass


def test_one_block_at_a_time_holds_a_name():
    class Holder:
        name = "own"

    seen = []

    def work(value):
        with standing_in(Holder, name=value):
            for _ in range(200):
                seen.append((value, Holder.name))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 600 and all(value == found for value, found in seen)
    assert Holder.name == "own"
