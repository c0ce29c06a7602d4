"""A task as a file: round trips, and everything that must be refused."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys
import time

import pytest
import safetensors
import safetensors.torch
import torch
from small_encoders import adapted_encoder, as_if_trained, batch, loss_of

from espnet_hra import TaskError
from espnet_hra.tasks import file as taskfile

CONFIGS = [(controller, head) for controller in ("indrnn", "ligru") for head in "lf"]
HEAD = {"l": "linear", "f": "ffn"}


def trained(**conf):
    return as_if_trained(adapted_encoder("conformer", ["a", "it.carlo"], **conf))


@pytest.fixture
def encoder():
    return trained()


@pytest.fixture
def file(encoder, tmp_path):
    path = tmp_path / "it.carlo.safetensors"
    encoder.save_task("it.carlo", path)
    return path


def head_of(encoder, name):
    return encoder.state_dict()[f"adapter.heads.{name.replace('.', '/')}"].clone()


def unchanged(encoder, state):
    now = encoder.state_dict()
    return list(now) == list(state) and all(torch.equal(now[k], state[k]) for k in now)


def copy_state(encoder):
    return {k: v.clone() for k, v in encoder.state_dict().items()}


@pytest.mark.parametrize("controller, head", CONFIGS)
def test_a_saved_task_comes_back_bit_for_bit(controller, head, tmp_path):
    encoder = trained(controller=controller, head=HEAD[head])
    state = copy_state(encoder)
    encoder.save_task("it.carlo", str(tmp_path / "file"))
    encoder.remove_task("it.carlo")
    assert encoder.load_task(str(tmp_path / "file")) == "it.carlo"
    assert unchanged(encoder, state)


def test_saving_replaces_a_file_and_leaves_nothing_else(encoder, file):
    encoder.save_task("a", file)
    assert encoder.load_task(file, replace=True) == "a"
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_the_file_is_plain_safetensors(file, encoder):
    tensors = safetensors.torch.load_file(file)
    assert sum(t.numel() for t in tensors.values()) == head_of(encoder, "a").numel()
    with safetensors.safe_open(file, framework="pt") as opened:
        record = json.loads(opened.metadata()["espnet_hra"])
    assert record["task"] == "it.carlo"
    assert record["backbone"] == encoder.backbone_fingerprint


def test_equal_tasks_give_equal_files(file, encoder):
    content = file.read_bytes()
    encoder.save_task("it.carlo", file)
    assert file.read_bytes() == content


def test_the_file_is_hardly_larger_than_its_tensors(encoder, tmp_path):
    path, info = tmp_path / "file", {"data": "", "license": "cc-by-4.0"}
    for length in (0, 200, 100_000):
        info["data"] = '"ж' * length
        try:
            encoder.save_task("it.carlo", path, info=info)
        except TaskError as e:
            assert "shorten" in str(e) and length == 100_000
    tensors = safetensors.torch.load_file(path)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    assert path.stat().st_size <= size + 4096
    assert encoder.load_task(path, replace=True) == "it.carlo"


@pytest.mark.parametrize(
    "info",
    [{"licence": "x"}, {"license": 1}, {"languages": "fr"}, {"data": object()}]
    + [{"scores": [float("nan")]}],
)
def test_only_what_is_known_can_be_said(encoder, tmp_path, info):
    with pytest.raises(TaskError):
        encoder.save_task("a", tmp_path / "file", info=info)
    assert not list(tmp_path.iterdir())


def test_the_record_names_all_that_is_needed(encoder, tmp_path):
    encoder.save_task("a", tmp_path / "file", info={"languages": ["fr"]})
    record = taskfile.describe(tmp_path / "file")
    assert record["format"] == taskfile.FORMAT and record["languages"] == ["fr"]
    assert record["config"] == encoder.adapter.config
    assert record["controller"] == encoder.controller_fingerprint
    assert {"date", "versions", "tokens", "base", "checksum"} < set(record)


def test_an_unknown_task_is_not_saved(encoder, tmp_path):
    with pytest.raises(TaskError, match="'b'.*a, it.carlo"):
        encoder.save_task("b", tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_an_existing_name_is_refused_unless_replace_is_given(encoder, file):
    saved = head_of(encoder, "it.carlo")
    with torch.no_grad():
        encoder.adapter.heads.vector("it.carlo").add_(1.0)
    state = copy_state(encoder)
    with pytest.raises(TaskError, match="'it.carlo' exists.*replace=True"):
        encoder.load_task(file)
    assert unchanged(encoder, state)
    assert encoder.load_task(file, replace=True) == "it.carlo"
    assert torch.equal(head_of(encoder, "it.carlo"), saved)
    assert torch.equal(head_of(encoder, "a"), state["adapter.heads.a"])


def test_a_replaced_task_stays_in_the_optimizer(encoder, file):
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder.load_task(file, replace=True)
    before = head_of(encoder, "it.carlo")
    with encoder.use_task("it.carlo"):
        loss_of(encoder(*batch(2))[0]).backward()
    optimizer.step()
    assert not torch.equal(head_of(encoder, "it.carlo"), before)


def test_a_loaded_task_can_be_trained(file):
    encoder = trained()
    encoder.remove_task("it.carlo")
    encoder.load_task(file)
    with encoder.use_task("it.carlo"):
        loss_of(encoder(*batch(2))[0]).backward()
    assert encoder.adapter.heads.vector("it.carlo").grad.abs().sum() > 0


@pytest.mark.parametrize(
    "conf, words",
    [
        ({"seed": 2}, ("backbone",)),
        ({"controller": "none"}, ("none", "indrnn")),
        ({"controller_size": 7}, ("7", "6")),
        ({"head": "ffn"}, ("ffn", "linear")),
        ({"input_norm": "none"}, ("layer_norm",)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_head_of_something_else_is_refused_and_changes_nothing(file, conf, words):
    other = as_if_trained(adapted_encoder("conformer", ["a"], **conf))
    state = copy_state(other)
    with pytest.raises(TaskError) as error:
        other.load_task(file)
    for word in (file.name, *words):
        assert word in str(error.value)
    assert unchanged(other, state)


def test_another_controller_of_the_same_shape_is_refused(encoder, file):
    encoder.remove_task("it.carlo")
    with torch.no_grad():
        encoder.adapter.controller.b[0] += 1e-6
    with pytest.raises(TaskError, match="controller"):
        encoder.load_task(file)


def test_another_size_of_an_ffn_head_is_refused(tmp_path):
    trained(head="ffn").save_task("a", tmp_path / "file")
    other = trained(head="ffn", head_size=4)
    other.remove_task("a")
    with pytest.raises(TaskError, match="head_size"):
        other.load_task(tmp_path / "file")


def test_one_changed_bit_of_the_backbone_is_noticed(encoder, file):
    encoder.remove_task("it.carlo")
    encoder.load_task(file)  # the fingerprint is known now
    encoder.remove_task("it.carlo")
    encoder.encoders[0].conv_module.norm.running_var[0] += 1e-6
    with pytest.raises(TaskError, match="backbone"):
        encoder.load_task(file)


def test_the_backbones_fingerprint_is_computed_once(encoder, file, monkeypatch):
    from espnet_hra.encoder import identity as module

    hashed = []
    compute = module.fingerprint

    def spy(tensors):
        tensors = list(tensors)
        hashed.append(len(tensors))
        return compute(tensors)

    monkeypatch.setattr(module, "fingerprint", spy)
    count = len(encoder.backbone_tensors())
    encoder.load_task(file, replace=True)
    hashed.clear()
    for _ in range(3):
        encoder.load_task(file, replace=True)
    assert count not in hashed
    encoder.load_state_dict(encoder.state_dict())  # the same values, but written
    encoder.load_task(file, replace=True)
    assert hashed.count(count) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.data.mul_(2),
        lambda p: setattr(p, "data", p.data * 2),
        lambda p: p.detach().numpy().__imul__(2),
        lambda p: p.data.neg_(),
    ],
    ids=["data in place", "other data", "numpy", "sign"],
)
def test_a_controller_is_compared_however_it_was_changed(encoder, file, change):
    encoder.adapter.regime = "new_task"
    encoder.load_task(file, replace=True)
    change(encoder.adapter.controller.b)
    with pytest.raises(TaskError, match="controller"):
        encoder.load_task(file, replace=True)


def test_other_storage_makes_another_backbone(encoder, file):
    encoder.load_task(file, replace=True)
    weight = encoder.encoders[0].feed_forward.w_1.weight
    for _ in range(3):  # freed memory is given out again, at the same address
        weight.data = weight.data * 2
        with pytest.raises(TaskError, match="backbone"):
            encoder.load_task(file, replace=True)


def test_a_copy_of_an_encoder_has_its_own_fingerprints(encoder, file):
    before = encoder.backbone_fingerprint, encoder.controller_fingerprint
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        found = copied.backbone_fingerprint, copied.controller_fingerprint
        assert found == before
        with torch.no_grad():
            copied.encoders[0].feed_forward.w_1.weight.add_(1)
        assert copied.backbone_fingerprint != before[0]
    assert encoder.backbone_fingerprint == before[0]


def milliseconds(call, times=40):
    """The best of several calls: what it costs, not what else the machine does."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        call()
        best = min(best, 1e3 * (time.perf_counter() - start))
    return best


