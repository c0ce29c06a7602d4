"""Tasks that adapt the attention decoder's layers as well (``decoder: true``)."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from conftest import BASE_CONFIG, make_base
from espnet2.asr.decoder.mlm_decoder import MLMDecoder
from espnet2.asr.decoder.rnn_decoder import RNNDecoder
from espnet2.asr.decoder.transformer_decoder import (
    DynamicConvolutionTransformerDecoder,
    LightweightConvolutionTransformerDecoder,
    TransformerDecoder,
)
from small_encoders import METHOD_CONFS, WIDTH, adapted_encoder, as_if_trained, batch
from test_training import options, train, waves

import espnet_hra
from espnet_hra.commands import pack
from espnet_hra.encoder.attention_decoder import attach
from espnet_hra.errors import ConfigError, TaskError
from espnet_hra.methods import METHODS

TOKENS = 11
CONF = {"num_blocks": 2, "linear_units": 12, "attention_heads": 2}
QUIET = {"dropout_rate": 0.0, "positional_dropout_rate": 0.0}
DECODERS = {
    "transformer": (TransformerDecoder, {}),
    "lightweight": (
        LightweightConvolutionTransformerDecoder,
        {"conv_wshare": 2, "conv_kernel_length": [3, 3]},
    ),
    "dynamic": (
        DynamicConvolutionTransformerDecoder,
        {"conv_wshare": 2, "conv_kernel_length": [3, 3]},
    ),
    "mlm": (MLMDecoder, {}),
}
LEARNING = [name for name in METHODS if name != "none"]
IDS = torch.tensor([[10, 3, 4, 5], [10, 2, 2, 6], [10, 7, 1, 1]])
LENGTHS = torch.tensor([4, 4, 2])


class Model(torch.nn.Module):
    """What :func:`attach` looks at."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def stock_decoder(kind="transformer", width=WIDTH, **changes):
    torch.manual_seed(5)
    cls, conf = DECODERS[kind]
    own = {**CONF, **QUIET, **conf, **changes}
    if kind != "mlm":
        own.setdefault("self_attention_dropout_rate", 0.0)
    return cls(TOKENS, width, **own).eval()


def has_attention(method, kind):
    """Whether a method finds what it adapts in a decoder; tells that it does not."""
    if method != "prompt" or kind not in ("lightweight", "dynamic"):
        return True
    with pytest.raises(ConfigError, match="seen by self-attentions.*of the decoder"):
        made(method, kind)
    return False


def made(method, kind="transformer", **conf):
    """A model whose tasks `a` and `b` are new."""
    encoder = adapted_encoder(
        "transformer", ("a", "b"), adapter=method, decoder=True, **conf
    )
    model = Model(encoder, stock_decoder(kind))
    attach(model)
    return model.eval()


def trained(method, kind="transformer", **conf):
    model = made(method, kind, **conf)
    as_if_trained(model.encoder, scale=0.1)
    return model


def memory(size=3):
    generator = torch.Generator().manual_seed(8)
    lengths = torch.tensor([9, 7, 4])[:size]
    return torch.randn(size, 9, WIDTH, generator=generator), lengths


def decoded(model, choice, rows=(0, 1, 2), decoder=None):
    hs, hlens = memory()
    rows = list(rows)
    with model.encoder.use_task(choice):
        return (decoder or model.decoder)(
            hs[rows], hlens[rows], IDS[rows], LENGTHS[rows]
        )[0]


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("method", METHODS)
def test_no_task_and_a_new_task_are_the_stock_decoder_bit_for_bit(method, kind):
    if not has_attention(method, kind):
        return
    model = made(method, kind)
    stock = stock_decoder(kind)
    assert list(model.decoder.state_dict()) == list(stock.state_dict())
    expected = decoded(model, None, decoder=stock)
    for choice in (None, "a"):
        assert torch.equal(decoded(model, choice), expected)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("method", LEARNING)
