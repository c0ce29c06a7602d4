"""Checks of the values of ``adapter_conf``; each error names key, value and remedy."""

import math
from collections.abc import Collection
from typing import Any

from espnet_hra.errors import ConfigError


def check_choice(key: str, value: Any, possible: Collection[Any]) -> None:
    """Raise ConfigError if a value is not one of the possible, of the same type."""
    if not any(type(value) is type(one) and value == one for one in possible):
        raise ConfigError(
            f"adapter_conf: {key}: {value!r} is not available; "
            f"built are: {', '.join(map(str, possible))}"
        )


def check_size(key: str, value: Any) -> None:
    """Raise ConfigError if a value is no whole number above 0."""
    if type(value) is not int or value < 1:
        raise ConfigError(
            f"adapter_conf: {key}: {value!r} must be a whole number above 0"
        )


def check_number(key: str, value: Any, fits: bool | None, wanted: str) -> None:
    """Raise ConfigError if a value is no finite number, or does not fit.

    Args:
        key: The key.
        value: Its value.
        fits: Whether the value is in its range; None if it cannot be compared.
        wanted: The range, in words.
    """
    if not is_number(value) or not fits:
        raise ConfigError(f"adapter_conf: {key}: {value!r} must be {wanted}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)
