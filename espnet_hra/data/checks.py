"""The check of Kaldi-style data before training.

One unreadable recording ends an ESPnet epoch hours after its start, and from a text
with more tokens than CTC has frames for nothing is learned, in silence. So everything
is read once before: the lists, every recording in full, the texts and the tasks. All
problems come in one report, each with its utterance (or file and line) and a remedy.
The bad utterances can be left out, and what was measured on the way is written as the
shape files that ESPnet's batch sampler wants.

    python -m espnet_hra.data.checks --config exp/train/config.yaml \\
        --wav_scp data/train/wav.scp --text data/train/text \\
        --utt2task data/train/utt2task \\
        --skip_bad true --out_dir dump/train --report exp/train/data_report.txt
"""

import argparse
import difflib
import functools
import itertools
import logging
import math
import os
import re
import stat
import sys
import time
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import (
    Any,
    BinaryIO,
    NamedTuple,
    Union,
)

import numpy as np
import soundfile

from espnet_hra.names import TASK_NAME, listing

PathLike = Union[str, "os.PathLike[str]"]

logger = logging.getLogger(__name__)

#: A recording whose loudest sample is below this is called silent (-80 dBFS; a 16-bit
#: recording of nothing but dither stays below, whispered speech does not).
SILENT_PEAK = 1e-4

#: The time-axis convolutions (kernel size, stride) of ESPnet's input layers.
INPUT_LAYERS: dict[str | None, tuple[tuple[int, int], ...]] = {
    "conv2d": ((3, 2), (3, 2)),
    "conv2d1": ((3, 1), (3, 1)),
    "conv2d2": ((3, 2), (3, 1)),
    "conv2d6": ((3, 2), (5, 3)),
    "conv2d8": ((3, 2), (3, 2), (3, 2)),
    "conv1d1": ((3, 1), (3, 1)),
    "conv1d2": ((3, 1), (3, 2)),
    "conv1d3": ((3, 1), (5, 3)),
    "linear": (),
    "embed": (),
    None: (),
}

#: The encoders whose ``input_layer`` means what :data:`INPUT_LAYERS` says.
_ENCODERS = {
    "branchformer",
    "conformer",
    "contextual_block_conformer",
    "contextual_block_transformer",
    "e_branchformer",
    "longformer",
    "multiconv_conformer",
    "transformer",
    "transformer_multispkr",
}

#: The lists of a data directory, in the order in which they are written.
_LISTS = ("wav.scp", "text", "utt2spk", "spk2utt", "utt2task")

#: A WAV header that claims more than this was written to a pipe, by a program that
#: could not go back to fill in the length (sox leaves 0x7FFFF..., FFmpeg 0xFFFFFFFF).
_UNKNOWN_SIZE = 0x7FFF0000