def test_tasks_of_a_mixed_batch_are_what_they_are_alone(method, kind):
    if not has_attention(method, kind):
        return
    model = trained(method, kind)
    names = ["a", "b", "a"]
    mixed = decoded(model, names)
    assert not torch.allclose(mixed, decoded(model, None), atol=1e-4)
    for row, name in enumerate(names):
        n = LENGTHS[row]
        alone = decoded(model, name, [0, row])[1]
        torch.testing.assert_close(mixed[row, :n], alone[:n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", LEARNING)
def test_step_by_step_with_a_cache_is_the_whole_at_once(method):
    # Not so in ESPnet's own decoders of convolutions, with or without an adapter.
    model = trained(method)
    hs, _ = memory(1)
    ids = IDS[0]
    with model.encoder.use_task("a"):
        whole = model.decoder(hs, torch.tensor([9]), ids[None], torch.tensor([4]))[0]
        states = [None]
        for n in range(1, 5):
            scores, states = model.decoder.batch_score(ids[None, :n], states, hs)
            expected = whole[:, n - 1].log_softmax(-1)
            torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared_rank", [0, 3])
@pytest.mark.parametrize("shared_head", [True, "layer"])
def test_it_computes_the_equations(shared_head, shared_rank):
    """Against the method written down once more, layer by layer."""
    conf = {"layer_bias": True, "output_scale": "channel", "shared_head": shared_head}
    if shared_rank:
        pytest.importorskip("peft")
        conf["shared_rank"] = shared_rank
    model = trained("hra", **conf)
    encoder, adapter = model.encoder, model.encoder.adapter
    layers = len(encoder.encoders)
    head = adapter.heads.tensors("b")
    controller = adapter.controller
    assert controller.b.shape == (layers + 2, adapter.own_config["controller_size"])
    hs, hlens = memory()
    h = 0.0
    stock = stock_decoder()
    if shared_rank:
        common = adapter.shared_of_decoder.gather(())
        for path, module in stock.named_modules():
            if f"{path}.A" in common:
                change = common[f"{path}.B"] @ common[f"{path}.A"]
                module.weight.data.add_(change, alpha=2)
    x = stock.embed(IDS)
    mask = torch.ones(4, 4).tril().bool() & (torch.arange(4) < LENGTHS[:, None, None])
    memory_mask = (torch.arange(9) < hlens[:, None])[:, None]
    for i, layer in enumerate(stock.decoders):
        x = layer(x, mask, hs, memory_mask)[0]
        normed = torch.nn.functional.layer_norm(
            x, (WIDTH,), controller.norm.weight, controller.norm.bias
        )
        b = controller.b[layers + i]
        h = torch.relu(normed @ controller.W.T + controller.u * h + b)
        change = h @ head["decoder.V"].T + head["decoder.v"]
        shared = adapter.shared_head_of_decoder
        change = change + (shared[i] if shared_head == "layer" else shared)(h)
        x = x + adapter.scale[layers + i] * change
    expected = stock.output_layer(stock.after_norm(x))
    for row, n in enumerate(LENGTHS):
        torch.testing.assert_close(decoded(model, "b")[row, :n], expected[row, :n])


@pytest.mark.parametrize("method", LEARNING)
def test_only_tasks_of_the_batch_and_what_they_share_learn(method):
    model = trained(method)
    for p in model.decoder.parameters():
        p.requires_grad_(False)
    decoded(model, ["a", "a", "a"]).pow(2).sum().backward()
    learning = {n for n, p in model.named_parameters() if p.grad is not None}
    heads = {n for n in learning if ".heads." in n}
    assert heads == {"encoder.adapter.heads.a"}
    assert all(n.startswith("encoder.adapter.") for n in learning)
    vector = model.encoder.adapter.heads.vector("a")
    part = model.encoder.adapter.decoder.section
    gradient = vector.grad
    assert gradient[part.start : part.start + part.size].abs().sum() > 0
    assert gradient[: part.start].abs().sum() == 0  # the encoder was not run


@pytest.mark.parametrize("method", LEARNING)
def test_copies_and_files_are_the_same(method, tmp_path):
    model = trained(method)
    expected = decoded(model, "a")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(decoded(other, "a"), expected)
        assert other.decoder._encoder[0] is other.encoder
    model.encoder.save_task("a", tmp_path / "a.safetensors")
    model.encoder.remove_task("a")
    model.encoder.load_task(tmp_path / "a.safetensors")
    assert torch.equal(decoded(model, "a"), expected)
    shapes = model.encoder.adapter.heads.layout.shapes
    assert any(name.startswith("decoder.") for name in shapes)


@pytest.mark.parametrize("method", [*METHODS, "hra layer"])
def test_the_arithmetic_counts_the_decoder_too(method):
    conf = {}
    if method.startswith("hra"):
        conf = {"layer_bias": True, "output_scale": "layer", "shared_head": True}
    if method == "hra layer":
        method, conf["shared_head"] = "hra", "layer"
    adapter = made(method, **conf).encoder.adapter
    shared = sum(p.numel() for p in adapter.shared_parameters().values())
    assert adapter.formula() == {"shared": shared, "per_task": adapter.heads.size}
    # What changes weights only adds none.
    assert (adapter.decoder_macs() > 0) == (method not in ("bitfit", "full", "none"))


def test_dropout_of_the_frozen_decoder_follows_the_key():
    for wanted in (False, True):
        encoder = adapted_encoder("transformer", ("a",), backbone_dropout=wanted)
        encoder.adapter.adapts_decoder = True
        model = Model(encoder, stock_decoder(dropout_rate=0.5))
        attach(model)
        model.train()
        drops = [m for m in model.decoder.modules() if type(m) is torch.nn.Dropout]
        assert {m.training for m in drops} == {wanted}


def test_methods_of_one_task_at_a_time_say_so_in_a_search():
    model = trained("lora")
    hs, _ = memory(2)
    with model.encoder.use_task(["a", "b"]), pytest.raises(TaskError, match="one task"):
        model.decoder.batch_score(IDS[:2, :1], [None, None], hs)


def test_what_cannot_be_adapted_is_refused():
    encoder = adapted_encoder("transformer", ("a",), decoder=True)
    with encoder.use_task("a"), pytest.raises(RuntimeError, match="no model"):
        encoder(*batch())
    with pytest.raises(ConfigError, match="no decoder"):
        attach(Model(encoder, None))
    with pytest.raises(ConfigError, match="RNNDecoder keeps no list"):
        attach(Model(encoder, RNNDecoder(TOKENS, WIDTH, hidden_size=8)))
    with pytest.raises(ConfigError, match=r"differ \(16 and 8\)"):
        attach(Model(encoder, stock_decoder(width=8)))
    with pytest.raises(ConfigError, match="decoder: 'yes'"):
        adapted_encoder("transformer", decoder="yes")
    assert set(METHOD_CONFS) == set(METHODS)


# ------------------------------------------------------------------- through ESPnet


@pytest.fixture(scope="module", params=["hra", "lora"])
def exp(request, an4, tmp_path_factory):
    """A base, and an adaptation of its encoder and decoder."""
    folder = tmp_path_factory.mktemp(request.param)
    hybrid = {
        "decoder": "transformer",
        "decoder_conf": CONF,
        "model_conf": {"ctc_weight": 0.3},
    }
    base = make_base(folder / "base", an4["tokens"], {**BASE_CONFIG, **hybrid})
    encoder_conf = {
        "adapter": request.param,
        "adapter_conf": {**METHOD_CONFS[request.param], "decoder": True},
        "tasks": ["female", "male"],
    }
    exp = train(
        an4,
        base,
        folder / "exp",
        encoder_conf=encoder_conf,
        max_epoch=3,
        optim_conf={"lr": 0.05},
    )
    return base, exp


@pytest.mark.shows(
    encoder="conformer",
    objective="attention, adapted decoder",
    entrance=("train", "Speech2Text"),
)
def test_a_training_adapts_both_and_a_mixed_batch_decodes(exp, an4):
    base, folder = exp
    state = torch.load(folder / "valid.loss.best.pth", weights_only=True)
    assert all(key.startswith("encoder.adapter.") for key in state)
    counts = json.loads((folder / "params.json").read_text())
    assert counts["decoder_macs"] > 0
    beam = {"beam_size": 2, "maxlenratio": -6.0, "ctc_weight": 0.3}
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(folder), **beam)
    part = speech2text.asr_model.encoder.adapter.decoder.section
    for name in ("female", "male"):
        vector = state[f"encoder.adapter.heads.{name}"]
        learned = vector[part.start : part.start + part.size]
        assert learned.abs().sum() > 0
    wave = [np.asarray(wave) for wave in waves(an4)[:3]]
    names = ["female", "male", "female"]
    together = speech2text(wave, task=names)
    for one, w, name in zip(together, wave, names):
        alone = speech2text([w], task=[name])[0]
        assert one[0][2] == alone[0][2]
        score = one[0][3].score
        assert float(score) == pytest.approx(float(alone[0][3].score), abs=1e-2)
    plain = espnet_hra.Speech2Text.from_pretrained(str(base), **beam)
    speech2text.set_task(None)
    off, expected = speech2text(wave[0])[0], plain(wave[0])[0]
    assert off[2] == expected[2] and off[3].score == expected[3].score


def test_a_model_without_a_decoder_is_refused(an4, base, tmp_path):
    from espnet_hra.bin import asr_train

    conf = {"adapter_conf": {"decoder": True}, "tasks": ["female", "male"]}
    with pytest.raises(ConfigError, match="has no decoder"):
        asr_train.main(options(an4, base, tmp_path / "exp", encoder_conf=conf))


@pytest.mark.shows(
    encoder="conformer",
    objective="attention, adapted decoder",
    entrance=("pack", "tasks add"),
)
def test_a_pack_and_a_new_task_hold_the_decoder_too(exp, an4, tmp_path):
    base, folder = exp
    pack.main(
        ["--model", str(folder), "--tasks", "all", "--license", "cc0-1.0"]
        + ["--out", str(tmp_path / "base.zip")]
    )
    beam = {"beam_size": 2, "maxlenratio": -6.0, "ctc_weight": 0.3}
    one = espnet_hra.Speech2Text.from_pretrained(str(folder), task="male", **beam)
    other = espnet_hra.Speech2Text.from_pretrained(
        str(tmp_path / "base.zip"), task="male", **beam
    )
    wave = np.asarray(waves(an4)[0])
    assert one(wave)[0][2] == other(wave)[0][2]
    assert one(wave)[0][3].score == other(wave)[0][3].score
    adapter = {"adapter": one.asr_model.encoder.adapter.config["adapter"]}
    conf = {**METHOD_CONFS[adapter["adapter"]], "decoder": True, "regime": "new_task"}
    later = train(
        an4,
        base,
        tmp_path / "later",
        "--init_adapter",
        str(folder / "valid.loss.best.pth"),
        encoder_conf={**adapter, "adapter_conf": conf, "tasks": ["female", "male"]},
        max_epoch=1,
    )
    before = torch.load(folder / "valid.loss.best.pth", weights_only=True)
    after = torch.load(later / "latest.pth", weights_only=True)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {f"encoder.adapter.heads.{name}" for name in ("female", "male")}


@pytest.mark.parametrize(
    "method, conf",
    [
        ("hra", {"shared_head": True}),
        ("hra", {"shared_head": "layer"}),
        ("hra", {"shared_rank": 2}),
        ("lora", {"shared_rank": 2}),
    ],
)
def test_a_new_task_freezes_what_is_shared_of_the_decoder_too(method, conf):
    if "shared_rank" in conf:
        pytest.importorskip("peft")
    for regime in ("joint", "new_task"):
        model = made(method, regime=regime, **conf)
        adapter = model.encoder.adapter
        assert adapter.regime == regime
        shared = adapter.shared_parameters()
        assert any("of_decoder" in name for name in shared)
        learn = {p.requires_grad for p in shared.values()}
        assert learn == {regime == "joint"}
        formula = adapter.formula()
        assert formula["shared"] == sum(p.numel() for p in shared.values())
        assert list(dict(adapter.named_children()))[-1] == "heads"


@pytest.mark.parametrize(
    "method, conf",
    [
        ("residual", {"placement": "parallel"}),
        ("lora", {"matrices": "all", "shared_rank": 2}),
        ("lily", {"matrices": ["linear_q", "w_1"]}),
        ("hra", {"shared_rank": 2}),
    ],
    ids=["parallel", "shared", "lily", "hra"],
)
def test_other_places_and_what_is_shared_reach_the_decoder(method, conf):
    if method == "lora":
        pytest.importorskip("peft")
    expected = decoded(made(method, **conf), None, decoder=stock_decoder())
    assert torch.equal(decoded(made(method, **conf), "a"), expected)
    model = trained(method, **conf)
    mixed = decoded(model, ["a", "b", "a"])
    assert not torch.allclose(mixed, expected, atol=1e-4)
    for row, name in enumerate(["a", "b", "a"]):
        n = LENGTHS[row]
        alone = decoded(model, name, [0, row])[1]
        torch.testing.assert_close(mixed[row, :n], alone[:n], rtol=1e-4, atol=1e-5)
    mixed.sum().backward()
    adapter = model.encoder.adapter
    for name, p in adapter.shared_parameters().items():
        if "of_decoder" in name:
            assert p.grad.any()
    where = adapter.decoder.section
    assert adapter.heads.vector("a").grad[where.start :][: where.size].any()
