"""A head that a step did not use does not move, whatever the optimizer."""

import inspect

import pytest
import torch
from small_encoders import adapted_encoder, as_if_trained, batch, loss_of
from test_attention_decoder import made as made_with_decoder

from espnet_hra.encoder import rates
from espnet_hra.encoder.stepping import used_only
from espnet_hra.errors import ConfigError

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


# ----------------------------------------------------------------- rates of their own


def grouped(encoder, cls, options, shared, ratio):
    """The same tensors as parameters of their own, in groups with rates of their own.

    Returns:
        Copies by name, and a function that makes a step of them with the gradients of
        the encoder.
    """
    adapter = encoder.adapter
    copies = {n: p.detach().clone() for n, p in adapter.shared_parameters().items()}
    copies |= {n: t.clone() for n, t in adapter.heads.tensors("a").items()}
    lr = options["lr"]

    def rate(name):
        if name in adapter.shared_parameters():
            return shared * lr
        return ratio * lr if name.endswith(".B") else lr

    groups = [{"params": [p], "lr": rate(name)} for name, p in copies.items()]
    optimizer = cls(groups, **options)

    def step():
        vector = adapter.heads.vector("a")
        found = {n: p.grad for n, p in adapter.shared_parameters().items()}
        found |= adapter.heads.layout.split(vector.grad)
        for name, p in copies.items():
            p.grad = found[name].clone()
        optimizer.step()

    return copies, step


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@pytest.mark.parametrize(
    "conf",
    [
        {"adapter": "hra", "shared_rate": 0.25},
        {"adapter": "lora", "loraplus_lr_ratio": 16},
    ],
    ids=["controller", "lora+"],
)
def test_a_rate_of_its_own_is_that_of_a_group_of_the_optimizer(name, conf):
    encoder = as_if_trained(adapted_encoder("transformer", ["a", "b"], **conf)).train()
    options = {"lr": 0.01, "weight_decay": 0.1}
    copies, step_copies = grouped(
        encoder,
        OPTIMIZERS[name],
        options,
        conf.get("shared_rate", 1.0),
        conf.get("loraplus_lr_ratio", 1.0),
    )
    optimizer = OPTIMIZERS[name](encoder.parameters(), **options)
    rates.apply(optimizer, encoder)
    before = values(encoder)
    with used_only([optimizer]):
        for _ in range(4):
            encoder.zero_grad()
            with encoder.use_task("a"):
                loss_of(encoder(*batch(2))[0]).backward()
            step_copies()
            optimizer.step()
    found = {**encoder.adapter.shared_parameters()}
    found |= encoder.adapter.heads.tensors("a")
    for key, expected in copies.items():
        torch.testing.assert_close(found[key].detach(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(values(encoder)["b"], before["b"])


def test_rates_reach_the_decoder_s_tensors_and_what_is_one_for_all():
    model = made_with_decoder("lora", loraplus_lr_ratio=4)
    own = model.encoder.adapter.all_rates()
    shapes = model.encoder.adapter.heads.layout.shapes
    assert set(own) == {name for name in shapes if name.endswith(".B")}
    assert any(name.startswith("decoder.") for name in own)
    conf = {"adapter": "lora", "loraplus_lr_ratio": 4, "one_for_all": True}
    encoder = adapted_encoder("transformer", ["a"], **conf).train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01)
    rates.apply(optimizer, encoder)
    vector = encoder.adapter.common.vector("all")
    before = vector.detach().clone()
    with encoder.use_task("a"):
        loss_of(encoder(*batch(2))[0]).backward()
    optimizer.step()
    layout = encoder.adapter.common.layout
    moved, gradient = layout.split(before - vector.detach()), layout.split(vector.grad)
    for name, step in moved.items():
        factor = 0.04 if name.endswith(".B") else 0.01
        torch.testing.assert_close(step, factor * gradient[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("value", [0, -1, "1", float("nan"), True], ids=repr)
def test_rates_that_cannot_be_are_refused(value):
    with pytest.raises(ConfigError, match="shared_rate: .* must be above 0"):
        adapted_encoder("transformer", ["a"], shared_rate=value)
    with pytest.raises(ConfigError, match="loraplus_lr_ratio: .* must be above 0"):
        adapted_encoder("transformer", adapter="lora", loraplus_lr_ratio=value)
