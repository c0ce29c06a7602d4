"""Training steps with ten thousand tasks, of which a batch uses a few.

Clipping and optimizers look at every parameter of a model, several times a step and
through layers of Python. Here they look at those that can matter. What they compute
stays the same, bit for bit: torch's optimizers skip a parameter without a gradient as
well, only later.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from espnet_hra.tasks.bank import TaskBank


def parameters(module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """What ``module.parameters()`` gives, in the same order, in a tenth of the time.

    torch makes up a name for each parameter and remembers it, not to give it twice. No
    two tasks are the same parameter.
    """
    seen = set()
    for child in module.modules():
        # Copies: other threads may add tasks meanwhile.
        if isinstance(child, TaskBank):
            yield from [p for p in list(child._parameters.values()) if p is not None]
            continue
        for parameter in list(child._parameters.values()):
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


@contextlib.contextmanager
def used_only(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[None]:
    """A block in which the steps of optimizers meet only parameters with a gradient.

    Args:
        optimizers: A step with a closure is left as it is: it computes the gradients
            itself.

    Examples:
        >>> with used_only([optimizer]):
        ...     for batch in batches:
        ...         loss(batch).backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
    """
    with contextlib.ExitStack() as stack:
        for optimizer in optimizers:
            narrow = _Narrow(optimizer)
            stack.callback(narrow.restore)  # after a step that has failed
            for hook in (
                optimizer.register_step_pre_hook(narrow.before),
                optimizer.register_step_post_hook(narrow.after),
            ):
                stack.callback(hook.remove)
        yield


class _Narrow:
    """Takes parameters without a gradient out of an optimizer while it steps."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = optimizer
        self._every: list[list[torch.nn.Parameter]] = []

    def before(self, optimizer: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        self.restore()
        # The first argument is the optimizer itself.
        if callable(kwargs.get("closure", args[1] if len(args) > 1 else None)):
            return
        groups = self._optimizer.param_groups
        self._every = [group["params"] for group in groups]
        for group in groups:
            group["params"] = [p for p in group["params"] if p.grad is not None]

    def after(self, *_: Any) -> None:
        self.restore()

    def restore(self) -> None:
        for group, every in zip(self._optimizer.param_groups, self._every):
            group["params"] = every
        self._every = []
