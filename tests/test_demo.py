"""The page `espnet-hra demo` without a browser: what it says, refuses, teaches."""

import contextlib
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from adaptations import make_adaptation, waves

from espnet_hra import cli
from espnet_hra.data.requirements import Requirements
from espnet_hra.demo import learned, sentences, showing
from espnet_hra.demo.learned import Held, Learned
from espnet_hra.demo.lesson import Lesson
from espnet_hra.demo.listening import LONGEST, Ears, Reading
from espnet_hra.demo.privacy import allowed
from espnet_hra.demo.teaching import (
    Progress,
    Settings,
    Stopped,
    TeachingError,
    Training,
    _Reader,
)
from espnet_hra.errors import BaseModelError, DataError, TaskError
from espnet_hra.tasks import file as taskfile


@pytest.fixture(scope="module")
def model(base, tmp_path_factory) -> Path:
    return make_adaptation(tmp_path_factory.mktemp("adapted") / "exp", base)


@pytest.fixture(scope="module")
def ears(model) -> Ears:
    return Ears.open(str(model))


@pytest.fixture(scope="module")
def speech(an4):
    return waves(an4["train"])


@pytest.fixture(scope="module")
def said(an4) -> list[str]:
    lines = (an4["train"] / "text").read_text().splitlines()
    return [line.split(maxsplit=1)[1] for line in lines]


# ---------------------------------------------------------------------------- listening


def test_the_base_and_tasks_read_side_by_side(ears, speech):
    wave = next(iter(speech.values()))
    found = ears.read(wave, ["female", "it.carlo"])
    assert [one.task for one in found] == [None, "female", "it.carlo"]
    speech2text = ears.speech2text
    for one in found:
        with speech2text.model.encoder.use_task(one.task):
            assert one.text == speech2text(wave)[0][0]
    with pytest.raises(TaskError, match="no task 'x' any more; there are: female"):
        ears.read(wave, ["x"])
    assert ears.languages == ()


def test_a_whisper_reads_without_a_task_as_the_server_lets_it():
    """With silence behind what is short; with tasks the recording is as it is."""
    read = []

    class Opened:
        whisper, tasks = SimpleNamespace(least=10), ("a",)
        model = SimpleNamespace(
            encoder=SimpleNamespace(use_task=lambda task: contextlib.nullcontext())
        )

        def __call__(self, wave, task=None):
            read.append((np.shape(wave), task))
            return [["x"]] * len(wave) if task else ["x"]

        def text_of(self, nbest):
            return nbest[0]

        def set_language(self, language):
            pass

    ears = Ears.__new__(Ears)
    ears.speech2text, ears.lock = Opened(), threading.RLock()
    ears.speech2text.train_args = SimpleNamespace()
    found = ears.read(np.ones(4, np.float32), ["a"])
    assert [one.task for one in found] == [None, "a"]
    assert read == [((10,), None), ((1, 4), ["a"])]
    ears.read(np.ones(12, np.float32), [])
    assert read[2:] == [((12,), None)]


def test_tasks_that_cannot_be_used_are_left_out_with_a_reason(ears, model):
    folder = model / "tasks"
    folder.mkdir(exist_ok=True)
    (folder / "damaged.safetensors").write_bytes(b"no task")
    try:
        found, problems = ears.usable(["female", "damaged", "gone", "it.carlo"])
    finally:
        (folder / "damaged.safetensors").unlink()
    assert found == ["female", "it.carlo"] and len(problems) == 2
    assert "damaged.safetensors: not a readable task file" in problems[0]
    assert problems[1].startswith("There is no task 'gone' any more; there are: ")
    assert ears.usable([]) == ([], [])


def write(folder: Path, name: str, samples, rate: int = 16000) -> str:
    path = folder / name
    soundfile.write(path, samples, rate)
    return str(path)


def test_recordings_come_at_the_models_rate(ears, speech, tmp_path):
    wave = next(iter(speech.values()))
    same = ears.wave(write(tmp_path, "a.wav", wave))
    assert np.allclose(same, wave, atol=1e-4)
    other = ears.wave(write(tmp_path, "b.flac", np.stack([wave, wave], 1), 8000))
    assert len(other) == pytest.approx(2 * len(wave), abs=4)


