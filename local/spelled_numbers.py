#!/usr/bin/env python3
"""Tell the tasks for which Whisper should write no digits, as a list in JSON.

Whisper writes "4" where people who transcribe write "four". Where no training
transcript of a corpus has a digit, none is written for its tasks. The whole corpus is
asked and not each task, because twelve sentences can lack digits by chance.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.data.lists import read_entries

from corpus import one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tasks.

    Args:
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="of the training")
    parser.add_argument("--utt2task", type=Path, required=True, help="of the training")
    args = parser.parse_args(arguments)
    with one_line():
        texts = read_entries(args.text).values()
        spelled = not any(map(str.isdigit, "".join(texts)))
        tasks = sorted(set(read_entries(args.utt2task).values())) if spelled else []
        print(json.dumps(tasks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
