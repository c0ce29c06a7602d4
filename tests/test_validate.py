"""Every way in which the AN4 utterances of the ESPnet wheel can be damaged."""

import argparse
import importlib.metadata
import io
import os
import re
import string
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from espnet_hra.cli import main as espnet_hra
from espnet_hra.commands.validate import main
from espnet_hra.data.checks import check, shapes
from espnet_hra.data.lists import read_entries, write_subset
from espnet_hra.data.problems import Problem, Report
from espnet_hra.data.requirements import (
    INPUT_LAYERS,
    Requirements,
    requirements_from_config,
    subsampled_frames,
)
from espnet_hra.errors import DataError, UserError

RATE = 16000
TOKENS = ["<blank>", "<unk>", "<space>", *string.ascii_uppercase, "<sos/eos>"]
TASKS = ["female", "male"]

#: The utterance that the tests damage; 16,000 samples that say YES.
VICTIM = "an251-fash-b"


@pytest.fixture(scope="module")
def an4(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """The seven utterances as {id: (path of a 16-bit WAV, text, task)}."""
    (archive,) = [
        file.locate()
        for file in importlib.metadata.files("espnet")
        if file.match("egs3/mini_an4/*/downloads.tar.gz")
    ]
    folder = tmp_path_factory.mktemp("an4")
    texts, recordings = {}, {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(".transcription"):
                for line in tar.extractfile(member).read().decode().splitlines():
                    text, utterance = re.fullmatch(r"(.*) \((.*)\)", line).groups()
                    texts[utterance] = re.sub(r"</?s>", "", text).strip()
            elif member.name.endswith(".sph"):
                utterance = Path(member.name).stem
                recordings[utterance] = tar.extractfile(member).read()
    corpus = {}
    for utterance, text in texts.items():
        samples, rate = soundfile.read(io.BytesIO(recordings[utterance]))
        assert rate == RATE
        path = folder / f"{utterance}.wav"
        soundfile.write(path, samples, rate, subtype="PCM_16")
        task = "female" if utterance.split("-")[1].startswith("f") else "male"
        corpus[utterance] = (path, text, task)
        (folder / f"{utterance}.sph").write_bytes(recordings[utterance])
    assert len(corpus) == 7
    return corpus


class Data:
    """A data directory that a test may damage."""

    def __init__(self, folder: Path, corpus: dict[str, tuple]):
        self.folder = folder
        self.original = {utt: path for utt, (path, _, _) in corpus.items()}
        self.audio = {utt: str(path) for utt, (path, _, _) in corpus.items()}
        self.text = {utt: text for utt, (_, text, _) in corpus.items()}
        self.task = {utt: task for utt, (_, _, task) in corpus.items()}

    def damaged_audio(self, suffix: str = ".wav", utterance: str = VICTIM) -> Path:
        """A path of its own for the utterance's recording."""
        path = self.folder / f"{utterance}{suffix}"
        self.audio[utterance] = str(path)
        return path

    def samples(self, utterance: str = VICTIM) -> np.ndarray:
        """The recording as it was."""
        return soundfile.read(self.original[utterance], dtype="float32")[0]

    def write(self) -> None:
        """Write the three lists, sorted."""
        for name, entries in (
            ("wav.scp", self.audio),
            ("text", self.text),
            ("utt2task", self.task),
        ):
            lines = [f"{utt} {entries[utt]}\n" for utt in sorted(entries)]
            (self.folder / name).write_text("".join(lines), encoding="utf-8")

    def path(self, name: str) -> str:
        """The path of a list."""
        return str(self.folder / name)

    def check(self, requirements: Requirements | None = None) -> Report:
        """Check the lists as they stand in the folder."""
        return check(
            self.path("wav.scp"),
            self.path("text"),
            self.path("utt2task"),
            requirements=requirements or config_requirements(),
            jobs=2,
        )


@pytest.fixture
def data(tmp_path: Path, an4: dict[str, tuple]) -> Data:
    """A sound data directory."""
    folder = tmp_path / "data"
    folder.mkdir()
    result = Data(folder, an4)
    result.write()
    return result


def config(**changes) -> dict:
    """A training configuration."""
    return {
        "token_list": TOKENS,
        "token_type": "char",
        "frontend_conf": {"fs": "16k", "hop_length": 160},
        "encoder": "hra_conformer",
        "encoder_conf": {"tasks": TASKS},
        "model_conf": {"ctc_weight": 1.0},
        **changes,
    }


def config_requirements(**changes) -> Requirements:
    return requirements_from_config(config(**changes))


def kinds_of(report: Report, where: str) -> set:
    return {problem.kind for problem in report.problems if problem.where == where}


def assert_reported(report: Report, kind: str, where: str, remedy: str) -> Problem:
    """The problem is there, and people can read it with its remedy."""
    assert not report.ok
    found = [p for p in report.problems if (p.kind, p.where) == (kind, where)]
    assert len(found) == 1, report
    assert remedy.lower() in found[0].remedy.lower()
    for written in (str(report), report.format(limit=None)):
        assert f"{kind}: " in written
        assert f"  {where}: " in written
        assert f"Remedy: {found[0].remedy}" in written
    return found[0]


# ---------------------------------------------------------------------------
# Sound data


def test_good_data(data: Data) -> None:
    report = data.check()
    assert report.ok and not report.bad, str(report)
    assert report.good == sorted(data.audio)
    assert report.utterances == 7
    assert report.samples[VICTIM] == 16000
    assert report.tokens[VICTIM] == 3
    assert str(report) == "The data are fine: 7 of 7 utterances good."


def test_only_audio(data: Data) -> None:
    report = check(data.path("wav.scp"), requirements=Requirements())
    assert report.ok and len(report.samples) == 7 and not report.tokens


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".aiff", ".au", ".w64", ".nist"])
def test_other_formats(data: Data, suffix: str) -> None:
    soundfile.write(data.damaged_audio(suffix), data.samples(), RATE)
    data.write()
    report = data.check()
    assert report.ok and report.samples[VICTIM] == 16000, str(report)


