"""Error rates per task and split, and the tables that show them.

What is counted:

* CER over the characters of a text *including spaces*, as ESPnet's scoring does (and
  jiwer); WER over its words. Nothing is normalised but Unicode (NFC) and white space
  (runs of it count as one space, at the ends it does not count).
* Errors are summed over the utterances of a task in a split and divided by the length
  of their references. A mean over tasks gives every task the same weight.
* An empty hypothesis is a hypothesis: everything in its reference is deleted. One that
  is missing is an error, since a system that fails on hard utterances would win.

::

    python -m espnet_hra.report.scoring --method hra --seed 1 --params exp/hra/params.json \\
        --ref dev=dump/dev/text --ref test=dump/test/text \\
        --hyp dev=exp/hra/decode/dev/text --hyp test=exp/hra/decode/test/text \\
        --utt2task dump/dev/utt2task --utt2task dump/test/utt2task --out_dir exp

writes ``results.tsv`` and, with the errors of each utterance, ``utterances.tsv`` for
programs, and lets :mod:`espnet_hra.report.page` write ``RESULTS.md`` and its pictures for
people; rows of other methods, tasks, splits and seeds stay as they are.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import (
    TypeVar,
    Union,
)

import jiwer

from espnet_hra.errors import UserError

PathLike = Union[str, "os.PathLike[str]"]

#: The method of the frozen backbone's rows.
FROZEN = "none"

#: The names of the two tables.
TSV, UTTERANCES = "results.tsv", "utterances.tsv"

_NAMED = 5


class ScoringError(UserError, ValueError):
    """Texts that cannot be scored; the message names what is wrong."""


@dataclass(frozen=True)
class Errors:
    """Errors against references, and the length of these.

    Attributes:
        utterances: The number of utterances.
        words: The words of the references.
        characters: The characters of the references, spaces included.
        word_errors: Substitutions, deletions and insertions of words.
        character_errors: The same of characters.
    """

    utterances: int = 0
    words: int = 0
    characters: int = 0
    word_errors: int = 0
    character_errors: int = 0

    @property
    def cer(self) -> float:
        """Character error rate in percent; nan where nothing is said."""
        return _percent(self.character_errors, self.characters)

    @property
    def wer(self) -> float:
        """Word error rate in percent; nan where nothing is said."""
        return _percent(self.word_errors, self.words)

    def __add__(self, other: "Errors") -> "Errors":
        """The sums of both."""
        return Errors(*(a + b for a, b in zip(astuple(self), astuple(other))))


@dataclass(frozen=True)
class Row:
    """One line of ``results.tsv``; the fields are its columns.

    Attributes:
        method: The adapter, ``none`` for the frozen backbone.
        task: The task.
        split: The data set.
        seed: The seed of the training; 0 where nothing was trained.
        shared_params: Trained parameters that all tasks share.
        task_params: Trained parameters of this task.
        utterances: The number of utterances.
        words: The words of the references.
        cer: Character error rate in percent.
        wer: Word error rate in percent.
    """

    method: str
    task: str
    split: str
    seed: int
    shared_params: int
    task_params: int
    utterances: int
    words: int
    cer: float
    wer: float

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What a later row must share to take this one's place."""
        return self.method, self.task, self.split, self.seed


@dataclass(frozen=True)
class Utterance:
    """One line of ``utterances.tsv``; the fields are its columns.

    Attributes:
        method: As in :class:`Row`, like the three that follow.
        task: The task.
        split: The data set.
        seed: The seed of the training.
        utterance: The utterance's id.
        characters: The characters of the reference, spaces included.
        errors: The errors among them.
        words: The words of the reference.
        word_errors: The errors among them.
    """

    method: str
    task: str
    split: str
    seed: int
    utterance: str
    characters: int
    errors: int
    words: int
    word_errors: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What later lines must share to take the place of all lines with it."""
        return self.method, self.task, self.split, self.seed


Line = TypeVar("Line", Row, Utterance)


# --------------------------------------------------------------------- error rates


def count_errors(pairs: Iterable[tuple[str, str]]) -> Errors:
    """Count the errors of hypotheses.

    Args:
        pairs: Reference and hypothesis of each utterance; either may be empty.

    Returns:
        The sums over all utterances.
    """
    return sum((_count(*pair) for pair in pairs), Errors())


def _count(reference: str, hypothesis: str) -> Errors:
    """The errors of one hypothesis."""
    reference, hypothesis = _tidy(reference), _tidy(hypothesis)
    if reference:
        words = jiwer.process_words(reference, hypothesis)
        characters = jiwer.process_characters(reference, hypothesis)
        wrong = [
            output.substitutions + output.deletions + output.insertions
            for output in (words, characters)
        ]
    else:
        # Everything said where nothing should be is an insertion; jiwer's opinion on
        # empty references has changed between its versions.
        wrong = [len(hypothesis.split()), len(hypothesis)]
    return Errors(1, len(reference.split()), len(reference), *wrong)


def errors_by_task(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    utt2task: Mapping[str, str],
) -> dict[str, dict[str, Errors]]:
    """Count the errors of each utterance in one split.

    Args:
        references: The reference by utterance.
        hypotheses: The hypothesis by utterance.
        utt2task: The task by utterance; more utterances than needed do no harm.

    Returns:
        The errors by task, in alphabetical order, and utterance.

    Raises:
        ScoringError: If there is nothing to score, or an utterance has no hypothesis,
            no reference or no task.
    """
    if not references:
        raise ScoringError("there are no references")
    for problem, ids in (
        ("no hypothesis", references.keys() - hypotheses.keys()),
        ("no reference", hypotheses.keys() - references.keys()),
        ("no task", references.keys() - utt2task.keys()),
    ):
        if ids:
            raise ScoringError(f"{_some(sorted(ids))} with {problem}")
    found: dict[str, dict[str, Errors]] = {}
    for utterance in sorted(references):
        errors = _count(references[utterance], hypotheses[utterance])
        found.setdefault(utt2task[utterance], {})[utterance] = errors
    return dict(sorted(found.items()))


def read_text(path: PathLike) -> dict[str, str]:
    """Read a Kaldi-style list: an id and a text, which may be empty, a line.

    Args:
        path: The file, in UTF-8.

    Raises:
        ScoringError: If it cannot be read, or an id stands in it twice.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScoringError(f"{path} cannot be read: {error}") from error
    texts: dict[str, str] = {}
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            key, *rest = line.strip().split(maxsplit=1)
            if key in texts:
                raise ScoringError(f"{path}, line {number}: {key} stands twice")
            texts[key] = rest[0] if rest else ""
    return texts


