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

    python -m espnet_hra.scoring --method hra --seed 1 --params exp/hra/params.json \\
        --ref dev=dump/dev/text --ref test=dump/test/text \\
        --hyp dev=exp/hra/decode/dev/text --hyp test=exp/hra/decode/test/text \\
        --utt2task dump/dev/utt2task --utt2task dump/test/utt2task --out_dir exp

writes ``results.tsv`` for programs and ``RESULTS.md`` for people; rows of other
methods, tasks, splits and seeds stay as they are.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import unicodedata
from dataclasses import astuple, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

import jiwer

from espnet_hra import __version__

PathLike = Union[str, "os.PathLike[str]"]

#: The method of the frozen backbone's rows.
FROZEN = "none"

#: The names of the two files.
TSV, MARKDOWN = "results.tsv", "RESULTS.md"

#: A table with more tasks than this has them as rows instead of columns.
WIDEST = 8

_NAMED = 5


class ScoringError(ValueError):
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
    def key(self) -> Tuple[str, str, str, int]:
        """What a later row must share to take this one's place."""
        return self.method, self.task, self.split, self.seed

    def line(self) -> str:
        """The row with tabs between the columns."""
        values = astuple(self)
        return "\t".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in values)


HEADER = "\t".join(field.name for field in fields(Row))


# --------------------------------------------------------------------- error rates


def count_errors(pairs: Iterable[Tuple[str, str]]) -> Errors:
    """Count the errors of hypotheses.

    Args:
        pairs: Reference and hypothesis of each utterance; either may be empty.

    Returns:
        The sums over all utterances.
    """
    pairs = [(_tidy(reference), _tidy(hypothesis)) for reference, hypothesis in pairs]
    # Everything said where nothing should be is an insertion; jiwer's opinion on
    # empty references has changed between its versions.
    spoken = [pair for pair in pairs if pair[0]]
    silent = [hypothesis for reference, hypothesis in pairs if not reference]
    word_errors = sum(len(hypothesis.split()) for hypothesis in silent)
    character_errors = sum(map(len, silent))
    if spoken:
        references, hypotheses = map(list, zip(*spoken))
        words = jiwer.process_words(references, hypotheses)
        characters = jiwer.process_characters(references, hypotheses)
        for_words = words.substitutions + words.deletions + words.insertions
        word_errors += for_words
        character_errors += (
            characters.substitutions + characters.deletions + characters.insertions
        )
    return Errors(
        utterances=len(pairs),
        words=sum(len(reference.split()) for reference, _ in pairs),
        characters=sum(len(reference) for reference, _ in pairs),
        word_errors=word_errors,
        character_errors=character_errors,
    )


def errors_by_task(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    utt2task: Mapping[str, str],
) -> Dict[str, Errors]:
    """Count the errors of each task in one split.

    Args:
        references: The reference by utterance.
        hypotheses: The hypothesis by utterance.
        utt2task: The task by utterance; more utterances than needed do no harm.

    Returns:
        The errors by task, in alphabetical order.

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
    pairs: Dict[str, List[Tuple[str, str]]] = {}
    for utterance, reference in references.items():
        pair = reference, hypotheses[utterance]
        pairs.setdefault(utt2task[utterance], []).append(pair)
    return {task: count_errors(pairs[task]) for task in sorted(pairs)}


def read_text(path: PathLike) -> Dict[str, str]:
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
    texts: Dict[str, str] = {}
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            key, *rest = line.strip().split(maxsplit=1)
            if key in texts:
                raise ScoringError(f"{path}, line {number}: {key} stands twice")
            texts[key] = rest[0] if rest else ""
    return texts


def read_params(path: PathLike) -> Tuple[int, Dict[str, int]]:
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


def read_results(path: PathLike) -> List[Row]:
    """Read ``results.tsv``; no rows if there is no such file.

    Args:
        path: The file.

    Raises:
        ScoringError: If it has other columns, or a damaged line.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[0].rstrip("\r") != HEADER:
        raise ScoringError(
            f"{path} has other columns than {HEADER.split()}: move it away"
        )
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            values = line.rstrip("\r").split("\t")
            kinds = [field.type for field in fields(Row)]
            rows.append(Row(*(k(v) for k, v in zip(kinds, values, strict=True))))
        except ValueError as error:
            raise ScoringError(f"{path}, line {number}: {error}") from error
    return rows


def merge(old: Sequence[Row], new: Sequence[Row]) -> List[Row]:
    """Put new rows in the place of old ones with the same key, or behind them."""
    replaced = {row.key: row for row in new}
    merged = [replaced.pop(row.key, row) for row in old]
    return merged + list(replaced.values())


