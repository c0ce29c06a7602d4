"""What ``torch.compile`` sees of an adapted encoder: the pass through its layers.

Which tasks a batch has, and where their heads come from, is decided anew by each call
and must not become part of a graph: a graph that knows a task would be compiled again
for every other one. So graphs begin where the wrapped encoder's own ``forward`` does,
and the heads are inputs like any other tensor: one graph serves all tasks.
"""

import functools
from typing import Any

import torch

from espnet_hra.encoder import mixed

#: Methods that run as Python; what they call is compiled.
_BETWEEN = ("forward", "_run")
#: Methods that run as Python, and all that they call.
_OUTSIDE = ("_names", "_prepared", "tasks_of_batch")


@functools.cache
def leave_outside(encoder_class: type) -> None:
    """Keep the choice of tasks out of graphs. Once for a class.

    Not by decorators: those import the compiler, which takes seconds, where ESPnet has
    not imported it yet.
    """
    for name in _BETWEEN + _OUTSIDE:
        _disable(encoder_class, name, name in _OUTSIDE)
    _disable(mixed, "task_by_task", False)
    _disable(mixed, "by_name", True)


def _disable(owner: Any, name: str, with_all_it_calls: bool) -> None:
    function = torch.compiler.disable(getattr(owner, name), recursive=with_all_it_calls)
    setattr(owner, name, function)
