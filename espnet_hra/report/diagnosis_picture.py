"""The picture of a diagnosis: what happens over the depth of a model."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from espnet_hra.report.diagnosis import Diagnosis, Layer, Place
from espnet_hra.report.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Most tasks that have lines of their own, in colours that the colour-blind can tell
#: apart; each has a marker of its own as well.
_STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "v"),
    ("#E69F00", "P"),
    ("#56B4E9", "X"),
    ("#000000", "*"),
    ("#7F7F7F", "D"),
)


def draw(found: Diagnosis) -> "Figure":
    """Draw changes and drift of each task, and the controller's units.

    Raises:
        ReportError: matplotlib is not installed.
    """
    places = found.places
    has_units = any(one.unit_frames for p in places for one in found.at(p))
    figure = new_figure(9.0, 6.2 if has_units else 3.4)
    axes = figure.subplots(2 if has_units else 1, 2, squeeze=False)
    _lines(axes[0][0], found, "change", "added by the adapter (% of the stream)")
    _lines(axes[0][1], found, "drift", "away from the base's stream (%)")
    if has_units:
        _units(axes[1][0], found)
        _lines(axes[1][1], found, "memory", "of the state, from layer 1 (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return figure


def _lines(axes: "Axes", found: Diagnosis, what: str, label: str) -> None:
    """A line for each task over the layers."""
    places = found.places
    at, shown = _parts(places)
    for (name, layers), (colour, marker) in zip(found.tasks.items(), _STYLES):
        axes.plot(
            at,
            [_value(layers.get(place) if place else None, what) for place in shown],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1,
            label=name,
        )
    more = len(found.tasks) - len(_STYLES)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label, fontsize=8)
    if more > 0:
        axes.set_title(f"(and {more} more tasks)", fontsize=8)
    _over_depth(axes, places)


def _units(axes: "Axes", found: Diagnosis) -> None:
    """How many units are active, dead and saturated at each layer."""
    count, _, _ = found.units()
    at, shown = _parts(found.places)
    lines: dict[str, list[float]] = {"active": [], "dead": [], "saturated": []}
    for place in shown:
        seen = [one for one in found.at(place) if one.unit_frames] if place else []
        for name, values in lines.items():
            if not seen:
                values.append(math.nan)
            elif name == "active":
                values.append(float(np.mean([one.activity for one in seen])))
            else:
                both = np.logical_and.reduce([getattr(one, name) for one in seen])
                values.append(float(both.mean()))
    for (name, values), (dash, marker) in zip(
        lines.items(), (("-", "o"), ("--", "x"), (":", "s"))
    ):
        axes.plot(
            at,
            [100 * value for value in values],
            dash,
            marker=marker,
            markersize=4,
            linewidth=1,
            color="#333333",
            label=name,
        )
    axes.set_ylim(0, 105)
    axes.set_ylabel(f"of {count} units (%)", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    _over_depth(axes, found.places)


def _parts(places: list[Place]) -> tuple[list[float], list[Place | None]]:
    """Where layers are drawn, and which; None is a gap, between encoder and decoder."""
    at: list[float] = []
    shown: list[Place | None] = []
    for i, place in enumerate(places):
        if i and place[0] != places[i - 1][0]:
            at.append(i - 0.5)
            shown.append(None)
        at.append(i)
        shown.append(place)
    return at, shown


def _over_depth(axes: "Axes", places: list[Place]) -> None:
    axes.set_xticks(range(len(places)), [str(layer + 1) for _, layer in places])
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.tick_params(labelsize=7)
    decoder = [i for i, (part, _) in enumerate(places) if part == "decoder"]
    name = "layer"
    if decoder:
        axes.axvline(decoder[0] - 0.5, color="#999999", linewidth=0.8)
        name = "layer of the encoder | of the decoder"
    axes.set_xlabel(name, fontsize=8)
    axes.grid(axis="y", color="#d0d0d0", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _value(layer: Layer | None, what: str) -> Any:
    return math.nan if layer is None else 100 * getattr(layer, what)
