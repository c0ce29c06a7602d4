"""What the programs of all ESPnet tasks share: training, and decoding with tasks."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from espnet2.legacy.utils.cli_utils import get_commandline_args
from espnet2.utils import config_argparse
from espnet2.utils.types import int_or_none, str2bool, str_or_none

from espnet_hra.bin.speech_alone import SpeechAlone, Told
from espnet_hra.data.rates import WITH_A_RATE, check_rates
from espnet_hra.data.requirements import requirements_from_config
from espnet_hra.errors import NoRoomError, TaskError
from espnet_hra.espnet.decoding import Decoding, opener
from espnet_hra.espnet.kinds import KINDS, Kind, check_kind
from espnet_hra.espnet.seam import standing_in
from espnet_hra.espnet.task import espnet_task

#: Arguments of our inference classes that ESPnet's programs do not know.
_OWN = (
    "task",
    "without_task",
    "ctc_greedy",
    "pretrained_model",
    "max_loaded_tasks",
    "language",
)


def training(name: str) -> Callable[..., None]:
    """The program that trains adapted models of an ESPnet task.

    Args:
        name: The ESPnet task.
    """

    def main(cmd: Sequence[str] | None = None) -> None:
        """Train; `--help` lists the options."""
        espnet_task(name).main(cmd=cmd)

    return main


def decoding(name: str) -> Callable[..., None]:
    """The program that decodes with adapted models of an ESPnet task.

    Args:
        name: The ESPnet task.
    """

    def main(cmd: Sequence[str] | None = None) -> None:
        """Decode; `--help` lists the options."""
        print(get_commandline_args(), file=sys.stderr)
        parser, own = get_parser(KINDS[name])
        args = parser.parse_args(cmd)
        extra = {name: vars(args).pop(name) for name in own}
        inference(KINDS[name], args, extra)

    return main


def _program(kind: Kind) -> Any:
    """ESPnet's module of the program that decodes."""
    return import_module(f"espnet2.bin.{kind.inference}")


def get_parser(kind: Kind) -> tuple[config_argparse.ArgumentParser, list[str]]:
    """ESPnet's options and those of tasks.

    Returns:
        The parser, and the names of the options that ESPnet's program does not have.
    """
    parser = _program(kind).get_parser()
    stock = {action.dest for action in parser._actions}
    for action in parser._actions:  # ESPnet has a bare "%" in one, which breaks --help
        if action.type is bool:  # for which "false" is true
            action.type = str2bool
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
    if "ctc_greedy" not in stock:
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
    if kind.name == "asr":
        group.add_argument(
            "--language",
            type=str_or_none,
            default=None,
            help="For Whisper, the language of all utterances (default: their task's, "
            "or else what it hears); for one per utterance, give the data stream "
            "--data_path_and_name_and_type PATH/utt2lang,utt2lang,text instead",
        )
    group.add_argument(
        "--max_loaded_tasks",
        type=int_or_none,
        default=None,
        help="Most tasks of the folder beside the model that are kept in memory "
        "(default: as many as take 256 MiB)",
    )
    ours = {action.dest for action in parser._actions} - stock
    return parser, [name for name in _OWN if name in ours]


class _Opener:
    """Stands for ESPnet's ``Speech2Text`` in its decoding loop, which only opens one.

    Args:
        kind: The ESPnet task of the loop.
        extra: Arguments of :class:`Decoding` that ESPnet's loop does not know.
        without_task: Whether the plain backbone decodes.
        recordings: Lists of what will be decoded, and their types.
    """

    def __init__(
        self,
        kind: Kind,
        extra: dict[str, Any],
        without_task: bool,
        recordings: Sequence[tuple[str, str]],
    ):
        # Imported now, while the names of ESPnet's module still mean ESPnet's classes.
        self._opens = opener(kind.name)
        self._kind, self._extra = kind, extra
        self._without_task, self._recordings = without_task, recordings
        self.opened: Any = None  # until then

    def from_pretrained(self, model_tag: str | None = None, **kwargs: Any) -> Decoding:
        """See :meth:`Decoding.from_pretrained`."""
        opened = self._opens.from_pretrained(model_tag, **{**kwargs, **self._extra})
        named = model_tag or kwargs.get(self._kind.files[0])
        check_kind(self._kind.name, vars(opened.train_args), str(named))
        if self._without_task:
            opened.set_task(None)
        rate = requirements_from_config(opened.train_args).sample_rate
        for path, form in self._recordings:
            check_rates(path, form, rate)
        self.opened = opened
        return opened


def inference(kind: Kind, args: argparse.Namespace, extra: dict[str, Any]) -> None:
    """Run ESPnet's decoding loop with our inference class.

    Args:
        kind: The ESPnet task.
        args: Options of ESPnet's program.
        extra: Further arguments of :class:`Decoding`, and `without_task`.

    Raises:
        TaskError: A task is given, and that there shall be none.
        DataError: Recordings have another rate than the model, or one does not fit into
            memory.
    """
    options = {k: v for k, v in vars(args).items() if k != "config"}
    extra = dict(extra)
    without_task = extra.pop("without_task", False)
    if without_task and extra.get("task") is not None:
        raise TaskError(
            f"--task {extra['task']} and --without_task true exclude each other"
        )
    if "Speech2TextGreedySearch" in kind.opened_by and options["beam_size"] == 1:
        extra["ctc_greedy"] = True  # as ESPnet's program, which takes that class then
    streams = options.get("data_path_and_name_and_type") or ()
    recordings = [(path, form) for path, _, form in streams if form in WITH_A_RATE]
    stand_in = _Opener(kind, extra, without_task, recordings)
    others: dict[str, Any] = dict.fromkeys(kind.opened_by, stand_in)
    program = _program(kind)
    task: Any = espnet_task(kind.name)
    if kind.speech_alone:
        task = SpeechAlone(task, lambda: stand_in.opened)
    told = Told(task)
    with standing_in(program, **{kind.task: told}, **others):
        try:
            program.inference(**options)
        except NoRoomError as e:
            raise e.of(told.keys) from e