def test_sphere_as_delivered(data: Data) -> None:
    data.audio[VICTIM] = str(data.original[VICTIM].with_suffix(".sph"))
    data.write()
    assert data.check().ok


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_wav_from_a_pipe_is_not_truncated(data: Data, size: int) -> None:
    content = bytearray(data.original[VICTIM].read_bytes())
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    data.damaged_audio().write_bytes(content)
    data.write()
    assert data.check().ok


def test_relative_path_and_spaces(data: Data, monkeypatch) -> None:
    soundfile.write(data.folder / "a recording.wav", data.samples(), RATE)
    monkeypatch.chdir(data.folder)
    data.audio[VICTIM] = "a recording.wav"
    data.write()
    assert data.check().ok


# ---------------------------------------------------------------------------
# Audio


def nothing_there(data: Data) -> None:
    data.audio[VICTIM] = "nowhere/else.wav"


def no_path(data: Data) -> None:
    data.audio[VICTIM] = ""


def no_bytes(data: Data) -> None:
    data.damaged_audio().touch()


def no_samples(data: Data) -> None:
    soundfile.write(data.damaged_audio(), np.zeros(0), RATE)


def truncated(data: Data, suffix: str, keep: float = 0.6) -> None:
    path = data.damaged_audio(suffix)
    soundfile.write(path, data.samples(), RATE)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def truncated_sphere(data: Data) -> None:
    content = data.original[VICTIM].with_suffix(".sph").read_bytes()
    data.damaged_audio(".sph").write_bytes(content[:20000])


def truncated_float_rf64(data: Data) -> None:
    path = data.damaged_audio()
    soundfile.write(path, data.samples(), RATE, format="RF64", subtype="FLOAT")
    path.write_bytes(path.read_bytes()[:-4])


def truncated_in_the_header(data: Data) -> None:
    data.damaged_audio().write_bytes(data.original[VICTIM].read_bytes()[:30])


def all_zero(data: Data) -> None:
    soundfile.write(data.damaged_audio(), np.zeros(RATE), RATE)


def constant(data: Data) -> None:
    soundfile.write(data.damaged_audio(), np.full(RATE, 0.25), RATE)


def nearly_silent(data: Data) -> None:
    noise = np.random.default_rng(0).integers(-1, 2, RATE) / 2**15
    soundfile.write(data.damaged_audio(), noise, RATE)


def stereo(data: Data) -> None:
    both = np.stack([data.samples()] * 2, axis=1)
    soundfile.write(data.damaged_audio(), both, RATE)


def two_files(data: Data) -> None:
    data.audio[VICTIM] = f"{data.original[VICTIM]} {data.original[VICTIM]}"


def telephone(data: Data) -> None:
    soundfile.write(data.damaged_audio(), data.samples()[::2], 8000)


def with_value(data: Data, value: float) -> None:
    samples = data.samples()
    samples[1000:1003] = value
    soundfile.write(data.damaged_audio(), samples, RATE, subtype="FLOAT")


def not_audio(data: Data) -> None:
    data.damaged_audio().write_text("<html>404 Not Found</html>\n")


def folder_for_audio(data: Data) -> None:
    data.damaged_audio().mkdir()


def named_pipe(data: Data) -> None:
    os.mkfifo(data.damaged_audio())


def flac_of_unknown_length(data: Data) -> None:
    path = data.damaged_audio(".flac")
    soundfile.write(path, data.samples(), RATE)
    content = bytearray(path.read_bytes())
    # 36 bits of the STREAMINFO block, which starts at byte 8.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)


def command(data: Data) -> None:
    mark = data.folder / "was_run"
    data.audio[VICTIM] = f"touch {mark}; cat {data.original[VICTIM]} |"


