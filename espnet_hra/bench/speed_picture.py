"""The picture of how time grows with tasks, layers and batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet_hra.bench.speed_table import AGAIN, Measurement, Row
from espnet_hra.bench.timing import Ratio
from espnet_hra.report.pictures import STYLES, new_figure


@dataclass(frozen=True)
class Curve:
    """A line of a picture: (x, ratio) of measurements in which both variants are."""

    label: str
    top: str
    bottom: str
    style: str
    line: str = "-"


_DEPTH = (
    Curve("HRA, c = d", "hra", "none", "hra"),
    Curve("residual", "residual", "none", "residual"),
    Curve("PEFT LoRA, r = 8", "lora8", "none", "lora"),
)
_BATCH = (
    Curve("HRA, one task", "hra", "none", "hra"),
    Curve("HRA, a task per utterance", "hra_mixed", "none", "hra", "--"),
    Curve("PEFT LoRA, one task", "lora", "none", "lora"),
    Curve("PEFT LoRA, a task per utterance", "lora_mixed", "none", "lora", "--"),
)


def draw(found: Sequence[Measurement], title: str) -> Any | None:
    """Draw how time grows with tasks, layers and batch.

    Args:
        found: Of one machine.
        title: What the machine is.

    Returns:
        A figure; None if no curve has two points.
    """
    growth = [m for m in found if m.first.case == "growth"]
    depth = [m for m in growth if m.first.part.endswith("layers")]
    batch = [m for m in growth if m.first.part.startswith("batch")]

    def layers(row: Row) -> float:
        return int(row.part.split()[0])

    panels: list[tuple[str, str, Points]] = [
        ("registered tasks", "time / with 1 task", _registered(found)),
        ("layers (batch 1)", "time / bare encoder", _points(depth, _DEPTH, layers)),
        (
            "utterances in a batch",
            "time / bare encoder",
            _points(batch, _BATCH, lambda row: row.batch),
        ),
    ]
    panels = [(x, y, {c: p for c, p in lines.items() if len(p) > 1})
              for x, y, lines in panels]  # fmt: skip
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return None
    figure = new_figure(3.9 * len(panels), 4.2)
    for axes, (x_label, y_label, lines) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels
    ):
        axes.axhline(1.0, color="#666666", linewidth=1)
        for curve, points in lines.items():
            colour, marker = STYLES[curve.style]
            x, values = zip(*points)
            y = np.array([v.value for v in values])
            low, high = (np.array([getattr(v, k) for v in values]) for k in _ENDS)
            filled = colour if curve.line == "-" else "white"
            axes.plot(
                x,
                y,
                curve.line,
                marker=marker,
                color=colour,
                markersize=5,
                markerfacecolor=filled,
                linewidth=1.4,
                label=curve.label,
            )
            if np.isfinite([low, high]).all():
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xticks(ticks)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(axis="both", which="major", color="#d0d0d0", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=2 if len(lines) > 3 else len(lines),
            frameon=False,
            fontsize=7,
        )
    figure.suptitle(f"How time grows, {title}", fontsize=10)
    return figure


_ENDS = ("low", "high")

Points = dict[Curve, list[tuple[float, Ratio]]]


def _points(
    found: Sequence[Measurement], curves: Sequence[Curve], x: Callable[[Row], float]
) -> Points:
    """The points of each curve, one for each measurement."""
    points: Points = {}
    for curve in curves:
        for m in found:
            value = m.ratio([curve.top], [curve.bottom])
            if value is not None:
                points.setdefault(curve, []).append((x(m.first), value))
    return {c: sorted(p, key=lambda point: point[0]) for c, p in points.items()}


def _registered(found: Sequence[Measurement]) -> Points:
    """The curves over registered tasks, of the backbone with most points."""
    best: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for m in found:
        if m.first.case == "many":
            counts = {
                int(name.split("_")[1]): name
                for name in m.rows
                if not name.endswith(AGAIN)
            }
            if len(counts) > best.get(m.first.part, (0, {}))[0]:
                best[m.first.part] = len(counts), {"m": m, "counts": counts}
    points: Points = {}
    for i, (part, (_, chosen)) in enumerate(best.items()):
        curve = Curve(part, "", "", "hra", "--" if i else "-")
        counts = chosen["counts"]
        for n in sorted(counts):
            value = chosen["m"].ratio([counts[n]], [counts[min(counts)]])
            points.setdefault(curve, []).append((n, value))
    return points
