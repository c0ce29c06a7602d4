"""A head that a step did not use does not move, whatever the optimizer."""

import inspect

import pytest
import torch
from small_encoders import adapted_encoder, as_if_trained, batch, loss_of

OPTIMIZERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, torch.optim.Optimizer)
    and cls is not torch.optim.Optimizer
}

#: Does not train dense gradients, or refuses what is not a matrix (all biases).
UNFIT = {"SparseAdam", "Muon"}

#: Mixes the gradients of earlier steps into every direction, for all parameters.
GLOBAL = {"LBFGS"}


def build(name, encoder, **more):
    cls = OPTIMIZERS[name]
    known = inspect.signature(cls).parameters
    wanted = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, **more}
    return cls(encoder.parameters(), **{k: v for k, v in wanted.items() if k in known})


def step(encoder, optimizer, tasks):
    def closure():
        optimizer.zero_grad()
        with encoder.use_task(tasks):
            loss = loss_of(encoder(*batch(2))[0])
        loss.backward()
        return loss

    optimizer.step(closure)


def heads(encoder):
    return {name: encoder.adapter.heads.vector(name) for name in encoder.tasks}


def values(encoder):
    return {name: p.detach().clone() for name, p in heads(encoder).items()}


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - UNFIT - GLOBAL))
def test_heads_not_in_the_step_have_no_gradient_and_do_not_move(name):
    encoder = as_if_trained(adapted_encoder("transformer", ["a", "b", "c"])).train()
    optimizer = build(name, encoder)
    start = values(encoder)
    for _ in range(2):  # b gathers momentum
        step(encoder, optimizer, ["a", "b"])
    before = values(encoder)
    assert not torch.equal(before["a"], start["a"])
    assert not torch.equal(before["b"], start["b"])
    assert torch.equal(before["c"], start["c"])
    for _ in range(3):
        step(encoder, optimizer, "a")
        after = values(encoder)
        assert heads(encoder)["b"].grad is None and heads(encoder)["c"].grad is None
        assert torch.equal(after["b"], before["b"])
        assert torch.equal(after["c"], before["c"])
    assert not torch.equal(after["a"], before["a"])


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}], ids=repr)
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_the_fast_variants_do_not_move_them_either(name, options):
    encoder = as_if_trained(adapted_encoder("transformer", ["a", "b"])).train()
    optimizer = build(name, encoder, **options)
    step(encoder, optimizer, ["a", "b"])
    before = values(encoder)
    step(encoder, optimizer, "a")
    after = values(encoder)
    assert torch.equal(after["b"], before["b"])
    assert not torch.equal(after["a"], before["a"])


def test_the_backbone_alone_trains_nothing():
    encoder = adapted_encoder("transformer", ["a"]).train()
    with encoder.use_task(None):
        assert not encoder(*batch(2))[0].requires_grad
