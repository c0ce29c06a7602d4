"""RESULTS.md and its pictures, made of ``results.tsv`` and ``utterances.tsv`` alone.

What is shown of one split, by default ``test``:

* the CER of each task, frozen and adapted (``results.png`` and ``.svg``),
* the CER, averaged over tasks, against the parameters that a task costs
  (``tradeoff.png`` and ``.svg``),
* the difference of every method to a reference with its 95 % interval.

Intervals are those of a bootstrap over utterances: within every task utterances are
drawn with replacement, *the same ones for all methods*, so that differences are paired;
errors are averaged over seeds first, and rates over tasks last. An interval says how
much a result depends on which sentences were in the test set, not on the seed.

::

    espnet-hra report egs2/hra_asr/exp/debian_voices/results.tsv
"""

import argparse
import io
import math
import os
import platform
import subprocess
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Union

import numpy as np

from espnet_hra.errors import UserError
from espnet_hra.report import scoring
from espnet_hra.report.scoring import FROZEN, TSV, UTTERANCES, Row, Utterance
from espnet_hra.version import __version__

PathLike = Union[str, "os.PathLike[str]"]

#: The page.
MARKDOWN = "RESULTS.md"

#: The pictures: of the tasks, and of the price of a task.
TASKS, TRADEOFF = "results", "tradeoff"

#: Between these lines everything is made anew; what stands around them is kept.
BEGIN = "<!-- made by `espnet-hra report`, which writes all of it anew -->"
END = "<!-- here it ends -->"

#: A table with more tasks than this has them as rows instead of columns.
WIDEST = 8

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


class ReportError(UserError, ValueError):
    """Results that cannot be shown as asked for."""


@dataclass(frozen=True)
class Results:
    """All lines of both tables."""

    rows: Sequence[Row]
    utterances: Sequence[Utterance]

    @property
    def split(self) -> str:
        """The split that is shown by default."""
        splits = [row.split for row in self.rows]
        return "test" if "test" in splits else splits[-1]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval, nan where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def text(self, sign: str = "") -> str:
        """The value, and the interval in brackets."""
        value = f"{self.value:{sign}.1f}"
        if math.isnan(self.low):
            return value
        return f"{value} [{self.low:{sign}.1f}, {self.high:{sign}.1f}]"