def write_results(path: PathLike, rows: Sequence[Row]) -> None:
    """Write ``results.tsv``, which appears under its name only when it is whole."""
    _write(Path(path), "\n".join([HEADER, *(row.line() for row in rows)]) + "\n")


def markdown_tables(rows: Sequence[Row]) -> str:
    """The tables for people, CER and WER of each split.

    Args:
        rows: All rows of ``results.tsv``.

    Returns:
        Markdown. Several seeds of a method are averaged. Each method's mean over
        tasks is compared with the frozen backbone's.
    """
    parts = []
    for split in _ordered(row.split for row in rows):
        chosen = [row for row in rows if row.split == split]
        parts.append(f"## {split}\n")
        parts.append(_sizes(chosen))
        for measure in ("cer", "wer"):
            parts.append(f"### {measure.upper()} (%)\n")
            parts.append(_rates(chosen, measure))
    return "\n".join(parts)


def _sizes(rows: Sequence[Row]) -> str:
    """The utterances and words of each task."""
    by_task = {row.task: row for row in rows}
    counts = [f"{task} {row.utterances} / {row.words}" for task, row in by_task.items()]
    return f"Utterances / words: {', '.join(counts)}.\n"


def _rates(rows: Sequence[Row], measure: str) -> str:
    """One table: methods, their size, tasks, the mean and its change."""
    methods = _ordered(row.method for row in rows)
    tasks = _ordered(row.task for row in rows)
    means: Dict[str, float] = {}
    columns: Dict[str, List[str]] = {}
    for method in methods:
        own = [row for row in rows if row.method == method]
        rates = {
            task: [getattr(row, measure) for row in own if row.task == task]
            for task in tasks
        }
        complete = all(rates.values())
        cells = [f"{_mean(r):.1f}" if r else "" for r in rates.values()]
        if complete:
            means[method] = _mean([_mean(r) for r in rates.values()])
        mean = f"{means[method]:.1f}" if complete else ""
        sizes = sorted({row.task_params for row in own})
        columns[method] = [
            str(len({row.seed for row in own})),
            f"{max(row.shared_params for row in own):,}",
            "-".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1]))),
            *cells,
            mean,
            _change(means.get(method), means.get(FROZEN), method),
        ]
    head = ["seeds", "shared", "per task", *tasks, "mean", "change"]
    if len(tasks) > WIDEST:
        table = [["", *methods]]
        table += [[h, *(columns[m][i] for m in methods)] for i, h in enumerate(head)]
    else:
        table = [["method", *head], *([m, *columns[m]] for m in methods)]
    return _table(table)


def _change(mean: Optional[float], frozen: Optional[float], method: str) -> str:
    """The relative change of a mean against the frozen backbone's."""
    if method == FROZEN or mean is None or not frozen or math.isnan(mean):
        return ""
    return f"{100.0 * (mean - frozen) / frozen:+.1f} %"


