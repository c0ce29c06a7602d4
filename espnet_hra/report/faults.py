"""Tasks whose adapter does not work, as what was seen in a model tells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espnet_hra.report.diagnosis import Diagnosis, Layer

#: A controller with this share of dead or saturated units does not work.
_MOST = 0.9

#: A stream that is this near to the base's, as a share of it, is the base's.
_NOTHING = 1e-5


@dataclass(frozen=True)
class Fault:
    """A task whose adapter does not work; the fields are columns of a table.

    Attributes:
        task: Its name.
        why: What is wrong, for people.
    """

    task: str
    why: str


def faults(found: Diagnosis) -> list[Fault]:
    """The tasks whose adapter does not work, whatever its error rates are.

    A controller is at fault for a task for which most of its units are dead at all
    layers, or saturated at all.
    """
    return [
        Fault(name, why)
        for name, layers in found.tasks.items()
        if (why := _fault(list(layers.values())))
    ]


def _fault(layers: Sequence[Layer]) -> str:
    sums = [s for one in layers for s in (one.change2, one.drift2, one.state2)]
    if not all(map(math.isfinite, sums)):
        return (
            "its adapter gives numbers that are none (inf, nan): take a lower rate "
            "(optim_conf: lr), or clip gradients (grad_clip)"
        )
    seen = [one for one in layers if one.unit_frames]
    for which, what in (("dead", "dead (never"), ("saturated", "saturated (always")):
        if not seen:
            break
        units = np.logical_and.reduce([getattr(one, which) for one in seen])
        if units.mean() >= _MOST:
            return (
                f"{units.sum()} of the controller's {len(units)} units are {what} "
                "active, at all layers): take a lower rate (optim_conf: lr)"
            )
    drifts = [one.drift for one in layers if not math.isnan(one.drift)]
    if drifts and max(drifts) < _NOTHING:
        return (
            "its adapter changes nothing in the encoder: was it trained? (espnet-hra "
            "doctor says more)"
        )
    return ""