@dataclass
class System:
    """What a method costs, and its rates on one split.

    Attributes:
        method: Its name.
        seeds: The seeds that are averaged.
        shared: Trained parameters that all tasks share.
        per_task: The smallest and the largest number of parameters of a task.
        cer: The CER of each task.
        resampled: The CER of each task in each resample; empty without utterances.
        signature: For each task, which utterances were scored: differences are paired
            only where these are the same.
    """

    method: str
    seeds: tuple[int, ...]
    shared: int
    per_task: tuple[int, int]
    cer: dict[str, float]
    resampled: dict[str, np.ndarray] = field(default_factory=dict)
    signature: dict[str, int] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The adapter, without its variant."""
        return self.method.split("_")[0]

    def mean(self, tasks: Iterable[str]) -> Interval:
        """The mean CER over tasks."""
        tasks = list(tasks)
        return _interval(
            _mean([self.cer[task] for task in tasks]),
            [self.resampled.get(task) for task in tasks],
        )

    def difference(self, other: "System") -> tuple[Interval, list[str]]:
        """The mean CER less another's over the tasks that can be compared.

        Args:
            other: The reference.

        Returns:
            The difference, and these tasks: the same utterances were scored.
        """
        tasks = [
            task
            for task, signature in self.signature.items()
            if other.signature.get(task) == signature
        ]
        if not tasks:
            return Interval(math.nan), []
        pairs = [self.resampled[task] - other.resampled[task] for task in tasks]
        value = _mean([self.cer[task] - other.cer[task] for task in tasks])
        return _interval(value, pairs), tasks


# --------------------------------------------------------------------- the estimates


def systems(
    results: Results, split: str, samples: int = 10_000, seed: int = 0
) -> dict[str, System]:
    """All methods with results on a split, the frozen backbone first.

    Args:
        results: The tables.
        split: The data set.
        samples: The number of resamples.
        seed: What they are drawn with.
    """
    found = {}
    for method in ordered(row.method for row in results.rows):
        rows = [r for r in results.rows if (r.method, r.split) == (method, split)]
        if rows:
            sizes = [row.task_params for row in rows]
            found[method] = System(
                method,
                tuple(sorted({row.seed for row in rows})),
                max(row.shared_params for row in rows),
                (min(sizes), max(sizes)),
                _rates(rows, "cer"),
            )
    counts: dict[str, dict[str, dict[str, dict[int, Utterance]]]] = {}
    for line in results.utterances:
        if line.split == split and line.method in found:
            seeds = counts.setdefault(line.task, {}).setdefault(line.method, {})
            seeds.setdefault(line.utterance, {})[line.seed] = line
    for task, by_method in counts.items():
        groups: dict[int, list[str]] = {}
        tables = {}
        for method, by_utterance in by_method.items():
            table = _table_of(by_utterance, found[method].seeds)
            if table is not None and task in found[method].cer:
                signature, lengths, errors = table
                tables[method] = lengths, errors
                found[method].signature[task] = signature
                # Of rates in results.tsv, two decimals are left.
                found[method].cer[task] = _ratio(errors.sum(), lengths.sum())
                groups.setdefault(signature, []).append(method)
        for methods in groups.values():
            # One stream for a task: what is drawn does not depend on other tasks.
            stream = [seed, zlib.crc32(f"{split} {task}".encode())]
            lengths = tables[methods[0]][0]
            errors = np.stack([tables[method][1] for method in methods], axis=1)
            rates = resample(errors, lengths, samples, np.random.default_rng(stream))
            for method, column in zip(methods, rates.T):
                found[method].resampled[task] = column
    return found


def _table_of(
    by_utterance: Mapping[str, Mapping[int, Utterance]], seeds: Sequence[int]
) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Signature, lengths and mean errors of utterances; None if a seed lacks some."""
    ids = sorted(by_utterance)
    if any(set(by_utterance[i]) != set(seeds) for i in ids):
        return None
    lines = [list(by_utterance[i].values()) for i in ids]
    lengths = [line[0].characters for line in lines]
    if any(u.characters != n for line, n in zip(lines, lengths) for u in line):
        return None
    signature = zlib.crc32(repr((ids, lengths)).encode("utf-8"))
    errors = [_mean([u.errors for u in line]) for line in lines]
    return signature, np.array(lengths, float), np.array(errors, float)


