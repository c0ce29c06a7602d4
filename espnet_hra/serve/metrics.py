"""What Prometheus is told. Names of tasks are no labels: there may be thousands."""

from collections.abc import Callable, Sequence
from typing import Any

from espnet_hra.serve.engine import Compared, Heard, Job, Listening

#: Bounds of the histograms of times, in seconds.
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Metrics:
    """Counts of one server.

    Args:
        waiting: How many pieces are waiting now.
        inside: How many requests are being answered now.
        unusable: Of how many tasks the files cannot be used, as far as is known.
    """

    def __init__(
        self,
        waiting: Callable[[], int],
        inside: Callable[[], int],
        unusable: Callable[[], int],
    ):
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "espnet_hra", "registry": self._registry}
        self.requests = Counter(
            "requests", "Requests by path and status", ["path", "status"], **own
        )
        self.request_seconds = Histogram(
            "request_seconds", "From request to answer", buckets=_SECONDS, **own
        )
        self.speech_seconds = Counter("speech_seconds", "Of transcripts", **own)
        self.choices = Counter(
            "choices", "Transcripts by how the task was found", ["by"], **own
        )
        self.changes = Counter("task_changes", "Tasks changed", ["change"], **own)
        self._batches = Histogram(
            "batch_pieces", "Pieces of a batch", buckets=(1, 2, 4, 8, 16, 32, 64), **own
        )
        self._mixed = Histogram(
            "batch_tasks", "Different tasks in a batch", buckets=(1, 2, 4, 8, 16), **own
        )
        self._wait = Histogram(
            "wait_seconds", "Of a piece before its batch", buckets=_SECONDS, **own
        )
        self._decode = Histogram(
            "decode_seconds", "Of a batch", buckets=_SECONDS, **own
        )
        self._alone = Counter(
            "decoded_alone", "Pieces decoded again because it was close", **own
        )
        Gauge("pieces_waiting", "Pieces in line", **own).set_function(waiting)
        Gauge("requests_inside", "Requests taken in", **own).set_function(inside)
        Gauge(
            "unusable_tasks",
            "Tasks whose files could not be used when asked for",
            **own,
        ).set_function(unusable)

    def watch(
        self,
        jobs: Sequence[Job | Listening],
        waits: Sequence[float],
        seconds: float,
        found: Sequence[Heard | Compared | Exception],
    ) -> None:
        """Count a batch, see :data:`espnet_hra.serve.batcher.Watch`."""
        self._batches.observe(len(jobs))
        self._mixed.observe(len({job.task for job in jobs}))
        self._decode.observe(seconds)
        for wait in waits:
            self._wait.observe(wait)
        self._alone.inc(sum(isinstance(one, Heard) and one.alone for one in found))

    def text(self) -> tuple[bytes, str]:
        """All of it, and its media type."""
        import prometheus_client

        text: Any = prometheus_client.generate_latest(self._registry)
        return text, prometheus_client.CONTENT_TYPE_LATEST
