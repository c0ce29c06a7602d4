"""Files that a saved configuration names, and where they are.

ESPnet writes paths as they were given where the training was started.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_hra.files import archive

#: Keys that hold the path of a file.
FILES = (
    ("token_list",),
    ("src_token_list",),
    ("transcript_token_list",),
    ("bpemodel",),
    ("src_bpemodel",),
    ("non_linguistic_symbols",),
    ("normalize_conf", "stats_file"),
)

#: What a configuration may have in the place of a file.
_WORDS = ("none", "whisper_en", "whisper_multilingual")


def whole(path: Path) -> Path:
    """The whole path of a file or folder, without ``..``.

    Links stay: a recipe's ``exp`` is often one to a larger disk, and the files that a
    configuration names are in the recipe, not there.
    """
    parts = path.expanduser().absolute().parts
    if ".." not in parts:
        return Path(*parts)
    # What ".." means depends on the links before it, which only the system knows.
    last = len(parts) - parts[::-1].index("..")
    return Path(*parts[:last]).resolve().joinpath(*parts[last:])


def named_files(config: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """Where a configuration names files: the mapping, and the key in it."""
    for *outer, last in FILES:
        place: Any = config
        for key in outer:
            place = place.get(key) or {}
        if isinstance(place.get(last), str) and place[last] not in _WORDS:
            yield place, last


def can_lack(key: str, config: Mapping[str, Any], packed: bool) -> bool:
    """Whether a model works without a file that its configuration names.

    ESPnet's recipes do not pack the list of non-linguistic symbols. Only tokenizers
    that cut words need it, and for texts to train on alone.
    """
    if key != "non_linguistic_symbols":
        return False
    return packed or config.get("token_type") not in ("char", "word", "phn")


def find_base(config: dict[str, Any], folders: Sequence[Path]) -> None:
    """Give a base that is below one of these folders its whole path.

    Configurations of ESPnet3 name a base within the recipe by its place there, so that
    it is found in a copy and in a pack as well. A tag stays as it is.
    """
    name = config.get("pretrained_model")
    if not isinstance(name, str) or not archive.is_safe(name):
        return
    for folder in folders:
        if (folder / name).exists():
            config["pretrained_model"] = str(folder / name)
            return


def find_file(value: str, folders: Sequence[Path]) -> str | None:
    """The whole path of a file of a configuration; None if it is nowhere."""
    if os.path.isabs(value):
        found = [Path(value)]
    else:
        found = [folder / value for folder in folders]
    return next((str(path) for path in found if path.is_file()), None)
