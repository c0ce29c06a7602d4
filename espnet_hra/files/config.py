"""YAML: configurations of users and of packs from strangers.

One reader for all: a file of bounded size, without the nested aliases that grow
exponentially, whose top level is keys and values.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from espnet_hra.errors import ConfigError, UserError
from espnet_hra.files import atomic

#: Most bytes of a YAML file, and most values in it once aliases are replaced.
MAX_BYTES, MAX_VALUES = 2**23, 2**21


def read_yaml(
    path: atomic.PathLike, error: type[UserError] = ConfigError
) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Args:
        path: The file.
        error: What is raised if it cannot be used.

    Raises:
        UserError: It is missing, too large, no YAML, or no mapping; of the type
            `error`.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as e:  # ValueError: a null byte in the path
        raise error(f"{path}: cannot be read: {e}") from e
    if len(content) > MAX_BYTES:
        raise error(f"{path}: expected {MAX_BYTES:,} bytes of YAML at most")
    try:
        value = yaml.load(content.decode("utf-8"), Loader=_Loader)
        values = _count(value, {})
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise error(f"{path}: not readable as YAML: {e!r:.200}") from e
    if not isinstance(value, dict):
        raise error(f"{path}: expected keys and values in YAML")
    if values > MAX_VALUES:
        raise error(f"{path}: more than {MAX_VALUES:,} values")
    return value


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write keys and values, in one step, in alphabetical order and without aliases."""
    text = yaml.dump(dict(content), Dumper=_Dumper, allow_unicode=True)
    atomic.write(path, text)


#: The same in C is ten times quicker, where PyYAML was built with it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _count(value: Any, known: dict[int, int]) -> int:
    """Number of values with aliases replaced, each counted once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = MAX_VALUES + 1  # if it contains itself
        values = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(v, known) for v in values)
    return known[id(value)]
