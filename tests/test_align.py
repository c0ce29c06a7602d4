"""CTC segmentation with tasks, from Python and as ESPnet's program."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from adaptations import TASKS, make_adaptation, waves
from conftest import BASE_CONFIG, make_base
from espnet2.bin.asr_align import CTCSegmentation as Stock

from espnet_hra.bin import asr_align
from espnet_hra.errors import ConfigError, DataError, TaskError
from espnet_hra.espnet.aligning import CTCSegmentation

TEXT = ["utt1 YES", "utt2 NO"]


@pytest.fixture(scope="module")
def exp(base, an4, tmp_path_factory) -> Path:
    return make_adaptation(tmp_path_factory.mktemp("align") / "exp", base)


@pytest.fixture(scope="module")
def wave(an4) -> np.ndarray:
    return next(iter(waves(an4["train"]).values()))


@pytest.fixture(scope="module")
def aligner(exp) -> CTCSegmentation:
    return CTCSegmentation.from_pretrained(str(exp))


@pytest.fixture(scope="module")
def stock(base, wave) -> str:
    """What ESPnet's own class finds with the base."""
    own = Stock(base / "config.yaml", base / "valid.loss.best.pth")
    return str(own(wave, TEXT, fs=16000))


def test_without_a_task_it_is_espnets_own_result_on_the_base(aligner, stock, wave):
    aligner.set_task(None)
    assert str(aligner(wave, TEXT, fs=16000)) == stock
    assert stock.count("\n") == 2 and stock.startswith("utt1 ")


def test_each_task_has_its_own_posteriors_and_a_call_may_name_one(aligner, stock, wave):
    found = {}
    for task in TASKS:
        aligner.set_task(task)
        found[task] = str(aligner(wave, TEXT, fs=16000))
    assert len({*found.values(), stock}) == 3
    aligner.set_task(None)
    for task in TASKS:
        assert str(aligner(wave, TEXT, fs=16000, task=task)) == found[task]
    assert str(aligner(wave, TEXT, fs=16000)) == stock


def test_the_program(exp, aligner, stock, wave, tmp_path):
    soundfile.write(tmp_path / "utt.wav", wave, 16000, subtype="FLOAT")
    (tmp_path / "text").write_text("\n".join(TEXT) + "\n")
    command = [
        *("--asr_train_config", exp / "config.yaml"),
        *("--asr_model_file", exp / "valid.cer_ctc.best.pth"),
        *("--audio", tmp_path / "utt.wav", "--text", tmp_path / "text"),
        *("--output", tmp_path / "segments"),
    ]
    command = [str(word) for word in command]
    asr_align.main([*command, "--task", "it.carlo"])
    expected = str(aligner(wave, TEXT, fs=16000, task="it.carlo"))
    timings = [line.split()[2:4] for line in expected.splitlines()]
    found = (tmp_path / "segments").read_text()
    assert [line.split()[2:4] for line in found.splitlines()] == timings
    asr_align.main([*command, "--without_task", "true"])
    found = (tmp_path / "segments").read_text()
    assert found.split()[2:] == stock.split()[2:]
    with pytest.raises(TaskError, match="unknown task 'fr'; known tasks: female"):
        asr_align.main([*command, "--task", "fr"])
    with pytest.raises(TaskError, match="no task was chosen"):
        asr_align.main(command)
    with pytest.raises(TaskError, match="exclude each other"):
        asr_align.main([*command, "--task", "female", "--without_task", "true"])


def test_recordings_that_do_not_fit_are_refused(aligner, wave):
    with pytest.raises(DataError, match="8,000 Hz, and the model wants 16,000"):
        aligner(wave, TEXT, fs=8000, task="female")
    with pytest.raises(DataError, match="one channel"):
        aligner(np.stack([wave, wave], 1), TEXT, fs=16000, task="female")


def test_a_model_without_ctc_is_refused(an4, tmp_path):
    config = {
        **BASE_CONFIG,
        "decoder": "transformer",
        "decoder_conf": {"num_blocks": 1, "linear_units": 16, "attention_heads": 2},
        "model_conf": {"ctc_weight": 0.0},
    }
    base = make_base(tmp_path / "base", an4["tokens"], config)
    exp = make_adaptation(tmp_path / "exp", base)
    with pytest.raises(ConfigError, match="this model has no CTC"):
        CTCSegmentation.from_pretrained(str(exp))


def test_help_names_the_options_of_tasks(capsys):
    with pytest.raises(SystemExit):
        asr_align.main(["--help"])
    said = capsys.readouterr().out
    assert "--task" in said and "--asr_train_config" in said


def test_a_missing_package_is_one_line():
    code = (
        "import sys\nsys.modules['ctc_segmentation'] = None\n"
        "import runpy\n"
        "runpy.run_module('espnet_hra.bin.asr_align', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("asr_align: alignment needs")
    assert last.endswith("pip install ctc-segmentation")
