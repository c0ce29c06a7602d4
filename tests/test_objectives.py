"""Every objective of ESPnet's ASR: adapted, decoded, and the base untouched."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from conftest import BASE_CONFIG, make_base
from espnet2.asr.transducer.rnnt_multi_blank.rnnt_multi_blank import RNNTLossNumba
from test_training import train, waves

import espnet_hra

SMALL = {"num_blocks": 1, "linear_units": 16, "attention_heads": 2}
CONDITIONED = {"interctc_layer_idx": [1, 2], "interctc_use_conditioning": True}
OBJECTIVES = {
    "ctc": {"model_conf": {"ctc_weight": 1.0}},
    "hybrid": {
        "decoder": "transformer",
        "decoder_conf": SMALL,
        "model_conf": {"ctc_weight": 0.3},
    },
    "attention": {
        "decoder": "transformer",
        "decoder_conf": SMALL,
        "model_conf": {"ctc_weight": 0.0},
    },
    "rnn_decoder": {
        "decoder": "rnn",
        "decoder_conf": {"hidden_size": 16},
        "model_conf": {"ctc_weight": 0.3},
    },
    "transducer": {
        "decoder": "transducer",
        "decoder_conf": {"rnn_type": "lstm", "hidden_size": 16},
        "joint_net_conf": {"joint_space_size": 16},
        "model_conf": {"ctc_weight": 0.3},
    },
    "intermediate_ctc": {
        "encoder_conf": {**BASE_CONFIG["encoder_conf"], **CONDITIONED},
        "model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.5},
    },
    "mask_ctc": {
        "model": "maskctc",
        "decoder": "mlm",
        "decoder_conf": SMALL,
        "model_conf": {"ctc_weight": 0.3},
    },
}


@pytest.fixture(scope="module", autouse=True)
def _transducer_loss():
    """ESPnet's own transducer loss where the package is missing that it asks for.

    warprnnt_pytorch is built by hand; ESPnet has the same loss for numba.
    """
    if importlib.util.find_spec("warprnnt_pytorch") is not None:
        yield
        return
    package = types.ModuleType("warprnnt_pytorch")
    package.RNNTLoss = RNNTLossNumba
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "warprnnt_pytorch", package)
        yield


@pytest.fixture(scope="module", params=OBJECTIVES)
def adapted(request, an4, tmp_path_factory):
    """Objective, base and adaptation."""
    folder = tmp_path_factory.mktemp(request.param)
    config = {**BASE_CONFIG, **OBJECTIVES[request.param]}
    base = make_base(folder / "base", an4["tokens"], config)
    exp = train(an4, base, folder / "exp", max_epoch=2, optim_conf={"lr": 0.05})
    return request.param, base, exp


@pytest.mark.shows(encoder="conformer", objective="{adapted}", entrance="train")
def test_the_adapter_learns_and_the_base_stays(adapted, an4):
    _, base, exp = adapted
    state = torch.load(exp / "valid.loss.best.pth", weights_only=True)
    assert all(key.startswith("encoder.adapter.") for key in state)
    for task in ("female", "male"):
        assert state[f"encoder.adapter.heads.{task}"].abs().sum() > 0
    saved = yaml.safe_load((exp / "config.yaml").read_text())
    assert set(saved["base_fingerprint"]) >= {"encoder", "frontend"}


@pytest.mark.shows(encoder="conformer", objective="{adapted}", entrance="Speech2Text")
def test_it_decodes_with_each_task_and_without_one_as_the_base(adapted, an4):
    objective, base, exp = adapted
    beam = {"beam_size": 2, "maxlenratio": -5.0}
    beam["ctc_weight"] = {"attention": 0.0, "ctc": 1.0, "intermediate_ctc": 1.0}.get(
        objective, 0.3
    )
    if objective == "mask_ctc":  # whose own search is a program of its own
        beam = {"ctc_greedy": True}
    if objective == "transducer":
        beam = {"beam_size": 2, "transducer_conf": {"search_type": "default"}}
    wave = np.asarray(waves(an4)[0])
    plain = espnet_hra.Speech2Text.from_pretrained(str(base), **beam)
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(exp), **beam)

    def ids(results):  # with an intermediate CTC, ESPnet adds what that one says
        nbest = results[0] if isinstance(results, tuple) else results
        return nbest[0][2]

    said = {}
    for task in ("female", "male", None):
        speech2text.set_task(task)
        said[task] = ids(speech2text(wave))
    assert said[None] == ids(plain(wave))
    if objective != "attention":  # whose untrained decoder hardly listens
        assert len({tuple(one) for one in said.values()}) > 1
    both = speech2text([wave, wave], task=["male", "female"])
    assert [ids(one) for one in both] == [said["male"], said["female"]]
