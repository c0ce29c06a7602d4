#!/usr/bin/env python3
"""Fold decoded texts to the characters of the transcripts, as references are.

Whisper writes capitals and punctuation. Where the transcripts of a corpus have none,
these are no errors: the case is folded and punctuation becomes spaces, for the frozen
model and for adapted ones alike. Digits and other letters stay, and count as errors.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.data.lists import read_entries, write_list

from clean_text import Folding
from corpus import one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Fold texts in place.

    Args:
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--like", type=Path, required=True, help="a list of transcripts"
    )
    parser.add_argument(
        "--labels", nargs="*", default=[], help="tasks whose texts are labels"
    )
    parser.add_argument(
        "--utt2task",
        type=Path,
        nargs="*",
        default=[],
        help="lists of tasks: what is of one with labels says nothing, and stays",
    )
    parser.add_argument("texts", type=Path, nargs="+", help="lists of decoded texts")
    args = parser.parse_args(arguments)
    with one_line():
        told = {
            utt
            for path in args.utt2task
            for utt, task in read_entries(path).items()
            if task in args.labels
        }
        like = (
            text for utt, text in read_entries(args.like).items() if utt not in told
        )
        folding = Folding(frozenset("".join(like)) - {" "})
        for path in args.texts:
            lines = [
                f"{utt} {text if utt in told else folding(text)}"
                for utt, text in read_entries(path).items()
            ]
            write_list(path, [line.rstrip() for line in lines])
    return 0


if __name__ == "__main__":
    sys.exit(main())
