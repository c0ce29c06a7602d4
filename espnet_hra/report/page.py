"""RESULTS.md, made of ``results.tsv`` and ``utterances.tsv`` alone.

What is shown of one split, by default ``test``:

* the CER of each task, frozen and adapted (``results.png`` and ``.svg``),
* the CER, averaged over tasks, against the parameters that a task costs
  (``tradeoff.png`` and ``.svg``),
* the difference of every method to a reference with its 95 % interval.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_hra.files import atomic
from espnet_hra.files.atomic import PathLike
from espnet_hra.files.tables import markdown
from espnet_hra.report import health, pictures
from espnet_hra.report.environment import environment
from espnet_hra.report.results import FROZEN, Results, Row, ordered
from espnet_hra.report.statistics import (
    ReportError,
    System,
    average,
    choose_reference,
    complete_methods,
    mean_column,
    rates_of,
    selection_rates,
    systems,
    tasks_of,
)

#: The page.
MARKDOWN = "RESULTS.md"

#: Between these lines everything is made anew; what stands around them is kept.
BEGIN = "<!-- made by `espnet-hra report`, which writes all of it anew -->"
END = "<!-- here it ends -->"

#: A table with more tasks than this has them as rows instead of columns.
WIDEST = 8


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


def times(path: PathLike | None) -> str:
    """What closes the page: the times of the stages, if they are known.

    Args:
        path: A file with stage, title and seconds in columns (tabs between); a variant
            may stand behind the stage.

    Raises:
        ReportError: If it cannot be read.
    """
    if path is None or not Path(path).exists():
        return ""
    cells = [["stage", "", "seconds"]]
    for stage, variant, title, seconds in stage_times(path):
        named = f"{title} ({variant})" if variant not in ("", "-") else title
        cells.append([stage, named, seconds])
    return f"## Time\n\n{markdown(cells)}"


def stage_times(path: PathLike) -> list[tuple[str, str, str, str]]:
    """Stage, variant, title and seconds of each line of ``times.tsv``.

    Raises:
        ReportError: If it cannot be read.
    """
    found = []
    for line in _read(Path(path)).split("\n"):
        if line.strip():
            key, title, seconds = [*line.split("\t"), "", ""][:3]
            stage, _, variant = key.partition(" ")
            found.append((stage, variant, title, seconds))
    return found


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
    everything, results = results, results.of_texts()
    found = systems(results, split, samples, seed)
    words = systems(results, split, samples, seed, "wer")
    rates = selection_rates(results, split)
    against = choose_reference(found, reference, rates)
    files, shown = [], []
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        pictures.TASKS: (
            pictures.draw_tasks(found, split, against),
            f"CER of each task, {split}",
        ),
        pictures.TRADEOFF: (
            pictures.draw_tradeoff(found, split),
            f"CER against the parameters of a task, {split}",
        ),
    }
    for name, (figure, caption) in drawn.items():
        if figure is None:
            continue
        for kind in ("png", "svg"):
            files.append(folder / f"{name}.{kind}")
            atomic.write(files[-1], pictures.encoded(figure, kind))
        shown.append(f"![{caption}]({name}.png)\n")
    parts = [
        opening.rstrip() + "\n",
        BEGIN,
        _explanation(found),
        *filter(None, [health.section(health.sick(**vars(everything)))]),
        *shown,
        comparison(found, words, against, split, samples),
        rate_tables(everything.rows),
        END,
    ]
    content = "\n".join(parts) + "\n"
    if closing.strip():
        content += f"\n{closing.strip()}\n"
    atomic.write(page, content)
    return [page, *files]


def _around(page: Path) -> tuple[str, str]:
    """The text of a page before and after what is made."""
    if not page.exists():
        return f"# RESULTS: {page.parent.resolve().name}\n", ""
    before, begin, rest = _read(page).partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ReportError(
            f"{page} was not written by this program (it has no line '{BEGIN}'): move "
            "it away, or name another folder with --out_dir"
        )
    return before, after


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} cannot be read: {error}") from error


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
    if any("_classify-" in method for method in found):
        text += (
            " One with `_classify-` is of a run with tasks that tell labels as well."
        )
    return f"\n{text}\n"


def comparison(
    found: Mapping[str, System],
    words: Mapping[str, System],
    reference: str,
    split: str,
    samples: int,
) -> str:
    """The table with differences to a reference; nothing where there are none.

    Args:
        found: The methods, with their CER.
        words: The same with their WER.
        reference: One of them.
        split: The data set.
        samples: The number of resamples.
    """
    others = [m for m in found if m != reference]
    if not others:
        return ""
    tasks, complete = tasks_of(found), complete_methods(found)
    cells = [["method", "seeds", "per task", "tasks"]]
    for rate in ("CER", "WER"):
        cells[0] += [rate, f"minus {reference}", "change"]
    for method in [reference, *others]:
        system = found[method]
        row = [method, str(len(system.seeds)), _range(*system.per_task)]
        row.append(str(len(system.rates)))
        for measured in (found, words):
            base, system = measured[reference], measured[method]
            row.append(system.mean(tasks).text() if method in complete else "")
            delta, shared = system.difference(base)
            if method == reference or not shared:
                row += ["", ""]
                continue
            mean = average([base.rates[task] for task in shared])
            row.append(delta.text("+"))
            row.append(f"{100 * delta.value / mean:+.1f} %" if mean else "")
        cells.append(row)
    return (
        f"## Comparison with {reference} on {split}\n\n"
        "Mean rates over tasks, and their differences (negative: better than "
        f"`{reference}`) over the tasks that both have; in brackets 95 % intervals of "
        f"a paired bootstrap over utterances ({samples:,} resamples). A difference "
        "whose interval includes 0 may be due to the choice of sentences.\n\n"
        f"{markdown(cells)}"
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
    labels = [row for row in rows if row.tells_labels]
    rows = [row for row in rows if not row.tells_labels]
    for split in ordered(row.split for row in rows):
        chosen = [row for row in rows if row.split == split]
        sizes = {row.task: f"{row.utterances} / {row.words}" for row in chosen}
        counts = ", ".join(f"{task} {size}" for task, size in sizes.items())
        parts.append(f"## {split}\n")
        parts.append(f"Utterances / words: {counts}.\n")
        for measure in ("cer", "wer"):
            parts.append(f"### {measure.upper()} (%)\n")
            parts.append(_rate_table(chosen, measure))
    return "\n".join([*parts, *_label_tables(labels)])


def _label_tables(rows: Sequence[Row]) -> list[str]:
    """The tables of tasks that classify: the error rate of their labels."""
    if not rows:
        return []
    parts = [
        "## Labels\n",
        "Tasks that classify: the share of utterances with a wrong label (%), and in "
        "brackets that with the right one. The frozen backbone has no answer.\n",
    ]
    for split in ordered(row.split for row in rows):
        chosen = [row for row in rows if row.split == split]
        tasks = ordered(row.task for row in chosen)
        table = [
            ["method", "seeds", "shared", "task", "per task", "utterances", "error"]
        ]
        for method in ordered(row.method for row in chosen):
            for task in tasks:
                own = [r for r in chosen if (r.method, r.task) == (method, task)]
                if own:
                    error = average([row.wer for row in own])
                    table.append(
                        [
                            *(method, str(len(own)), f"{own[0].shared_params:,}"),
                            *(task, f"{own[0].task_params:,}"),
                            *(
                                str(own[0].utterances),
                                f"{error:.1f} ({100 - error:.1f})",
                            ),
                        ]
                    )
        parts += [f"### {split}\n", markdown(table)]
    return parts


def _rate_table(rows: Sequence[Row], measure: str) -> str:
    """One table: methods, their size, tasks, the mean and its change."""
    tasks = ordered(row.task for row in rows)
    frozen: float | None = None
    columns: dict[str, list[str]] = {}
    for method in ordered(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        rates = rates_of(own, measure)
        mean = change = ""
        if len(rates) == len(tasks):
            value = average(list(rates.values()))
            mean = f"{value:.1f}"
            if method == FROZEN:
                frozen = value
            elif frozen and not math.isnan(value):
                change = f"{100.0 * (value - frozen) / frozen:+.1f} %"
        sizes = [row.task_params for row in own]
        columns[method] = [
            str(len({row.seed for row in own})),
            f"{max(row.shared_params for row in own):,}",
            _range(min(sizes), max(sizes)),
            *(f"{rates[task]:.1f}" if task in rates else "" for task in tasks),
            mean,
            change,
        ]
    names = ["seeds", "shared", "per task", *tasks, mean_column(tasks), "change"]
    if len(tasks) > WIDEST:
        table = [["", *columns]]
        table += [[n, *(c[i] for c in columns.values())] for i, n in enumerate(names)]
    else:
        table = [["method", *names], *([m, *c] for m, c in columns.items())]
    return markdown(table)


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
