"""The tables of results: ``results.tsv``, ``utterances.tsv`` and ``faults.tsv``."""

import json
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from espnet_hra.errors import DataError
from espnet_hra.files.atomic import PathLike
from espnet_hra.files.tables import read_table, write_table

#: The method of the frozen backbone's rows.
FROZEN = "none"

#: The names of the tables.
TSV, UTTERANCES, FAULTS = "results.tsv", "utterances.tsv", "faults.tsv"


@dataclass(frozen=True)
class _Line:
    """The columns with which both tables begin.

    Attributes:
        method: The adapter, ``none`` for the frozen backbone.
        task: The task.
        split: The data set.
        seed: The seed of the training; 0 where nothing was trained.
    """

    method: str
    task: str
    split: str
    seed: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What later lines must share to take the place of all lines with it."""
        return self.method, self.task, self.split, self.seed


@dataclass(frozen=True)
class Row(_Line):
    """One line of ``results.tsv``; the fields are its columns.

    Attributes:
        shared_params: Trained parameters that all tasks share.
        task_params: Trained parameters of this task.
        utterances: The number of utterances.
        words: The words of the references.
        cer: Character error rate in percent; nan of a task that classifies.
        wer: Word error rate in percent; of a task that classifies the share of
            utterances that were given a wrong label.
    """

    shared_params: int
    task_params: int
    utterances: int
    words: int
    cer: float
    wer: float

    @property
    def tells_labels(self) -> bool:
        """Whether the task classifies: its answers are labels, no texts."""
        return math.isnan(self.cer) and not math.isnan(self.wer)


@dataclass(frozen=True)
class Utterance(_Line):
    """One line of ``utterances.tsv``; the fields are its columns.

    Attributes:
        utterance: The utterance's id.
        characters: The characters of the reference, spaces included.
        errors: The errors among them.
        words: The words of the reference.
        word_errors: The errors among them.

    Of a task that classifies the reference is a label, one word without characters.
    """

    utterance: str
    characters: int
    errors: int
    words: int
    word_errors: int


@dataclass(frozen=True)
class FaultyTask(_Line):
    """One line of ``faults.tsv``: a task whose adapter does not work.

    Attributes:
        why: What is wrong, for people.
    """

    why: str


@dataclass(frozen=True)
class Results:
    """All lines of the tables; most runs have no faults, and no file of them."""

    rows: Sequence[Row]
    utterances: Sequence[Utterance]
    faults: Sequence[FaultyTask] = ()

    @property
    def split(self) -> str:
        """The split that is shown by default."""
        splits = [row.split for row in self.rows]
        return "test" if "test" in splits else splits[-1]

    @classmethod
    def read(cls, folder: PathLike) -> "Results":
        """The tables of a folder; without lines where there is no such file.

        Raises:
            TableError: One has other columns, or a damaged line.
        """
        folder = Path(folder)
        return cls(
            read_table(folder / TSV, Row),
            read_table(folder / UTTERANCES, Utterance),
            read_table(folder / FAULTS, FaultyTask),
        )

    def of_texts(self) -> "Results":
        """The lines of tasks that write texts."""
        labels = {row.key for row in self.rows if row.tells_labels}
        return Results(
            [row for row in self.rows if row.key not in labels],
            [one for one in self.utterances if one.key not in labels],
            self.faults,
        )

    def merged(self, new: "Results") -> "Results":
        """These lines with newer ones, see :func:`merge`."""
        # A system that was trained anew has none of the faults that it had.
        systems = {(row.method, row.seed) for row in new.rows}
        kept = [one for one in self.faults if (one.method, one.seed) not in systems]
        return Results(
            merge(self.rows, new.rows),
            merge(self.utterances, new.utterances),
            [*kept, *new.faults],
        )

    def write(self, folder: PathLike) -> None:
        """Write the tables."""
        folder = Path(folder)
        if self.faults or (folder / FAULTS).exists():
            write_table(folder / FAULTS, self.faults, FaultyTask)
        write_table(folder / UTTERANCES, self.utterances, Utterance)
        write_table(folder / TSV, self.rows, Row)


class Keyed(Protocol):
    """A line of a table, with what it stands for."""

    @property
    def key(self) -> Hashable:
        """What a later line must share to take this one's place."""


def merge[Line: Keyed](old: Sequence[Line], new: Sequence[Line]) -> list[Line]:
    """Put new lines in the place of old ones with the same key, or behind them."""
    replaced: dict[Hashable, list[Line]] = {}
    for line in new:
        replaced.setdefault(line.key, []).append(line)
    keys = set(replaced)
    merged: list[Line] = []
    for line in old:
        merged += replaced.pop(line.key, []) if line.key in keys else [line]
    return merged + [line for lines in replaced.values() for line in lines]


def read_params(path: PathLike) -> tuple[int, dict[str, int]]:
    """Read the parameter counts that training writes as ``params.json``.

    Args:
        path: The file.

    Returns:
        The shared parameters, and those of each task.

    Raises:
        DataError: If it is not such a file.
    """
    try:
        counts = json.loads(Path(path).read_text(encoding="utf-8"))
        per_task = {str(k): int(v) for k, v in counts["per_task"].items()}
        return int(counts["shared"]), per_task
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} has no counts of parameters (shared, per_task): {error!r}"
        ) from error


def ordered(names: Iterable[str]) -> list[str]:
    """Distinct names in order of appearance, the frozen backbone first."""
    return sorted(dict.fromkeys(names), key=lambda name: name != FROZEN)


def percent(errors: float, length: float) -> float:
    """A rate in percent; nan where nothing is said."""
    return 100.0 * errors / length if length else math.nan
