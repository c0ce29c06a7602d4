"""Activation checkpointing: what runs again in backward must meet what it met before.

torch.utils.checkpoint throws activations away and runs the forward pass once more when
the backward pass needs them. By then a ``use_task`` block may have ended, and the state
of the recurrence over depth has moved on.
"""

import torch
from torch.utils.weak import WeakTensorKeyDictionary


def in_backward() -> bool:
    """Whether this thread runs a backward pass (so a forward recomputes activations).

    torch.utils.checkpoint itself asks the same question in this way.
    """
    return torch._C._current_graph_task_id() != -1


def in_checkpoint() -> bool:
    """Whether what is computed now may be computed again during backward.

    True within torch.utils.checkpoint, whose saved-tensor hooks are then in force.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks
    return torch.is_grad_enabled() and hooks(True) is not None


class Passes:
    """With which tasks which input was encoded.

    A checkpoint around the whole encoder calls its ``forward`` once more, maybe after
    the ``use_task`` block, and on a GPU in another thread. The choice made for the same
    input tensor is then the one to repeat.
    """

    def __init__(self) -> None:
        self._choices = WeakTensorKeyDictionary()
        self._latest: tuple[str, ...] | None = None

    def record(self, xs_pad: torch.Tensor, names: tuple[str, ...]) -> None:
        """Remember a choice; refuse one that cannot be known to be a repetition."""
        if in_backward():
            if self._latest is not None and names != self._latest:
                raise RuntimeError(
                    "activation checkpointing runs the encoder again, and the tasks "
                    f"now chosen are not those of its latest pass ({names} instead of "
                    f"{self._latest}): checkpoint the encoder itself, with "
                    "use_reentrant=False, or keep the choice by set_task"
                )
            return
        self._latest = names
        if in_checkpoint():
            choices, consumed = self._choices.get(xs_pad, ([], False))
            # A new forward pass after a backward pass begins anew.
            self._choices[xs_pad] = ([*([] if consumed else choices), names], False)

    def repeated(self, xs_pad: torch.Tensor) -> tuple[str, ...] | None:
        """The choice of the pass that is being repeated; None if it is not known."""
        if xs_pad not in self._choices:
            return None
        choices, _ = self._choices[xs_pad]
        if len(set(choices)) > 1:
            raise RuntimeError(
                "activation checkpointing cannot tell with which of several tasks to "
                "run the encoder again on one and the same input tensor: give each "
                "task a tensor of its own, e.g. xs_pad.view_as(xs_pad)"
            )
        self._choices[xs_pad] = (choices, True)
        return choices[0]
