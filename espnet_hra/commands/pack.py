"""`espnet-hra pack`: packs of models and of tasks, and their upload to the hub."""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_hra.commands.info import add_info, info_of
from espnet_hra.errors import BaseModelError
from espnet_hra.files import archive

if TYPE_CHECKING:  # its import takes seconds, which --help need not
    from espnet_hra.packs.build import Held


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    from espnet2.utils.types import str2bool

    parser = argparse.ArgumentParser(
        prog="espnet-hra pack",
        description="Make a base pack (backbone, controller, tokens, configuration) or "
        "with --task a task pack, with a model card; with --upload, put it on the hub.",
    )
    parser.add_argument(
        "--model", help="Experiment folder of an adaptation, or a base pack"
    )
    parser.add_argument(
        "--out",
        required=True,
        help="The pack: a zip, or a folder. Without --model, a pack that exists",
    )
    parser.add_argument("--task", help="Make a task pack: of a task, 'a b c', or all")
    parser.add_argument(
        "--tasks",
        default="none",
        help="Tasks that go along in a base pack: none, all, or 'a b' (default: none)",
    )
    parser.add_argument(
        "--half",
        type=str2bool,
        default=False,
        help="Store a base pack's weights with 16 bits; it is then another base, which "
        "tasks of the unrounded one do not fit (default: false)",
    )
    parser.add_argument(
        "--whole",
        type=str2bool,
        nargs="?",
        const=True,
        default=False,
        help="Hold the weights of a Whisper as well. By default a base pack names one "
        "that everyone can have (whisper:base), with its fingerprint, and it is found "
        "or fetched where the pack is opened (default: false)",
    )
    parser.add_argument(
        "--base_tag",
        help="Tag of the base on the hub or in the model zoo; needed for task packs",
    )
    parser.add_argument("--name", help="Name in the card's title (default: of --out)")
    parser.add_argument(
        "--results", help="results.tsv (default: beside the model or one folder above)"
    )
    parser.add_argument(
        "--pretrained_model",
        help="Where the frozen base is, if not where the saved configuration says",
    )
    parser.add_argument("--upload", metavar="REPO", help="owner/name on the hub")
    parser.add_argument(
        "--private",
        type=str2bool,
        default=False,
        help="Whether a new repository is private (default: false)",
    )
    add_info(parser, "what base or task were trained on, for the card")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Make a pack, and upload it if that is asked for.

    Raises:
        UserError: What was asked for is not possible.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.model is None and args.upload is None:
        parser.error("give --model to make a pack, or --upload for one that exists")
    if args.task and args.tasks != "none":
        parser.error("--task makes a task pack, --tasks are tasks in a base pack")
    if args.task and args.whole:
        parser.error("--whole is of base packs: --task makes one that holds tasks only")
    if args.task and not args.base_tag:
        parser.error("--task needs --base_tag, by which others find the base")
    if args.model is not None:
        _make(args)
    if args.upload is not None:
        from espnet_hra.packs.hub import upload

        print(upload(args.out, args.upload, args.private))


def _make(args: argparse.Namespace) -> None:
    out = Path(args.out).expanduser()
    zipped = out.suffix == ".zip"
    if out.exists() and (out.is_file() != zipped or not zipped and any(out.iterdir())):
        raise BaseModelError(f"--out {out}: this is there already; remove it first")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=out.absolute().parent, prefix=f".{out.name}."
    ) as temporary:
        folder = Path(temporary) / "pack"
        folder.mkdir()
        held = _fill(args, folder, out.stem if zipped else out.name)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if zipped:
            archive.write_zip(folder, out)
        else:
            if out.exists():
                out.rmdir()
            os.rename(folder, out)
    said = held.summary(size) if held else ""
    if said:
        print(f"espnet-hra pack: {said}", file=sys.stderr)
    if not args.license:
        print("espnet-hra pack: no --license; others may not use it", file=sys.stderr)
    print(out)


def _fill(args: argparse.Namespace, folder: Path, name: str) -> "Held | None":
    """Make the pack in a folder, and say what a base pack holds."""
    from espnet_hra.espnet.models import find_model, known_tasks
    from espnet_hra.packs.build import base_pack, task_pack
    from espnet_hra.packs.card import About, read_results

    found = find_model(args.model, args.pretrained_model)
    info = info_of(args)
    about = About(
        name=args.name or name,
        license=info["license"],
        languages=info["languages"] or [],
        data=info["data"],
        base_tag=args.base_tag,
        results=read_results(args.results, found.model_file),
        where=args.upload or Path(args.out).name,
    )
    names = args.task or args.tasks
    if names == "all":
        tasks = list(known_tasks(found))
    elif names == "none" and not args.task:
        tasks = []
    else:
        tasks = list(dict.fromkeys(re.split(r"[\s,]+", names.strip())))
    if args.task:
        task_pack(args.model, folder, about, tasks, args.pretrained_model)
        return None
    return base_pack(
        args.model,
        folder,
        about,
        tasks,
        args.half,
        args.pretrained_model,
        args.whole,
    )
