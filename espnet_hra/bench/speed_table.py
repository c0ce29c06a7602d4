"""``speed.tsv``: what was measured, one line for each variant."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from espnet_hra.bench.timing import Ratio, ratio
from espnet_hra.errors import UserError

TSV = "speed.tsv"

#: Behind the name of a variant: the same one, timed twice in every round.
AGAIN = "_again"


class SpeedError(UserError, ValueError):
    """Something cannot be measured or shown as asked for."""


@dataclass(frozen=True)
class Row:
    """One line of ``speed.tsv``; the fields are its columns.

    Attributes:
        machine: Processor, cores and memory; the GPU, where it computed.
        device: ``cpu`` or ``cuda``.
        threads: Of the processor.
        versions: Of Python, torch, ESPnet and PEFT.
        commit: Of this repository; ``+`` behind it: with changes.
        date: When it was measured.
        case: What was measured, see :data:`espnet_hra.bench.speed_cases.CASES`.
        backbone: Name of the backbone.
        part: Which part of the case.
        batch: Utterances.
        seconds: Of speech, in each utterance.
        rounds: Wanted runs of each variant.
        variant: The variant.
        detail: Its size.
        task_params: Parameters of one of its tasks.
        arithmetic: Multiply-accumulates of the layers with it / without it.
        unit: Of the values: ``ms`` or ``MiB``.
        values: One of each round, with blanks between.
    """

    machine: str
    device: str
    threads: int
    versions: str
    commit: str
    date: str
    case: str
    backbone: str
    part: str
    batch: int
    seconds: float
    rounds: int
    variant: str
    detail: str
    task_params: int
    arithmetic: str
    unit: str
    values: str

    @property
    def environment(self) -> tuple[str, str, int, str]:
        """What results must share to stand in one table."""
        return self.machine, self.device, self.threads, self.versions

    @property
    def place(self) -> tuple[str, str, str]:
        """What the row is a result of."""
        return self.case, self.backbone, self.part

    @property
    def key(self) -> tuple[Any, ...]:
        """What a later row must share to take this one's place."""
        settings = (self.batch, self.seconds, self.rounds)
        return (*self.environment, *self.place, *settings, self.variant)

    @property
    def numbers(self) -> list[float]:
        """The values.

        Raises:
            SpeedError: They are no numbers.
        """
        try:
            return [float(value) for value in self.values.split()]
        except ValueError:
            raise SpeedError(
                f"{TSV}: {self.case}, {self.backbone}, {self.part}, {self.variant}: "
                f"values: {self.values!r} are no numbers"
            ) from None


@dataclass
class Measurement:
    """All variants of one part of a case, measured together.

    Attributes:
        rows: Their rows, by variant.
    """

    rows: dict[str, Row] = field(default_factory=dict)

    @property
    def first(self) -> Row:
        """The row of the first variant, for what they share."""
        return next(iter(self.rows.values()))

    def ratio(self, top: Sequence[str], bottom: Sequence[str]) -> Ratio | None:
        """See :func:`espnet_hra.bench.timing.ratio`; None if a variant lacks."""
        if not {*top, *bottom} <= self.rows.keys():
            return None
        values = {name: row.numbers for name, row in self.rows.items()}
        return ratio(values, top, bottom) if all(values.values()) else None

    @property
    def noise(self) -> Ratio | None:
        """The same variant against itself."""
        for name in self.rows:
            if name.endswith(AGAIN):
                return self.ratio([name], [name.removesuffix(AGAIN)])
        return None


def measurements(rows: Sequence[Row]) -> list[Measurement]:
    """Of each part of each case the one with most rounds; the latest of equals."""
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], Measurement]] = {}
    for row in rows:
        settings = (row.rounds, row.batch, row.seconds)
        by_settings = found.setdefault((row.environment, row.place), {})
        by_settings.setdefault(settings, Measurement()).rows[row.variant] = row
    return [
        max(by_settings.values(), key=lambda m: (m.first.rounds, m.first.date))
        for by_settings in found.values()
    ]
