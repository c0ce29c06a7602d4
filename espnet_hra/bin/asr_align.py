#!/usr/bin/env python3
"""Align texts with a recording, with a task: `espnet2.bin.asr_align`."""

import sys
from collections.abc import Sequence
from typing import Any

from espnet2.legacy.utils.cli_utils import get_commandline_args
from espnet2.utils.types import str2bool, str_or_none

from espnet_hra.errors import one_line


def get_parser() -> Any:
    """ESPnet's options and those of tasks."""
    from espnet_hra.espnet.aligning import asr_align

    parser = asr_align.get_parser()
    group = parser.add_argument_group("Adaptation related")
    group.add_argument(
        "--task",
        type=str_or_none,
        default=None,
        help="The task of the recording",
    )
    group.add_argument(
        "--without_task",
        type=str2bool,
        default=False,
        help="Align with the plain backbone, without any task",
    )
    group.add_argument(
        "--pretrained_model",
        type=str_or_none,
        default=None,
        help="Where the frozen base is, if not where the saved configuration says",
    )
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Align; `--help` lists the options.

    Raises:
        UserError: The model or the task is not there, the recording does not fit, or
            ctc-segmentation is missing.
    """
    print(get_commandline_args(), file=sys.stderr)
    options = vars(get_parser().parse_args(cmd))
    options.pop("config", None)

    from espnet_hra.espnet import aligning

    aligning.asr_align.align_file(aligning.CTCSegmentation, **options)


if __name__ == "__main__":
    with one_line("asr_align"):
        main()
