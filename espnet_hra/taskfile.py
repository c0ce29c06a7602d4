"""A task as a file: safetensors, with what it needs written into its metadata.

The metadata (strings) hold the format's version, the task's name, the configuration of
head and controller, the fingerprints of backbone and controller, and a checksum over
all tensors and all other metadata. No pickle anywhere.
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

PathLike = Union[str, os.PathLike]


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    rest = {k: v for k, v in metadata.items() if k != "checksum"}
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
    """
    tensors = {k: v.detach().cpu().clone() for k, v in tensors.items()}
    metadata = {
        "format": FORMAT,
        "task": name,
        "config": json.dumps(identity["config"], sort_keys=True),
        "backbone": identity["backbone"],
        "controller": identity["controller"],
    }
    metadata["checksum"] = _checksum(tensors, metadata)
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        safetensors.torch.save_file(tensors, temporary, metadata)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _read(path: PathLike) -> Tuple[Dict[str, torch.Tensor], Dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            return tensors, file.metadata() or {}
    except FileNotFoundError:
        raise TaskError(f"{path}: there is no such task file") from None
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as e:
        raise TaskError(
            f"{path}: not a readable task file ({e}); a task is a safetensors file "
            "that save_task wrote: copy or download it again"
        ) from e


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
    tensors, metadata = _read(path)
    if metadata.get("format") != FORMAT:
        raise TaskError(
            f"{path}: no task file of the format {FORMAT!r} "
            f"(found {metadata.get('format')!r})"
        )
    if metadata.get("checksum") != _checksum(tensors, metadata):
        raise TaskError(
            f"{path}: the checksum does not fit the contents; the file is damaged or "
            "was changed: copy or download it again"
        )
    name = check_task_name(metadata.get("task"))
    expected = json.dumps(identity["config"], sort_keys=True)
    if metadata.get("config") != expected:
        raise TaskError(
            f"{path}: task {name!r} was made for the adapter {metadata.get('config')}, "
            f"this encoder has {expected}"
        )
    for part in ("backbone", "controller"):
        if metadata.get(part) != identity[part]:
            raise TaskError(
                f"{path}: task {name!r} was trained on another {part}: expected "
                f"fingerprint {identity[part]}, found {metadata.get(part)}"
            )
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    if shapes != dict(layout):
        raise TaskError(
            f"{path}: task {name!r} has the tensors {shapes}, expected {dict(layout)}"
        )
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise TaskError(
                f"{path}: {key} of task {name!r} has NaN or infinite values"
            )
    return name, tensors
