"""A Conformer that hears with a frozen Whisper, whose weights come by name."""

import numpy as np
import pytest
import torch
import yaml
from conftest import make_base
from test_training import load, options, streams, train, waves
from test_whisper_packs import source, weights  # noqa: F401 (fixtures)

import espnet_hra
from espnet_hra.bin import asr_train
from espnet_hra.commands import pack
from espnet_hra.data.requirements import requirements_from_config
from espnet_hra.errors import BaseModelError
from espnet_hra.espnet import whisper_frontend
from espnet_hra.espnet.base import open_base
from espnet_hra.espnet.whisper import without_weights
from espnet_hra.files import archive
from espnet_hra.files.checkpoint import read_state

pytest.importorskip("whisper")

#: "tiny" is a small one in these tests.
CONFORMER = {
    "frontend": "whisper",
    "frontend_conf": {"whisper_model": "tiny"},
    "normalize": None,
    "token_type": "char",
    "encoder": "conformer",
    "encoder_conf": {
        **{"output_size": 16, "attention_heads": 2, "linear_units": 16},
        **{"num_blocks": 2, "input_layer": "linear", "cnn_module_kernel": 3},
        **{"rel_pos_type": "latest", "pos_enc_layer_type": "rel_pos"},
        **{"selfattention_layer_type": "rel_selfattn"},
    },
    "model_conf": {"ctc_weight": 1.0},
}

KEYS = "frontend.whisper."


def train_backbone(an4, folder, *more, **changes):
    """Train a Conformer that hears with "tiny"; its experiment folder."""
    cmd = options(an4, None, folder / "exp")[:4]
    config = yaml.safe_load((folder / "exp.yaml").read_text())
    (folder / "exp.yaml").write_text(yaml.safe_dump({**config, **CONFORMER, **changes}))
    cmd += [*streams(an4["train"], "train"), *streams(an4["dev"], "valid")]
    asr_train.main([*cmd, "--token_list", str(an4["tokens"]), *more])
    return folder / "exp"


@pytest.fixture(scope="module")
def backbone(an4, source, tmp_path_factory):  # noqa: F811
    """Experiment folder of a backbone that was trained here."""
    return train_backbone(an4, tmp_path_factory.mktemp("backbone"), max_epoch=2)


@pytest.fixture(scope="module")
def adapted(an4, backbone, tmp_path_factory):
    """An adaptation of it to two tasks."""
    exp = tmp_path_factory.mktemp("adapted") / "exp"
    return train(an4, backbone, exp, max_epoch=2, optim_conf={"lr": 0.05})


def test_checkpoints_of_a_backbone_hold_nothing_of_whisper(backbone):
    for file in ("1epoch.pth", "valid.loss.ave.pth"):
        assert not any(key.startswith(KEYS) for key in load(backbone / file))
    state = torch.load(backbone / "checkpoint.pth", weights_only=True)["model"]
    assert not any(key.startswith(KEYS) for key in state)
    assert any(key.startswith("encoder.encoders.1.") for key in state)


def test_it_hears_with_the_weights_of_the_name(backbone):
    own = espnet_hra.Speech2Text.from_pretrained(str(backbone)).asr_model.state_dict()
    config = yaml.safe_load((backbone / "config.yaml").read_text())
    public = whisper_frontend.weights(config)
    assert public and all(torch.equal(own[key], public[key]) for key in public)
    assert {key for key in own if key.startswith(KEYS)} == public.keys()


def test_a_training_is_resumed_and_goes_on(an4, backbone, source, tmp_path):  # noqa: F811
    for epochs in ("1", "2"):
        again = train_backbone(
            an4, tmp_path, "--resume", "true", "--max_epoch", epochs, max_epoch=2
        )
    first, whole = load(again / "2epoch.pth"), load(backbone / "2epoch.pth")
    assert first.keys() == whole.keys()
    for key in whole:
        torch.testing.assert_close(first[key], whole[key], rtol=1e-4, atol=1e-5)


def test_a_task_is_adapted_and_the_rest_stays(adapted, backbone, an4):
    state = load(adapted / "valid.loss.best.pth")
    assert all(key.startswith("encoder.adapter.") for key in state)
    saved = yaml.safe_load((adapted / "config.yaml").read_text())
    assert set(saved["base_fingerprint"]) == {"frontend", "encoder", "ctc"}
    wave = np.asarray(waves(an4)[0])
    plain = espnet_hra.Speech2Text.from_pretrained(str(backbone), ctc_greedy=True)
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(adapted), ctc_greedy=True)
    speech2text.set_task(None)
    assert speech2text(wave)[0][2] == plain(wave)[0][2]
    speech2text.set_task("male")
    assert float(speech2text(wave)[0][3].score) != float(plain(wave)[0][3].score)


