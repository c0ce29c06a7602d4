"""Heads that stay on disk: fetched when a batch asks for them, the latest used kept.

An encoder may know a million tasks and have room for a thousand. The files of the
others lie in a folder (see :mod:`espnet_hra.tasks.store`), and nothing of them is in
memory, not even their names. What this cache promises to threads that serve:

* Each use looks at the file once (one ``stat``), so a file that appeared, was replaced
  or removed counts from the next pass on. A pass that runs keeps what it began with.
* A file is read and verified, checksum and fingerprints, each time that it is fetched,
  from the very bytes that are then used: a mapping into memory would show whatever is
  written to the file later. Damage is an error, never an older head. The backbone is
  looked at once, and again after :meth:`HeadCache.clear`.
* There is no lock around it. Several threads that miss the same task wait for one of
  them to read it; nobody else waits for anything. What was read appears at once, by
  one assignment.
"""

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from espnet_hra.tasks.store import TaskStore, Version

#: Bytes of heads that are kept where nobody says how many.
DEFAULT_BYTES = 2**28

#: A file that is younger may change once more without a sign: clocks of file systems
#: tick every few milliseconds.
_YOUNG_NS = 50_000_000


class Head(NamedTuple):
    """The task of a file.

    Attributes:
        vector: Its flat vector.
        info: What the file says about it, see :data:`espnet_hra.tasks.file.INFO`.
        checksum: Of the file.
        labels: What it tells, if it classifies.
    """

    vector: torch.Tensor
    info: dict[str, Any]
    checksum: str | None = None
    labels: tuple[str, ...] = ()


#: Reads and verifies the file of a task: (its path, its name) -> the task.
Read = Callable[[Path, str], Head]

#: A new reader, which knows nothing of the model yet.
Reader = Callable[[], Read]


class _Entry(NamedTuple):
    version: Version | None
    head: Head


_Entries = collections.OrderedDict[str, _Entry]


def _nobody(path: Path, name: str) -> Head:
    raise RuntimeError("a copied cache reads nothing before its encoder adopts it")


class HeadCache:
    """The heads of a folder's task files, a bounded number of them in memory.

    Args:
        store: The folder.
        reader: How their files are read and verified; None in a copy of a cache, until
            the copy of its encoder gives it one, see :meth:`adopt`.
        limit: Most heads that are kept; the least recently used goes first. A pass
            that needs more at once gets them all the same.

    Attributes:
        hits, misses: How often a head was there, or was read. Approximate where
            several threads count.
    """

    def __init__(self, store: TaskStore, reader: Reader | None, limit: int):
        self.store, self.reader, self.limit = store, reader, limit
        self.clear()

    def adopt(self, reader: Reader) -> None:
        """Give the copy of a cache what reads its files."""
        if self.reader is None:
            self.reader = reader
            self.clear()

    def clear(self) -> None:
        """Forget what was read, so that all is read and verified again."""
        self._read = _nobody if self.reader is None else self.reader()
        # A new dictionary: threads that are reading write to the old one.
        self._entries: _Entries = collections.OrderedDict()
        self._reading: dict[str, threading.Lock] = {}
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks in memory, the least recently used first."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        # Of a head in memory, `get` finds out whether its file is still there.
        return (
            name in self._entries
            or self.store.version(name) is not None
            or self.store.is_remote(name)
        )

    def get(self, name: str) -> Head | None:
        """The task of a name; None if there is no such file.

        Raises:
            TaskError: The file is damaged, or was made for another model.
        """
        entries, version = self._entries, self.store.version(name)
        head = self._kept(entries, name, version)
        if head is not None:
            self.hits += 1
            return head
        if version is None and not self.store.is_remote(name):
            entries.pop(name, None)
            return None
        with self._one_reader(name):
            # Another thread may have been quicker.
            head = self._kept(entries, name, self.store.version(name))
            return self._fetch(entries, name) if head is None else head

    def _kept(
        self, entries: _Entries, name: str, version: Version | None
    ) -> Head | None:
        entry = entries.get(name)
        if entry is None or version is None or entry.version != version:
            return None
        with contextlib.suppress(KeyError):  # another thread may just have removed it
            entries.move_to_end(name)
        return entry.head

    def _fetch(self, entries: _Entries, name: str) -> Head:
        self.misses += 1
        path = self.store.path(name)
        # Asked before the file is read: a file that is replaced meanwhile is read
        # again, and never is an old head taken for the new one.
        version, now = self.store.version(name), time.time_ns()
        head = self._read(path, name)
        if (
            version is not None
            and abs(now - max(version.modified_ns, version.changed_ns)) < _YOUNG_NS
        ):
            version = None
        entries[name] = _Entry(version, head)
        with contextlib.suppress(KeyError):  # as above
            entries.move_to_end(name)
            while len(entries) > self.limit:
                entries.popitem(last=False)
        return head

    @contextlib.contextmanager
    def _one_reader(self, name: str) -> Iterator[None]:
        """A block that one thread at a time is in for a task."""
        reading = self._reading
        with reading.setdefault(name, threading.Lock()):
            try:
                yield
            finally:
                # Whoever comes now reads at the same time, which does no harm.
                reading.pop(name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy begins empty, and its encoder adopts it.
        return type(self), (self.store, None, self.limit)
