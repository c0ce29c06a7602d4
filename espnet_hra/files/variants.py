"""Configurations that differ from another in a few keys: ``conf/variants.yaml``.

Each has the name of the configuration that it begins with (``of``), and the keys that
it has otherwise; null takes a key away. Nested keys are changed one by one.

``NAME_x4``, of any configuration NAME, is the one that trains four times as long, with
the same schedule drawn out.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_hra.errors import ConfigError
from espnet_hra.files.config import read_yaml

#: The file, beside the configurations ``train_<name>.yaml``.
VARIANTS = "variants.yaml"


def read_config(folder: Path, name: str, seen: Sequence[str] = ()) -> dict[str, Any]:
    """The training configuration of a name.

    Args:
        folder: The recipe's ``conf``.
        name: Of a file ``train_<name>.yaml`` in it, of a variant, or either with
            ``_x4`` behind it.
        seen: Variants of it that led here.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    path = folder / f"train_{name}.yaml"
    if path.is_file():
        return read_yaml(path)
    variants = {}
    if (folder / VARIANTS).is_file():
        variants = read_yaml(folder / VARIANTS)
    times = re.fullmatch(r"(.+)_x([1-9][0-9]*)", name)
    if name not in variants and times:
        return longer(read_config(folder, times[1], (*seen, name)), int(times[2]))
    if name not in variants:
        files = [p.stem.removeprefix("train_") for p in folder.glob("train_*.yaml")]
        raise ConfigError(
            f"{name}: there is neither {path} nor a variant of this name in "
            f"{folder / VARIANTS}; there are: {', '.join(sorted({*files, *variants}))}"
        )
    changes = variants[name] if isinstance(variants[name], dict) else {}
    base = changes.get("of")
    if not isinstance(base, str) or base in (name, *seen):
        raise ConfigError(
            f"{folder / VARIANTS}: {name}: of: {base!r} must name the configuration "
            "that it is a variant of, e.g. hra, and not lead back to itself"
        )
    return changed(read_config(folder, base, (*seen, name)), {**changes, "of": None})


def longer(config: Mapping[str, Any], times: int) -> dict[str, Any]:
    """A configuration with so many times the updates, its schedule drawn out.

    Raises:
        ConfigError: It does not say how many epochs it has.
    """
    if not isinstance(config.get("max_epoch"), int):
        raise ConfigError(
            f"max_epoch: {config.get('max_epoch')!r}: what is to train {times} times "
            "as long must say how long it trains"
        )
    changes: dict[str, Any] = {"max_epoch": config["max_epoch"] * times}
    steps = (config.get("scheduler_conf") or {}).get("warmup_steps_list")
    if steps:
        drawn = [*(step * times for step in steps[:-1]), steps[-1]]  # the last: forever
        changes["scheduler_conf"] = {"warmup_steps_list": drawn}
    return changed(config, changes)


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with other values, key by key; None takes a key away."""
    result = copy.deepcopy(dict(config))
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = changed(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result
