"""What open questions look like in results: the page ``docs/findings.md``.

The questions stand in ``conf/findings.yaml`` of the recipe, with the runs that answer
them. The page is made of tables of results alone: rates, intervals and the sentences
that answer are computed, and a run that is not there is said to be missing. So it stays
true when runs are added.

::

    espnet-hra bench findings --out docs
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_hra.bench.quality import find_recipe
from espnet_hra.bench.quality_plan import DEV, BenchError, DevRow
from espnet_hra.files import atomic
from espnet_hra.files.config import read_yaml
from espnet_hra.files.tables import markdown, read_table
from espnet_hra.report import pictures
from espnet_hra.report.results import Results, Row, merge
from espnet_hra.report.statistics import Interval, System, average, systems

#: The page, and the folder of its pictures and of tables that are kept for it.
PAGE, FOLDER = "findings.md", "findings"

_KEYS = {
    "name",
    "title",
    "question",
    "command",
    "tables",
    "kind",
    "rows",
    "would_change",
}
_MORE = {"reference", "config", "split"}

_MISSING = "not run yet"


@dataclass(frozen=True)
class Finding:
    """What a question came to.

    Attributes:
        table: Markdown.
        answer: One sentence or two.
        bars: What a picture shows: a value with its interval by name, and what it is.
        missing: The rows that are not there.
    """

    table: str
    answer: str
    bars: Mapping[str, Interval]
    measure: str
    missing: Sequence[str]


@dataclass(frozen=True)
class Tables:
    """Results of one backbone, from all folders that a question names."""

    results: Results
    dev: Sequence[DevRow]
    folders: Sequence[Path] = ()


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra bench findings",
        description="Write findings.md: open questions, what was run, tables, pictures "
        "and answers, from the tables of `espnet-hra bench quality`.",
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        help="the recipe's folder (default: this one, or egs2/hra_asr in it)",
    )
    parser.add_argument(
        "--questions",
        type=Path,
        help="what is asked (default: RECIPE/conf/findings.yaml)",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("."),
        help="the folder that tables are named from (default: this one)",
    )
    parser.add_argument("--out", type=Path, required=True, help="where to write")
    parser.add_argument(
        "--samples", type=int, default=10_000, help="resamples (default: 10000)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and its pictures.

    Returns:
        The exit status.

    Raises:
        BenchError: The questions cannot be read.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = get_parser().parse_args(words)
    path = args.questions or find_recipe(args.recipe) / "conf" / "findings.yaml"
    questions = _questions(path)
    parts = [_HEAD]
    for question in questions:
        tables = _tables([args.root / folder for folder in question["tables"]])
        found = _KINDS[question["kind"]](question, tables, args.samples)
        picture = _draw(found, args.out / FOLDER / f"{question['name']}.png")
        parts.append(_section(question, found, picture))
        print(f"{question['title']} {found.answer}")
    args.out.mkdir(parents=True, exist_ok=True)
    atomic.write(args.out / PAGE, "\n".join(parts))
    print(f"Written: {args.out / PAGE}")
    return 0


_HEAD = """# Findings