AUDIO_DAMAGE = [
    (nothing_there, "missing audio", "restore the file"),
    (no_path, "missing audio", "wav.scp"),
    (no_bytes, "empty audio", "again from its source"),
    (no_samples, "empty audio", "again from its source"),
    *(
        (partial(truncated, suffix=suffix), "truncated audio", "again from its source")
        for suffix in (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au")
    ),
    (truncated_sphere, "truncated audio", "again from its source"),
    (truncated_float_rf64, "truncated audio", "again from its source"),
    (truncated_in_the_header, "truncated audio", "again from its source"),
    (all_zero, "silent audio", "leave the utterance out"),
    (constant, "silent audio", "leave the utterance out"),
    (nearly_silent, "silent audio", "leave the utterance out"),
    (stereo, "several channels", "mix down: run `espnet-hra format dir out`"),
    (two_files, "several channels", "mix down"),
    (telephone, "sample rate", "resample to 16000 Hz"),
    (partial(with_value, value=np.nan), "not a number", "again from its source"),
    (partial(with_value, value=np.inf), "not a number", "again from its source"),
    (not_audio, "unreadable audio", "espnet-hra format"),
    (folder_for_audio, "unreadable audio", "espnet-hra format"),
    (named_pipe, "unreadable audio", "espnet-hra format"),
    (flac_of_unknown_length, "unreadable audio", "espnet-hra format"),
    (command, "pipe", "format first: run `espnet-hra format dir out --run_pipes"),
]


def name_of(value: object) -> str | None:
    if isinstance(value, partial):
        (argument,) = value.keywords.values()
        return f"{value.func.__name__}{argument}"
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("damage, kind, remedy", AUDIO_DAMAGE, ids=name_of)
def test_damaged_audio(data: Data, damage: Callable, kind: str, remedy: str) -> None:
    damage(data)
    data.write()
    report = data.check()
    problem = assert_reported(report, kind, VICTIM, remedy)
    assert kinds_of(report, VICTIM) == {kind}
    assert report.bad == {VICTIM} and len(report.good) == 6
    assert not (data.folder / "was_run").exists()
    if kind == "missing audio" and data.audio[VICTIM]:
        assert os.getcwd() in problem.detail


def test_every_fault_of_a_recording_is_told(data: Data) -> None:
    samples = np.stack([data.samples()[::2]] * 2, axis=1)
    samples[5] = np.nan
    soundfile.write(data.damaged_audio(), samples, 8000, subtype="FLOAT")
    data.write()
    assert kinds_of(data.check(), VICTIM) == {
        "sample rate",
        "several channels",
        "not a number",
    }


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".aiff", ".au", ".nist"])
def test_random_damage_never_raises(data: Data, suffix: str) -> None:
    random = np.random.default_rng(0)
    path = data.damaged_audio(suffix)
    soundfile.write(path, data.samples()[:4000], RATE)
    sound = path.read_bytes()
    # Headers break in more ways than samples do.
    for reach in [64] * 15 + [len(sound)] * 5:
        broken = bytearray(sound)
        for position in random.integers(0, min(reach, len(sound)), 4):
            broken[position] = random.integers(256)
        path.write_bytes(broken[: random.integers(len(sound) // 2, len(sound) * 2)])
        entries = f"{VICTIM} {path}\n{VICTIM}-ark {path}:0\n"
        (data.folder / "wav.scp").write_text(entries)
        report = check(data.path("wav.scp"), requirements=config_requirements())
        assert report.bad | set(report.good) == {VICTIM, f"{VICTIM}-ark"}


def test_long_recording_is_read_in_blocks(data: Data) -> None:
    samples = np.tile(data.samples(), 40)
    samples[-1] = np.nan
    soundfile.write(data.damaged_audio(), samples, RATE, subtype="FLOAT")
    data.write()
    problem = assert_reported(data.check(), "not a number", VICTIM, "source")
    assert "1 sample of 640,000" in problem.detail


def framed(recording: bytes) -> bytes:
    """A recording as ESPnet's own archives hold it."""
    return b"AUDIO\x04" + len(recording).to_bytes(4, "little") + recording


def archive(data: Data, recording: bytes) -> None:
    """Put a recording behind a key into an archive."""
    path = data.damaged_audio(".ark")
    path.write_bytes(f"{VICTIM} ".encode() + recording)
    data.audio[VICTIM] = f"{path}:{len(VICTIM) + 1}"
    data.write()


@pytest.mark.parametrize("wrap", [bytes, framed])
def test_archive(data: Data, wrap: Callable) -> None:
    wav = data.original[VICTIM].read_bytes()
    archive(data, wrap(wav))
    report = data.check()
    assert report.ok and report.samples[VICTIM] == 16000, str(report)

    archive(data, wrap(wav)[:-1000])
    report = data.check()
    kinds = kinds_of(report, VICTIM)
    assert kinds <= {"truncated audio", "unreadable audio"} and len(kinds) == 1
    assert_reported(report, *kinds, VICTIM, "again from its source")

    archive(data, wrap(wav[:44] + bytes(32000)))
    assert_reported(data.check(), "silent audio", VICTIM, "leave")


def test_archive_with_something_else(data: Data) -> None:
    matrix = b"\x00BFM \x04\x02\x00\x00\x00\x04\x03\x00\x00\x00" + bytes(24)
    archive(data, matrix)
    assert_reported(data.check(), "unreadable audio", VICTIM, "instead of features")
    archive(data, b"\x00Bnonsense")
    assert_reported(data.check(), "unreadable audio", VICTIM, "again")
    # Some readers execute what is pickled in an archive.
    archive(data, b"PKLcos\nmkdir\n(S'was_run'\ntR.")
    assert_reported(data.check(), "unreadable audio", VICTIM, "again")
    assert not Path("was_run").exists()


# ---------------------------------------------------------------------------
# Texts, tasks and lengths


def test_too_short_for_the_subsampling(data: Data) -> None:
    soundfile.write(data.damaged_audio(), data.samples()[8000:8900], RATE)
    data.write()
    report = data.check()
    assert_reported(report, "too short", VICTIM, "leave the utterance out")
    assert kinds_of(report, VICTIM) == {"too short"}


@pytest.mark.parametrize("text, enough", [("A" * 12, True), ("A" * 13, False)])
def test_frames_for_ctc(data: Data, text: str, enough: bool) -> None:
    # 16,000 samples are 101 frames of 10 ms, 24 after conv2d; as many equal letters
    # need a blank between each two of them: 12 need 23 frames, 13 need 25.
    data.text[VICTIM] = text
    data.write()
    report = data.check()
    assert report.ok is enough
    if not enough:
        problem = assert_reported(report, "too few frames", VICTIM, "input_layer")
        assert "24 encoder frames" in problem.detail
        assert "needs 25 for 13 tokens and 12 repeats" in problem.detail
    # An attention decoder has no such limit.
    assert data.check(config_requirements(model_conf={"ctc_weight": 0.0})).ok


def test_frames_are_counted_after_resampling(data: Data) -> None:
    soundfile.write(data.damaged_audio(), data.samples()[::2], 8000)
    data.text[VICTIM] = "A" * 12
    data.write()
    assert kinds_of(data.check(), VICTIM) == {"sample rate"}
    data.text[VICTIM] = "A" * 13
    data.write()
    assert kinds_of(data.check(), VICTIM) == {"sample rate", "too few frames"}


@pytest.mark.parametrize(
    "text, found, remedy",
    [
        ("OUI ÇA VA ÇA", "'Ç' (U+00C7) 2 times", "<unk>"),
        ("yes", "'y', 'e', 's'", "upper case"),
        ("YES 2", "'2'", "spell it"),
        ("A\u200bB", "U+200B", "spell it"),
    ],
)
def test_unknown_tokens(data: Data, text: str, found: str, remedy: str) -> None:
    data.text[VICTIM] = text
    data.write()
    report = data.check()
    assert found in assert_reported(report, "unknown token", VICTIM, remedy).detail
    assert report.unknown_tokens
    assert report.bad == {VICTIM}


def test_decomposed_characters(data: Data) -> None:
    data.text[VICTIM] = "CAFE\u0301"
    data.write()
    requirements = config_requirements(token_list=[*TOKENS, "\u00c9"])
    report = data.check(requirements)
    assert_reported(report, "unknown token", VICTIM, "NFC")
    assert "U+0301" in str(report)


def test_unknown_tokens_are_summed_up(data: Data) -> None:
    data.text = {utt: text.lower() for utt, text in data.text.items()}
    data.write()
    report = data.check()
    assert report.unknown_tokens["e"] == sum("e" in t for t in data.text.values())
    assert "In all: 'e' (U+0065 LATIN SMALL LETTER E) in 5 utterances" in str(report)


def test_tokenizer_that_fails(data: Data) -> None:
    def fail(text: str) -> list:
        raise RuntimeError("no dictionary") if text == "YES" else KeyError(text)

    report = data.check(Requirements(tokenizer=fail, tokens=TOKENS))
    assert_reported(report, "text not split", VICTIM, "g2p")
    assert "RuntimeError: no dictionary" in str(report)


def remove(data: Data, name: str) -> None:
    del getattr(data, name)[VICTIM]


def replace(data: Data, task: str) -> None:
    data.task[VICTIM] = task


def no_text(data: Data) -> None:
    data.text[VICTIM] = " "


@pytest.mark.parametrize(
    "damage, kind, remedy",
    [
        (partial(remove, name="audio"), "text without audio", "add the recording"),
        (partial(remove, name="text"), "audio without text", "add its text"),
        (partial(remove, name="task"), "no task", "and its task"),
        (partial(replace, task=""), "no task", "behind the id"),
        (partial(replace, task="femal"), "unknown task", "Known tasks: female, male."),
        (partial(replace, task="a/b"), "bad task name", "rename the task"),
        (partial(replace, task="two words"), "bad task name", "rename the task"),
        (partial(replace, task="x" * 129), "bad task name", "rename the task"),
        (no_text, "empty text", "write what is said"),
    ],
    ids=name_of,
)
def test_lists(data: Data, damage: Callable, kind: str, remedy: str) -> None:
    damage(data)
    data.write()
    report = data.check()
    assert_reported(report, kind, VICTIM, remedy)
    assert kinds_of(report, VICTIM) == {kind}
    assert report.bad == {VICTIM} and report.utterances == 7
    if kind == "unknown task":
        assert "did you mean 'female'?" in str(report)


def test_task_without_audio(data: Data) -> None:
    data.task["ghost"] = "male"
    data.write()
    assert_reported(data.check(), "task without audio", "ghost", "remove")


def test_text_that_the_cleaner_empties(data: Data) -> None:
    requirements = Requirements(tokenizer=lambda text: list(text.strip("YES")))
    assert_reported(data.check(requirements), "empty text", VICTIM, "write")


def test_any_valid_task_where_the_model_has_no_list(data: Data) -> None:
    data.task[VICTIM] = "new.task-1"
    data.write()
    assert data.check(config_requirements(encoder_conf={})).ok
    report = data.check(config_requirements(encoder_conf={"tasks": []}))
    assert_reported(report, "unknown task", VICTIM, "Known tasks: none.")


def test_recordings_with_segments(data: Data) -> None:
    (data.folder / "segments").write_text("utt rec 0.0 1.0\n")
    remove(data, "audio")
    data.write()
    report = data.check()
    (problem,) = report.problems
    assert problem.kind == "segments" and problem.where.endswith("segments")
    assert "espnet-hra format DIR OUT" in problem.remedy and not report.good


# ---------------------------------------------------------------------------
# The files of the lists


@pytest.mark.parametrize("name", ["wav.scp", "text", "utt2task"])
def test_duplicate_id(data: Data, name: str) -> None:
    path = data.folder / name
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, f"{VICTIM} other"]) + "\n")
    report = data.check()
    problem = assert_reported(report, "duplicate id", VICTIM, "its own id")
    assert f"lines 2, 8 of {path}, with different entries" in problem.detail
    assert kinds_of(report, VICTIM) == {"duplicate id"}
    assert report.bad == {VICTIM}