def test_what_is_no_recording_is_told_in_one_line(ears, tmp_path):
    (tmp_path / "poem.wav").write_text("Roses are red")
    (tmp_path / "empty.wav").write_bytes(b"")
    noise = np.random.default_rng(0).normal(0, 0.1, 16000 * (LONGEST + 2))
    bad = {
        "There is no recording yet": None,
        "poem.wav is no audio that can be read": str(tmp_path / "poem.wav"),
        "empty.wav is empty": str(tmp_path / "empty.wav"),
        "gone.wav cannot be read": str(tmp_path / "gone.wav"),
        "no.wav is no audio": write(tmp_path, "no.wav", np.zeros(0)),
        "click.wav is too short": write(tmp_path, "click.wav", noise[:900]),
        "quiet.wav is silent": write(tmp_path, "quiet.wav", np.zeros(16000)),
        r"long.wav is too long \(122 seconds\)": write(tmp_path, "long.wav", noise),
    }
    for message, path in bad.items():
        with pytest.raises(DataError, match=message) as error:
            ears.wave(path)
        assert str(tmp_path) not in str(error.value)  # a path means nothing to people


def test_four_hours_are_refused_before_they_are_decoded(ears, tmp_path, monkeypatch):
    path = tmp_path / "day.flac"
    with soundfile.SoundFile(path, "w", 1000, 1) as file:
        for _ in range(4):
            file.write(np.zeros(1000 * 3600, np.int16))
    monkeypatch.setattr(
        "espnet_hra.demo.listening.read_audio", lambda path: pytest.fail("decoded")
    )
    with pytest.raises(DataError, match=r"too long \(14,400 seconds\)"):
        ears.wave(str(path))


def test_a_model_that_is_broken_or_plain_is_refused(base, model, tmp_path):
    with pytest.raises(TaskError, match="has no adapter.*espnet-hra train"):
        Ears.open(str(base))
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    (broken / "valid.cer_ctc.best.pth").write_bytes(b"no checkpoint")
    with pytest.raises(BaseModelError):
        Ears.open(str(broken))
    with pytest.raises(SystemExit, match=r"^espnet-hra demo: .*broken"):
        pytest.importorskip("gradio")
        cli.main(["demo", str(broken)])


def test_a_model_in_a_zip_is_only_listened_to(ears, model):
    assert ears.teachable == ""
    zipped = Ears("model.zip", ears.found, ears.speech2text)
    assert "model.zip is no folder" in zipped.teachable


# ------------------------------------------------------------------------------ showing


def test_differences_are_marked_and_nothing_becomes_html():
    text = showing.marked("I SEE <b> two", "i saw two boats")
    assert text == (
        'I <del class="hra-gone">saw</del> <ins class="hra-new">SEE &lt;b&gt;</ins> '
        'two <del class="hra-gone">boats</del>'
    )
    assert showing.marked("Yes, go!", "yes go") == "Yes, go!"
    page = showing.readings([Reading(None, "<i>"), Reading("t", "one")])
    assert "<i>" not in page and "<ins" in page and "base (no task)" in page
    page = showing.readings([Reading(None, "two"), Reading("t", "")], "one two")
    assert "50 %" in page and "100 %" in page and "(nothing)" in page
    assert showing.error("<script>").count("<script>") == 0


# ---------------------------------------------------------------------------- sentences


def test_our_sentences_are_many_and_different():
    assert len(sentences.DEFAULT) == len(set(sentences.DEFAULT)) == 30
    letters = set("".join(sentences.DEFAULT).lower())
    assert letters >= set("abcdefghijklmnopqrstuvwxyz")