_BLOCK = 1 << 18  # samples read at once: long recordings need no more memory
_ARK_ENTRY = re.compile(r"(?P<path>.+):(?P<offset>\d+)")
_SECONDS_BETWEEN_MESSAGES = 5.0


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the data.

    Attributes:
        kind: What sort of problem, e.g. ``"missing audio"``.
        where: The utterance id, or ``file:line`` where no utterance is known.
        detail: What was found, and what is expected.
        remedy: What the user can do.
    """

    kind: str
    where: str
    detail: str
    remedy: str


@dataclass
class Requirements:
    """What the model needs of its data; None claims nothing.

    Attributes:
        sample_rate: The sampling rate in Hz.
        tokenizer: Splits a text into tokens.
        tokens: The token list of the model.
        frames: The number of encoder frames for a number of samples, 0 if they are
            too few for the subsampling.
        tasks: The tasks of the model; None accepts every valid name.
        ctc: Whether a CTC loss is computed, which needs a frame for every token and
            one between two equal ones.
    """

    sample_rate: int = 16000
    tokenizer: Callable[[str], list[str]] | None = None
    tokens: Collection[str] | None = None
    frames: Callable[[int], int] | None = None
    tasks: Collection[str] | None = None
    ctc: bool = True


@dataclass
class Report:
    """What the check found.

    Attributes:
        problems: Everything that is wrong.
        utterances: The number of distinct ids in all lists.
        samples: The length in samples of every good utterance.
        tokens: The number of tokens of every good utterance with a text.
        bad: The utterances that cannot be trained on.
        unknown_tokens: For every token that the model does not know, the number of
            utterances that have it.
    """

    problems: list[Problem] = field(default_factory=list)
    utterances: int = 0
    samples: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    unknown_tokens: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def good(self) -> list[str]:
        """The utterances that can be trained on, sorted."""
        return sorted(self.samples)

    @property
    def counts(self) -> dict[str, int]:
        """The number of problems of every kind, in order of first appearance."""
        return dict(Counter(problem.kind for problem in self.problems))

    def format(self, limit: int | None = 20) -> str:
        """Write the report for people.

        Args:
            limit: How many problems of a kind to write out; None for all.

        Returns:
            Lines of text: the problems by kind, each with where it is and what was
            found, their remedies, and the totals.
        """
        lines: list[str] = []
        for kind, count in self.counts.items():
            lines.append(f"{kind}: {count:,}")
            if kind == "unknown token":
                lines.append(f"  In all: {self._unknown_tokens(limit)}.")
            left = count if limit is None else limit
            by_remedy: dict[str, list[Problem]] = {}
            for problem in self.problems:
                if problem.kind == kind:
                    by_remedy.setdefault(problem.remedy, []).append(problem)
            for remedy, problems in by_remedy.items():
                shown, left = problems[:left], max(0, left - len(problems))
                for problem in shown:
                    lines.append(f"  {problem.where}: {problem.detail}")
                if len(shown) < len(problems):
                    lines.append(f"  ... and {len(problems) - len(shown):,} more")
                lines.append(f"  Remedy: {remedy}")
            lines.append("")
        lines.append(self.summary())
        # An id or a path may hold control characters, which a terminal would obey.
        return "\n".join(map(_printable, lines))

    def summary(self) -> str:
        """The totals, in one line."""
        fine = f"{len(self.samples):,} of {_number(self.utterances, 'utterance')} good"
        if self.ok:
            return f"The data are fine: {fine}."
        line = (
            f"{_number(len(self.problems), 'problem')} of "
            f"{_number(len(self.counts), 'kind')}: {fine}, {len(self.bad):,} bad."
        )
        if self.samples:
            line += " Repair them, or train on the good ones only: --skip_bad true."
        return line

    def __str__(self) -> str:
        return self.format()

    def _unknown_tokens(self, limit: int | None) -> str:
        counts = sorted(self.unknown_tokens.items(), key=lambda item: (-item[1], item))
        shown = ", ".join(
            f"{_describe(token, named=True)} in {_number(count, 'utterance')}"
            for token, count in counts[:limit]
        )
        more = 0 if limit is None else len(counts) - limit
        return f"{shown}, ... and {more:,} more" if more > 0 else shown


def check(
    wav_scp: PathLike,
    text: PathLike | None = None,
    utt2task: PathLike | None = None,
    *,
    requirements: Requirements,
    jobs: int | None = None,
) -> Report:
    """Check the lists of a data directory and all that they name.

    Args:
        wav_scp: The list of the recordings: a path that soundfile reads (relative to
            the working directory, as for ESPnet) or ``file.ark:offset``.
        text: The list of the texts, if there is one.
        utt2task: The list of the tasks, if there is one.
        requirements: What the model needs.
        jobs: The number of recordings to read at once; by default one for each CPU
            that may be used, at most eight.

    Returns:
        All problems, and the lengths of what is good. Bad data never raise.
    """
    report = Report()
    problems, bad = report.problems, report.bad
    audio_list = _read_list(wav_scp, problems, bad)
    text_list = None if text is None else _read_list(text, problems, bad)
    task_list = None if utt2task is None else _read_list(utt2task, problems, bad)
    lists = [entry for entry in (audio_list, text_list, task_list) if entry is not None]

    utterances = sorted(set().union(*(entry.ids for entry in lists)))
    report.utterances = len(utterances)
    if not all(entry.usable for entry in lists):
        # Without one of its lists no utterance is whole, but one line says so.
        bad.update(utterances)

    def tell(kind: str, utterance: str, detail: str, remedy: str) -> None:
        problems.append(Problem(kind, utterance, detail, remedy))
        bad.add(utterance)

    _check_ids(utterances, tell)
    _check_partners(audio_list, text_list, task_list, tell)
    for other in lists[1:]:
        problems.extend(_order_problems(audio_list, other))
    if task_list is not None:
        _check_tasks(task_list, requirements.tasks, tell)
    tokens: dict[str, list[str]] = {}
    if text_list is not None:
        tokens = _check_texts(text_list, requirements, report, tell)

    samples: dict[str, int] = {}
    for utterance, found in _read_all(audio_list.entries, requirements, jobs):
        for problem in found.problems:
            tell(problem.kind, utterance, problem.detail, problem.remedy)
        if found.samples:
            samples[utterance] = found.samples
            _check_length(utterance, found.samples, tokens, requirements, tell)

    for utterance, length in samples.items():
        if utterance not in bad:
            report.samples[utterance] = length
            if utterance in tokens:
                report.tokens[utterance] = len(tokens[utterance])
    return report


def subsampled_frames(
    n_samples: int,
    *,
    hop_length: int = 128,
    n_fft: int = 512,
    center: bool = True,
    input_layer: str | None = "conv2d",
) -> int:
    """The number of frames that ESPnet's default frontend and an encoder make.

    Args:
        n_samples: The number of samples.
        hop_length: ``frontend_conf: hop_length``.
        n_fft: ``frontend_conf: n_fft``.
        center: ``frontend_conf: center``.
        input_layer: ``encoder_conf: input_layer``.

    Returns:
        The number of encoder frames, 0 if ESPnet would refuse so few samples.

    Raises:
        ValueError: If the input layer is unknown.
    """
    if input_layer not in INPUT_LAYERS:
        known = ", ".join(str(name) for name in INPUT_LAYERS)
        raise ValueError(f"unknown input_layer {input_layer!r}; known: {known}")
    pad = n_fft // 2 if center else 0
    # The padding mirrors the signal, which must be longer than what is mirrored.
    if n_samples <= pad or n_samples + 2 * pad < n_fft:
        return 0
    frames = (n_samples + 2 * pad - n_fft) // hop_length + 1
    for kernel, stride in INPUT_LAYERS[input_layer]:
        if frames < kernel:
            return 0
        frames = (frames - kernel) // stride + 1
    return frames


def requirements_from_config(
    args: Mapping[str, Any] | argparse.Namespace,
) -> Requirements:
    """What the model of an ESPnet training configuration needs.

    Args:
        args: The configuration, as read from YAML or as the Task gets it.

    Returns:
        The requirements. Nothing is claimed about frames where the frontend or the
        encoder is not known here, nor about tokens whose tokenizer is not ESPnet's own.

    Raises:
        ValueError: If a value of the configuration cannot be what it is.
        OSError: If a file that the configuration names cannot be read.
    """
    config = vars(args) if isinstance(args, argparse.Namespace) else args
    requirements = Requirements(
        frames=_frames_from_config(config),
        tasks=_tasks_from_config(config),
        ctc=(config.get("model_conf") or {}).get("ctc_weight", 0.5) != 0.0,
    )
    rate = (config.get("frontend_conf") or {}).get("fs", requirements.sample_rate)
    requirements.sample_rate = _parse_rate(rate)
    tokens = _tokens_from_config(config)
    if tokens is not None:
        tokenizer = _tokenizer_from_config(config)
        if tokenizer is not None:
            requirements.tokens, requirements.tokenizer = tokens, tokenizer
    return requirements


def write_subset(
    source_dir: PathLike, target_dir: PathLike, keep: Collection[str]
) -> int:
    """Copy a data directory's lists, restricted to some utterances and sorted.

    Args:
        source_dir: Holds wav.scp and, where there are, text, utt2spk and utt2task
            (spk2utt is made from utt2spk).
        target_dir: Where to write. All files change together, each at once; lists of
            an earlier run that the source lacks are removed.
        keep: The ids of the utterances to keep.

    Returns:
        The number of lines of the new wav.scp.

    Raises:
        ValueError: If source and target are the same directory.
        OSError: If a list cannot be read or written.
    """
    sources = {
        name: path
        for name in _LISTS
        if os.path.exists(path := os.path.join(source_dir, name))
    }
    return write_lists(sources, target_dir, keep)


def write_shapes(
    report: Report, directory: PathLike, vocab_size: int | None = None
) -> None:
    """Write the shapes of the good utterances, as ESPnet's ``collect_stats`` does.

    Args:
        report: A finished check.
        directory: Gets ``speech_shape`` (id and samples) and, if texts were split into
            tokens, ``text_shape`` (id, and tokens and vocabulary with a comma).
        vocab_size: The size of the vocabulary, which ESPnet's recipes add to the text
            shapes; None leaves it out, as ``collect_stats`` itself does.

    Raises:
        OSError: If a file cannot be written.
    """
    suffix = "" if vocab_size is None else f",{vocab_size}"
    files = {
        "speech_shape": [f"{utt} {report.samples[utt]}" for utt in report.good],
        "text_shape": None,
    }
    if report.tokens:
        files["text_shape"] = [
            f"{utt} {report.tokens[utt]}{suffix}" for utt in sorted(report.tokens)
        ]
    _write_files(directory, files)


# ---------------------------------------------------------------------------
# The lists


@dataclass
class _List:
    """A list of the data directory as it was read.

    Attributes:
        path: Where it is.
        entries: The value of every id, the first one if there are several.
        ids: All ids, with those whose line could not be read.
        usable: Whether there is anything in it.
    """

    path: str
    entries: dict[str, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    usable: bool = True


_Tell = Callable[[str, str, str, str], None]


def _read_list(path: PathLike, problems: list[Problem], bad: set[str]) -> _List:
    """Read a list line by line, as ESPnet splits it, without ever giving up."""
    path = os.fspath(path)
    name = os.path.basename(path)
    result = _List(path)
    try:
        with open(path, "rb") as handle:
            content = handle.read()
    except OSError as error:
        result.usable = False
        reason = error.strerror or str(error)
        problems.append(
            Problem(
                "unreadable file",
                path,
                f"cannot be read: {reason}",
                "Correct the path, or run the stage that writes this file.",
            )
        )
        return result
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        result.usable = False
        problems.append(
            Problem("unreadable file", path, "is UTF-16, not UTF-8", _REMEDY_UTF8)
        )
        return result
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
        problems.append(
            Problem(
                "byte order mark",
                f"{path}:1",
                "the file starts with U+FEFF, which would become part of the first id",
                "Save the file as UTF-8 without a byte order mark.",
            )
        )

    lines_of: dict[str, list[int]] = {}
    values_of: dict[str, set[str]] = {}
    with_cr: list[int] = []
    raw_lines = content.split(b"\n")
    if raw_lines[-1] == b"":
        raw_lines.pop()  # the end of the last line
    for number, raw in enumerate(raw_lines, 1):
        if raw.endswith(b"\r"):
            with_cr.append(number)
            raw = raw[:-1]
        fault, line, remedy = None, "", "Remove the line, or write it anew."
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            fault = f"byte 0x{byte:02x} at position {error.start + 1} is not UTF-8"
            remedy = _REMEDY_UTF8
            line = raw.decode("utf-8", errors="replace")
        else:
            if b"\r" in raw:
                fault = "a carriage return stands within the line"
                remedy = _REMEDY_LINE_ENDS
            elif not line.strip():
                fault, remedy = "the line is blank", "Remove the line."
        utterance, value = (*line.split(maxsplit=1), "", "")[:2]
        if fault is not None:
            problems.append(
                Problem("unreadable line", f"{path}:{number}", fault, remedy)
            )
            # An id that is itself damaged belongs to nobody.
            if utterance and "\ufffd" not in utterance:
                result.ids.add(utterance)
                bad.add(utterance)
            continue
        result.ids.add(utterance)
        result.entries.setdefault(utterance, value.rstrip())
        lines_of.setdefault(utterance, []).append(number)
        values_of.setdefault(utterance, set()).add(value.rstrip())

    if with_cr:
        problems.append(
            Problem(
                "line ends",
                f"{path}:{with_cr[0]}",
                f"{_number(len(with_cr), 'line')} end with CR LF, expected LF alone",
                _REMEDY_LINE_ENDS,
            )
        )
    for utterance, numbers in lines_of.items():
        if len(numbers) > 1:
            same = len(values_of[utterance]) == 1
            what = "equal" if same else "different"
            shown = listing([str(number) for number in numbers], limit=5)
            problems.append(
                Problem(
                    "duplicate id",
                    utterance,
                    f"stands in lines {shown} of {path}, with {what} entries",
                    "Give every utterance its own id, or remove the surplus lines.",
                )
            )
            bad.add(utterance)
    if not result.ids:
        result.usable = False
        problems.append(
            Problem(
                "unreadable file",
                path,
                "there is no utterance in it",
                f"Write a line for each utterance into {name}: its id, a space, and "
                "the entry.",
            )
        )
    return result


_REMEDY_UTF8 = "Convert the file to UTF-8 (iconv -f <its encoding> -t UTF-8)."
_REMEDY_LINE_ENDS = "Convert the line ends to LF (tr -d '\\r', or dos2unix)."


def _check_ids(utterances: Iterable[str], tell: _Tell) -> None:
    """Ids become names of files when audio is formatted or features are written."""
    for utterance in utterances:
        if "/" in utterance or utterance in (".", ".."):
            detail = "the id is a path"
        elif not utterance.isprintable():
            detail = f"the id has characters that cannot be seen: {ascii(utterance)}"
        elif len(utterance.encode("utf-8")) > 240:
            detail = "the id is longer than 240 bytes"
        else:
            continue
        tell(
            "bad id",
            utterance,
            f"{detail}; it cannot be the name of a file",
            "Rename the utterance in all lists.",
        )


def _check_partners(
    audio: _List, text: _List | None, tasks: _List | None, tell: _Tell
) -> None:
    """Every utterance stands in every list, or in none."""
    if not audio.usable:
        return
    if text is not None and text.usable:
        remedy = f"Add the recording to {audio.path}, or remove the text."
        if os.path.exists(os.path.join(os.path.dirname(audio.path), "segments")):
            # wav.scp then names whole recordings, which ESPnet does not cut itself.
            remedy = (
                "There is a file `segments`: let the recipe's stage 3 cut the "
                "recordings into utterances, and check its output."
            )
        for utterance in sorted(text.ids - audio.ids):
            tell(
                "text without audio",
                utterance,
                f"has a line in {text.path} but none in {audio.path}",
                remedy,
            )
        for utterance in sorted(audio.ids - text.ids):
            tell(
                "audio without text",
                utterance,
                f"has a line in {audio.path} but none in {text.path}",
                f"Add its text to {text.path}, or remove the recording.",
            )
    if tasks is not None and tasks.usable:
        for utterance in sorted(audio.ids - tasks.ids):
            tell(
                "no task",
                utterance,
                f"has a line in {audio.path} but none in {tasks.path}",
                f"Add a line with the id and its task to {tasks.path}.",
            )
        told = text.ids if text is not None and text.usable else set()
        for utterance in sorted(tasks.ids - audio.ids - told):
            tell(
                "task without audio",
                utterance,
                f"has a line in {tasks.path} but none in {audio.path}",
                f"Add the recording to {audio.path}, or remove the task's line.",
            )


def _order_problems(audio: _List, other: _List) -> Iterator[Problem]:
    """ESPnet reads the lists side by side when it collects statistics or decodes."""
    pairs = zip(
        (utterance for utterance in audio.entries if utterance in other.entries),
        (utterance for utterance in other.entries if utterance in audio.entries),
    )
    for expected, found in pairs:
        if expected != found:
            yield Problem(
                "order",
                other.path,
                f"{found} stands where {audio.path} has {expected}; the lists need "
                "the same order",
                "Sort all lists with LC_ALL=C sort.",
            )
            return


# ---------------------------------------------------------------------------
# Tasks and texts


def _check_tasks(tasks: _List, known: Collection[str] | None, tell: _Tell) -> None:
    known_set = None if known is None else frozenset(known)

    @functools.cache
    def explain(name: str) -> str:
        # Slow among thousands of tasks, and many utterances share a mistake.
        close = difflib.get_close_matches(name, known_set or (), n=1)
        return f"{name!r}; did you mean {close[0]!r}?" if close else repr(name)

    for utterance, name in tasks.entries.items():
        if not name:
            tell(
                "no task",
                utterance,
                f"its line in {tasks.path} names no task",
                f"Write the task behind the id in {tasks.path}.",
            )
        elif not TASK_NAME.fullmatch(name):
            tell(
                "bad task name",
                utterance,
                f"{name!r} cannot be the name of a task",
                "Rename the task: a letter or digit, then up to 127 letters, digits, "
                "dots, underscores or hyphens (A-Z, a-z, 0-9, ., _, -).",
            )
        elif known_set is not None and name not in known_set:
            tell(
                "unknown task",
                utterance,
                explain(name),
                f"Known tasks: {listing(sorted(known_set))}. Correct {tasks.path}, or "
                "add the task to the model (encoder_conf: tasks).",
            )


def _check_texts(
    texts: _List, requirements: Requirements, report: Report, tell: _Tell
) -> dict[str, list[str]]:
    """Split the texts into tokens and find those that the model does not know."""
    known = None if requirements.tokens is None else frozenset(requirements.tokens)
    tokenizer = requirements.tokenizer
    unknown_in: Counter = Counter()
    result: dict[str, list[str]] = {}
    for utterance, text in texts.entries.items():
        tokens: list[str] | None = None
        if text and tokenizer is not None:
            try:
                tokens = list(tokenizer(text))
            except Exception as error:  # whatever a cleaner or a G2P may raise
                tell(
                    "text not split",
                    utterance,
                    f"the tokenizer fails: {type(error).__name__}: {error}",
                    "Correct the text, or the token_type, cleaner and g2p of the "
                    "configuration.",
                )
                continue
        if not text or tokens == []:
            left = "" if not text else f" after cleaning: {text!r}"
            tell(
                "empty text",
                utterance,
                f"nothing stands behind its id in {texts.path}{left}",
                "Write what is said, or leave the utterance out.",
            )
            continue
        if tokens is None:
            continue
        result[utterance] = tokens
        if known is None:
            continue
        unknown = Counter(token for token in tokens if token not in known)
        if unknown:
            unknown_in.update(unknown.keys())
            found = ", ".join(
                f"{_describe(token)}{f' {count} times' if count > 1 else ''}"
                for token, count in unknown.items()
            )
            tell(
                "unknown token",
                utterance,
                f"not in the token list: {found}",
                _remedy_for_unknown(text, tokenizer, known),
            )
    report.unknown_tokens = dict(unknown_in)
    return result


def _remedy_for_unknown(
    text: str, tokenizer: Callable[[str], list[str]], known: Collection[str]
) -> str:
    """Name the simplest change of the text after which the model knows it all."""
    changes = {
        "Compose the characters (Unicode NFC).": lambda s: unicodedata.normalize(
            "NFC", s
        ),
        "Write the text in lower case.": str.lower,
        "Write the text in upper case.": str.upper,
    }
    for remedy, change in changes.items():
        try:
            if all(token in known for token in tokenizer(change(text))):
                return remedy
        except Exception:  # the changed text is only an attempt
            continue
    return (
        "Spell it with the model's tokens, or let tasks learn new ones (adapter_conf: "
        "{ctc: task, new_tokens: auto}); the model would learn <unk> instead."
    )


def _check_length(
    utterance: str,
    n_samples: int,
    tokens: Mapping[str, Sequence[str]],
    requirements: Requirements,
    tell: _Tell,
) -> None:
    """Enough samples for the subsampling, and enough frames for CTC."""
    if requirements.frames is None:
        return
    frames = requirements.frames(n_samples)
    seconds = n_samples / requirements.sample_rate
    if frames < 1:
        tell(
            "too short",
            utterance,
            f"{n_samples} samples ({seconds:.3f} s) are too few for the encoder's "
            "subsampling",
            "Leave the utterance out, or record it anew.",
        )
    elif requirements.ctc and utterance in tokens:
        spelled = tokens[utterance]
        repeats = sum(a == b for a, b in zip(spelled, spelled[1:]))
        if frames < len(spelled) + repeats:
            tell(
                "too few frames",
                utterance,
                f"{frames} encoder frames ({seconds:.2f} s), but CTC needs "
                f"{len(spelled) + repeats} for {len(spelled)} tokens and {repeats} "
                "repeats",
                "Correct the text if it says more than the recording, leave the "
                "utterance out, or use an encoder with less subsampling "
                "(encoder_conf: input_layer).",
            )


# ---------------------------------------------------------------------------
# Audio


class _Audio(NamedTuple):
    """A recording: its length at the rate wanted (0: unknown), and its problems."""

    samples: int
    problems: list[Problem]


class _Flaw(Exception):
    """A recording that cannot be read to its end."""

    def __init__(self, kind: str, detail: str, remedy: str):
        super().__init__(detail)
        self.kind, self.detail, self.remedy = kind, detail, remedy


class _Levels:
    """Extremes of a signal that arrives in blocks."""

    def __init__(self) -> None:
        self.samples = 0
        self.not_finite = 0
        self.low, self.high = math.inf, -math.inf

    def add(self, block: np.ndarray) -> None:
        """Take in a block of samples [samples] or [samples, channels]."""
        self.samples += len(block)
        if block.size:
            low, high = float(block.min()), float(block.max())
            if not math.isfinite(low) or not math.isfinite(high):
                self.not_finite += int(np.count_nonzero(~np.isfinite(block)))
            self.low, self.high = min(self.low, low), max(self.high, high)


_REMEDY_FORMAT = "Convert the recordings first: let the recipe's stage 3 format them."
_REMEDY_COPY = "Copy or convert the recording again from its source, or leave it out."


def _read_all(
    entries: Mapping[str, str], requirements: Requirements, jobs: int | None
) -> Iterator[tuple[str, _Audio]]:
    """Read all recordings, several at once, and yield them in order of the list."""
    if jobs is None:
        jobs = min(8, _cpus())
    # libsndfile decodes without Python's lock, so threads are enough. They get lists:
    # a million recordings must not become a million futures.
    batches = list(itertools.batched(entries.items(), 32))
    look = functools.partial(_check_batch, sample_rate=requirements.sample_rate)
    pool = ThreadPoolExecutor(max(1, jobs))
    last_message = time.monotonic()
    done = 0
    try:
        for results in pool.map(look, batches):
            yield from results
            done += len(results)
            if time.monotonic() - last_message > _SECONDS_BETWEEN_MESSAGES:
                last_message = time.monotonic()
                logger.info(f"checked {done:,} of {len(entries):,} recordings")
    finally:
        # After Ctrl-C nobody waits for the recordings that were not begun.
        pool.shutdown(cancel_futures=True)


def _cpus() -> int:
    """The number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_batch(
    batch: Iterable[tuple[str, str]], sample_rate: int
) -> list[tuple[str, _Audio]]:
    return [(utt, _check_audio(utt, entry, sample_rate)) for utt, entry in batch]


