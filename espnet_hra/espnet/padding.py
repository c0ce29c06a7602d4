"""Batches in which no utterance is changed by the padding behind it.

ESPnet's encoders mask what is padded. Its frontend does not: the last frames of an
utterance contain what follows it, which is its own mirror image when it is alone and
zeros when it is padded. So here the frontend takes each utterance alone; normalisation
and encoder take the batch.

Whisper's encoder has no mask. Its utterances are brought to a few fixed lengths with
silence instead, alone or not (:mod:`espnet_hra.serve.lengths`).
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

#: Greatest difference of logarithmic probabilities that is taken for rounding. On the
#: shipped Conformer rounding was 1e-5 at most, and a padded frontend made 1e-1.
ROUNDING = 1e-3

#: What :func:`is_exact` listens to, in seconds.
_LONG, _SHORT = 2.0, 1.3


def one_by_one(model: Any) -> None:
    """Let a model's frontend take the utterances of a batch one after the other.

    The model stays as it is but for that; a second call changes nothing.

    Args:
        model: ESPnet's model, with or without a frontend.
    """
    frontend = getattr(model, "frontend", None)
    if frontend is not None and not isinstance(frontend.forward, _OneByOne):
        frontend.forward = _OneByOne(frontend.forward)


class _OneByOne:
    """Stands for the ``forward`` of a frontend."""

    def __init__(self, forward: Callable[..., tuple[torch.Tensor, torch.Tensor]]):
        self._forward = forward

    def __call__(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features, (b, t, d), and their lengths; speech is (b, samples)."""
        sizes = lengths.tolist()
        if len(set(sizes)) == 1:
            return self._forward(speech, lengths)
        found = [
            self._forward(speech[i : i + 1, :n], lengths[i : i + 1])
            for i, n in enumerate(sizes)
        ]
        features = [rows[0] for rows, _ in found]
        padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
        return padded, torch.cat([own for _, own in found])


@torch.no_grad()
def is_exact(speech2text: Any, rate: int) -> bool:
    """Whether an utterance in a padded batch is read as it is alone; this is tried.

    Args:
        speech2text: A :class:`espnet_hra.Speech2Text` that reads with CTC.
        rate: Of its recordings, in Hz.
    """
    drawn = torch.Generator().manual_seed(0)
    waves = [
        0.1 * torch.randn(int(seconds * rate), generator=drawn)
        for seconds in (_LONG, _SHORT)
    ]
    model, encoder = speech2text.model, speech2text.model.encoder
    task = next(iter(speech2text.tasks), None)
    with _use(encoder, task):
        encoded, lengths = speech2text._encode(waves)
        together = model.ctc.log_softmax(encoded)[1, : int(lengths[1])]
        encoded, _ = speech2text._encode(waves[1:])
        alone = model.ctc.log_softmax(encoded)[0]
    if together.shape != alone.shape:
        return False
    return bool((together - alone).abs().max() < ROUNDING)


def _use(encoder: Any, task: str | None) -> Any:
    use = getattr(encoder, "use_task", None)
    return contextlib.nullcontext() if use is None else use(task)