def test_sentences_of_a_file(tmp_path):
    path = tmp_path / "s.txt"
    path.write_bytes(b"\xef\xbb\xbfOne  two\r\n\r\n Three \n")
    assert sentences.read_sentences(path) == ("One two", "Three")
    path.write_text("\n\n")
    with pytest.raises(DataError, match="there are no sentences in it"):
        sentences.read_sentences(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as a text file"):
        sentences.read_sentences(path)
    path.write_text("a" * 500)
    with pytest.raises(DataError, match="at most 1,000 lines of 400"):
        sentences.read_sentences(path)


def test_a_sentence_is_written_as_the_model_writes():
    def needs(tokens: str) -> Requirements:
        return Requirements(tokens=[*tokens, " "], tokenizer=list)

    text = "It’s café, no. 1!"
    assert sentences.fitted(text, Requirements()) == text  # Whisper's
    assert sentences.fitted("It's so.", needs("itso'")) == "it's so"
    assert sentences.fitted("It's so.", needs("ITSO'")) == "IT'S SO"
    assert sentences.fitted("Café", needs("cafe")) == "cafe"
    assert sentences.fitted("Café", needs("café")) == "café"
    with pytest.raises(DataError, match="'no 1': this model has no tokens for 1"):
        sentences.fitted("no 1", needs("no"))
    assert sentences.folded(text) == "it's café no 1"


# ------------------------------------------------------------------------------- lesson


def lesson_of(folder: Path, texts, count: int | None = None) -> Lesson:
    lesson = Lesson(texts, folder, 16000)
    for number in range(len(texts) if count is None else count):
        lesson.keep(number, np.full(1600, 0.1, np.float32))
    return lesson


def test_what_is_held_out_is_never_learned(tmp_path):
    lesson = lesson_of(tmp_path, sentences.DEFAULT)
    parts = lesson.parts()
    together = [*parts.train, *parts.dev, *parts.test]
    assert sorted(together) == list(range(30))
    assert (len(parts.test), len(parts.dev), len(parts.train)) == (6, 2, 22)
    # A sentence that is recorded later moves no other out of the training.
    smaller = [lesson.smaller(parts, share) for share in (0.25, 0.5)]
    assert [len(one.train) for one in smaller] == [6, 11]
    assert set(smaller[0].train) < set(smaller[1].train) < set(parts.train)
    assert all((one.dev, one.test) == (parts.dev, parts.test) for one in smaller)


def test_a_sentence_that_is_read_twice_is_on_one_side(tmp_path):
    texts = ["one", "One!", "two", "three", "four", "five"]
    parts = lesson_of(tmp_path, texts).parts()
    side = {n: name for name in ("train", "dev", "test") for n in getattr(parts, name)}
    assert side[0] == side[1]
    assert len(parts.test) >= 2


def test_too_few_recordings_are_told(tmp_path):
    lesson = lesson_of(tmp_path, sentences.DEFAULT, 2)
    with pytest.raises(DataError, match="2 different sentences.*3 are needed"):
        lesson.parts()
    lesson.keep(7, np.ones(1600, np.float32))
    parts = lesson.parts()
    assert [len(one) for one in (parts.train, parts.dev, parts.test)] == [1, 1, 1]


def test_recordings_are_kept_in_order_and_forgotten(tmp_path):
    lesson = lesson_of(tmp_path, ["a", "b", "c"], 2)
    assert lesson.recorded == (0, 1)
    assert [lesson.next_open(n) for n in range(3)] == [2, 2, 2]
    path = lesson.recording(0)
    assert soundfile.info(path).samplerate == 16000
    lesson.forget(0)
    lesson.forget(0)
    assert lesson.recorded == (1,) and not path.exists()
    assert lesson.next_open(2) == 0


def test_the_data_are_a_folder_for_tasks_add(tmp_path):
    lesson = lesson_of(tmp_path, list("abcde"))
    parts = lesson.parts()
    folder = lesson.write([*"ABCDE"], parts, "new")
    for part in ("train", "dev", "test"):
        lines = (folder / part / "text").read_text().splitlines()
        numbers = [n + 1 for n in getattr(parts, part)]
        assert lines == [f"sentence{n:04d} {'ABCDE'[n - 1]}" for n in numbers]
        for line in (folder / part / "wav.scp").read_text().splitlines():
            assert Path(line.split(maxsplit=1)[1]).is_file()


# ----------------------------------------------------------------------------- teaching


def test_progress_is_read_off_the_log():
    reader = _Reader(20)
    told = [
        reader.read(line)
        for line in (
            "[host] 2026 (trainer:320) INFO: 2/4epoch started",
            "[host] 2026 (trainer:779) INFO: 2epoch:train:1-10batch: iter_time=1e-4, "
            "forward_time=0.1, loss_att=1, loss=12.345, backward_time=0.2",
            "[host] 2026 (trainer:384) INFO: 2epoch results: [train] loss=3",
            "something else",
        )
    ]
    assert [one and one.text for one in told] == [
        "Epoch 2 of 4",
        "Epoch 2 of 4, update 10 of 20, loss 12.35",
        "Epoch 2 of 4 is done",
        None,
    ]
    shares = [one.share for one in told if one]
    assert shares == sorted(shares) and shares[1] == pytest.approx(0.05 + 0.85 * 0.375)
    assert 'value="37"' in showing.progress(Progress("x", 0.371))


@pytest.fixture
def taught(model, ears, speech, said, tmp_path):
    """A copy of the model, and a lesson with five recordings of real speech."""
    copy = Path(shutil.copytree(model, tmp_path / "exp"))
    lesson = Lesson(said, tmp_path / "lesson", 16000)
    for number, wave in enumerate(speech.values()):
        lesson.keep(number, wave)
    return copy, lesson


@pytest.mark.slow
def test_a_task_is_taught_as_by_tasks_add(taught, said, tmp_path):
    """The same file, byte for byte; and it is measured on what it has not seen."""
    copy, lesson = taught
    parts = lesson.parts()
    data = lesson.write(said, parts, "new")
    settings = Settings(str(copy), seed=3, max_epoch=2)
    told = list(Training().follow(settings.command("new", data)))
    assert told[0].text == "Opening the model" and told[-1] == Progress("Taught", 1.0)
    assert any(one.text.startswith("Epoch 2 of 2") for one in told)
    assert [one.share for one in told] == sorted(one.share for one in told)
    out = tmp_path / "out.safetensors"
    arguments = ["tasks", "add", "new", str(data), "--model", str(copy)]
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--seed", "3", "--max_epoch", "2", "--out", str(out)])
    assert not end.value.code
    file = copy / "tasks" / "new.safetensors"
    assert file.read_bytes() == out.read_bytes()
    ears = Ears.open(str(copy))
    assert "new" in ears.tasks
    found = learned.measure(ears, lesson, parts.test, "new", sentences=2)
    assert [one.said for one in found.held] == [said[n] for n in parts.test]
    before, after = ears.read(ears.wave(str(lesson.recording(parts.test[0]))), ["new"])
    assert (found.held[0].before, found.held[0].after) == (before.text, after.text)
    # What is only measured is not kept.
    os.rename(file, tmp_path / "elsewhere.safetensors")
    other = learned.measure_file(
        ears, lesson, parts.test, tmp_path / "elsewhere.safetensors", sentences=2
    )
    assert other == found and "new" not in ears.tasks
    assert taskfile.read(out).info["scores"][0]["utterances"] == len(parts.dev)


def test_what_goes_wrong_in_a_training_is_told(tmp_path):
    training = Training()
    words = ["tasks", "add", "new", str(tmp_path), "--model", str(tmp_path / "none")]
    with pytest.raises(TeachingError, match="none") as error:
        list(training.follow(words))
    assert "Traceback" not in str(error.value)


def test_a_training_is_stopped_and_another_one_waits(monkeypatch, tmp_path):
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\necho '1/2epoch started'\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    training = Training()
    assert not training.stop()
    progress = training.follow([])
    assert [next(progress).text, next(progress).text][1] == "Epoch 1 of 2"
    with pytest.raises(TeachingError, match="Another task is being taught"):
        list(training.follow([]))
    start = time.monotonic()
    threading.Timer(0.2, training.stop).start()
    with pytest.raises(Stopped, match="nothing has changed"):
        list(progress)
    assert time.monotonic() - start < 10
    assert not training.stop()


# ------------------------------------------------------------------------------ outlook


def test_whether_more_sentences_pay_is_said_with_care():
    def result(sentences: int, wrong: int, count: int = 12) -> Learned:
        """Of `count` sentences, `wrong` are read wrongly."""
        return Learned(
            tuple(
                Held("yes", "no", "no" if i < wrong else "yes") for i in range(count)
            ),
            sentences,
        )

    assert "very likely pay" in learned.outlook([result(5, 12), result(10, 0)])
    assert "Nothing was gained" in learned.outlook([result(5, 3), result(10, 3)])
    assert "have not helped" in learned.outlook([result(5, 3), result(10, 9)])
    few = learned.outlook([result(1, 2, 2), result(2, 1, 2)])
    assert "may pay" in few and "Only 2 sentences were held out" in few
    assert "no curve of so few" in learned.outlook([result(2, 1, 2)])
    assert "is better than the base" in learned.verdict(result(10, 0))
    assert "may be better" in learned.verdict(result(10, 11))
    assert "is no better" in learned.verdict(result(10, 12))
    worse = Learned(tuple(Held("yes", "yes", "no") for _ in range(9)), 10)
    assert "is worse than the base" in learned.verdict(worse)
    page = showing.learned(result(10, 6), "new")
    assert "100.0 % [100.0, 100.0]" in page and "50.0 % [" in page
    assert "Of one sentence there is no interval" in showing.learned(
        result(2, 1, 1), "new"
    )


def test_case_and_signs_are_no_errors():
    found = Learned((Held("Yes, it is.", "yes it is", "YES IT WAS"),), 3)
    before, after, _ = found.rates()
    assert before.value == 0.0 and after.value == pytest.approx(100 / 3)


# ------------------------------------------------------------------------------ privacy


def test_only_the_page_itself_may_ask():
    assert allowed("127.0.0.1:7860", None)
    assert allowed("localhost:7860", "http://localhost:7860")
    assert not allowed("evil.example:7860", None)  # DNS rebinding
    assert not allowed("127.0.0.1:7860", "http://evil.example")
    assert not allowed("127.0.0.1:7860", "null")
    assert not allowed("", None)
