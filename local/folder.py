#!/usr/bin/env python3
"""Prepare anybody's folder of recordings with transcripts.

The folder has ``train``, ``dev`` and ``test`` with Kaldi's files ``wav.scp``,
``text``, ``utt2spk`` and optionally ``utt2task`` (without it every speaker is a
task), and is split as given. A folder that holds these files itself is split by
sentence, so that no sentence stands in two sets.
"""

import argparse
import itertools
import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from espnet_hra.data.intake import read_pieces, read_speakers
from espnet_hra.data.lists import read_entries, write_lists
from espnet_hra.data.sentences import sentence_key
from espnet_hra.files.tables import aligned
from espnet_hra.names import TASK_NAME

from corpus import (
    SPLITS,
    CorpusError,
    Split,
    one_line,
    safe_name,
)

#: The shares of a folder that is not split.
SPLIT = Split(test=0.1, dev=0.1, dev_start=0.1)

#: How many utterances a message names, and how many tasks a table.
NAMED, SHOWN = 5, 20


@dataclass(frozen=True)
class Line:
    """One utterance: its recording, transcript, speaker and task.

    Attributes:
        audio: The file (or what else wav.scp may name), as seen from any folder.
        text: The transcript.
        speaker: The speaker.
        task: The task.
        recording: The recording's id, if the utterance is a part of it.
        cut: Then, where it begins and ends there, as in segments.
    """

    audio: str
    text: str
    speaker: str
    task: str
    recording: str = ""
    cut: str = ""


def some(ids: Sequence[str]) -> str:
    """A few of many ids for a message, with the number of all."""
    names = ", ".join(ids[:NAMED])
    return f"{len(ids)}: {names}{', ...' if len(ids) > NAMED else ''}"


def read_set(folder: Path, run_pipes: bool = False) -> dict[str, Line]:
    """Read a data folder.

    Args:
        folder: The folder with ``wav.scp`` and the others.
        run_pipes: Whether commands may stand in ``wav.scp``.

    Returns:
        The utterances that stand in all files, by id.

    Raises:
        CorpusError: If no utterance is left, or none has a speaker.
        DataError: If a file is missing or damaged, or commands may not be run.
    """
    pieces = read_pieces(folder, run_pipes=run_pipes)
    columns = {"text": read_entries(folder / "text")}
    spoken = read_speakers(folder)
    if spoken is not None:
        columns["utt2spk"] = spoken
    if (folder / "utt2task").exists():
        columns["utt2task"] = read_entries(folder / "utt2task")
    if len(columns) == 1:
        raise CorpusError(f"there is neither {folder}/utt2spk nor {folder}/utt2task")
    tasks = columns.get("utt2task", columns.get("utt2spk", {}))
    speakers = columns.get("utt2spk", tasks)
    if "utt2task" in columns:
        check_tasks(tasks, folder)
    for name, column in columns.items():
        gone = sorted(set(pieces) ^ set(column))
        if gone:
            print(
                f"warning: {folder}: left out, as they are not in both wav.scp and "
                f"{name}: {some(gone)}",
                file=sys.stderr,
            )
    lines = {}
    for utt_id, piece in pieces.items():
        if all(utt_id in column for column in columns.values()):
            text = unicodedata.normalize(
                "NFC", " ".join(columns["text"][utt_id].split())
            )
            line = Line(piece.entry, text, speakers[utt_id], tasks[utt_id])
            if not piece.is_whole:
                end = -1 if piece.end is None else piece.end
                cut = f"{piece.start} {end}"
                line = replace(line, recording=piece.recording, cut=cut)
            lines[utt_id] = line
    if not lines:
        raise CorpusError(f"{folder} has no utterance with audio, text and speaker")
    return lines


def check_tasks(tasks: Mapping[str, str], folder: Path) -> None:
    """Check the names of tasks.

    Args:
        tasks: The tasks by utterance id.
        folder: Where they were read.

    Raises:
        CorpusError: If a name cannot be a task's.
    """
    bad = sorted({task for task in tasks.values() if not TASK_NAME.fullmatch(task)})
    if bad:
        raise CorpusError(
            f"{folder}/utt2task: these cannot be names of tasks, which have letters, "
            f"digits, '.', '_' and '-' only: {some([repr(task) for task in bad])}"
        )


def name_tasks(sets: Mapping[str, dict[str, Line]]) -> dict[str, str]:
    """Find valid names for tasks that are speakers with other names.

    Args:
        sets: The utterances by set and id; those of such speakers are changed.

    Returns:
        The new names by speaker.

    Raises:
        CorpusError: If a speaker has no name at all.
    """
    tasks = {line.task for lines in sets.values() for line in lines.values()}
    renamed = {}
    for task in sorted(tasks):
        if not TASK_NAME.fullmatch(task):
            # Accents go from letters, the rest becomes underscores.
            plain = unicodedata.normalize("NFKD", task)
            plain = "".join(c for c in plain if not unicodedata.combining(c))
            name = f"speaker{safe_name(plain)}"[:128]
            if TASK_NAME.fullmatch(safe_name(plain)[:128]):
                name = safe_name(plain)[:128]
            if not task:
                raise CorpusError(
                    "an utterance has a speaker without a name: write one in utt2spk, "
                    "or an utt2task with names of your choice"
                )
            # Names of another script all become the same.
            numbers = itertools.count(2)
            first = name
            while name in tasks or name in renamed.values():
                name = f"{first[:120]}_{next(numbers)}"
            renamed[task] = name
    for lines in sets.values():
        for utt_id, line in lines.items():
            if line.task in renamed:
                lines[utt_id] = replace(line, task=renamed[line.task])
    return renamed


