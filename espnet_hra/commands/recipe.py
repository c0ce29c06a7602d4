"""`espnet-hra recipe`: a copy of the recipe, for people who have the package only.

The recipe is part of a built package (``setup.py`` puts it there); in a checkout it is
copied from where it lies. Either way the copy stands on its own: links are resolved,
and it finds this package through the Python in use, not through the folders above it.
"""

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.files.shipped import NAME, RecipeError, find_recipe

#: What a copy consists of; all else in the folder is data and results.
PARTS = (
    "README.md",
    "RESULTS.md",
    "results.tsv",
    "results.png",
    "tradeoff.png",
    "cmd.sh",
    "conf",
    "db.sh",
    "hra.sh",
    "local",
    "path.sh",
    "pretrained",
    "run.sh",
)

_PATH = """
# The Python of the package that this recipe was copied from: the last resort.
if ! python3 -c 'import espnet_hra' >/dev/null 2>&1; then
    PATH={}:${{PATH}}
fi
"""


def copy_recipe(destination: Path, force: bool = False) -> Path:
    """Copy the recipe.

    Args:
        destination: A folder that exists, in which ``hra_asr`` is made; else the name
            of the copy.
        force: Copy over a recipe that is there; what it has made stays.

    Returns:
        The copy.

    Raises:
        RecipeError: Something is there already, or cannot be written.
    """
    source = find_recipe()
    target = destination / NAME if destination.is_dir() else destination
    if target.resolve() == source.resolve():
        raise RecipeError(f"{target} is the recipe itself: choose another folder")
    if (target.exists() or target.is_symlink()) and not force:
        raise RecipeError(
            f"{target} is there already: choose another folder, or copy over it with "
            "--force true (data and results in it stay)"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f".{target.name}."
        ) as folder:
            whole = Path(folder) / NAME
            collect(source, whole)
            with open(whole / "path.sh", "a", encoding="utf-8") as file:
                file.write(_PATH.format(shlex.quote(os.path.dirname(sys.executable))))
            if target.exists():
                _copy(whole, target)
            else:
                os.rename(whole, target)
    except OSError as error:
        raise RecipeError(f"cannot copy the recipe to {target}: {error}") from error
    return target


def collect(source: Path, target: Path) -> None:
    """Copy the parts of a recipe, with links resolved.

    Args:
        source: The recipe's folder.
        target: A folder that is not there yet.
    """
    target.mkdir(parents=True)
    for name in PARTS:
        if (source / name).exists():
            _copy(source / name, target / name)
    for name in ("run.sh", "hra.sh"):
        _make_program(target / name)  # which a wheel may lose


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder, without caches, with the rights that the umask gives."""
    if source.is_dir():
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            if not path.name.startswith((".", "__pycache__")):
                _copy(path, target / path.name)
    else:
        shutil.copyfile(source, target)
        if os.access(source, os.X_OK):
            _make_program(target)


def _make_program(path: Path) -> None:
    """Let those run a file who may read it."""
    mode = path.stat().st_mode
    path.chmod(mode | (mode & 0o444) >> 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Copy the recipe and say how to run it.

    Args:
        argv: The options.

    Returns:
        The exit status.

    Raises:
        RecipeError: It cannot be copied.
    """
    parser = argparse.ArgumentParser(
        prog="espnet-hra recipe",
        description="Copy the recipe egs2/hra_asr, into an ESPnet checkout's egs2 for "
        "instance.",
    )
    parser.add_argument(
        "destination",
        metavar="DEST",
        help=f"a folder that exists, for DEST/{NAME}; else the name of the copy",
    )
    parser.add_argument(
        "--force",
        choices=["true", "false"],
        default="false",
        help="copy over a recipe that is there (default: false)",
    )
    args = parser.parse_args(argv)
    destination = Path(args.destination).expanduser()
    target = copy_recipe(destination, args.force == "true")
    print(f"{target}\nTry: {shlex.quote(str(target / 'run.sh'))} --corpus mini_an4")
    return 0
