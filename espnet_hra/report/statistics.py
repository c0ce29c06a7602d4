"""What a system costs and how good it is, with intervals.

Intervals are those of a bootstrap over utterances: within every task utterances are
drawn with replacement, *the same ones for all methods*, so that differences are paired;
errors are averaged over seeds first, and rates over tasks last. An interval says how
much a result depends on which sentences were in the test set, not on the seed.
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from espnet_hra.errors import UserError
from espnet_hra.report.results import FROZEN, Results, Row, Utterance, ordered, percent


class ReportError(UserError, ValueError):
    """Results that cannot be shown as asked for."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval, nan where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def text(self, sign: str = "") -> str:
        """The value, and the interval in brackets."""
        value = f"{self.value:{sign}.1f}"
        if math.isnan(self.low):
            return value
        return f"{value} [{self.low:{sign}.1f}, {self.high:{sign}.1f}]"


@dataclass
class System:
    """What a method costs, and its rates on one split.

    Attributes:
        method: Its name.
        seeds: The seeds that are averaged.
        shared: Trained parameters that all tasks share.
        per_task: The smallest and the largest number of parameters of a task.
        rates: The error rate of each task: the CER, or the WER.
        resampled: That rate of each task in each resample; empty without utterances.
        signature: For each task, which utterances were scored: differences are paired
            only where these are the same.
    """

    method: str
    seeds: tuple[int, ...]
    shared: int
    per_task: tuple[int, int]
    rates: dict[str, float]
    resampled: dict[str, np.ndarray] = field(default_factory=dict)
    signature: dict[str, int] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The adapter, without its variant."""
        return self.method.split("_")[0]

    def mean(self, tasks: Iterable[str]) -> Interval:
        """The mean rate over tasks."""
        tasks = list(tasks)
        return interval(
            average([self.rates[task] for task in tasks]),
            [self.resampled.get(task) for task in tasks],
        )

    def difference(self, other: "System") -> tuple[Interval, list[str]]:
        """The mean rate less another's over the tasks that can be compared.

        Args:
            other: The reference.

        Returns:
            The difference, and these tasks: the same utterances were scored.
        """
        tasks = [
            task
            for task, signature in self.signature.items()
            if other.signature.get(task) == signature
        ]
        if not tasks:
            return Interval(math.nan), []
        pairs = [self.resampled[task] - other.resampled[task] for task in tasks]
        value = average([self.rates[task] - other.rates[task] for task in tasks])
        return interval(value, pairs), tasks


# --------------------------------------------------------------------- the estimates


def systems(
    results: Results,
    split: str,
    samples: int = 10_000,
    seed: int = 0,
    measure: str = "cer",
) -> dict[str, System]:
    """All methods with results on a split, the frozen backbone first.

    Args:
        results: The tables.
        split: The data set.
        samples: The number of resamples.
        seed: What they are drawn with.
        measure: ``cer`` or ``wer``.
    """
    found = {}
    for method in ordered(row.method for row in results.rows):
        rows = [r for r in results.rows if (r.method, r.split) == (method, split)]
        if rows:
            sizes = [row.task_params for row in rows]
            found[method] = System(
                method,
                tuple(sorted({row.seed for row in rows})),
                max(row.shared_params for row in rows),
                (min(sizes), max(sizes)),
                rates_of(rows, measure),
            )
    counts: dict[str, dict[str, dict[str, dict[int, Utterance]]]] = {}
    for line in results.utterances:
        if line.split == split and line.method in found:
            seeds = counts.setdefault(line.task, {}).setdefault(line.method, {})
            seeds.setdefault(line.utterance, {})[line.seed] = line
    for task, by_method in counts.items():
        groups: dict[int, list[str]] = {}
        tables = {}
        for method, by_utterance in by_method.items():
            table = _table_of(by_utterance, found[method].seeds, measure)
            if table is not None and task in found[method].rates:
                signature, lengths, errors = table
                tables[method] = lengths, errors
                found[method].signature[task] = signature
                # Of rates in results.tsv, two decimals are left.
                found[method].rates[task] = percent(errors.sum(), lengths.sum())
                groups.setdefault(signature, []).append(method)
        for methods in groups.values():
            # One stream for a task: what is drawn does not depend on other tasks.
            stream = [seed, zlib.crc32(f"{split} {task}".encode())]
            lengths = tables[methods[0]][0]
            errors = np.stack([tables[method][1] for method in methods], axis=1)
            rates = resample(errors, lengths, samples, np.random.default_rng(stream))
            for method, column in zip(methods, rates.T):
                found[method].resampled[task] = column
    return found


def _table_of(
    by_utterance: Mapping[str, Mapping[int, Utterance]],
    seeds: Sequence[int],
    measure: str,
) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Signature, lengths and mean errors of utterances; None if a seed lacks some."""
    ids = sorted(by_utterance)
    if any(set(by_utterance[i]) != set(seeds) for i in ids):
        return None
    lines = [list(by_utterance[i].values()) for i in ids]
    of = ("characters", "errors") if measure == "cer" else ("words", "word_errors")
    counted = [[tuple(getattr(u, key) for key in of) for u in line] for line in lines]
    lengths = [line[0][0] for line in counted]
    if any(n != lengths[i] for i, line in enumerate(counted) for n, _ in line):
        return None
    signature = zlib.crc32(repr((ids, lengths)).encode("utf-8"))
    errors = [average([wrong for _, wrong in line]) for line in counted]
    return signature, np.array(lengths, float), np.array(errors, float)


