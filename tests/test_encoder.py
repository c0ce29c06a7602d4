"""The adapter on four encoders: what it leaves alone, and what it computes."""

import pytest
import torch
from small_encoders import (
    CONTROLLERS,
    HEADS,
    KINDS,
    WIDTH,
    C,
    F,
    adapted_encoder,
    as_if_trained,
    batch,
    gradients,
    loss_of,
    same_bits,
    stock_encoder,
)

pytestmark = [
    pytest.mark.parametrize("kind", KINDS),
    pytest.mark.parametrize("controller", CONTROLLERS),
    pytest.mark.parametrize("head", HEADS),
]


def steps(encoder, tasks, count=2, lr=0.05):
    """A few training steps that move whatever can move."""
    encoder.train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=lr, weight_decay=0.1)
    xs, lens = batch(2)
    for _ in range(count):
        optimizer.zero_grad()
        with encoder.use_task(tasks):
            loss_of(encoder(xs, lens)[0]).backward()
        optimizer.step()


def test_keys_are_those_of_the_wrapped_encoder_and_additions_lie_under_adapter(
    kind, controller, head
):
    encoder = adapted_encoder(kind, ["a"], controller=controller, head=head)
    keys = list(encoder.state_dict())
    stock = list(stock_encoder(kind).state_dict())
    assert [key for key in keys if not key.startswith("adapter.")] == stock
    assert len(keys) > len(stock)


def test_a_stock_checkpoint_loads_as_it_is(kind, controller, head):
    stock = stock_encoder(kind, seed=11)
    encoder = adapted_encoder(kind, ["a"], controller=controller, head=head)
    result = encoder.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith("adapter.") for key in result.missing_keys)
    state = encoder.state_dict()
    assert all(torch.equal(state[k], v) for k, v in stock.state_dict().items())


def test_training_leaves_backbone_parameters_and_buffers_alone(kind, controller, head):
    encoder = adapted_encoder(
        kind, ["a"], dropout=0.1, controller=controller, head=head
    )
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert (kind != "conformer") or any("num_batches_tracked" in k for k in before)
    steps(encoder, "a")
    after = encoder.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved and all(key.startswith("adapter.") for key in moved)
    assert "adapter.heads.a" in moved
    assert "adapter.controller.W" in moved
    outside = [p for n, p in encoder.named_parameters() if not n.startswith("adapter.")]
    assert not any(p.requires_grad or p.grad is not None for p in outside)


def test_a_new_head_and_no_task_give_the_stock_output_bit_for_bit(
    kind, controller, head
):
    stock = stock_encoder(kind, dropout=0.1)
    encoder = adapted_encoder(
        kind, ["a", "b"], dropout=0.1, controller=controller, head=head
    )
    xs, lens = batch()
    expected = stock(xs, lens)
    for choice in (None, "a", ["a", "b", "a"]):
        encoder.set_task(choice)
        assert same_bits(encoder(xs, lens), expected), choice
    as_if_trained(encoder)
    assert not same_bits(encoder(xs, lens), expected)
    encoder.set_task(None)
    assert same_bits(encoder(xs, lens), expected)


def test_a_new_head_is_the_stock_encoder_in_training_too(kind, controller, head):
    stock = stock_encoder(kind, dropout=0.2).train()
    for module in stock.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()  # frozen in the adapted encoder
    encoder = adapted_encoder(
        kind, ["a"], dropout=0.2, controller=controller, head=head
    )
    encoder.train()
    xs, lens = batch()
    torch.manual_seed(5)
    expected = stock(xs, lens)
    for choice in (None, "a"):
        encoder.set_task(choice)
        torch.manual_seed(5)
        assert same_bits(encoder(xs, lens), expected), choice


def test_a_new_task_changes_no_other_trained_task_by_a_bit(kind, controller, head):
    encoder = as_if_trained(
        adapted_encoder(kind, ["old", "other"], controller=controller, head=head)
    )
    xs, lens = batch()
    encoder.eval()
    parameters = {k: v.clone() for k, v in encoder.state_dict().items()}
    with encoder.use_task("old"):
        output = encoder(xs, lens)
    encoder.add_task("new")
    encoder.adapter.regime = "new_task"
    steps(encoder, "new")
    encoder.eval()
    after = encoder.state_dict()
    assert all(torch.equal(after[k], v) for k, v in parameters.items())
    assert after["adapter.heads.new"].abs().sum() > 0
    with encoder.use_task("old"):
        assert same_bits(encoder(xs, lens), output)
    encoder.adapter.regime = "joint"
    steps(encoder, "new", count=1)
    assert not torch.equal(
        encoder.state_dict()["adapter.controller.W"], parameters["adapter.controller.W"]
    )


def test_a_mixed_batch_equals_task_by_task(kind, controller, head):
    encoder = as_if_trained(
        adapted_encoder(kind, ["a", "b", "c"], controller=controller, head=head)
    ).train()
    xs, lens = batch(4)
    names = ["a", "b", "a", "c"]
    with encoder.use_task(names):
        mixed = encoder(xs, lens)[0]
    loss_of(mixed).backward()
    mixed_gradients = gradients(encoder)
    encoder.zero_grad()
    for name in ("a", "b", "c"):
        rows = [i for i, n in enumerate(names) if n == name]
        with encoder.use_task(name):
            single = encoder(xs, lens)[0]
        torch.testing.assert_close(mixed[rows], single[rows], rtol=1e-5, atol=1e-5)
        (loss_of(single[rows]) * len(rows) / len(names)).backward()
    single_gradients = gradients(encoder)
    assert set(mixed_gradients) == set(single_gradients)
    for name, gradient in single_gradients.items():
        difference = (mixed_gradients[name] - gradient).norm()
        assert difference <= 1e-5 * gradient.norm(), name


def test_parameter_counts_are_those_of_the_method(kind, controller, head):
    d, c, f = WIDTH, C, F
    shared = {
        "indrnn": d * c + 2 * c,
        "rnn": d * c + c * c + c,
        "ligru": 2 * (d * c + c * c + c),
        "none": d * c + c,
    }[controller] + 2 * d
    one = {"linear": c * d + d, "ffn": c * f + f + f * d + d}[head]
    total = sum(p.numel() for p in stock_encoder(kind).parameters())
    for number in (0, 1, 3):
        encoder = adapted_encoder(
            kind, [f"t{i}" for i in range(number)], controller=controller, head=head
        )
        added = sum(p.numel() for p in encoder.parameters()) - total
        assert added == shared + number * one
        trainable = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        assert trainable == added
        assert encoder.adapter.formula() == {"shared": shared, "per_task": one}
