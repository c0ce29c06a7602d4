"""Heads that are fetched from a folder, and tasks that change while others serve."""

import copy
import gc
import os
import pickle
import shutil
import threading
import time
import weakref

import pytest
import torch
from small_encoders import (
    adapted_encoder,
    as_if_trained,
    batch,
    gradients,
    loss_of,
    same_bits,
)

from espnet_hra import TaskError
from espnet_hra.errors import ConfigError
from espnet_hra.files.atomic import write as write_atomic
from espnet_hra.names import listing
from espnet_hra.tasks.cache import _YOUNG_NS, HeadCache
from espnet_hra.tasks.store import TaskStore, Version

STORED = ("t0", "t1", "t2", "t.3")


@pytest.fixture
def whole():
    """An encoder with all tasks as parameters, to compare with."""
    return as_if_trained(adapted_encoder("conformer", ["a", "b", *STORED]))


@pytest.fixture
def folder(tmp_path, whole):
    """A folder with files of four of the tasks."""
    path = tmp_path / "tasks"
    path.mkdir()
    for name in STORED:
        whole.save_task(name, path / f"{name}.safetensors")
    time.sleep(1.5e-9 * _YOUNG_NS)  # files that are younger are read twice
    return path


@pytest.fixture
def encoder(whole, folder):
    """An encoder with two tasks as parameters, the others in the folder."""
    encoder = copy.deepcopy(whole)
    for name in STORED:
        encoder.remove_task(name)
    encoder.attach_store(folder, max_loaded=2)
    return encoder


def output(encoder, choice, size=2):
    with torch.no_grad(), encoder.use_task(choice):
        return encoder(*batch(size))[0]


def reads(encoder):
    return encoder.adapter.heads.stored.misses


def other_head(whole, name, folder, seed=9):
    """Another version of a task: written to its file, and put into `whole`."""
    vector = whole.adapter.heads.vector(name)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        vector.copy_(torch.randn(vector.shape, generator=generator))
    whole.save_task(name, folder / f"{name}.safetensors")


# ------------------------------------------------------------------------- fetching


def test_tasks_of_a_folder_are_known_and_nothing_is_read(encoder):
    assert set(encoder.tasks) == {"a", "b", *STORED}
    assert encoder.loaded_tasks == ("a", "b") and reads(encoder) == 0
    assert not any("t0" in key for key in encoder.state_dict())
    assert len(list(encoder.adapter.heads.parameters())) == 2


@pytest.mark.parametrize("name", STORED)
def test_a_fetched_head_is_the_one_that_was_saved(encoder, whole, name):
    assert torch.equal(output(encoder, name), output(whole, name))
    assert encoder.loaded_tasks == ("a", "b", name)
    output(encoder, name)
    assert reads(encoder) == 1


def test_the_least_recently_used_head_goes_first(encoder):
    for name in ("t0", "t1", "t0", "t2"):
        output(encoder, name)
    assert encoder.loaded_tasks == ("a", "b", "t0", "t2")
    output(encoder, "t1")
    assert encoder.loaded_tasks == ("a", "b", "t2", "t1") and reads(encoder) == 4


def test_what_is_no_file_is_never_evicted(encoder, whole, folder):
    encoder.add_task("new")
    encoder.load_task(folder / "t0.safetensors", replace=True)
    for name in ("t1", "t2", "t.3"):
        output(encoder, name)
    (folder / "t0.safetensors").unlink()
    assert torch.equal(output(encoder, "t0"), output(whole, "t0"))
    assert torch.equal(output(encoder, "new"), output(encoder, None))


def test_a_mixed_batch_fetches_each_head_once_whatever_the_bound(encoder, whole):
    names = ["t0", "a", "t1", "t0", "t2", "t.3"]
    expected = output(whole, names, size=6)
    assert torch.equal(output(encoder, names, size=6), expected)
    assert reads(encoder) == 4 and len(encoder.loaded_tasks) == 4