@pytest.mark.parametrize("identity", ["../up", "a/b", "invisible\u200b", "x" * 241])
def test_bad_id(data: Data, identity: str) -> None:
    for entries in (data.audio, data.text, data.task):
        entries[identity] = entries.pop(VICTIM)
    data.write()
    report = data.check()
    assert [p.kind for p in report.problems] == ["bad id"]
    assert report.bad == {identity}
    written = str(report)
    assert "Rename the utterance" in written and "\u200b" not in written


@pytest.mark.parametrize("name", ["text", "utt2task"])
def test_order(data: Data, name: str) -> None:
    path = data.folder / name
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")
    report = data.check()
    assert_reported(report, "order", str(path), "LC_ALL=C sort")
    assert not report.bad and len(report.good) == 7


@pytest.mark.parametrize("name", ["wav.scp", "text", "utt2task"])
def test_list_that_is_not_there(data: Data, name: str) -> None:
    path = data.folder / name
    path.unlink()
    report = data.check()
    assert_reported(report, "unreadable file", str(path), "correct the path")
    # One problem, not one for each utterance; and none of them can be used.
    assert len(report.problems) == 1
    assert len(report.bad) == 7 and report.good == []
    assert "--skip_bad" not in str(report)


@pytest.mark.parametrize("content", [b"", "an251 x\n".encode("utf-16")])
def test_list_without_lines(data: Data, content: bytes) -> None:
    path = data.folder / "text"
    path.write_bytes(content)
    report = data.check()
    assert [(p.kind, p.where) for p in report.problems] == [
        ("unreadable file", str(path))
    ]
    assert report.good == []


