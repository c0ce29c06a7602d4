"""A task as a file: round trips, and everything that must be refused."""

import json
import os
import pickle
import random
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import torch
from small_encoders import adapted_encoder, as_if_trained, batch, loss_of

from espnet_hra import TaskError

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


def test_a_flipped_byte_is_refused_or_harmless(encoder, file):
    content, state = bytearray(file.read_bytes()), copy_state(encoder)
    random.seed(0)
    positions = random.choices(range(len(content)), k=450) + list(range(16))
    harmless = 0
    for position in positions:
        damaged = content.copy()
        if random.random() < 0.5:
            damaged[position] ^= 1 << random.randrange(8)
        else:
            damaged[position] = random.randrange(256)
        file.write_bytes(damaged)
        harmless += not refused(encoder, file)
        assert unchanged(encoder, state), position
    assert harmless < 20  # a byte replaced by itself, or a blank by another


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


@pytest.mark.parametrize("what", ["missing", "folder", "pickle", "torch", "text"])
def test_what_is_no_task_file_is_refused(encoder, tmp_path, what):
    path = tmp_path / "file"
    if what == "folder":
        path.mkdir()
    elif what == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif what == "torch":
        torch.save(encoder.state_dict(), path)
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
from espnet_hra.encoder import wrap_encoder
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
