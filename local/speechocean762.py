#!/usr/bin/env python3
"""Prepare speechocean762: Mandarin speakers reading English; every speaker is a task.

Its folder has ``train`` (and ``test``) with Kaldi's lists, whose recordings are named
as seen from the folder above.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from named import Recording, entries, main

LAYOUT = "train/wav.scp, train/text, train/utt2spk, and WAVE/SPEAKER*/ with recordings"


def recordings(source: Path, config: Mapping[str, Any]) -> Iterator[Recording]:
    """All recordings of the wanted parts."""
    for part in config["parts"]:
        if not (source / part / "wav.scp").is_file():
            continue
        audio, texts, speakers = (
            entries(source / part / name) for name in ("wav.scp", "text", "utt2spk")
        )
        for name in sorted(audio.keys() | texts.keys()):
            why = ""
            if name not in audio:
                why = "no line in wav.scp"
            elif name not in texts:
                why = "no transcript"
            elif name not in speakers:
                why = "no speaker"
            yield Recording(
                name,
                speakers.get(name, "unknown"),
                source / audio.get(name, ""),
                texts.get(name, ""),
                why=why,
            )


if __name__ == "__main__":
    sys.exit(main("speechocean762", __doc__, LAYOUT, recordings))