def _table(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = [[_escape(cell) for cell in row] for row in cells]
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("|" + "|".join(row) + "|" for row in (head, rule, *body)) + "\n"


def environment(folder: PathLike) -> str:
    """The block on versions that opens ESPnet's results.

    Args:
        folder: A folder of the repository, for the commit.
    """
    lines = [
        f"- date: `{time.strftime('%a %b %d %H:%M:%S %Z %Y')}`",
        f"- python version: `{platform.python_version()}`",
    ]
    for name in ("espnet", "torch"):
        lines.append(f"- {name} version: `{_version(name)}`")
    lines.append(f"- espnet-hra version: `{__version__}`")
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        changed = " (with changes)" if _git(folder, "status", "--porcelain") else ""
        lines.append(f"- Git hash: `{commit}`{changed}")
        date = _git(folder, "log", "-1", "--format=%cd")
        lines.append(f"  - Commit date: `{date}`")
    return "\n".join(lines) + "\n"


def markdown(
    rows: Sequence[Row],
    title: str,
    note: Optional[str] = None,
    command: Optional[str] = None,
    times: Optional[PathLike] = None,
) -> str:
    """All of ``RESULTS.md``.

    Args:
        rows: All rows of ``results.tsv``.
        title: What the results are of.
        note: What a reader must know about them.
        command: The command that made them.
        times: A file with stage, title and seconds in columns (tabs between); a
            variant may stand behind the stage.
    """
    parts = [f"# RESULTS: {title}\n", "## Environments\n", environment(Path.cwd())]
    if command:
        parts.append(f"## Command\n\n```bash\n{command}\n```\n")
    if note:
        parts.append(f"**Note:** {note}\n")
    parts.append(
        "CER counts spaces; `none` is the frozen backbone; `shared` and `per task` are "
        "trained parameters; `mean` gives all tasks the same weight, and `change` is "
        "its relative change against `none`.\n"
    )
    parts.append(markdown_tables(rows))
    if times is not None and Path(times).exists():
        parts.append(f"## Time\n\n{_times(Path(times))}")
    return "\n".join(parts)


def _times(path: Path) -> str:
    """The table of the stages' times; a stage may have run in several variants."""
    cells = [["stage", "", "seconds"]]
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            key, title, seconds = [*line.split("\t"), "", ""][:3]
            stage, _, variant = key.partition(" ")
            named = f"{title} ({variant})" if variant not in ("", "-") else title
            cells.append([stage, named, seconds])
    return _table(cells)


# -------------------------------------------------------------------------- helpers


def _tidy(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _percent(errors: int, length: int) -> float:
    return 100.0 * errors / length if length else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ordered(names: Iterable[str]) -> List[str]:
    """Distinct names in order of appearance, the frozen backbone first."""
    return sorted(dict.fromkeys(names), key=lambda name: name != FROZEN)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _some(ids: Sequence[str]) -> str:
    more = ", ..." if len(ids) > _NAMED else ""
    noun = "utterance" if len(ids) == 1 else "utterances"
    return f"{len(ids)} {noun} ({', '.join(ids[:_NAMED])}{more})"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git(folder: PathLike, *arguments: str) -> str:
    """What git says, nothing where it cannot say anything."""
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _write(path: Path, content: str) -> None:
    """Write a file that appears under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(content)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


# --------------------------------------------------------------------- command line


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet_hra.scoring",
        description=(
            "Score a system per task and split: results.tsv for programs, RESULTS.md "
            "for people. CER counts spaces; nothing is normalised but white space and "
            "Unicode (NFC)."
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
    parser.add_argument("--out_dir", required=True, help="where the two files are")
    parser.add_argument("--title", help="title of RESULTS.md (default: the folder)")
    parser.add_argument("--note", help="what a reader of RESULTS.md must know")
    parser.add_argument("--command", help="the command to name in RESULTS.md")
    parser.add_argument("--times", help="stages, titles and seconds, with tabs between")
    return parser


def score(args: argparse.Namespace) -> List[Row]:
    """The rows of one system.

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
    utt2task: Dict[str, str] = {}
    for path in args.utt2task:
        utt2task.update(read_text(path))
    rows = []
    for split, path in references.items():
        texts = read_text(path)
        if args.task is not None:
            utt2task = {**dict.fromkeys(texts, args.task), **utt2task}
        try:
            by_task = errors_by_task(texts, read_text(hypotheses[split]), utt2task)
        except ScoringError as error:
            raise ScoringError(f"{args.method}, {split}: {error}") from error
        for task, errors in by_task.items():
            if args.task_params is not None or args.params is None:
                task_params = args.task_params or 0
            elif task in per_task:
                task_params = per_task[task]
            else:
                raise ScoringError(f"{args.params} has no parameters of task {task}")
            rows.append(
                Row(
                    args.method,
                    task,
                    split,
                    args.seed,
                    shared,
                    task_params,
                    errors.utterances,
                    errors.words,
                    errors.cer,
                    errors.wer,
                )
            )
    return rows


def _by_split(options: Sequence[str], name: str) -> Dict[str, str]:
    """Read ``SPLIT=FILE`` options."""
    paths: Dict[str, str] = {}
    for option in options:
        split, equals, path = option.partition("=")
        if not (split and equals and path):
            raise ScoringError(f"{name} {option}: write SPLIT=FILE")
        if split in paths:
            raise ScoringError(f"{name} {option}: {split} was given before")
        paths[split] = path
    return paths


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Score a system and write the two files.

    Args:
        argv: The arguments, by default those of the process.

    Returns:
        The exit status.
    """
    args = get_parser().parse_args(argv)
    folder = Path(args.out_dir)
    try:
        rows = merge(read_results(folder / TSV), score(args))
        write_results(folder / TSV, rows)
        title = args.title or folder.resolve().name
        page = markdown(rows, title, args.note, args.command, args.times)
        _write(folder / MARKDOWN, page)
    except (ScoringError, OSError) as error:
        print(f"scoring: {error}", file=sys.stderr)
        return 1
    print(markdown_tables([row for row in rows if row.method in (FROZEN, args.method)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
