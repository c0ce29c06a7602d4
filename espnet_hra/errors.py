"""Errors whose message is for the user: what was given, what is possible."""

import contextlib
import errno
import sys
from collections.abc import Iterator, Sequence


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


class NoRoomError(DataError):
    """An utterance that does not fit into memory, not even alone.

    Args:
        samples: Its length.
        index: Its place in the batch that was to be decoded.
        size: How many utterances that had.
    """

    def __init__(self, samples: int, index: int = 0, size: int = 1):
        super().__init__(f"an utterance of {samples:,} samples {self._advice}")
        self.samples, self.index, self.size = samples, index, size

    _advice = (
        "does not fit into memory: cut it where nobody speaks, and decode the parts"
    )

    def of(self, names: Sequence[str]) -> DataError:
        """The same with the name of the utterance.

        Args:
            names: Of all utterances that were to be decoded together.
        """
        name = f"one of {', '.join(names)}"
        if len(names) == self.size:
            name = names[self.index]
        return DataError(f"{name} ({self.samples:,} samples) {self._advice}")


@contextlib.contextmanager
def one_line(program: str) -> Iterator[None]:
    """Let a program end with the message of a :class:`UserError`, not a traceback.

    A disk that is full is told in one line as well, whoever was writing.
    """
    try:
        yield
    except UserError as e:
        sys.exit(f"{program}: {e}")
    except (OSError, RuntimeError) as e:
        if not disk_is_full(e):
            raise
        sys.exit(
            f"{program}: no room is left on the disk: make room, then run the same "
            "command again"
        )


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error comes of a full disk.

    torch.save, for one, says something else once it could not write.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
