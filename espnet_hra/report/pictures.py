"""The pictures of results. They need matplotlib."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from espnet_hra.report.results import FROZEN, ordered
from espnet_hra.report.statistics import (
    Interval,
    ReportError,
    System,
    complete_methods,
    interval,
    mean_column,
    tasks_of,
)

if TYPE_CHECKING:  # which is imported only where something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The pictures: of the tasks, and of the price of a task.
TASKS, TRADEOFF = "results", "tradeoff"

#: A picture of the tasks shows so many of them, and so many methods.
MOST_TASKS, MOST_METHODS = 40, 7

#: Colours that the colour-blind can tell apart (Okabe and Ito), and markers for all
#: others, by the first word of a method's name; then those of names that are not here.
STYLES = {
    FROZEN: ("#666666", "D"),
    "hra": ("#0072B2", "o"),
    "residual": ("#D55E00", "s"),
    "lora": ("#009E73", "^"),
    "bitfit": ("#CC79A7", "v"),
    "full": ("#E69F00", "P"),
}
_MORE_STYLES = (("#56B4E9", "X"), ("#000000", "*"), ("#F0E442", "h"))


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of matplotlib's, in inches.

    Raises:
        ReportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ReportError(
            f"pictures need matplotlib, which cannot be imported ({e}): "
            "pip install 'espnet-hra[plots]'"
        ) from e
    return Figure(figsize=(width, height), layout="constrained")


def draw_tasks(found: Mapping[str, System], split: str, reference: str) -> "Figure":
    """Draw the CER of each task: a line of dots for each, a colour for each method.

    Args:
        found: The methods.
        split: The data set.
        reference: The method that is shown of its family, if there are too many; of
            each other family then the one whose tasks cost most nearly as much.

    Returns:
        A figure.
    """
    methods = list(found)
    if len(methods) > MOST_METHODS:
        methods = _one_of_each_family(found, reference)[:MOST_METHODS]
    tasks = tasks_of(found)
    left_out = len(tasks) - MOST_TASKS
    complete = [m for m in methods if m in complete_methods(found)]
    tasks = tasks[:MOST_TASKS]
    lines = (
        [*tasks, mean_column(tasks)]
        if complete and (left_out > 0 or len(tasks) > 1)
        else tasks
    )
    step = 0.8 / len(methods)
    height = min(30.0, 1.4 + len(lines) * max(0.34, 0.13 * len(methods)))
    figure = new_figure(8.0, height)
    axes = figure.subplots()
    for i in range(0, len(lines), 2):
        axes.axhspan(i - 0.5, i + 0.5, color="#f3f3f3", zorder=0)
    for j, method in enumerate(methods):
        system = found[method]
        colour, marker = _style(method, found)
        points = {
            i: (
                system.mean(tasks_of(found))
                if i == len(tasks)
                else interval(system.rates[name], [system.resampled.get(name)])
            )
            for i, name in enumerate(lines)
            if name in system.rates or (i == len(tasks) and method in complete)
        }
        y = [i + (j - (len(methods) - 1) / 2) * step for i in points]
        values = list(points.values())
        axes.errorbar(
            [v.value for v in values],
            y,
            xerr=_bars(values),
            linestyle="none",
            marker=marker,
            markersize=6,
            color=colour,
            markerfacecolor="white" if method == FROZEN else colour,
            elinewidth=1,
            capsize=0,
            label="frozen (none)" if method == FROZEN else method,
            zorder=3,
        )
        if len(methods) <= 2:
            for value, place in zip(values, y):
                axes.annotate(
                    f"{value.value:.1f}",
                    (value.value, place),
                    xytext=(0, 4.5),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                    color=colour,
                )
    axes.set_yticks(range(len(lines)), lines)
    if len(lines) > len(tasks):
        axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("CER (%), lower is better; lines: 95 % intervals over utterances")
    title = f"CER of each task, {split}"
    if left_out > 0:
        title += f" ({MOST_TASKS} of {MOST_TASKS + left_out} tasks)"
    _finish(figure, axes, title, "x", min(4, len(methods)))
    return figure


def draw_tradeoff(found: Mapping[str, System], split: str) -> "Figure | None":
    """Draw the mean CER against the parameters that a task costs.

    Args:
        found: The methods.
        split: The data set.

    Returns:
        A figure; None if there is no method to show.
    """
    methods = [m for m in complete_methods(found) if found[m].per_task[1] > 0]
    if not methods:
        return None
    tasks = tasks_of(found)
    figure = new_figure(8.0, 4.8)
    axes = figure.subplots()
    names: list[tuple[float, float, str, str]] = []
    if FROZEN in complete_methods(found):
        frozen = found[FROZEN].mean(tasks).value
        colour, _ = _style(FROZEN, found)
        line: dict[str, Any] = {"color": colour, "linestyle": "--", "linewidth": 1}
        if frozen < 1.5 * max(found[m].mean(tasks).value for m in methods):
            axes.axhline(frozen, label="frozen", **line)
        else:  # far off: it would press all others together
            axes.plot([], [], label=f"frozen: {frozen:.1f}, far above", **line)
    for family in ordered(found[m].family for m in methods):
        members = [m for m in methods if found[m].family == family]
        members.sort(key=lambda m: found[m].per_task)
        colour, marker = _style(members[0], found)
        values = [found[m].mean(tasks) for m in members]
        sizes = [sum(found[m].per_task) / 2 for m in members]
        axes.errorbar(
            sizes,
            [v.value for v in values],
            yerr=_bars(values),
            linestyle="none",
            marker=marker,
            markersize=7,
            color=colour,
            elinewidth=1,
            capsize=3,
            label=family,
            zorder=3,
        )
        names += [
            (size, value.value, method, colour)
            for method, size, value in zip(members, sizes, values)
        ]
    axes.set_xscale("log")
    sizes = [n for m in methods for n in found[m].per_task]
    # Room for names, and a whole decade at least.
    axes.set_xlim(min(sizes) / 2, max(max(sizes) * 4, min(sizes) * 10))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("parameters that each task adds (what tasks share is not counted)")
    axes.set_ylabel("mean CER (%), lower is better")
    _finish(figure, axes, f"CER and the price of a task, {split}", "both", 6)
    _write_names(figure, axes, names)
    return figure


def _write_names(
    figure: "Figure", axes: "Axes", names: Sequence[tuple[float, float, str, str]]
) -> None:
    """Write names beside points, each where it covers no other name.

    Args:
        figure: The figure.
        axes: Its axes, with their final limits.
        names: Point, name and colour of each.
    """
    figure.draw_without_rendering()  # so that places in pixels are known
    taken: list = []
    for x, y, name, colour in sorted(names, key=lambda item: (item[0], -item[1])):
        text = axes.annotate(
            name,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=7,
            color=colour,
        )
        # Right of the point, a little higher or lower each time, else left of it.
        steps = [4, -9, 13, -18, 22, -27, 31, -36]
        for dx, dy in [(7, dy) for dy in steps] + [(-7, dy) for dy in steps]:
            text.set_position((dx, dy))
            text.set_horizontalalignment("left" if dx > 0 else "right")
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _one_of_each_family(found: Mapping[str, System], reference: str) -> list[str]:
    """The method of each family whose size is next to the reference's."""
    # Where none has all tasks there is no mean to compare: any will do.
    shown = complete_methods(found) or list(found)
    size = math.log1p(found[reference].per_task[1])
    return [
        min(
            (m for m in shown if found[m].family == family),
            key=lambda m: (
                m != reference,
                abs(math.log1p(found[m].per_task[1]) - size),
                m,
            ),
        )
        for family in ordered(found[m].family for m in shown)
    ]


def _style(method: str, found: Mapping[str, System]) -> tuple[str, str]:
    """The colour and marker of a method's family."""
    family = found[method].family
    if family in STYLES:
        return STYLES[family]
    others = [f for f in ordered(s.family for s in found.values()) if f not in STYLES]
    return _MORE_STYLES[others.index(family) % len(_MORE_STYLES)]


def _bars(values: Sequence[Interval]) -> np.ndarray:
    """Error bars as matplotlib wants them."""
    sides = [(v.value - v.low, v.high - v.value) for v in values]
    return np.nan_to_num(np.clip(np.array(sides).T, 0, None))


def _finish(
    figure: "Figure", axes: "Axes", title: str, grid: Literal["x", "both"], columns: int
) -> None:
    """What all pictures share."""
    axes.grid(axis=grid, which="major", color="#d0d0d0", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def encoded(figure: "Figure", kind: str) -> bytes:
    """A picture as the bytes of a file, the same ones every time."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "espnet-hra"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(stream, format=kind, dpi=130, metadata=metadata)
    return stream.getvalue()
