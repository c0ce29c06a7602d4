"""Alignment of texts with recordings, by CTC segmentation with tasks."""

import re
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from adaptations import make_adaptation, waves
from conftest import BASE_CONFIG, make_base
from espnet2.bin import asr_align as stock_align

import espnet_hra
from espnet_hra import cli
from espnet_hra.bin import asr_align
from espnet_hra.bin.python import translate
from espnet_hra.data.audio import resample
from espnet_hra.errors import BaseModelError, ConfigError, DataError, TaskError
from espnet_hra.espnet.alignment import CTCSegmentation

TASKS = ("female", "male")
RATE = 16000


@pytest.fixture(scope="module")
def model(base, tmp_path_factory) -> Path:
    return make_adaptation(tmp_path_factory.mktemp("align") / "exp", base, TASKS)


@pytest.fixture(scope="module")
def aligner(model) -> CTCSegmentation:
    return CTCSegmentation.from_pretrained(str(model))


@pytest.fixture(scope="module")
def recording(an4) -> tuple[np.ndarray, list[str]]:
    """Several utterances in a row, and their text."""
    sounds = waves(an4["train"])
    texts = dict(
        line.split(None, 1) for line in (an4["train"] / "text").read_text().splitlines()
    )
    names = list(sounds)[:3]
    wave = np.concatenate([sounds[name] for name in names])
    return wave, [f"{name} {texts[name]}" for name in names]


@pytest.fixture
def files(recording, tmp_path) -> list[str]:
    """The same as files, as options."""
    wave, text = recording
    soundfile.write(tmp_path / "rec.wav", wave, RATE, subtype="FLOAT")
    (tmp_path / "text").write_text("\n".join(text) + "\n")
    return ["--audio", str(tmp_path / "rec.wav"), "--text", str(tmp_path / "text")]


def options(model: Path) -> list[str]:
    checkpoint = next(model.glob("valid.*.best.pth"))
    return [
        *("--asr_train_config", str(model / "config.yaml")),
        *("--asr_model_file", str(checkpoint)),
    ]


def stock(base: Path, **kwargs) -> stock_align.CTCSegmentation:
    """ESPnet's own, as a subclass of its own: a class's objects share parameters."""
    own = type("Own", (stock_align.CTCSegmentation,), {})
    return own(base / "config.yaml", base / "valid.loss.best.pth", **kwargs)


# ------------------------------------------------------------------------- in Python


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"text_converter": "classic", "gratis_blank": True},
        {"time_stamps": "fixed", "min_window_size": 100},
    ],
)
def test_without_a_task_it_is_espnets_own_result(parameters, base, model, recording):
    wave, text = recording
    wanted = stock(base, **parameters)(wave, text, RATE, "rec")
    aligner = CTCSegmentation.from_pretrained(str(model), **parameters)
    aligner.set_task(None)
    found = aligner(wave, text, RATE, "rec")
    assert str(found) == str(wanted)
    assert np.array_equal(found.lpz, wanted.lpz)
    assert np.array_equal(found.timings, wanted.timings)
    assert found.state_list == wanted.state_list
    assert len(found.segments) == len(text)


def test_a_model_without_adapter_is_aligned_as_by_espnet(base, recording):
    wave, text = recording
    found = CTCSegmentation.from_pretrained(str(base))(wave, text, RATE, "rec")
    assert str(found) == str(stock(base)(wave, text, RATE, "rec"))


@pytest.mark.shows(encoder="conformer", objective="CTC", entrance="align")
def test_each_task_finds_its_own_segments(aligner, model, recording):
    wave, text = recording
    found = {task: str(aligner(wave, text, task=task)) for task in TASKS}
    aligner.set_task(None)
    assert len({*found.values(), str(aligner(wave, text))}) == 3
    other = espnet_hra.CTCSegmentation.from_pretrained(str(model), task="male")
    assert str(other(wave, text)) == found["male"]
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(model), task="male")
    encoded, _ = speech2text._encode([torch.as_tensor(wave)])
    wanted = speech2text.asr_model.ctc.log_softmax(encoded)[0].detach().numpy()
    assert np.array_equal(other.get_lpz(wave), wanted)


