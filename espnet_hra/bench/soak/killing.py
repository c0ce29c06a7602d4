"""Groups of processes that are killed at a chosen moment."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Seconds between two looks.
TICK = 0.02


class Group:
    """A command with all that it starts, in a session of its own.

    Args:
        command: The command.
        log: Where it writes what it says.
        env: Variables besides those of this process.
        cwd: Its working directory.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ):
        self.log = log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def alive(self) -> bool:
        """Whether the command itself, or anything that it has started, runs."""
        return self.process.poll() is None or bool(members(self.process.pid))

    def kill(self, who: str, rnd: random.Random) -> str:
        """Kill the group (``all``), the first process (``first``) or another (``one``).

        Returns:
            Who was killed.
        """
        pid = self.process.pid
        others = [member for member in members(pid) if member != pid]
        if who == "one" and others:
            victims = [rnd.choice(others)]
        elif who == "first":
            victims = [pid]
        else:
            who, victims = "all", []
        try:
            if victims:
                os.kill(victims[0], signal.SIGKILL)
            else:
                os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        return who

    def wait(self, seconds: float) -> int | None:
        """The exit status, once nothing of the group runs any more; None if it does."""
        end = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > end:
                return None
            time.sleep(TICK)
        return self.process.wait()

    def end(self) -> None:
        """Kill what is left."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def members(group: int) -> list[int]:
    """The living processes of a group, in no order."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            state, _, pgrp = stat.rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state not in "ZX":
                found.append(int(entry))
    return found
