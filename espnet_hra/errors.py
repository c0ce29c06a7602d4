"""Errors whose message is for the user: what was given, what is possible."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Something the user can put right; commands print it as one line."""


class TaskError(UserError, ValueError):
    """A task was refused."""


class ConfigError(UserError, ValueError):
    """A configuration has a value that is not possible."""


class BaseModelError(UserError, RuntimeError):
    """A base cannot be opened, or is not the one that was asked for."""


class DataError(UserError, ValueError):
    """Data failed the check before training."""


@contextlib.contextmanager
def one_line(program: str) -> Iterator[None]:
    """Let a program end with the message of a :class:`UserError`, not a traceback."""
    try:
        yield
    except UserError as e:
        sys.exit(f"{program}: {e}")
