"""Unpacking zips from strangers, and the file that says what is in a pack.

`espnet_model_zoo` unpacks whatever comes: as much as a member claims to hold, and a
``meta.yaml`` that names any file of the machine as the model. Here a zip is checked
before anything is written, and refused as a whole:

* no absolute names, no ``..``, no links, devices or names that stand twice;
* no more members and bytes than a model of the zip's size can have;
* small YAML files only, without the nested aliases that grow exponentially;
* ``meta.yaml`` names members of the zip as its files, and nothing else.
"""

import hashlib
import os
import posixpath
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_hra.errors import BaseModelError
from espnet_hra.files import atomic
from espnet_hra.files.config import read_yaml, write_yaml

#: Most members of a zip: a base with ten thousand tasks, twice.
MAX_MEMBERS = 20_000
#: Most bytes of the list of members, which is read as a whole.
MAX_DIRECTORY = 2**24
#: Weights hardly compress; texts do, but they are small.
MAX_RATIO, FREE_BYTES = 20, 2**24

_CHUNK = 2**20

#: What a zip begins with, as torch sees it; and the mark of a folder.
_ZIP, _FOLDER = b"PK\x03\x04", 0x10


def cache() -> Path:
    """Where packs are unpacked and Whispers kept: in the user's cache."""
    return Path.home() / ".cache" / "espnet_hra"


def pack_files(source: str, meta: Mapping[str, Any]) -> dict[str, str]:
    """The files that a pack's ``meta.yaml`` names, by constructor argument.

    Raises:
        BaseModelError: It is no such file, or names one outside the pack.
    """
    files: dict[str, str] = {}
    for key in ("yaml_files", "files"):
        part = meta.get(key)
        if not isinstance(part, dict):
            raise BaseModelError(f"{source}: its meta.yaml has no {key}")
        for name, value in part.items():
            # What ESPnet packs from outside its folder has an absolute name there,
            # and a relative one in the zip.
            inside = value.lstrip("/") if isinstance(value, str) else ""
            if not is_safe(inside):
                raise BaseModelError(
                    f"{source}: its meta.yaml names {value!r} as {name}, which is no "
                    "file within the pack"
                )
            files[str(name)] = posixpath.normpath(inside)
    return files


def is_safe(name: str) -> bool:
    """Whether a name stays below the folder that it is relative to."""
    return (
        bool(name)
        and "\\" not in name
        and "\0" not in name
        and not posixpath.isabs(name)
        and not os.path.splitdrive(name)[0]
        and ".." not in name.split("/")
    )


