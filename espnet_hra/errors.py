"""Errors whose message is for the user: what was given, what is possible."""

from typing import Iterable


class UserError(Exception):
    """Something the user can put right; commands print it as one line."""


class TaskError(UserError, ValueError):
    """A task was refused."""


class BaseModelError(UserError, RuntimeError):
    """A base cannot be opened, or is not the one that was asked for."""


class DataError(UserError, ValueError):
    """Data failed the check before training."""


def listing(names: Iterable[str], limit: int = 20) -> str:
    """Names for an error message; long lists are cut and counted.

    Args:
        names: Task names.
        limit: How many to write out.

    Returns:
        ``"a, b, c"``, ``"a, b, ... (10,000 in all)"`` or ``"none"``.
    """
    names = list(names)
    if not names:
        return "none"
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names):,} in all)"
