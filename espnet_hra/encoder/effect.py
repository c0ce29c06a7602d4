"""What an adapter does: how far it moves the encoder's output from the backbone's.

An adapter that was not loaded, or never trained, decodes as the plain backbone, and a
text does not show it. Within :func:`watch` each pass of the encoder is run once more
without a task, and the difference is kept.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch


class Moved(NamedTuple):
    """One utterance in one pass of the encoder, y, and without a task, y0.

    Attributes:
        task: Its task; None for the plain backbone.
        squared_change: ``||y - y0||^2`` over its frames.
        squared_base: ``||y0||^2``.
    """

    task: str | None
    squared_change: float
    squared_base: float


# Of this thread, or asyncio task.
_watching: ContextVar[list[Moved] | None] = ContextVar(
    "espnet_hra_watching", default=None
)


@contextlib.contextmanager
def watch() -> Iterator[list[Moved]]:
    """A block that notes what tasks do in the passes of this thread.

    Every pass is run twice: with the tasks, and without.

    Yields:
        One item for each utterance of each pass, as they come.
    """
    moved: list[Moved] = []
    token = _watching.set(moved)
    try:
        yield moved
    finally:
        _watching.reset(token)


def effect(moved: Sequence[Moved]) -> float:
    """The size of a change, relative to what is changed: ``||y - y0|| / ||y0||``.

    Args:
        moved: Passes of one utterance, whose frames count together.

    Returns:
        0 where nothing is changed; NaN where an output is not finite, or nothing ran.
    """
    base = sum(one.squared_base for one in moved)
    change = sum(one.squared_change for one in moved)
    return math.sqrt(change / base) if base > 0 and math.isfinite(change) else math.nan


def note(names: Sequence[str], output: Any, plain: Callable[[], Any]) -> None:
    """Keep what the tasks of a pass have done, if somebody watches.

    Args:
        names: The tasks: none, one for all, or one per utterance.
        output: What the encoder returned: (b, t, d), a tuple that begins with that (or
            with a tuple that does) and the lengths.
        plain: Runs the same pass without a task.
    """
    moved = _watching.get()
    if moved is None:
        return
    with torch.no_grad():
        y, lengths = _frames(output)
        y0 = _frames(plain())[0] if names else y
        for i in range(len(y)):
            frames = slice(None if lengths is None else int(lengths[i]))
            base = y0[i, frames].double()
            change = y[i, frames].double() - base
            name = names[i if len(names) > 1 else 0] if names else None
            moved.append(
                Moved(name, float(change.square().sum()), float(base.square().sum()))
            )


def _frames(output: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The frames of an encoder's output, (b, t, d), and their number, (b)."""
    lengths = None
    while isinstance(output, tuple):  # intermediate outputs come along
        if lengths is None and len(output) > 1 and isinstance(output[1], torch.Tensor):
            lengths = output[1]
        output = output[0]
    if lengths is not None and lengths.shape != output.shape[:1]:
        lengths = None
    return output, lengths