def resample(
    errors: np.ndarray,
    lengths: np.ndarray,
    samples: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Error rates under resampling of utterances with replacement.

    Args:
        errors: Errors, shape (utterances, methods).
        lengths: Lengths of the references, shape (utterances,).
        samples: The number of resamples.
        generator: What they are drawn with.

    Returns:
        Rates in percent, shape (samples, methods); all methods have the same resamples.
    """
    n = len(lengths)
    block = max(1, 2_000_000 // n)  # to hold a few megabytes at once
    parts = []
    for start in range(0, samples, block):
        size = min(block, samples - start)
        drawn = generator.multinomial(n, np.full(n, 1.0 / n), size).astype(float)
        spoken = drawn @ lengths
        spoken[spoken == 0] = math.nan  # nothing is said in what was drawn
        parts.append(100.0 * (drawn @ errors) / spoken[:, None])
    return np.concatenate(parts)


def choose_reference(
    found: Mapping[str, System], name: str | None, select: Mapping[str, float]
) -> str:
    """The method that the others are compared with.

    Args:
        found: The methods of the split.
        name: The name of one, or the beginning of several names; by default ``hra``,
            and the frozen backbone where there is none.
        select: The rate by which the best of several is chosen: the dev set's, so that
            the choice owes nothing to the test set.

    Raises:
        ReportError: If there is none of this name.
    """
    if name in found:
        return name
    complete = _complete(found)
    begun = [m for m in complete if m.split("_")[0] == (name or "hra")]
    begun = begun or [m for m in complete if name and m.startswith(name)]
    if begun:
        return min(begun, key=lambda m: (select.get(m, math.inf), m))
    if name is not None:
        raise ReportError(
            f"--reference {name}: no such method; there are: {', '.join(found)}"
        )
    return FROZEN if FROZEN in found else next(iter(found))


def selection_rates(results: Results, split: str) -> dict[str, float]:
    """The mean CER of each method on the dev set, else on the split that is shown."""
    splits = {row.split for row in results.rows}
    used = "dev" if "dev" in splits else split
    rates = {}
    for method in ordered(row.method for row in results.rows):
        rows = [r for r in results.rows if (r.method, r.split) == (method, used)]
        if rows:
            rates[method] = _mean(list(_rates(rows, "cer").values()))
    return rates


def _rates(rows: Sequence[Row], measure: str) -> dict[str, float]:
    """The rate of each task of one method, averaged over seeds."""
    return {
        task: _mean([getattr(row, measure) for row in rows if row.task == task])
        for task in ordered(row.task for row in rows)
    }


def _complete(found: Mapping[str, System]) -> list[str]:
    """The methods that have results of all tasks: only their means compare."""
    tasks = _tasks(found)
    return [m for m, system in found.items() if len(system.cer) == len(tasks)]


def _tasks(found: Mapping[str, System]) -> list[str]:
    return sorted({task for system in found.values() for task in system.cer})


def _interval(value: float, resampled: Sequence[np.ndarray | None]) -> Interval:
    """A value with the percentiles of its resamples, if all parts have some."""
    if not resampled or any(part is None for part in resampled):
        return Interval(value)
    mean = np.mean(np.stack(resampled), axis=0)
    if np.isnan(mean).all():
        return Interval(value)
    low, high = np.nanpercentile(mean, [2.5, 97.5])
    return Interval(value, float(low), float(high))


# ------------------------------------------------------------------------- the page


def head(title: str, command: str | None = None, note: str | None = None) -> str:
    """What opens the page: where, when and how the results were made.

    Args:
        title: What the results are of.
        command: The command that made them.
        note: What a reader must know about them.
    """
    parts = [f"# RESULTS: {title}\n", "## Environments\n", environment(Path.cwd())]
    if command:
        parts.append(f"## Command\n\n```bash\n{command}\n```\n")
    if note:
        parts.append(f"**Note:** {note}\n")
    return "\n".join(parts)


def environment(folder: PathLike) -> str:
    """The block on versions that opens ESPnet's results.

    Args:
        folder: A folder of the repository, for the commit.
    """
    lines = [
        f"- date: `{time.strftime('%a %b %d %H:%M:%S %Z %Y')}`",
        f"- python version: `{platform.python_version()}`",
    ]
    for name in ("espnet", "torch"):
        lines.append(f"- {name} version: `{_version(name)}`")
    lines.append(f"- espnet-hra version: `{__version__}`")
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        changed = " (with changes)" if _git(folder, "status", "--porcelain") else ""
        lines.append(f"- Git hash: `{commit}`{changed}")
        date = _git(folder, "log", "-1", "--format=%cd")
        lines.append(f"  - Commit date: `{date}`")
    return "\n".join(lines) + "\n"


def times(path: PathLike | None) -> str:
    """What closes the page: the times of the stages, if they are known.

    Args:
        path: A file with stage, title and seconds in columns (tabs between); a variant
            may stand behind the stage.
    """
    if path is None or not Path(path).exists():
        return ""
    cells = [["stage", "", "seconds"]]
    for line in Path(path).read_text(encoding="utf-8").split("\n"):
        if line.strip():
            key, title, seconds = [*line.split("\t"), "", ""][:3]
            stage, _, variant = key.partition(" ")
            named = f"{title} ({variant})" if variant not in ("", "-") else title
            cells.append([stage, named, seconds])
    return f"## Time\n\n{_markdown(cells)}"


def write(
    results: Results,
    folder: PathLike,
    opening: str | None = None,
    closing: str = "",
    *,
    split: str | None = None,
    reference: str | None = None,
    samples: int = 10_000,
    seed: int = 0,
) -> list[Path]:
    """Write the page and its pictures.

    Args:
        results: The tables.
        folder: Where to write.
        opening: The text before the tables; by default the text around them stays as it
            is, and a page that is new has a title only.
        closing: The text after the tables.
        split: The data set of pictures and intervals.
        reference: See :func:`choose_reference`.
        samples: The number of resamples.
        seed: What they are drawn with.

    Returns:
        The files, the page first.

    Raises:
        ReportError: If there is nothing to show, or a page that this did not write.
    """
    if not results.rows:
        raise ReportError("there are no results to show")
    folder = Path(folder)
    split = split or results.split
    if split not in {row.split for row in results.rows}:
        raise ReportError(
            f"--split {split}: no such data set; there are: "
            f"{', '.join(ordered(row.split for row in results.rows))}"
        )
    page = folder / MARKDOWN
    if opening is None:
        opening, closing = _around(page)
    found = systems(results, split, samples, seed)
    rates = selection_rates(results, split)
    against = choose_reference(found, reference, rates)
    files, shown = [], []
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        TASKS: (draw_tasks(found, split, against), f"CER of each task, {split}"),
        TRADEOFF: (
            draw_tradeoff(found, split),
            f"CER against the parameters of a task, {split}",
        ),
    }
    for name, (figure, caption) in pictures.items():
        if figure is None:
            continue
        for kind in ("png", "svg"):
            files.append(folder / f"{name}.{kind}")
            scoring.write(files[-1], _encoded(figure, kind))
        shown.append(f"![{caption}]({name}.png)\n")
    parts = [
        opening.rstrip() + "\n",
        BEGIN,
        _explanation(found),
        *shown,
        comparison(found, against, split, samples),
        rate_tables(results.rows),
        END,
    ]
    content = "\n".join(parts) + "\n"
    if closing.strip():
        content += f"\n{closing.strip()}\n"
    scoring.write(page, content)
    return [page, *files]


def _around(page: Path) -> tuple[str, str]:
    """The text of a page before and after what is made."""
    if not page.exists():
        return f"# RESULTS: {page.parent.resolve().name}\n", ""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ReportError(
            f"{page} was not written by this program (it has no line '{BEGIN}'): move "
            "it away, or name another folder with --out_dir"
        )
    return before, after


def _explanation(found: Mapping[str, System]) -> str:
    """How to read the tables."""
    text = (
        "CER counts spaces; `none` is the frozen backbone; `shared` and `per task` are "
        "trained parameters; `mean` gives all tasks the same weight, and `change` is "
        "its relative change against `none`."
    )
    if any("_tasks-" in method for method in found):
        text += (
            " A name with `_tasks-` is of a run that adapted to some of the tasks only."
        )
    return f"\n{text}\n"


def comparison(
    found: Mapping[str, System], reference: str, split: str, samples: int
) -> str:
    """The table with differences to a reference; nothing where there are none.

    Args:
        found: The methods.
        reference: One of them.
        split: The data set.
        samples: The number of resamples.
    """
    others = [m for m in found if m != reference]
    if not others:
        return ""
    base, tasks = found[reference], _tasks(found)
    complete = _complete(found)
    cells = [
        ["method", "seeds", "per task", "tasks", "CER", f"minus {reference}", "change"]
    ]
    for method in [reference, *others]:
        system = found[method]
        row = [method, str(len(system.seeds)), _size(system), str(len(system.cer))]
        row.append(system.mean(tasks).text() if method in complete else "")
        delta, shared = system.difference(base)
        if method == reference or not shared:
            row += ["", ""]
        else:
            mean = _mean([base.cer[task] for task in shared])
            row.append(delta.text("+"))
            row.append(f"{100 * delta.value / mean:+.1f} %" if mean else "")
        cells.append(row)
    return (
        f"## Comparison with {reference} on {split}\n\n"
        "Mean CER over tasks, and its difference (negative: better than "
        f"`{reference}`) over the tasks that both have; in brackets 95 % intervals of "
        f"a paired bootstrap over utterances ({samples:,} resamples). A difference "
        "whose interval includes 0 may be due to the choice of sentences.\n\n"
        f"{_markdown(cells)}"
    )


def rate_tables(rows: Sequence[Row]) -> str:
    """The tables for people, CER and WER of each split.

    Args:
        rows: All rows of ``results.tsv``.

    Returns:
        Markdown. Several seeds of a method are averaged. Each method's mean over
        tasks is compared with the frozen backbone's.
    """
    parts = []
    for split in ordered(row.split for row in rows):
        chosen = [row for row in rows if row.split == split]
        sizes = {row.task: f"{row.utterances} / {row.words}" for row in chosen}
        counts = ", ".join(f"{task} {size}" for task, size in sizes.items())
        parts.append(f"## {split}\n")
        parts.append(f"Utterances / words: {counts}.\n")
        for measure in ("cer", "wer"):
            parts.append(f"### {measure.upper()} (%)\n")
            parts.append(_rate_table(chosen, measure))
    return "\n".join(parts)


def _rate_table(rows: Sequence[Row], measure: str) -> str:
    """One table: methods, their size, tasks, the mean and its change."""
    tasks = ordered(row.task for row in rows)
    frozen: float | None = None
    columns: dict[str, list[str]] = {}
    for method in ordered(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        rates = _rates(own, measure)
        mean = change = ""
        if len(rates) == len(tasks):
            average = _mean(list(rates.values()))
            mean = f"{average:.1f}"
            if method == FROZEN:
                frozen = average
            elif frozen and not math.isnan(average):
                change = f"{100.0 * (average - frozen) / frozen:+.1f} %"
        sizes = [row.task_params for row in own]
        columns[method] = [
            str(len({row.seed for row in own})),
            f"{max(row.shared_params for row in own):,}",
            _range(min(sizes), max(sizes)),
            *(f"{rates[task]:.1f}" if task in rates else "" for task in tasks),
            mean,
            change,
        ]
    names = ["seeds", "shared", "per task", *tasks, "mean", "change"]
    if len(tasks) > WIDEST:
        table = [["", *columns]]
        table += [[n, *(c[i] for c in columns.values())] for i, n in enumerate(names)]
    else:
        table = [["method", *names], *([m, *c] for m, c in columns.items())]
    return _markdown(table)


def _size(system: System) -> str:
    return _range(*system.per_task)


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    names, *body = [[_escape(cell) for cell in row] for row in cells]
    rule = ["---", *("---:" for _ in names[1:])]
    return "\n".join("|" + "|".join(row) + "|" for row in (names, rule, *body)) + "\n"


# --------------------------------------------------------------------- the pictures


def draw_tasks(found: Mapping[str, System], split: str, reference: str):
    """Draw the CER of each task: a line of dots for each, a colour for each method.

    Args:
        found: The methods.
        split: The data set.
        reference: The method that is shown of its family, if there are too many; of
            each other family then the one whose tasks cost most nearly as much.

    Returns:
        A figure.
    """
    from matplotlib.figure import Figure

    methods = list(found)
    if len(methods) > MOST_METHODS:
        methods = _one_of_each_family(found, reference)[:MOST_METHODS]
    tasks = _tasks(found)
    left_out = len(tasks) - MOST_TASKS
    complete = [m for m in methods if m in _complete(found)]
    tasks = tasks[:MOST_TASKS]
    lines = [*tasks, "mean"] if complete and (left_out > 0 or len(tasks) > 1) else tasks
    step = 0.8 / len(methods)
    height = min(30.0, 1.4 + len(lines) * max(0.34, 0.13 * len(methods)))
    figure = Figure(figsize=(8.0, height), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(lines):
        if i % 2 == 0:
            axes.axhspan(i - 0.5, i + 0.5, color="#f3f3f3", zorder=0)
    for j, method in enumerate(methods):
        system = found[method]
        colour, marker = _style(method, found)
        points = {
            i: (
                system.mean(_tasks(found))
                if name == "mean" and i == len(tasks)
                else _interval(system.cer[name], [system.resampled.get(name)])
            )
            for i, name in enumerate(lines)
            if name in system.cer or (i == len(tasks) and method in complete)
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


def draw_tradeoff(found: Mapping[str, System], split: str):
    """Draw the mean CER against the parameters that a task costs.

    Args:
        found: The methods.
        split: The data set.

    Returns:
        A figure; None if there is no method to show.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    methods = [m for m in _complete(found) if found[m].per_task[1] > 0]
    if not methods:
        return None
    tasks = _tasks(found)
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.subplots()
    names: list[tuple[float, float, str, str]] = []
    if FROZEN in _complete(found):
        frozen = found[FROZEN].mean(tasks).value
        colour, _ = _style(FROZEN, found)
        line = {"color": colour, "linestyle": "--", "linewidth": 1}
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
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel("parameters that each task adds (what tasks share is not counted)")
    axes.set_ylabel("mean CER (%), lower is better")
    _finish(figure, axes, f"CER and the price of a task, {split}", "both", 6)
    _write_names(figure, axes, names)
    return figure


def _write_names(figure, axes, names: Sequence[tuple[float, float, str, str]]) -> None:
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
        places = [(7, dy, "left") for dy in steps] + [(-7, dy, "right") for dy in steps]
        for dx, dy, side in places:
            text.set_position((dx, dy))
            text.set_horizontalalignment(side)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _one_of_each_family(found: Mapping[str, System], reference: str) -> list[str]:
    """The method of each family whose size is next to the reference's."""
    complete = _complete(found)
    size = math.log1p(found[reference].per_task[1])
    return [
        min(
            (m for m in complete if found[m].family == family),
            key=lambda m: (
                m != reference,
                abs(math.log1p(found[m].per_task[1]) - size),
                m,
            ),
        )
        for family in ordered(found[m].family for m in complete)
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
    bars = [(v.value - v.low, v.high - v.value) for v in values]
    return np.nan_to_num(np.clip(np.array(bars).T, 0, None))


def _finish(figure, axes, title: str, grid: str, columns: int) -> None:
    """What all pictures share."""
    axes.grid(axis=grid, which="major", color="#d0d0d0", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def _encoded(figure, kind: str) -> bytes:
    """A picture as the bytes of a file, the same ones every time."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "espnet-hra"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(stream, format=kind, dpi=130, metadata=metadata)
    return stream.getvalue()


# -------------------------------------------------------------------------- helpers


def ordered(names: Iterable[str]) -> list[str]:
    """Distinct names in order of appearance, the frozen backbone first."""
    return sorted(dict.fromkeys(names), key=lambda name: name != FROZEN)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _ratio(errors: float, length: float) -> float:
    return 100.0 * errors / length if length else math.nan


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git(folder: PathLike, *arguments: str) -> str:
    """What git says, nothing where it cannot say anything."""
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


# --------------------------------------------------------------------- command line


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra report",
        description="Write RESULTS.md and its pictures anew, from results.tsv and the "
        "utterances.tsv beside it.",
    )
    parser.add_argument(
        "results", nargs="?", default=TSV, help=f"the table (default: {TSV})"
    )
    parser.add_argument("--out_dir", help="where to write (default: beside the table)")
    parser.add_argument(
        "--reference",
        help="the method that others are compared with, or the first word of several "
        "names for the best of these on dev (default: hra)",
    )
    parser.add_argument("--split", help="the data set of the pictures (default: test)")
    parser.add_argument(
        "--samples", type=int, default=10_000, help="resamples (default: 10000)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="what they are drawn with (default: 0)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and its pictures, and print their names.

    Args:
        argv: The arguments, by default those of the process.

    Returns:
        The exit status.

    Raises:
        UserError: The tables are not there or cannot be read.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.samples < 1 or args.seed < 0:
        parser.error("--samples must be at least 1 and --seed at least 0")
    table = Path(args.results)
    if table.is_dir():
        table /= TSV
    if not table.is_file():
        raise ReportError(f"there is no table {table}: name a {TSV}")
    results = Results(
        scoring.read_table(table, Row),
        scoring.read_table(table.with_name(UTTERANCES), Utterance),
    )
    if not results.utterances:
        print(f"no {UTTERANCES} beside {table}: no intervals")
    try:
        files = write(
            results,
            args.out_dir or table.parent,
            split=args.split,
            reference=args.reference,
            samples=args.samples,
            seed=args.seed,
        )
    except OSError as error:
        raise ReportError(f"cannot write the report: {error}") from error
    for file in files:
        print(file)
    return 0
