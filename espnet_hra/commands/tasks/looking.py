"""What leaves a model as it is: ``list``, ``export`` and ``verify``."""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from espnet_hra.commands.info import info_of
from espnet_hra.errors import TaskError
from espnet_hra.espnet.models import (
    Found,
    checkpoint_tasks,
    find_model,
    known_tasks,
    unknown_task,
)
from espnet_hra.files import atomic
from espnet_hra.names import listing
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.config import labels_by_task
from espnet_hra.tasks.store import check_name


def run_list(args: argparse.Namespace) -> None:
    """Print the tasks of a model."""
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
                row["checksum"] = record.get("checksum")
                said = {k: record[k] for k in taskfile.INFO if k in record}
                said.pop("voice", None)  # numbers that nobody can read
                row.update(said)
                if "labels" in record:
                    row["labels"] = record["labels"]
            except TaskError as e:
                row["problem"] = str(e)
        rows.append(row)
    told = labels_by_task(found.written.get("encoder_conf"))
    for row in rows:
        if row["where"] == "checkpoint" and row["task"] in told:
            row["labels"] = list(told[row["task"]])
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
    if row.get("labels"):
        words.append(f"labels {listing(row['labels'])}")
    return [word for word in words if word] + [row[k] for k in ("problem",) if k in row]


def run_export(args: argparse.Namespace) -> None:
    """Write a task to a file of its own."""
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
            said = {**file.info, **info}
            content = taskfile.pack(
                file.name, file.tensors, file.record, said, file.labels
            )
    elif args.name in checkpoint_tasks(found):
        encoder = _encoder(found, args)
        tensors = encoder.adapter.heads.tensors(args.name)
        info.setdefault("date", found.date)
        info.setdefault("languages", found.languages(args.name))
        info = {**encoder.task_info(args.name), **info}
        labels = encoder.labels_of(args.name)
        content = taskfile.pack(args.name, tensors, encoder.identity(), info, labels)
    else:
        raise unknown_task(found, args.name)
    if not out.absolute().parent.is_dir():
        raise TaskError(f"{out}: there is no folder {out.absolute().parent}")
    atomic.write(out, content)
    print(f"{out}: {len(content):,} bytes")


def run_verify(args: argparse.Namespace) -> int:
    """Check tasks of a model, or files; 1 if one of them has failed."""
    names: Sequence[str] = args.names
    check: Callable[[str], object] = taskfile.read
    if args.model is not None:
        found = find_model(args.model, args.pretrained_model)
        names = names or known_tasks(found)
        check = functools.partial(_check, found, _encoder(found, args))
    failed = 0
    for name in names:
        try:
            check(name)
            print(f"{name}\tfine")
        except TaskError as e:
            failed += 1
            print(f"{name}\t{e}")
    if failed:
        print(f"espnet-hra tasks: {failed} of {len(names)} failed", file=sys.stderr)
    return int(failed > 0)


def _check(found: Found, encoder: Any, name: str) -> None:
    """Check a task of a model, or a file that might become one."""
    if name in found.store:
        path = found.store.path(name)
        check_name(path, name, encoder.read_task(path).name)
    elif name in checkpoint_tasks(found):
        # The checkpoint itself was loaded strictly; what is left are the values.
        tensors = encoder.adapter.heads.tensors(name)
        taskfile.pack(name, tensors, encoder.identity())
    elif Path(name).exists():
        encoder.read_task(name)
    else:
        raise unknown_task(found, name)


def _encoder(found: Found, args: argparse.Namespace) -> Any:
    from espnet_hra.espnet.building import build  # ESPnet's tasks take seconds

    return build(found, args.pretrained_model)[0].encoder
