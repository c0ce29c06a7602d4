"""One model for all tasks (``one_for_all: true``): what each would have, once."""

import pytest
import torch
from small_encoders import (
    METHOD_CONFS,
    adapted_encoder,
    as_if_trained,
    batch,
    gradients,
    loss_of,
    same_bits,
)
from test_attention_decoder import decoded
from test_attention_decoder import made as made_with_decoder

from espnet_hra.encoder import exporting
from espnet_hra.errors import ConfigError, TaskError

LEARNING = [name for name in METHOD_CONFS if name != "none"]
learning = pytest.mark.parametrize("method", LEARNING)
NAMES = ["a", "b", "a", "c"]


def pair(method, **conf):
    """One for all, and a model for each whose task `a` has the same values."""
    both = [
        adapted_encoder("conformer", ["a", "b", "c"], adapter=method, **conf, **own)
        for own in ({"one_for_all": True}, {})
    ]
    one, each = map(as_if_trained, both)
    with torch.no_grad():
        for name, p in each.adapter.shared_parameters().items():
            p.copy_(one.adapter.get_parameter(name))
        each.adapter.heads.vector("a").copy_(one.adapter.common.vector("all"))
    return one, each


@learning
def test_every_task_is_the_one_and_a_batch_is_one_pass(method):
    one, each = pair(method)
    xs, lens = batch(4)
    each.set_task("a")
    expected = each(xs, lens)
    for choice in ("a", "c", NAMES):
        with one.use_task(choice):
            assert same_bits(one(xs, lens), expected)
    with one.use_task(None), each.use_task(None):
        assert same_bits(one(xs, lens), each(xs, lens))
    with pytest.raises(TaskError, match="unknown task 'd'"):
        one.set_task("d")


@learning
def test_all_of_it_learns_as_one(method):
    one, each = pair(method)
    xs, lens = batch(4)
    one.train(), each.train()
    with one.use_task(NAMES), each.use_task("a"):
        loss_of(one(xs, lens)[0]).backward()
        loss_of(each(xs, lens)[0]).backward()
    found, expected = gradients(one), gradients(each)
    vector = expected.pop("adapter.heads.a")
    assert torch.equal(found.pop("adapter.common.all"), vector)
    assert found.keys() == expected.keys()
    counts, own = one.adapter.formula(), each.adapter.formula()
    assert counts == {"shared": own["shared"] + own["per_task"], "per_task": 0}
    assert counts["shared"] == sum(p.numel() for p in one.adapter.parameters())


@learning
def test_a_new_task_is_what_the_others_are(method, tmp_path):
    one, _ = pair(method)
    one.add_task("new")
    xs, lens = batch()
    with one.use_task("new"):
        found = one(xs, lens)
    with one.use_task("b"):
        assert same_bits(one(xs, lens), found)
    one.save_task("new", tmp_path / "new")
    one.remove_task("new")
    one.load_task(tmp_path / "new")
    other, _ = pair(method)
    as_if_trained(other, seed=9)  # another model for all is not the task's
    with pytest.raises(TaskError, match="controller"):
        other.load_task(tmp_path / "new")


@learning
def test_the_decoder_is_in_it(method):
    one = made_with_decoder(method, one_for_all=True)
    each = made_with_decoder(method)
    for choice in ("a", ["a", "b", "a"]):
        assert torch.equal(decoded(one, choice), decoded(one, None))
    for model in (one, each):
        as_if_trained(model.encoder, scale=0.1)
    with torch.no_grad():
        for name, p in each.encoder.adapter.shared_parameters().items():
            p.copy_(one.encoder.adapter.get_parameter(name))
        vector = each.encoder.adapter.heads.vector("a")
        vector.copy_(one.encoder.adapter.common.vector("all"))
    expected = decoded(each, "a")
    for choice in ("b", ["a", "b", "a"]):
        assert torch.equal(decoded(one, choice), expected)
    formula = one.encoder.adapter.formula()
    total = sum(p.numel() for p in one.encoder.adapter.parameters())
    assert formula == {"shared": total, "per_task": 0}


def test_the_projection_of_the_ctc_is_in_it():
    one = adapted_encoder(
        "conformer",
        ["a", "b"],
        adapter="full",
        one_for_all=True,
        ctc="task",
        vocab_size=7,
    )
    as_if_trained(one)
    found = one.adapter.projection(["a", "b", "a"], torch.float32)
    assert found["weight"].shape == (7, one.adapter.width)  # no batch axis: one for all
    formula = one.adapter.formula()
    assert formula["per_task"] == 0
    assert formula["shared"] == sum(p.numel() for p in one.adapter.parameters())


@learning
def test_weights_made_anew_are_neutral(method):
    one, _ = pair(method)
    one.adapter.espnet_initialization_fn()
    xs, lens = batch()
    with one.use_task("a"):
        found = one(xs, lens)
    with one.use_task(None):
        assert same_bits(one(xs, lens), found)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="one_for_all: 'yes'"):
        adapted_encoder("conformer", ["a"], one_for_all="yes")
    with pytest.raises(
        ConfigError, match="one_for_all: true leaves .*new_task freezes"
    ):
        adapted_encoder("conformer", ["a"], one_for_all=True, regime="new_task")
    one = adapted_encoder("conformer", ["a"], one_for_all=True)
    with pytest.raises(ConfigError, match="one_for_all: true cannot be exported"):
        exporting.check(one)
