"""`espnet-hra tasks`: the tasks of a model on disk.

A model's tasks are those in its checkpoint and those in the folder ``tasks`` beside it.
All changes go to that folder (see :mod:`espnet_hra.tasks.store`); checkpoints stay as
they are. What needs the weights (``add``, ``import``, ``verify``, and ``export`` of a
task in the checkpoint) builds the model, which takes some seconds; ``list`` and
``remove`` do not.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from espnet_hra.commands.info import add_info
from espnet_hra.data.checks import add_skip_bad

#: Which module of this package has the function of a command, ``run_COMMAND``.
_MODULES = {
    "list": "looking",
    "add": "changing",
    "remove": "changing",
    "export": "looking",
    "import": "changing",
    "verify": "looking",
    "voice": "changing",
}


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra tasks",
        description="List, add, remove, export, import and verify a model's tasks, and "
        "note how they sound.",
        epilog="espnet-hra tasks COMMAND --help lists the options of each.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, **kwargs: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, **kwargs)
        sub.add_argument(
            "--model",
            required=name != "verify",
            help="Experiment folder of an adaptation, or an unpacked base pack (to "
            "look at only: also its zip, tag, or repository on the hub)",
        )
        sub.add_argument(
            "--pretrained_model",
            help="Where the frozen base is, if not where the saved configuration says",
        )
        return sub

    sub = command("list", "the tasks, one a line")
    sub.add_argument("--json", action="store_true", help="Print JSON, not a table")

    sub = command("add", "train a new task; the controller and all others stay")
    sub.add_argument("name", metavar="NAME", help="the new task")
    sub.add_argument(
        "data",
        metavar="DIR",
        help="Kaldi-style folder: DIR/{train,dev}/{wav.scp,text}, or "
        "DIR/{wav.scp,text} of which every tenth utterance is held out",
    )
    sub.add_argument("--replace", action="store_true", help="A task of this name goes")
    sub.add_argument("--max_epoch", type=int, help="Epochs (default: the model's)")
    sub.add_argument("--seed", type=int, help="(default: the model's)")
    sub.add_argument(
        "--config", help="YAML with ESPnet's training options (default: the model's)"
    )
    sub.add_argument("--ngpu", type=int, default=0, help="(default: 0)")
    sub.add_argument("--workdir", help="Keep the training here (default: thrown away)")
    sub.add_argument(
        "--out", metavar="FILE", help="Write the task here, and leave the model alone"
    )
    add_skip_bad(sub)
    add_info(sub, "what the task was trained on (default: the folder and its size)")

    sub = command("remove", "forget tasks")
    sub.add_argument("names", nargs="+", metavar="NAME")

    sub = command("export", "write a task to a file of its own")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--out", help="The file (default: NAME.safetensors here)")
    add_info(sub, "what the task was trained on")

    sub = command("import", "add tasks from files or task packs, verified")
    sub.add_argument(
        "sources",
        nargs="+",
        metavar="FILE",
        help="task file, or task pack (folder, zip, repository on the hub)",
    )
    sub.add_argument("--replace", action="store_true", help="Tasks of these names go")

    sub = command("verify", "check tasks: damage, and whether they fit the model")
    sub.add_argument(
        "names",
        nargs="*",
        metavar="NAME|FILE",
        help="tasks of the model (default: all), or files, with or without --model",
    )

    sub = command("voice", "note how tasks sound, for a server that is to tell them")
    sub.add_argument(
        "data",
        metavar="DIR",
        help="Kaldi-style folder with wav.scp and utt2task of what the tasks were "
        "trained on. Tasks that are trained now have it noted already",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 1 if ``verify`` has found something.

    Raises:
        UserError: What was asked for is not possible.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.command == "verify" and not (args.model or args.names):
        parser.error("verify: give --model, or files")
    module = import_module(f"{__name__}.{_MODULES[args.command]}")
    return getattr(module, f"run_{args.command}")(args) or 0
