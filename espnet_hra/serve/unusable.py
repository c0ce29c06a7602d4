"""Tasks whose files cannot be used, for the log and for whoever watches a server."""

import logging
import threading

from espnet_hra.errors import UserError
from espnet_hra.tasks.store import TaskStore, Version

logger = logging.getLogger(__name__)

#: Most tasks that are remembered: a folder may have a million damaged files.
MOST = 1000


class Unusable:
    """Remembers which tasks could not be used, for as long as their files stay so.

    Each is said once in the log, and again where its file is another one that cannot be
    used either. Threads may share it.

    Args:
        store: The folder of the tasks; None without one.
    """

    def __init__(self, store: TaskStore | None):
        self._store = store
        self._known: dict[str, tuple[Version | None, str]] = {}
        self._lock = threading.Lock()

    def note(self, name: str, why: UserError) -> None:
        """A task could not be used."""
        found = self._version(name), str(why)
        with self._lock:
            if self._known.pop(name, None) == found:
                self._known[name] = found
                return
            while len(self._known) >= MOST:
                del self._known[next(iter(self._known))]
            self._known[name] = found
        logger.warning("task %s cannot be used: %s", name, why)

    def forget(self, name: str) -> None:
        """A task could be used."""
        if name in self._known:
            with self._lock:
                self._known.pop(name, None)

    @property
    def names(self) -> tuple[str, ...]:
        """Tasks that could not be used, and whose files are still the same."""
        with self._lock:
            known = dict(self._known)
        for name, (version, _) in known.items():
            now = self._version(name)
            if now is None or now != version:
                self.forget(name)
        with self._lock:
            return tuple(sorted(self._known))

    def _version(self, name: str) -> Version | None:
        try:
            return None if self._store is None else self._store.version(name)
        except UserError:
            return None