def _check_audio(utterance: str, entry: str, sample_rate: int) -> _Audio:
    """Read one recording in full."""
    problems: list[Problem] = []

    def tell(kind: str, detail: str, remedy: str) -> None:
        problems.append(Problem(kind, utterance, detail, remedy))

    try:
        levels, rate, channels = _measure(entry)
    except _Flaw as flaw:
        tell(flaw.kind, flaw.detail, flaw.remedy)
        return _Audio(0, problems)
    samples = levels.samples
    if rate is not None and rate != sample_rate:
        tell(
            "sample rate",
            f"{rate} Hz, expected {sample_rate} Hz: {entry}",
            f"Resample to {sample_rate} Hz, or let the recipe's stage 3 format it.",
        )
        samples = math.ceil(samples * sample_rate / max(1, rate))
    if channels > 1:
        tell(
            "several channels",
            f"{channels} channels, expected one: {entry}",
            "Mix down, or let the recipe's stage 3 format it.",
        )
    if levels.not_finite:
        tell(
            "not a number",
            f"{_number(levels.not_finite, 'sample')} of {levels.samples:,} are NaN or "
            f"infinite: {entry}",
            _REMEDY_COPY,
        )
    elif levels.samples:
        peak = (levels.high - levels.low) / 2  # a constant offset is no sound
        if peak == 0:
            silent = f"all samples are {levels.low:g}"
        elif peak < SILENT_PEAK:
            silent = f"the peak is {20 * math.log10(peak):.0f} dBFS"
        else:
            return _Audio(samples, problems)
        tell(
            "silent audio",
            f"{silent}: {entry}",
            "Leave the utterance out, or record it anew.",
        )
    else:
        tell("empty audio", f"no samples: {entry}", _REMEDY_COPY)
    return _Audio(samples, problems)


