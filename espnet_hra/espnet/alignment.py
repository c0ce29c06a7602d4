"""Alignment with tasks: when, in a recording, each line of a text was said.

ESPnet's classes of CTC segmentation (Kürzinger et al. 2020, arXiv 2007.09127) with
strict loading and a choice of tasks. What they compute with, the package
ctc-segmentation, is an extra.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

from espnet_hra.data.audio import resample
from espnet_hra.data.requirements import rate_from_config, requirements_from_config
from espnet_hra.errors import BaseModelError, ConfigError, DataError
from espnet_hra.espnet.decoding import Decoding
from espnet_hra.espnet.inputs import Wave, as_wave, check_ctc, check_tags
from espnet_hra.espnet.kinds import alignable
from espnet_hra.espnet.models import opened
from espnet_hra.names import listing

try:
    from ctc_segmentation import CtcSegmentationParameters
    from espnet2.bin import asr_align, ctc_segment, s2t_align
except ImportError as e:
    raise ConfigError(
        f"alignment computes with ctc-segmentation, which cannot be imported ({e}): "
        "pip install 'espnet-hra[align]'"
    ) from e

#: What ESPnet's ``set_config`` knows; it passes over everything else in silence.
PARAMETERS = (
    "fs",
    "gratis_blank",
    "kaldi_style_text",
    "max_window_size",
    "min_window_size",
    "replace_spaces_with_blanks",
    "samples_to_frames_ratio",
    "scoring_length",
    "set_blank",
    "text_converter",
    "time_stamps",
)

#: What is said of models without CTC.
_NO_CTC = (
    "alignment",
    "train one with ctc_weight above 0, or align with another that has the language",
)


class Aligning(Decoding, ctc_segment.AbsCTCSegmentation):
    """Mixin for ESPnet's classes of CTC segmentation: strict loading, tasks, rates.

    An object aligns one recording at a time: ESPnet's classes keep the frame duration
    of the last one.

    Args:
        config_file: Saved configuration of the adaptation.
        model_file: Its checkpoint.
        fs: The rate of recordings where a call does not say it, in Hz; by default the
            model's.
        **kwargs: `task` and others, see :class:`espnet_hra.espnet.decoding.Decoding`;
            and as for ESPnet's class.

    Raises:
        BaseModelError: The checkpoint or its base is incomplete or another.
        ConfigError: The model has no CTC, or a parameter is unknown.
        TaskError: The task is unknown.
    """

    def __init__(
        self,
        config_file: Path | str | None = None,
        model_file: Path | str | None = None,
        /,
        *,
        fs: int | None = None,
        **kwargs: Any,
    ):
        first, second = self._kind().files
        given = kwargs.pop(first, config_file), kwargs.pop(second, model_file)
        config_file, model_file, config = opened(*given)
        if config_file is None:
            raise BaseModelError(f"{first}: no model is given; give one, or a tag")
        if (config.get("model_conf") or {}).get("ctc_weight") == 0.0:
            check_ctc(None, "ctc", *_NO_CTC)  # before anything large is built
        self.config = CtcSegmentationParameters()  # ESPnet's is its class's, for all
        rate = rate_from_config(config)
        self.fs = float(rate)
        kwargs |= {first: config_file, second: model_file, "fs": rate}
        super().__init__(**kwargs)
        check_ctc(self.model, "ctc", *_NO_CTC)
        self._frames = requirements_from_config(self.train_args).frames
        self._given_rate = rate if fs is None else int(fs)

    @classmethod
    def _opener(cls, name: str, source: str) -> type[Decoding]:
        module, _, found = alignable(name, source).aligns.partition(":")
        return getattr(import_module(module), found)

    def set_config(self, **kwargs: Any) -> None:
        """As ESPnet's; `fs` is the rate of recordings where a call does not say it.

        Raises:
            ConfigError: A parameter is unknown.
        """
        unknown = sorted(kwargs.keys() - set(PARAMETERS))
        if unknown:
            raise ConfigError(
                f"unknown parameter {unknown[0]!r} of the alignment; known: "
                f"{listing(PARAMETERS)}"
            )
        if "fs" in kwargs:  # the model's own, `self.fs`, stays
            self._given_rate = int(kwargs.pop("fs"))
        super().set_config(**kwargs)

    def __call__(
        self,
        speech: Wave,
        text: Sequence[str] | str,
        fs: int | None = None,
        name: str | None = None,
        *,
        task: str | None = None,
    ) -> ctc_segment.CTCSegmentationTask:
        """Align the lines of a text with a recording.

        Args:
            speech: Samples of one channel, (samples,).
            text: Lines in the order in which they were said; each begins with its name,
                unless `kaldi_style_text` is false.
            fs: Rate of the samples in Hz, which are brought to the model's.
            name: Of the recording, for the segments.
            task: The task of this call; otherwise (None) the one that was set.

        Returns:
            ESPnet's result: its ``segments`` are (begin, end, score) of each line, in
            seconds; as a string, it is a Kaldi-style list of segments.

        Raises:
            DataError: The text is empty, unknown to the model, or longer than the
                recording.
            TaskError: The task is unknown, or none was chosen among several.
        """
        given = self._given(None, task)
        if given is not None:
            with self.model.encoder.use_task(given):
                return self(speech, text, fs, name)
        wave = as_wave(speech).cpu().numpy()
        wave = resample(wave, self._given_rate if fs is None else fs, int(self.fs))
        # Not handed the rate: ESPnet would keep it.
        lines = text if isinstance(text, str) else list(text)
        return super().__call__(wave, lines, None, name)

    def get_lpz(self, speech: Wave) -> Any:
        """Logarithms of CTC's probabilities, with the task in force.

        Args:
            speech: Samples at the model's rate, (samples,).

        Returns:
            As of ESPnet's class; (frames, tokens) comes first.

        Raises:
            DataError: It is too short for the model.
            TaskError: No task was chosen among several.
        """
        wave = as_wave(speech).cpu()
        try:
            if self._frames is not None and self._frames(len(wave)) == 0:
                raise TooShortUttError("", len(wave), 1)
            with self._request(None, None):
                return self._log_probabilities(wave)
        except TooShortUttError as e:
            raise DataError(
                f"a recording of {len(wave):,} samples ({len(wave) / self.fs:.2f} s) "
                "is too short for this model: give the whole recording"
            ) from e

    def _log_probabilities(self, wave: torch.Tensor) -> Any:
        raise NotImplementedError

    def prepare_segmentation_task(
        self, text: Any, lpz: Any, name: str | None = None, speech_len: Any = None
    ) -> ctc_segment.CTCSegmentationTask:
        """As ESPnet's, which would align in silence what the model has no tokens of.

        Raises:
            DataError: The text is empty, unknown to the model, or longer than the
                recording.
        """
        names, lines = self._split_text(text)
        where = "the text" if name is None else f"the text of {name}"
        if not lines:
            form = "NAME WORDS" if self.kaldi_style_text else "WORDS"
            raise DataError(
                f"there is nothing in {where} to align: give lines of the form "
                f"{form} (kaldi_style_text says which)"
            )
        for i, line in enumerate(lines):
            if not any(int(token) != self._unknown for token in self._tokenize(line)):
                line_name = names[i] if names else f"line {i + 1}"
                raise DataError(
                    f"{where}: {line_name}: the model has no token for anything in "
                    f"{line[:40]!r}; write it as the training text is written "
                    "(upper or lower case, script), or leave the line out"
                )
        task = super().prepare_segmentation_task(text, lpz, name, speech_len)
        if len(task.ground_truth_mat) > len(lpz):
            raise DataError(
                f"{where} has {len(task.ground_truth_mat):,} tokens, and the recording "
                f"{len(lpz):,} frames: it is longer than what can have been said; give "
                "the text of this recording alone"
            )
        return task

    @property
    def _unknown(self) -> int:
        return self.token_list.index("<unk>")

    @staticmethod
    def get_segments(task: ctc_segment.CTCSegmentationTask) -> dict[str, Any]:
        """As ESPnet's.

        Raises:
            DataError: Nothing was found within the largest window.
        """
        try:
            return ctc_segment.AbsCTCSegmentation.get_segments(task)
        except IndexError as e:
            limit = task.config.max_window_size
            raise DataError(
                f"no alignment was found within {limit:,} frames: raise "
                "max_window_size, or cut the recording where nobody speaks"
            ) from e


class CTCSegmentation(Aligning, asr_align.CTCSegmentation):
    """ESPnet's ``asr_align.CTCSegmentation`` for adapted models.

    Arguments and errors as of :class:`Aligning`; the files are `asr_train_config` and
    `asr_model_file`.

    Examples:
        >>> aligner = CTCSegmentation.from_pretrained("exp/asr_hra", task="fr_june")
        >>> print(aligner(waveform, ["utt1 BONJOUR", "utt2 MADAME"], fs=rate))
    """

    built_by = {("espnet2.bin.asr_align", "ASRTask"): "asr"}

    @torch.no_grad()
    def _log_probabilities(self, wave: torch.Tensor) -> np.ndarray:
        # Not ESPnet's method, which fails where an intermediate CTC comes along.
        batch = wave.to(self.device, getattr(torch, self.dtype))[None]
        lengths = torch.tensor([batch.size(1)], device=batch.device)
        encoded, _ = self.model.encode(batch, lengths)
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded
        return self.model.ctc.log_softmax(encoded)[0].cpu().numpy()


class S2TCTCSegmentation(Aligning, s2t_align.CTCSegmentation):
    """ESPnet's ``s2t_align.CTCSegmentation`` for adapted models of s2t_ctc.

    Arguments and errors as of :class:`Aligning`; the files are `s2t_train_config` and
    `s2t_model_file`.

    Raises:
        ConfigError: The model has no such tag as `lang_sym` or `task_sym`.
    """

    built_by = {("espnet2.bin.s2t_align", "S2TTask"): "s2t_ctc"}

    def _log_probabilities(self, wave: torch.Tensor) -> tuple[np.ndarray, int]:
        check_tags(self.token_list, self.lang_sym, self.task_sym)
        return s2t_align.CTCSegmentation.get_lpz(self, wave.numpy())
