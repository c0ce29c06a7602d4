"""Every configuration for Whisper, on a toy and against the sizes that it names."""

import re

import pytest
import torch
import yaml
from conftest import ROOT
from small_encoders import as_if_trained, same_bits

from espnet_hra.encoder.adapted import wrap_encoder
from espnet_hra.encoder.attention_decoder import attach
from espnet_hra.espnet.whisper import WhisperEncoder, without_weights
from espnet_hra.files.variants import read_config
from espnet_hra.methods import METHODS, build_adapter
from espnet_hra.methods.base import Backbone
from espnet_hra.whisper.sizes import Sizes, written

whisper = pytest.importorskip("whisper")

CONF = ROOT / "conf" / "whisper"
VARIANTS = (CONF / "variants.yaml").read_text()
FILES = sorted(p.stem.removeprefix("train_") for p in CONF.glob("train_*.yaml"))
NAMES = (*FILES, *yaml.safe_load(VARIANTS))
TOY = Sizes(80, 1500, 32, 2, 2, 51865, 448, 32, 2, 2)

#: One of each kind: sizes do not matter to a toy.
KINDS = (
    *FILES,
    "hra_one",
    "hra_prompt",
    "hra_shared_r16",
    "residual_parallel_r3",
    "residual_encoder",
    "lora_dora_r1",
    "lora_shared_r1",
    "lora_one",
    "full_one",
    "full_one_encoder",
)


def needs_peft(method):
    if method in ("lora", "road"):
        pytest.importorskip("peft")


def what_is_said_of(name):
    """The comments on a configuration."""
    if name in FILES:
        return (CONF / f"train_{name}.yaml").read_text().split("\n\n")[0]
    return VARIANTS[VARIANTS.index(f"\n{name}:") :].split("\n    of:")[0]