def _measure(entry: str) -> tuple[_Levels, int | None, int]:
    """Read the recording that an entry of wav.scp names.

    Returns:
        Its levels, sampling rate (None if the archive has none) and channels.

    Raises:
        _Flaw: If it cannot be read to its end.
    """
    if not entry or entry == "None":
        raise _Flaw(
            "missing audio",
            "wav.scp names no recording",
            "Write the path behind the id in wav.scp, or leave the utterance out.",
        )
    if entry.endswith("|") or entry.startswith("|"):
        raise _Flaw(
            "pipe",
            f"is a command, which neither this check nor training runs: {entry}",
            "Format first: the recipe's stage 3 runs the commands and stores audio.",
        )
    ark = None if _exists(entry) else _ARK_ENTRY.fullmatch(entry)
    path, offset = (ark["path"], int(ark["offset"])) if ark else (entry, None)
    try:
        info = os.stat(path)
    except (OSError, ValueError) as error:
        columns = entry.split()
        if len(columns) > 1 and all(map(_exists, columns)):
            raise _Flaw(
                "several channels",
                f"{len(columns)} files, expected one: {entry}",
                "Mix down, or let the recipe's stage 3 format it.",
            ) from None
        reason = getattr(error, "strerror", None) or str(error)
        seen_from = "" if os.path.isabs(path) else f" (seen from {os.getcwd()})"
        raise _Flaw(
            "missing audio",
            f"{reason}: {path}{seen_from}",
            "Correct the path in wav.scp (relative paths start where training is "
            "started), restore the file, or leave the utterance out.",
        ) from None
    if not stat.S_ISREG(info.st_mode):
        # Opening a named pipe would wait for ever.
        raise _Flaw("unreadable audio", f"is not a file: {path}", _REMEDY_FORMAT)
    if info.st_size == 0:
        raise _Flaw("empty audio", f"the file has no bytes: {path}", _REMEDY_COPY)
    try:
        with open(path, "rb") as handle:
            missing = (_expected_size(handle, offset or 0) or 0) - info.st_size
    except OSError as error:
        raise _Flaw(
            "unreadable audio", f"{error.strerror or error}: {path}", _REMEDY_COPY
        ) from None
    if missing > 0:
        raise _Flaw(
            "truncated audio",
            f"{_number(missing, 'byte')} of what the header promises are missing: "
            f"{entry}",
            _REMEDY_COPY,
        )
    return _measure_file(path) if offset is None else _measure_ark(path, offset)


