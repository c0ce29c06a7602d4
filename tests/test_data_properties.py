"""Any Kaldi-style folder: all that is wrong is told at once, and the rest goes on.

Folders are made at random of sound and damaged parts, with names that a shell, a
terminal or a table would take for something else.
"""

import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_hra.commands.validate import main
from espnet_hra.data.checks import check
from espnet_hra.data.requirements import Requirements, requirements_from_config

RATE = 16000
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
CONFIG = {
    "token_list": ["<blank>", "<unk>", "<space>", *LETTERS, "<sos/eos>"],
    "token_type": "char",
    "frontend_conf": {"fs": "16k", "hop_length": 160},
    "encoder": "hra_conformer",
    "encoder_conf": {"tasks": ["a", "it.carlo"]},
    "model_conf": {"ctc_weight": 1.0},
}

#: Recordings that can be trained on, and others.
GOOD_AUDIO = ("good.wav", "good.flac", "good.ogg", 'it\'s; $(touch oops) `x` "q".wav')
BAD_AUDIO = (
    "gone.wav",
    "empty.wav",
    "one_sample.wav",
    "stereo.wav",
    "8000.wav",
    "nan.wav",
    "lies.wav",
    "text.wav",
    "cut.wav",
    "cut.flac",
    "cut.ogg",
    "silence.wav",
    "folder.wav",
)
GOOD_TEXT = ("YES", "NO NO", "IT'S")
#: No text, characters that the model does not know, more than the frames can hold.
BAD_TEXT = ("", "\u0416", "A;B|C$(D)", "Y" * 200)
IDS = ("u1", "it's", "a;b", "$(touch${IFS}oops)", "\u00e9-1", "`x`", "'q'", '"w"', "z|")


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    """A folder with all recordings, and with `oops` if a name has reached a shell."""
    folder = tmp_path_factory.mktemp("audio")
    noise = np.random.default_rng(0).normal(0, 0.1, RATE)
    for name in GOOD_AUDIO:
        soundfile.write(folder / name, noise, RATE)
    for suffix in ("wav", "flac", "ogg"):
        content = (folder / f"good.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    (folder / "empty.wav").touch()
    (folder / "folder.wav").mkdir()
    (folder / "text.wav").write_text("YES\n")
    soundfile.write(folder / "one_sample.wav", noise[:1], RATE)
    soundfile.write(folder / "stereo.wav", np.stack([noise, noise], 1), RATE)
    soundfile.write(folder / "8000.wav", noise, 8000)
    soundfile.write(folder / "silence.wav", np.zeros(RATE), RATE)
    broken = noise.copy()
    broken[77] = np.nan
    soundfile.write(folder / "nan.wav", broken, RATE, subtype="FLOAT")
    content = bytearray((folder / "good.wav").read_bytes())
    content[40:44] = struct.pack("<I", 4 * len(content))  # says to be longer
    (folder / "lies.wav").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def requirements() -> Requirements:
    return requirements_from_config(CONFIG)


@dataclass
class Utterance:
    """One utterance: what its lines say, and whether it can be trained on."""

    key: str
    audio: str | None
    text: str | None
    task: str | None

    @property
    def good(self) -> bool:
        return (
            self.audio in GOOD_AUDIO
            and self.text in GOOD_TEXT
            and self.task in ("a", "it.carlo")
        )


def mostly(good, bad):
    """One of the good, or now and then one of the bad."""
    return st.sampled_from([*good] * (2 * len(bad) // len(good) + 1) + [*bad])


def utterances():
    one = st.builds(
        Utterance,
        st.just(""),
        mostly(GOOD_AUDIO, [*BAD_AUDIO, None]),
        mostly(GOOD_TEXT, [*BAD_TEXT, None]),
        mostly(["a", "it.carlo"], ["unknown", "", None]),
    )
    # One that stands in no list is none.
    one = one.filter(lambda u: (u.audio, u.text, u.task) != (None, None, None))
    keys = st.lists(st.sampled_from(IDS), min_size=1, max_size=5, unique=True)
    return keys.flatmap(
        lambda ids: st.tuples(*[one.map(lambda u, k=k: _named(u, k)) for k in ids])
    )


def _named(utterance: Utterance, key: str) -> Utterance:
    return Utterance(key, utterance.audio, utterance.text, utterance.task)


def write(folder: Path, audio: Path, given_: tuple[Utterance, ...]) -> dict[str, bytes]:
    """Write the lists, sorted as Kaldi wants them; their content."""
    folder.mkdir(exist_ok=True)
    lists: dict[str, list[bytes]] = {"wav.scp": [], "text": [], "utt2task": []}
    for one in sorted(given_, key=lambda one: one.key.encode()):
        path = None if one.audio is None else str(audio / one.audio)
        for name, value in (
            ("wav.scp", path),
            ("text", one.text),
            ("utt2task", one.task),
        ):
            if value is not None:
                lists[name].append(f"{one.key} {value}".rstrip().encode() + b"\n")
    content = {name: b"".join(lines) for name, lines in lists.items()}
    for name, lines in content.items():
        (folder / name).write_bytes(lines)
    return content


def checked(folder: Path, requirements: Requirements):
    lists = [folder / name for name in ("wav.scp", "text", "utt2task")]
    return check(*lists, requirements=requirements, jobs=1)


def no_trap(audio: Path) -> bool:
    return not (audio / "oops").exists() and not Path("oops").exists()


QUICK = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(QUICK, max_examples=2000, derandomize=False)


def all_problems_are_told_at_once(audio, requirements, folder, some):
    write(folder, audio, some)
    report = checked(folder, requirements)
    good = {one.key for one in some if one.good}
    assert set(report.good) == (good if any(one.audio for one in some) else set())
    assert report.ok == all(one.good for one in some)
    text = report.format(limit=None)
    if report.tasks:
        assert sum(n for n, _ in report.tasks.values()) == len(report.good)
        for name in report.lost:  # nothing is left of it
            assert not any(o.good and o.task == name for o in some)
            assert f"  {name}: nothing" in text or not report.good
    if any(one.audio is not None for one in some):
        if all(any(getattr(o, part) is not None for o in some) for part in PARTS):
            told = {problem.where for problem in report.problems}
            assert {one.key for one in some if not one.good} <= told, text
    assert not any(c in text for c in "\x1b\r\0")
    assert no_trap(audio)


PARTS = ("audio", "text", "task")


@QUICK
@given(some=utterances())
def test_all_problems_are_told_at_once(audio, requirements, tmp_path_factory, some):
    all_problems_are_told_at_once(
        audio, requirements, tmp_path_factory.getbasetemp() / "lists", some
    )


@pytest.mark.slow
@LONG
@given(some=utterances())
def test_all_problems_of_many_folders_are_told(
    audio, requirements, tmp_path_factory, some
):
    all_problems_are_told_at_once(
        audio, requirements, tmp_path_factory.getbasetemp() / "lists", some
    )


@st.composite
def mangled(draw):
    """What editors, other systems and accidents make of a list."""
    kind = draw(
        st.sampled_from(
            ["bom", "crlf", "tabs", "utf-16", "latin-1", "cut", "double", "shuffled"]
            + ["byte", "blank", "nul", "spaces", "nothing"]
        )
    )
    where = draw(st.floats(0, 0.999))
    byte = draw(st.integers(0, 255))

    def change(content: bytes) -> bytes:
        at = int(where * len(content))
        lines = content.splitlines(keepends=True)
        return {
            "bom": lambda: b"\xef\xbb\xbf" + content,
            "crlf": lambda: content.replace(b"\n", b"\r\n"),
            "tabs": lambda: content.replace(b" ", b"\t"),
            "utf-16": lambda: content.decode().encode("utf-16"),
            "latin-1": lambda: content.replace(b"Y", b"\xc9"),
            "cut": lambda: content[:at],
            "double": lambda: content + content[at:],
            "shuffled": lambda: b"".join(reversed(lines)),
            "byte": lambda: content[:at] + bytes([byte]) + content[at + 1 :],
            "blank": lambda: content[:at] + b"\n" + content[at:],
            "nul": lambda: content[:at] + b"\0" + content[at:],
            "spaces": lambda: content.replace(b" ", b"   "),
            "nothing": lambda: b"",
        }[kind]()

    return draw(st.sampled_from(["wav.scp", "text", "utt2task"])), change


def what_is_kept_is_sound(audio, requirements, config, folder, some, changes):
    content = write(folder, audio, some)
    for name, change in changes:
        content[name] = change(content[name])
        (folder / name).write_bytes(content[name])
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = [str(folder), "--config", str(config), "--jobs", "1"]
    words += ["--skip_bad", "true", "--out_dir", str(out)]
    report = checked(folder, requirements)
    status = main(words)
    assert status == (0 if report.good else 1)
    assert out.exists() == bool(report.good)
    if report.good:
        kept = checked(out, requirements)
        assert kept.ok and kept.good == report.good, str(kept)
    for name, lines in content.items():
        assert (folder / name).read_bytes() == lines  # never written to
    assert no_trap(audio)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    import yaml

    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@QUICK
@given(some=utterances(), changes=st.lists(mangled(), max_size=2))
def test_skip_bad_goes_on_with_what_is_sound(
    audio, requirements, config, tmp_path_factory, some, changes
):
    folder = tmp_path_factory.getbasetemp() / "mangled"
    what_is_kept_is_sound(audio, requirements, config, folder, some, changes)


@pytest.mark.slow
@LONG
@given(some=utterances(), changes=st.lists(mangled(), max_size=3))
def test_skip_bad_goes_on_with_what_is_sound_of_many_folders(
    audio, requirements, config, tmp_path_factory, some, changes
):
    folder = tmp_path_factory.getbasetemp() / "mangled"
    what_is_kept_is_sound(audio, requirements, config, folder, some, changes)


def test_a_second_of_every_rate_and_number_of_channels(audio, requirements, tmp_path):
    """Rates and channels that the model does not take are told by what they are."""
    noise = np.random.default_rng(0).normal(0, 0.1, (48000, 8))
    wrong = {}
    for rate in (8000, 11025, 16000, 22050, 44100, 48000):
        for channels in (1, 2, 6, 8):
            key = f"u{rate}-{channels}"
            soundfile.write(tmp_path / f"{key}.wav", noise[:rate, :channels], rate)
            wrong[key] = (rate != 16000) + (channels != 1)
    for name, text in (("wav.scp", "{0}/{1}.wav"), ("text", "YES"), ("utt2task", "a")):
        lines = [f"{key} {text.format(tmp_path, key)}\n" for key in sorted(wrong)]
        (tmp_path / name).write_text("".join(lines))
    report = checked(tmp_path, requirements)
    assert report.good == ["u16000-1"]
    for key, count in wrong.items():
        assert sum(p.where == key for p in report.problems) == count, key


def test_long_names_and_many_utterances_stay_readable(audio, requirements, tmp_path):
    some = tuple(
        Utterance(f"u{i:05d}", BAD_AUDIO[i % 3], "YES", "a") for i in range(300)
    )
    write(tmp_path / "data", audio, some)
    text = str(checked(tmp_path / "data", requirements))
    assert len(text.splitlines()) < 100 and "and 80 more" in text
