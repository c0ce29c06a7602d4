"""`espnet-hra score`: error rates of a system per task and split."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from espnet_hra.data.lists import read_entries
from espnet_hra.files.tables import read_table
from espnet_hra.report import examples, health, page
from espnet_hra.report.faults import Fault
from espnet_hra.report.results import FROZEN, FaultyTask, Results, read_params
from espnet_hra.report.scoring import ScoringError, errors_by_task, tabulate
from espnet_hra.tasks.config import labels_by_task

_EXAMPLE = """example:
  espnet-hra score --method hra --seed 1 --params exp/hra/params.json \\
      --ref dev=dump/dev/text --ref test=dump/test/text \\
      --hyp dev=exp/hra/decode/dev/text --hyp test=exp/hra/decode/test/text \\
      --utt2task dump/dev/utt2task --utt2task dump/test/utt2task --out_dir exp

writes results.tsv and, with the errors of each utterance, utterances.tsv for programs,
and RESULTS.md with its pictures for people; rows of other methods, tasks, splits and
seeds stay as they are. The exit status is 3 if a task makes far more errors than with
the frozen backbone, or exactly as many, or if its adapter does not work (--faults).
"""


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    from espnet2.utils.types import str2bool

    parser = argparse.ArgumentParser(
        prog="espnet-hra score",
        description=(
            "Score a system per task and split: results.tsv and utterances.tsv for "
            "programs, RESULTS.md and pictures for people. CER counts spaces; nothing "
            "is normalised but white space and Unicode (NFC)."
        ),
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        "--before",
        metavar="SPLIT=FILE",
        help="texts of the frozen backbone: a sentence of each task before and after",
    )
    parser.add_argument(
        "--utt2task", action="append", default=[], help="tasks (repeatable)"
    )
    parser.add_argument(
        "--tasks",
        metavar="FILE",
        help="the tasks, one a line, as encoder_conf: tasks may name them: of those "
        "that classify, texts are labels, and the frozen backbone has no answer",
    )
    parser.add_argument("--task", help="the task of all utterances without utt2task")
    parser.add_argument(
        "--params", help="params.json, which training writes, for the two next counts"
    )
    parser.add_argument(
        "--faults",
        metavar="SPLIT=FILE",
        help="what `diagnose --faults` has found on a split",
    )
    parser.add_argument("--shared_params", type=int, help="shared parameters")
    parser.add_argument("--task_params", type=int, help="parameters of each task")
    parser.add_argument("--out_dir", required=True, help="where all of them are")
    parser.add_argument(
        "--report",
        type=str2bool,
        default=True,
        help="whether to write RESULTS.md and pictures too (default: true)",
    )
    parser.add_argument("--title", help="title of RESULTS.md (default: the folder)")
    parser.add_argument("--note", help="what a reader of RESULTS.md must know")
    parser.add_argument("--command", help="the command to name in RESULTS.md")
    parser.add_argument("--times", help="stages, titles and seconds, with tabs between")
    return parser


def score(args: argparse.Namespace) -> Results:
    """The lines of one system.

    Args:
        args: The options of :func:`get_parser`.

    Raises:
        UserError: If something cannot be read or scored.
    """
    shared, of_task = 0, dict[str, int]()
    if args.params is not None:
        shared, of_task = read_params(args.params)
    elif args.method != FROZEN and None in (args.shared_params, args.task_params):
        raise ScoringError("give --params, or --shared_params and --task_params")
    if args.shared_params is not None:
        shared = args.shared_params
    references, hypotheses = _by_split(args.ref, "--ref"), _by_split(args.hyp, "--hyp")
    for split in sorted(references.keys() ^ hypotheses.keys()):
        raise ScoringError(f"{split}: there must be both --ref and --hyp")
    utt2task: dict[str, str] = {}
    for path in args.utt2task:
        utt2task.update(read_entries(path))
    results, classify = Results([], []), _classify(args)
    for split, path in references.items():
        texts = read_entries(path)
        if args.method == FROZEN:
            texts = _without(texts, utt2task, classify)
        if args.task is not None:
            utt2task = {**dict.fromkeys(texts, args.task), **utt2task}
        try:
            by_task = errors_by_task(
                texts, read_entries(hypotheses[split]), utt2task, classify
            )
        except ScoringError as error:
            raise ScoringError(f"{args.method}, {split}: {error}") from error
        if args.task_params is not None or args.params is None:
            of_task = dict.fromkeys(by_task, args.task_params or 0)
        for task in by_task:
            if task not in of_task:
                raise ScoringError(f"{args.params} has no parameters of task {task}")
        new = tabulate(by_task, args.method, split, args.seed, shared, of_task)
        results = results.merged(new)
    return replace(results, faults=_faults(args))


def _faults(args: argparse.Namespace) -> list[FaultyTask]:
    """What was seen inside the model."""
    if args.faults is None:
        return []
    ((split, path),) = _by_split([args.faults], "--faults").items()
    if not Path(path).is_file():
        raise ScoringError(f"--faults {args.faults}: there is no such file")
    return [
        FaultyTask(args.method, one.task, split, args.seed, one.why)
        for one in read_table(path, Fault)
    ]


def _examples(args: argparse.Namespace) -> tuple[list[examples.Example], str]:
    """A sentence of each task, and the split that it is of."""
    if args.before is None:
        return [], ""
    ((split, path),) = _by_split([args.before], "--before").items()
    found = [_by_split(given, "") for given in (args.ref, args.hyp)]
    if split not in found[0]:
        raise ScoringError(f"--before {args.before}: there is no --ref of {split}")
    references, after = (read_entries(texts[split]) for texts in found)
    utt2task = dict.fromkeys(references, args.task) if args.task is not None else {}
    for name in args.utt2task:
        utt2task.update(read_entries(name))
    before = read_entries(path)
    references, before, after = (
        _without(texts, utt2task, _classify(args))
        for texts in (references, before, after)
    )
    return examples.typical(references, before, after, utt2task), split


def _classify(args: argparse.Namespace) -> list[str]:
    """The tasks whose answers are labels."""
    return list(labels_by_task({"tasks": args.tasks}))


def _without(
    texts: dict[str, str], utt2task: dict[str, str], tasks: Sequence[str]
) -> dict[str, str]:
    """The texts of other tasks than these."""
    return {u: text for u, text in texts.items() if utt2task.get(u) not in tasks}


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
        The exit status: 3 if a task has become worse, or nothing was learned.

    Raises:
        UserError: Something cannot be read, scored or written.
    """
    args = get_parser().parse_args(argv)
    folder = Path(args.out_dir)
    new = score(args)
    shown, split = _examples(args)
    results = Results.read(folder).merged(new)
    try:
        results.write(folder)
        if args.report:
            title = args.title or folder.resolve().name
            opening = page.head(title, args.command, args.note)
            closing = page.times(args.times)
            if shown:
                closing = f"{examples.for_page(shown, split)}\n{closing}"
            page.write(results, folder, opening, closing)
    except OSError as error:
        raise ScoringError(f"cannot write the results: {error}") from error
    rows = [row for row in results.rows if row.method in (FROZEN, args.method)]
    print(page.rate_tables(rows))
    if shown:
        print(examples.for_terminal(shown))
    sick = [
        one
        for one in health.sick(**vars(results))
        if (one.method, one.seed) == (args.method, args.seed)
    ]
    for one in sick:
        print(f"espnet-hra score: {one.line()}", file=sys.stderr)
    return health.NEEDS_A_LOOK if sick else 0
