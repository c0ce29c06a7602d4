"""What a task may have besides what it has for the encoder's layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from espnet_hra.methods.substitution import Change
from espnet_hra.tasks.bank import Initialise, TaskBank
from espnet_hra.tasks.layout import Section, Tensors


@dataclass
class OwnProjection:
    """The CTC projection that every task has for itself (``ctc: task``).

    Attributes:
        section: Where it lies in a task's vector.
        vocab_size: Number of tokens.
        new_tokens: Those that the backbone does not have.
        attached: Whether a model's CTC asks for it.
    """

    section: Section
    vocab_size: int
    new_tokens: list[str]
    attached: bool = False


@dataclass
class DecoderPart:
    """The method on the layers of the attention decoder (``decoder: true``).

    Attributes:
        method: The same method with the same keys, built on the decoder. Its tasks are
            those of the encoder's, whose vectors hold the tensors for both.
        heads: These vectors.
        section: Where in them the decoder's tensors lie.
    """

    method: Any
    heads: TaskBank
    section: Section

    def begin(self, names: Sequence[str], dtype: torch.dtype | None) -> Any:
        """Start a pass over the decoder's layers, see ``Adapter.begin``."""
        return self.method.after_layers(self._tensors(names, dtype))

    def changes_for(self, name: str) -> Mapping[str, Change]:
        """What a pass with this task changes within the decoder, by dotted path."""
        shared = self.method.shared_changes()
        if self.method.mixes:
            return shared
        return {**shared, **self.method.changes(self._tensors([name], None))}

    def _tensors(self, names: Sequence[str], dtype: torch.dtype | None) -> Tensors:
        return _own_names(self.heads.gather(names, dtype, self.section))


#: What the names of the decoder's tensors begin with in a task's vector.
_IN_DECODER = "decoder."


def in_decoder(named: Mapping[str, Any]) -> dict[str, Any]:
    """What belongs to the decoder's tensors, by their names in a task's vector."""
    return {f"{_IN_DECODER}{name}": value for name, value in named.items()}


def _own_names(tensors: Tensors) -> Tensors:
    """The decoder's tensors by the names that the method gives them."""
    return {name.removeprefix(_IN_DECODER): t for name, t in tensors.items()}


def initialise_part(initialise: Initialise, tensors: Tensors) -> None:
    """Fill the decoder's tensors as its method does."""
    initialise(_own_names(tensors))
