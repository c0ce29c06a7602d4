#!/usr/bin/env python3
"""Decode with tasks: `espnet2.bin.asr_inference` for adapted models."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet2.bin import asr_inference
from espnet2.legacy.utils.cli_utils import get_commandline_args
from espnet2.utils import config_argparse
from espnet2.utils.types import int_or_none, str2bool, str_or_none

from espnet_hra.data.lists import read_list
from espnet_hra.data.recordings import rate_of
from espnet_hra.data.requirements import requirements_from_config
from espnet_hra.errors import DataError, TaskError, one_line
from espnet_hra.espnet.inference import Speech2Text
from espnet_hra.espnet.seam import standing_in
from espnet_hra.espnet.task import HRATask

_OWN = (
    "task",
    "without_task",
    "ctc_greedy",
    "pretrained_model",
    "max_loaded_tasks",
    "language",
)


def get_parser() -> config_argparse.ArgumentParser:
    """ESPnet's options and those of tasks."""
    parser = asr_inference.get_parser()
    for action in parser._actions:  # ESPnet has a bare "%" in one, which breaks --help
        if action.help:
            action.help = re.sub(r"(?<!%)%(?![(%])", "%%", action.help)
    group = parser.add_argument_group("Adaptation related")
    group.add_argument(
        "--task",
        type=str_or_none,
        default=None,
        help="The task of all utterances; for one per utterance, give the data stream "
        "--data_path_and_name_and_type PATH/utt2task,utt2task,text instead",
    )
    group.add_argument(
        "--without_task",
        type=str2bool,
        default=False,
        help="Decode with the plain backbone, without any task",
    )
    group.add_argument(
        "--ctc_greedy",
        type=str2bool,
        default=False,
        help="Take the best CTC symbol of each frame instead of a beam search",
    )
    group.add_argument(
        "--pretrained_model",
        type=str_or_none,
        default=None,
        help="Where the frozen base is, if not where the saved configuration says",
    )
    group.add_argument(
        "--language",
        type=str_or_none,
        default=None,
        help="For Whisper, the language of all utterances (default: their task's, or "
        "else what it hears); for one per utterance, give the data stream "
        "--data_path_and_name_and_type PATH/utt2lang,utt2lang,text instead",
    )
    group.add_argument(
        "--max_loaded_tasks",
        type=int_or_none,
        default=None,
        help="Most tasks of the folder beside the model that are kept in memory "
        "(default: as many as take 256 MiB)",
    )
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Decode; `--help` lists the options."""
    print(get_commandline_args(), file=sys.stderr)
    args = get_parser().parse_args(cmd)
    extra = {name: vars(args).pop(name) for name in _OWN}
    inference(args, extra)


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


if __name__ == "__main__":
    with one_line("asr_inference"):
        main()