def test_two_models_do_not_share_parameters(aligner, model):
    """Nor with ESPnet's class, where objects do."""
    before = stock_align.CTCSegmentation.config.min_window_size
    other = CTCSegmentation.from_pretrained(str(model), min_window_size=123)
    assert aligner.config.min_window_size == 8000 != other.config.min_window_size
    assert stock_align.CTCSegmentation.config.min_window_size == before


def test_recordings_of_other_rates_have_the_same_times(aligner, recording):
    wave, text = recording
    fast = resample(wave, RATE, 48000)
    wanted = np.array(aligner(wave, text, task="male").segments)
    found = np.array(aligner(fast, text, 48000, task="male").segments)
    assert np.abs(found[:, :2] - wanted[:, :2]).max() < 0.2
    again = np.array(aligner(wave, text, task="male").segments)
    assert np.array_equal(again, wanted)  # the other rate is not kept


def test_every_method_aligns(base, recording, tmp_path):
    wave, text = recording
    for name, conf in (
        ("residual", {"rank": 2}),
        ("bitfit", {}),
        ("full", {}),
        ("hra", {"ctc": "task"}),
    ):
        exp = make_adaptation(tmp_path / name, base, TASKS, name, **conf)
        aligner = CTCSegmentation.from_pretrained(str(exp))
        found = {str(aligner(wave, text, task=task)) for task in TASKS}
        aligner.set_task(None)
        assert len({*found, str(aligner(wave, text))}) == 3, name
        assert str(aligner(wave, text)) == str(stock(base)(wave, text))


def test_a_model_with_intermediate_ctc_is_aligned(an4, recording, tmp_path):
    """ESPnet's own class fails on it."""
    conf = {**BASE_CONFIG["encoder_conf"], "interctc_layer_idx": [1]}
    config = {**BASE_CONFIG, "encoder_conf": conf}
    config["model_conf"] = {"ctc_weight": 1.0, "interctc_weight": 0.3}
    base = make_base(tmp_path / "base", an4["tokens"], config)
    exp = make_adaptation(tmp_path / "exp", base, TASKS)
    wave, text = recording
    aligner = CTCSegmentation.from_pretrained(str(exp), task="male")
    assert len(aligner(wave, text).segments) == len(text)


def test_what_is_refused(aligner, recording, model):
    wave, text = recording
    with pytest.raises(TaskError, match="unknown task 'robot'; known tasks: female, m"):
        aligner(wave, text, task="robot")
    fresh = CTCSegmentation.from_pretrained(str(model))
    with pytest.raises(TaskError, match="no task was chosen.*female, male"):
        fresh(wave, text)
    for refuse, message in (
        ([], "nothing in the text of rec to align: give lines of the form NAME WORDS"),
        (["utt1"], "nothing in the text of rec to align"),
        ([*text, "bad ¿¿"], "bad: the model has no token for anything in '¿¿'"),
        ([f"{i} hello" for i in range(999)], "tokens, and the recording .* frames"),
    ):
        with pytest.raises(DataError, match=message):
            aligner(wave, refuse, RATE, "rec", task="male")
    with pytest.raises(DataError, match="100 samples .* is too short for this model"):
        aligner(wave[:100], text, task="male")
    with pytest.raises(DataError, match=r"shape \(5, 2\): expected one channel"):
        aligner(np.zeros((5, 2)), text, task="male")
    with pytest.raises(ConfigError, match="unknown parameter 'tsak' .* known: fs, gra"):
        CTCSegmentation.from_pretrained(str(model), tsak="male")
    tiny = CTCSegmentation.from_pretrained(
        str(model), task="male", min_window_size=2, max_window_size=3
    )
    with pytest.raises(DataError, match="within 3 frames: raise max_window_size"):
        tiny(wave, text)


def test_models_without_ctc_are_refused(an4, tmp_path):
    config = {**BASE_CONFIG, "model_conf": {"ctc_weight": 0.0}}
    config |= {"decoder": "transformer", "decoder_conf": {"num_blocks": 1}}
    base = make_base(tmp_path / "base", an4["tokens"], config)
    with pytest.raises(ConfigError, match="alignment: this model has no CTC .*; train"):
        CTCSegmentation.from_pretrained(str(base))


# ------------------------------------------------------------------- on command lines


