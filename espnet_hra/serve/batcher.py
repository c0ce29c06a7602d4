"""Mixed batches of what many requests want decoded.

One thread decodes. While it does, jobs wait in line; then the oldest is taken, with
others of its group, whatever their tasks. Only where there is nothing to do but one job
does it wait for company, and no longer than it was told.
"""

import asyncio
import collections
import concurrent.futures
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from espnet_hra.serve.engine import Compared, Engine, Heard, Job, Listening

Future = concurrent.futures.Future[Any]

#: Is told of every batch: its jobs, seconds each has waited, seconds of decoding, and
#: what was found.
Watch = Callable[
    [
        Sequence[Job | Listening],
        Sequence[float],
        float,
        Sequence[Heard | Compared | Exception],
    ],
    None,
]


class ClosedError(RuntimeError):
    """The server is being stopped."""


@dataclass
class _Waiting:
    job: Job | Listening
    group: object
    future: Future = field(default_factory=concurrent.futures.Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Decodes jobs in batches, in a thread of its own.

    Args:
        engine: What decodes.
        size: Most jobs of a batch.
        wait: Seconds that a job waits for company, at most, if nothing else is done.
        watch: Is told of each batch.
    """

    def __init__(self, engine: Engine, size: int, wait: float, watch: Watch):
        self._engine, self._size, self._wait = engine, size, wait
        self._watch = watch
        self._line: collections.deque[_Waiting] = collections.deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many jobs are waiting."""
        return len(self._line)

    @property
    def alive(self) -> bool:
        """Whether jobs are still decoded."""
        return self._thread.is_alive()

    def submit(self, job: Job | Listening) -> Future:
        """Put a job in line.

        Raises:
            ClosedError: The server is being stopped.
        """
        waiting = _Waiting(job, self._engine.group(job))
        with self._changed:
            if self._closing:
                raise ClosedError("the server is being stopped")
            self._line.append(waiting)
            self._changed.notify()
        return waiting.future

    async def decode(self, job: Job) -> Heard:
        """Decode a job; cancelled, it is taken out of the line.

        Raises:
            UserError: Its task is not there or cannot be used.
        """
        return await self._done(job)

    async def listen(self, job: Listening) -> Compared:
        """Listen to a recording; cancelled, it is taken out of the line.

        Raises:
            UserError: A candidate is not there or cannot be used.
        """
        return await self._done(job)

    async def _done(self, job: Job | Listening) -> Any:
        return await asyncio.wrap_future(self.submit(job))

    def close(self) -> None:
        """Decode what is in line, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                return
            # Whoever gave up meanwhile is left out.
            batch = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if batch:
                self._decode(batch)

    def _decode(self, batch: Sequence[_Waiting]) -> None:
        start = time.monotonic()
        jobs = [one.job for one in batch]
        found: list[Heard | Compared | Exception]
        try:
            found = self._engine.decode(jobs)
        except Exception as e:  # whatever it is, requests must be answered
            found = [e] * len(batch)
        took = time.monotonic() - start
        for one, result in zip(batch, found):
            if isinstance(result, Exception):
                one.future.set_exception(result)
            else:
                one.future.set_result(result)
        self._watch(jobs, [start - one.since for one in batch], took, found)

    def _next(self) -> list[_Waiting] | None:
        """The next batch; None where there is none any more."""
        with self._changed:
            while not self._line:
                if self._closing:
                    return None
                self._changed.wait()
            first = self._line[0]
            while not self._closing:
                left = first.since + self._wait - time.monotonic()
                if left <= 0 or len(self._like(first)) >= self._size:
                    break
                self._changed.wait(left)
            batch = self._like(first)
            taken = set(map(id, batch))
            rest = [one for one in self._line if id(one) not in taken]
            self._line = collections.deque(rest)
        return batch

    def _like(self, first: _Waiting) -> list[_Waiting]:
        same = (one for one in self._line if one.group == first.group)
        return [one for one, _ in zip(same, range(self._size))]
