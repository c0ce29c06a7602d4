"""Soft prompts: what attention sees of them, and which encoders cannot have them."""

import pytest
import torch
from small_encoders import (
    CLASSES,
    WIDTH,
    adapt,
    adapted_encoder,
    as_if_trained,
    batch,
    conf_of,
    same_bits,
)
from test_whisper_methods import toy

from espnet_hra.encoder.adapted import wrap_encoder
from espnet_hra.errors import ConfigError
from espnet_hra.espnet import whisper_decoding
from espnet_hra.methods.prompt import _seeing


@pytest.mark.parametrize("kind", ["transformer", "conformer", "e_branchformer"])
def test_a_prompt_is_what_the_attention_itself_makes_of_its_vectors(kind):
    encoder = adapted_encoder(kind, ["a"], adapter="prompt")
    layer = encoder.encoders[1]
    attention = getattr(layer, "self_attn", None) or layer.attn
    torch.manual_seed(2)
    # As many vectors as frames: relative positions that are zero have places for them.
    query, prompt, gate = torch.randn(2, 5, WIDTH), torch.randn(5, WIDTH), 0.7
    nowhere = ()
    if hasattr(attention, "linear_pos"):
        nowhere = (torch.zeros(1, 9, WIDTH),)
    mask = torch.ones(2, 1, 5, dtype=torch.bool)
    frames = attention(query, query, query, *nowhere, mask)
    vectors = prompt.expand(2, -1, -1)
    seen = attention(query, vectors, vectors, *nowhere, mask)
    both = _seeing(attention, prompt, torch.tensor(gate))
    found = both(query, query, query, *nowhere, mask)
    torch.testing.assert_close(found, frames + gate * seen, rtol=1e-5, atol=1e-5)
    again = attention(query, query, query, *nowhere, mask)
    assert same_bits(again, frames)  # the frozen one is as it was


@pytest.mark.parametrize("conf", [{"adapter": "prompt"}, {"adapter": "hra"}])
def test_frames_are_as_many_as_before_and_padding_is_not_seen(conf):
    encoder = as_if_trained(
        adapted_encoder("conformer", ["a"], prompt_size=4, **conf), scale=0.1
    )
    xs, lens = batch(2)
    with torch.no_grad(), encoder.use_task(None):
        plain, frames, _ = encoder(xs, lens)
    with torch.no_grad(), encoder.use_task("a"):
        found, own, _ = encoder(xs, lens)
        single, _, _ = encoder(xs[1:, : lens[1]], lens[1:])
    assert found.shape == plain.shape and torch.equal(own, frames)
    assert not torch.allclose(found, plain, atol=1e-3)
    torch.testing.assert_close(found[1:, : own[1]], single, rtol=1e-4, atol=1e-4)


def test_a_prompt_beside_a_head_adds_its_parameters_and_nothing_else():
    alone = adapted_encoder("conformer", ["a"]).adapter
    beside = adapted_encoder("conformer", ["a"], prompt_size=4).adapter
    more = 4 * WIDTH + 3
    assert beside.heads.size == alone.heads.size + more
    assert beside.formula()["shared"] == alone.formula()["shared"]
    assert "prompt_size" not in alone.config  # files from before still fit
    assert beside.config["prompt_size"] == 4


def test_a_decoder_that_goes_step_by_step_sees_the_prompt_each_time():
    model = toy("prompt")
    as_if_trained(model.encoder, scale=0.1)
    ids = torch.tensor([[50258, 3, 4, 9], [50258, 7, 1, 2]])
    memory = torch.randn(2, 11, 32)
    lengths = torch.tensor([11, 11])
    kept = {}
    with torch.no_grad(), model.encoder.use_task("a"):
        whole, _ = model.decoder(memory, lengths, ids, torch.tensor([4, 4]))
        for i in range(4):
            step = whisper_decoding.step(
                model.decoder,
                kept,
                ids[:, i : i + 1],
                i,
                whisper_decoding.Memory(memory),
            )
            torch.testing.assert_close(step, whole[:, i], rtol=1e-3, atol=1e-3)
    with torch.no_grad(), model.encoder.use_task(None):
        plain, _ = model.decoder(memory, lengths, ids, torch.tensor([4, 4]))
    assert not torch.allclose(plain, whole, atol=1e-3)


@pytest.mark.parametrize("conf", [{"adapter": "prompt"}, {"prompt_size": 2}])
def test_streaming_encoders_are_refused_with_the_reason(conf):
    from espnet2.asr.encoder.contextual_block_conformer_encoder import (
        ContextualBlockConformerEncoder,
    )

    own = {"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 2}
    adapter = conf.pop("adapter", "hra")
    with pytest.raises(ConfigError, match="in front of an utterance.*block by block"):
        wrap_encoder(ContextualBlockConformerEncoder)(
            20, adapter=adapter, adapter_conf=conf, **own
        )


def test_layers_without_an_attention_that_is_known_are_refused():
    conf = conf_of("branchformer", use_attn=False)
    with pytest.raises(ConfigError, match="layer 0 of the encoder has none; it has: "):
        adapt(CLASSES["branchformer"](20, **conf), conf, ["a"], adapter="prompt")