def test_another_whisper_is_another_base(adapted, source, monkeypatch):  # noqa: F811
    found = whisper_frontend.weights

    def other(config):
        return {key: tensor + 1e-3 for key, tensor in found(config).items()}

    monkeypatch.setattr(whisper_frontend, "weights", other)
    with pytest.raises(BaseModelError, match="frontend: expected .*, found "):
        espnet_hra.Speech2Text.from_pretrained(str(adapted))


def test_weights_that_cannot_be_had_are_named(backbone, monkeypatch, tmp_path):
    monkeypatch.setattr(archive, "cache", lambda: tmp_path)

    def refuse(name, cache):
        raise BaseModelError(f"{name}: no source has its weights here")

    monkeypatch.setattr(whisper_frontend, "open_folder", refuse)
    with pytest.raises(
        BaseModelError, match="frontend_conf: whisper_model: tiny: whisper:tiny: no"
    ):
        espnet_hra.Speech2Text.from_pretrained(str(backbone))


def test_a_checkpoint_of_espnets_own_keeps_its_weights(an4, source, tmp_path):  # noqa: F811
    with without_weights(CONFORMER):
        stock = make_base(tmp_path / "stock", an4["tokens"], CONFORMER)
    own = read_state(stock / "valid.loss.best.pth")
    assert any(key.startswith(KEYS) for key in own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whisper_frontend, "weights", None)  # none is asked for
        state = open_base(str(stock)).state_dict()
        opened = espnet_hra.Speech2Text.from_pretrained(str(stock), ctc_greedy=True)
    for found in (state, opened.asr_model.state_dict()):
        assert all(torch.equal(own[key].float(), found[key]) for key in own)


def test_a_frontend_that_is_trained_is_the_models_own(an4, source, tmp_path):  # noqa: F811
    changes = {"frontend_conf": {"whisper_model": "tiny", "freeze_weights": False}}
    exp = train_backbone(an4, tmp_path, **changes, max_epoch=1)
    state = load(exp / "1epoch.pth")
    config = yaml.safe_load((exp / "config.yaml").read_text())
    public = whisper_frontend.weights(config)
    trained = [k for k in public if not torch.equal(state[k].float(), public[k])]
    assert any(key.startswith(f"{KEYS}encoder.blocks.") for key in trained)


@pytest.mark.parametrize("whole", ["true", "false"])
def test_packs_hold_whisper_only_if_asked(adapted, an4, whole, tmp_path):
    out = tmp_path / "pack.zip"
    pack.main(["--model", str(adapted), "--out", str(out), "--whole", whole])
    state = open_base(str(out)).model_file
    held = [key for key in load(state) if key.startswith(KEYS)]
    assert bool(held) == (whole == "true")
    wave = np.asarray(waves(an4)[0])
    texts = [
        espnet_hra.Speech2Text.from_pretrained(str(model), ctc_greedy=True)
        for model in (adapted, out)
    ]
    for one in texts:
        one.set_task(None)
    assert texts[0](wave)[0][2] == texts[1](wave)[0][2]


@pytest.mark.parametrize("samples", [200, 300, 479, 480, 16000, 16159, 500_000])
def test_frames_are_counted_as_the_model_makes_them(samples, backbone):
    config = yaml.safe_load((backbone / "config.yaml").read_text())
    count = requirements_from_config(config).frames
    if samples <= 200:
        assert count(samples) == 0
        return
    model = espnet_hra.Speech2Text.from_pretrained(str(backbone)).asr_model
    wave = torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    encoded, lengths = model.encode(wave, torch.tensor([samples]))
    assert count(samples) == encoded.size(1) == int(lengths[0])


def test_more_than_thirty_seconds_are_heard_in_windows(backbone):
    frontend = espnet_hra.Speech2Text.from_pretrained(str(backbone)).asr_model.frontend
    drawn = torch.Generator().manual_seed(0)
    wave = torch.randn(1, 16000 * 41, generator=drawn)
    frames, lengths = frontend(wave, torch.tensor([wave.size(1)]))
    assert frames.size(1) == int(lengths[0]) == 41 * 50
    spectrum, _ = frontend.log_mel_spectrogram(wave)
    # The second window is what it is alone.
    alone, _ = frontend.whisper_encode(spectrum[:, :, 3000:])
    torch.testing.assert_close(frames[:, 1500:], alone)
    assert not torch.allclose(alone[:, :10], frames[:, :10])
