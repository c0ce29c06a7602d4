"""A folder of task files that lies beside a model.

``MODEL/tasks/NAME.safetensors`` for every task, and ``removed.txt`` with the tasks of
the model's checkpoint that are not wanted any more: a checkpoint is never written to.
What stands in the folder wins over the checkpoint.

Files appear and change in one step, under a lock that other processes respect, so any
number of them may add, remove and read tasks at the same time.
"""

import contextlib
import fcntl
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import (
    NamedTuple,
)

from espnet_hra.errors import TaskError
from espnet_hra.files import atomic
from espnet_hra.names import TASK_NAME, check_task_name, listing
from espnet_hra.tasks.file import SUFFIX, read

#: Name of the folder beside a model, and within packs.
FOLDER = "tasks"

_REMOVED, _LOCK = "removed.txt", ".lock"

#: Of a folder with more tasks, the names come in no order where they come one by one.
_SORTED = 10_000


class Version(NamedTuple):
    """What changes whenever a file does: replaced as a whole or written to."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def version_of(path: str | os.PathLike) -> Version | None:
    """The version of a file; None if there is none.

    Raises:
        TaskError: It cannot be told.
    """
    try:
        s = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise TaskError(f"{path}: cannot be read: {e}") from e
    return Version(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


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
        folder: str | os.PathLike,
        remote: Mapping[str, str] | None = None,
        fetch: Callable[[str], Path] | None = None,
    ):
        self.folder = Path(folder)
        self._remote, self._fetch = dict(remote or {}), fetch
        self._fetched: dict[str, Path] = {}
        self._removed: tuple[Version | None, frozenset[str]] = (None, frozenset())

    # ------------------------------------------------------------------- reading

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks, in alphabetical order."""
        return tuple(sorted(self._remote.keys() | set(self._listed())))

    def __iter__(self) -> Iterator[str]:
        """Names of the tasks; whoever stops early need not read a large folder.

        In alphabetical order, unless there are more than ten thousand.
        """
        listed = (name for name in self._listed() if name not in self._remote)
        names = itertools.chain(self._remote, listed)
        yield from sorted(itertools.islice(names, _SORTED))
        yield from names

    def _listed(self) -> Iterator[str]:
        """Names of the files in the folder."""
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    stem = entry.name.removesuffix(SUFFIX)
                    if stem != entry.name and TASK_NAME.fullmatch(stem):
                        yield stem
        except FileNotFoundError:
            pass
        except OSError as e:
            raise TaskError(f"{self.folder}: cannot be read: {e.strerror or e}") from e

    @property
    def removed(self) -> frozenset[str]:
        """Tasks of the checkpoint that count as removed."""
        path = self.folder / _REMOVED
        version = version_of(path)
        if version is None:
            return frozenset()
        if self._removed[0] != version:
            try:
                names = frozenset(path.read_text(encoding="utf-8").split())
            except FileNotFoundError:
                return frozenset()
            self._removed = (version, names)
        return self._removed[1]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            name in self._remote or self.version(name) is not None
        )

    def is_remote(self, name: str) -> bool:
        """Whether a task can be fetched from elsewhere."""
        return name in self._remote

    def version(self, name: str) -> Version | None:
        """What changes whenever a task's file does; None if it is not here.

        Raises:
            TaskError: It cannot be told.
        """
        if not TASK_NAME.fullmatch(name):
            return None
        return version_of(self._fetched.get(name) or self._file(name))

    def _file(self, name: str) -> Path:
        return self.folder / f"{check_task_name(name)}{SUFFIX}"

    def path(self, name: str) -> Path:
        """The file of a task, fetched if it must be.

        Raises:
            TaskError: The task is unknown.
        """
        path = self._fetched.get(name) or self._file(name)
        if path.is_file():
            return path
        if name in self._remote and self._fetch is not None:
            self._fetched[name] = self._fetch(self._remote[name])
            return self._fetched[name]
        raise TaskError(f"unknown task {name!r}; known tasks: {listing(self)}")

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
            _write(path, content)
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
                raise TaskError(f"unknown task {name!r}; known tasks: {listing(self)}")
            if hidden:
                text = "".join(f"{n}\n" for n in sorted({*removed, name}))
                _write(self.folder / _REMOVED, text.encode())
            try:
                path.unlink(missing_ok=True)
            except OSError as e:
                raise TaskError(f"{path}: cannot be removed: {e.strerror or e}") from e

    def verify(self, name: str) -> None:
        """Check that a task's file is whole and holds this task.

        Raises:
            TaskError: It is damaged, or holds another task.
        """
        check_name(self.path(name), name, read(self.path(name)).name)


def _write(path: Path, content: bytes) -> None:
    try:
        atomic.write(path, content)
    except OSError as e:
        raise TaskError(f"{path}: cannot be written: {e}") from e


def check_name(path: Path, expected: str, found: str) -> None:
    """Check that a file holds the task that it is called after.

    Raises:
        TaskError: It holds another.
    """
    if found != expected:
        raise TaskError(f"{path}: expected the task {expected!r}, found {found!r}")