def check(path: Path) -> list[zipfile.ZipInfo]:
    """Check the members of a zip without unpacking it.

    Returns:
        Its files.

    Raises:
        BaseModelError: It is no zip, or one that cannot be trusted.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if end is None:
            raise BaseModelError(f"{path}: not a zip, or only a part of one")
        directory, count = end[5], end[4]
        if directory > MAX_DIRECTORY or count > MAX_MEMBERS:
            raise BaseModelError(
                f"{path}: expected {MAX_MEMBERS:,} members at most, found {count:,} in "
                f"a list of {directory:,} bytes"
            )
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as e:
        if isinstance(e, BaseModelError):
            raise
        raise BaseModelError(f"{path}: not a readable zip: {e}") from e
    if len(members) > MAX_MEMBERS:
        raise BaseModelError(f"{path}: more than {MAX_MEMBERS:,} members")
    if len(members) != count:  # a damaged entry can hide those after it
        raise BaseModelError(
            f"{path}: expected {count:,} members, found {len(members):,}: the zip is "
            "damaged; copy or download it again"
        )
    seen: set[str] = set()
    for member in members:
        _check_member(path, member)
        name = posixpath.normpath(member.filename)
        if name in seen:
            raise BaseModelError(f"{path}: {name!r} stands in it twice")
        seen.add(name)
    total, limit = sum(m.file_size for m in members), MAX_RATIO * size + FREE_BYTES
    if total > limit:
        raise BaseModelError(
            f"{path}: its members claim to hold {total:,} bytes, and a zip of "
            f"{size:,} bytes may hold {limit:,}"
        )
    return [m for m in members if not m.is_dir()]


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    if not is_safe(member.filename):
        raise BaseModelError(
            f"{path}: the member {member.filename!r} would be written outside the "
            "folder"
        )
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BaseModelError(
            f"{path}: the member {member.filename!r} is a link or a device"
        )
    if member.external_attr & _FOLDER and not member.is_dir():
        # For torch's reader it would be empty, whatever it holds.
        raise BaseModelError(
            f"{path}: the member {member.filename!r} is marked as a folder"
        )
    if member.flag_bits & 1:
        raise BaseModelError(f"{path}: the member {member.filename!r} is encrypted")


def unpack(path: Path, root: Path) -> Path:
    """Unpack a zip once; later calls find the folder of the same content.

    Args:
        path: The zip.
        root: Folder of unpacked zips.

    Returns:
        The folder. Configurations in it name its files with whole paths.

    Raises:
        BaseModelError: The zip cannot be trusted or read, or there is no space.
    """
    check(path)
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        folder = root / f"{digest.hexdigest()[:32]}-2"
        if folder.is_dir():
            return folder
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking.") as temporary:
            inner = Path(temporary) / "pack"
            extract(path, inner)
            _resolve_configurations(path, inner, folder)
            try:
                os.rename(inner, folder)
            except OSError:  # another process was quicker
                if not folder.is_dir():
                    raise
    except OSError as e:
        raise BaseModelError(f"{path}: cannot be unpacked: {e}") from e
    return folder


def extract(path: Path, folder: Path) -> None:
    """Unpack a zip into a new folder, as it is.

    Raises:
        BaseModelError: The zip cannot be trusted or read, or there is no space.
    """
    members = check(path)
    try:
        folder.mkdir(parents=True)
        with zipfile.ZipFile(path) as archive:
            for member in members:
                _extract(archive, member, folder)
    except BaseModelError:
        raise
    except Exception as e:
        raise BaseModelError(f"{path}: cannot be unpacked: {e!r}") from e


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    """Write one member; it never grows beyond what :func:`check` has counted."""
    target = folder / posixpath.normpath(member.filename)
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with archive.open(member) as source, open(target, "xb") as file:
        while chunk := source.read(min(_CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise BaseModelError(
                    f"{archive.filename}: {member.filename!r} holds more than it says"
                )
            file.write(chunk)


def _resolve_configurations(path: Path, inner: Path, folder: Path) -> None:
    """Give the configurations of an ESPnet pack whole paths, as ESPnet does."""
    if not (inner / "meta.yaml").is_file():
        return
    meta = read_yaml(inner / "meta.yaml", BaseModelError)
    for key, name in pack_files(str(path), meta).items():
        if not (inner / name).is_file():
            raise BaseModelError(
                f"{path}: its meta.yaml names {name}, which is not in it"
            )
        if key in meta["yaml_files"]:
            config = resolve(read_yaml(inner / name, BaseModelError), inner, folder)
            write_yaml(inner / name, config)


def resolve(value: Any, root: Path, folder: Path | None = None) -> Any:
    """Replace names of a pack's files by whole paths, at any depth of a configuration.

    Args:
        value: The configuration.
        root: Where the files are.
        folder: Where they will be; None if they stay.
    """
    if isinstance(value, dict):
        return {k: resolve(v, root, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [resolve(v, root, folder) for v in value]
    # A token such as "exp" is no path.
    if isinstance(value, str) and "/" in value and len(value) < 1024:
        inside = value.lstrip("/")
        if is_safe(inside) and (root / inside).is_file():
            return str((folder or root) / inside)
    return value


def check_checkpoint(path: Path) -> None:
    """Refuse a checkpoint that is damaged, or compressed and could grow without bound.

    torch never compresses; it writes checksums of what it saves, and does not look at
    them when it loads.

    Raises:
        BaseModelError: It is.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(_ZIP)) != _ZIP:
                return  # torch's old form, or nothing that it reads
    except OSError as e:
        raise BaseModelError(f"{path}: cannot be read: {e}") from e
    total = sum(m.file_size for m in check(path))
    if total > path.stat().st_size:
        raise BaseModelError(
            f"{path}: a checkpoint of {path.stat().st_size:,} bytes that claims to "
            f"hold {total:,}"
        )
    try:
        with zipfile.ZipFile(path) as opened:
            damaged = opened.testzip()
    except Exception as e:  # whatever damaged data may raise
        raise BaseModelError(f"{path}: a damaged checkpoint: {e!r}") from e
    if damaged is not None:
        raise BaseModelError(
            f"{path}: a damaged checkpoint: the checksum of {damaged!r} in it does not "
            "fit; copy or download it again, or train again"
        )


def write_zip(folder: Path, path: Path, date: tuple | None = None) -> None:
    """Write a folder as a zip, which appears under its name only when it is whole.

    Args:
        folder: What to pack; ``meta.yaml`` comes first, as ESPnet expects.
        path: The zip.
        date: Date of the members; equal folders give equal zips.
    """
    files = sorted(
        (p for p in folder.rglob("*") if p.is_file()),
        key=lambda p: (p.name != "meta.yaml", p.relative_to(folder).as_posix()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for source in files:
            name = source.relative_to(folder).as_posix()
            member = zipfile.ZipInfo(name, date or (1980, 1, 1, 0, 0, 0))
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            member.file_size = source.stat().st_size
            with open(source, "rb") as opened, archive.open(member, "w") as target:
                shutil.copyfileobj(opened, target, _CHUNK)
