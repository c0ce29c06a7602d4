"""Copies of a module in which some parameters and submodules are others.

The copies are shallow: they share everything else with the original, which is not
written to. So one pass can have its own view of an encoder while others have theirs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

#: What stands in for a parameter or module of the encoder: a function of the original.
Change = Callable[[Any], Any]

REENTRANT = (
    "reentrant activation checkpointing of single layers would lose the gradient of "
    "{}: call torch.utils.checkpoint.checkpoint with use_reentrant=False"
)

#: Where torch's activation checkpointing and offloading wrappers keep their module.
_WRAPPED = "_checkpoint_wrapped_module"


def shallow_copy[M: torch.nn.Module](module: M) -> M:
    """A module of its own that shares everything that it holds with the original."""
    copied = module.__class__.__new__(module.__class__)
    copied.__dict__.update(module.__dict__)
    return copied


def changed[M: torch.nn.Module](module: M, changes: Mapping[str, Change]) -> M:
    """A shallow copy of a module in which some parameters and submodules are others.

    Args:
        module: Is left as it is.
        changes: What stands in for what, by the dotted path within the module.

    Raises:
        RuntimeError: A reentrant checkpoint around a layer would lose gradients.
    """
    if _WRAPPED in module._modules:  # a wrapper that its layer's paths do not show
        how = getattr(getattr(module, "checkpoint_impl", None), "name", None)
        if how == "REENTRANT" and torch.is_grad_enabled():
            raise RuntimeError(REENTRANT.format("the adapter"))
        changes = {f"{_WRAPPED}.{path}": change for path, change in changes.items()}
    by_child: dict[str, dict[str, Change]] = {}
    for path, change in changes.items():
        name, _, rest = path.partition(".")
        by_child.setdefault(name, {})[rest] = change
    copied = shallow_copy(module)
    copied._parameters = dict(module._parameters)
    copied._modules = dict(module._modules)
    for name, deeper in by_child.items():
        holder: dict[str, Any] = (
            copied._parameters if name in module._parameters else copied._modules
        )
        own = deeper.pop("", None)
        inner = changed(holder[name], deeper) if deeper else holder[name]
        holder[name] = own(inner) if own else inner
    return copied
