#!/usr/bin/env python3
"""Copy data folders to where a run reads them, with audio that ESPnet reads.

What is mono FLAC or WAV of the rate wanted (--fs) is named where it lies; all else is
converted to FLAC, segments are cut, and commands are run (with --run_pipes true): it is
`espnet-hra format` for the recipe's sets and tasks. With --classify lang, utterances
stand there once more, as those of the task lang, with labels in utt2lang as texts.
With --train_utterances 3, each task keeps three of the set train; a larger number keeps
those of a smaller one, too. Audio that cannot be read keeps
its place in the list: the validation that follows reports it together with everything
else that is bad.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_hra.data.audio import SAMPLE_RATE
from espnet_hra.data.intake import make_plain, read_pieces, some_failures, stamp
from espnet_hra.data.lists import nested, read_entries, write_lists
from espnet_hra.names import check_task_name
from espnet_hra.tasks.config import CLASSIFY

from corpus import CorpusError, one_line

#: The set whose utterances --train_utterances counts.
TRAIN = "train"
COLUMNS = ("text", "utt2spk", "utt2task")


@dataclass
class Labels:
    """The labels that some tasks tell.

    Attributes:
        tasks: Their names; the labels of ``lang`` stand in ``utt2lang``.
        folders: Where else than in the data these lists may be.
        known: The labels of each, those of the first set that is written; others are
            left out of later ones, as nothing teaches them.
        others: The names of the other tasks of that set.
    """

    tasks: Sequence[str]
    folders: Sequence[Path] = ()
    others: Sequence[str] = ()
    known: dict[str, list[str]] = field(default_factory=dict)

    def of(self, task: str, data: Path) -> dict[str, str]:
        """The labels of a task's utterances.

        Raises:
            CorpusError: There are none, or one is no word.
        """
        found: dict[str, str] = {}
        lists = [folder / f"utt2{task}" for folder in (*self.folders, data)]
        for path in lists:
            if path.is_file():
                found.update(read_entries(path))
        if not found:
            raise CorpusError(
                f"--classify {task}: there is no {lists[-1]}, nor one in the corpus: "
                "write a line for each utterance, its id, a space, its label"
            )
        odd = sorted(u for u, label in found.items() if label.split() != [label])
        if odd:
            raise CorpusError(
                f"--classify {task}: {odd[0]}: {found[odd[0]]!r} is no label, which is "
                f"one word: correct utt2{task}"
            )
        return found

    def records(self) -> list[str]:
        """All tasks as ``encoder_conf: tasks`` takes them, one a line."""
        own = [
            json.dumps({"name": task, "head": CLASSIFY, "labels": labels})
            for task, labels in self.known.items()
        ]
        return [*self.others, *own]


def add_labels(
    columns: dict[str, dict[str, str]], ids: list[str], data: Path, labels: Labels
) -> tuple[dict[str, str], int]:
    """Let utterances stand there once more, for the tasks that tell labels.

    Args:
        columns: The lists of a data folder, which grow.
        ids: Its utterances, which grow.
        data: The folder.
        labels: The tasks.

    Returns:
        Of what each new utterance is another copy; and how many were left out, as
        their label is not among those that can be learned.

    Raises:
        CorpusError: A task's name is taken, or it has fewer than two labels.
    """
    copies: dict[str, str] = {}
    unknown, own = 0, list(ids)
    for task in labels.tasks:
        if task in columns["utt2task"].values():
            raise CorpusError(
                f"--classify {task}: the corpus has a task of this name: rename it, or "
                f"the list utt2{task}"
            )
        found = labels.of(task, data)
        told = {u: found[u] for u in own if u in found}
        known = labels.known.setdefault(task, sorted(set(told.values())))
        if len(known) < 2:
            raise CorpusError(
                f"--classify {task}: the utterances of {data.name} have fewer than two "
                f"labels in utt2{task} ({', '.join(known) or 'none'})"
            )
        for utt_id, label in told.items():
            if label not in known:
                unknown += 1
                continue
            copy = f"{task}-{utt_id}"
            copies[copy] = utt_id
            columns["text"][copy] = label
            columns["utt2spk"][copy] = columns["utt2spk"][utt_id]
            columns["utt2task"][copy] = task
    twice = sorted(copies.keys() & set(own))
    if twice:
        raise CorpusError(f"{data}: {twice[0]} is an utterance already: rename it")
    ids += copies
    ids.sort()
    return copies, unknown


def some_of_each(
    ids: Sequence[str], tasks: Mapping[str, str], number: int
) -> list[str]:
    """So many utterances of each task, spread over its own; all of one that has fewer.

    Args:
        ids: The utterances, in order.
        tasks: The task of each.
        number: How many of a task.
    """
    of: dict[str, list[str]] = {}
    for utt_id in ids:
        of.setdefault(tasks[utt_id], []).append(utt_id)
    return sorted(utt_id for own in of.values() for utt_id in nested(own, number))


def format_set(
    data: Path,
    dump: Path,
    audio: Path,
    tasks: Sequence[str] | None,
    nj: int,
    rate: int,
    run_pipes: bool = False,
    moved: Sequence[str] = (),
    labels: Labels | None = None,
    most: int | None = None,
) -> str:
    """Write one data folder.

    Args:
        data: The folder to read.
        dump: The folder to write.
        audio: The folder for converted recordings.
        tasks: The tasks to keep, None for all.
        nj: The number of processes.
        rate: The sampling rate that the model wants, in Hz.
        run_pipes: Whether commands may be run.
        moved: Folders that have moved, each with its first place behind it: files have
            the stamps that they had there.
        labels: The tasks that tell labels.
        most: How many utterances of a task to keep, None for all.

    Returns:
        A line that says what was done.

    Raises:
        CorpusError: If a task is unknown, or an utterance lacks something.
        DataError: If a list is damaged.
    """
    pieces = read_pieces(data, run_pipes=run_pipes)
    columns = {name: read_entries(data / name) for name in COLUMNS}
    ids = sorted(pieces)
    for name, column in columns.items():
        if ids != sorted(column):
            odd = sorted(set(ids) ^ set(column))[0]
            raise CorpusError(f"{data}: {odd} is not among both recordings and {name}")
    if tasks is not None:
        known = sorted(set(columns["utt2task"].values()))
        unknown = [task for task in tasks if task not in known]
        if unknown:
            raise CorpusError(
                f"{data} has no task {', '.join(unknown)}; it has: {', '.join(known)}"
            )
        ids = [utt_id for utt_id in ids if columns["utt2task"][utt_id] in tasks]
    if most is not None:
        ids = some_of_each(ids, columns["utt2task"], most)
    made = make_plain({utt_id: pieces[utt_id] for utt_id in ids}, audio, rate, nj)
    for line in some_failures(made.failures):
        print(f"warning: {line}", file=sys.stderr, flush=True)
    more = ""
    if labels is not None and labels.tasks:
        if not labels.known:
            labels.others = sorted({columns["utt2task"][utt_id] for utt_id in ids})
        copies, unknown = add_labels(columns, ids, data, labels)
        paths = {copy: made.paths[utt_id] for copy, utt_id in copies.items()}
        made.paths.update(paths)
        more = f", {len(copies)} once more for {', '.join(labels.tasks)}"
        if unknown:
            more += f" ({unknown} left out: their label is not in the training data)"
    columns["wav.scp"] = made.paths
    lists = {
        name: [f"{utt_id} {column[utt_id]}" for utt_id in ids]
        for name, column in columns.items()
    }
    stamps = "\n".join(stamp(pieces[u].entry) for u in ids if u in pieces)
    for place, first in zip(moved[::2], moved[1::2], strict=True):
        stamps = stamps.replace(f"{place}/", f"{first}/")
    digest = hashlib.sha256(stamps.encode("utf-8")).hexdigest()
    write_lists(dump, {**lists, "audio_stamp": [digest]})
    said = f"{dump.name}: {len(ids)} utterances, {made.converted} of them converted"
    return said + more


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Copy data folders, with audio as mono FLAC or WAV of one rate."
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder to read")
    parser.add_argument("--dump", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--audio",
        type=Path,
        help="the folder for converted audio (default: DUMP/audio)",
    )
    parser.add_argument("--sets", nargs="+", required=True, help="the data sets")
    parser.add_argument("--tasks", nargs="*", help="the tasks to keep (default: all)")
    parser.add_argument(
        "--train_utterances",
        type=int,
        metavar="N",
        help=f"so many utterances of each task in {TRAIN} (default: all)",
    )
    parser.add_argument(
        "--classify",
        nargs="*",
        default=[],
        metavar="NAME",
        help="tasks that tell labels: lang those in utt2lang, and so on",
    )
    parser.add_argument(
        "--labels",
        nargs="*",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="where such lists may be besides the data folders",
    )
    parser.add_argument(
        "--all_tasks", nargs="*", default=[], help="the data sets to keep whole"
    )
    parser.add_argument(
        "--fs",
        type=int,
        default=SAMPLE_RATE,
        help=f"the sampling rate in Hz (default: {SAMPLE_RATE})",
    )
    parser.add_argument(
        "--run_pipes",
        choices=["true", "false"],
        default="false",
        help="run the commands in wav.scp (default: false)",
    )
    parser.add_argument(
        "--moved",
        nargs="*",
        default=[],
        help="folders that have moved, each with its first place behind it",
    )
    parser.add_argument("--nj", type=int, default=2, help="the number of processes")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy the data folders.

    Args:
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    args = get_parser().parse_args(arguments)
    with one_line():
        labels = Labels([check_task_name(name) for name in args.classify], args.labels)
        for name in [*args.sets, *args.all_tasks]:
            tasks = args.tasks if args.tasks and name in args.sets else None
            audio = args.audio or args.dump / "audio"
            line = format_set(
                args.data / name,
                args.dump / name,
                audio,
                tasks,
                args.nj,
                args.fs,
                args.run_pipes == "true",
                args.moved,
                labels if name in args.sets else None,
                args.train_utterances if name == TRAIN else None,
            )
            print(line, flush=True)
        if labels.tasks:
            write_lists(args.dump, {"records": labels.records()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
