"""The forms in which a transcript is answered."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from espnet_hra.serve.engine import Heard


@dataclass(frozen=True)
class Segment:
    """A piece of a recording and what is said in it.

    Attributes:
        start: Where it begins, in seconds.
        end: Where it ends.
        heard: What is said.
    """

    start: float
    end: float
    heard: Heard


@dataclass(frozen=True)
class Transcript:
    """What a request is answered.

    Attributes:
        segments: Of the recording, in order.
        duration: How long it is, in seconds.
        language: English name of its language, if the model knows it.
        choice: Which task was used, and how it was found.
    """

    segments: Sequence[Segment]
    duration: float
    language: str | None
    choice: dict[str, Any]

    @property
    def text(self) -> str:
        """All that was said."""
        return " ".join(s.heard.text for s in self.segments if s.heard.text)


def _json(transcript: Transcript) -> str:
    seconds = {"type": "duration", "seconds": round(transcript.duration, 2)}
    return json.dumps({"text": transcript.text, "usage": seconds}, ensure_ascii=False)


def _text(transcript: Transcript) -> str:
    return transcript.text + "\n"


def _verbose(transcript: Transcript) -> str:
    segments = [
        {
            "id": number,
            "seek": 0,
            "start": round(segment.start, 2),
            "end": round(segment.end, 2),
            "text": segment.heard.text,
            "tokens": list(segment.heard.ids),
            "temperature": 0.0,
            "avg_logprob": round(segment.heard.confidence, 4),
            "compression_ratio": round(_compression(segment.heard.text), 3),
            # Neither kind of model says; a made-up number would be taken for one.
            "no_speech_prob": None,
        }
        for number, segment in enumerate(transcript.segments)
    ]
    whole = {
        "task": "transcribe",
        "language": transcript.language,
        "duration": round(transcript.duration, 2),
        "text": transcript.text,
        "segments": segments,
        "hra": transcript.choice,
    }
    return json.dumps(whole, ensure_ascii=False)


def _compression(text: str) -> float:
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 0.0


def _srt(transcript: Transcript) -> str:
    said = [segment for segment in transcript.segments if segment.heard.text]
    return "".join(
        f"{number}\n{_clock(s.start, ',')} --> {_clock(s.end, ',')}\n{s.heard.text}\n\n"
        for number, s in enumerate(said, 1)
    )


def _vtt(transcript: Transcript) -> str:
    said = [segment for segment in transcript.segments if segment.heard.text]
    return "WEBVTT\n\n" + "".join(
        f"{_clock(s.start, '.')} --> {_clock(s.end, '.')}\n{s.heard.text}\n\n"
        for s in said
    )


def _clock(seconds: float, point: str) -> str:
    total = round(1000 * seconds)
    minutes, ms = divmod(total, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{ms // 1000:02}{point}{ms % 1000:03}"


#: Name: (writes it, its media type).
FORMATS: dict[str, tuple[Callable[[Transcript], str], str]] = {
    "json": (_json, "application/json"),
    "text": (_text, "text/plain; charset=utf-8"),
    "verbose_json": (_verbose, "application/json"),
    "srt": (_srt, "text/plain; charset=utf-8"),
    "vtt": (_vtt, "text/vtt; charset=utf-8"),
}
