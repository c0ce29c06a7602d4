#!/usr/bin/env python3
"""Prepare the corpus ``mini_an4``: seven utterances that ESPnet brings along.

ESPnet's package carries a handful of recordings of the AN4 database (Carnegie
Mellon University, free for any use) for its own tests. Two tasks are made of
them, ``female`` and ``male``. The dev set is the training set: this corpus shows
that the machinery works, and says nothing about the quality of a model.
"""

import argparse
import os
import re
import sys
import tarfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from espnet_hra.data.audio import AudioError, Conversion, convert_all

from corpus import (
    CorpusError,
    Utterance,
    clean_text,
    new_folder,
    one_line,
    summary,
    write_kaldi_dir,
)

CORPUS = "mini_an4"

#: Where the recordings lie, in the package ``espnet``.
ARCHIVE = Path("mini_an4") / "esp2_asr" / "downloads.tar.gz"

#: The task by the first letter of a speaker's name.
TASKS = {"f": "female", "m": "male"}

_TRANSCRIPT = re.compile(r"^(?:<s>)?(.*?)(?:</s>)?\s*\(([^()\s]+)\)\s*$")


def find_archive() -> Path:
    """The archive with the recordings in the installed ESPnet.

    Raises:
        CorpusError: If ESPnet is missing or does not have it.
    """
    spec = find_spec("egs3")
    for folder in spec.submodule_search_locations or () if spec else ():
        archive = Path(folder) / ARCHIVE
        if archive.is_file():
            return archive
    raise CorpusError(
        f"the installed ESPnet has no egs3/{ARCHIVE.as_posix()}: install espnet 202611"
    )


def unpack(archive: Path, downloads: Path) -> Path:
    """Unpack the archive, if that was not done before.

    Args:
        archive: The archive.
        downloads: The folder to unpack into.

    Returns:
        The folder of AN4.
    """
    folder = downloads / CORPUS
    if not folder.is_dir():
        with new_folder(folder) as partial, tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
    return folder / "downloads" / "an4"


def read_transcripts(path: Path) -> dict[str, str]:
    """The transcripts of one of AN4's lists by name of the recording.

    Args:
        path: The list, lines like ``<s> YES </s> (an251-fash-b)``.

    Raises:
        CorpusError: If a line does not look like that.
    """
    texts = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _TRANSCRIPT.match(line.strip())
        if match is None:
            raise CorpusError(f"{path}: not a transcript: {line!r}")
        texts[match.group(2)] = clean_text(match.group(1))
    return texts


def read_set(an4: Path, part: str, audio: Path, nj: int) -> list[Utterance]:
    """Read one of AN4's two sets and convert its recordings.

    Args:
        an4: The folder of AN4.
        part: ``an4`` for training, ``an4test`` for the test set.
        audio: The folder for the FLAC files.
        nj: The number of processes.

    Raises:
        CorpusError: If a recording cannot be read.
    """
    transcripts = {"an4": "an4_train", "an4test": "an4_test"}[part]
    texts = read_transcripts(an4 / "etc" / f"{transcripts}.transcription")
    targets = {}
    jobs = []
    for name in texts:
        speaker = name.split("-")[1]
        source = an4 / "wav" / f"{part}_clstk" / speaker / f"{name}.sph"
        targets[name] = os.path.abspath(audio / f"{name}.flac")
        jobs.append(Conversion(str(source), targets[name]))
    lengths, failures = convert_all(jobs, nj)
    if failures:
        raise CorpusError("; ".join(failures.values()))
    utterances = []
    for name, text in texts.items():
        session, speaker, _ = name.split("-")
        utterances.append(
            Utterance(
                utt_id=f"{speaker}-{session}",
                speaker=speaker,
                task=TASKS[speaker[0]],
                text=text,
                audio=targets[name],
                samples=lengths[targets[name]],
            )
        )
    return utterances


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        description=(
            "Prepare the corpus mini_an4, seven utterances from ESPnet's package, as "
            f"Kaldi-style data folders DATADIR/{CORPUS}/{{train,dev,test}}. The dev "
            "set is the training set."
        )
    )
    parser.add_argument(
        "--part",
        nargs="+",
        default=["tasks"],
        choices=["tasks", "backbone"],
        help="taken for the sake of other corpora: there is one part only",
    )
    parser.add_argument(
        "--datadir",
        type=Path,
        default=Path("data"),
        help="the folder to write into (default: data)",
    )
    parser.add_argument(
        "--downloads",
        type=Path,
        default=Path("downloads"),
        help="the folder to unpack into (default: downloads)",
    )
    parser.add_argument(
        "--nj", type=int, default=1, help="the number of processes (default: 1)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the corpus.

    Args:
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    args = get_parser().parse_args(arguments)
    folder = args.datadir / CORPUS
    with one_line(AudioError, tarfile.TarError):
        an4 = unpack(find_archive(), args.downloads)
        # Seven files: starting worker processes would take longer than the work.
        train = read_set(an4, "an4", folder / "audio", nj=1)
        test = read_set(an4, "an4test", folder / "audio", nj=1)
        sets = {"train": train, "dev": train, "test": test}
        for name, utterances in sets.items():
            write_kaldi_dir(folder / name, utterances)
    print(summary(sets))
    return 0


if __name__ == "__main__":
    sys.exit(main())
