#!/usr/bin/env python3
"""Tell the language of each task, for a multilingual Whisper.

It is taken from ``--lang``, or else from lists ``utt2lang`` in Kaldi's form, or else it
is what Whisper hears in some of the task's training utterances. What is written: a
mapping of tasks in JSON, for the training, and an ``utt2lang`` of what is decoded.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from espnet_hra.data.lists import read_entries, write_lists
from espnet_hra.errors import ConfigError
from espnet_hra.names import listing

from corpus import CorpusError, one_line

#: Most utterances of a task that are heard for its language, and how many seconds of
#: speech are enough: what Whisper hears at once.
MOST, ENOUGH = 20, 25

#: Languages of the Whisper that knows most; a smaller one refuses what it lacks later.
MANY = 100

#: Tells the languages of tasks.
Hear = Callable[[Sequence[str]], Mapping[str, str]]


def languages_of(
    tasks: Mapping[str, str],
    spoken: Mapping[str, str],
    lang: str,
    hear: Hear | None = None,
) -> dict[str, str]:
    """The language of each task.

    Args:
        tasks: The task of each utterance.
        spoken: The language of utterances, as far as it is known.
        lang: The language of all of them; empty if it is not told.
        hear: Tells the languages of tasks that nobody tells.

    Raises:
        CorpusError: A task has no language, or several.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for utterance, task in tasks.items():
        found[task].update({lang or spoken.get(utterance, "")} - {""})
    silent = [task for task in sorted(set(tasks.values())) if not found[task]]
    if silent and hear is not None:
        for task, code in hear(silent).items():
            found[task].add(code)
    elif silent:
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


def check_language(task: str, code: str) -> None:
    """Refuse a language that Whisper has no token for.

    Raises:
        CorpusError: It has none.
    """
    from espnet_hra.whisper.tokens import code_of  # openai-whisper takes seconds

    try:
        code_of(code, MANY)
    except ConfigError as error:
        raise CorpusError(
            f"the task {task}: {error} (in utt2lang, or --lang)"
        ) from error


class Listener:
    """Hears the languages of tasks, and keeps what it has heard.

    Args:
        config: The configuration of a Whisper.
        model: Its checkpoint.
        folder: Training data, with ``wav.scp`` and ``utt2task``.
        kept: A file for what has been heard.
    """

    def __init__(self, config: Path, model: Path, folder: Path, kept: Path):
        self._config, self._model = config, model
        self._folder, self._kept = folder, kept

    def __call__(self, tasks: Sequence[str]) -> dict[str, str]:
        """The language of each of the tasks."""
        known: dict[str, str] = {}
        listed = self._folder / "utt2task"
        if self._kept.is_file() and (
            self._kept.stat().st_mtime >= listed.stat().st_mtime
        ):
            known = json.loads(self._kept.read_text(encoding="utf-8"))
        lacking = [task for task in tasks if task not in known]
        if lacking:
            known.update(self._hear(lacking))
            self._kept.write_text(json.dumps(known) + "\n", encoding="utf-8")
        return {task: known[task] for task in tasks}

    def _hear(self, tasks: Sequence[str]) -> dict[str, str]:
        import numpy as np

        from espnet_hra import Speech2Text
        from espnet_hra.data.audio import SAMPLE_RATE, read_audio, resample

        speech2text = Speech2Text(self._config, self._model)
        own: dict[str, list[str]] = defaultdict(list)
        for utterance, task in read_entries(self._folder / "utt2task").items():
            own[task].append(utterance)
        paths = read_entries(self._folder / "wav.scp")
        found = {}
        for task in tasks:
            # One after the other: in a word alone Whisper hears any language. Evenly
            # over the list, so not all of one session.
            chosen = own[task][:: max(1, len(own[task]) // MOST)][:MOST]
            waves, samples = [], 0
            for utterance in chosen:
                waves.append(resample(*read_audio(paths[utterance])))
                samples += len(waves[-1])
                if samples > ENOUGH * SAMPLE_RATE:
                    break
            (found[task],) = speech2text.hear_languages([np.concatenate(waves)])
            print(
                f"{task}: nobody tells its language; Whisper hears {found[task]} in "
                f"{len(waves)} utterances (utt2lang or --lang tell another)"
            )
        return found


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
    parser.add_argument(
        "--labels", nargs="*", default=[], help="tasks that tell labels, no texts"
    )
    parser.add_argument("--lang", default="", help="the language of all utterances")
    parser.add_argument(
        "--eval", type=Path, required=True, help="the folder of what is decoded"
    )
    parser.add_argument(
        "--model",
        type=Path,
        nargs=2,
        metavar=("CONFIG", "CHECKPOINT"),
        help="the Whisper that hears the languages which nobody tells",
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
        hear = None
        if args.model:
            kept = args.out.with_name("heard_languages.json")
            hear = Listener(*args.model, args.utt2task.parent, kept)
        spoken_of = {
            utt: task
            for utt, task in read_entries(args.utt2task).items()
            if task not in args.labels
        }
        languages = languages_of(spoken_of, spoken, args.lang, hear)
        content = json.dumps(languages) + "\n"
        if not args.out.is_file() or args.out.read_text(encoding="utf-8") != content:
            for task, code in languages.items():
                check_language(task, code)
        tasks = read_entries(args.eval / "utt2task")
        lines = [
            f"{utt} {languages[task]}"
            for utt, task in tasks.items()
            if task not in args.labels
        ]
        write_lists(args.eval, {"utt2lang": lines})
        args.out.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
