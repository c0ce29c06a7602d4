"""What the programs that align texts share: ESPnet's options, and those of tasks."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from espnet2.legacy.utils.cli_utils import get_commandline_args
from espnet2.utils import config_argparse
from espnet2.utils.types import float_or_none, str2bool, str_or_none

from espnet_hra.data.audio import read_audio
from espnet_hra.data.lists import read_entries
from espnet_hra.errors import ConfigError, DataError, TaskError
from espnet_hra.espnet.kinds import KINDS, Kind, check_kind
from espnet_hra.files import atomic
from espnet_hra.names import listing


def aligning(name: str) -> Callable[..., None]:
    """The program that aligns texts with adapted models of an ESPnet task.

    Args:
        name: The ESPnet task.
    """

    def main(cmd: Sequence[str] | None = None) -> None:
        """Align; `--help` lists the options."""
        kind = KINDS[name]
        # First: it says how to get its package, which ESPnet's parser needs as well.
        module, _, opens = kind.aligns.partition(":")
        opener = getattr(import_module(module), opens)
        parser = get_parser(kind)
        args = parser.parse_args(cmd)
        print(get_commandline_args(), file=sys.stderr)
        align(kind, opener, args)

    return main


def get_parser(kind: Kind) -> config_argparse.ArgumentParser:
    """ESPnet's options and those of tasks.

    Args:
        kind: The ESPnet task.
    """
    parser = import_module(f"espnet2.bin.{kind.align}").get_parser()
    actions = {action.dest: action for action in parser._actions}
    for name in kind.files:
        actions[name].required = False  # there is --model_tag
    actions["text"].type = actions["output"].type = str
    actions["fs"].default = None
    actions["fs"].help = "Not needed: files say their rate, and the model has its own"
    for name in _TEXT_OPTIONS:
        actions[name].help = "Refused: ESPnet's program does not read it"
    group = parser.add_argument_group("Adaptation related")
    group.add_argument(
        "--model_tag",
        type=str_or_none,
        help="Experiment folder, pack or tag of the model, in place of the two files",
    )
    group.add_argument(
        "--task", type=str_or_none, help="The task of the recording: a name or a file"
    )
    group.add_argument(
        "--utt2task",
        type=str_or_none,
        help="A list with the task of the recording, or of each of its utterances "
        "(the same for all), instead of --task",
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
        help="Where the frozen base is, if not where the saved configuration says",
    )
    if kind.prefix == "s2t":
        group.add_argument("--lang_sym", default="<eng>", help="The language's tag")
        group.add_argument(
            "--task_sym", default="<asr>", help="The tag of what is done"
        )
        group.add_argument(
            "--context_len_in_secs",
            type=float_or_none,
            help="What is cut off at either side of a window of the model (default: 4)",
        )
    return parser


#: ESPnet's program takes these and lets them fall.
_TEXT_OPTIONS = ("token_type", "bpemodel")
#: Options that are no arguments of ESPnet's class.
_OTHERS = (
    *("config", "log_level", "audio", "text", "output"),
    *("print_utt_text", "print_utt_score"),
    *("model_tag", "task", "utt2task", "without_task", "fs", *_TEXT_OPTIONS),
)


def align(kind: Kind, opener: Any, args: argparse.Namespace) -> None:
    """Align the lines of a text file with a recording, and write the segments.

    Args:
        kind: The ESPnet task.
        opener: Our class that aligns with its models.
        args: The options.

    Raises:
        UserError: Model, task, text or recording are not as they must be.
    """
    logging.basicConfig(
        level=args.log_level,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    options = vars(args)
    for name in _TEXT_OPTIONS:
        if options[name] is not None:
            raise ConfigError(
                f"--{name} {options[name]}: the model's configuration says it, here as "
                "in ESPnet's program; leave it out"
            )
    if args.model_tag is None and options[kind.files[0]] is None:
        raise ConfigError(
            f"no model is given: give --{kind.files[0]} and --{kind.files[1]}, or "
            "--model_tag"
        )
    text = _read_text(args.text)
    task = _task_of(args, text)
    samples, rate = read_audio(args.audio)
    if args.fs not in (None, rate):
        raise DataError(f"--fs {args.fs}: {args.audio} has {rate:,} Hz; leave --fs out")
    given = {k: v for k, v in options.items() if k not in _OTHERS and v is not None}
    aligner = opener.from_pretrained(args.model_tag, task=task, **given)
    named = args.model_tag or options[kind.files[0]]
    check_kind(kind.name, vars(aligner.train_args), str(named))
    if args.without_task and aligner.tasks:
        aligner.set_task(None)
    result = aligner(samples, text, rate, args.audio.stem)
    result.print_utterance_text = args.print_utt_text
    result.print_confidence_score = args.print_utt_score
    if args.output == "-":
        sys.stdout.write(str(result))
        return
    try:
        atomic.write(args.output, str(result))
    except OSError as e:
        raise DataError(
            f"--output {args.output}: cannot be written ({e.strerror}): give a file in "
            "a folder that is there"
        ) from e


def _read_text(path: str) -> str:
    """The text; that of the standard input for a dash."""
    try:
        if path == "-":
            return sys.stdin.read()
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as e:
        raise DataError(f"--text {path}: cannot be read ({e.strerror})") from e
    except UnicodeDecodeError as e:
        raise DataError(
            f"--text {path}: is not UTF-8 ({e}): convert it with iconv"
        ) from e


def _task_of(args: argparse.Namespace, text: str) -> str | None:
    """The task that the options name.

    Raises:
        TaskError: They name two, or several for one recording.
        DataError: A list lacks an utterance.
    """
    named = {
        "--task": args.task is not None,
        "--utt2task": args.utt2task is not None,
        "--without_task true": args.without_task,
    }
    both = [name for name, given in named.items() if given]
    if len(both) > 1:
        raise TaskError(f"{both[0]} and {both[1]} exclude each other: give one")
    if args.utt2task is None:
        return args.task
    entries, recording = read_entries(args.utt2task), args.audio.stem
    if recording in entries:
        return entries[recording]
    utterances = [line.split(None, 1)[0] for line in text.splitlines() if line.strip()]
    if not args.kaldi_style_text:
        utterances = [recording]  # the lines have no names
    lacking = [name for name in utterances if name not in entries]
    if lacking:
        raise DataError(
            f"{args.utt2task}: has neither {recording} nor {listing(lacking)}: add a "
            "line with the recording's task, or give --task"
        )
    tasks = tuple(dict.fromkeys(entries[name] for name in utterances))
    if len(tasks) > 1:
        raise TaskError(
            f"{args.utt2task}: the utterances of {recording} have the tasks "
            f"{listing(tasks)}, and a recording is aligned with one: choose it with "
            "--task"
        )
    return tasks[0] if tasks else None
