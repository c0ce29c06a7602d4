"""Long recordings are cut where nobody speaks."""

from typing import NamedTuple

import numpy as np

#: Windows in which loudness is measured, in seconds.
_WINDOW = 0.02

#: What lies so far below the loud parts is silence, in dB.
_BELOW = 35

#: A pause is at least so many windows long.
_PAUSE = 10


class Piece(NamedTuple):
    """A part of a recording.

    Attributes:
        start: Where it begins, in seconds.
        end: Where it ends.
        wave: Its samples.
    """

    start: float
    end: float
    wave: np.ndarray


def pieces(wave: np.ndarray, rate: int, longest: int) -> list[Piece]:
    """Cut a recording.

    A piece ends in the middle of the longest pause of its second half, and where there
    is none, where its second half is quietest. Nothing is left out.

    Args:
        wave: Its samples, (samples).
        rate: Samples a second.
        longest: Most samples of a piece.
    """
    found, start = [], 0
    while len(wave) - start > longest:
        cut = start + _cut(wave[start : start + longest], rate)
        found.append(Piece(start / rate, cut / rate, wave[start:cut]))
        start = cut
    return [*found, Piece(start / rate, len(wave) / rate, wave[start:])]


def _cut(wave: np.ndarray, rate: int) -> int:
    """Where a piece ends that begins with these samples."""
    window = int(_WINDOW * rate)
    count = len(wave) // window
    parts = wave[: count * window].reshape(count, window)
    power = np.square(parts, dtype=np.float64).mean(axis=1)
    level = 10 * np.log10(power + 1e-14)
    quiet = level < max(np.percentile(level, 95) - _BELOW, -70)
    half = count // 2
    begin, end = _longest_run(quiet[half:])
    if end - begin >= _PAUSE:
        return (half + (begin + end) // 2) * window
    smooth = np.convolve(power[half:], np.ones(_PAUSE) / _PAUSE, mode="valid")
    return (half + int(smooth.argmin()) + _PAUSE // 2) * window


def _longest_run(flags: np.ndarray) -> tuple[int, int]:
    """Begin and end of the longest run of true values; the last of several."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    runs = edges.reshape(-1, 2)
    if not len(runs):
        return 0, 0
    lengths = runs[:, 1] - runs[:, 0]
    begin, end = runs[len(runs) - 1 - int(lengths[::-1].argmax())]
    return int(begin), int(end)
