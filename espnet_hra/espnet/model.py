"""ESPnet's model, made aware of tasks: the batch says which task each utterance has."""

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from espnet2.train.abs_espnet_model import AbsESPnetModel

from espnet_hra.encoder import stepping
from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.encoder.freezing import freeze_statistics
from espnet_hra.espnet import classifying, whisper_frontend

#: Name of the data stream: a Kaldi-style file `utt2task`, type `text`.
DATA_NAME = "utt2task"

#: Name of another one, for decoding with Whisper: the language of each utterance.
LANGUAGE_NAME = "utt2lang"

ADAPTER_PREFIX = "encoder.adapter."


def encode_name(name: str) -> np.ndarray:
    """A task name as an array that a data loader can batch, shape (characters,).

    Names travel, not numbers: a number would mean another task in a process whose
    encoder has them in another order.
    """
    return np.frombuffer(name.encode("utf-8"), dtype=np.uint8).astype(np.int64)


def decode_names(batch: torch.Tensor, lengths: torch.Tensor) -> list[str]:
    """The names of a batch.

    Args:
        batch: (b, characters), padded.
        lengths: (b).
    """
    rows = batch.cpu().numpy().astype(np.uint8)
    return [
        row[:length].tobytes().decode("utf-8")
        for row, length in zip(rows, lengths.tolist())
    ]


class TaskNames:
    """Preprocessor that turns the names of :data:`DATA_NAME` and the like into arrays.

    Args:
        preprocess: What ESPnet does with the other data; may be None.
    """

    def __init__(self, preprocess: Any | None):
        self.preprocess = preprocess

    def __call__(self, uid: str, data: dict[str, Any]) -> dict[str, np.ndarray]:
        data = dict(data)
        given = {key: data.pop(key, None) for key in (DATA_NAME, LANGUAGE_NAME)}
        if self.preprocess is not None:
            data = self.preprocess(uid, data)
        names = {k: encode_name(v) for k, v in given.items() if v is not None}
        return {**data, **names}


