"""The key `tasks:` of a configuration."""

import collections
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_hra.errors import TaskError
from espnet_hra.names import check_task_name

#: The head of a task that tells labels, and the keys of its record.
CLASSIFY = "classify"
_KEYS = {"name", "head", "labels"}

#: What ``tasks:`` may be.
Tasks = str | os.PathLike | Sequence[str | Mapping[str, Any]] | None


@dataclass(frozen=True)
class TaskRecord:
    """A task as a configuration names it.

    Attributes:
        name: Its name.
        labels: What it tells, if it classifies (``head: classify``); else empty, and
            it writes texts.
    """

    name: str
    labels: tuple[str, ...] = ()

    def config(self) -> str | dict[str, Any]:
        """As it stands in a configuration: its name, or a record."""
        if not self.labels:
            return self.name
        return {"name": self.name, "head": CLASSIFY, "labels": list(self.labels)}


def read_tasks(tasks: Tasks) -> tuple[str, ...]:
    """Task names of a configuration. Argument and errors of :func:`read_records`."""
    return tuple(record.name for record in read_records(tasks))


def labels_by_task(encoder_conf: Mapping[str, Any] | None) -> dict[str, Sequence[str]]:
    """What the tasks tell that classify, by name, of an ``encoder_conf``."""
    records = read_records((encoder_conf or {}).get("tasks"))
    return {record.name: record.labels for record in records if record.labels}


def read_records(tasks: Tasks) -> tuple[TaskRecord, ...]:
    """The tasks of a configuration.

    Args:
        tasks: For each task its name, or a record ``{name: NAME, head: classify,
            labels: [A, B]}``; or the path of a file with one of them a line, records
            in JSON. May be empty.

    Raises:
        TaskError: A name or record is not valid or stands twice, or the file cannot be
            read.
    """
    if isinstance(tasks, (str, os.PathLike)):
        try:
            lines = Path(tasks).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as e:
            raise TaskError(
                f"tasks: {str(tasks)!r} is read as a file with one task name a line "
                f"and cannot be: {e}; give a list for names themselves"
            ) from e
        tasks = [_of_line(line.strip(), str(tasks)) for line in lines if line.strip()]
    if not isinstance(tasks, (list, tuple, type(None))):
        raise TaskError(
            f"tasks: {tasks!r} is neither a list of names nor the path of a file"
        )
    records = tuple(_record(task) for task in tasks or ())
    counts = collections.Counter(record.name for record in records)
    twice = sorted(name for name, n in counts.items() if n > 1)
    if twice:
        raise TaskError(f"tasks: these names stand twice: {', '.join(twice)}")
    return records


def _of_line(line: str, path: str) -> Any:
    """A line of a file with tasks; no name begins with a brace."""
    if not line.startswith("{"):
        return line
    try:
        return json.loads(line)
    except ValueError as e:
        raise TaskError(f"tasks: {path}: {line:.80} is no record in JSON: {e}") from e


def _record(task: Any) -> TaskRecord:
    if not isinstance(task, Mapping):
        return TaskRecord(check_task_name(task))
    if set(task) != _KEYS or task["head"] != CLASSIFY:
        raise TaskError(
            f"tasks: {dict(task)!r:.200}: a record has the keys name, head and labels, "
            f"and head: {CLASSIFY}; a task that writes texts is its name alone"
        )
    name = check_task_name(task["name"])
    return TaskRecord(name, check_labels(name, task["labels"]))


def check_labels(name: str, labels: Any) -> tuple[str, ...]:
    """The labels of a task that classifies.

    Raises:
        TaskError: They are no list of words, fewer than two, or one stands twice.
    """
    words = isinstance(labels, list | tuple) and all(
        isinstance(label, str) and label.split() == [label] for label in labels
    )
    if not words or len(set(labels)) < len(labels) or len(labels) < 2:
        raise TaskError(
            f"task {name!r}: labels: {labels!r:.200}: expected a list of two or more "
            "different words, such as [en, fr] (quoted where YAML reads no word: "
            "'no', '1')"
        )
    return tuple(labels)
