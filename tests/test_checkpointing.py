"""Activation checkpointing and autocast change nothing but memory and rounding."""

import pytest
import torch
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from small_encoders import (
    CheckpointingEncoder,
    adapt,
    adapted_encoder,
    as_if_trained,
    batch,
    conf_of,
    gradients,
    gradients_of,
    loss_of,
    plain,
    same_gradients,
    stock_encoder,
    whole,
)
from torch.utils.checkpoint import checkpoint

NAMES = ["b", "a"]


def trained(**conf):
    encoder = adapted_encoder("conformer", ["a", "b"], dropout=0.1, **conf)
    return as_if_trained(encoder).train()


def test_the_layers_that_e_branchformer_checkpoints():
    stock = stock_encoder("e_branchformer")
    found = []
    for layers in ([], [0, 1, 2, 3], [2]):
        conf = conf_of("e_branchformer", gradient_checkpoint_layers=layers)
        checkpointing = EBranchformerEncoder(20, **conf)
        checkpointing.load_state_dict(stock.state_dict())
        encoder = as_if_trained(adapt(checkpointing, conf, ["a", "b"])).train()
        found.append(gradients_of(encoder, plain, within=False))
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
        found = gradients_of(encoder, forward, within=False, names="b")
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

    right_or_refused(encoder, forward, gradients_of(encoder, expected, names="b"))


def test_the_same_input_twice_under_a_checkpoint_after_the_block():
    encoder = trained()

    def forward(encoder, xs, lens):
        return whole(encoder, xs, lens) + whole(encoder, xs, lens)

    def expected(encoder, xs, lens):
        return plain(encoder, xs, lens) + plain(encoder, xs, lens)

    same_gradients(
        gradients_of(encoder, forward, within=False), gradients_of(encoder, expected)
    )


def test_a_second_backward_pass_through_a_checkpointed_encoder_after_the_block():
    encoder = trained()
    expected = gradients_of(encoder, plain)
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

    right_or_refused(encoder, forward, gradients_of(encoder, plain, names="b"))


# ------------------------------------------------------------------------ autocast


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

    same_gradients(
        gradients_of(encoder, both, within=False), gradients_of(encoder, forward)
    )
