"""Writing files that are whole, or as they were before.

A file is written under another name beside its own, flushed to the disk, and takes its
name in one step. Whoever reads meets the old content or the new one, and a kill or a
full disk leaves the old one. Permissions are those that the umask gives to any new
file. What goes wrong is an ``OSError``, as of ``open``.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

PathLike = str | os.PathLike[str]

#: What files are called until they are whole.
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}")


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[BinaryIO]:
    """A block that writes a new file, which takes the name of `path` at its end.

    If the block raises, the file of this name stays as it is.

    Args:
        path: The file. Its folder must exist.

    Yields:
        The new file, open for writing bytes.
    """
    path = Path(path)
    partial = _beside(path)
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write(path: PathLike, content: str | bytes) -> None:
    """Write a file in one step.

    Args:
        path: The file. Its folder must exist.
        content: Bytes, or text that is written in UTF-8.
    """
    with replacing(path) as file:
        file.write(_bytes(content))


def write_all(folder: PathLike, files: Mapping[str, str | bytes | None]) -> None:
    """Write several files of a folder, which is made if it is not there.

    All are written under other names before the first takes its place: a full disk
    leaves everything as it was.

    Args:
        folder: The folder.
        files: Content by name; None removes the file of this name, if there is one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for name, content in files.items():
            if content is not None:
                file = stack.enter_context(replacing(folder / name))
                file.write(_bytes(content))
                file.flush()  # a full disk shows here
    for name, content in files.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)


def sweep(folder: PathLike) -> list[Path]:
    """Remove what killed processes have left half written in a folder.

    Only where nobody else writes: what is being written would go as well.

    Args:
        folder: The folder; those in it are left alone.

    Returns:
        What was removed.
    """
    left = [path for path in Path(folder).iterdir() if _PARTIAL.fullmatch(path.name)]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def _bytes(content: str | bytes) -> bytes:
    return content.encode("utf-8") if isinstance(content, str) else content


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _sync_folder(folder: Path) -> None:
    """Make the new name itself last; not all file systems know how."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
