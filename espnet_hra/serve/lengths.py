"""Which recordings may be in a batch together, so that none changes another's text."""

import math
from collections.abc import Hashable
from typing import Protocol

import numpy as np

#: Whisper's encoder hears the silence behind an utterance. So each is brought to one of
#: these lengths (seconds, with the silence that the model adds by itself on top), alone
#: or in company; only those of the same length share a batch.
SECONDS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 24)

#: Whisper itself, without a task, was trained on windows of 30 seconds and repeats
#: itself where little silence follows; 10 are enough (as the recipe reads it, see
#: ``--frozen_seconds``).
BASE_SECONDS = 10

#: Where padding changes nothing it still takes time: the longest of a batch may be
#: longer than the shortest by this factor.
_RATIO = 1.5


class Lengths(Protocol):
    """A rule.

    Attributes:
        about: What it is, for people.
    """

    about: str

    def padded(self, wave: np.ndarray) -> np.ndarray:
        """What is decoded in place of a recording, alone or not."""

    def group(self, wave: np.ndarray) -> Hashable:
        """Recordings with equal answers may share a batch."""


class Steps:
    """Silence up to the next of a few lengths: for encoders that do not mask.

    Args:
        rate: Samples a second.
        longest: The last of the lengths, in samples.
        least: The first of them is at least so many samples.
    """

    about = "recordings are padded to fixed lengths"

    def __init__(self, rate: int, longest: int, least: int = 0):
        steps = (int(seconds * rate) for seconds in SECONDS)
        self._steps = [*(step for step in steps if least <= step < longest), longest]

    def padded(self, wave: np.ndarray) -> np.ndarray:
        return np.pad(wave, (0, self.group(wave) - len(wave)))

    def group(self, wave: np.ndarray) -> int:
        return next((step for step in self._steps if len(wave) <= step), len(wave))


class Alike:
    """Recordings of about the same length: for models that padding cannot change."""

    about = "padding changes nothing"

    def padded(self, wave: np.ndarray) -> np.ndarray:
        return wave

    def group(self, wave: np.ndarray) -> int:
        return int(math.log(max(1, len(wave)), _RATIO))


class Equal:
    """Only recordings of the same length: for all other models."""

    about = "only recordings of the same length share a batch"

    def padded(self, wave: np.ndarray) -> np.ndarray:
        return wave

    def group(self, wave: np.ndarray) -> int:
        return len(wave)
