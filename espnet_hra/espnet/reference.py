"""Packs that name a Whisper instead of holding it.

A public Whisper is the same everywhere, and large. Such a pack is like an experiment
folder: its checkpoint holds the adapter, and its configuration names the base and the
fingerprints that it must have. But a pack comes from strangers: it may name what it has
inside, and models that are known by name, and no other file of this machine.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_hra.errors import BaseModelError
from espnet_hra.espnet.paths import whole
from espnet_hra.files.config import read_yaml
from espnet_hra.whisper.folder import is_public, is_whisper

#: What is said where a Whisper cannot be had, or is another.
REMEDY = (
    "give its weights with --pretrained_model whisper:PATH (in Python, "
    "pretrained_model=), or ask for a pack that holds them (espnet-hra pack --whole "
    "true)"
)


def pack_of(config_file: Path) -> Path | None:
    """The folder of the pack that a configuration is in; None if it is in none."""
    folders = list(whole(config_file).parents)[:4]
    return next((f for f in folders if (f / "meta.yaml").is_file()), None)


def named_by(config_file: Path | None) -> tuple[str, dict[str, str]] | None:
    """The Whisper that a pack names instead of holding it, and its fingerprints.

    Args:
        config_file: The pack's configuration.

    Returns:
        None if it is none of a pack, or the pack holds its base.

    Raises:
        BaseModelError: It is not readable, or names no fingerprints.
    """
    folder = None if config_file is None else pack_of(config_file)
    if config_file is None or folder is None:
        return None
    config = read_yaml(config_file, BaseModelError)
    name = config.get("pretrained_model")
    if not isinstance(name, str) or not is_public(name):
        return None
    check(config, folder)
    return name, dict(config["base_fingerprint"])


def check(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a base that a pack must not name.

    Args:
        config: The pack's configuration, in which files of the pack have whole paths.
        folder: Its folder.

    Raises:
        BaseModelError: It is a file or folder outside the pack, or a Whisper without
            fingerprints.
    """
    name = config.get("pretrained_model")
    if name is None:
        return
    if is_public(str(name)):
        prints = config.get("base_fingerprint")
        if not isinstance(prints, Mapping) or not {"encoder"} <= set(prints):
            raise BaseModelError(
                f"{folder}: this pack names {name} and no fingerprint of it, so nobody "
                "can tell whether it is the right one: ask for the pack anew"
            )
        return
    path = Path(str(name))
    local = os.path.isabs(name) or str(name).startswith("~") or ".." in path.parts
    local = local or path.exists()
    if is_whisper(str(name)) or local and not whole(path).is_relative_to(whole(folder)):
        raise BaseModelError(
            f"{folder}: this pack names the base {name}, which is a place on another "
            "machine and not in the pack: say with --pretrained_model (in Python, "
            "pretrained_model=) where the base is here"
        )
