#!/usr/bin/env python3
"""Write ESPnet's list of character tokens: every character of some texts.

The most frequent characters come first; ESPnet's special tokens stand around them.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from espnet_hra.data.lists import read_entries, write_list


def characters(texts: Iterable[str]) -> list[str]:
    """The token list of texts.

    Args:
        texts: Transcripts.

    Returns:
        All tokens: blank first, the end of a sentence last.
    """
    counts = Counter(char for text in texts for char in " ".join(text.split()))
    counts[" "] += 1  # also where no text has two words
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    names = ["<space>" if char == " " else char for char, _ in ordered]
    return ["<blank>", "<unk>", *names, "<sos/eos>"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a token list.

    Args:
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Write a list of character tokens.")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--token_list", type=Path, required=True)
    args = parser.parse_args(arguments)
    texts: list[str] = []
    try:
        for path in args.text:
            texts += read_entries(path).values()
        tokens = characters(texts)
        write_list(args.token_list, tokens)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(tokens)} tokens: {args.token_list}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
