"""Which pieces of recordings are decoded together."""

import math

import numpy as np

#: Whisper itself, without a task, was trained on windows of 30 seconds and repeats
#: itself where little silence follows; 10 are enough (as the recipe reads it, see
#: ``--frozen_seconds``).
BASE_SECONDS = 10

#: Padding changes nothing, but it takes time: the longest of a batch may be longer than
#: the shortest by this factor.
_RATIO = 1.5


def group(samples: int) -> int:
    """Pieces with equal answers may share a batch."""
    return int(math.log(max(1, samples), _RATIO))


def lengthened(wave: np.ndarray, least: int) -> np.ndarray:
    """A recording with silence behind it, so that it has so many samples at least."""
    return np.pad(wave, (0, max(0, least - len(wave))))
