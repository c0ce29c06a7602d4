"""What a server is told."""

from dataclasses import dataclass

#: The name under which a task is chosen for the client.
AUTO = "auto"

#: The usual distance at which a voice is not that of a task any more, see
#: docs/serving.md for where it comes from.
DISTANCE = 1.9


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    Attributes:
        name: The base's name, as clients say it.
        batch_size: Most pieces that are decoded at once.
        wait: Seconds that a piece waits for company, at most.
        requests: Most requests that are taken in at the same time.
        most_bytes: Of a request.
        most_seconds: Of a recording.
        timeout: Seconds after which a request is given up.
        token: Whoever has it may change tasks; empty: nobody may.
        auto_tasks: Most tasks that one is chosen among by confidence.
        auto_distance: How far a recording may be from the voice of its task.
        auto_threshold: By how much the best task's confidence must exceed the base's.
    """

    name: str
    batch_size: int = 8
    wait: float = 0.01
    requests: int = 64
    most_bytes: int = 25 * 2**20
    most_seconds: float = 1800.0
    timeout: float = 600.0
    token: str = ""
    auto_tasks: int = 32
    auto_distance: float = DISTANCE
    auto_threshold: float = 0.0
