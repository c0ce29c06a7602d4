#!/usr/bin/env python3
"""Copy data folders to where a run reads them, with audio that ESPnet reads.

What is mono FLAC or WAV of the rate wanted (--fs) is named where it lies; all else is
converted to FLAC. Audio that cannot be read keeps its place in the list: the
validation that follows reports it together with everything else that is bad.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import soundfile

from espnet_hra.data.audio import SAMPLE_RATE, Conversion, convert_all
from espnet_hra.data.lists import read_entries, write_lists
from espnet_hra.data.progress import Progress

from corpus import CorpusError, one_line, safe_name

COLUMNS = ("wav.scp", "text", "utt2spk", "utt2task")


def is_ready(path: str, rate: int) -> bool:
    """Whether ESPnet can read a file as it is; also where nobody can read it."""
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError):
        return not os.path.exists(path)
    return (
        info.format in ("FLAC", "WAV", "WAVEX")
        and info.samplerate == rate
        and info.channels == 1
    )


def stamp(path: str) -> str:
    """What changes when a file does, without reading it."""
    try:
        status = os.stat(path)
    except OSError:
        return f"{path} missing"
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def target_of(utt_id: str, source: str, folder: Path, rate: int) -> str:
    """The FLAC file of a converted recording; another one if source or rate change."""
    kind = "" if rate == SAMPLE_RATE else f" at {rate}"
    digest = hashlib.sha256(f"{stamp(source)}{kind}".encode()).hexdigest()[:12]
    return str(folder / f"{safe_name(utt_id)[:100]}-{digest}.flac")


def format_set(
    data: Path,
    dump: Path,
    audio: Path,
    tasks: Sequence[str] | None,
    nj: int,
    rate: int,
) -> str:
    """Write one data folder.

    Args:
        data: The folder to read.
        dump: The folder to write.
        audio: The folder for converted recordings.
        tasks: The tasks to keep, None for all.
        nj: The number of processes.
        rate: The sampling rate that the model wants, in Hz.

    Returns:
        A line that says what was done.

    Raises:
        CorpusError: If a task is unknown, or an utterance lacks something.
    """
    columns = {name: read_entries(data / name) for name in COLUMNS}
    ids = sorted(columns["wav.scp"])
    for name, column in columns.items():
        if ids != sorted(column):
            odd = sorted(set(ids) ^ set(column))[0]
            raise CorpusError(f"{data}: {odd} is not in both wav.scp and {name}")
    if tasks is not None:
        known = sorted(set(columns["utt2task"].values()))
        unknown = [task for task in tasks if task not in known]
        if unknown:
            raise CorpusError(
                f"{data} has no task {', '.join(unknown)}; it has: {', '.join(known)}"
            )
        ids = [utt_id for utt_id in ids if columns["utt2task"][utt_id] in tasks]
    sources = columns["wav.scp"]
    paths = dict(sources)
    jobs: list[Conversion] = []
    for utt_id in ids:
        if not is_ready(sources[utt_id], rate):
            paths[utt_id] = target_of(utt_id, sources[utt_id], audio.absolute(), rate)
            jobs.append(Conversion(sources[utt_id], paths[utt_id], rate=rate))
    _, failures = convert_all(jobs, nj, Progress("converted")) if jobs else ({}, {})
    for message in failures.values():
        print(f"warning: {message}", file=sys.stderr, flush=True)
    for utt_id in ids:
        if paths[utt_id] in failures:
            paths[utt_id] = sources[utt_id]
    columns["wav.scp"] = paths
    lists = {
        name: [f"{utt_id} {column[utt_id]}" for utt_id in ids]
        for name, column in columns.items()
    }
    stamps = "\n".join(stamp(sources[utt_id]) for utt_id in ids)
    digest = hashlib.sha256(stamps.encode("utf-8")).hexdigest()
    write_lists(dump, {**lists, "audio_stamp": [digest]})
    converted = len(jobs) - len(failures)
    return f"{dump.name}: {len(ids)} utterances, {converted} of them converted"


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
                args.data / name, args.dump / name, audio, tasks, args.nj, args.fs
            )
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