def _measure_file(path: str) -> tuple[_Levels, int, int]:
    """Read a sound file in blocks; see :func:`_measure`."""
    levels = _Levels()
    promised = None
    try:
        with soundfile.SoundFile(path) as sound:
            promised = sound.frames
            rate, channels = sound.samplerate, sound.channels
            if promised > 1 << 62:
                # A FLAC file from a pipe. ESPnet asks for all samples at once, which
                # needs their number.
                raise _Flaw(
                    "unreadable audio",
                    f"its header does not say how long it is: {path}",
                    _REMEDY_FORMAT,
                )
            while len(block := sound.read(_BLOCK, dtype="float32")):
                levels.add(block)
    # TypeError: soundfile asks for the rate of a file whose name ends in .raw.
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        if promised is None:
            reason = getattr(error, "error_string", None) or str(error)
            raise _Flaw(
                "unreadable audio", f"{reason} {path}", _REMEDY_FORMAT
            ) from None
        raise _Flaw(
            "truncated audio",
            f"decoding fails after {levels.samples:,} or more of the {promised:,} "
            f"samples that the header promises (truncated or damaged): {path}",
            _REMEDY_COPY,
        ) from None
    if levels.samples < promised:
        raise _Flaw(
            "truncated audio",
            f"{levels.samples:,} samples, but the header promises {promised:,}: {path}",
            _REMEDY_COPY,
        )
    return levels, rate, channels


