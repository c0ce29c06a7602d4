"""What a training step does not do: work for what is frozen or was not used."""

import copy

import pytest
import torch
from small_encoders import (
    CONTROLLERS,
    KINDS,
    adapted_encoder,
    as_if_trained,
    batch,
    loss_of,
    stock_encoder,
)

from espnet_hra.encoder.stepping import parameters, used_only

TASKS = ["a", "b", "it.carlo", "train"]


def trained(kind="transformer", **adapter_conf):
    return as_if_trained(adapted_encoder(kind, TASKS, **adapter_conf)).train()


def backward(encoder, tasks):
    with encoder.use_task(tasks):
        loss_of(encoder(*batch(2))[0]).backward()


# ------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("regime", ["joint", "new_task"])
def test_nothing_before_the_first_adapted_layer_has_a_gradient(kind, regime):
    encoder = trained(kind, regime=regime)
    seen = []

    def look(module, inputs, output):
        leaves = output if isinstance(output, tuple) else (output,)
        while isinstance(leaves[0], tuple):
            leaves = leaves[0]
        seen.append(leaves[0].requires_grad)

    for module in [encoder.embed, *encoder.encoders]:
        module.register_forward_hook(look)
    backward(encoder, ["a", "b"])
    # The input, the first layer (its adapter's step comes after it), and the others.
    assert seen == [False, False, True, True]


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("regime", ["joint", "new_task"])
def test_only_what_learns_has_gradients(controller, regime):
    encoder = trained(controller=controller, regime=regime)
    backward(encoder, ["a", "it.carlo"])
    found = {n for n, p in encoder.named_parameters() if p.grad is not None}
    learning = {"adapter.heads.a", "adapter.heads.it/carlo"}
    if regime == "joint":
        shared = encoder.adapter.shared_parameters()
        learning |= {f"adapter.{name}" for name in shared}
    assert found == learning


def test_a_frozen_controller_computes_no_gradient_of_its_weights():
    """Of the graph's leaves, only the heads of the batch accumulate."""
    encoder = trained(regime="new_task")
    with encoder.use_task("a"):
        loss = loss_of(encoder(*batch(2))[0])
    leaves, found = [loss.grad_fn], set()
    for node in leaves:
        if hasattr(node, "variable"):
            found.add(node.variable)
        leaves += [n for n, _ in node.next_functions if n and n not in leaves]
    assert found == {encoder.adapter.heads.vector("a")}


# -------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("narrow", [False, True])
def test_an_optimizer_keeps_state_of_tasks_that_were_seen_only(narrow):
    encoder = trained()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.01)
    heads = {name: encoder.adapter.heads.vector(name) for name in TASKS}
    with used_only([optimizer] if narrow else []):
        for names in ("a", ["a", "train"]):
            backward(encoder, names)
            optimizer.step()
            optimizer.zero_grad()
            assert {n for n, p in heads.items() if p in optimizer.state} == {
                "a",
                *names,
            }
    backbone = set(encoder.backbone_tensors().values())
    assert not backbone.intersection(optimizer.state)


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adagrad(p, lr=0.01),
    ],
)
def test_looking_at_used_tasks_only_changes_nothing(build):
    one = trained()
    other = copy.deepcopy(one)
    optimizers = build(one.parameters()), build(other.parameters())
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in optimizers]
    groups = [list(o.param_groups[0]["params"]) for o in optimizers]
    for tasks in ("a", ["a", "b"], "train", "a"):
        for encoder, optimizer, scheduler in zip((one, other), optimizers, schedulers):
            backward(encoder, tasks)
            with used_only([optimizer] if encoder is other else []):
                torch.nn.utils.clip_grad_norm_(encoder.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
            scheduler.step()
        for p, q in zip(one.parameters(), other.parameters()):
            assert torch.equal(p, q) and p.grad is None and q.grad is None
    for optimizer, params in zip(optimizers, groups):
        assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], params))
        assert len(optimizer.param_groups[0]["params"]) == len(params)
    states = [o.state_dict()["state"] for o in optimizers]
    assert states[0].keys() == states[1].keys()


def test_a_failed_step_leaves_the_optimizer_whole():
    encoder = trained()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    before = list(optimizer.param_groups[0]["params"])
    with used_only([optimizer]), pytest.raises(TypeError):
        optimizer.step(no_such_option=True)
    after = optimizer.param_groups[0]["params"]
    assert len(after) == len(before)
    assert "step" not in vars(optimizer) and "zero_grad" not in vars(optimizer)


def test_a_closure_computes_its_gradients_first():
    encoder = trained()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    before = encoder.adapter.heads.vector("b").detach().clone()
    with used_only([optimizer]):
        optimizer.step(lambda: backward(encoder, "b"))
    assert not torch.equal(encoder.adapter.heads.vector("b"), before)


# -------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_come_as_torch_gives_them(kind):
    encoder = trained(kind)
    encoder.shared = encoder.encoders[0]  # what stands twice is given once
    expected = list(torch.nn.Module.parameters(encoder))
    assert [id(p) for p in encoder.parameters()] == [id(p) for p in expected]
    assert [id(p) for p in parameters(encoder)] == [id(p) for p in expected]
    stock = stock_encoder(kind)
    assert [id(p) for p in parameters(stock)] == [id(p) for p in stock.parameters()]
    own = list(encoder.parameters(recurse=False))
    assert own == list(torch.nn.Module.parameters(encoder, recurse=False))
