"""Generic parts of data preparation: text clean-up, splits, Kaldi folders.

Nothing here knows a particular corpus, so that any folder of recordings with
transcripts can be prepared with it.
"""

import contextlib
import errno
import os
import re
import sys
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from espnet_hra.data.lists import by_speaker, write_lists
from espnet_hra.data.requirements import frames_for_ctc, subsampled_frames
from espnet_hra.data.sentences import position
from espnet_hra.errors import UserError, disk_is_full
from espnet_hra.files.tables import aligned

#: Characters that people and word processors put where an apostrophe belongs.
APOSTROPHES = "\u2019\u2018\u201b\u02bc\u02bb\u02b9\u2032\u00b4`\uff07"

#: Signs that are read out, each language in its own way, beside currencies.
SPOKEN_SIGNS = "#%&*+=@\u00a7\u00b0\u00d7\u00f7"

_TO_APOSTROPHE = str.maketrans({char: "'" for char in APOSTROPHES})
_INSIDE_WORDS = str.maketrans({"\u00b7": None, "\u00ad": None})
_LONE_APOSTROPHE = re.compile(r"(?<!\S)'+(?!\S)")
_BRACKETED = re.compile(r"\[[^\]]*\]|<[^>]*>|\([^)]*\)|\{[^}]*\}")
_BRACKET = re.compile(r"[\[\]<>(){}]")
_LOST_LETTER = re.compile(r"\ufffd|\?(?=\s*(\w))")

#: The names of the splits, in the order of every table.
SPLITS = ("train", "dev", "test")


class CorpusError(UserError):
    """A preparation that cannot go on; its message is for the user."""


@dataclass(frozen=True)
class Utterance:
    """One utterance that is ready to be written.

    Attributes:
        utt_id: Its id; begins with the speaker, so that sorting by id sorts
            by speaker too.
        speaker: The speaker.
        task: The task (a voice, a language, a domain).
        text: The transcript, cleaned up.
        audio: The audio file.
        samples: The length of the audio, in samples at 16 kHz.
    """

    utt_id: str
    speaker: str
    task: str
    text: str
    audio: str
    samples: int

    @property
    def seconds(self) -> float:
        """The duration."""
        return self.samples / 16000


class Dropped:
    """Counts what was left out, by group (task, language) and by reason."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter] = defaultdict(Counter)

    def add(self, group: str, reason: str, count: int = 1) -> None:
        """Count utterances that were left out."""
        self._counts[reason][group] += count

    def total(self) -> int:
        """The number of utterances left out."""
        return sum(sum(counter.values()) for counter in self._counts.values())

    def table(self, groups: Sequence[str]) -> str:
        """What was left out as a text table, a line for each reason.

        Args:
            groups: The groups, in the order of the columns.
        """
        rows = [["left out because", *groups, "all"]]
        for reason, counter in self._counts.items():
            counts = [counter[group] for group in groups]
            rows.append([reason, *map(str, counts), str(sum(counts))])
        return "\n".join(aligned(rows))


def clean_text(text: str) -> str:
    """Reduce a transcript to lower-case letters, apostrophes and spaces.

    The text comes out in Unicode NFC. Typographic apostrophes become plain
    ones; those that touch no letter go. Everything that is neither a letter
    (or a mark on one) nor an apostrophe becomes a space, digits included: use
    ``has_numerals`` first. Catalan's middle dot and soft hyphens, which stand
    inside of words, vanish.

    Args:
        text: The transcript as it came.

    Returns:
        The cleaned text, which may be empty.
    """
    text = text.translate(_TO_APOSTROPHE).translate(_INSIDE_WORDS).lower()
    text = unicodedata.normalize("NFC", text)
    kept = (
        char if char == "'" or unicodedata.category(char)[0] in "LM" else " "
        for char in text
    )
    return " ".join(_LONE_APOSTROPHE.sub(" ", "".join(kept)).split())


def _has_digits(text: str) -> bool:
    """Whether a text has digits of any script, or fractions and the like."""
    return any(unicodedata.category(char)[0] == "N" for char in text)


def has_numerals(text: str) -> bool:
    """Whether a transcript has digits or signs, whose spoken form is not known.

    Args:
        text: The transcript as it came.
    """
    return _has_digits(text) or any(
        char in SPOKEN_SIGNS or unicodedata.category(char) == "Sc" for char in text
    )


def has_lost_letters(text: str) -> bool:
    """Whether letters were replaced by question marks, as in ``pu? essere``.

    A question mark that ends a question is followed by the end of the text or
    by a capital letter.

    Args:
        text: The transcript as it came.
    """
    for match in _LOST_LETTER.finditer(text):
        following = match.group(1)
        if following is None or following.islower():
            return True
    return False


def strip_brackets(text: str) -> str:
    """Remove what stands in brackets, if it is no words.

    ``at [@]`` becomes ``at``, and a text that is all in brackets (the
    description of a sound) becomes empty. Words in brackets beside words
    outside of them may have been spoken or not: nobody can tell.

    Args:
        text: The transcript as it came.

    Returns:
        The text without brackets.

    Raises:
        ValueError: If there are words both inside and outside of brackets, or
            if a bracket has no partner.
    """
    outside = _BRACKETED.sub(" ", text)
    if _BRACKET.search(outside):
        raise ValueError("a bracket without a partner")
    if clean_text(outside):
        for match in _BRACKETED.finditer(text):
            if clean_text(match.group()) or _has_digits(match.group()):
                raise ValueError("words in brackets")
    return outside


@dataclass(frozen=True)
class Split:
    """A split by sentence that new data do not reshuffle.

    A sentence is in the test set if its position lies in [0, test), in the
    dev set if it lies in [dev_start, dev_start + dev), else in training. With
    the same ``dev_start`` a corpus with smaller shares holds out a subset of
    the sentences that one with larger shares holds out.

    Attributes:
        test: The share of the test set.
        dev: The share of the dev set.
        dev_start: Where the dev set begins, at least ``test``.
    """

    test: float
    dev: float
    dev_start: float

    def __post_init__(self) -> None:
        """Check the shares."""
        if not 0 <= self.test <= self.dev_start <= self.dev_start + self.dev <= 1:
            raise ValueError(f"overlapping or negative shares: {self}")

    def __call__(self, text: str) -> str:
        """The split of a cleaned text."""
        place = position(text)
        if place < self.test:
            return "test"
        if self.dev_start <= place < self.dev_start + self.dev:
            return "dev"
        return "train"


def fits_ctc(text: str, samples: int) -> bool:
    """Whether CTC can align a text to audio, after frames of 10 ms and `conv2d`.

    Args:
        text: A cleaned text.
        samples: The length of the audio at 16 kHz.
    """
    frames = subsampled_frames(samples, hop_length=160)
    return frames >= max(1, frames_for_ctc(text))


def implausible_rates(
    utterances: Sequence[Utterance],
    fastest: float = 1.75,
    slowest: float = 0.33,
    least: int = 10,
) -> dict[str, str]:
    """Find utterances whose text is too long or too short for their audio.

    That is the trace of a transcript edited after the recording. Every
    speaker is compared with the median of the speaker's own rates.

    Args:
        utterances: The utterances.
        fastest: Rates above this many times the median are too fast.
        slowest: Rates below this many times the median are too slow.
        least: Texts with fewer characters say little about a speaker's rate:
            they count for no median and are never too slow.

    Returns:
        The reasons by utterance id, of the implausible ones only.
    """
    by_speaker: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance.speaker].append(utterance)
    reasons = {}
    for spoken in by_speaker.values():
        rates = {u.utt_id: len(u.text) / u.seconds for u in spoken}
        usual = [rates[u.utt_id] for u in spoken if len(u.text) >= least]
        if not usual:
            continue
        middle = median(usual)
        for utterance in spoken:
            ratio = rates[utterance.utt_id] / middle
            if ratio > fastest:
                reasons[utterance.utt_id] = "implausibly fast"
            elif ratio < slowest and len(utterance.text) >= least:
                reasons[utterance.utt_id] = "implausibly slow"
    return reasons


def safe_name(name: str) -> str:
    """A name as part of an utterance id: plain ASCII, no slash or space."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name.replace("/", "-"))


