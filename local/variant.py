#!/usr/bin/env python3
"""Write a variant of a training configuration as a file of its own."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.files.config import write_yaml
from espnet_hra.files.variants import VARIANTS, read_config

from corpus import one_line


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--conf", type=Path, required=True, help=f"the folder with {VARIANTS}"
    )
    parser.add_argument("--name", required=True, help="the variant")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file.

    Args:
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    args = get_parser().parse_args(arguments)
    with one_line():
        config = read_config(args.conf, args.name)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_yaml(args.out, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
