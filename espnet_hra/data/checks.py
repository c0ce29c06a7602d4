"""The check of Kaldi-style data before training.

One unreadable recording ends an ESPnet epoch hours after its start, and from a text
with more tokens than CTC has frames for nothing is learned, in silence. So everything
is read once before: the lists, every recording in full, the texts and the tasks. All
problems come in one report, each with its utterance (or file and line) and a remedy.
The bad utterances can be left out, and what was measured on the way is written as the
shape files that ESPnet's batch sampler wants.
"""

import argparse
import dataclasses
import difflib
import functools
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from espnet_hra.data.intake import CUT, has_segments
from espnet_hra.data.lists import KaldiList, PathLike, read_list
from espnet_hra.data.problems import Problem, Report, describe, number
from espnet_hra.data.recordings import read_all
from espnet_hra.data.requirements import Requirements, frames_for_ctc
from espnet_hra.names import TASK_NAME, listing

_Tell = Callable[[str, str, str, str], None]

logger = logging.getLogger(__name__)

#: Seconds from which on an utterance is said to be long.
LONG = 60


def check(
    wav_scp: PathLike,
    text: PathLike | None = None,
    utt2task: PathLike | None = None,
    *,
    requirements: Requirements,
    jobs: int | None = None,
    settle: Callable[[str], str] | None = None,
    skip_long: bool = False,
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
        settle: Gives an entry of ``wav_scp`` the path that it has from here.
        skip_long: Leave out what is too long for the model, as no problem.

    Returns:
        All problems, and the lengths of what is good. Bad data never raise.
    """
    report = Report()
    problems, bad = report.problems, report.bad
    audio_list = read_list(wav_scp)
    text_list = None if text is None else read_list(text)
    task_list = None if utt2task is None else read_list(utt2task)
    lists = [entry for entry in (audio_list, text_list, task_list) if entry is not None]
    for found in lists:
        problems.extend(found.problems)
        bad.update(found.bad)

    utterances = sorted(set().union(*(entry.ids for entry in lists)))
    report.utterances = len(utterances)
    if has_segments(wav_scp):
        # wav.scp then names whole recordings, which ESPnet does not cut itself.
        segments = os.path.join(os.path.dirname(audio_list.path), "segments")
        detail = "the utterances are parts of the recordings in wav.scp"
        problems.append(Problem("segments", segments, detail, f"Format first: {CUT}."))
        bad.update(utterances)
        return report
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
        if task_list is not None and requirements.labels:
            text_list = _without_labels(text_list, task_list, requirements, tell)
        tokens = _check_texts(text_list, requirements, report, tell)

    samples: dict[str, int] = {}
    rate = requirements.sample_rate
    entries = audio_list.entries
    if settle is not None:
        entries = {utterance: settle(entry) for utterance, entry in entries.items()}
    for utterance, audio in read_all(entries, rate, jobs):
        for problem in audio.problems:
            tell(problem.kind, utterance, problem.detail, problem.remedy)
        if audio.samples:
            if skip_long and _too_long(audio.samples, requirements):
                report.too_long.append(utterance)
                continue
            samples[utterance] = audio.samples
            _check_length(utterance, audio.samples, tokens, requirements, tell)

    for utterance, length in samples.items():
        if utterance not in bad:
            report.samples[utterance] = length
            if utterance in tokens:
                report.tokens[utterance] = len(tokens[utterance])
    if task_list is not None:
        report.tasks = _shares(task_list, report)
    _warn_of_length(audio_list.path, report, rate)
    return report


def _shares(tasks: KaldiList, report: Report) -> dict[str, tuple[int, int]]:
    """The good utterances of each task, and all."""
    every = Counter(
        name for name in tasks.entries.values() if TASK_NAME.fullmatch(name)
    )
    good = Counter(
        name for utterance, name in tasks.entries.items() if utterance in report.samples
    )
    return {name: (good[name], count) for name, count in every.items()}


def _warn_of_length(path: object, report: Report, rate: int) -> None:
    """Say which utterances are so long that memory may not hold what they need."""
    long = sorted(
        (utt for utt, length in report.samples.items() if length > LONG * rate),
        key=lambda utt: (-report.samples[utt], utt),
    )
    if long:
        logger.warning(
            f"{path}: {number(len(long), 'utterance')} longer than {LONG} s, the "
            f"longest {long[0]} with {report.samples[long[0]] / rate:.0f} s: memory "
            "grows with the square of the length; cut them if it runs out"
        )


def add_skip_bad(parser: argparse._ActionsContainer) -> None:
    """Add the option `--skip_bad true|false`, which means the same in every command."""
    from espnet2.utils.types import str2bool

    parser.add_argument(
        "--skip_bad",
        type=str2bool,
        default=False,
        metavar="true|false",
        help="Leave out and count utterances that fail the check, instead of stopping "
        "with the report (default: false)",
    )


def shapes(
    report: Report, vocab_size: int | None = None, keep: Iterable[str] | None = None
) -> dict[str, list[str] | None]:
    """The shapes of the good utterances, as ESPnet's ``collect_stats`` writes them.

    Args:
        report: A finished check.
        vocab_size: The size of the vocabulary, which ESPnet's recipes add to the text
            shapes; None leaves it out, as ``collect_stats`` itself does.
        keep: The utterances that are wanted; None for all good ones.

    Returns:
        The lines of ``speech_shape`` (id and samples) and of ``text_shape`` (id, and
        tokens and vocabulary with a comma), the latter None if texts were not split
        into tokens.
    """
    suffix = "" if vocab_size is None else f",{vocab_size}"
    kept = report.good if keep is None else sorted(keep)
    return {
        "speech_shape": [f"{utt} {report.samples[utt]}" for utt in kept],
        "text_shape": [
            f"{utt} {report.tokens[utt]}{suffix}"
            for utt in kept
            if utt in report.tokens
        ]
        or None,
    }


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
    audio: KaldiList, text: KaldiList | None, tasks: KaldiList | None, tell: _Tell
) -> None:
    """Every utterance stands in every list, or in none."""
    if not audio.usable:
        return
    if text is not None and text.usable:
        remedy = f"Add the recording to {audio.path}, or remove the text."
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


def _order_problems(audio: KaldiList, other: KaldiList) -> Iterator[Problem]:
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


def _check_tasks(tasks: KaldiList, known: Collection[str] | None, tell: _Tell) -> None:
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


def _without_labels(
    texts: KaldiList, tasks: KaldiList, requirements: Requirements, tell: _Tell
) -> KaldiList:
    """The texts without those of tasks that classify, which must be labels."""
    left = {}
    for utterance, text in texts.entries.items():
        task = tasks.entries.get(utterance, "")
        labels = requirements.labels.get(task)
        if labels is None:
            left[utterance] = text
        elif text not in labels:
            tell(
                "unknown label",
                utterance,
                f"{text!r} is none of the labels that the task {task!r} tells",
                f"They are {listing(sorted(labels))}. Correct {texts.path}, or add it "
                "to the task's labels (encoder_conf: tasks).",
            )
    return dataclasses.replace(texts, entries=left)


def _check_texts(
    texts: KaldiList, requirements: Requirements, report: Report, tell: _Tell
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
        if known is None or tokenizer is None:
            continue
        unknown = Counter(token for token in tokens if token not in known)
        if unknown:
            unknown_in.update(unknown.keys())
            found = ", ".join(
                f"{describe(token)}{f' {count} times' if count > 1 else ''}"
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


def _too_long(n_samples: int, requirements: Requirements) -> bool:
    longest = requirements.longest
    return longest is not None and n_samples > longest * requirements.sample_rate


def _check_length(
    utterance: str,
    n_samples: int,
    tokens: Mapping[str, Sequence[str]],
    requirements: Requirements,
    tell: _Tell,
) -> None:
    """Enough samples for the subsampling and for CTC, and not too many to hear."""
    seconds = n_samples / requirements.sample_rate
    if _too_long(n_samples, requirements) and utterance in tokens:
        tell(
            "too long",
            utterance,
            f"{seconds:.1f} s; the model hears {requirements.longest:g} s at once, and "
            "would be taught the words of what it does not hear",
            "Cut the recording at a pause and its text with it, or leave it out.",
        )
    if requirements.frames is None:
        return
    frames = requirements.frames(n_samples)
    if frames < 1:
        tell(
            "too short",
            utterance,
            f"{n_samples} samples ({seconds:.3f} s) are too few for the encoder's "
            "subsampling",
            "Leave the utterance out, or record it anew.",
        )
    elif requirements.ctc and utterance in tokens:
        count, needed = len(tokens[utterance]), frames_for_ctc(tokens[utterance])
        if frames < needed:
            tell(
                "too few frames",
                utterance,
                f"{frames} encoder frames ({seconds:.2f} s), but CTC needs "
                f"{needed} for {count} tokens and {needed - count} repeats",
                "Correct the text if it says more than the recording, leave the "
                "utterance out, or use an encoder with less subsampling "
                "(encoder_conf: input_layer).",
            )