What the paper left open, on open data. This page is made of tables of results by
`espnet-hra bench findings --out docs`: a row that says "not run yet" is a run of the
plan that nobody has made, and no answer says anything of it. Rates are in percent; in
brackets are 95 % intervals of a paired bootstrap over utterances. Nothing was chosen on
the test set.
"""


def _questions(path: Path) -> list[dict[str, Any]]:
    """The questions of a file.

    Raises:
        BenchError: One lacks something, or has what is not known.
    """
    found = read_yaml(path, BenchError).get("findings")
    if not isinstance(found, list):
        raise BenchError(f"{path}: expected findings: and a list of questions")
    for one in found:
        keys = set(one) if isinstance(one, dict) else set()
        if not keys >= _KEYS or keys - _KEYS - _MORE:
            raise BenchError(
                f"{path}: {one!r:.80}: a question has the keys "
                f"{', '.join(sorted(_KEYS))}, and maybe {', '.join(sorted(_MORE))}"
            )
        if one["kind"] not in _KINDS:
            raise BenchError(
                f"{path}: {one['name']}: kind: {one['kind']!r}: there are: "
                f"{', '.join(_KINDS)}"
            )
    return found


def _tables(folders: Sequence[Path]) -> Tables:
    """The tables of several folders together; later ones go before earlier ones."""
    results, dev = Results([], []), list[DevRow]()
    for folder in folders:
        results = results.merged(Results.read(folder))
        dev = merge(dev, read_table(folder / DEV, DevRow))
    return Tables(results, dev, folders)


# ---------------------------------------------------------------------------- kinds


def _compared(question: Mapping[str, Any], tables: Tables, samples: int) -> Finding:
    """Methods beside a reference, on the test set."""
    rows, reference = question["rows"], question["reference"]
    found = _systems(question, tables, samples)
    base = found.get(reference)
    cells = [["", "seeds", "shared", "per task", "CER", f"minus {rows[reference]}"]]
    said, bars, missing = [], {}, []
    for method, name in rows.items():
        system = found.get(method)
        if system is None:
            cells.append([name, _MISSING, "", "", "", ""])
            missing.append(name)
            continue
        mean = system.mean(sorted(system.rates))
        bars[name] = mean
        delta = ""
        if base is not None and method != reference:
            difference, shared = system.difference(base)
            delta = difference.text("+") if shared else ""
            few = "" if len(system.seeds) > 2 else f", {_number_of_seeds(system)}"
            said.append(f"{name} {_verdict(difference)}{few}")
        cells.append(
            [
                *(name, _seeds(system), f"{system.shared:,}", _size(system)),
                *(mean.text(), delta),
            ]
        )
    answer = f"Beside {rows[reference]}: {'; '.join(said)}." if said else _NOTHING
    return Finding(markdown(cells), answer, bars, "CER (%)", missing)


def _chosen(question: Mapping[str, Any], tables: Tables, samples: int) -> Finding:
    """Choices of one method, judged on dev, paired by seed."""
    rows = question["rows"]
    by_setting: dict[str, dict[int, float]] = {}
    for line in tables.dev:
        if (line.part, line.method) == ("choices", question["config"]):
            by_setting.setdefault(line.setting, {})[line.seed] = line.cer
    first = next(iter(rows))
    usual = by_setting.get(first, {})
    cells = [["", "seeds", "CER on dev", f"minus {rows[first]}, each seed"]]
    said, bars, missing = [], {}, []
    for setting, name in rows.items():
        own = by_setting.get(setting, {})
        if not own:
            cells.append([name, _MISSING, "", ""])
            missing.append(name)
            continue
        mean = average(list(own.values()))
        bars[name] = Interval(mean)
        paired = [own[seed] - usual[seed] for seed in sorted(own) if seed in usual]
        each = ", ".join(f"{one:+.1f}" for one in paired) if setting != first else ""
        cells.append([name, str(len(own)), f"{mean:.1f}", each])
        if setting != first and paired:
            said.append(f"{name} {_verdict_of_seeds(paired)}")
    answer = f"Beside {rows[first]}, on dev: {'; '.join(said)}." if said else _NOTHING
    return Finding(markdown(cells), answer, bars, "CER on dev (%)", missing)


def _labelled(question: Mapping[str, Any], tables: Tables, samples: int) -> Finding:
    """Tasks that tell labels, and what they do to those that write texts."""
    rows, reference = question["rows"], question["reference"]
    split = question.get("split", "test")
    found = _systems(question, tables, samples)
    cells = [["", "task", "utterances", "per task", "seeds", "wrong labels"]]
    said, bars, missing = [], {}, []
    base = found.get(reference)
    for method, name in rows.items():
        if method not in found:
            cells.append([name, "", "", "", _MISSING, ""])
            missing.append(name)
            continue
        for task, own in _of_labels(tables.results.rows, method, split).items():
            error = average([row.wer for row in own])
            bars[task] = Interval(error)
            size = f"{own[0].task_params:,}"
            cells.append(
                [
                    name,
                    task,
                    str(own[0].utterances),
                    size,
                    str(len(own)),
                    f"{error:.1f}",
                ]
            )
            said.append(f"{task} is told right in {100 - error:.1f} % of utterances")
        mean = found[method].mean(sorted(found[method].rates))
        texts, change = f"CER {mean.text()}", ""
        if base is not None and method != reference:
            difference, _ = found[method].difference(base)
            beside = rows.get(reference, reference)
            change = f"; texts beside {beside}: {difference.text('+')}"
            said.append(f"texts of the same training: {_verdict(difference)}")
        cells.append([name, "texts", "", _size(found[method]), "", texts + change])
    answer = f"{'; '.join(said)}." if bars else _NOTHING
    return Finding(
        markdown(cells), answer[:1].upper() + answer[1:], bars, "wrong (%)", missing
    )


def _counted(question: Mapping[str, Any], tables: Tables, samples: int) -> Finding:
    """Trainings of so many tasks, each beside the same tasks in the largest of them."""
    found = _systems(question, tables, samples)
    numbers: dict[str, int] = {}
    for method in question["rows"]:
        if method in found:
            told = re.search(r"_n(\d+)$", method)  # else one that has all tasks
            numbers[method] = int(told[1]) if told else len(found[method].rates)
    top = max(numbers, key=lambda method: numbers[method], default="")
    most, largest = numbers.get(top, 0), found.get(top)
    column = f"minus the same tasks among {most}" if largest else "minus the same tasks"
    cells = [["tasks", "seeds", "shared", "per task", "all together", "CER", column]]
    bars, said, missing = {}, [], []
    points: list[tuple[float, float]] = []
    for method, name in question["rows"].items():
        if method not in numbers:
            missing.append(str(name))
            cells.append([str(name), _MISSING, "", "", "", "", ""])
            continue
        number, system = numbers[method], found[method]
        total, delta = system.shared + number * system.per_task[1], ""
        if largest is not None and method != top:
            difference, _ = system.difference(largest)
            delta = difference.text("+")
            bars[str(name)] = difference
            points.append((math.log2(max(number, 1)), difference.value))
            said.append(f"{name}: {_verdict(difference)}")
        row = [str(name), _seeds(system), f"{system.shared:,}", _size(system)]
        mean = system.mean(sorted(system.rates)).text()
        cells.append([*row, f"{total:,}", mean, delta])
    answer = _NOTHING
    if largest is not None and said:
        own = largest.per_task[1]
        answer = (
            f"Beside the same tasks in the training of {most}, those of a training of "
            f"{'; of '.join(said)}. A thousand tasks would have {largest.shared:,} "
            f"shared parameters and {1000 * own:,} of their own."
        )
        if len(points) > 2:
            answer += (
                f" With each doubling of the number, the difference changes by "
                f"{_slope(points):+.2f} points (least squares)."
            )
    measure = f"CER minus that of the same tasks among {most}"
    return Finding(markdown(cells), answer, bars, measure, missing)


def _layered(question: Mapping[str, Any], tables: Tables, samples: int) -> Finding:
    """What `espnet-hra diagnose --json` saw in models, part by part."""
    cells = [["", "part", "layers", "kept by a layer", "least", "from layer 1"]]
    bars, said, missing = {}, [], []
    for stem, name in question["rows"].items():
        seen = [f / f"{stem}.json" for f in tables.folders]
        found = next((path for path in seen if path.is_file()), None)
        if found is None:
            missing.append(name)
            cells.append([name, "", _MISSING, "", "", ""])
            continue
        for part, layers in _layers(found).items():
            kept = [one for one in layers["kept"] if not math.isnan(one)] or [math.nan]
            memory = layers["memory"][-1]
            bars[f"{name}, {part}"] = Interval(100 * memory)
            shares = [_percent(one) for one in (average(kept), min(kept), memory)]
            cells.append([name, part, str(len(layers["kept"])), *shares])
            said.append(f"{name}, {part}: {shares[2]} (a layer keeps {shares[0]})")
    answer = _NOTHING
    if said:
        answer = (
            "What the controller's state at the last layer owes to the first: "
            f"{'; '.join(said)}."
        )
    return Finding(
        markdown(cells), answer, bars, "of the last state, from layer 1 (%)", missing
    )


def _layers(path: Path) -> dict[str, dict[str, list[float]]]:
    """Of each part the shares of its layers, means over tasks."""
    tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"].values()
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for layer in (one for task in tasks for one in task["layers"]):
        found.setdefault((layer["part"], layer["layer"]), []).append(layer)
    parts: dict[str, dict[str, list[float]]] = {}
    for part, _ in sorted(found, key=lambda place: (place[0] != "encoder", place)):
        parts[part] = {"kept": [], "memory": []}
    for (part, _), layers in sorted(found.items()):
        for name, values in parts[part].items():
            known = [one[name] for one in layers if one[name] is not None]
            values.append(average(known) if known else math.nan)
    return parts


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


_Kind = Callable[[Mapping[str, Any], Tables, int], Finding]
_KINDS: dict[str, _Kind] = {
    "compare": _compared,
    "choices": _chosen,
    "labels": _labelled,
    "counts": _counted,
    "layers": _layered,
}

_NOTHING = "Not answered: the runs that would answer it are not there."


def _systems(
    question: Mapping[str, Any], tables: Tables, samples: int
) -> dict[str, System]:
    wanted = {*question["rows"], question.get("reference")}
    texts = tables.results.of_texts()
    own = Results(
        [row for row in texts.rows if row.method in wanted],
        [one for one in texts.utterances if one.method in wanted],
    )
    return systems(own, question.get("split", "test"), samples)


def _of_labels(rows: Sequence[Row], method: str, split: str) -> dict[str, list[Row]]:
    """The rows of a method's tasks that tell labels."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if (row.method, row.split) == (method, split) and row.tells_labels:
            found.setdefault(row.task, []).append(row)
    return found