def remedy_for(error: OSError) -> str:
    """What to do about a file that cannot be written or read.

    Args:
        error: What happened.
    """
    if disk_is_full(error) or error.errno == errno.EFBIG:
        return "make room on the disk, then run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a folder that can be written, and run the same command again"
    return "run the same command again"


@contextlib.contextmanager
def one_line(*expected: type[Exception]) -> Iterator[None]:
    """Let a program end with one line and status 1 where something went wrong.

    Args:
        expected: Errors whose message is enough, besides :class:`UserError`.
    """
    try:
        yield
    except OSError as error:
        sys.exit(f"error: {error}; {remedy_for(error)}: it goes on from here")
    except BrokenProcessPool:
        sys.exit(
            "error: a conversion process was killed, perhaps for want of memory; run "
            "the same command with --nj 1: it goes on from here"
        )
    except (UserError, *expected) as error:
        sys.exit(f"error: {error}")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name at the end of a block that succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as temporary:
        inner = Path(temporary) / folder.name
        inner.mkdir()
        yield inner
        os.replace(inner, folder)


def write_kaldi_dir(folder: Path, utterances: Iterable[Utterance]) -> None:
    """Write wav.scp, text, utt2spk, spk2utt and utt2task of one data set.

    All files are sorted as ``LC_ALL=C sort`` does (code points and UTF-8
    bytes sort alike).

    Args:
        folder: The folder, made if need be.
        utterances: The utterances, in any order.

    Raises:
        CorpusError: If two utterances have the same id, or one's id does not
            begin with its speaker.
    """
    ordered = sorted(utterances, key=lambda utterance: utterance.utt_id)
    for number, utterance in enumerate(ordered):
        if number and ordered[number - 1].utt_id == utterance.utt_id:
            raise CorpusError(f"{folder}: two utterances {utterance.utt_id}")
        if not utterance.utt_id.startswith(f"{utterance.speaker}-"):
            raise CorpusError(
                f"{folder}: the id {utterance.utt_id} does not begin with the "
                f"speaker {utterance.speaker}"
            )
    speakers = {u.utt_id: u.speaker for u in ordered}
    write_lists(
        folder,
        {
            "wav.scp": [f"{u.utt_id} {u.audio}" for u in ordered],
            "text": [f"{u.utt_id} {u.text}" for u in ordered],
            "utt2spk": [f"{u.utt_id} {u.speaker}" for u in ordered],
            "utt2task": [f"{u.utt_id} {u.task}" for u in ordered],
            "spk2utt": by_speaker(speakers),
        },
    )


def summary(sets: Mapping[str, Sequence[Utterance]]) -> str:
    """The utterances and minutes of each task in each split as a text table.

    Args:
        sets: The utterances by name of the split.
    """
    totals: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    tasks = sorted({u.task for utterances in sets.values() for u in utterances})
    for name, utterances in sets.items():
        for utterance in utterances:
            for task in (utterance.task, "all"):
                total = totals[name, task]
                total[0] += 1
                total[1] += utterance.seconds / 60
    rows = [["utterances / minutes", *sets]]
    for task in [*tasks, "all"]:
        cells = [totals[name, task] for name in sets]
        rows.append([task, *(f"{count} / {length:.1f}" for count, length in cells)])
    return "\n".join(aligned(rows))