def test_every_method_has_a_configuration():
    assert {*FILES, "none"} == set(METHODS)
    assert set(KINDS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_configurations_differ_in_the_method_and_its_rate(name):
    config, own = read_config(CONF, name), read_config(CONF, "hra_short")
    method = config["encoder_conf"]["adapter"]
    assert name == method or name.startswith(f"{method}_")
    if name in FILES:
        command = f"#   ./run.sh --pretrained_model whisper:base --method {method}"
        text = what_is_said_of(name)
        assert command in text or method == "hra"
    rate = config["optim_conf"]["lr"]
    listed = config["scheduler_conf"]["warmup_lr_list"]
    assert listed == pytest.approx([0.0, rate, rate, rate / 50, rate / 50])
    differing = {"encoder_conf", "optim_conf", "scheduler_conf"}
    if name == "hra_alone":
        assert config["batch_bins"] * 5 == own["batch_bins"]
        differing |= {"batch_bins"}
    if name in ("full_each", "hra"):  # known by heart soon; the default, for longer
        differing |= {"num_iters_per_epoch"}
    assert config.keys() == own.keys()
    assert all(config[key] == own[key] for key in set(own) - differing)
    steps = [c["scheduler_conf"]["warmup_steps_list"] for c in (config, own)]
    assert steps[0][3] == config["num_iters_per_epoch"] * config["max_epoch"]
    assert steps[0] == steps[1] or name in ("full_each", "hra")
    for key in ("adapter", "adapter_conf"):  # the rest is Whisper's, alike for all
        config["encoder_conf"].pop(key), own["encoder_conf"].pop(key)
    assert config["encoder_conf"] == own["encoder_conf"]


@pytest.fixture(scope="module")
def base():
    """Shapes of whisper:base, without memory for its weights."""
    with torch.device("meta"):
        encoder = torch.nn.Module()
        encoder.encoders = whisper.model.AudioEncoder(80, 1500, 512, 8, 6)
        decoder = torch.nn.Module()
        decoder.decoders = whisper.model.TextDecoder(51865, 448, 512, 8, 6)
    return encoder, decoder


def adapter_of(name, base):
    conf = read_config(CONF, name)["encoder_conf"]
    needs_peft(conf["adapter"])
    encoder, decoder = base
    layers = list(encoder.encoders.blocks)
    with torch.device("meta"):
        adapter = build_adapter(
            conf["adapter"],
            Backbone(encoder, 512, layers, "encoders.blocks"),
            conf.get("adapter_conf"),
        )
        if adapter.adapts_decoder:
            layers = list(decoder.decoders.blocks)
            adapter.add_decoder(
                Backbone(decoder, 512, layers, "decoders.blocks", kind="decoder")
            )
    return adapter


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_has_the_size_that_its_comment_names(name, base):
    said = re.findall(r"([0-9,]+) parameters", what_is_said_of(name))
    adapter = adapter_of(name, base)
    for number in said[:1]:
        assert int(number.replace(",", "")) == adapter.formula()["per_task"]
    assert said or name in ("hra", "full", "hra_alone")
    total = adapter.formula()["shared"] + adapter.formula()["per_task"]
    one = adapter.heads.size + sum(
        p.numel() for p in adapter.shared_parameters().values()
    )
    assert total == one


def test_rivals_have_no_fewer_parameters_than_hra_beside_them(base):
    for ours, rivals in {
        "hra": ("residual", "residual_parallel_r21", "lora", "lily"),
        "hra_c32": ("residual_r2", "residual_parallel_r3", "lora_qv_r1", "lily_r1"),
        "hra_c128": ("residual_r10", "residual_parallel_r11", "lora_r1", "lily_r3"),
        "hra_c395": ("residual_r32", "residual_parallel_r33", "lora_r3", "lily_r9"),
        "hra_c1395": (
            *("residual_r115", "residual_parallel_r116", "lora_r11", "lily_r32"),
        ),
        "hra_encoder_c256": ("residual_encoder", "lora_encoder_r3"),
    }.items():
        own = adapter_of(ours, base).formula()["per_task"]
        for rival in rivals:
            assert adapter_of(rival, base).formula()["per_task"] >= own, rival


class Model(torch.nn.Module):
    """What :func:`attach` looks at."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def toy(name):
    """A toy of Whisper with two tasks."""
    from espnet2.asr.decoder.whisper_decoder import OpenAIWhisperDecoder

    conf = dict(read_config(CONF, name)["encoder_conf"])
    needs_peft(conf["adapter"])
    conf["use_specaug"] = False
    torch.manual_seed(1)
    encoder = wrap_encoder(WhisperEncoder)(
        input_size=1, whisper_model=written(TOY), tasks=["a", "b"], **conf
    )
    own = {"decoder": "whisper", "decoder_conf": {"whisper_model": written(TOY)}}
    with without_weights(own):
        decoder = OpenAIWhisperDecoder(51865, 32, whisper_model=written(TOY))
    torch.nn.init.normal_(decoder.decoders.positional_embedding)
    model = Model(encoder, decoder.requires_grad_(False))
    attach(model)
    return model.eval()


def passed(model, choice):
    """Frames, and logits of a few tokens that are read from them."""
    generator = torch.Generator().manual_seed(2)
    waves = torch.randn(2, 8_000, generator=generator)
    ids = torch.tensor([[50258, 3, 4], [50258, 7, 1]])
    with model.encoder.use_task(choice):
        frames, lengths, _ = model.encoder(waves, torch.tensor([8_000, 8_000]))
        logits, _ = model.decoder(frames, lengths, ids, torch.tensor([3, 3]))
    return frames, logits


@pytest.mark.parametrize("name", KINDS)
def test_a_toy_of_whisper_begins_as_it_is_and_learns_all_through(name):
    model = toy(name)
    adapter = model.encoder.adapter
    conf = read_config(CONF, name)["encoder_conf"]["adapter_conf"]
    assert adapter.adapts_decoder == conf.get("decoder", False)
    with torch.no_grad():
        frozen = passed(model, None)
        assert same_bits(passed(model, "a"), frozen)
    as_if_trained(model.encoder, scale=0.1)
    model.train()
    frames, logits = passed(model, ["a", "b"])
    for row, task in enumerate("ab"):
        alone = passed(model, task)
        torch.testing.assert_close(frames[row], alone[0][row], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(logits[row], alone[1][row], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits, frozen[1], atol=1e-3)
    logits.log_softmax(-1)[:, :, 5].sum().backward()
    moving = [p for p in adapter.parameters() if p.numel()]
    assert moving and all(p.grad is not None and p.grad.any() for p in moving)
    if adapter.decoder is not None:
        where = adapter.decoder.section
        name = "all" if adapter.common is not None else "a"
        assert adapter.bank.vector(name).grad[where.start :][: where.size].any()
