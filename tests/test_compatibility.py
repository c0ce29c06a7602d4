"""What version 0.1 wrote still opens, and computes what it computed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import espnet_hra

FILES = Path(__file__).parent / "data" / "v0.1"
SAID = json.loads((FILES / "expected.json").read_text())


def computed(speech2text, task):
    """Score of the greedy search, and the encoder's fourth frame."""
    t = np.arange(8000)
    wave = np.sin(t * 0.05 * (1 + t / 8000)).astype(np.float32) * 0.3
    speech2text.set_task(task)
    hypothesis = speech2text(wave)[0][3]
    with torch.no_grad():
        encoded, _ = speech2text.asr_model.encode(
            torch.from_numpy(wave)[None], torch.tensor([len(wave)])
        )
    return float(hypothesis.score), encoded[0, 3].tolist()


def agrees(speech2text, task):
    # A pure tone has nearly empty bands, whose logarithms differ between processors.
    score, encoded = computed(speech2text, task)
    expected = SAID[str(task)]
    assert score == pytest.approx(expected["score"], abs=0.05)
    assert encoded == pytest.approx(expected["encoded"], abs=0.01)


@pytest.fixture
def experiment(tmp_path) -> Path:
    """A checkpoint of an adaptation beside its configuration, and its base."""
    shutil.copytree(FILES / "exp", tmp_path / "exp")
    path = tmp_path / "exp" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["pretrained_model"] = str(FILES / "base")
    path.write_text(yaml.safe_dump(config))
    return tmp_path / "exp"


def test_a_checkpoint(experiment):
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(experiment), ctc_greedy=True
    )
    for task in (None, *speech2text.tasks):
        agrees(speech2text, task)
    assert set(speech2text.tasks) == {"female", "it.carlo"}


def test_a_task_file(experiment):
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(experiment), ctc_greedy=True
    )
    encoder = speech2text.asr_model.encoder
    encoder.remove_task("it.carlo")
    assert encoder.load_task(FILES / "it.carlo.safetensors") == "it.carlo"
    agrees(speech2text, "it.carlo")


def test_a_base_pack(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where packs are unpacked
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(FILES / "base_pack.zip"), ctc_greedy=True
    )
    assert set(speech2text.tasks) == {"female", "it.carlo"}
    for task in (None, "female", "it.carlo"):
        agrees(speech2text, task)


def test_a_task_pack(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(experiment), ctc_greedy=True
    )
    speech2text.asr_model.encoder.remove_task("it.carlo")
    assert speech2text.load_task(FILES / "task_pack.zip") == "it.carlo"
    agrees(speech2text, "it.carlo")