def _measure_ark(path: str, offset: int) -> tuple[_Levels, int | None, int]:
    """Read a recording from a Kaldi archive; see :func:`_measure`."""
    from omniio import kaldi  # what ESPnet itself reads archives with

    try:
        # Never by name: a name is run by a shell if it looks like a command.
        with open(path, "rb") as handle:
            handle.seek(offset)
            value = kaldi.load_mat(handle)
    except Exception as error:  # damaged binary data can raise anything
        raise _Flaw(
            "unreadable audio",
            f"{type(error).__name__}: {error}: {path}:{offset}",
            _REMEDY_COPY,
        ) from None
    rate = None
    if isinstance(value, tuple):
        rate, value = value if isinstance(value[0], int) else value[::-1]
    value = np.asarray(value)
    if rate is None and value.ndim > 1:
        raise _Flaw(
            "unreadable audio",
            f"a matrix of {value.shape[0]} x {value.shape[1]} features, expected a "
            f"waveform: {path}:{offset}",
            "Give the recordings instead of features.",
        )
    if value.dtype.kind in "iu":
        value = value.astype(np.float32) / 2.0 ** (8 * value.dtype.itemsize - 1)
    levels = _Levels()
    levels.add(value)
    return levels, rate, 1 if value.ndim == 1 else value.shape[1]


def _expected_size(handle: BinaryIO, base: int) -> int | None:
    """The size that a file must at least have, by the header of a recording in it.

    libsndfile takes a file that ends early for a shorter recording. Only the header
    tells, and only these formats have a length there that libsndfile ignores.

    Args:
        handle: The open file.
        base: Where the recording starts.

    Returns:
        The number of bytes up to its end, None if the header does not say.
    """
    handle.seek(base)
    head = handle.read(1024)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        order = "big" if head[:4] == b"RIFX" else "little"
        return _chunk_end(handle, base, b"data", order)
    if head[:4] == b"FORM":
        return _chunk_end(handle, base, b"SSND", "big")
    if head[:4] == b".snd" and len(head) >= 12:
        start, size = (int.from_bytes(head[i : i + 4], "big") for i in (4, 8))
        return base + start + size if size < _UNKNOWN_SIZE else None
    if head[:7] == b"NIST_1A":
        fields = dict(re.findall(rb"^(\w+) -\w+ (\S+)", head, re.MULTILINE))
        names = (b"sample_count", b"channel_count", b"sample_n_bytes")
        try:
            start = int(head[8:16])
            count, channels, width = (int(fields[name]) for name in names)
        except (KeyError, ValueError):
            return None
        if fields.get(b"sample_coding", b"pcm") not in (b"pcm", b"ulaw", b"alaw"):
            return None  # compressed
        return base + start + count * channels * width
    if head[:4] == b"OggS" and base == 0:
        return _last_ogg_page_end(handle)
    return None


