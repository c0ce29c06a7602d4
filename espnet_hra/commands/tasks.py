"""`espnet-hra tasks`: the tasks of a model on disk.

A model's tasks are those in its checkpoint and those in the folder ``tasks`` beside it.
All changes go to that folder (see :mod:`espnet_hra.tasks.store`); checkpoints stay as
they are. What needs the weights (``add``, ``import``, ``verify``, and ``export`` of a
task in the checkpoint) builds the model, which takes some seconds; ``list`` and
``remove`` do not.
"""

import argparse
import contextlib
import datetime
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet_hra.commands.info import add_info, info_of
from espnet_hra.data.checks import add_skip_bad
from espnet_hra.errors import BaseModelError, TaskError
from espnet_hra.files import atomic
from espnet_hra.files.config import read_yaml
from espnet_hra.names import check_task_name, listing
from espnet_hra.tasks import file as taskfile


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra tasks",
        description="List, add, remove, export, import and verify a model's tasks.",
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
    return _COMMANDS[args.command](args) or 0


# ---------------------------------------------------------------------------- looking


def _list(args: argparse.Namespace) -> None:
    from espnet_hra.espnet.models import checkpoint_tasks, find_model

    found = find_model(args.model)
    stored = found.store.names
    rows: list[dict[str, Any]] = [
        {"task": name, "where": "checkpoint"}
        for name in checkpoint_tasks(found)
        if name not in stored
    ]
    for name in stored:
        row: dict[str, Any] = {"task": name, "where": "file"}
        path = found.store.folder / f"{name}{taskfile.SUFFIX}"
        if not path.exists():
            row["where"] = "hub"
        else:
            try:
                record = taskfile.describe(path)
                row["bytes"] = path.stat().st_size
                row.update({k: record[k] for k in taskfile.INFO if k in record})
            except TaskError as e:
                row["problem"] = str(e)
        rows.append(row)
    rows.sort(key=lambda row: row["task"])
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print("\t".join([row["task"], row["where"], *_words(row)]).rstrip())
    if not rows:
        print(f"{args.model} has no tasks", file=sys.stderr)


def _words(row: dict[str, Any]) -> list[str]:
    """What a line of the list says about a task."""
    words = [f"{row['bytes']:,} bytes"] if "bytes" in row else []
    words += [str(row[key]) for key in ("date", "license") if key in row]
    words += [" ".join(map(str, row.get("languages", [])))]
    for score in row.get("scores", []):
        if isinstance(score, dict):
            words.append(f"{score.get('split')} CER {score.get('cer')}")
    return [word for word in words if word] + [row[k] for k in ("problem",) if k in row]


def _verify(args: argparse.Namespace) -> int:
    if args.model is None:
        checks = [(name, lambda n=name: taskfile.read(n)) for name in args.names]
    else:
        checks = _checks(args)
    failed = 0
    for name, check in checks:
        try:
            check()
            print(f"{name}\tfine")
        except TaskError as e:
            failed += 1
            print(f"{name}\t{e}")
    if failed:
        print(f"espnet-hra tasks: {failed} of {len(checks)} failed", file=sys.stderr)
    return int(failed > 0)


def _checks(args: argparse.Namespace) -> list[tuple[str, Any]]:
    from espnet_hra.espnet.building import build
    from espnet_hra.espnet.models import checkpoint_tasks, find_model
    from espnet_hra.tasks.store import check_name

    found = find_model(args.model, args.pretrained_model)
    encoder = build(found, args.pretrained_model)[0].encoder
    inside = [n for n in checkpoint_tasks(found) if n not in found.store.names]

    def check(name: str) -> None:
        if name in inside:
            # The checkpoint itself was loaded strictly; what is left are the values.
            tensors = encoder.adapter.heads.tensors(name)
            taskfile.pack(name, tensors, encoder.identity())
        elif name in found.store:
            path = found.store.path(name)
            check_name(path, name, encoder.read_task(path).name)
        elif Path(name).exists():
            encoder.read_task(name)
        else:
            known = sorted({*inside, *found.store.names})
            raise TaskError(f"unknown task {name!r}; known tasks: {listing(known)}")

    names = args.names or sorted({*inside, *found.store.names})
    return [(name, lambda n=name: check(n)) for name in names]


# --------------------------------------------------------------------------- changing


def _writable(args: argparse.Namespace) -> Any:
    """The model, whose folder must be one that tasks can be put into."""
    from espnet_hra.espnet.models import find_model

    path = Path(args.model).expanduser()
    if not path.is_dir() and path.suffix != ".pth":
        raise BaseModelError(
            f"{args.model}: tasks are kept in a folder beside the model; unpack or "
            "download it into a folder first, and give that"
        )
    return find_model(args.model, args.pretrained_model)


