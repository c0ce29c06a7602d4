"""How a task's speech sounds: what tells it from others before anything is decoded.

A :class:`Voice` is the mean and the spread, over some utterances that a task was
trained on, of what the *plain* base makes of an utterance: its encoder's output, mean
over time. It is kept in the task's file, as a text of a kilobyte.

To choose a task for a recording, its own such mean is compared with those of the tasks:
each value counts in units of the candidates' mean spread, so the distance of a
recording to its own task is about 1 whatever the model.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from espnet_hra.errors import TaskError

#: Most values of a voice; of a larger encoder every second, third ... is taken.
VALUES = 384

#: What a voice begins with in a file.
_MARK = "1"

#: A spread is kept as its logarithm of base two, in steps of a sixteenth.
_STEPS = 16

#: No spread is less than this part of the mean one.
_LEAST = 0.1


def thinned(values: np.ndarray) -> np.ndarray:
    """At most :data:`VALUES` of a vector's values, evenly spaced."""
    if len(values) <= VALUES:
        return values
    return values[np.linspace(0, len(values) - 1, VALUES).astype(int)]


@dataclass(frozen=True)
class Voice:
    """How a task's speech sounds to the base.

    Attributes:
        mean: Of the utterances' means over time, (values).
        spread: Their standard deviation, (values).
        utterances: How many there were.
    """

    mean: np.ndarray
    spread: np.ndarray
    utterances: int

    @classmethod
    def of(cls, heard: Iterable[np.ndarray]) -> "Voice | None":
        """The voice of utterances, (values) each; None if there are none.

        A single one has no spread, and takes that of the others' voices.
        """
        rows = np.array(list(heard))
        if not len(rows):
            return None
        mean = rows.mean(axis=0)
        spread = rows.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros_like(mean)
        # As they are read from a file: a voice is the same before and after.
        mean, spread = _mean_of(_mean_as(mean)), _spread_of(_spread_as(spread))
        return cls(mean, spread, len(rows))

    def __str__(self) -> str:
        """As it is written into a file."""
        parts = _mean_as(self.mean), _spread_as(self.spread)
        words = [base64.b64encode(part).decode() for part in parts]
        return " ".join([_MARK, str(self.utterances), *words])

    @classmethod
    def read(cls, text: str) -> "Voice":
        """The voice of a text that :meth:`__str__` wrote.

        Raises:
            TaskError: It is none.
        """
        try:
            mark, utterances, *words = text.split(" ")
            mean, spread = (base64.b64decode(word, validate=True) for word in words)
            found = cls(_mean_of(mean), _spread_of(spread), int(utterances))
        except (ValueError, AttributeError, binascii.Error) as e:
            raise TaskError(f"no voice of a task: {text!r:.60}") from e
        right = mark == _MARK and 0 < len(found.mean) <= VALUES
        right = right and bool(np.isfinite(found.mean).all())
        if not right or found.mean.shape != found.spread.shape or found.utterances < 1:
            raise TaskError(f"no voice of a task: {text!r:.60}")
        return found


def _mean_as(values: np.ndarray) -> bytes:
    return values.astype("<f2").tobytes()


def _mean_of(content: bytes) -> np.ndarray:
    return np.frombuffer(content, "<f2").astype(np.float32)


def _spread_as(values: np.ndarray) -> bytes:
    with np.errstate(divide="ignore"):
        steps = np.rint(_STEPS * np.log2(values))
    return np.clip(steps, -128, 127).astype(np.int8).tobytes()


def _spread_of(content: bytes) -> np.ndarray:
    steps = np.frombuffer(content, np.int8).astype(np.float32)
    return np.where(steps == -128, 0, 2 ** (steps / _STEPS)).astype(np.float32)


def distances(heard: np.ndarray, voices: Mapping[str, Voice]) -> dict[str, float]:
    """How far a recording is from each voice; about 1 from its own.

    Args:
        heard: What the base makes of the recording, (values).
        voices: Of the candidates, by name.
    """
    if not comparable(voices.values()):
        return {}
    weights = [voice.utterances - 1 for voice in voices.values()]
    squares = [voice.spread**2 for voice in voices.values()]
    square = np.average(squares, axis=0, weights=weights)
    square = np.maximum(square, _LEAST**2 * square.mean())
    found = {}
    for name, voice in voices.items():
        # The mean of few utterances is itself away from that of all.
        expected = square * (1 + 1 / voice.utterances)
        found[name] = float(np.sqrt(np.mean((heard - voice.mean) ** 2 / expected)))
    return found


def comparable(voices: Iterable[Voice]) -> bool:
    """Whether a recording can be compared with voices: one of them has a spread."""
    return any(voice.utterances > 1 and voice.spread.any() for voice in voices)