def test_list_that_is_a_folder(data: Data) -> None:
    (data.folder / "text").unlink()
    (data.folder / "text").mkdir()
    assert [p.kind for p in data.check().problems] == ["unreadable file"]


def test_byte_order_mark(data: Data) -> None:
    path = data.folder / "text"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    report = data.check()
    assert_reported(report, "byte order mark", f"{path}:1", "without a byte order mark")
    assert len(report.problems) == 1 and len(report.good) == 7


def test_windows_line_ends(data: Data) -> None:
    path = data.folder / "text"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    report = data.check()
    problem = assert_reported(report, "line ends", f"{path}:1", "LF")
    assert "7 lines" in problem.detail
    assert len(report.problems) == 1 and len(report.good) == 7


def test_latin1_line(data: Data) -> None:
    path = data.folder / "text"
    path.write_bytes(path.read_bytes().replace(b"YES", b"\xc9T\xc9"))
    report = data.check()
    problem = assert_reported(report, "unreadable line", f"{path}:2", "UTF-8")
    assert "0xc9" in problem.detail
    assert len(report.problems) == 1 and report.bad == {VICTIM}


def test_blank_line_and_lone_carriage_return(data: Data) -> None:
    path = data.folder / "text"
    path.write_bytes(path.read_bytes().replace(b"YES", b"YE\rS") + b"\n")
    report = data.check()
    assert_reported(report, "unreadable line", f"{path}:2", "line ends")
    assert_reported(report, "unreadable line", f"{path}:8", "remove the line")
    assert report.bad == {VICTIM} and len(report.good) == 6


# ---------------------------------------------------------------------------
# Agreement with ESPnet


def test_frames_agree_with_espnet() -> None:
    torch = pytest.importorskip("torch")
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
    from espnet2.asr.encoder.contextual_block_conformer_encoder import (
        ContextualBlockConformerEncoder,
    )
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
    from espnet2.asr.frontend.default import DefaultFrontend
    from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
        TooShortUttError,
    )

    def counted(encoder, feats, lengths) -> int:
        try:
            return int(encoder(feats, lengths)[1])
        # The block encoders do not check, and fail within the convolution.
        except (TooShortUttError, RuntimeError):
            return 0

    small = {"output_size": 4, "attention_heads": 1, "linear_units": 4, "num_blocks": 1}
    conformer = partial(ConformerEncoder, 80, macaron_style=False, **small)
    encoders = {
        layer: [conformer(input_layer=layer).eval()]
        for layer in ("conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8", "linear")
    }
    for layer in ("conv2d", "conv2d6", "conv2d8"):
        block = ContextualBlockConformerEncoder(80, input_layer=layer, **small)
        encoders[layer].append(block.eval())
    for layer in ("conv1d1", "conv1d2", "conv1d3"):
        branches = EBranchformerEncoder(
            80,
            output_size=4,
            attention_heads=1,
            cgmlp_linear_units=4,
            linear_units=4,
            num_blocks=1,
            rel_pos_type="latest",
            input_layer=layer,
        )
        encoders[layer] = [branches.eval()]
    # ESPnet's frontend makes no integers for `embed`, and None keeps the frames.
    assert set(encoders) | {"embed", None} == set(INPUT_LAYERS)

    frontends = [
        {},
        {"hop_length": 160, "win_length": 400},
        {"n_fft": 400, "hop_length": 160, "center": False},
    ]
    lengths = [1, 256, 257, 399, 400, *range(512, 3400, 331), 16001]
    for conf in frontends:
        frontend = DefaultFrontend(fs=RATE, n_mels=80, frontend_conf=None, **conf)
        shared = {key: value for key, value in conf.items() if key != "win_length"}
        with torch.no_grad():
            for length in lengths:
                ours = partial(subsampled_frames, length, **shared)
                try:
                    feats = frontend(torch.randn(1, length), torch.tensor([length]))
                except RuntimeError:  # too short to be padded
                    assert all(ours(input_layer=layer) == 0 for layer in INPUT_LAYERS)
                    continue
                assert ours(input_layer=None) == feats[1] == feats[0].shape[1]
                for layer, candidates in encoders.items():
                    for encoder in candidates:
                        theirs = counted(encoder, *feats)
                        assert ours(input_layer=layer) == theirs, (conf, length, layer)


def test_unknown_input_layer() -> None:
    with pytest.raises(ValueError, match="conv3d.*conv2d6"):
        subsampled_frames(16000, input_layer="conv3d")


