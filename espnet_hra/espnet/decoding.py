"""ESPnet's decoding loop, `espnet2.bin.asr_inference`, for adapted models."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet2.bin import asr_inference

from espnet_hra.data.lists import read_list
from espnet_hra.data.recordings import rate_of
from espnet_hra.data.requirements import requirements_from_config
from espnet_hra.errors import DataError, TaskError
from espnet_hra.espnet.inference import Speech2Text
from espnet_hra.espnet.seam import standing_in
from espnet_hra.espnet.task import HRATask


class _Opener:
    """Stands for ESPnet's ``Speech2Text`` in its decoding loop, which only opens one.

    Args:
        extra: Arguments of :class:`Speech2Text` that ESPnet's loop does not know.
        without_task: Whether the plain backbone decodes.
        recordings: Lists of what will be decoded.
    """

    def __init__(
        self, extra: dict[str, Any], without_task: bool, recordings: Sequence[str]
    ):
        self._extra, self._without_task = extra, without_task
        self._recordings = recordings

    def from_pretrained(
        self, model_tag: str | None = None, **kwargs: Any
    ) -> Speech2Text:
        """See :meth:`Speech2Text.from_pretrained`."""
        opened = Speech2Text.from_pretrained(model_tag, **{**kwargs, **self._extra})
        if self._without_task:
            opened.set_task(None)
        rate = requirements_from_config(opened.asr_train_args).sample_rate
        for path in self._recordings:
            check_rates(path, rate)
        return opened


def check_rates(path: str | Path, wanted: int) -> None:
    """Refuse recordings of another rate than the model's: ESPnet's loop ignores it.

    Args:
        path: A ``wav.scp``. What cannot be opened is left to ESPnet.
        wanted: The model's rate, in Hz.

    Raises:
        DataError: A recording has another.
    """
    for utterance, entry in read_list(path).entries.items():
        rate = rate_of(entry)
        if rate not in (None, wanted):
            raise DataError(
                f"{path}: {utterance} has {rate:,} Hz, and the model wants {wanted:,}: "
                "let the recipe's stage 3 format the recordings (`espnet-hra "
                "transcribe` converts by itself)"
            )


def inference(args: argparse.Namespace, extra: dict[str, Any]) -> None:
    """Run ESPnet's decoding loop with our ``Speech2Text``.

    Args:
        args: Options of ``espnet2.bin.asr_inference``.
        extra: Further arguments of :class:`Speech2Text`, and `without_task`.

    Raises:
        TaskError: A task is given, and that there shall be none.
        DataError: Recordings have another rate than the model.
    """
    options = {k: v for k, v in vars(args).items() if k != "config"}
    extra = dict(extra)
    without_task = extra.pop("without_task", False)
    if without_task and extra.get("task") is not None:
        raise TaskError(
            f"--task {extra['task']} and --without_task true exclude each other"
        )
    streams = options.get("data_path_and_name_and_type") or ()
    recordings = [path for path, _, kind in streams if kind == "sound"]
    opener = _Opener(extra, without_task, recordings)
    with standing_in(asr_inference, Speech2Text=opener, ASRTask=HRATask):
        asr_inference.inference(**options)