def _chunk_end(handle: BinaryIO, base: int, wanted: bytes, order: str) -> int | None:
    """The end of a chunk of a RIFF or AIFF file (None: its length is not given)."""
    position = base + 12
    wide_size = None
    for _ in range(1000):  # a damaged file may hold millions of empty chunks
        handle.seek(position)
        head = handle.read(8)
        if len(head) < 8:
            # No samples up to the end of the file; is this the end that it promises?
            handle.seek(base + 4)
            size = int.from_bytes(handle.read(4), order)
            return base + 8 + size if size < _UNKNOWN_SIZE else None
        size = int.from_bytes(head[4:], order)
        if head[:4] == b"ds64":
            wide_size = int.from_bytes(handle.read(16)[8:], "little")
        if head[:4] == wanted:
            if size == 0xFFFFFFFF and wide_size is not None:
                size = wide_size
            elif size >= _UNKNOWN_SIZE:
                return None
            return position + 8 + size
        position += 8 + size + size % 2
    return None


def _last_ogg_page_end(handle: BinaryIO) -> int | None:
    """Where the last page that begins in an Ogg file should end."""
    longest = 27 + 255 + 255 * 255
    size = handle.seek(0, os.SEEK_END)
    start = max(0, size - longest)
    handle.seek(start)
    tail = handle.read()
    page = tail.rfind(b"OggS")
    if page < 0:
        return None
    header = tail[page : page + 27]
    if len(header) < 27:
        return start + page + 27
    sizes = tail[page + 27 : page + 27 + header[26]]
    return start + page + 27 + header[26] + sum(sizes)