def read_params(path: PathLike) -> tuple[int, dict[str, int]]:
    """Read the parameter counts that training writes as ``params.json``.

    Args:
        path: The file.

    Returns:
        The shared parameters, and those of each task.

    Raises:
        ScoringError: If it is not such a file.
    """
    try:
        counts = json.loads(Path(path).read_text(encoding="utf-8"))
        per_task = {str(k): int(v) for k, v in counts["per_task"].items()}
        return int(counts["shared"]), per_task
    except OSError as error:
        raise ScoringError(f"{path} cannot be read: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ScoringError(
            f"{path} has no counts of parameters (shared, per_task): {error!r}"
        ) from error


# ----------------------------------------------------------------------- the tables


def read_table[Line: (Row, Utterance)](path: PathLike, kind: type[Line]) -> list[Line]:
    """Read ``results.tsv`` or ``utterances.tsv``; no lines if there is no such file.

    Args:
        path: The file.
        kind: What its lines are.

    Raises:
        ScoringError: If it has other columns, or a damaged line.
    """
    path, head = Path(path), header(kind)
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ScoringError(f"{path} cannot be read: {error}") from error
    if lines[0].rstrip("\r") != head:
        raise ScoringError(
            f"{path} has other columns than {head.split()}: move it away"
        )
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            values = line.rstrip("\r").split("\t")
            kinds = [field.type for field in fields(kind)]
            rows.append(kind(*(k(v) for k, v in zip(kinds, values, strict=True))))
        except ValueError as error:
            raise ScoringError(f"{path}, line {number}: {error}") from error
    return rows


def header[Line: (Row, Utterance)](kind: type[Line]) -> str:
    """The first line of a table."""
    return "\t".join(field.name for field in fields(kind))


def merge[Line: (Row, Utterance)](
    old: Sequence[Line], new: Sequence[Line]
) -> list[Line]:
    """Put new lines in the place of old ones with the same key, or behind them."""
    replaced: dict[tuple[str, str, str, int], list[Line]] = {}
    for line in new:
        replaced.setdefault(line.key, []).append(line)
    keys = set(replaced)
    merged: list[Line] = []
    for line in old:
        merged += replaced.pop(line.key, []) if line.key in keys else [line]
    return merged + [line for lines in replaced.values() for line in lines]


def write_table[Line: (Row, Utterance)](
    path: PathLike, lines: Sequence[Line], kind: type[Line]
) -> None:
    """Write a table, which appears under its name only when it is whole."""
    cells = ([_cell(value) for value in astuple(line)] for line in lines)
    write(path, "\n".join([header(kind), *map("\t".join, cells)]) + "\n")


