"""What changes the tasks of a model: ``add``, ``import``, ``remove``, ``voice``."""

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any

from espnet_hra.commands.info import info_of
from espnet_hra.errors import BaseModelError, TaskError
from espnet_hra.espnet.models import (
    Found,
    checkpoint_tasks,
    find_model,
    find_tasks,
    unknown_task,
)
from espnet_hra.files import atomic
from espnet_hra.files.config import read_yaml
from espnet_hra.names import check_task_name


def _writable(args: argparse.Namespace) -> Found:
    """The model, whose folder must be one that tasks can be put into."""
    path = Path(args.model).expanduser()
    if not path.is_dir() and path.suffix != ".pth":
        raise BaseModelError(
            f"{args.model}: tasks are kept in a folder beside the model; unpack or "
            "download it into a folder first, and give that"
        )
    return find_model(args.model, args.pretrained_model)


def _check_free(found: Found, name: str, replace: bool) -> None:
    if not replace and (name in found.store or name in checkpoint_tasks(found)):
        raise TaskError(
            f"task {name!r} exists already in {found.source}: remove it first, give "
            "--replace, or choose another name"
        )


def run_remove(args: argparse.Namespace) -> None:
    """Forget tasks."""
    found = _writable(args)
    inside = checkpoint_tasks(found)
    for name in args.names:
        check_task_name(name)
        if name not in inside and name not in found.store:
            raise unknown_task(found, name)
        found.store.remove(name, in_checkpoint=name in inside)
        print(f"removed {name}")


def run_import(args: argparse.Namespace) -> None:
    """Add tasks from files or task packs."""
    from espnet_hra.espnet.building import build

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


def run_add(args: argparse.Namespace) -> None:
    """Train a new task."""
    name = check_task_name(args.name)
    out = None if args.out is None else Path(args.out)
    if out is None:
        found = _writable(args)
        _check_free(found, name, args.replace)
    else:
        found = find_model(args.model, args.pretrained_model)
        if not out.absolute().parent.is_dir():
            raise TaskError(f"{out}: there is no folder {out.absolute().parent}")

    # After these checks: ESPnet's tasks take seconds to import.
    from espnet_hra.adapt.single import train_task

    with contextlib.ExitStack() as stack:
        if args.workdir is None:
            temporary = tempfile.TemporaryDirectory(prefix=f"espnet_hra.{name}.")
            work = Path(stack.enter_context(temporary))
        else:
            work = Path(args.workdir)
            if work.exists() and any(work.iterdir()):
                raise TaskError(f"--workdir {work}: this folder is not empty")
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
    if out is None:
        out = found.store.put(content, name, args.replace)
    else:
        atomic.write(out, content)
    print(f"{name}: {out}, {len(content):,} bytes")


def run_voice(args: argparse.Namespace) -> None:
    """Note how tasks sound: in their files, or beside the checkpoint."""
    from espnet_hra.espnet import voices
    from espnet_hra.espnet.inference import Speech2Text
    from espnet_hra.tasks import file as taskfile

    found = _writable(args)
    speech2text: Any = Speech2Text.from_pretrained(
        args.model, pretrained_model=args.pretrained_model, ctc_greedy="auto"
    )
    measured = voices.of_folder(speech2text, Path(args.data))
    inside = {n: v for n, v in measured.items() if n not in found.store}
    if inside:
        folder = found.model_file.parent
        voices.write(folder, {**voices.read(folder), **inside})
    for name, voice in measured.items():
        if name not in inside:
            file = taskfile.read(found.store.path(name))
            info = {**file.info, "voice": str(voice)}
            content = taskfile.pack(file.name, file.tensors, file.record, info)
            found.store.put(content, name, replace=True)
        seconds = voice.windows / 100
        print(f"{name}: {seconds:.0f} seconds of speech were listened to")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Training options of the command line."""
    config = read_yaml(Path(args.config)) if args.config else {}
    for key in ("max_epoch", "seed"):
        if getattr(args, key) is not None:
            config[key] = getattr(args, key)
    return config
