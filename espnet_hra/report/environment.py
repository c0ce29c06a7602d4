"""With what results were made: versions, commit, date."""

import os
import platform
import subprocess
import time
from importlib import metadata

from espnet_hra.files.atomic import PathLike
from espnet_hra.version import __version__


def environment(folder: PathLike) -> str:
    """The block on versions that opens ESPnet's results.

    Args:
        folder: A folder of the repository, for the commit.
    """
    lines = [
        f"- date: `{time.strftime('%a %b %d %H:%M:%S %Z %Y')}`",
        f"- python version: `{platform.python_version()}`",
    ]
    for name in ("espnet", "torch"):
        lines.append(f"- {name} version: `{_version(name)}`")
    lines.append(f"- espnet-hra version: `{__version__}`")
    commit = git(folder, "rev-parse", "HEAD")
    if commit:
        changed = " (with changes)" if git(folder, "status", "--porcelain") else ""
        lines.append(f"- Git hash: `{commit}`{changed}")
        date = git(folder, "log", "-1", "--format=%cd")
        lines.append(f"  - Commit date: `{date}`")
    return "\n".join(lines) + "\n"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def git(folder: PathLike, *arguments: str) -> str:
    """What git says, nothing where it cannot say anything."""
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