def _cell(value: str | int | float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


# -------------------------------------------------------------------------- helpers


def _tidy(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _percent(errors: int, length: int) -> float:
    return 100.0 * errors / length if length else math.nan


def _some(ids: Sequence[str]) -> str:
    more = ", ..." if len(ids) > _NAMED else ""
    noun = "utterance" if len(ids) == 1 else "utterances"
    return f"{len(ids)} {noun} ({', '.join(ids[:_NAMED])}{more})"


def write(path: PathLike, content: str | bytes) -> None:
    """Write a file that appears under its name only when it is whole."""
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


# --------------------------------------------------------------------- command line


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet_hra.report.scoring",
        description=(
            "Score a system per task and split: results.tsv and utterances.tsv for "
            "programs, RESULTS.md and pictures for people. CER counts spaces; nothing "
            "is normalised but white space and Unicode (NFC)."
        ),
    )
    parser.add_argument(
        "--method", required=True, help="the adapter; none for the frozen backbone"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument(
        "--ref",
        action="append",
        required=True,
        metavar="SPLIT=FILE",
        help="references of a split, a text file as Kaldi has it (repeatable)",
    )
    parser.add_argument(
        "--hyp",
        action="append",
        required=True,
        metavar="SPLIT=FILE",
        help="hypotheses of a split, for each of the references",
    )
    parser.add_argument(
        "--utt2task", action="append", default=[], help="tasks (repeatable)"
    )
    parser.add_argument("--task", help="the task of all utterances without utt2task")
    parser.add_argument(
        "--params", help="params.json, which training writes, for the two next counts"
    )
    parser.add_argument("--shared_params", type=int, help="shared parameters")
    parser.add_argument("--task_params", type=int, help="parameters of each task")
    parser.add_argument("--out_dir", required=True, help="where all of them are")
    parser.add_argument(
        "--report",
        choices=["true", "false"],
        default="true",
        help="whether to write RESULTS.md and pictures too (default: true)",
    )
    parser.add_argument("--title", help="title of RESULTS.md (default: the folder)")
    parser.add_argument("--note", help="what a reader of RESULTS.md must know")
    parser.add_argument("--command", help="the command to name in RESULTS.md")
    parser.add_argument("--times", help="stages, titles and seconds, with tabs between")
    return parser


def score(args: argparse.Namespace) -> tuple[list[Row], list[Utterance]]:
    """The lines of one system.

    Args:
        args: The options of :func:`get_parser`.

    Raises:
        ScoringError: If something cannot be scored.
    """
    shared, per_task = 0, {}
    if args.params is not None:
        shared, per_task = read_params(args.params)
    elif args.method != FROZEN and None in (args.shared_params, args.task_params):
        raise ScoringError("give --params, or --shared_params and --task_params")
    if args.shared_params is not None:
        shared = args.shared_params
    references, hypotheses = _by_split(args.ref, "--ref"), _by_split(args.hyp, "--hyp")
    for split in references.keys() ^ hypotheses.keys():
        raise ScoringError(f"{split}: there must be both --ref and --hyp")
    utt2task: dict[str, str] = {}
    for path in args.utt2task:
        utt2task.update(read_text(path))
    rows, utterances = [], []
    for split, path in references.items():
        texts = read_text(path)
        if args.task is not None:
            utt2task = {**dict.fromkeys(texts, args.task), **utt2task}
        try:
            by_task = errors_by_task(texts, read_text(hypotheses[split]), utt2task)
        except ScoringError as error:
            raise ScoringError(f"{args.method}, {split}: {error}") from error
        for task, by_utterance in by_task.items():
            if args.task_params is not None or args.params is None:
                task_params = args.task_params or 0
            elif task in per_task:
                task_params = per_task[task]
            else:
                raise ScoringError(f"{args.params} has no parameters of task {task}")
            key = args.method, task, split, args.seed
            total = sum(by_utterance.values(), Errors())
            sizes = shared, task_params, total.utterances, total.words
            rows.append(Row(*key, *sizes, total.cer, total.wer))
            utterances += [
                Utterance(
                    *key,
                    utterance,
                    errors.characters,
                    errors.character_errors,
                    errors.words,
                    errors.word_errors,
                )
                for utterance, errors in by_utterance.items()
            ]
    return rows, utterances


def _by_split(options: Sequence[str], name: str) -> dict[str, str]:
    """Read ``SPLIT=FILE`` options."""
    paths: dict[str, str] = {}
    for option in options:
        split, equals, path = option.partition("=")
        if not (split and equals and path):
            raise ScoringError(f"{name} {option}: write SPLIT=FILE")
        if split in paths:
            raise ScoringError(f"{name} {option}: {split} was given before")
        paths[split] = path
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """Score a system and write the tables and the page.

    Args:
        argv: The arguments, by default those of the process.

    Returns:
        The exit status.
    """
    # The page is not needed to count errors, and imports what this module defines.
    from espnet_hra.report import page as report

    args = get_parser().parse_args(argv)
    folder = Path(args.out_dir)
    try:
        rows, utterances = score(args)
        rows = merge(read_table(folder / TSV, Row), rows)
        utterances = merge(read_table(folder / UTTERANCES, Utterance), utterances)
        write_table(folder / UTTERANCES, utterances, Utterance)
        write_table(folder / TSV, rows, Row)
        if args.report == "true":
            results = report.Results(rows, utterances)
            head = report.head(
                args.title or folder.resolve().name, args.command, args.note
            )
            report.write(results, folder, head, report.times(args.times))
    except (UserError, OSError) as error:
        print(f"scoring: {error}", file=sys.stderr)
        return 1
    print(
        report.rate_tables([row for row in rows if row.method in (FROZEN, args.method)])
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