def resample(
    errors: np.ndarray,
    lengths: np.ndarray,
    samples: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Error rates under resampling of utterances with replacement.

    Args:
        errors: Errors, shape (utterances, methods).
        lengths: Lengths of the references, shape (utterances,).
        samples: The number of resamples.
        generator: What they are drawn with.

    Returns:
        Rates in percent, shape (samples, methods); all methods have the same resamples.
    """
    n = len(lengths)
    block = max(1, 2_000_000 // n)  # to hold a few megabytes at once
    parts = []
    for start in range(0, samples, block):
        size = min(block, samples - start)
        drawn = generator.multinomial(n, np.full(n, 1.0 / n), size).astype(float)
        spoken = drawn @ lengths
        spoken[spoken == 0] = math.nan  # nothing is said in what was drawn
        parts.append(100.0 * (drawn @ errors) / spoken[:, None])
    return np.concatenate(parts)


def choose_reference(
    found: Mapping[str, System], name: str | None, select: Mapping[str, float]
) -> str:
    """The method that the others are compared with.

    Args:
        found: The methods of the split.
        name: The name of one, or the beginning of several names; by default ``hra``,
            and the frozen backbone where there is none.
        select: The rate by which the best of several is chosen: the dev set's, so that
            the choice owes nothing to the test set.

    Raises:
        ReportError: If there is none of this name.
    """
    if name is not None and name in found:
        return name
    complete = complete_methods(found)
    begun = [m for m in complete if m.split("_")[0] == (name or "hra")]
    begun = begun or [m for m in complete if name and m.startswith(name)]
    if begun:
        return min(begun, key=lambda m: (select.get(m, math.inf), m))
    if name is not None:
        raise ReportError(
            f"--reference {name}: no such method; there are: {', '.join(found)}"
        )
    return FROZEN if FROZEN in found else next(iter(found))


def selection_rates(results: Results, split: str) -> dict[str, float]:
    """The mean CER of each method on the dev set, else on the split that is shown."""
    splits = {row.split for row in results.rows}
    used = "dev" if "dev" in splits else split
    rates = {}
    for method in ordered(row.method for row in results.rows):
        rows = [r for r in results.rows if (r.method, r.split) == (method, used)]
        if rows:
            rates[method] = average(list(rates_of(rows, "cer").values()))
    return rates


def rates_of(rows: Sequence[Row], measure: str) -> dict[str, float]:
    """The rate of each task of one method, averaged over seeds."""
    return {
        task: average([getattr(row, measure) for row in rows if row.task == task])
        for task in ordered(row.task for row in rows)
    }


def complete_methods(found: Mapping[str, System]) -> list[str]:
    """The methods that have results of all tasks: only their means compare."""
    tasks = tasks_of(found)
    return [m for m, system in found.items() if len(system.rates) == len(tasks)]


def mean_column(tasks: Iterable[str]) -> str:
    """How tables call the mean over tasks; one of these may be called so itself."""
    return "mean of all tasks" if "mean" in tasks else "mean"


def tasks_of(found: Mapping[str, System]) -> list[str]:
    """All tasks that a method has a rate of."""
    return sorted({task for system in found.values() for task in system.rates})


def interval(value: float, resampled: Sequence[np.ndarray | None]) -> Interval:
    """A value with the percentiles of its resamples, if all parts have some."""
    parts = [part for part in resampled if part is not None]
    if not parts or len(parts) < len(resampled):
        return Interval(value)
    mean = np.mean(np.stack(parts), axis=0)
    if np.isnan(mean).all():
        return Interval(value)
    low, high = np.nanpercentile(mean, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def average(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return sum(values) / len(values) if values else math.nan
