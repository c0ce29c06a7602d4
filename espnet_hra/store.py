"""A folder of task files that lies beside a model.

``MODEL/tasks/NAME.safetensors`` for every task, and ``removed.txt`` with the tasks of
the model's checkpoint that are not wanted any more: a checkpoint is never written to.
What stands in the folder wins over the checkpoint.

Files appear and change in one step, under a lock that other processes respect, so any
number of them may add, remove and read tasks at the same time.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Callable, FrozenSet, Iterator, Mapping, Optional, Tuple, Union

from espnet_hra.errors import TaskError
from espnet_hra.names import TASK_NAME, check_task_name, listing
from espnet_hra.taskfile import SUFFIX, read, write_atomic

#: Name of the folder beside a model, and within packs.
FOLDER = "tasks"

_REMOVED, _LOCK = "removed.txt", ".lock"


class TaskStore:
    """The task files of a folder, which need not exist yet.

    Args:
        folder: The folder.
        remote: Tasks that are not there yet but can be fetched: names and their files
            in the repository.
        fetch: Fetches one of these files into the folder, and returns its path.
    """

    def __init__(
        self,
        folder: Union[str, os.PathLike],
        remote: Optional[Mapping[str, str]] = None,
        fetch: Optional[Callable[[str], Path]] = None,
    ):
        self.folder = Path(folder)
        self._remote, self._fetch = dict(remote or {}), fetch

    # ------------------------------------------------------------------- reading

    @property
    def names(self) -> Tuple[str, ...]:
        """Names of the tasks, in alphabetical order."""
        found = set(self._remote)
        try:
            for name in os.listdir(self.folder):
                stem = name.removesuffix(SUFFIX)
                if stem != name and TASK_NAME.fullmatch(stem):
                    found.add(stem)
        except FileNotFoundError:
            pass
        return tuple(sorted(found))

    @property
    def removed(self) -> FrozenSet[str]:
        """Tasks of the checkpoint that count as removed."""
        try:
            text = (self.folder / _REMOVED).read_text(encoding="utf-8")
        except FileNotFoundError:
            return frozenset()
        return frozenset(text.split())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            name in self._remote
            or (TASK_NAME.fullmatch(name) is not None and self._file(name).is_file())
        )

    def _file(self, name: str) -> Path:
        return self.folder / f"{check_task_name(name)}{SUFFIX}"

    def path(self, name: str) -> Path:
        """The file of a task, fetched if it must be.

        Raises:
            TaskError: The task is unknown.
        """
        path = self._file(name)
        if path.is_file():
            return path
        if name in self._remote and self._fetch is not None:
            return self._fetch(self._remote[name])
        raise TaskError(f"unknown task {name!r}; known tasks: {listing(self.names)}")

    # ------------------------------------------------------------------- writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """A block that only one process at a time can be in.

        Raises:
            TaskError: The folder cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / _LOCK, "a")
        except OSError as e:
            raise TaskError(f"{self.folder}: tasks cannot be kept here: {e}") from e
        with file:  # closing it gives the lock back, as does the end of the process
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def put(self, content: bytes, name: str, replace: bool = False) -> Path:
        """Add a task.

        Args:
            content: Of its file.
            name: Its name.
            replace: Whether it may take the place of another file of this name.

        Returns:
            Its file.

        Raises:
            TaskError: The name is taken, or the folder cannot be written to.
        """
        path = self._file(name)
        with self.lock():
            if path.exists() and not replace:
                raise TaskError(
                    f"task {name!r} exists already in {self.folder}: remove it first, "
                    "or give --replace"
                )
            write_atomic(path, content)
        return path

    def remove(self, name: str, in_checkpoint: bool = False) -> None:
        """Remove a task.

        Args:
            name: The task.
            in_checkpoint: Whether the model's checkpoint has a task of this name. It
                is noted as removed, so that it does not come back.

        Raises:
            TaskError: The task is unknown.
        """
        path = self._file(name)
        with self.lock():
            removed = self.removed
            hidden = in_checkpoint and name not in removed
            if not path.exists() and not hidden:
                raise TaskError(
                    f"unknown task {name!r}; known tasks: {listing(self.names)}"
                )
            if hidden:
                text = "".join(f"{n}\n" for n in sorted({*removed, name}))
                write_atomic(self.folder / _REMOVED, text.encode())
            path.unlink(missing_ok=True)

    def verify(self, name: str) -> None:
        """Check that a task's file is whole and holds this task.

        Raises:
            TaskError: It is damaged, or holds another task.
        """
        check_name(self.path(name), name, read(self.path(name)).name)


def check_name(path: Path, expected: str, found: str) -> None:
    """Check that a file holds the task that it is called after.

    Raises:
        TaskError: It holds another.
    """
    if found != expected:
        raise TaskError(f"{path}: expected the task {expected!r}, found {found!r}")
