"""Activation checkpointing and autocast change nothing but memory and rounding."""

import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from small_encoders import (
    CONTROLLERS,
    HEADS,
    KINDS,
    adapt,
    adapted_encoder,
    as_if_trained,
    batch,
    conf_of,
    gradients,
    loss_of,
    stock_encoder,
)
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint

NAMES = ["b", "a"]
ELSEWHERE = "the choice is remembered for the encoder's own input tensor only"


class CheckpointingEncoder(ConformerEncoder):
    """A Conformer that checkpoints each of its layers itself."""

    def forward(self, xs_pad, ilens):
        masks = torch.ones(xs_pad.size(0), 1, xs_pad.size(1), dtype=torch.bool)
        xs, masks = self.embed(xs_pad, masks)
        for layer in self.encoders:
            xs, masks = checkpoint(
                layer, xs, masks, use_reentrant=getattr(self, "reentrant", False)
            )
        return self.after_norm(xs[0]), masks.sum(-1), None


def run(encoder, forward, within=True, names=NAMES):
    """Gradients, with backward inside the block that chose the task or after it."""
    encoder.zero_grad()
    encoder.set_task("a")
    xs, lens = batch(2)
    torch.manual_seed(4)
    with encoder.use_task(names):
        loss = loss_of(forward(encoder, xs, lens))
        if within:
            loss.backward()
    if not within:
        loss.backward()
    return gradients(encoder)


def plain(encoder, xs, lens):
    return encoder(xs, lens)[0]


def whole(encoder, xs, lens):
    return checkpoint(lambda x: encoder(x, lens)[0], xs, use_reentrant=False)


def same_gradients(one, other):
    assert set(one) == set(other)
    for name in one:
        difference = (one[name] - other[name]).norm()
        assert difference <= 1e-5 * other[name].norm(), name


def trained(**conf):
    encoder = adapted_encoder("conformer", ["a", "b"], dropout=0.1, **conf)
    return as_if_trained(encoder).train()


