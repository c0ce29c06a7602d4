"""Lines that say how far long work is."""

import time
from collections.abc import Callable


class Progress:
    """Says "checked 300 of 7,000 recordings" every few seconds, and at the end.

    Args:
        verb: What is done to the recordings.
        tell: Is given a line.
        every: Seconds between two lines.
    """

    def __init__(
        self, verb: str, tell: Callable[[str], None] | None = None, every: float = 5.0
    ) -> None:
        self.verb, self.every = verb, every
        self.tell = tell or (lambda line: print(line, flush=True))
        self.told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Tell it if it is time, or if all is done."""
        now = time.monotonic()
        if done == total or now - self.told >= self.every:
            self.told = now
            self.tell(f"{self.verb} {done:,} of {total:,} recordings")
