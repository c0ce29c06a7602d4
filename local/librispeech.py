#!/usr/bin/env python3
"""Prepare speakers of LibriSpeech, each of them a task.

Those of the dev and test parts are taken, whom a model trained on LibriSpeech has not
heard; ``conf/corpora.yaml`` names the parts.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from named import Recording, main, read_text, subfolders

LAYOUT = "dev-clean/SPEAKER/CHAPTER/ with SPEAKER-CHAPTER.trans.txt and *.flac"


def recordings(source: Path, config: Mapping[str, Any]) -> Iterator[Recording]:
    """All recordings of the wanted parts that are there."""
    if (source / "LibriSpeech").is_dir():
        source = source / "LibriSpeech"
    for part in config["parts"]:
        for speaker in subfolders(source / part):
            chapters = subfolders(speaker)
            if not any(any(c.glob("*.flac")) for c in chapters):
                yield Recording("", speaker.name, why="a speaker without recordings")
            for chapter in chapters:
                yield from _chapter(speaker.name, chapter)


def _chapter(speaker: str, chapter: Path) -> Iterator[Recording]:
    listed = read_text(chapter / f"{speaker}-{chapter.name}.trans.txt") or ""
    texts = {}
    for line in listed.splitlines():
        name, _, text = line.partition(" ")
        if name:
            texts[name] = text
    names = texts.keys() | {path.stem for path in chapter.glob("*.flac")}
    for name in sorted(names):
        yield Recording(
            name.removeprefix(f"{speaker}-"),
            speaker,
            chapter / f"{name}.flac",
            texts.get(name, ""),
            why="" if name in texts else "no transcript",
        )


if __name__ == "__main__":
    sys.exit(main("librispeech", __doc__, LAYOUT, recordings))
