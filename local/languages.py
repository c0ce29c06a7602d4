#!/usr/bin/env python3
"""Tell the language of each task, for a multilingual Whisper.

It is taken from ``--lang``, or else from lists ``utt2lang`` in Kaldi's form. What is
written: a mapping of tasks in JSON, for the training, and an ``utt2lang`` of what is
decoded.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_hra.data.lists import read_entries, write_lists
from espnet_hra.names import listing

from corpus import CorpusError, one_line


def languages_of(
    tasks: Mapping[str, str], spoken: Mapping[str, str], lang: str
) -> dict[str, str]:
    """The language of each task.

    Args:
        tasks: The task of each utterance.
        spoken: The language of utterances, as far as it is known.
        lang: The language of all of them; empty if it is not told.

    Raises:
        CorpusError: A task has no language, or several.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for utterance, task in tasks.items():
        found[task].update({lang or spoken.get(utterance, "")} - {""})
    silent = [task for task in sorted(set(tasks.values())) if not found[task]]
    if silent:
        raise CorpusError(
            f"Whisper must be told the language of {listing(silent)}: write utt2lang "
            "beside utt2spk (UTTERANCE CODE), or give --lang CODE for all"
        )
    mixed = {task: codes for task, codes in found.items() if len(codes) > 1}
    if mixed:
        task, codes = sorted(mixed.items())[0]
        raise CorpusError(
            f"the task {task} has several languages ({', '.join(sorted(codes))}): make "
            "a task of each in utt2task, or correct utt2lang"
        )
    return {task: codes.pop() for task, codes in sorted(found.items())}


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--utt2task", type=Path, required=True, help="of the training")
    parser.add_argument(
        "--utt2lang",
        type=Path,
        nargs="*",
        default=[],
        help="lists of languages; those that are not there are left out",
    )
    parser.add_argument("--lang", default="", help="the language of all utterances")
    parser.add_argument(
        "--eval", type=Path, required=True, help="the folder of what is decoded"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="where to write the languages of tasks"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the languages.

    Args:
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    args = get_parser().parse_args(arguments)
    with one_line():
        spoken: dict[str, str] = {}
        for path in args.utt2lang:
            if path.is_file():
                spoken.update(read_entries(path))
        languages = languages_of(read_entries(args.utt2task), spoken, args.lang)
        tasks = read_entries(args.eval / "utt2task")
        lines = [f"{utt} {languages[task]}" for utt, task in sorted(tasks.items())]
        write_lists(args.eval, {"utt2lang": lines})
        args.out.write_text(json.dumps(languages) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