def read_corpus(source: Path, run_pipes: bool = False) -> dict[str, dict[str, Line]]:
    """Read a corpus, split as given or by sentence.

    Args:
        source: The corpus's folder.
        run_pipes: Whether commands may stand in ``wav.scp``.

    Returns:
        The utterances by set and id.

    Raises:
        CorpusError: If it is not laid out as it should be.
    """
    present = [name for name in SPLITS if (source / name).is_dir()]
    if not present and (source / "wav.scp").exists():
        sets: dict[str, dict[str, Line]] = {name: {} for name in SPLITS}
        for utt_id, line in read_set(source, run_pipes).items():
            sets[SPLIT(line.text)][utt_id] = line
        empty = [name for name in SPLITS if not sets[name]]
        if empty:
            raise CorpusError(
                f"{source} has too few different sentences to be split (nothing is "
                f"left for {', '.join(empty)}): make train, dev and test yourself"
            )
        return sets
    missing = [name for name in SPLITS if name not in present]
    if missing:
        raise CorpusError(
            f"{source} has no folder {', '.join(missing)}: it needs train, dev and "
            "test with wav.scp, text and utt2spk each, or these files itself"
        )
    return {name: read_set(source / name, run_pipes) for name in SPLITS}


def overlap(sets: Mapping[str, Mapping[str, Line]]) -> list[str]:
    """Say which sets share sentences with the training set.

    Args:
        sets: The utterances by set and id.
    """
    known = {sentence_key(line.text) for line in sets["train"].values()}
    messages = []
    for name in SPLITS[1:]:
        shared = [
            u for u, line in sets[name].items() if sentence_key(line.text) in known
        ]
        if shared:
            messages.append(
                f"note: sentences of {name} that stand in train too, of "
                f"{len(sets[name])}: {some(sorted(shared))}"
            )
    return messages


def write_set(folder: Path, lines: Mapping[str, Line]) -> None:
    """Write a data folder, sorted by id as ``LC_ALL=C sort`` does."""
    ordered = sorted(lines.items())
    audio = {line.recording or utt_id: line.audio for utt_id, line in ordered}
    segments = None
    if any(line.cut for _, line in ordered):
        # Whole recordings among parts of others are parts as well.
        segments = [
            f"{utt_id} {line.recording or utt_id} {line.cut or '0 -1'}"
            for utt_id, line in ordered
        ]
    write_lists(
        folder,
        {
            "wav.scp": [f"{name} {entry}" for name, entry in sorted(audio.items())],
            "segments": segments,
            "text": [f"{utt_id} {line.text}" for utt_id, line in ordered],
            "utt2spk": [f"{utt_id} {line.speaker}" for utt_id, line in ordered],
            "utt2task": [f"{utt_id} {line.task}" for utt_id, line in ordered],
        },
    )


def count_table(sets: Mapping[str, Mapping[str, Line]]) -> str:
    """The utterances of each task in each set as a text table."""
    found = [Counter(line.task for line in lines.values()) for lines in sets.values()]
    tasks = sorted(set().union(*found))
    rows = [["utterances", *sets]]
    for task in tasks[:SHOWN]:
        rows.append([task, *(str(counts[task]) for counts in found)])
    if len(tasks) > SHOWN:
        rest = [sum(counts[t] for t in tasks[SHOWN:]) for counts in found]
        rows.append([f"{len(tasks) - SHOWN} more tasks", *map(str, rest)])
    rows.append(["all", *(str(len(lines)) for lines in sets.values())])
    return "\n".join(aligned(rows))


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        description=(
            "Check a folder of recordings with transcripts and write it as data "
            "folders DATADIR/NAME/{train,dev,test}. Audio stays where it is."
        )
    )
    parser.add_argument("--source", type=Path, required=True, help="the folder")
    parser.add_argument("--name", required=True, help="the corpus's name")
    parser.add_argument(
        "--datadir",
        type=Path,
        default=Path("data"),
        help="the folder to write into (default: data)",
    )
    parser.add_argument(
        "--run_pipes",
        choices=["true", "false"],
        default="false",
        help="let commands stand in wav.scp, which stage 3 runs (default: false)",
    )
    for option in ("--downloads", "--nj"):
        parser.add_argument(option, help="taken for the sake of other corpora")
    parser.add_argument("--part", nargs="+", help="taken for the sake of other corpora")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the corpus.

    Args:
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    args = get_parser().parse_args(arguments)
    with one_line():
        sets = read_corpus(args.source, args.run_pipes == "true")
        renamed = name_tasks(sets)
        for name, lines in sets.items():
            write_set(args.datadir / args.name / name, lines)
    for speaker, task in list(renamed.items())[:SHOWN]:
        print(f"note: the task of speaker {speaker} is called {task}")
    if len(renamed) > SHOWN:
        print(f"note: so were {len(renamed) - SHOWN} more; all names: utt2task")
    print(count_table(sets))
    for message in overlap(sets):
        print(message)
    return 0


if __name__ == "__main__":
    sys.exit(main())