@pytest.mark.parametrize("adapter_conf", [{"head": "ffn"}, {"controller": "ligru"}])
def test_other_heads_are_fetched_as_well(adapter_conf, tmp_path):
    whole = as_if_trained(adapted_encoder("transformer", ["x", "y"], **adapter_conf))
    for name in ("x", "y"):
        whole.save_task(name, tmp_path / f"{name}.safetensors")
    encoder = copy.deepcopy(whole)
    for name in ("x", "y"):
        encoder.remove_task(name)
    encoder.attach_store(str(tmp_path))
    for choice in ("x", ["y", "x"]):
        assert torch.equal(output(encoder, choice), output(whole, choice))


def test_a_single_file_is_chosen_by_itself(encoder, whole, folder):
    encoder.remove_task("a")
    encoder.remove_task("b")
    for name in STORED[1:]:
        (folder / f"{name}.safetensors").unlink()
    assert encoder.chosen_task == "t0"
    assert torch.equal(encoder(*batch(2))[0], output(whole, "t0"))


def test_without_a_choice_the_files_count_and_are_listed(encoder):
    with pytest.raises(TaskError, match=r"a, b, t\.3, t0, t1, t2"):
        encoder(*batch(2))


@pytest.mark.parametrize("name", ["c", "t", "../tasks/t0", "t0.safetensors", ".", ""])
def test_an_unknown_task_is_refused(encoder, name):
    with pytest.raises(TaskError, match="unknown.*a, b, .*t2"):
        encoder.set_task(name)


def test_a_message_about_a_large_folder_does_not_read_it_all(tmp_path):
    for i in range(10_050):
        (tmp_path / f"t{i}.safetensors").touch()
    message = listing(TaskStore(tmp_path))
    assert message.endswith("... (more than 10,000 in all)")
    assert len(TaskStore(tmp_path).names) == 10_050


def test_set_task_reads_the_file_at_once(encoder, folder):
    encoder.set_task(["t0", "t1"])
    assert encoder.loaded_tasks == ("a", "b", "t0", "t1")
    (folder / "t2.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(TaskError, match="t2.safetensors"):
        encoder.set_task("t2")
    assert encoder.chosen_task == ("t0", "t1")


@pytest.mark.parametrize("limit", [0, -1, 2.5, "3", True])
def test_a_bound_that_is_no_number_is_refused(encoder, folder, limit):
    with pytest.raises(ConfigError, match="max_loaded"):
        encoder.attach_store(folder, max_loaded=limit)


def test_the_bound_is_in_bytes_by_default(encoder, folder):
    encoder.attach_store(folder)
    heads = encoder.adapter.heads
    assert heads.stored.limit == 2**28 // (4 * heads.size)


def test_without_a_folder_again_only_parameters_are_left(encoder):
    encoder.attach_store(None)
    assert encoder.tasks == ("a", "b")
    with pytest.raises(TaskError, match="'t0'.*a, b"):
        output(encoder, "t0")


# --------------------------------------------------------------------- changed files


def test_a_replaced_file_counts_from_the_next_pass(encoder, whole, folder):
    before = output(encoder, "t0")
    other_head(whole, "t0", folder)
    after = output(encoder, "t0")
    assert torch.equal(after, output(whole, "t0"))
    assert not torch.equal(after, before)


def test_a_file_that_is_written_to_counts_as_well(encoder, whole, folder):
    output(encoder, "t0")
    other_head(whole, "t0", folder.parent)  # a file of the same size
    new = (folder.parent / "t0.safetensors").read_bytes()
    assert len(new) == (folder / "t0.safetensors").stat().st_size
    (folder / "t0.safetensors").write_bytes(new)
    assert torch.equal(output(encoder, "t0"), output(whole, "t0"))


def test_files_may_come_and_go(encoder, whole, folder):
    output(encoder, "t0")
    os.rename(folder / "t0.safetensors", folder.parent / "t0")
    with pytest.raises(TaskError, match="unknown task 't0'"):
        output(encoder, "t0")
    assert "t0" not in encoder.tasks and "t0" not in encoder.loaded_tasks
    os.rename(folder.parent / "t0", folder / "t0.safetensors")
    assert torch.equal(output(encoder, "t0"), output(whole, "t0"))


def test_the_folder_may_come_later(encoder, whole, folder):
    encoder.attach_store(folder.parent / "later")
    assert encoder.tasks == ("a", "b")
    shutil.copytree(folder, folder.parent / "later")
    assert torch.equal(output(encoder, "t1"), output(whole, "t1"))


def test_damage_is_an_error_and_no_older_head_stands_in(encoder, whole, folder):
    output(encoder, "t0")
    path = folder / "t0.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-40], b""):
        write_atomic(path, damaged)
        for _ in range(2):
            with pytest.raises(TaskError, match="t0.safetensors"):
                output(encoder, "t0")
    write_atomic(path, content)
    assert torch.equal(output(encoder, "t0"), output(whole, "t0"))


def test_a_file_of_another_name_is_refused(encoder, folder):
    shutil.copyfile(folder / "t0.safetensors", folder / "t1.safetensors")
    with pytest.raises(TaskError, match="expected the task 't1', found 't0'"):
        output(encoder, "t1")


def test_a_head_of_another_controller_is_refused(encoder):
    with torch.no_grad():
        encoder.adapter.controller.b.add_(1.0)
    with pytest.raises(TaskError, match="another controller"):
        output(encoder, "t0")


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.train().eval(),
        lambda e: e.load_state_dict(e.state_dict()),
        lambda e: e.float(),
    ],
    ids=["trained", "loaded", "converted"],
)
def test_heads_are_verified_again_when_the_encoder_may_have_changed(encoder, change):
    output(encoder, "t0")
    change(encoder)
    output(encoder, "t0")
    assert reads(encoder) == 1  # counted anew
    with torch.no_grad():
        encoder.adapter.controller.b.add_(1.0)
    change(encoder)
    with pytest.raises(TaskError, match="another controller"):
        output(encoder, "t0")


