#!/usr/bin/env python3
"""Decode with tasks: `espnet2.bin.asr_inference` for adapted models."""

import re
import sys
from collections.abc import Sequence

from espnet2.bin.asr_inference import get_parser as get_espnet_parser
from espnet2.legacy.utils.cli_utils import get_commandline_args
from espnet2.utils import config_argparse
from espnet2.utils.types import int_or_none, str2bool, str_or_none

from espnet_hra.errors import one_line
from espnet_hra.espnet.decoding import inference

_OWN = (
    "task",
    "without_task",
    "ctc_greedy",
    "pretrained_model",
    "max_loaded_tasks",
)


def get_parser() -> config_argparse.ArgumentParser:
    """ESPnet's options and those of tasks."""
    parser = get_espnet_parser()
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


if __name__ == "__main__":
    with one_line("asr_inference"):
        main()