def test_the_program_writes_espnets_segments(base, model, files, tmp_path, capsys):
    stock_align.main([*options(base), *files, "--output", str(tmp_path / "stock")])
    asr_align.main(
        [*options(model), *files, "--without_task", "true"]
        + ["--output", str(tmp_path / "ours")]
    )
    wanted = (tmp_path / "stock").read_text()
    assert (tmp_path / "ours").read_text() == wanted
    capsys.readouterr()
    asr_align.main([*options(base), *files, "--print_utt_score", "false"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines] == [
        line.split()[:4] for line in wanted.splitlines()
    ]
    assert all(line.split()[4].isalpha() for line in lines)


def test_the_command_takes_folders_and_lists_of_tasks(
    model, aligner, recording, files, tmp_path, capsys
):
    wave, text = recording
    names = [line.split()[0] for line in text]
    wanted = str(aligner(wave, text, RATE, "rec", task="male"))

    def run(*more: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["align", *files, *more])
        assert not ended.value.code, ended.value.code
        return capsys.readouterr().out

    assert run("--model_tag", str(model), "--task", "male") == wanted
    utt2task = tmp_path / "utt2task"
    for lines in (["rec male"], [f"{name} male" for name in names]):
        utt2task.write_text("\n".join(lines) + "\n")
        assert run(*options(model), "--utt2task", str(utt2task)) == wanted


@pytest.mark.parametrize(
    "more, message",
    [
        (["--task", "robot"], "unknown task 'robot'; known tasks: female, male"),
        (["--task", "male", "--without_task", "true"], "exclude each other: give one"),
        (
            ["--utt2task", "mixed"],
            "the tasks male, female, and a recording .* with one",
        ),
        (["--utt2task", "lacking"], "lacking: has neither rec nor .* add a line"),
        (["--utt2task", "gone"], "gone: cannot be read"),
        (["--token_type", "char"], "--token_type char: the model's configuration says"),
        (["--task", "male", "--fs", "8000"], "--fs 8000: .* has 16,000 Hz; leave"),
        (["--task", "male", "--text", "gone"], "--text gone: cannot be read"),
        (["--task", "male", "--text", "latin"], "--text latin: is not UTF-8 .* iconv"),
        (["--task", "male", "--audio", "gone.wav"], "cannot read gone.wav"),
        (
            ["--task", "male", "--output", "no/seg"],
            "--output no/seg: cannot be written",
        ),
    ],
)
def test_the_command_says_what_is_wrong(
    more, message, model, recording, files, tmp_path, monkeypatch
):
    names = [line.split()[0] for line in recording[1]]
    monkeypatch.chdir(tmp_path)
    mixed = [f"{name} {task}" for name, task in zip(names, ("male", "female", "male"))]
    Path("mixed").write_text("\n".join(mixed) + "\n")
    Path("lacking").write_text(f"{names[0]} male\n")
    Path("latin").write_bytes("utt1 É".encode("latin-1"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["align", *files, *options(model), *more])
    line = str(ended.value.code)
    assert line.startswith("espnet-hra align: ") and "\n" not in line
    assert re.search(message, line), line


def test_no_model_and_models_of_other_espnet_tasks(files, tmp_path):
    with pytest.raises(ConfigError, match="no model is given: give --asr_train_config"):
        asr_align.main(files)
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"encoder": "conformer", "extra_asr_decoder": "transformer"})
    )
    cmd = ["--st_train_config", str(tmp_path / "config.yaml")]
    with pytest.raises(
        BaseModelError, match="task st, for which ESPnet has no .* of asr, s2t_ctc"
    ):
        import_module("espnet_hra.bin.align").main([*files, *cmd])


def test_scripts_of_espnet_reach_our_program():
    words = ["-m", "espnet2.bin.asr_align", "--ngpu", "0"]
    assert translate(words) == ["-m", "espnet_hra.bin.asr_align", "--ngpu", "0"]


def test_help_has_options_of_tasks(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["align", "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for option in ("--task", "--utt2task", "--without_task", "--pretrained_model"):
        assert option in told


def test_a_missing_package_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctc_segmentation", None)  # cannot be imported
    monkeypatch.delitem(sys.modules, "espnet_hra.espnet.alignment")
    with pytest.raises(SystemExit) as ended:
        cli.main(["align", *files, "--model_tag", "no such model"])
    line = str(ended.value.code)
    assert line.startswith("espnet-hra align: alignment computes with ctc-segmentation")
    assert line.endswith("pip install 'espnet-hra[align]'")
