"""Teaching a task: the command `espnet-hra tasks add`, started and followed.

The page trains with the very command that a terminal would, in a process of its own. So
the task's file is the same one, a training can be stopped, and one that runs out of
memory does not take the page with it.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import espnet_hra
from espnet_hra.errors import UserError

#: What ESPnet's trainer logs.
_EPOCH = re.compile(r"(\d+)/(\d+)epoch started")
_BATCH = re.compile(r"(\d+)epoch:train:\d+-(\d+)batch:.*?\bloss=([0-9.einf+-]+)")
_DONE = re.compile(r"(\d+)epoch results")
#: What the command says at its end, or of an error.
_SAID = re.compile(r"espnet-hra tasks: (.*)")

#: Lines of the command's output that an unknown error is told with.
_TAIL = 15

#: Seconds until a training that was asked to stop is killed.
_PATIENCE = 5.0


class TeachingError(UserError):
    """A training has failed; the message says why."""


class Stopped(UserError):
    """A training was stopped by the user."""


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        text: In words.
        share: From 0 to 1.
    """

    text: str
    share: float


@dataclass(frozen=True)
class Settings:
    """How tasks are taught: options of `espnet-hra tasks add`.

    Attributes:
        model: The model.
        base: Where its frozen base is, if not where it says.
        config: File with training options, if not the model's own.
        max_epoch: Epochs, if not the model's.
        seed: Seed, if not the model's.
        updates: Updates of an epoch, if they are known, for the progress.
    """

    model: str
    base: str | None = None
    config: str | None = None
    max_epoch: int | None = None
    seed: int | None = None
    updates: int | None = None

    def command(
        self,
        name: str,
        data: Path,
        *,
        language: str | None = None,
        replace: bool = False,
        out: Path | None = None,
    ) -> list[str]:
        """The command that teaches a task.

        Args:
            name: The task.
            data: Kaldi-style folder with ``train`` and ``dev``.
            language: Code of its language.
            replace: Whether a task of this name goes.
            out: Where its file is written; None for beside the model.
        """
        words = ["tasks", "add", name, str(data), "--model", self.model]
        for option, value in (
            ("--pretrained_model", self.base),
            ("--config", self.config),
            ("--max_epoch", self.max_epoch),
            ("--seed", self.seed),
            ("--language", language),
            ("--out", out),
        ):
            if value is not None:
                words += [option, str(value)]
        return words + (["--replace"] if replace else [])


class Training:
    """One run of `espnet-hra tasks add` at a time, followed and stopped."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._one = threading.Lock()

    def follow(
        self, words: Sequence[str], updates: int | None = None
    ) -> Iterator[Progress]:
        """Run the command to its end.

        Args:
            words: Options of ``espnet-hra``, as of :meth:`Settings.command`.
            updates: Updates of an epoch, if they are known.

        Yields:
            How far it is.

        Raises:
            TeachingError: It has failed, or another one is at work.
            Stopped: :meth:`stop` was called.
        """
        if not self._one.acquire(blocking=False):
            raise TeachingError(
                "Another task is being taught: wait until it is, or stop it."
            )
        try:
            self._stopped = False
            yield Progress("Opening the model", 0.0)
            yield from self._run(words, updates)
        finally:
            self._end()
            self._one.release()

    def _run(self, words: Sequence[str], updates: int | None) -> Iterator[Progress]:
        # This very package, wherever the page was started (-P: not that of the folder).
        command = [sys.executable, "-P", "-m", "espnet_hra.cli", *words]
        package = str(Path(espnet_hra.__file__).resolve().parent.parent)
        others = os.environ.get("PYTHONPATH")
        paths = os.pathsep.join(filter(None, (package, others)))
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,  # so that it ends with all that it has started
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": paths},
        )
        self._process = process
        assert process.stdout is not None, "asked for above"
        last: deque[str] = deque(maxlen=_TAIL)
        seen = _Reader(updates)
        for line in process.stdout:
            last.append(line.rstrip())
            progress = seen.read(line)
            if progress is not None:
                yield progress
        status = process.wait()
        if self._stopped:
            raise Stopped("The training was stopped; nothing has changed.")
        if status != 0:
            raise TeachingError(_why(list(last), status))
        yield Progress("Taught", 1.0)

    def stop(self) -> bool:
        """Stop what is at work; whether there was something."""
        process = self._process
        if process is None or process.poll() is not None:
            return False
        self._stopped = True
        self._end()
        return True

    def _end(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, how)
                process.wait(_PATIENCE)
                return
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


class _Reader:
    """Reads the progress off the log of a training."""

    def __init__(self, updates: int | None):
        self._updates = updates
        self._epoch, self._epochs = 0, 1

    def read(self, line: str) -> Progress | None:
        """What a line says of the progress; None if nothing."""
        if found := _EPOCH.search(line):
            self._epoch, self._epochs = int(found[1]), max(1, int(found[2]))
            return self._at(0.0, f"Epoch {self._epoch} of {self._epochs}")
        if found := _BATCH.search(line):
            update = int(found[2])
            text = f"Epoch {self._epoch} of {self._epochs}, update {update}"
            part = 0.0
            if self._updates:
                text += f" of {self._updates}"
                part = min(1.0, update / self._updates)
            return self._at(part, f"{text}, loss {float(found[3]):.2f}")
        if found := _DONE.search(line):
            return self._at(1.0, f"Epoch {self._epoch} of {self._epochs} is done")
        return None

    def _at(self, part: float, text: str) -> Progress:
        # The model is opened before, and the file is written and scored after.
        share = (max(0, self._epoch - 1) + part) / self._epochs
        return Progress(text, 0.05 + 0.85 * share)


def _why(lines: list[str], status: int) -> str:
    """What a failed command says, in one paragraph."""
    for i, line in enumerate(lines):
        if found := _SAID.match(line):
            return " ".join([found[1], *lines[i + 1 :]]).strip()
    if status < 0:
        return (
            f"The training was ended from outside (signal {-status}). Was there enough "
            "memory?"
        )
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"The training ended with the status {status}: {last}"