def test_other_precision_is_another_backbone_for_fetched_heads_too(encoder, whole):
    output(encoder, "t0")
    with pytest.raises(TaskError, match="another backbone"):
        encoder.double().set_task("t0")
    assert torch.equal(output(encoder.float(), "t0"), output(whole, "t0"))


# ------------------------------------------------------------ parameters and files


def test_a_file_does_not_learn_in_silence(encoder):
    encoder.train()
    with encoder.use_task("t0"), pytest.raises(TaskError, match="load_task"):
        encoder(*batch(2))
    with encoder.use_task(["a", "t0"]), pytest.raises(TaskError, match="load_task"):
        encoder(*batch(2))
    encoder.eval()
    with encoder.use_task("t0"):
        loss_of(encoder(*batch(2))[0]).backward()  # the controller's gradient


def test_a_loaded_file_learns_and_goes_before_the_folder(encoder, whole, folder):
    path = folder / "t0.safetensors"
    encoder.load_task(path)
    with pytest.raises(TaskError, match="exists"):
        encoder.load_task(path)
    encoder.train()
    with encoder.use_task("t0"):
        loss_of(encoder(*batch(2))[0]).backward()
    assert "adapter.heads.t0" in gradients(encoder)
    encoder.eval()
    before = output(encoder, "t0")
    other_head(whole, "t0", folder)
    assert torch.equal(output(encoder, "t0"), before)
    encoder.remove_task("t0")
    assert torch.equal(output(encoder, "t0"), output(whole, "t0"))


def test_a_name_of_the_folder_cannot_be_added_or_removed(encoder):
    with pytest.raises(TaskError, match="'t0' exists"):
        encoder.add_task("t0")
    with pytest.raises(TaskError, match="'t0' is a file in .*tasks remove"):
        encoder.remove_task("t0")
    assert "t0" in encoder.tasks


def test_tasks_behind_the_folder_are_those_of_its_files(encoder, whole, folder):
    other_head(whole, "a", folder)
    before = output(encoder, "a")
    assert not torch.equal(before, output(whole, "a"))
    encoder.attach_store(folder, behind=["a", "b"])
    assert torch.equal(output(encoder, "a"), output(whole, "a"))
    (folder / "a.safetensors").unlink()
    assert torch.equal(output(encoder, "a"), before)
    (folder / "removed.txt").write_text("a\n")
    with pytest.raises(TaskError, match="unknown task 'a'"):
        output(encoder, "a")
    assert "a" not in encoder.tasks and "b" in encoder.tasks
    (folder / "removed.txt").write_text("")
    assert torch.equal(output(encoder, "a"), before)


