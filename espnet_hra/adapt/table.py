"""What has come of the tasks: ``tasks.tsv`` for programs, a summary for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_hra.files import tables

#: Columns, and how their numbers are written. Rates are in percent.
COLUMNS = {
    "task": "",
    "status": "",
    "utterances": "d",
    "minutes": ".2f",
    "updates": "d",
    "loss_before": ".3f",
    "loss": ".3f",
    "cer_before": ".2f",
    "cer": ".2f",
    "seconds": ".1f",
    "file": "",
    "note": "",
}

#: What can become of a task; the last: the run was stopped before its end.
STATUSES = ("done", "failed", "left")

FILE = "tasks.tsv"

Row = Mapping[str, Any]


def write(rows: Sequence[Row], folder: Path) -> Path:
    """Write ``tasks.tsv``: a header, and a line for each task."""
    path = folder / FILE
    tables.write_rows(path, [list(COLUMNS), *(_cells(row) for row in rows)])
    return path


def _cells(row: Row) -> list[str]:
    cells = []
    for column, form in COLUMNS.items():
        value = row.get(column)
        text = "" if value is None else format(value, form)
        cells.append(" ".join(text.split()))  # no tabs, no line breaks
    return cells


def summary(rows: Sequence[Row], limit: int = 30) -> str:
    """The table for people; of many tasks, those that are not done and some others.

    Args:
        rows: Of all tasks.
        limit: How many to show of each kind.
    """
    shown: list[Row] = []
    hidden = 0
    for status in STATUSES:
        some = [row for row in rows if row["status"] == status]
        shown += some[:limit]
        hidden += len(some[limit:])
    names = [name for name in COLUMNS if name != "file"]
    table = [[c.replace("_", " ") for c in names]]
    for row in shown:
        cells = dict(zip(COLUMNS, _cells(row)))
        if len(cells["note"]) > 90:  # the file has all of it
            cells["note"] = f"{cells['note'][:86]} ..."
        table.append([cells[name] for name in names])
    left = [i for i, name in enumerate(names) if not COLUMNS[name]]
    lines = tables.aligned(table, left)
    if hidden:
        lines.append(f"... and {hidden:,} more in {FILE}")
    return "\n".join(lines)
