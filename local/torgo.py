#!/usr/bin/env python3
"""Prepare TORGO: speakers with and without dysarthria, each of them a task.

Prompts are not always what was said: ``[say Ah-P-Eee repeatedly]`` and the name of a
picture tell what to do, ``xxx`` means that nothing usable was recorded. In ``tear [as
in tear up that paper]`` the brackets say how to read, and only ``tear`` is spoken.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from named import Recording, main, read_text, subfolders

LAYOUT = "F01/Session1/prompts/*.txt and F01/Session1/wav_headMic/*.wav"

_SPEAKER = re.compile(r"[FM]C?\d{2}")
_BRACKETS = re.compile(r"\[[^\]]*\]")
_PICTURE = re.compile(r"\S+\.(?:jpe?g|png|gif|bmp)$", re.IGNORECASE)
_NOTHING = re.compile(r"\bx{3,}\b", re.IGNORECASE)


def words(prompt: str) -> tuple[str, str]:
    """What is spoken of a prompt, and why there is nothing."""
    prompt = " ".join(prompt.split())
    if _PICTURE.search(prompt):
        return "", "the prompt is a picture"
    if _NOTHING.search(prompt):
        return "", "the prompt is xxx"
    spoken = _BRACKETS.sub(" ", prompt).strip()
    return spoken, "" if spoken else "the prompt is an instruction"


def recordings(source: Path, config: Mapping[str, Any]) -> Iterator[Recording]:
    """All prompts of all sessions."""
    # The four archives (F, FC, M, MC) may have been unpacked into folders of their own.
    groups = [source, *subfolders(source)]
    for speaker in sorted(
        (folder for group in groups for folder in subfolders(group)),
        key=lambda folder: folder.name,
    ):
        if not _SPEAKER.fullmatch(speaker.name):
            continue
        sessions = [s for s in subfolders(speaker) if s.name.startswith("Session")]
        if not any(any(session.glob("prompts/*.txt")) for session in sessions):
            yield Recording("", speaker.name, why="a speaker without prompts")
        for session in sessions:
            yield from _session(speaker.name, session, config["microphones"])


def _session(
    speaker: str, session: Path, microphones: list[str]
) -> Iterator[Recording]:
    names = {path.stem for path in session.glob("prompts/*.txt")}
    for microphone in microphones:
        names |= {path.stem for path in session.glob(f"{microphone}/*.wav")}
    for name in sorted(names):
        files = [session / microphone / f"{name}.wav" for microphone in microphones]
        audio = next((file for file in files if file.is_file()), files[0])
        prompt = read_text(session / "prompts" / f"{name}.txt")
        text, why = ("", "no transcript") if prompt is None else words(prompt)
        yield Recording(f"{session.name}-{name}", speaker, audio, text, why=why)


if __name__ == "__main__":
    sys.exit(main("torgo", __doc__, LAYOUT, recordings))
