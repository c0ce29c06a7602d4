"""Choosing the task of a recording that nobody names.

Where all candidates' files say how their speech sounds (:mod:`espnet_hra.tasks.voice`),
the plain base's encoder hears the beginning of the recording, once. The task whose
voice is nearest is taken, unless even that is too far: then the recording is of none of
them, and the base is taken.

Tasks without a voice (made by an older version) are told by confidence: the recording
is decoded by the base and by every candidate, in mixed batches like any other jobs. The
one whose decoder was surest (mean logarithmic probability of its decisions) is taken if
it beats the base's confidence by a threshold, and else the base.

`espnet-hra bench auto` measures what comes of it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from espnet_hra.tasks.voice import Voice, distances

#: How a task was chosen.
BY_VOICE, BY_CONFIDENCE = "voice", "confidence"


class Choice(NamedTuple):
    """A task that was chosen.

    Attributes:
        task: Its name; None for the base.
        by: :data:`BY_VOICE` or :data:`BY_CONFIDENCE`.
        threshold: What a task had to reach.
        values: Of each candidate: distance of its voice, or confidence.
        base: The base's confidence; None where voices were compared.
    """

    task: str | None
    by: str
    threshold: float
    values: Mapping[str, float]
    base: float | None = None

    def told(self, base_name: str) -> dict[str, Any]:
        """What the client is told of it: the values, the best ones first."""
        confident = self.by == BY_CONFIDENCE
        ranked = sorted(self.values.items(), key=lambda item: item[1])
        values = dict(reversed(ranked) if confident else ranked)
        if self.base is not None:
            values = {base_name: self.base, **values}
        return {
            "model": self.task or base_name,
            "asked": "auto",
            "abstained": self.task is None,
            "by": self.by,
            "threshold": self.threshold,
            "confidence" if confident else "distance": {
                name: round(value, 4) for name, value in values.items()
            },
        }


def by_confidence(
    confidences: Mapping[str, float], base: float, threshold: float = 0.0
) -> Choice:
    """The task of a recording, by what decoders made of it.

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
    return Choice(best, BY_CONFIDENCE, threshold, confidences, base)


def by_voice(
    heard: np.ndarray, voices: Mapping[str, Voice], threshold: float
) -> Choice:
    """The task of a recording, by how it sounds to the base.

    Args:
        heard: See :func:`espnet_hra.espnet.voices.heard`.
        voices: Of the candidates.
        threshold: The greatest distance at which one is taken.
    """
    return nearest(distances(heard, voices), threshold)


def nearest(away: Mapping[str, float], threshold: float) -> Choice:
    """The same, of the distance of each candidate's voice; of none, the base."""
    best = min(away, key=lambda name: (away[name], name), default=None)
    if best is not None and away[best] > threshold:
        best = None
    return Choice(best, BY_VOICE, threshold, away)