def test_loading_and_switching_are_quick_with_ten_thousand_tasks(tmp_path):
    encoder = trained(controller_size=4000)  # heads of 64,016 parameters
    heads = encoder.adapter.heads
    assert heads.size > 64_000
    encoder.save_task("a", tmp_path / "a")
    zero = torch.zeros(())
    for i in range(10_000):
        heads._parameters[f"t{i}"] = torch.nn.Parameter(zero.expand(heads.size))
    assert milliseconds(lambda: encoder.load_task(tmp_path / "a", replace=True)) < 5
    assert milliseconds(lambda: encoder.set_task("t5000")) < 0.1


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=repr)
def test_a_step_of_any_optimizer_makes_another_controller(encoder, tmp_path, options):
    encoder.save_task("a", tmp_path / "before")
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1, **options)
    with encoder.use_task("a"):
        loss_of(encoder(*batch(2))[0]).backward()
    optimizer.step()
    with pytest.raises(TaskError, match="controller"):
        encoder.load_task(tmp_path / "before", replace=True)
    encoder.save_task("a", tmp_path / "after")
    encoder.load_task(tmp_path / "after", replace=True)


# ------------------------------------------------------------------------- damage


def refused(encoder, path):
    """Whether loading is refused with TaskError; any other error is raised."""
    try:
        encoder.load_task(path, replace=True)
    except TaskError as e:
        assert str(path) in str(e)
        return True
    return False


