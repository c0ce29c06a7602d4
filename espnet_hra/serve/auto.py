"""Choosing the task of a recording that nobody names.

The recording (the first of its pieces in which something is said) is decoded by the
base and by every candidate, in mixed batches like any other jobs. What counts is how
sure the decoder was: its *confidence*, the mean logarithmic probability of its
decisions. The surest task is taken if it beats the base's confidence by a threshold,
and else the base. `espnet-hra bench auto` measures what comes of it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """A task that was chosen.

    Attributes:
        task: Its name; None for the base.
        confidences: Of each candidate.
        base: That of the base.
    """

    task: str | None
    confidences: Mapping[str, float]
    base: float

    def told(self, base_name: str, threshold: float) -> dict[str, Any]:
        """What the client is told of it."""
        ranked = sorted(self.confidences.items(), key=lambda item: -item[1])
        return {
            "model": self.task or base_name,
            "asked": "auto",
            "abstained": self.task is None,
            "threshold": threshold,
            "confidence": {
                base_name: round(self.base, 4),
                **{name: round(value, 4) for name, value in ranked},
            },
        }


def choose(
    confidences: Mapping[str, float], base: float, threshold: float = 0.0
) -> Choice:
    """The task of a recording.

    Args:
        confidences: Of each candidate.
        base: That of the base.
        threshold: By how much a task must be surer than the base.
    """
    best = max(confidences, key=lambda name: (confidences[name], name), default=None)
    if best is not None:
        ahead = confidences[best] - base
        # As sure as the base are all tasks where nothing is said.
        if ahead < threshold or ahead == 0:
            best = None
    return Choice(best, confidences, base)
