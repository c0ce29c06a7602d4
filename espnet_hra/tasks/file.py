"""A task as a file: safetensors, with what it needs written into its metadata.

The metadata's only entry, ``espnet_hra``, is a record in JSON: the format's version,
the task's name, the configuration of head and controller, the fingerprints of base and
controller, the hash of the token list, and what people want to know (licence,
languages, training data, scores, date, versions). Its ``checksum`` is the SHA-256 of
the whole file, read with zeros in the place of the checksum's own 64 digits: no byte of
header, metadata or tensors can change unnoticed. It tells damage, not who wrote the
file.

No pickle anywhere. Any safetensors library reads the tensors.
"""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from espnet_hra.errors import TaskError
from espnet_hra.files import atomic
from espnet_hra.names import check_task_name, listing
from espnet_hra.tasks.config import check_labels
from espnet_hra.tasks.layout import classifier
from espnet_hra.version import __version__

FORMAT = "espnet-hra task 1"

#: The one entry of the metadata, a record in JSON.
KEY = "espnet_hra"

#: Ending of the files' names.
SUFFIX = ".safetensors"

#: What may be said about a task, and how messages describe it.
INFO = {
    "license": (str, "an identifier such as cc-by-4.0"),
    "languages": (list, "a list of codes such as fr"),
    "data": (str, "a text that describes the training data"),
    "scores": (list, "a list of {split, utterances, cer, wer}"),
    "date": (str, "a date such as 2026-01-31"),
    "base_tag": (str, "the base's tag in the model zoo or on the hub"),
    "training": (str, "a digest of configuration, base, controller and data"),
    "voice": (str, "a text of espnet_hra.tasks.voice"),
}

#: Most bytes of the record, so that a file exceeds its tensors by 4 KiB at most; and of
#: the labels in it, of a task that classifies.
MAX_RECORD = 3072
MAX_LABELS = 2**16

#: Bounds on what is read from strangers. A full fine-tuning of a large encoder has
#: thousands of tensors, each with a hundred bytes of header.
_MAX_HEADER = 2**22
_MAX_FILE = 2**34

#: The record's key with what a task tells that classifies.
_LABELS = "labels"

#: How the record is written.
_JSON: dict[str, Any] = {
    "sort_keys": True,
    "allow_nan": False,
    "ensure_ascii": False,
}

_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")
#: What stands before the checksum's digits in the bytes: JSON within JSON.
_MARK = rb"\"checksum\": \"sha256:"
_ZEROS = b"0" * 64

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class TaskFile:
    """What a file holds.

    Attributes:
        name: Name of the task.
        tensors: Its tensors.
        record: The whole record of the metadata.
    """

    name: str
    tensors: dict[str, torch.Tensor]
    record: dict[str, Any]

    @property
    def info(self) -> dict[str, Any]:
        """What is said about the task, see :data:`INFO`."""
        return {key: self.record[key] for key in INFO if key in self.record}

    @property
    def labels(self) -> tuple[str, ...]:
        """What it tells, if it classifies; else empty."""
        return tuple(self.record.get(_LABELS) or ())

    @property
    def checksum(self) -> str:
        """The checksum that stands in the file, ``sha256:`` and 64 digits."""
        return self.record["checksum"]