def test_a_truncated_file_is_refused(encoder, file):
    content, state = file.read_bytes(), copy_state(encoder)
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        assert refused(encoder, file), length
    file.write_bytes(content + b"\0")
    assert refused(encoder, file)
    assert unchanged(encoder, state)


def damages(content, other, count, seed=0):
    """Damaged copies of a file: flipped, cut, swapped, mixed up, and grown."""
    rnd = random.Random(seed)
    header = 8 + int.from_bytes(content[:8], "little")
    regions = [(0, 8), (8, header), (header, len(content))]
    made = 0
    while made < count:
        damaged = bytearray(content)
        kind = made % 8
        start, end = regions[rnd.randrange(3)]
        position = rnd.randrange(start, end)
        if kind in (0, 1):  # one bit
            damaged[position] ^= 1 << rnd.randrange(8)
        elif kind == 2:  # one byte
            damaged[position] = rnd.randrange(256)
        elif kind == 3:  # several
            for _ in range(rnd.randrange(2, 50)):
                damaged[rnd.randrange(start, end)] ^= rnd.randrange(1, 256)
        elif kind == 4:
            damaged = damaged[: rnd.randrange(len(content))]
        elif kind == 5:  # two pieces change places
            n = rnd.randrange(1, 64)
            one, two = sorted(rnd.sample(range(len(content) - 2 * n), 2))
            two = max(two, one + n)
            damaged[one : one + n], damaged[two : two + n] = (
                damaged[two : two + n],
                damaged[one : one + n],
            )
        elif kind == 6:  # the end of another task
            cut = rnd.randrange(1, len(content))
            damaged = damaged[:cut] + other[cut:]
        else:
            n = rnd.randrange(1, 64)
            damaged[position:position] = rnd.randbytes(n)
        if damaged not in (content, other):
            made += 1
            yield bytes(damaged)


