"""Which pieces of recordings are decoded together."""

import math

import numpy as np

#: Padding changes nothing, but it takes time: the longest of a batch may be longer than
#: the shortest by this factor.
_RATIO = 1.5


def group(samples: int) -> int:
    """Pieces with equal answers may share a batch."""
    return int(math.log(max(1, samples), _RATIO))


def lengthened(wave: np.ndarray, least: int) -> np.ndarray:
    """A recording with silence behind it, so that it has so many samples at least."""
    return np.pad(wave, (0, max(0, least - len(wave))))
