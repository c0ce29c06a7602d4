"""Commands in forked processes: all is imported once, and each is killed or not."""

import importlib
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_hra.bench.soak import at_write

#: What a command may be killed by.
KINDS = ("time", "change", "byte")


def preload() -> None:
    """Import what the commands need; importing ESPnet takes longer than they do."""
    for name in ("inference", "task", "building"):
        importlib.import_module(f"espnet_hra.espnet.{name}")
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork


@dataclass(frozen=True)
class Done:
    """A command that has ended.

    Attributes:
        status: Its exit status; negative: the signal that killed it.
        said: What it has said.
        seconds: How long it took.
        changes: How many changes to files it has made.
    """

    status: int
    said: str
    seconds: float
    changes: int

    @property
    def killed(self) -> bool:
        """Whether it was."""
        return self.status in (-signal.SIGKILL, -signal.SIGXFSZ)


@dataclass(frozen=True)
class Moment:
    """When a command is killed.

    Attributes:
        kind: ``time`` in seconds; ``change``, the number of a change to a file; or
            ``byte``, the size at which no file may grow further.
        value: Which.
    """

    kind: str
    value: float


def moment(rnd: random.Random, whole: Done, size: int) -> Moment:
    """A random moment of a command.

    Args:
        rnd: The random numbers.
        whole: The command when nobody disturbed it.
        size: Bytes of the largest file that matters.
    """
    kind = rnd.choice(KINDS)
    if kind == "time":
        return Moment(kind, rnd.uniform(0, whole.seconds))
    if kind == "change":
        return Moment(kind, rnd.randint(1, max(1, whole.changes)))
    return Moment(kind, rnd.randint(1, size))


def command(words: Sequence[object], folder: Path, at: Moment | None = None) -> Done:
    """Run a command of `espnet-hra`, and kill it if that is asked for.

    Args:
        words: The command.
        folder: For what it says, and for counting.
        at: When it is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    at_write.prepare(str(folder))
    if at is not None and at.kind == "change":
        at_write.choose(str(folder), int(at.value))
    log, start = folder / "log", time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child([str(word) for word in words], folder, log, at)
    end = start + at.value if at is not None and at.kind == "time" else None
    while True:
        found, raw = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if end is not None and time.monotonic() >= end:
            os.kill(pid, signal.SIGKILL)  # its group may not be made yet
            end = None
        time.sleep(0.002)
    try:
        os.killpg(pid, signal.SIGKILL)  # what it has started
    except ProcessLookupError:
        pass
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    seconds, changes = time.monotonic() - start, at_write.count(str(folder))
    return Done(os.waitstatus_to_exitcode(raw), said, seconds, changes)


def _child(words: list[str], folder: Path, log: Path, at: Moment | None) -> None:
    """The forked process; does not return."""
    status: object = 70
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # not a test's
        if at is not None and at.kind == "byte":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(at.value),) * 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        at_write.arm(str(folder))
        cli = importlib.import_module("espnet_hra.cli")
        try:
            cli.main(words)
            status = 0
        except SystemExit as e:
            status = e.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status if isinstance(status, int) else int(status is not None))
