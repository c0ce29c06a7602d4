"""How a task's speech sounds: what tells it from others before anything is decoded.

A :class:`Voice` is a normal distribution of the short-time spectra (mel cepstra,
without loudness) of some utterances that a task was trained on: speaker, language and
line at once. It is kept in the task's file, as a text of a kilobyte, and does not
depend on the model.

Of a recording two things are asked. The *likelihood* of its spectra says which of
several voices it is. The *distance* of their mean from the voice's, in units of what is
to be expected in a recording of this length, says whether it is that voice at all: it
is about 1 if it is.
"""

import base64
import binascii
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from espnet_hra.errors import TaskError

#: Values of a spectrum: cepstral coefficients from the second on (the first is
#: loudness), of so many mel bands.
VALUES, _BANDS = 24, 40

#: Seconds of a window and between two of them, and of a recording that is listened to.
_WINDOW, _STEP, SECONDS = 0.025, 0.01, 10

#: Windows that are softer than the loudest by more, in dB, are pauses.
_RANGE = 35

#: Windows depend on those beside them: about so many count as one. (On the five voices
#: the mean of T windows is 250 / T away from that of its voice, in squared units, and
#: 24 values of independent ones would be 24 / T.)
_AS_ONE = 10.4

#: What is said differs from recording to recording, so that even a long one is no
#: nearer than one of so many windows. (With it the median distance is 1 for all lengths
#: in the dev set of the five voices.)
_MOST = 1000

#: So many windows outweigh the assumption that the values are independent.
_ASSUMED = 200

#: What a voice begins with in a file.
_MARK = "1"

_TRIANGLE = np.tril_indices(VALUES)


@functools.cache
def _bank(rate: int, size: int) -> np.ndarray:
    """Triangular mel bands, (bins, bands)."""
    highest = min(7600.0, 0.475 * rate)
    first, last = (2595 * math.log10(1 + hertz / 700) for hertz in (60.0, highest))
    edges = 700 * (10 ** (np.linspace(first, last, _BANDS + 2) / 2595) - 1)
    bins = np.linspace(0, rate / 2, size // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise, fall = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.maximum(0, np.minimum(rise, fall)).T


@functools.cache
def _cosines() -> np.ndarray:
    """From bands to cepstral coefficients, (bands, values)."""
    bands, numbers = np.arange(_BANDS) + 0.5, np.arange(1, VALUES + 1)
    return np.sqrt(2 / _BANDS) * np.cos(np.pi / _BANDS * np.outer(bands, numbers))


def spectra(wave: np.ndarray, rate: int) -> np.ndarray:
    """The short-time spectra of the beginning of a recording, without its pauses.

    Args:
        wave: Samples, (samples).
        rate: In Hz.

    Returns:
        (windows, values); at least one window.
    """
    window, step = int(_WINDOW * rate), int(_STEP * rate)
    size = 1 << (window - 1).bit_length()
    wave = np.asarray(wave[: SECONDS * rate], np.float64)
    wave = np.pad(wave, (0, max(0, window - len(wave))))
    cut = np.lib.stride_tricks.sliding_window_view(wave, window)[::step]
    power = np.abs(np.fft.rfft(cut * np.hanning(window), size)) ** 2
    bands = power @ _bank(rate, size)
    level = 10 * np.log10(bands.sum(axis=1) + 1e-12)
    kept = np.log(bands[level >= level.max() - _RANGE] + 1e-10)
    return kept @ _cosines()


@dataclass(frozen=True)
class Voice:
    """How a task's speech sounds.

    Attributes:
        mean: Of its spectra, (values).
        root: Cholesky factor of their covariance, (values, values).
        windows: How many there were.
    """

    mean: np.ndarray
    root: np.ndarray
    windows: int

    @classmethod
    def of(cls, heard: Iterable[np.ndarray]) -> "Voice | None":
        """The voice of utterances.

        Args:
            heard: The spectra of each, (windows, values).

        Returns:
            None if they have fewer than two windows.
        """
        rows = list(heard)
        found = np.concatenate(rows) if rows else np.zeros((0, VALUES))
        if len(found) < 2:
            return None
        covariance = np.cov(found.T)
        weight = len(found) / (len(found) + _ASSUMED)
        assumed = np.diag(np.diag(covariance) + 1e-3)
        covariance = weight * covariance + (1 - weight) * assumed
        root = np.linalg.cholesky(covariance + 1e-3 * np.eye(VALUES))
        # As it is read from a file: a voice is the same before and after.
        return cls.read(str(cls(found.mean(axis=0), root, len(found))))

    def __str__(self) -> str:
        """As it is written into a file."""
        values = np.concatenate([self.mean, self.root[_TRIANGLE]]).astype("<f2")
        content = base64.b64encode(values.tobytes()).decode()
        return f"{_MARK} {self.windows} {content}"

    @classmethod
    def read(cls, text: str) -> "Voice":
        """The voice of a text that :meth:`__str__` wrote.

        Raises:
            TaskError: It is none.
        """
        try:
            mark, windows, content = text.split(" ")
            values = np.frombuffer(base64.b64decode(content, validate=True), "<f2")
            root = np.zeros((VALUES, VALUES))
            root[_TRIANGLE] = values[VALUES:]
            found = cls(values[:VALUES].astype(float), root, int(windows))
            right = mark == _MARK and found.windows > 1 and np.isfinite(values).all()
            if not right or not (np.diag(root) > 0).all():
                raise ValueError("its values are not possible")
        except (ValueError, AttributeError, binascii.Error) as e:
            raise TaskError(f"no voice of a task: {text!r:.60}: {e}") from e
        return found

    def likeness(self, heard: np.ndarray) -> "Likeness":
        """How like a recording is to it; `heard` are its spectra, (windows, values)."""
        away = np.linalg.solve(self.root, (heard - self.mean).T)
        size = 2 * np.log(np.diag(self.root)).sum() + VALUES * np.log(2 * np.pi)
        likelihood = -0.5 * ((away**2).sum(axis=0).mean() + size)
        parts = 1 / len(heard) + 1 / self.windows + 1 / _MOST
        expected = VALUES * _AS_ONE * parts
        distance = np.sqrt((away.mean(axis=1) ** 2).sum() / expected)
        return Likeness(float(likelihood), float(distance))


class Likeness(NamedTuple):
    """How like a recording is to a voice.

    Attributes:
        likelihood: Mean logarithmic probability density of its spectra.
        distance: How far their mean is from the voice's; about 1 if it is its own.
    """

    likelihood: float
    distance: float


def compare(heard: np.ndarray, voices: Mapping[str, Voice]) -> dict[str, Likeness]:
    """How like a recording is to each of some voices; `heard` are its spectra."""
    return {name: voice.likeness(heard) for name, voice in voices.items()}
