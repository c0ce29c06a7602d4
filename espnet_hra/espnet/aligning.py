"""CTC segmentation with tasks: ESPnet's ``CTCSegmentation`` for adapted models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from espnet_hra.data.requirements import requirements_from_config
from espnet_hra.errors import ConfigError, DataError, TaskError
from espnet_hra.espnet.decoding import Decoding
from espnet_hra.espnet.inputs import Wave, as_wave

try:
    from espnet2.bin import asr_align
except ImportError as e:
    raise ConfigError(
        f"alignment needs the package ctc-segmentation ({e}): pip install "
        "ctc-segmentation"
    ) from e


class CTCSegmentation(Decoding, asr_align.CTCSegmentation):
    """Finds where in a recording each of some texts is spoken, with a task.

    Args:
        asr_train_config: Saved configuration of the adaptation.
        asr_model_file: Its checkpoint.
        task: The task to begin with; see :meth:`set_task`.
        without_task: Align with the plain backbone.
        **kwargs: As for ESPnet's class, and `pretrained_model` and others of
            :class:`espnet_hra.espnet.decoding.Decoding`.

    Examples:
        >>> aligner = CTCSegmentation.from_pretrained("exp/asr_hra", task="fr_june")
        >>> print(aligner(wave, ["utt1 bonjour", "utt2 merci"], fs=16000))

    Raises:
        BaseModelError: The checkpoint or its base is incomplete or another.
        ConfigError: The model has no CTC.
        TaskError: The task is unknown; or one is given, and there shall be none.
    """

    built_by = {("espnet2.bin.asr_align", "ASRTask"): "asr"}

    def __init__(
        self,
        asr_train_config: Path | str,
        asr_model_file: Path | str | None = None,
        *args: Any,
        task: str | None = None,
        without_task: bool = False,
        **kwargs: Any,
    ):
        if without_task and task is not None:
            raise TaskError(f"task {task} and without_task exclude each other")
        super().__init__(asr_train_config, asr_model_file, *args, task=task, **kwargs)
        if self.model.ctc is None:
            raise ConfigError(
                f"{asr_train_config}: this model has no CTC (ctc_weight: 0), which "
                "alignment needs; take a model with one"
            )
        if without_task and self._heads is not None:
            self.set_task(None)

    @classmethod
    def from_pretrained(cls, model_tag: str | None = None, **kwargs: Any) -> Decoding:
        opened = super().from_pretrained(model_tag, **kwargs)
        if not isinstance(opened, cls):
            raise ConfigError(
                f"{model_tag}: this model is of the ESPnet task {opened._kind().name}; "
                "those of asr can be aligned with"
            )
        return opened

    def __call__(
        self,
        speech: Wave,
        text: Sequence[str] | str,
        fs: int | None = None,
        name: str | None = None,
        *,
        task: str | None = None,
    ) -> Any:
        """Align texts with one recording.

        Args:
            speech: Samples, (samples,).
            text: The texts, in their order; each after its name, if
                `kaldi_style_text`.
            fs: Sampling rate of the recording.
            name: Its name.
            task: The task of this call; otherwise (None) the one that was set.

        Returns:
            ESPnet's ``CTCSegmentationTask``; printed, it is a file ``segments``.

        Raises:
            DataError: The recording has several channels, or another rate than the
                model's.
            TaskError: The task is unknown, or none was chosen among several.
        """
        given = self._given(None, task)
        if given is not None:
            with self.model.encoder.use_task(given):
                return self(speech, text, fs, name)
        wanted = requirements_from_config(self.train_args).sample_rate
        if fs is not None and fs != wanted:
            raise DataError(
                f"{name or 'the recording'} has {fs:,} Hz, and the model wants "
                f"{wanted:,}: convert it first"
            )
        lines = text if isinstance(text, str) else list(text)
        wave: torch.Tensor = as_wave(speech)
        with self._request(None, None):
            return super().__call__(wave, lines, fs, name)
