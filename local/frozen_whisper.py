#!/usr/bin/env python3
"""Write the configuration by which the recipe decodes with a frozen Whisper.

Whisper was trained on windows of 30 seconds, and most of each is silence where what is
said takes three. Shorter windows cost a third of the time and read about as well
(README.md has both figures); with none at all, Whisper repeats itself.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.files.config import read_yaml, write_yaml

from corpus import one_line

#: Windows that Whisper was trained on, in seconds.
OWN = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file.

    Args:
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--config",
        type=Path,
        nargs="+",
        required=True,
        help="the base's, and what is to be read in its place (with whole paths)",
    )
    parser.add_argument("--seconds", type=int, required=True, help="of a window")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    args = parser.parse_args(arguments)
    with one_line():
        config = {}
        for path in args.config:
            config.update(read_yaml(path))
        if config.get("encoder") == "whisper" and args.seconds < OWN:
            config["encoder"] = "hra_whisper"
            config["encoder_conf"] = {
                **(config.get("encoder_conf") or {}),
                "adapter": "none",
                "do_pad_trim": False,
                "pad_seconds": 1.0,
                "least_seconds": float(args.seconds),
            }
        write_yaml(args.out, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
