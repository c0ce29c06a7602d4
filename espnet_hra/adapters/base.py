"""What an adapter is to the encoder: the small protocol behind the key `adapter:`."""

from typing import Any, Callable, Dict, Sequence, Tuple

import torch

from espnet_hra.bank import TaskBank

#: Called after each layer: (index of the layer, its output [b, ..., d]) -> what the
#: next layer receives, of the same shape.
AfterLayer = Callable[[int, torch.Tensor], torch.Tensor]


class Adapter(torch.nn.Module):
    """A module that lives at ``encoder.adapter`` and changes what layers pass on.

    A subclass sets :attr:`heads`, and yields for every forward pass of the encoder a
    fresh :data:`AfterLayer` that holds all state of this one pass. Because the state
    belongs to the pass and not to the module, threads, nested calls and activation
    checkpointing cannot mix it up.

    Attributes:
        heads: The parameters of the tasks.
    """

    heads: TaskBank

    @property
    def tasks(self) -> Tuple[str, ...]:
        """Names of the tasks."""
        return self.heads.names

    @property
    def config(self) -> Dict[str, Any]:
        """What a task's head and the shared part must agree on."""
        raise NotImplementedError

    def shared_parameters(self) -> Dict[str, torch.nn.Parameter]:
        """Parameters that all tasks share, by name."""
        return {
            name: p
            for name, p in self.named_parameters()
            if not name.startswith("heads.")
        }

    def add_task(self, name: str) -> None:
        """Add a task that changes nothing yet. See :meth:`TaskBank.add`."""
        raise NotImplementedError

    def begin(self, names: Sequence[str]) -> AfterLayer:
        """Start a pass over the depth of the encoder.

        Args:
            names: One task per utterance of the batch, or one for all.

        Raises:
            TaskError: A task is unknown.
        """
        raise NotImplementedError

    def formula(self) -> Dict[str, int]:
        """Parameter counts from the method's arithmetic: ``shared``, ``per_task``."""
        raise NotImplementedError

    def macs(self) -> int:
        """Multiply-accumulates that the adapter adds per encoder frame."""
        raise NotImplementedError
