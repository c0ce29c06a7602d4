"""Choosing the task of a recording that nobody names.

Where all candidates' files say how their speech sounds (:mod:`espnet_hra.tasks.voice`),
the spectra of the beginning of the recording are compared with theirs. The task whose
voice they are likeliest of is taken, unless even that is too far: then the recording is
of none of them, and the base is taken.

Tasks without a voice (made by an older version) are told by confidence: the recording
is decoded by the base and by every candidate, in mixed batches like any other jobs. The
one whose decoder was surest (mean logarithmic probability of its decisions) is taken if
it beats the base's confidence by a threshold, and else the base.

`espnet-hra bench auto` measures what comes of it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from espnet_hra.tasks.voice import Likeness

#: How a task was chosen.
BY_VOICE, BY_CONFIDENCE = "voice", "confidence"


class Choice(NamedTuple):
    """A task that was chosen.

    Attributes:
        task: Its name; None for the base.
        by: :data:`BY_VOICE` or :data:`BY_CONFIDENCE`.
        threshold: What a task had to reach.
        values: Of each candidate: the likelihood of its voice, or its confidence.
        base: The base's confidence; None where voices were compared.
        distance: Of the likeliest voice; None where confidences were compared.
    """

    task: str | None
    by: str
    threshold: float
    values: Mapping[str, float]
    base: float | None = None
    distance: float | None = None

    def told(self, base_name: str) -> dict[str, Any]:
        """What the client is told of it: the values, the best ones first."""
        ranked = sorted(self.values.items(), key=lambda item: -item[1])
        if self.base is not None:
            ranked.insert(0, (base_name, self.base))
        far = {} if self.distance is None else {"distance": round(self.distance, 4)}
        return {
            "model": self.task or base_name,
            "asked": "auto",
            "abstained": self.task is None,
            "by": self.by,
            "threshold": self.threshold,
            **far,
            "confidence" if self.by == BY_CONFIDENCE else "likelihood": {
                name: round(value, 4) for name, value in ranked
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


def by_voice(likenesses: Mapping[str, Likeness], threshold: float) -> Choice:
    """The task of a recording, by how it sounds; of no candidates, the base.

    Args:
        likenesses: Of each candidate's voice.
        threshold: The greatest distance at which the likeliest one is taken.
    """
    values = {name: one.likelihood for name, one in likenesses.items()}
    best = max(values, key=lambda name: (values[name], name), default=None)
    if best is None:
        return Choice(None, BY_VOICE, threshold, values)
    distance = likenesses[best].distance
    taken = best if distance <= threshold else None
    return Choice(taken, BY_VOICE, threshold, values, distance=distance)
