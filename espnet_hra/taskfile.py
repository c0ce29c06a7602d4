"""A task as a file: safetensors, with what it needs written into its metadata.

The metadata's only entry, ``espnet_hra``, is a record in JSON: the format's version,
the task's name, the configuration of head and controller, the fingerprints of backbone
and controller, and a checksum over all tensors and the rest of the record. No pickle
anywhere, and equal tasks give equal files.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple, Union

import safetensors
import safetensors.torch
import torch

from espnet_hra.errors import TaskError
from espnet_hra.fingerprint import fingerprint
from espnet_hra.names import check_task_name

FORMAT = "espnet-hra task 1"

#: The one entry of the metadata, a record in JSON.
KEY = "espnet_hra"

PathLike = Union[str, os.PathLike]


def _checksum(tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in record.items() if k != "checksum"}
    text = json.dumps(rest, sort_keys=True) + fingerprint(tensors.items())
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def save(
    path: PathLike,
    name: str,
    tensors: Mapping[str, torch.Tensor],
    identity: Mapping[str, Any],
) -> None:
    """Write a task's file; an existing one is replaced in one step.

    Args:
        path: File to write.
        name: Name of the task.
        tensors: Its tensors.
        identity: ``config`` of the adapter, fingerprints ``backbone``, ``controller``.

    Raises:
        TaskError: The task has NaN or infinite values, or the file's folder does not
            exist.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise TaskError(f"{path}: there is no folder {path.absolute().parent}")
    tensors = {k: v.detach().cpu().clone() for k, v in tensors.items()}
    _check_finite(f"task {name!r}", tensors)
    record = {
        "format": FORMAT,
        "task": name,
        "config": dict(identity["config"]),
        "backbone": identity["backbone"],
        "controller": identity["controller"],
    }
    record["checksum"] = _checksum(tensors, record)
    # One entry: safetensors writes several in random order, and equal tasks shall give
    # equal files.
    metadata = {KEY: json.dumps(record, sort_keys=True)}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        safetensors.torch.save_file(tensors, temporary, metadata)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _check_finite(what: str, tensors: Mapping[str, torch.Tensor]) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise TaskError(f"{what}: {key} has NaN or infinite values")


def _read(path: PathLike) -> Tuple[Dict[str, torch.Tensor], Dict[str, Any]]:
    """Tensors and record of a file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata() or {}
            record = json.loads(metadata[KEY]) if metadata.keys() == {KEY} else {}
    except FileNotFoundError:
        raise TaskError(f"{path}: there is no such task file") from None
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as e:
        raise TaskError(
            f"{path}: not a readable task file ({e}); a task is a safetensors file "
            "that save_task wrote: copy or download it again"
        ) from e
    return tensors, record if isinstance(record, dict) else {}


def load(
    path: PathLike, layout: Mapping[str, torch.Size], identity: Mapping[str, Any]
) -> Tuple[str, Dict[str, torch.Tensor]]:
    """Read and check a task's file.

    Args:
        path: File that :func:`save` wrote.
        layout: Names and shapes of the tensors that the encoder's head has.
        identity: What the file must have been made for, as in :func:`save`.

    Returns:
        Name and tensors of the task.

    Raises:
        TaskError: The file is missing, damaged, or made for something else.
    """
    tensors, record = _read(path)
    if record.get("format") != FORMAT:
        raise TaskError(
            f"{path}: no task file of the format {FORMAT!r} "
            f"(found {record.get('format')!r})"
        )
    if record.get("checksum") != _checksum(tensors, record):
        raise TaskError(
            f"{path}: the checksum does not fit the contents; the file is damaged or "
            "was changed: copy or download it again"
        )
    name = check_task_name(record.get("task"))
    if record.get("config") != dict(identity["config"]):
        raise TaskError(
            f"{path}: task {name!r} was made for the adapter {record.get('config')}, "
            f"this encoder has {dict(identity['config'])}"
        )
    for part in ("backbone", "controller"):
        if record.get(part) != identity[part]:
            raise TaskError(
                f"{path}: task {name!r} was trained on another {part}: expected "
                f"fingerprint {identity[part]}, found {record.get(part)}"
            )
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    if shapes != dict(layout):
        raise TaskError(
            f"{path}: task {name!r} has the tensors {shapes}, expected {dict(layout)}"
        )
    _check_finite(f"{path}: task {name!r}", tensors)
    return name, tensors
