#!/usr/bin/env python3
"""Copy data folders to where a run reads them, with audio that ESPnet reads.

What is mono FLAC or WAV of the rate wanted (--fs) is named where it lies; all else is
converted to FLAC, segments are cut, and commands are run (with --run_pipes true): it is
`espnet-hra format` for the recipe's sets and tasks. Audio that cannot be read keeps its
place in the list: the validation that follows reports it together with everything else
that is bad.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.data.audio import SAMPLE_RATE
from espnet_hra.data.intake import make_plain, read_pieces, some_failures, stamp
from espnet_hra.data.lists import read_entries, write_lists

from corpus import CorpusError, one_line

COLUMNS = ("text", "utt2spk", "utt2task")


def format_set(
    data: Path,
    dump: Path,
    audio: Path,
    tasks: Sequence[str] | None,
    nj: int,
    rate: int,
    run_pipes: bool = False,
    moved: Sequence[str] = (),
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
    made = make_plain({utt_id: pieces[utt_id] for utt_id in ids}, audio, rate, nj)
    for line in some_failures(made.failures):
        print(f"warning: {line}", file=sys.stderr, flush=True)
    columns["wav.scp"] = made.paths
    lists = {
        name: [f"{utt_id} {column[utt_id]}" for utt_id in ids]
        for name, column in columns.items()
    }
    stamps = "\n".join(stamp(pieces[utt_id].entry) for utt_id in ids)
    for place, first in zip(moved[::2], moved[1::2], strict=True):
        stamps = stamps.replace(f"{place}/", f"{first}/")
    digest = hashlib.sha256(stamps.encode("utf-8")).hexdigest()
    write_lists(dump, {**lists, "audio_stamp": [digest]})
    return f"{dump.name}: {len(ids)} utterances, {made.converted} of them converted"


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
            )
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
