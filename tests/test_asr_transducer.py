"""Models of the ESPnet task asr_transducer, adapted: offline and chunk by chunk."""

import math
import sys
import types
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from adaptations import waves
from espnet2.asr.transducer.rnnt_multi_blank.rnnt_multi_blank import RNNTLossNumba
from espnet2.bin import asr_transducer_inference
from espnet_tasks import adaptation, decoded, make_base, make_data, streams

import espnet_hra
from espnet_hra import cli
from espnet_hra.espnet.inference_transducer import TransducerSpeech2Text

NAME = "asr_transducer"
ADAPTER = "encoder.adapter."
TASKS = ["female", "male"]
MODEL = "valid.loss.best.pth"
OPTIONS = {"beam_size": 2}


def command(*words: object) -> None:
    """Run a sub-command of `espnet-hra`, which must end well."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert not ended.value.code, ended.value.code


def load(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def data(an4, tmp_path_factory) -> dict[str, Path]:
    return make_data(an4, tmp_path_factory.mktemp("texts") / "data")


@pytest.fixture(scope="module")
def base(data, tmp_path_factory) -> Path:
    """A stock experiment folder, as ESPnet's own program leaves it.

    That program wants warprnnt_pytorch, which is built by hand; ESPnet has the same
    loss for numba.
    """
    package = types.ModuleType("warprnnt_pytorch")
    package.RNNTLoss = RNNTLossNumba
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "warprnnt_pytorch", package)
        return make_base(NAME, data, tmp_path_factory.mktemp(NAME) / "recipe")


@pytest.fixture(scope="module")
def model(base, data, tmp_path_factory) -> Path:
    """An adaptation of it, trained by `espnet-hra train`, whose tasks differ audibly."""
    output = tmp_path_factory.mktemp(NAME) / "exp"
    command("train", *adaptation(NAME, data, base, output))
    state = load(output / MODEL)
    generator = torch.Generator().manual_seed(2)
    for tensor in state.values():
        tensor += 0.5 * torch.randn(tensor.shape, generator=generator)
    torch.save(state, (output / MODEL).resolve())
    return output


def opened(model: Path, **kwargs):
    return espnet_hra.Speech2Text.from_pretrained(str(model), **{**OPTIONS, **kwargs})


def said(hypotheses) -> list[tuple[list[int], float]]:
    return [(list(h.yseq), float(h.score)) for h in hypotheses]


def test_the_adapter_learns_and_the_base_stays(model, base):
    state = load(model / "latest.pth")
    assert all(key.startswith(ADAPTER) for key in state)
    found = opened(model)
    assert type(found) is TransducerSpeech2Text
    source = load(base / MODEL)
    state = found.model.state_dict()
    kept = {k: v for k, v in state.items() if not k.startswith(ADAPTER)}
    assert kept.keys() == source.keys()
    assert all(torch.equal(kept[key], source[key]) for key in source)
