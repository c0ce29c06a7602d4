"""Which task an encoder's next batch belongs to.

Two levels: the encoder's own choice (``set_task``, seen by all threads), and the choice
of a ``with encoder.use_task(...)`` block, which holds in this block and this thread (or
asyncio task) only and wins.
"""

import contextlib
import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar

from espnet_hra.errors import TaskError
from espnet_hra.names import listing

#: None: the plain backbone. A name: the whole batch. A tuple: one per utterance.
Choice = None | str | tuple[str, ...]


class Unset(enum.Enum):
    """Nothing was chosen yet, which is not the same as choosing the backbone."""

    UNSET = "no task chosen"


UNSET = Unset.UNSET

# Choices of the running `use_task` blocks, by the id of their encoder (which the block
# keeps alive). Contexts are copied on write: other threads never see a change.
_blocks: ContextVar[Mapping[int, Choice] | None] = ContextVar(
    "espnet_hra_blocks", default=None
)


def as_choice(task: None | str | Sequence[str], known: Collection[str]) -> Choice:
    """Check what a user chose.

    Args:
        task: A name, one name per utterance, or None for the backbone.
        known: Container of the tasks that exist.

    Raises:
        TaskError: A task is unknown, or `task` is none of the above.
    """
    if task is None:
        return None
    if isinstance(task, str):
        names: tuple[str, ...] = (task,)
    else:
        # Not any iterable: a set or the keys of a dict have no order to rely on.
        names = tuple(task) if isinstance(task, (list, tuple)) else ()
        if not names or not all(isinstance(name, str) for name in names):
            raise TaskError(
                f"{task!r} is no task: give a name, a list with one name per "
                "utterance, or None for the plain backbone"
            )
    for name in names:
        if name not in known:
            raise TaskError(f"unknown task {name!r}; known tasks: {listing(known)}")
    return task if isinstance(task, str) else names


def distinct(choice: Choice) -> tuple[str, ...]:
    """The tasks of a choice, each once."""
    return tuple(dict.fromkeys((choice,) if isinstance(choice, str) else choice or ()))


@contextlib.contextmanager
def block(owner: object, choice: Choice) -> Iterator[None]:
    """Let a choice hold for `owner` within the block, in this thread."""
    token = _blocks.set({**(_blocks.get() or {}), id(owner): choice})
    try:
        yield
    finally:
        _blocks.reset(token)


def current(owner: object, default: Choice | Unset, known: Collection[str]) -> Choice:
    """The choice in force: of this thread's block, or the owner's own.

    Args:
        owner: The encoder.
        default: Its own choice, or :data:`UNSET`.
        known: Container of the tasks that exist.

    Raises:
        TaskError: No choice among several tasks, or a task that was removed since it
            was chosen.
    """
    choice = (_blocks.get() or {}).get(id(owner), default)
    if not isinstance(choice, Unset):
        return as_choice(choice, known)
    if len(known) > 1:
        raise TaskError(
            f"no task was chosen and this encoder has several: {listing(known)}; "
            "call set_task or use_task with one of them, with one per utterance, "
            "or with None for the plain backbone"
        )
    return next(iter(known), None)


def resolve(
    owner: object, default: Choice | Unset, known: Collection[str], batch: int
) -> tuple[str, ...] | None:
    """The tasks of a batch.

    Args:
        owner: The encoder.
        default: Its own choice, or :data:`UNSET`.
        known: Container of the tasks that exist.
        batch: Number of utterances.

    Returns:
        None for the plain backbone, one name for all, or one name per utterance.

    Raises:
        TaskError: No choice among several tasks, a list of another length than the
            batch, or a task that was removed since it was chosen.
    """
    choice = current(owner, default, known)
    if choice is None or isinstance(choice, str):
        return None if choice is None else (choice,)
    if len(choice) != batch:
        raise TaskError(
            f"{len(choice)} tasks were chosen for a batch of {batch} utterances: give "
            "one name for all, or one per utterance"
        )
    return choice