def check_info(info: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is said about a task, without what is None.

    Raises:
        TaskError: A key is unknown, or its value has another type.
    """
    info = {k: v for k, v in (info or {}).items() if v is not None}
    for key, value in info.items():
        if key not in INFO:
            raise TaskError(
                f"{key!r} cannot be said about a task; possible are {', '.join(INFO)}"
            )
        kind, description = INFO[key]
        if not isinstance(value, kind):
            raise TaskError(f"{key}: {value!r} is not {description}")
    return info


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    versions = [("espnet_hra", __version__)]
    for package in ("espnet", "torch"):
        try:
            versions.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:  # a source tree on the path
            pass
    return tuple(versions)


def save(
    path: PathLike,
    name: str,
    tensors: Mapping[str, torch.Tensor],
    identity: Mapping[str, Any],
    info: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Write a task's file; an existing one is replaced in one step.

    Args:
        path: File to write.
        name: Name of the task.
        tensors: Its tensors.
        identity: ``config`` of the adapter, fingerprints ``backbone`` and
            ``controller``; where they are known, ``base`` (fingerprints of the model's
            other parts, by component) and ``tokens`` (hash of the token list).
        info: What is said about the task, see :data:`INFO`. The date is today's unless
            it is given.
        labels: What it tells, if it classifies.

    Raises:
        TaskError: The task has NaN or infinite values, the record becomes too long, or
            the file cannot be written.
    """
    path = Path(path)
    content = pack(name, tensors, identity, info, labels)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise TaskError(f"{path}: there is no folder {folder}")
    if path.is_dir():
        raise TaskError(f"{path}: this is a folder; give the name of a file")
    try:
        atomic.write(path, content)
    except OSError as e:
        raise TaskError(f"{path}: cannot be written: {e}") from e


def pack(
    name: str,
    tensors: Mapping[str, torch.Tensor],
    identity: Mapping[str, Any],
    info: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
) -> bytes:
    """The content of a task's file. Arguments and errors as of :func:`save`."""
    check_task_name(name)
    tensors = {k: v.detach().cpu().clone() for k, v in tensors.items()}
    _check_finite(f"task {name!r}", tensors)
    info = check_info(info)
    info.setdefault("date", datetime.datetime.now(datetime.UTC).date().isoformat())
    record = {
        "format": FORMAT,
        "task": name,
        "config": dict(identity["config"]),
        "backbone": identity["backbone"],
        "controller": identity["controller"],
        "base": identity.get("base"),
        "tokens": identity.get("tokens"),
        "versions": dict(_versions()),
        **info,
        "checksum": "sha256:" + _ZEROS.decode(),
    }
    told = {_LABELS: list(labels)} if labels else {}
    try:
        length = _length(json.dumps(record, **_JSON))
        text = json.dumps({**record, **told}, **_JSON)
        more = _length(text) - length
    except (TypeError, ValueError) as e:
        raise TaskError(f"task {name!r}: {info} cannot be written as JSON: {e}") from e
    if more > MAX_LABELS:
        raise TaskError(
            f"task {name!r}: its {len(labels):,} labels take {more:,} bytes and may "
            f"take {MAX_LABELS:,}: give them shorter names"
        )
    if length > MAX_RECORD:
        raise TaskError(
            f"task {name!r}: its record takes {length:,} bytes and may take "
            f"{MAX_RECORD:,}: shorten what is said about its data and scores"
        )
    # One entry: safetensors writes several in random order, and equal tasks shall give
    # equal files.
    content = bytearray(safetensors.torch.save(tensors, {KEY: text}))
    start = content.index(_MARK) + len(_MARK)
    digits = hashlib.sha256(content).hexdigest()  # the digits are zeros still
    content[start : start + 64] = digits.encode()
    return bytes(content)


def _length(text: str) -> int:
    """Bytes of a text within JSON."""
    return len(json.dumps(text, ensure_ascii=False).encode("utf-8"))


def _check_finite(what: str, tensors: Mapping[str, torch.Tensor]) -> None:
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TaskError(f"{what}: {key} has the type {tensor.dtype}, not numbers")
        if not torch.isfinite(tensor).all():
            raise TaskError(f"{what}: {key} has NaN or infinite values")


# ------------------------------------------------------------------------- reading


def _damaged(path: PathLike, why: object) -> TaskError:
    return TaskError(
        f"{path}: not a readable task file ({why}); a task is a safetensors file that "
        "save_task wrote: copy or download it again"
    )


def _content(path: PathLike, limit: int, whole: bool) -> tuple[bytes, int]:
    """Bytes of a file and the length of its header; the rest only if `whole`."""
    try:
        # A pipe or device would block, or never end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _damaged(path, "it is no ordinary file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise _damaged(
                    path, f"expected {limit:,} bytes at most, found {size:,}"
                )
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(_MAX_HEADER, size - 8):
                raise _damaged(
                    path,
                    f"expected a header of {length:,} bytes, found a file of {size:,}",
                )
            return start + file.read(size if whole else length), length
    except FileNotFoundError:
        raise TaskError(f"{path}: there is no such task file") from None
    except (OSError, ValueError) as e:  # ValueError: a null byte in the path
        if isinstance(e, TaskError):
            raise
        raise _damaged(path, e) from e


def _record(path: PathLike, content: bytes, length: int) -> dict[str, Any]:
    try:
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        record = json.loads(metadata[KEY]) if metadata.keys() == {KEY} else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise _damaged(path, f"no metadata of a task: {e!r:.80}") from e
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise TaskError(f"{path}: expected the format {FORMAT!r}, found {found!r}")
    return record