def _verdict(difference: Interval) -> str:
    """What a difference of error rates with its interval says."""
    if math.isnan(difference.value):
        return "cannot be compared: other utterances were scored"
    text = difference.text("+")
    if math.isnan(difference.low) or difference.low <= 0 <= difference.high:
        return f"cannot be told apart ({text})"
    return f"{'better' if difference.value < 0 else 'worse'} ({text})"


def _verdict_of_seeds(paired: Sequence[float]) -> str:
    """What differences of error rates of the same seeds say."""
    mean = average(list(paired))
    if len(paired) == 1:
        return f"{mean:+.1f} with the one seed that there is, which decides nothing"
    if all(one < 0 for one in paired) or all(one > 0 for one in paired):
        which = "better" if mean < 0 else "worse"
        return f"{which} with each of {len(paired)} seeds ({mean:+.1f} on average)"
    return f"undecided, {mean:+.1f} on average of {len(paired)} seeds"


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the line of least squares."""
    x, y = average([p[0] for p in points]), average([p[1] for p in points])
    spread = sum((p[0] - x) ** 2 for p in points)
    if not spread:
        return math.nan
    return sum((p[0] - x) * (p[1] - y) for p in points) / spread


def _seeds(system: System) -> str:
    return str(len(system.seeds))


def _number_of_seeds(system: System) -> str:
    n = len(system.seeds)
    return "one seed" if n == 1 else f"{n} seeds"


def _size(system: System) -> str:
    low, high = system.per_task
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


# ----------------------------------------------------------------------------- page


def _section(question: Mapping[str, Any], found: Finding, picture: str) -> str:
    missing = ""
    if found.missing:
        missing = f"\nNot run yet: {'; '.join(found.missing)}.\n"
    return (
        f"## {question['title']}\n\n{question['question'].strip()}\n\n"
        f"**{found.answer}**\n\n"
        f"```bash\n{question['command'].strip()}\n```\n\n"
        f"{found.table}{missing}{picture}\n"
        f"What would change it: {question['would_change'].strip()}\n"
    )


def _draw(found: Finding, path: Path) -> str:
    """Draw the rows that are there, if they show more than those that are missing.

    Returns:
        What the page says of the picture.
    """
    if len(found.bars) < max(2, len(found.missing)):
        path.unlink(missing_ok=True)
        return ""
    names, values = list(found.bars), list(found.bars.values())
    figure = pictures.new_figure(6.0, 0.9 + 0.35 * len(names))
    axes = figure.subplots()
    at = range(len(names))
    spread = [
        [0.0 if math.isnan(v.low) else v.value - v.low for v in values],
        [0.0 if math.isnan(v.high) else v.high - v.value for v in values],
    ]
    axes.barh(at, [v.value for v in values], xerr=spread, color="#0072B2", capsize=3)
    axes.set_yticks(list(at), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(found.measure, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, pictures.encoded(figure, "png"))
    return f"\n![{found.measure}]({FOLDER}/{path.name})\n"