def test_what_a_file_says_is_said_again(encoder, whole, folder, tmp_path):
    whole.save_task("t0", folder / "t0.safetensors", info={"license": "cc0-1.0"})
    assert encoder.task_info("t0")["license"] == "cc0-1.0"
    encoder.save_task("t0", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (folder / "t0.safetensors").read_bytes()


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_has_a_cache_of_its_own(encoder, whole, copied):
    output(encoder, "t0")
    other = copied(encoder)
    assert other.loaded_tasks == ("a", "b")
    with torch.no_grad():
        other.adapter.controller.b.add_(1.0)
    with pytest.raises(TaskError, match="another controller"):
        output(other, "t1")
    assert torch.equal(output(encoder, "t1"), output(whole, "t1"))


def test_the_cache_does_not_keep_an_encoder_alive(encoder):
    other = copy.deepcopy(encoder)
    output(other, "t0")
    gc.disable()
    try:
        alive = weakref.ref(other)
        del other
        assert alive() is None
    finally:
        gc.enable()


def test_a_head_fetched_in_inference_mode_serves_gradients_later(encoder):
    with torch.inference_mode(), encoder.use_task("t0"):
        encoder(*batch(2))
    encoder.adapter.regime = "new_task"
    xs, lens = batch(2)
    xs.requires_grad_()
    with encoder.use_task("t0"):
        loss_of(encoder(xs, lens)[0]).backward()
    assert reads(encoder) == 1 and xs.grad.abs().sum() > 0


# ----------------------------------------------------------------- while others serve


@pytest.mark.parametrize("name", ["a", "t0"])
@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_request_ends_with_the_head_it_began_with(
    encoder, whole, folder, tmp_path, name, change
):
    """Encoder, CTC and search of a request use the task one after the other."""
    other_head(whole, "a", tmp_path)
    before = output(encoder, name)
    with torch.no_grad(), encoder.adapter.heads.hold():
        assert torch.equal(output(encoder, name), before)
        if change == "replaced" and name == "a":
            encoder.load_task(tmp_path / "a.safetensors", replace=True)
        elif change == "replaced":
            other_head(whole, name, folder)
        elif name == "a":
            encoder.remove_task("a")
        else:
            (folder / "t0.safetensors").unlink()
        assert torch.equal(output(encoder, name), before)
        assert torch.equal(output(encoder, [name, "b"])[0], before[0])
    if change == "replaced":
        assert torch.equal(output(encoder, name), output(whole, name))
    else:
        with pytest.raises(TaskError, match="unknown"):
            output(encoder, name)


def test_without_a_folder_a_request_ends_as_it_began_too(whole):
    before = output(whole, "a")
    with torch.no_grad(), whole.adapter.heads.hold(["a"]):
        whole.remove_task("a")
        assert torch.equal(output(whole, "a"), before)
    with pytest.raises(TaskError, match="unknown"):
        output(whole, "a")


def test_a_pass_that_runs_keeps_its_heads(encoder, whole, folder, tmp_path):
    """Replaced, removed and evicted between the layers of a pass."""
    names = ["a", "t0", "b", "t1"]
    expected = output(whole, names, size=4)
    other_head(whole, "a", tmp_path)

    def disturb(module, inputs):
        hook.remove()
        encoder.load_task(tmp_path / "a.safetensors", replace=True)
        encoder.remove_task("b")
        other_head(whole, "t0", folder)
        encoder.adapter.heads.stored.clear()
        gc.collect()

    hook = encoder.encoders[1].register_forward_pre_hook(disturb)
    assert torch.equal(output(encoder, names, size=4), expected)
    assert torch.equal(output(encoder, "a"), output(whole, "a"))


def test_threads_meet_whole_heads_only(encoder, whole, folder, tmp_path):
    """Tasks are added, replaced and removed while three threads serve."""
    versions = {name: [output(whole, name)] for name in ("a", "t0")}
    contents = {name: [(folder / "t0.safetensors").read_bytes()] for name in ["t0"]}
    for name, path in (("a", tmp_path), ("t0", tmp_path)):
        whole.save_task(name, path / f"{name}.0")
        other_head(whole, name, path)
        versions[name].append(output(whole, name))
    contents["t0"].append((tmp_path / "t0.safetensors").read_bytes())
    ended, failures, served = threading.Event(), [], []

    def serve(name):
        try:
            while not ended.is_set():
                found = output(encoder, name)
                if not any(torch.equal(found, v) for v in versions[name]):
                    failures.append(name)
                served.append(name)
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=serve, args=(n,)) for n in ("a", "t0", "a")]
    for thread in threads:
        thread.start()
    try:
        for i in range(60):
            file = tmp_path / ("a.safetensors" if i % 2 else "a.0")
            encoder.load_task(file, replace=True)
            write_atomic(folder / "t0.safetensors", contents["t0"][i % 2])
            encoder.add_task(f"new{i}")
            if i:
                encoder.remove_task(f"new{i - 1}")
        while not {"a", "t0"} <= set(served) and not failures:
            time.sleep(0.01)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not failures