def _verify_checksum(
    path: PathLike, content: bytes, length: int, record: Mapping[str, Any]
) -> None:
    expected = record.get("checksum")
    header = content[8 : 8 + length]
    if not isinstance(expected, str) or not _CHECKSUM.fullmatch(expected):
        raise _damaged(path, f"expected a checksum, found {expected!r:.80}")
    if header.count(_MARK) != 1:
        raise _damaged(path, "expected one checksum in the metadata")
    start = 8 + header.index(_MARK) + len(_MARK)
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(_ZEROS)
    digest.update(view[start + 64 :])
    found = f"sha256:{digest.hexdigest()}"
    if bytes(view[start : start + 64]).decode("latin-1") != found[7:]:
        raise TaskError(
            f"{path}: the checksum does not fit the contents (expected {expected}, "
            f"found {found}); the file is damaged or was changed: copy or download it "
            "again"
        )


def describe(path: PathLike) -> dict[str, Any]:
    """The record of a file, **not verified**: only its first bytes are read.

    Raises:
        TaskError: The file has no record that can be read.
    """
    return _record(path, *_content(path, _MAX_FILE, whole=False))


def read(path: PathLike, max_bytes: int = _MAX_FILE) -> TaskFile:
    """Read a file and check that it is whole and as it was written.

    Args:
        path: File that :func:`save` wrote.
        max_bytes: Refuse a larger one before it is read.

    Raises:
        TaskError: The file is missing, damaged, or no task.
    """
    content, length = _content(path, max_bytes, whole=True)
    record = _record(path, content, length)
    _verify_checksum(path, content, length, record)
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as e:
        raise _damaged(path, e) from e
    try:
        name = check_task_name(record.get("task"))
        check_info({key: record[key] for key in INFO if key in record})
        if _LABELS in record:
            check_labels(name, record[_LABELS])
    except TaskError as e:
        raise TaskError(f"{path}: {e}") from None
    _check_finite(f"{path}: task {name!r}", tensors)
    return TaskFile(name, tensors, record)


def check(
    path: PathLike,
    file: TaskFile,
    layout: Mapping[str, torch.Size],
    identity: Mapping[str, Any],
    pooled: int = 0,
) -> None:
    """Check that a task was made for this model. Arguments as of :func:`load`.

    Raises:
        TaskError: It was made for another base, controller, head or token list.
    """
    record, what = file.record, f"{path}: task {file.name!r}"
    if record.get("config") != dict(identity["config"]):
        raise TaskError(
            f"{what} was made for another adapter: expected {dict(identity['config'])},"
            f" found {record.get('config')}"
        )
    expected = {part: identity[part] for part in ("backbone", "controller")}
    expected["token list"] = identity.get("tokens")
    found = {part: record.get(part) for part in ("backbone", "controller")}
    found["token list"] = record.get("tokens")
    # The base around the encoder is known where a whole model is.
    base = record.get("base")
    for part, value in (identity.get("base") or {}).items():
        expected[f"base's {part}"] = value
        found[f"base's {part}"] = base.get(part) if isinstance(base, dict) else None
    for part, value in expected.items():
        unknown = part not in ("backbone", "controller") and found[part] is None
        if value is not None and not unknown and found[part] != value:
            raise TaskError(
                f"{what} was trained on another {part}: expected fingerprint {value}, "
                f"found {found[part]}"
            )
    shapes = {key: tuple(tensor.shape) for key, tensor in file.tensors.items()}
    if file.labels:
        if not pooled:
            raise TaskError(
                f"{what} tells labels ({listing(file.labels)}), and only texts can be "
                "written here: take espnet_hra.Speech2Text, espnet-hra transcribe or "
                "the server"
            )
        layout = {**layout, **classifier(len(file.labels), pooled)}
    wanted = {key: tuple(shape) for key, shape in layout.items()}
    if shapes != wanted:
        raise TaskError(f"{what} has other tensors: expected {wanted}, found {shapes}")


def load(
    path: PathLike,
    layout: Mapping[str, torch.Size],
    identity: Mapping[str, Any],
    said: PathLike | None = None,
    pooled: int = 0,
) -> TaskFile:
    """Read a task's file and check that it was made for this model.

    Args:
        path: File that :func:`save` wrote.
        layout: Names and shapes of the tensors that the encoder's head has.
        identity: What the file must have been made for, as in :func:`save`.
        said: How messages name the file, if not by `path`.
        pooled: Size of what an utterance is pooled to; 0 refuses tasks that classify.

    Raises:
        TaskError: The file is missing, damaged, or made for something else.
    """
    # No type of float is wider than 8 bytes; a label takes 7 in the record at least.
    limit = 8 * sum(s.numel() for s in layout.values()) + 8 + _MAX_HEADER
    limit += 8 * (pooled + 1) * MAX_LABELS // 7
    try:
        file = read(path, limit)
        check(path, file, layout, identity, pooled)
    except TaskError as e:
        if said is None:
            raise
        raise TaskError(str(e).replace(str(path), str(said))) from e
    return file
