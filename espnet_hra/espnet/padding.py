"""Batches in which no utterance is changed by the padding behind it.

Three things could let what is in a batch change a text:

* *The frontend.* ESPnet's encoders mask what is padded. Its frontend does not: the last
  frames of an utterance contain what follows it, which is its own mirror image when it
  is alone and zeros when it is padded. So while a batch is decoded the frontend takes
  each utterance alone (:func:`alone`); normalisation and encoder take the batch.
* *The encoder.* Some mask nothing, Whisper's above all: it hears the silence behind an
  utterance. Whether an encoder masks is tried (:func:`masks`); through one that does
  not only utterances of equal length go together.
* *Rounding.* A matrix product of eight rows is not bit for bit that of one row. It can
  change a text only where two symbols were as good as equal. So greedy decoding says by
  how much its closest decision was won (its margin; of Whisper's beam, its best text),
  and what was won by less than :data:`SAFE` is decoded again, alone.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

#: Least margin, in logarithmic probability, at which a batch's decision counts. The
#: rounding was 1e-5 at most on the shipped Conformer and 2e-5 on Whisper base, and a
#: padded frontend made 1e-1.
SAFE = 1e-3

#: What :func:`masks` listens to, in samples.
_LONG, _SHORT = 32_000, 20_800

#: Whether frontends take the utterances of a batch one by one, in this thread.
_each_alone: ContextVar[bool] = ContextVar("espnet_hra_each_alone", default=False)


def prepare(model: Any) -> None:
    """Enable a model's frontend to take utterances one by one, see :func:`alone`.

    Elsewhere, in training above all, it works as before; a second call changes nothing.

    Args:
        model: ESPnet's model, with or without a frontend.
    """
    frontend = getattr(model, "frontend", None)
    if frontend is not None and not isinstance(frontend.forward, _OneByOne):
        frontend.forward = _OneByOne(frontend.forward)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A block in which prepared frontends take the utterances one after the other."""
    token = _each_alone.set(True)
    try:
        yield
    finally:
        _each_alone.reset(token)


class _OneByOne:
    """Stands for the ``forward`` of a frontend."""

    def __init__(self, forward: Callable[..., tuple[torch.Tensor, torch.Tensor]]):
        self._forward = forward

    def __call__(
        self, speech: torch.Tensor, lengths: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features, (b, t, d), and their lengths; speech is (b, samples)."""
        sizes = lengths.tolist() if _each_alone.get() else []
        if len(set(sizes)) < 2:
            return self._forward(speech, lengths, *args, **kwargs)
        found = [
            self._forward(speech[i : i + 1, :n], lengths[i : i + 1], *args, **kwargs)
            for i, n in enumerate(sizes)
        ]
        features = [rows[0] for rows, _ in found]
        padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
        return padded, torch.cat([own for _, own in found])


Encode = Callable[[list[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def masks(encode: Encode, ctc: Any = None) -> bool:
    """Whether an utterance in a padded batch is read as it is alone; this is tried.

    Args:
        encode: The encoder's output (b, t, d) and its lengths (b), of utterances that
            are padded to the longest.
        ctc: ESPnet's CTC, whose logarithmic probabilities are compared; None for the
            encoder's output itself.
    """
    drawn = torch.Generator().manual_seed(0)
    waves = [0.1 * torch.randn(n, generator=drawn) for n in (_LONG, _SHORT)]
    read = (lambda x: x) if ctc is None else ctc.log_softmax
    encoded, lengths = encode(waves)
    together = read(encoded)[1, : int(lengths[1])]
    encoded, lengths = encode(waves[1:])
    single = read(encoded)[0, : int(lengths[0])]
    if encoded.size(1) != int(lengths[0]) or together.shape != single.shape:
        return False  # it adds silence of its own, and hears it
    return bool((together - single).abs().max() < SAFE)
