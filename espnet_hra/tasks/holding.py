"""Requests: a task stays what it is from its first use to the end of a block.

For one thread and without gradients. While a request is served, its tasks may be
replaced or removed; encoder, CTC and search use them one after the other all the same.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import NamedTuple

import torch


class Held(NamedTuple):
    """A task as it was when a request first used it.

    Attributes:
        vector: Its flat vector.
        labels: What it tells, if it classifies.
    """

    vector: torch.Tensor
    labels: tuple[str, ...] = ()


# The tasks that the running requests began with, by the id of their bank, which the
# request keeps alive. Contexts are copied on write: other threads never see a change.
_held: ContextVar[Mapping[int, dict[str, Held]] | None] = ContextVar(
    "espnet_hra_held", default=None
)


@contextlib.contextmanager
def hold(bank: torch.nn.Module) -> Iterator[None]:
    """A block that is one request. Blocks within a block belong to it."""
    held = _held.get() or {}
    if id(bank) in held:
        yield
        return
    token = _held.set({**held, id(bank): {}})
    try:
        yield
    finally:
        _held.reset(token)


def of(bank: torch.nn.Module) -> dict[str, Held]:
    """The tasks that the running request has used, by name; empty without one."""
    held = (_held.get() or {}).get(id(bank))
    return {} if held is None else held
