"""Decoding while somebody speaks: ESPnet's ``Speech2TextStreaming`` with tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.bin import asr_inference_streaming

from espnet_hra.encoder import selection
from espnet_hra.errors import ConfigError, TaskError
from espnet_hra.espnet.inputs import as_wave
from espnet_hra.espnet.models import find_model
from espnet_hra.espnet.task import HRATask
from espnet_hra.tasks.store import TaskStore


class Speech2TextStreaming(asr_inference_streaming.Speech2TextStreaming):
    """ESPnet's ``Speech2TextStreaming`` for adapted models.

    The encoder must be one of ESPnet's contextual block encoders. A stream keeps the
    task that it began with, whatever is chosen meanwhile.

    Args:
        asr_train_config: Saved configuration of the adaptation.
        asr_model_file: Its checkpoint.
        task: The task to begin with; None for the one that there is, or none.
        pretrained_model: Where the frozen base is, if not where the configuration says.
        store: Task files to choose from.
        **kwargs: As for ESPnet's ``Speech2TextStreaming``.

    Examples:
        >>> speech2text = Speech2TextStreaming.from_pretrained("exp/asr_hra", task="it")
        >>> for chunk, last in chunks:
        ...     results = speech2text(chunk, is_final=last)

    Raises:
        BaseModelError: The checkpoint or its base is incomplete or another.
        ConfigError: The encoder is not a streaming one.
        TaskError: The task is unknown.
    """

    def __init__(
        self,
        asr_train_config: Path | str | None = None,
        asr_model_file: Path | str | None = None,
        *,
        task: str | None = None,
        pretrained_model: str | None = None,
        store: TaskStore | None = None,
        device: str = "cpu",
        **kwargs: Any,
    ):
        model, args = HRATask.build_model_from_file(
            asr_train_config, asr_model_file, device, base=pretrained_model
        )
        if not hasattr(model.encoder, "forward_infer"):
            raise ConfigError(
                f"encoder: {args.encoder}: not a streaming encoder; take a base with "
                "contextual_block_conformer or contextual_block_transformer, or "
                "espnet_hra.Speech2Text"
            )
        if model.decoder is None:
            kwargs["ctc_weight"] = 1.0
        self._stream: selection.Choice = None
        self._running = False
        super().__init__(asr_model=model, asr_train_args=args, device=device, **kwargs)
        if store is not None:
            self.asr_model.encoder.attach_store(store, behind=self.tasks)
        if task is not None:
            self.set_task(task)

    @staticmethod
    def from_pretrained(
        model_tag: str | None = None, **kwargs: Any
    ) -> "Speech2TextStreaming":
        """Build from an experiment folder, a pack, or a tag of the model zoo or hub.

        Args:
            model_tag: See :meth:`espnet_hra.Speech2Text.from_pretrained`.
            **kwargs: As for the constructor.
        """
        if model_tag is not None:
            found = find_model(str(model_tag))
            kwargs = {
                "asr_train_config": found.config_file,
                "asr_model_file": found.model_file,
                "store": found.store,
                **kwargs,
            }
        return Speech2TextStreaming(**kwargs)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, loaded or not."""
        return self.asr_model.encoder.tasks

    def set_task(self, task: str | None) -> None:
        """Choose the task of the streams that begin from now on.

        Args:
            task: A name, or None for the plain backbone.

        Raises:
            TaskError: The task is unknown, or tells labels.
        """
        encoder = self.asr_model.encoder
        known = task is not None and task in encoder.adapter.heads
        if known and encoder.labels_of(task):
            raise TaskError(
                f"task {task!r} tells labels, of whole utterances, and a stream is "
                "written down: use espnet_hra.Speech2Text"
            )
        encoder.set_task(task)

    def reset(self) -> None:
        """End a stream; the next chunk begins another."""
        self._running = False
        super().reset()

    def __call__(
        self, speech: torch.Tensor | np.ndarray | Sequence[float], is_final: bool = True
    ) -> Any:
        """Take in a chunk.

        Args:
            speech: Samples, shape (samples,).
            is_final: Whether it is the last one.

        Returns:
            An n-best list of (text, tokens, token ids, hypothesis) of the stream so
            far; empty as long as nothing can be said.

        Raises:
            TaskError: None was chosen among several.
        """
        encoder = self.asr_model.encoder
        if not self._running:
            self._stream, self._running = encoder.chosen_task, True
        with encoder.use_task(self._stream):
            return super().__call__(as_wave(speech), is_final)