def test_lists_of_espnet_read_what_is_kept(data: Data, tmp_path: Path) -> None:
    """What the check accepts, ESPnet's iterable data set accepts."""
    pytest.importorskip("torch")
    from espnet2.train.iterable_dataset import IterableESPnetDataset

    remove(data, "task")
    data.write()
    write_subset(data.folder, tmp_path / "kept", data.check().good)
    dataset = IterableESPnetDataset(
        [
            (str(tmp_path / "kept" / name), key, kind)
            for name, key, kind in (
                ("wav.scp", "speech", "sound"),
                ("text", "text", "text"),
                ("utt2task", "task", "text"),
            )
        ],
        preprocess=lambda uid, values: {"speech": values["speech"]},
    )
    assert len(list(dataset)) == 6


# ---------------------------------------------------------------------------
# Configurations


def test_requirements_from_config(tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_text("\n".join(TOKENS) + "\n")
    (tmp_path / "tasks").write_text("female\nmale\n\n")
    named = argparse.Namespace(
        **config(
            token_list=str(tmp_path / "tokens.txt"),
            encoder_conf={"tasks": str(tmp_path / "tasks"), "input_layer": "conv2d6"},
        )
    )
    requirements = requirements_from_config(named)
    assert requirements.sample_rate == 16000
    assert list(requirements.tokens) == TOKENS
    assert requirements.tokenizer("A B") == ["A", "<space>", "B"]
    assert list(requirements.tasks) == TASKS
    assert requirements.frames(16000) == 16
    assert config_requirements().frames(16000) == 24
    assert config_requirements(frontend_conf={}).frames(16000) == 30
    assert config_requirements(frontend_conf={"fs": "8k"}).sample_rate == 8000


@pytest.mark.parametrize(
    "changes",
    [
        {"frontend": "s3prl"},
        {"frontend": None},
        {"input_size": 80},
        {"encoder": "hra_vgg_rnn"},
        {"encoder": None},
        {"encoder_conf": {"input_layer": "conv9d"}},
        {"preencoder": "sinc"},
        {"postencoder": "length_adaptor"},
        {"frontend_conf": {"apply_stft": False}},
    ],
    ids=str,
)
def test_nothing_is_claimed_about_unknown_frames(changes: dict) -> None:
    assert config_requirements(**changes).frames is None


def test_other_tokenizers(tmp_path: Path) -> None:
    words = config_requirements(token_type="word", token_list=["YES", "NO"])
    assert words.tokenizer("YES NO") == ["YES", "NO"]
    assert config_requirements(token_type="hugging_face").tokenizer is None
    assert config_requirements(use_preprocessor=False).tokenizer is None
    symbols = tmp_path / "symbols"
    symbols.write_text("<noise>\n")
    marked = config_requirements(non_linguistic_symbols=str(symbols))
    assert marked.tokenizer("A<noise>") == ["A", "<noise>"]


def test_sentence_pieces(data: Data) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    prefix = data.folder / "bpe"
    (data.folder / "raw").write_text("\n".join(data.text.values()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(data.folder / "raw"),
        model_prefix=str(prefix),
        vocab_size=24,
        model_type="bpe",
        minloglevel=2,
    )
    vocabulary = prefix.with_suffix(".vocab").read_text().splitlines()
    requirements = config_requirements(
        token_type="bpe",
        bpemodel=f"{prefix}.model",
        token_list=[line.split("\t")[0] for line in vocabulary],
    )
    assert data.check(requirements).ok
    data.text[VICTIM] = "YES 7"
    data.write()
    assert_reported(data.check(requirements), "unknown token", VICTIM, "<unk>")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"frontend_conf": {"fs": "fast"}}, "fs: 'fast'"),
        ({"frontend_conf": {"fs": 0}}, "fs: 0"),
        ({"token_list": "nowhere/tokens.txt"}, "token_list: .*nowhere"),
        ({"encoder_conf": {"tasks": "nowhere/tasks"}}, "tasks: .*nowhere"),
        ({"encoder_conf": {"tasks": ["a/b"]}}, "'a/b' is not a task name"),
        ({"model_conf": ["ctc_weight"]}, "model_conf: .* is not keys and values"),
        ({"token_type": "bpe"}, "bpemodel"),
        ({"token_type": "bpe", "bpemodel": "nowhere.model"}, "nowhere.model"),
    ],
)
def test_bad_configurations(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_requirements(**changes)


# ---------------------------------------------------------------------------
# The report and what is written


def test_all_problems_in_one_report(data: Data) -> None:
    victims = sorted(data.audio)
    data.damaged_audio(utterance=victims[0]).touch()
    data.text[victims[1]] = "deux"
    data.task[victims[2]] = "child"
    del data.text[victims[3]]
    data.write()
    report = data.check()
    assert report.bad == set(victims[:4])
    assert report.counts == {
        "audio without text": 1,
        "unknown task": 1,
        "unknown token": 1,
        "empty audio": 1,
    }
    last = str(report).splitlines()[-1]
    assert last.startswith("4 problems of 4 kinds: 3 of 7 utterances good, 4 bad.")
    assert "--skip_bad true" in last


def test_long_reports_are_cut(tmp_path: Path) -> None:
    lines = [f"u{i:03} {tmp_path}/{i}.wav\n" for i in range(150)]
    (tmp_path / "wav.scp").write_text("".join(lines))
    report = check(tmp_path / "wav.scp", requirements=Requirements())
    assert [p.where for p in report.problems] == [line[:4] for line in lines]
    short = report.format()
    assert "missing audio: 150" in short and "  ... and 130 more" in short
    assert "u019" in short and "u020" not in short
    whole = report.format(limit=None)
    assert "u149" in whole and "more" not in whole


def test_progress_is_logged(data: Data, caplog) -> None:
    with caplog.at_level("INFO", logger="espnet_hra.data.recordings"):
        data.check()
    assert "checked 7 of 7 recordings" in caplog.text


def test_write_subset(data: Data, tmp_path: Path) -> None:
    speakers = "".join(f"{utt} {utt[-6:-2]}\n" for utt in reversed(sorted(data.audio)))
    (data.folder / "utt2spk").write_text(speakers)
    keep = ["cen8-fbbh-b", "an253-fash-b", VICTIM, "unheard-of"]
    target = tmp_path / "deep" / "kept"
    target.mkdir(parents=True)
    assert write_subset(data.folder, target, keep) == 3
    assert sorted(os.listdir(target)) == sorted(
        ["wav.scp", "text", "utt2spk", "spk2utt", "utt2task"]
    )
    assert (target / "text").read_text() == (
        "an251-fash-b YES\nan253-fash-b GO\n"
        "cen8-fbbh-b MARCH THIRD NINETEEN TWENTY EIGHT\n"
    )
    assert (target / "spk2utt").read_text() == (
        "fash an251-fash-b an253-fash-b\nfbbh cen8-fbbh-b\n"
    )
    # A list of an earlier run would no longer fit.
    (data.folder / "utt2task").unlink()
    write_subset(data.folder, target, keep[:1])
    assert sorted(os.listdir(target)) == ["spk2utt", "text", "utt2spk", "wav.scp"]


def test_write_subset_never_overwrites_its_source(data: Data) -> None:
    before = (data.folder / "text").read_bytes()
    with pytest.raises(ValueError, match="nothing is overwritten"):
        write_subset(data.folder, data.folder / ".", [VICTIM])
    assert (data.folder / "text").read_bytes() == before


def test_failed_write_changes_nothing(data: Data, tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "kept"
    write_subset(data.folder, target, data.audio)
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def full_disk(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_subset(data.folder, target, [VICTIM])
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_shapes(data: Data) -> None:
    report = data.check()
    found = shapes(report, len(TOKENS))
    assert len(found["speech_shape"]) == len(found["text_shape"]) == 7
    assert found["speech_shape"][1] == f"{VICTIM} 16000"
    assert found["text_shape"][1] == f"{VICTIM} 3,30"
    some = shapes(report, keep=[VICTIM])
    assert some["text_shape"] == [f"{VICTIM} 3"] and len(some["speech_shape"]) == 1
    report.tokens.clear()
    assert shapes(report)["text_shape"] is None


# ---------------------------------------------------------------------------
# Command line


@pytest.fixture
def arguments(data: Data, tmp_path: Path) -> list:
    """The command line for the data, with a report and a folder for what is kept."""
    import yaml

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config()))
    result = [f"--{name.replace('.', '_')}={data.path(name)}" for name in ("wav.scp",)]
    result += [f"--{name}={data.path(name)}" for name in ("text", "utt2task")]
    result += [f"--config={tmp_path / 'config.yaml'}"]
    return [*result, f"--out_dir={tmp_path / 'out'}", f"--report={tmp_path / 'report'}"]


def test_command_line_good(arguments: list, tmp_path: Path) -> None:
    assert main(arguments) == 0
    assert (tmp_path / "report").read_text().startswith("The data are fine")
    assert len((tmp_path / "out" / "wav.scp").read_text().splitlines()) == 7


def test_command_line_refuses(
    data: Data, arguments: list, tmp_path: Path, capsys
) -> None:
    data.task[VICTIM] = "child"
    data.write()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert VICTIM in error and "Known tasks: female, male" in error
    assert str(tmp_path / "report") in error
    assert VICTIM in (tmp_path / "report").read_text()
    assert not (tmp_path / "out").exists()


def test_command_line_skips(
    data: Data, arguments: list, tmp_path: Path, capsys, caplog
) -> None:
    data.damaged_audio().touch()
    (data.folder / "utt2spk").write_text("".join(f"{utt} x\n" for utt in data.audio))
    data.write()
    with caplog.at_level("INFO"):
        assert main([*arguments, "--skip_bad=true"]) == 0
    assert "6 utterances kept, 1 left out" in caplog.text
    assert VICTIM in capsys.readouterr().err
    out = tmp_path / "out"
    lists = ["wav.scp", "text", "utt2task", "utt2spk", "speech_shape", "text_shape"]
    for name in lists:
        lines = (out / name).read_text().splitlines()
        assert [line.split()[0] for line in lines] == sorted(set(data.audio) - {VICTIM})
    assert (out / "text_shape").read_text().splitlines()[1] == "an253-fash-b 2,30"
    assert VICTIM in (data.folder / "wav.scp").read_text()


def test_what_a_task_loses_is_said(data: Data, arguments: list, tmp_path, capsys):
    """A task that lost all is named, whatever else there is."""
    male = [utt for utt, task in data.task.items() if task == "male"]
    female = [utt for utt in data.audio if utt not in male]
    for utterance in [*male, female[0]]:
        data.text[utterance] = ""
    data.write()
    assert main([*arguments, "--skip_bad=true"]) == 0
    said = capsys.readouterr().err
    lines = said[said.index("What the good utterances alone leave") :].splitlines()
    assert lines[1].startswith(f"  male: nothing; all of its {len(male)} utterances")
    assert lines[2] == f"  female: {len(female) - 1} of {len(female)} utterances"
    report = (tmp_path / "report").read_text()
    assert all(line in report for line in lines[:3])
    kept = (tmp_path / "out" / "utt2task").read_text()
    assert "male\n" not in kept.replace("female", "")


def test_command_line_nothing_left(
    data: Data, arguments: list, tmp_path: Path, capsys
) -> None:
    data.audio = {utt: "nowhere" for utt in data.audio}
    data.write()
    assert main([*arguments, "--skip_bad=true"]) == 1
    assert "No utterance is left" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_command_line_faults_of_its_own(
    data: Data, arguments: list, tmp_path: Path, capsys
) -> None:
    scp = f"--wav_scp={data.path('wav.scp')}"
    with pytest.raises(SystemExit):
        main([scp, "--skip_bad=true"])
    assert "--out_dir" in capsys.readouterr().err
    for content in ("[", "just words"):
        (tmp_path / "config.yaml").write_text(content)
        assert main(arguments) == 1
        assert "config.yaml" in capsys.readouterr().err
    assert main([scp, "--config=nowhere.yaml"]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err
    assert main([scp, f"--out_dir={data.folder}"]) == 1
    assert "nothing is overwritten" in capsys.readouterr().err


def test_import_is_quick(data: Data) -> None:
    """Neither the module nor its command line for characters needs torch."""
    code = (
        "import sys, espnet_hra; before = set(sys.modules)\n"
        "from espnet_hra.commands.validate import main\n"
        "from espnet_hra.data.requirements import requirements_from_config\n"
        "requirements_from_config({'token_list': ['A'], 'token_type': 'char'})\n"
        f"assert main(['--wav_scp', {data.path('wav.scp')!r}]) == 0\n"
        "new = set(sys.modules) - before\n"
        "assert not new & {'torch', 'espnet2.tasks.asr', 'transformers'}, new\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_command_line_takes_folders(data: Data, tmp_path: Path, capsys, caplog) -> None:
    for part in ("train", "dev"):
        write_subset(data.folder, tmp_path / "corpus" / part, data.audio)
    assert main([str(data.folder)]) == 0
    assert "The data are fine: 7 of 7" in capsys.readouterr().out
    whole = str(tmp_path / "corpus")
    assert main([whole, "--out_dir", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "train: The data are fine" in out and "dev: The data are fine" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["dev", "train"]
    path = tmp_path / "corpus" / "dev" / "text"
    path.write_text(path.read_text().replace(f"{VICTIM} YES", VICTIM))
    report, none = tmp_path / "report.txt", tmp_path / "none"
    assert main([whole, "--report", str(report), "--out_dir", str(none)]) == 1
    assert not none.exists()  # train alone would be half a corpus
    assert f"dev:\nempty text: 1\n  {VICTIM}" in report.read_text()
    path.unlink()
    caplog.clear()
    assert main([str(path.parent)]) == 0
    assert f"{path.parent}: there is no text in it" in caplog.text
    assert main([str(tmp_path)]) == 1
    assert "there is no wav.scp in it" in capsys.readouterr().err
    for wrong in ([], [whole, "--wav_scp", "list"]):
        with pytest.raises(SystemExit):
            main(wrong)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a 1\nb 2\na 3\n", "list: a: stands in lines 1, 3 of .*different entries"),
        (b"a \xff\n", "list:1: byte 0xff at position 3 is not UTF-8. Convert"),
        (b"", "list: there is no utterance in it"),
        (None, "list: cannot be read: No such file"),
    ],
)
def test_lists_are_read_whole_or_refused(tmp_path: Path, content, message) -> None:
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_entries(tmp_path / "list")


def test_what_changes_no_entry_of_a_list_is_taken(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfb  two words \r\n\na\tx\nc\n")
    found = read_entries(tmp_path / "list")
    assert list(found.items()) == [("b", "two words"), ("a", "x"), ("c", "")]


@pytest.mark.parametrize(
    "command",
    [
        ["validate", "data"],
        ["tasks", "add", "new", "data", "--model", "model"],
        ["train"],
    ],
    ids=lambda command: command[0],
)
def test_skip_bad_takes_a_value_in_every_command(command: list, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        espnet_hra([*command, "--skip_bad", "maybe"])
    assert "argument --skip_bad: invalid str2bool value" in capsys.readouterr().err


def test_what_is_longer_than_whisper_hears_is_a_problem_or_left_out(
    data: Data, tmp_path: Path, capsys
) -> None:
    """Its encoder would hear 30 seconds, and its decoder be taught all the words."""
    for name, seconds in (("long", 30.1), ("whole", 30.0)):
        count = int(16000 * seconds)
        samples = np.random.default_rng(0).integers(-999, 999, count, np.int16)
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000)
    folder = tmp_path / "lists"
    folder.mkdir()
    for name, value in (("wav.scp", "{}/{}.wav"), ("text", "a b")):
        lines = [f"{u} {value.format(tmp_path, u)}\n" for u in ("long", "whole")]
        (folder / name).write_text("".join(lines))
    (tmp_path / "tokens.txt").write_text("a\nb\n")
    config = tmp_path / "config.yaml"
    keys = {"bpemodel": "whisper_en", "token_type": "whisper_en"}
    config.write_text(
        yaml.safe_dump({**keys, "token_list": str(tmp_path / "tokens.txt")})
    )
    requirements = requirements_from_config(yaml.safe_load(config.read_text()))
    assert requirements.longest == 30
    requirements.tokenizer = str.split
    report = check(folder / "wav.scp", folder / "text", requirements=requirements)
    assert report.counts == {"too long": 1} and report.good == ["whole"]
    assert "30.1 s; the model hears 30 s at once" in report.format()
    # Texts that are only compared with may be of any length.
    assert check(folder / "wav.scp", requirements=requirements).ok
    report = check(
        folder / "wav.scp", folder / "text", requirements=requirements, skip_long=True
    )
    assert report.ok and report.good == ["whole"] and report.too_long == ["long"]
    out = tmp_path / "out"
    options = ["--config", config, "--skip_long", "true", "--out_dir", out]
    assert main([str(folder), *map(str, options)]) == 0
    said = capsys.readouterr().out
    assert "left out, as the model hears 30 s at once: 1 utterance (long)" in said
    assert (out / "text").read_text() == "whole a b\n"