def old(content: int) -> Version:
    """The version of a file that was written long ago."""
    return Version(0, content, 0, 0, 0)


class Pretended(TaskStore):
    """A store whose files are as old or young as a test wants them."""

    def __init__(self):
        super().__init__("nowhere")
        self.versions = {}

    def version(self, name):
        return self.versions.get(name)

    def path(self, name):
        return self.folder / name


def test_a_task_is_read_once_for_all_threads_and_nobody_else_waits():
    store, gate, entered = Pretended(), threading.Event(), threading.Event()
    store.versions = {"slow": old(1), "quick": old(1)}

    def read(path, name):
        if name == "slow":
            entered.set()
            assert gate.wait(60)
        return torch.ones(1)

    cache = HeadCache(store, lambda: read, limit=2)
    cache.get("quick")
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.get("slow")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert entered.wait(60)
    store.versions["new"] = old(1)
    cache.get("quick")
    cache.get("new")  # while the slow one is being read
    assert not found
    gate.set()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(vector is found[0] for vector in found)
    assert cache.misses == 3


def test_a_file_that_was_just_written_is_not_trusted_to_be_the_same():
    """Within a tick of the clock a file can be replaced by one that looks alike."""
    store, content = Pretended(), iter(range(9))
    cache = HeadCache(store, lambda: lambda *_: torch.tensor(next(content)), limit=2)
    now = time.time_ns()
    store.versions["t"] = Version(0, 1, 2, now, now)
    assert [int(cache.get("t")) for _ in range(2)] == [0, 1]
    store.versions["t"] = old(1)
    assert [int(cache.get("t")) for _ in range(2)] == [2, 2]


def test_a_file_that_is_replaced_while_it_is_read_is_read_again():
    store, seen = Pretended(), []
    store.versions["t"] = old(1)

    def read(path, name):
        seen.append(store.versions["t"])
        store.versions["t"] = old(2)
        return torch.tensor(len(seen))

    cache = HeadCache(store, lambda: read, limit=2)
    assert [int(cache.get("t")) for _ in range(3)] == [1, 2, 2]


def test_what_was_being_read_when_the_cache_was_emptied_is_not_kept():
    store = Pretended()
    store.versions["t"] = old(1)

    def read(path, name):
        cache.clear()
        return torch.ones(1)

    cache = HeadCache(store, lambda: read, limit=2)
    assert cache.get("t") is not None
    assert len(cache) == 0


def test_inference_mode_and_autocast_with_fetched_heads(encoder, whole):
    for names in ("t0", ["t1", "a"]):
        found = []
        for e in (encoder, whole):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                with e.use_task(names):
                    found.append(e(*batch(2))[0])
        assert same_bits(*found)
        with torch.inference_mode():
            assert torch.equal(output(encoder, names), output(whole, names))
