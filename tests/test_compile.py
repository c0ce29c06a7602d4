"""The adapted encoder under torch.compile: the same numbers, and never a stale task."""

import shutil

import pytest
import torch
from small_encoders import (
    DIM,
    KINDS,
    adapted_encoder,
    as_if_trained,
    batch,
    conf_of,
    gradients,
    loss_of,
    stock_encoder,
)
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)

from espnet_hra.encoder.adapted import wrap_encoder

CHOICES = ("a", "b", None, ["a", "b", "c"], ["c", "c", "a"], "c")

inductor = pytest.param(
    "inductor",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler"),
    ],
)


@pytest.fixture(autouse=True)
def fresh():
    """Nothing that another test compiled counts."""
    torch._dynamo.reset()


class Counter:
    """A backend that counts the graphs that it is given."""

    def __init__(self, backend="eager"):
        self.backend, self.graphs = backend, 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return torch._dynamo.lookup_backend(self.backend)(graph, inputs)


def outputs(run, encoder, choices=CHOICES):
    found = []
    for choice in choices:
        with encoder.use_task(choice), torch.no_grad():
            found.append(run(*batch(3))[0])
    return found


OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:]]


@pytest.mark.parametrize("kind", [KINDS[0], *OTHERS])
def test_one_graph_serves_all_tasks(kind):
    encoder = as_if_trained(adapted_encoder(kind, ["a", "b", "c"]))
    backend = Counter()
    compiled = torch.compile(encoder, backend=backend)
    for found, expected in zip(outputs(compiled, encoder), outputs(encoder, encoder)):
        assert torch.equal(found, expected)
    # One each for a single task, for one task per utterance, and for the backbone.
    assert backend.graphs == 3
    outputs(compiled, encoder)
    assert backend.graphs == 3


def test_changed_tasks_are_never_stale(tmp_path):
    encoder = as_if_trained(adapted_encoder("conformer", ["a", "b", "c"]))
    backend = Counter()
    compiled = torch.compile(encoder, backend=backend)
    outputs(compiled, encoder, ["a"])
    encoder.save_task("b", tmp_path / "file")
    with torch.no_grad():
        encoder.adapter.heads.vector("b").mul_(2.0)
    encoder.save_task("b", tmp_path / "b.safetensors")
    encoder.load_task(tmp_path / "file", replace=True)
    encoder.add_task("new")
    encoder.remove_task("c")
    for choice in ("b", "new", "a"):
        (found,) = outputs(compiled, encoder, [choice])
        assert torch.equal(found, outputs(encoder, encoder, [choice])[0])
    encoder.remove_task("b")
    encoder.attach_store(tmp_path)
    (found,) = outputs(compiled, encoder, ["b"])
    assert torch.equal(found, outputs(encoder, encoder, ["b"])[0])
    with torch.no_grad():
        encoder.adapter.controller.W.mul_(0.5)
    (found,) = outputs(compiled, encoder, ["a"])
    assert torch.equal(found, outputs(encoder, encoder, ["a"])[0])
    assert backend.graphs == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", inductor])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_inference_is_the_same(backend, autocast):
    encoder = as_if_trained(adapted_encoder("conformer", ["a", "b", "c"], head="ffn"))
    compiled = torch.compile(encoder, backend=backend)
    tolerance = {"atol": 0.1, "rtol": 0.1} if autocast else {}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        pairs = zip(outputs(compiled, encoder), outputs(encoder, encoder))
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, **tolerance)


def step(encoder, run, choice):
    encoder.zero_grad()
    with encoder.use_task(choice):
        loss_of(run(*batch(3))[0]).backward()
    return gradients(encoder)


@pytest.mark.slow
@pytest.mark.parametrize("controller", ["indrnn", "ligru"])
@pytest.mark.parametrize("backend", ["aot_eager", inductor])
def test_training_is_the_same(backend, controller):
    encoder = as_if_trained(
        adapted_encoder("conformer", ["a", "b", "c"], controller=controller)
    ).train()
    compiled = torch.compile(encoder, backend=backend)
    for choice in ("a", ["b", "c", "b"], "c", "a"):
        expected = step(encoder, encoder, choice)
        found = step(encoder, compiled, choice)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["a", ["b", "c", "b"]])
def test_training_with_checkpoints_is_the_same(choice):
    """Layers are run again during backward, each with the state it met before."""
    encoder = as_if_trained(adapted_encoder("conformer", ["a", "b", "c"])).train()
    expected = step(encoder, encoder, choice)
    layers = set(encoder.encoders)
    apply_activation_checkpointing(encoder, check_fn=lambda module: module in layers)
    found = step(encoder, torch.compile(encoder, backend="aot_eager"), choice)
    for name, gradient in expected.items():
        name = name.replace("_checkpoint_wrapped_module.", "")
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["residual", "lora", "lily", "bitfit"])
def test_rivals_compile_as_well(adapter):
    stock = stock_encoder("transformer")
    encoder = wrap_encoder(type(stock))(
        DIM, adapter=adapter, tasks=["a", "b"], **conf_of("transformer")
    )
    encoder = as_if_trained(encoder.eval())
    compiled = torch.compile(encoder, backend="eager")
    choices = ("a", None, ["b", "a", "a"], "b")
    pairs = zip(outputs(compiled, encoder, choices), outputs(encoder, encoder, choices))
    for found, expected in pairs:
        assert torch.equal(found, expected)
