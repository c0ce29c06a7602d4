#!/usr/bin/env python3
"""Prepare AfriSpeech-200: English of many African countries; accents are tasks.

The corpus's own sets are kept, but for sentences of training that stand in dev or test
too.
"""

import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from corpus import SPLITS, CorpusError
from named import Recording, main, subfolders

LAYOUT = (
    "transcripts/ACCENT/{train,dev,test}.csv and audio/ACCENT/ with what is in *.tar.gz"
)

_NEEDED = ("audio_paths", "transcript")


def recordings(source: Path, config: Mapping[str, Any]) -> Iterator[Recording]:
    """All recordings of all accents."""
    for accent in subfolders(source / "transcripts"):
        # The archives' own folders vary; a recording's name is its own.
        audio = {}
        for folder in (source / "audio" / accent.name, source / "audio"):
            if folder.is_dir() and not audio:
                audio = {path.name: path for path in folder.rglob("*.wav")}
        lists = {part: accent / f"{part}.csv" for part in SPLITS}
        if not any(path.is_file() for path in lists.values()):
            yield Recording("", accent.name, why="an accent without transcripts")
        for part, path in lists.items():
            if path.is_file():
                yield from _rows(path, part, accent.name, audio)


def _rows(
    path: Path, part: str, accent: str, audio: Mapping[str, Path]
) -> Iterator[Recording]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        missing = [name for name in _NEEDED if name not in (rows.fieldnames or ())]
        if missing:
            raise CorpusError(
                f"{path} has no column {', '.join(missing)}: fetch it once more"
            )
        for row in rows:
            name = Path(row["audio_paths"] or "").name
            yield Recording(
                Path(name).stem,
                row.get("user_ids") or row.get("speaker_id") or accent,
                audio.get(name, path.parent / (name or "nothing")),
                row["transcript"] or "",
                accent,
                part,
                why="" if name else "a row without a recording",
            )


if __name__ == "__main__":
    sys.exit(main("afrispeech_200", __doc__, LAYOUT, recordings))