def _exists(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a NUL character
        return False


# ---------------------------------------------------------------------------
# The configuration


def _parse_rate(value: Any) -> int:
    import humanfriendly  # as ESPnet: 16k is 16000

    try:
        rate = humanfriendly.parse_size(value) if isinstance(value, str) else int(value)
    except (TypeError, ValueError, humanfriendly.InvalidSize) as error:
        raise ValueError(f"frontend_conf: fs: {value!r} is no sampling rate") from error
    if rate <= 0:
        raise ValueError(f"frontend_conf: fs: {value!r} is no sampling rate")
    return rate


def _read_names(path: str, key: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as handle:
            return [line.rstrip("\n") for line in handle]
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}: {path} is not UTF-8") from error
    except OSError as error:
        raise type(error)(error.errno, f"{key}: {error.strerror}", path) from error


def _tokens_from_config(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    tokens = config.get("token_list")
    if tokens is None:
        return None
    if isinstance(tokens, (str, os.PathLike)):
        # A token may be a white-space character itself: ESPnet keeps the first one.
        lines = _read_names(os.fspath(tokens), "token_list")
        tokens = [line[:1] + line[1:].rstrip() for line in lines]
    conf = (config.get("encoder_conf") or {}).get("adapter_conf") or {}
    new = conf.get("new_tokens")
    new = [token for token in new if token not in tokens] if _is_list(new) else []
    return tuple(str(token) for token in (*tokens, *new))


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _tasks_from_config(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    tasks = (config.get("encoder_conf") or {}).get("tasks")
    if tasks is None:
        return None
    if isinstance(tasks, (str, os.PathLike)):
        lines = _read_names(os.fspath(tasks), "encoder_conf: tasks")
        tasks = [line.strip() for line in lines if line.strip()]
    # YAML reads a task named 1 as a number.
    return tuple(str(task) for task in tasks)


def _frames_from_config(config: Mapping[str, Any]) -> Callable[[int], int] | None:
    encoder = str(config.get("encoder")).removeprefix("hra_")
    input_layer = (config.get("encoder_conf") or {}).get("input_layer", "conv2d")
    frontend = config.get("frontend_conf") or {}
    if (
        config.get("frontend", "default") != "default"
        or config.get("input_size") is not None  # features, no waveforms
        or not frontend.get("apply_stft", True)
        or config.get("preencoder") not in (None, "linear")
        or config.get("postencoder") is not None
        or encoder not in _ENCODERS
        or input_layer not in INPUT_LAYERS
    ):
        return None
    return functools.partial(
        subsampled_frames,
        hop_length=int(frontend.get("hop_length", 128)),
        n_fft=int(frontend.get("n_fft", 512)),
        center=bool(frontend.get("center", True)),
        input_layer=input_layer,
    )


def _tokenizer_from_config(
    config: Mapping[str, Any],
) -> Callable[[str], list[str]] | None:
    """Build what ESPnet's preprocessor does to a text."""
    if not config.get("use_preprocessor", True):
        return None
    kind = config.get("token_type", "bpe")
    symbols = config.get("non_linguistic_symbols")
    conf = config.get("preprocessor_conf") or {}
    space = conf.get("space_symbol", "<space>")
    # Not espnet2.text.build_tokenizer where it can be helped: it imports all
    # tokenizers and their toolkits, which takes seconds.
    if kind == "char":
        from espnet2.text.char_tokenizer import CharTokenizer

        tokenizer = CharTokenizer(
            non_linguistic_symbols=symbols,
            space_symbol=space,
            nonsplit_symbols=conf.get("nonsplit_symbol"),
        )
    elif kind == "word":
        from espnet2.text.word_tokenizer import WordTokenizer

        tokenizer = WordTokenizer(delimiter=conf.get("delimiter"))
    elif kind == "bpe":
        from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer

        model = config.get("bpemodel")
        if model is None:
            raise ValueError("token_type: bpe needs a bpemodel")
        with open(model, "rb"):
            pass  # SentencePiece opens it late, and aborts without naming it
        tokenizer = SentencepiecesTokenizer(model)
    elif kind == "phn":
        from espnet2.text.build_tokenizer import build_tokenizer

        tokenizer = build_tokenizer(
            token_type=kind,
            non_linguistic_symbols=symbols,
            space_symbol=space,
            g2p_type=config.get("g2p"),
        )
    else:
        return None  # Whisper's and the like bring their own vocabulary

    cleaner = config.get("cleaner")
    if cleaner is None:
        return tokenizer.text2tokens
    from espnet2.text.cleaner import TextCleaner

    clean = TextCleaner(cleaner)
    return lambda text: tokenizer.text2tokens(clean(text))


# ---------------------------------------------------------------------------
# Writing


def write_lists(
    sources: Mapping[str, PathLike], target_dir: PathLike, keep: Collection[str]
) -> int:
    """Write lists, wherever they lie, restricted to some utterances and sorted.

    Args:
        sources: The lists by their names in Kaldi's data directories.
        target_dir: Where to write; see :func:`write_subset` for this, `keep`, what is
            returned and raised.
        keep: The ids of the utterances to keep.
    """
    for source in sources.values():
        folder = os.path.dirname(os.path.abspath(source))
        if os.path.realpath(folder) == os.path.realpath(target_dir):
            raise ValueError(
                f"{os.fspath(target_dir)} holds the data themselves: choose another "
                "folder, nothing is overwritten"
            )
    kept = frozenset(keep)
    files: dict[str, list[str] | None] = dict.fromkeys(_LISTS)
    for name, source in sources.items():
        if name == "spk2utt":
            continue
        problems: list[Problem] = []
        entries = _read_list(source, problems, set()).entries
        if not entries and not os.path.exists(source):
            raise FileNotFoundError(f"{name}: {problems[0].detail}: {source}")
        files[name] = [f"{utt} {entries[utt]}" for utt in sorted(kept & entries.keys())]
        if name == "utt2spk":
            speakers: dict[str, list[str]] = {}
            for utterance in sorted(kept & entries.keys()):
                speakers.setdefault(entries[utterance], []).append(utterance)
            files["spk2utt"] = [
                f"{speaker} {' '.join(speakers[speaker])}"
                for speaker in sorted(speakers)
            ]
    _write_files(target_dir, files)
    return len(files["wav.scp"] or ())


def _write_files(
    directory: PathLike, files: Mapping[str, Sequence[str] | None]
) -> None:
    """Write files so that nobody sees half of one; None removes an old one.

    All are written under other names before the first takes its place: a full disk
    leaves everything as it was.
    """
    os.makedirs(directory, exist_ok=True)
    written: dict[str, str] = {}
    try:
        for name, lines in files.items():
            if lines is None:
                continue
            partial = os.path.join(directory, f".{name}.{uuid.uuid4().hex}")
            with open(partial, "x", encoding="utf-8", newline="\n") as out:
                written[name] = partial
                out.writelines(f"{line}\n" for line in lines)
        for name, partial in list(written.items()):
            os.replace(partial, os.path.join(directory, name))
            del written[name]
        for name, lines in files.items():
            if lines is None and os.path.exists(old := os.path.join(directory, name)):
                os.unlink(old)
    finally:
        for partial in written.values():
            os.unlink(partial)


# ---------------------------------------------------------------------------
# Words


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _describe(token: str, named: bool = False) -> str:
    """A token as people can find it: 'é' (U+00E9) is another one than e and accent."""
    if len(token) != 1 or (token.isascii() and not named):
        return repr(token)
    # A combining mark would sit on the quote.
    shown = repr(f" {token}" if unicodedata.combining(token) else token)
    name = f" {unicodedata.name(token, '')}".rstrip() if named else ""
    return f"{shown} (U+{ord(token):04X}{name})"


def _printable(line: str) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in line
    )


# ---------------------------------------------------------------------------
# Command line


def _parser() -> argparse.ArgumentParser:
    from espnet2.utils.types import str2bool, str_or_none

    parser = argparse.ArgumentParser(
        prog="python -m espnet_hra.data.checks",
        description="Check the data of a training run: all problems in one report.",
    )
    parser.add_argument("--wav_scp", required=True, help="The list of recordings")
    parser.add_argument("--text", type=str_or_none, help="The list of texts")
    parser.add_argument("--utt2task", type=str_or_none, help="The list of tasks")
    parser.add_argument(
        "--config",
        type=str_or_none,
        help="The training configuration of the model; without it, only what is wrong "
        "for every model at 16 kHz is found",
    )
    parser.add_argument(
        "--skip_bad",
        type=str2bool,
        default=False,
        help="Leave the bad utterances out, count them, and go on (needs --out_dir)",
    )
    parser.add_argument(
        "--report", type=str_or_none, help="Where to write the whole report"
    )
    parser.add_argument(
        "--out_dir",
        type=str_or_none,
        help="Where to write the lists of the good utterances and their shapes",
    )
    parser.add_argument(
        "--jobs", type=int, help="The number of recordings to read at once"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check from the command line.

    Args:
        argv: The arguments, by default those of the process.

    Returns:
        The exit status: 0 if training can go on, 1 if it cannot.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.skip_bad and args.out_dir is None:
        parser.error("--skip_bad true needs --out_dir for the utterances that are kept")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        requirements = Requirements()
        if args.config is not None:
            requirements = requirements_from_config(_load_config(args.config))
        report = check(
            args.wav_scp,
            args.text,
            args.utt2task,
            requirements=requirements,
            jobs=args.jobs,
        )
        return _conclude(args, requirements, report)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1


def _load_config(path: str) -> dict[str, Any]:
    import yaml

    with open(path, encoding="utf-8") as handle:
        try:
            config = yaml.safe_load(handle)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a training configuration")
    return config


def _conclude(
    args: argparse.Namespace, requirements: Requirements, report: Report
) -> int:
    """Write what was found and what is kept; see :func:`main` for the result."""
    if args.report is not None:
        folder, name = os.path.split(os.path.abspath(args.report))
        _write_files(folder, {name: report.format(limit=None).split("\n")})
    if not report.ok:
        print(report.format(), file=sys.stderr)
        if args.report is not None:
            print(f"The whole report: {args.report}", file=sys.stderr)
        if not args.skip_bad:
            return 1
        if not report.samples:
            print("No utterance is left to train on.", file=sys.stderr)
            return 1
    if args.out_dir is not None:
        sources = {"wav.scp": args.wav_scp}
        if args.text is not None:
            sources["text"] = args.text
        if args.utt2task is not None:
            sources["utt2task"] = args.utt2task
        speakers = os.path.join(os.path.dirname(args.wav_scp), "utt2spk")
        if os.path.exists(speakers):
            sources["utt2spk"] = speakers
        kept = write_lists(sources, args.out_dir, report.good)
        tokens = requirements.tokens
        write_shapes(report, args.out_dir, None if tokens is None else len(tokens))
        left_out = f", {len(report.bad):,} left out" if report.bad else ""
        logger.info(f"{_number(kept, 'utterance')} kept{left_out}: {args.out_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
