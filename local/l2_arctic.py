#!/usr/bin/env python3
"""Prepare L2-ARCTIC: learners of English with six first languages; speakers are tasks.

All speakers read the same sentences. The spontaneous part (``suitcase_corpus``) is not
read: it is not cut into utterances.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from named import Recording, main, read_text, subfolders

LAYOUT = "SPEAKER/wav/arctic_*.wav and SPEAKER/transcript/arctic_*.txt"

#: Names of speakers: ABA, YBAA ...
_SPEAKER = re.compile(r"[A-Z]{3,4}")


def recordings(source: Path, config: Mapping[str, Any]) -> Iterator[Recording]:
    """All read sentences."""
    for folder in subfolders(source):
        if not _SPEAKER.fullmatch(folder.name):
            continue
        speaker = folder.name
        # Each speaker's archive may have been unpacked into a folder of its own.
        if (folder / speaker).is_dir():
            folder = folder / speaker
        audio = {path.stem: path for path in folder.glob("wav/*.wav")}
        texts = {path.stem: path for path in folder.glob("transcript/*.txt")}
        if not audio and not texts:
            yield Recording("", speaker, why="a speaker without recordings")
        for name in sorted(audio.keys() | texts.keys()):
            text = read_text(texts[name]) if name in texts else None
            yield Recording(
                name,
                speaker,
                audio.get(name, folder / "wav" / f"{name}.wav"),
                text or "",
                why="no transcript" if text is None else "",
            )


if __name__ == "__main__":
    sys.exit(main("l2_arctic", __doc__, LAYOUT, recordings))