@pytest.mark.parametrize("within", [True, False], ids=["within", "after"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_checkpoint_around_the_encoder(controller, head, within):
    encoder = trained(controller=controller, head=head)
    same_gradients(run(encoder, whole, within), run(encoder, plain))


@pytest.mark.parametrize("within", [True, False], ids=["within", "after"])
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_each_layer_wrapped_by_a_checkpoint_module(controller, within):
    encoder = trained(controller=controller)
    expected = run(encoder, plain)
    for index, layer in enumerate(encoder.encoders):
        encoder.encoders[index] = checkpoint_wrapper(
            layer, checkpoint_impl=CheckpointImpl.NO_REENTRANT
        )
    found = run(encoder, plain, within)
    same_gradients(found, expected)


@pytest.mark.parametrize("within", [True, False], ids=["within", "after"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_an_encoder_that_checkpoints_its_layers_itself(controller, head, within):
    conf = conf_of("conformer", dropout=0.1)
    torch.manual_seed(1)
    stock = CheckpointingEncoder(20, **conf).eval()
    both = [
        as_if_trained(
            adapt(
                base,
                conf,
                ["a", "b"],
                controller=controller,
                head=head,
                backbone_dropout=True,
            )
        ).train()
        for base in (stock, stock_encoder("conformer", dropout=0.1))
    ]
    both[1].load_state_dict(both[0].state_dict())
    xs, _ = batch(2)
    lens = torch.full((2,), xs.size(1))

    def forward(encoder, xs, _):
        return encoder(xs, lens)[0]

    expected = run(both[1], forward)
    same_gradients(run(both[0], forward, within), expected)

    def nested(encoder, xs, _):
        return whole(encoder, xs, lens)

    same_gradients(run(both[0], nested, within), expected)


def test_the_layers_that_e_branchformer_checkpoints():
    stock = stock_encoder("e_branchformer")
    found = []
    for layers in ([], [0, 1, 2, 3], [2]):
        conf = conf_of("e_branchformer", gradient_checkpoint_layers=layers)
        checkpointing = EBranchformerEncoder(20, **conf)
        checkpointing.load_state_dict(stock.state_dict())
        encoder = as_if_trained(adapt(checkpointing, conf, ["a", "b"])).train()
        found.append(run(encoder, plain, within=False))
    same_gradients(found[1], found[0])
    same_gradients(found[2], found[0])


def test_a_second_backward_pass_through_checkpointed_layers():
    conf = conf_of("conformer")
    torch.manual_seed(1)
    encoder = adapt(CheckpointingEncoder(20, **conf), conf, ["a", "b"])
    as_if_trained(encoder).train()
    with encoder.use_task("b"):
        loss = loss_of(encoder(*batch(2))[0])
    loss.backward(retain_graph=True)
    once = gradients(encoder)
    encoder.zero_grad()
    loss.backward()
    same_gradients(gradients(encoder), once)


def test_reentrant_checkpoints_of_single_layers_are_refused_with_the_way_out():
    conf = conf_of("conformer")
    encoder = adapt(CheckpointingEncoder(20, **conf), conf, ["a"]).train()
    encoder.reentrant = True
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        encoder(*batch(2))


def right_or_refused(encoder, forward, expected):
    """Never in silence with another task than the forward pass had."""
    try:
        found = run(encoder, forward, within=False, names="b")
    except RuntimeError as e:
        assert "checkpoint" in str(e)
    else:
        same_gradients(found, expected)


def test_a_checkpoint_around_more_than_the_encoder_is_right_or_refused():
    encoder = trained()

    def forward(encoder, xs, lens):
        return checkpoint(lambda x: encoder(2 * x, lens)[0], xs, use_reentrant=False)

    def expected(encoder, xs, lens):
        return encoder(2 * xs, lens)[0]

    right_or_refused(encoder, forward, run(encoder, expected, names="b"))


def test_the_same_input_twice_under_a_checkpoint_after_the_block():
    encoder = trained()

    def forward(encoder, xs, lens):
        return whole(encoder, xs, lens) + whole(encoder, xs, lens)

    def expected(encoder, xs, lens):
        return plain(encoder, xs, lens) + plain(encoder, xs, lens)

    same_gradients(run(encoder, forward, within=False), run(encoder, expected))


def test_a_second_backward_pass_through_a_checkpointed_encoder_after_the_block():
    encoder = trained()
    expected = run(encoder, plain)
    encoder.zero_grad()
    xs, lens = batch(2)
    torch.manual_seed(4)
    with encoder.use_task(NAMES):
        loss = loss_of(whole(encoder, xs, lens))
    loss.backward(retain_graph=True)
    encoder.zero_grad()
    loss.backward()
    same_gradients(gradients(encoder), expected)


def test_a_reentrant_checkpoint_around_the_encoder_is_right_or_refused():
    encoder = trained()

    def forward(encoder, xs, lens):
        xs = xs.clone().requires_grad_()
        return checkpoint(lambda x: encoder(x, lens)[0], xs, use_reentrant=True)

    right_or_refused(encoder, forward, run(encoder, plain, names="b"))


# ------------------------------------------------------------------------ autocast


@pytest.mark.parametrize("names", ["a", NAMES], ids=["one", "mixed"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("kind", KINDS[:2])
def test_bfloat16_autocast_is_close_to_float32(kind, controller, head, names):
    encoder = as_if_trained(
        adapted_encoder(kind, ["a", "b"], controller=controller, head=head), scale=0.1
    ).train()
    encoder.set_task(names)
    xs, lens = batch(2)
    exact = encoder(xs, lens)[0]
    loss_of(exact).backward()
    expected = gradients(encoder)
    encoder.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(xs, lens)[0]
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
    loss_of(rough).backward()
    found = gradients(encoder)
    assert set(found) == set(expected)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32 and gradient.isfinite().all()
        # Where a frame is close to the kink of a relu, rounding turns it on or off.
        exact_gradient = expected[name].flatten()
        cosine = torch.cosine_similarity(gradient.flatten(), exact_gradient, dim=0)
        assert cosine > 0.95, name
        assert 0.8 < gradient.norm() / exact_gradient.norm() < 1.25, name


def test_bfloat16_autocast_with_checkpoints():
    conf = conf_of("conformer")
    torch.manual_seed(1)
    encoder = adapt(CheckpointingEncoder(20, **conf), conf, ["a", "b"])
    as_if_trained(encoder).train()

    def forward(encoder, xs, lens):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return encoder(xs, lens)[0].float()

    def both(encoder, xs, lens):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return whole(encoder, xs, lens).float()

    same_gradients(run(encoder, both, within=False), run(encoder, forward))


def test_a_new_head_is_the_stock_encoder_under_autocast():
    stock = stock_encoder("conformer")
    encoder = adapted_encoder("conformer", ["a", "b"])
    xs, lens = batch(2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = stock(xs, lens)[0]
        for choice in (None, "a", NAMES):
            with encoder.use_task(choice):
                assert torch.equal(encoder(xs, lens)[0], expected), choice