def test_damaged_files_are_refused(encoder, file, count=800):
    encoder.save_task("a", file.with_name("a"))
    other, state = file.with_name("a").read_bytes(), copy_state(encoder)
    for damaged in damages(file.read_bytes(), other, count):
        file.write_bytes(damaged)
        assert refused(encoder, file)
    assert unchanged(encoder, state)


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_refused(encoder, file):
    test_damaged_files_are_refused(encoder, file, 10_000)


def rewritten(file, change):
    """Change tensors or the record in place and write them as safetensors."""
    tensors = safetensors.torch.load_file(file)
    with safetensors.safe_open(file, framework="pt") as opened:
        record = json.loads(opened.metadata()["espnet_hra"])
    change(tensors, record)
    metadata = {"espnet_hra": json.dumps(record)} if record else None
    safetensors.torch.save_file(tensors, file, metadata)


CHANGES = {
    "another name": lambda t, m: m.update(task="b"),
    "a bad name": lambda t, m: m.update(task="../b"),
    "no name": lambda t, m: m.pop("task"),
    "another format": lambda t, m: m.update(format="espnet-hra task 99"),
    "no checksum": lambda t, m: m.pop("checksum"),
    "no metadata": lambda t, m: m.clear(),
    "another backbone": lambda t, m: m.update(backbone="sha256:" + "0" * 64),
    "more metadata": lambda t, m: m.update(extra="x"),
    "a tensor less": lambda t, m: t.pop("v"),
    "a tensor more": lambda t, m: t.update(w=torch.zeros(1)),
    "another type": lambda t, m: t.update(v=t["v"].half()),
    "another value": lambda t, m: t["v"].add_(1e-7),
    "another shape": lambda t, m: t.update(v=t["v"][None]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_was_edited_is_refused(encoder, file, change):
    state = copy_state(encoder)
    rewritten(file, change)
    assert refused(encoder, file)
    assert unchanged(encoder, state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_refused(encoder, tmp_path, value):
    with torch.no_grad():
        encoder.adapter.heads.vector("a")[3] = value
    with pytest.raises(TaskError, match="NaN"):
        encoder.save_task("a", tmp_path / "file")
        encoder.load_task(tmp_path / "file", replace=True)


class Bomb:
    def __reduce__(self):
        return os._exit, (3,)


@pytest.mark.parametrize(
    "what", ["missing", "folder", "pickle", "torch", "text", "pipe", "device", "header"]
)
def test_what_is_no_task_file_is_refused(encoder, tmp_path, what):
    path = tmp_path / "file"
    if what == "folder":
        path.mkdir()
    elif what == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif what == "torch":
        torch.save(encoder.state_dict(), path)
    elif what == "pipe":
        os.mkfifo(path)  # opening it would wait for a writer
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "header":
        path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    elif what == "text":
        path.write_text("a task\n" * 100)
    assert refused(encoder, path)


# ------------------------------------------------------------------- fresh process

FRESH = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from small_encoders import batch, conf_of, DIM, C
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet_hra.encoder.adapted import wrap_encoder
base, task, expected = sys.argv[2:]
encoder = wrap_encoder(ConformerEncoder)(
    DIM, adapter_conf={"controller_size": C}, **conf_of("conformer")
).eval()
encoder.load_state_dict(torch.load(base), strict=True)
assert encoder.load_task(task) == "it.carlo"
with torch.no_grad():
    assert torch.equal(encoder(*batch(2))[0], torch.load(expected))
print("equal")
"""


def test_a_task_loads_in_a_fresh_process(encoder, file, tmp_path):
    base, expected = tmp_path / "base.pth", tmp_path / "expected.pt"
    with torch.no_grad(), encoder.use_task("it.carlo"):
        torch.save(encoder(*batch(2))[0], expected)
    encoder.remove_task("a")
    encoder.remove_task("it.carlo")
    torch.save(encoder.state_dict(), base)
    here = os.path.dirname(os.path.abspath(__file__))
    found = subprocess.run(
        [sys.executable, "-c", FRESH, here, base, file, expected],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert found.stdout.strip().endswith("equal"), found.stderr