class TaskAware(AbsESPnetModel):
    """Mixin for ESPnet's models: tasks come with the batch, the base stays frozen."""

    #: The class of ESPnet's that this one is made of.
    model_class: type

    #: Type of the autocast around frontend-to-encoder while training; None for none.
    autocast_dtype: torch.dtype | None = None

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made at run time; pickling rebuilds it from ESPnet's.
        return _blank, (self.model_class,), self.__getstate__()

    @contextlib.contextmanager
    def full_precision(self) -> Iterator[None]:
        """A block without autocast."""
        own, self.autocast_dtype = self.autocast_dtype, None
        try:
            yield
        finally:
            self.autocast_dtype = own

    def forward(
        self,
        *args: Any,
        utt2task: torch.Tensor | None = None,
        utt2task_lengths: torch.Tensor | None = None,
        **batch: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """As the model's own ``forward``.

        Args:
            *args: As of the model's own.
            utt2task: Task names of the batch, see :func:`encode_name`. Without them
                the encoder's own choice holds.
            utt2task_lengths: Their lengths.
            **batch: As of the model's own.

        Raises:
            TaskError: A task is unknown, or none was chosen among several.
        """
        with self.tasks_of(utt2task, utt2task_lengths):
            if not self._may_classify():
                return super().forward(*args, **batch)
            batch.update(
                zip(("speech", "speech_lengths", "text", "text_lengths"), args)
            )
            return classifying.loss(self, super().forward, batch)

    def _may_classify(self) -> bool:
        """Whether a task of the encoder's own tells labels."""
        if not isinstance(self.encoder, AdaptedEncoder):
            return False
        return self.encoder.adapter.heads.classifies

    def tasks_of(
        self, names: torch.Tensor | None, lengths: torch.Tensor | None
    ) -> AbstractContextManager[None]:
        """A block in which the encoder uses the tasks of a batch."""
        if names is None or lengths is None:
            return contextlib.nullcontext()
        if not isinstance(self.encoder, AdaptedEncoder):
            return contextlib.nullcontext()
        return self.encoder.use_task(decode_names(names, lengths))

    def collect_feats(self, *args: Any, **batch: Any) -> dict[str, torch.Tensor]:
        """As the model's own; statistics do not depend on the task."""
        batch.pop(DATA_NAME, None)
        batch.pop(f"{DATA_NAME}_lengths", None)
        return super().collect_feats(*args, **batch)

    def encode(self, speech: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the model's own, under autocast if the training asks for it.

        Features and everything after the encoder (the CTC loss above all) stay in full
        precision.
        """
        before = classifying.encoded_before()
        if before is not None:
            return before
        if self.autocast_dtype is None:
            return super().encode(speech, *args, **kwargs)
        with torch.autocast(speech.device.type, self.autocast_dtype):
            return _full_precision(super().encode(speech, *args, **kwargs))

    def _calc_ctc_loss(
        self,
        encoder_out: torch.Tensor,
        encoder_out_lens: torch.Tensor,
        ys_pad: torch.Tensor,
        ys_pad_lens: torch.Tensor,
    ) -> tuple[torch.Tensor, float | None]:
        """As the model's own, but the error rate leaves the padding out.

        ESPnet's counts what CTC emits in padded frames as insertions, and checkpoints
        of a pure CTC model are chosen by it.
        """
        given = (encoder_out, encoder_out_lens, ys_pad, ys_pad_lens)
        if getattr(self, "ctc", None) is None:  # the auxiliary one of asr_transducer
            return super()._calc_ctc_loss(*given)
        kept = torch.ones(len(ys_pad), dtype=torch.bool)
        if hasattr(self, "na"):  # s2t: utterances without a text are left out
            kept = (ys_pad != self.na).all(dim=1).cpu()
        with self._tasks_of_rows(kept):
            loss, cer = super()._calc_ctc_loss(*given)
            if cer is None:
                return loss, None
            encoder_out, encoder_out_lens, ys_pad, _ = (
                one[kept.to(one.device)] for one in given
            )
            best = self.ctc.argmax(encoder_out)  # [b, t]
        frame = torch.arange(best.size(1), device=best.device)
        padded = frame >= encoder_out_lens[:, None].to(best.device)
        best = best.masked_fill(padded, self.blank_id)
        return loss, self.error_calculator(best.cpu(), ys_pad.cpu(), is_ctc=True)

    def _tasks_of_rows(self, kept: torch.Tensor) -> AbstractContextManager[None]:
        """A block in which a batch has some of its utterances only, (b)."""
        if not isinstance(self.encoder, AdaptedEncoder) or kept.all() or not kept.any():
            return contextlib.nullcontext()
        names = self.encoder.tasks_of_batch(len(kept))
        if len(names) < 2:
            return contextlib.nullcontext()
        return self.encoder.use_task([n for n, keep in zip(names, kept) if keep])

    def _calc_att_loss(self, encoder_out: torch.Tensor, *others: Any) -> Any:
        """As the model's own; of Whisper, the decoder is most of the work."""
        if self.autocast_dtype is None or not self.is_encoder_whisper:
            return super()._calc_att_loss(encoder_out, *others)
        with torch.autocast(encoder_out.device.type, self.autocast_dtype):
            return super()._calc_att_loss(encoder_out, *others)

    def _extract_feats(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.training or not whisper_frontend.is_frozen(self):
            with torch.autocast(speech.device.type, enabled=False):
                return super()._extract_feats(speech, speech_lengths)
        # A Whisper is most of the work, and heard with half of its digits as well.
        return _full_precision(super()._extract_feats(speech, speech_lengths))

    def train(self, mode: bool = True) -> "TaskAware":
        """As ``Module.train``, but the frozen BatchNorm statistics do not move."""
        super().train(mode)
        if isinstance(self.encoder, AdaptedEncoder):
            freeze_statistics(self, mode)
        return self

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        """As ``Module.parameters``, quick with many tasks as well."""
        return stepping.parameters(self) if recurse else super().parameters(False)


def _full_precision(output: Any) -> Any:
    """Tensors in nested tuples and lists, in full precision."""
    if isinstance(output, torch.Tensor) and output.is_floating_point():
        return output.float()
    if isinstance(output, tuple | list):
        return type(output)(_full_precision(one) for one in output)
    return output


@functools.cache
def task_aware(model_class: type) -> type:
    """The task-aware counterpart of one of ESPnet's models (espnet, maskctc, ...)."""
    return type(
        f"TaskAware{model_class.__name__}",
        (TaskAware, model_class),
        {"__module__": __name__, "model_class": model_class},
    )


def _blank(model_class: type) -> "TaskAware":
    cls: type[TaskAware] = task_aware(model_class)
    return cls.__new__(cls)


def freeze_base(model: torch.nn.Module) -> None:
    """Freeze everything that is not the adapter's: frontend, CTC, decoder, ..."""
    for name, parameter in model.named_parameters():
        if not name.startswith(ADAPTER_PREFIX):
            parameter.requires_grad_(False)
