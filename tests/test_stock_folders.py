"""An ordinary experiment folder of ESPnet's own training, adapted as it lies there.

Its BPE model, token list and statistics are named relative to the recipe in which it
was trained; everything here runs from another folder.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from adaptations import waves
from espnet_tasks import adaptation, decoded, decoding, make_base, make_data
from test_espnet_tasks import ADAPTER, MODEL, command, make_loud, moved_away

import espnet_hra
from espnet_hra.errors import BaseModelError
from espnet_hra.espnet.base import open_base

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
BEAM = {"beam_size": 2, "maxlenratio": -8.0, "lm_weight": 0.0}


@pytest.fixture(scope="module")
def data(an4, tmp_path_factory) -> dict[str, Path]:
    return make_data(an4, tmp_path_factory.mktemp("texts") / "data")


@pytest.fixture(scope="module")
def stock(data, tmp_path_factory) -> Path:
    """What ESPnet's asr_train leaves: BPE, CTC and attention, global_mvn."""
    return make_base("asr", data, tmp_path_factory.mktemp("stock") / "recipe")


@pytest.fixture(scope="module")
def model(stock, data, tmp_path_factory) -> Path:
    """An adaptation of it by `espnet-hra train`."""
    output = tmp_path_factory.mktemp("model") / "exp"
    command("train", *adaptation("asr", data, stock, output))
    make_loud(output)
    return output


@pytest.mark.shows(
    encoder="conformer", objective="CTC and attention", entrance=("train", "decode")
)
def test_it_is_adapted_and_decoded_from_another_folder(model, stock, data, tmp_path):
    config = yaml.safe_load((stock / "config.yaml").read_text())
    assert config["bpemodel"] == "bpe.model"  # the folder is an ordinary one
    assert config["normalize_conf"]["stats_file"] == "stats/train/feats_stats.npz"
    state = torch.load(model / MODEL, weights_only=True)
    assert state and all(key.startswith(ADAPTER) for key in state)
    said = {}
    for task in ("female", "male"):
        output = tmp_path / task
        words = decoding("asr", model, data["test"], output, ["--task", task])
        # In a process of its own, in which nothing has been imported before.
        decode = [sys.executable, "-m", "espnet_hra.bin.asr_inference", *words]
        subprocess.run(decode, check=True, cwd=tmp_path, env=ENVIRONMENT)
        said[task] = decoded(output)
    assert set(said["male"]) == set(waves(data["test"]))
    assert said["female"] != said["male"]


@pytest.mark.shows(
    encoder="conformer", objective="CTC and attention", entrance=("pack", "Speech2Text")
)
def test_its_pack_opens_with_the_original_moved_away(model, stock, data, tmp_path):
    wave = next(iter(waves(data["test"]).values()))
    opened = espnet_hra.Speech2Text.from_pretrained(str(model), task="male", **BEAM)
    expected = opened(wave)[0]
    path = tmp_path / "pack.zip"
    command("pack", "--model", str(model), "--out", str(path), "--tasks", "all")
    with moved_away(stock.parent):
        packed = espnet_hra.Speech2Text.from_pretrained(str(path), task="male", **BEAM)
        found = packed(wave)[0]
        assert (found[0], found[2]) == (expected[0], expected[2])
        with pytest.raises(BaseModelError, match="--pretrained_model"):
            espnet_hra.Speech2Text.from_pretrained(str(model))


@pytest.mark.parametrize("named", ["folder", "checkpoint"])
def test_its_files_are_found_however_it_is_named(named, stock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = stock if named == "folder" else stock / MODEL
    config = open_base(given).model_config()
    for path in (config["bpemodel"], config["normalize_conf"]["stats_file"]):
        assert Path(path).is_absolute() and Path(path).is_file()


def test_an_adaptation_is_opened_where_its_base_is_now(model, stock, data, tmp_path):
    wave = next(iter(waves(data["test"]).values()))
    opened = espnet_hra.Speech2Text.from_pretrained(str(model), task="male", **BEAM)
    expected = opened(wave)[0][2]
    recipe = Path(shutil.copytree(stock.parent, tmp_path / "now"))
    with moved_away(stock.parent):
        moved = espnet_hra.Speech2Text.from_pretrained(
            str(model), task="male", pretrained_model=str(recipe / "exp"), **BEAM
        )
        assert moved(wave)[0][2] == expected


@pytest.mark.shows(
    encoder="conformer", objective="CTC and attention", entrance="tasks add"
)
def test_a_task_is_added_to_an_adaptation_of_it(model, data, tmp_path):
    copied = Path(shutil.copytree(model, tmp_path / "copy"))
    voice = tmp_path / "voice"
    voice.mkdir()
    shutil.copy(data["train"] / "wav.scp", voice)
    shutil.copy(data["train"] / "src_text", voice / "text")
    words = ("tasks", "add", "new", str(voice), "--model", str(copied))
    command(*words, "--max_epoch", "1", "--license", "cc0-1.0")
    opened = espnet_hra.Speech2Text.from_pretrained(str(copied), task="new", **BEAM)
    assert opened.tasks == ("female", "male", "new")
