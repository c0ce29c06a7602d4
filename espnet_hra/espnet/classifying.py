"""Batches in which some tasks tell labels and others write texts.

The encoder runs once for all utterances, each with its task. Those of tasks that
classify (see :mod:`espnet_hra.methods.classify`) go on to their classifiers, the others
to the loss of ESPnet's model, as if the batch had only them.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.errors import ConfigError, DataError
from espnet_hra.methods import classify
from espnet_hra.names import listing
from espnet_hra.tasks.config import TaskRecord

#: What the loss of ESPnet's models returns: loss, statistics, weight.
Loss = tuple[torch.Tensor, dict[str, Any], torch.Tensor]

#: The streams of a batch that have a row for each utterance and are this module's.
_STREAMS = ("speech", "speech_lengths", "text", "text_lengths")

#: Names of utterance's streams, as ESPnet's preprocessors get them.
_TASK, _TEXT = "utt2task", "text"

#: Output of the encoder that is there already, for the rows of a part of a batch.
_encoded: ContextVar[Any] = ContextVar("espnet_hra_encoded", default=None)


def check(espnet_task: str, records: Sequence[TaskRecord]) -> None:
    """Refuse tasks that classify where the model is not of the ESPnet task asr.

    Raises:
        ConfigError: It is not.
    """
    own = [record.name for record in records if record.labels]
    if own and espnet_task != "asr":
        raise ConfigError(
            f"tasks: {listing(own)}: head: classify: only models of the ESPnet task "
            f"asr tell labels, and this one is of {espnet_task}"
        )


class Labels:
    """A preprocessor that gives utterances of tasks that classify their label's number.

    It stands in ``text``, where other tasks have tokens.

    Args:
        preprocess: What is done to utterances otherwise.
        labels: What the tasks tell, by name.
    """

    def __init__(
        self,
        preprocess: Callable[[str, dict[str, Any]], dict[str, Any]],
        labels: Mapping[str, Sequence[str]],
    ):
        self._preprocess = preprocess
        self._numbers = {
            task: {label: i for i, label in enumerate(own)}
            for task, own in labels.items()
        }

    def __call__(self, uid: str, data: dict[str, Any]) -> dict[str, Any]:
        numbers = self._numbers.get(data.get(_TASK, ""))
        label = data.get(_TEXT)
        if numbers is None or not isinstance(label, str):
            return self._preprocess(uid, data)
        if label not in numbers:
            raise DataError(
                f"{uid}: {label!r} is no label of the task {data[_TASK]!r}, which "
                f"tells {listing(numbers)}"
            )
        others = {key: value for key, value in data.items() if key != _TEXT}
        number = np.array([numbers[label]], dtype=np.int64)
        return {**self._preprocess(uid, others), _TEXT: number}


def names_of(model: Any, size: int) -> list[str | None]:
    """The task in force of each utterance of a batch; None for the backbone."""
    if not isinstance(model.encoder, AdaptedEncoder):
        return [None] * size
    names: list[str | None] = list(model.encoder.tasks_of_batch(size)) or [None]
    return names * size if len(names) == 1 else names


def rows_of(model: Any, names: Sequence[str | None]) -> list[int]:
    """Which utterances are of tasks that classify."""
    labels = {n: model.encoder.labels_of(n) for n in set(names) if n is not None}
    return [i for i, name in enumerate(names) if labels.get(name or "")]


def encoded_before() -> Any:
    """The encoder's output of the rows at hand, if it is there already; else None."""
    return _encoded.get()


class Told(NamedTuple):
    """What an utterance was told to be.

    Attributes:
        label: The likeliest label.
        number: Which of the task's labels it is, from 0.
        score: Its log-probability.
        margin: How far the second likeliest is behind.
        frames: Of how many frames the answer is made.
    """

    label: str
    number: int
    score: float
    margin: float
    frames: float


@contextlib.contextmanager
def _using(encoded: Any) -> Iterator[None]:
    token = _encoded.set(encoded)
    try:
        yield
    finally:
        _encoded.reset(token)


def loss(model: Any, plain: Callable[..., Loss], batch: dict[str, Any]) -> Loss:
    """The loss of a batch, whatever its tasks are.

    It is the mean over utterances, as ESPnet's is. ``loss_classify`` and
    ``acc_classify`` are those of the utterances that are classified.

    Args:
        model: A task-aware model; its tasks are chosen.
        plain: The ``forward`` of ESPnet's model.
        batch: Its arguments, by name.

    Raises:
        TaskError: As of the encoder.
    """
    size = len(batch["speech"])
    names = names_of(model, size)
    rows = rows_of(model, names)
    if not rows:
        return plain(**batch)
    others = [i for i in range(size) if i not in set(rows)]
    encoded = model.encode(batch["speech"], batch["speech_lengths"])
    own, frames = _rows_of(encoded, rows, size)
    answers = _logits(model, own, frames, [str(names[i]) for i in rows])
    numbers = batch["text"][rows, 0]
    each = torch.stack([F.cross_entropy(a, n) for a, n in zip(answers, numbers)])
    right = sum(int(a.argmax() == n) for a, n in zip(answers, numbers))
    stats = {"loss_classify": each.detach().mean(), "acc_classify": right / len(rows)}
    total = each.sum()
    if others:
        part = {key: batch[key][others] for key in _STREAMS}
        extra = {key: value for key, value in batch.items() if key not in part}
        with (
            model.encoder.use_task([names[i] for i in others]),
            _using(_rows_of(encoded, others, size)),
        ):
            of_texts, texts, _ = plain(**part, **extra)
        total = total + len(others) * of_texts.sum()
        stats = {**texts, **stats}
    total = total / size
    stats["loss"] = total.detach()
    return force_gatherable((total, stats, size), total.device)


def answers(
    model: Any, pieces: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]]
) -> list[Told]:
    """What utterances of tasks that classify are told to be.

    Args:
        model: The model; the utterances' tasks are chosen.
        pieces: For each utterance the encoder's output and its lengths, (1, t, d) and
            (1), of each of its windows; most have one.
    """
    names = names_of(model, len(pieces))
    encoder, found = model.encoder, []
    for name, own in zip(names, pieces):
        weights = torch.tensor([float(n) for _, n in own])
        each = torch.stack(
            [_logits(model, encoded, n, [str(name)])[0].cpu() for encoded, n in own]
        )
        mean = (weights[:, None] * each).sum(0) / weights.sum()
        top, best = mean.log_softmax(-1).topk(2)
        number = int(best[0])
        label = encoder.labels_of(str(name))[number]
        score, margin = float(top[0]), float(top[0] - top[1])
        found.append(Told(label, number, score, margin, float(weights.sum())))
    return found


def _logits(
    model: Any, encoded: Any, frames: torch.Tensor, names: Sequence[str]
) -> list[torch.Tensor]:
    """The logits of each utterance. Names of tasks, one each."""
    if isinstance(encoded, tuple):  # intermediate outputs come along
        encoded = encoded[0]
    heads = model.encoder.adapter.heads
    own = {name: heads.gather_classifier(name) for name in dict.fromkeys(names)}
    with torch.autocast(encoded.device.type, enabled=False):
        pooled = classify.pool(encoded, frames)
        return classify.logits(pooled, [own[name] for name in names])


def _rows_of(value: Any, rows: Sequence[int], size: int) -> Any:
    """Some rows of the encoder's output: of every tensor in it that has rows."""
    if isinstance(value, tuple | list):
        return type(value)(_rows_of(one, rows, size) for one in value)
    if isinstance(value, torch.Tensor) and value.dim() and len(value) == size:
        return value[list(rows)]
    return value