def _check_free(found: Any, name: str, replace: bool) -> None:
    from espnet_hra.espnet.models import checkpoint_tasks

    if not replace and (name in found.store or name in checkpoint_tasks(found)):
        raise TaskError(
            f"task {name!r} exists already in {found.source}: remove it first, give "
            "--replace, or choose another name"
        )


def _remove(args: argparse.Namespace) -> None:
    from espnet_hra.espnet.models import checkpoint_tasks

    found = _writable(args)
    inside = checkpoint_tasks(found)
    for name in args.names:
        check_task_name(name)
        if name not in inside and name not in found.store:
            known = sorted({*inside, *found.store.names})
            raise TaskError(f"unknown task {name!r}; known tasks: {listing(known)}")
        found.store.remove(name, in_checkpoint=name in inside)
        print(f"removed {name}")


def _export(args: argparse.Namespace) -> None:
    from espnet_hra.espnet.models import find_model
    from espnet_hra.tasks.store import check_name

    found = find_model(args.model, args.pretrained_model)
    out = Path(args.out or f"{args.name}{taskfile.SUFFIX}")
    if out.is_dir():
        out = out / f"{args.name}{taskfile.SUFFIX}"
    info = taskfile.check_info(info_of(args))
    if args.name in found.store:
        path = found.store.path(args.name)
        file = taskfile.read(path)
        check_name(path, args.name, file.name)
        content = path.read_bytes()
        if info:
            content = taskfile.pack(
                file.name, file.tensors, file.record, {**file.info, **info}
            )
    else:
        content = content_of(found, args.name, info, args.pretrained_model)
    if not out.absolute().parent.is_dir():
        raise TaskError(f"{out}: there is no folder {out.absolute().parent}")
    atomic.write(out, content)
    print(f"{out}: {len(content):,} bytes")


def content_of(
    found: Any, name: str, info: dict[str, Any], base: str | None = None
) -> bytes:
    """A task of a checkpoint as a file.

    Args:
        found: The model.
        name: The task.
        info: What is said about it; the date is the checkpoint's unless it is given.
        base: Where the frozen base is, if not where the configuration says.

    Raises:
        TaskError: There is no such task.
    """
    from espnet_hra.espnet.building import build
    from espnet_hra.espnet.models import checkpoint_tasks

    if name not in checkpoint_tasks(found):
        known = sorted({*checkpoint_tasks(found), *found.store.names})
        raise TaskError(f"unknown task {name!r}; known tasks: {listing(known)}")
    encoder = build(found, base)[0].encoder
    changed = found.model_file.stat().st_mtime
    date = datetime.datetime.fromtimestamp(changed, datetime.UTC).date().isoformat()
    return taskfile.pack(
        name,
        encoder.adapter.heads.tensors(name),
        encoder.identity(),
        {"date": date, **info},
    )


def _import(args: argparse.Namespace) -> None:
    from espnet_hra.espnet.building import build
    from espnet_hra.espnet.models import find_tasks

    found = _writable(args)
    files = [path for source in args.sources for path in find_tasks(source)]
    encoder = build(found, args.pretrained_model)[0].encoder
    ready: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in files:  # all are checked before the first is taken
            # A copy: what is checked is what is taken.
            copy = Path(folder) / path.name
            try:
                copy.write_bytes(path.read_bytes())
            except OSError as e:
                raise TaskError(f"{path}: cannot be read: {e}") from e
            name = encoder.read_task(copy, said=path).name
            _check_free(found, name, args.replace)
            if name in ready:
                raise TaskError(f"{path}: a second file with the task {name!r}")
            ready[name] = copy.read_bytes()
    for name, content in ready.items():
        path = found.store.put(content, name, args.replace)
        print(f"{name}: {path}")


def _add(args: argparse.Namespace) -> None:
    name = check_task_name(args.name)
    found = _writable(args)
    _check_free(found, name, args.replace)
    with contextlib.ExitStack() as stack:
        if args.workdir is None:
            temporary = tempfile.TemporaryDirectory(prefix=f"espnet_hra.{name}.")
            work = Path(stack.enter_context(temporary))
        else:
            work = Path(args.workdir)
            if work.exists() and any(work.iterdir()):
                raise TaskError(f"--workdir {work}: this folder is not empty")
        from espnet_hra.adapt.single import train_task

        content = train_task(
            name,
            Path(args.data),
            found,
            work,
            options=_options(args),
            info=info_of(args),
            base=args.pretrained_model,
            ngpu=args.ngpu,
            skip_bad=args.skip_bad,
        )
    path = found.store.put(content, name, args.replace)
    print(f"{name}: {path}, {len(content):,} bytes")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Training options of the command line."""
    config = read_yaml(Path(args.config)) if args.config else {}
    for key in ("max_epoch", "seed"):
        if getattr(args, key) is not None:
            config[key] = getattr(args, key)
    return config


_COMMANDS = {
    "list": _list,
    "add": _add,
    "remove": _remove,
    "export": _export,
    "import": _import,
    "verify": _verify,
}
