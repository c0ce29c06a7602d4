"""The key `tasks:` of a configuration."""

import collections
import os
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.errors import TaskError
from espnet_hra.names import check_task_name


def read_tasks(tasks: str | os.PathLike | Sequence[str] | None) -> tuple[str, ...]:
    """Task names of a configuration.

    Args:
        tasks: Names, or the path of a file with one name a line; may be empty.

    Raises:
        TaskError: A name is not valid or stands twice, or the file cannot be read.
    """
    if isinstance(tasks, (str, os.PathLike)):
        try:
            lines = Path(tasks).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as e:
            raise TaskError(
                f"tasks: {str(tasks)!r} is read as a file with one task name a line "
                f"and cannot be: {e}; give a list for names themselves"
            ) from e
        tasks = [line.strip() for line in lines if line.strip()]
    if not isinstance(tasks, (list, tuple, type(None))):
        raise TaskError(
            f"tasks: {tasks!r} is neither a list of names nor the path of a file"
        )
    names = tuple(check_task_name(name) for name in tasks or ())
    twice = sorted(name for name, n in collections.Counter(names).items() if n > 1)
    if twice:
        raise TaskError(f"tasks: these names stand twice: {', '.join(twice)}")
    return names
