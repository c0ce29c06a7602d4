"""Where an encoder keeps its layers: the one place that knows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import Backbone
from espnet_hra.methods.substitution import changed, shallow_copy
from espnet_hra.names import known_encoders

_LISTS = (torch.nn.Sequential, torch.nn.ModuleList)


@dataclass(frozen=True)
class Layers:
    """The list of an encoder's layers.

    Attributes:
        path: Dotted path of the list within the encoder.
        streaming: Whether layers hand a context from block to block, see
            :mod:`espnet_hra.encoder.view`.
        passed: Which of the list, from 0, are no layers to adapt: their frames or
            their width are others than at the end.
    """

    path: str
    streaming: bool = False
    passed: frozenset[int] = frozenset()

    def of(self, encoder: torch.nn.Module) -> torch.nn.Module:
        """The list itself, a ``Sequential`` or ``ModuleList``."""
        return encoder.get_submodule(self.path)

    @property
    def batch_first(self) -> bool:
        """Whether the first axis of what layers return is known to be the batch.

        In others it may be time. Then tasks of a mixed batch run one after the other.
        """
        return self.path in ("encoders", "encoders.blocks")

    def backbone(self, encoder: Any) -> Backbone:
        """What a method may know of an encoder of ESPnet's."""
        width, layers = encoder.output_size, list(self.each(encoder))
        if not isinstance(width, int):
            width = width()
        indices = None
        if self.passed:
            everything = range(len(list(self.of(encoder).children())))
            indices = [i for i in everything if i not in self.passed]
        return Backbone(encoder, width, layers, self.path, indices=indices)

    def each(self, encoder: torch.nn.Module) -> Iterator[torch.nn.Module]:
        """The layers, in order."""
        for i, layer in enumerate(self.of(encoder).children()):
            if i not in self.passed:
                yield layer

    def position(self, index: int) -> int:
        """Which layer, from 0, the one at an index of the list is."""
        return index - sum(i < index for i in self.passed)


def find_layers(encoder: torch.nn.Module, name: str) -> Layers:
    """Where the layers of an encoder are: ``.encoders``, or wherever they hang.

    Whisper keeps them in ``encoders.blocks``, BEATs in ``encoder.layers``, HuBERT in
    ``...transformer.layers``: the list of alike modules with most of the parameters.

    Args:
        encoder: The encoder.
        name: How messages name it.

    Raises:
        ConfigError: It does not keep a list of layers.
    """
    if isinstance(getattr(encoder, "encoders", None), _LISTS):
        return Layers("encoders", streaming=hasattr(encoder, "forward_infer"))
    if hasattr(encoder, "chunk_forward"):  # of asr_transducer
        return Layers("encoders.blocks", passed=_not_alike(encoder))
    if any(isinstance(module, torch.nn.RNNBase) for module in encoder.modules()):
        raise ConfigError(
            f"{name} is recurrent over time: there is no list of layers `.encoders`, "
            "through whose depth a controller could run; "
            f"{known_encoders()} can be wrapped, and others that have one"
        )
    lists = {
        path: sum(p.numel() for p in module.parameters())
        for path, module in encoder.named_modules()
        if isinstance(module, _LISTS) and len({type(m) for m in module.children()}) == 1
    }
    path = max(lists, key=lambda path: (lists[path], -len(path)), default="")
    if 2 * lists.get(path, 0) < sum(p.numel() for p in encoder.parameters()):
        raise ConfigError(
            f"{name} does not keep its layers in a list (`.encoders`, or another with "
            f"most of its parameters) and cannot be wrapped; {known_encoders()} can"
        )
    return Layers(path)


def _not_alike(encoder: Any) -> frozenset[int]:
    """Which blocks of an encoder of ``asr_transducer`` are no layers to adapt.

    These are convolutions (``conv1d``), after which frames are others, and blocks that
    are narrower or wider than the last one.

    Raises:
        ConfigError: It has no others.
    """
    blocks = list(encoder.encoders.blocks)
    widths = [getattr(block, "block_size", None) for block in blocks]
    passed = {i for i, width in enumerate(widths) if width != encoder.output_size}
    if len(passed) == len(blocks):
        raise ConfigError(
            "body_conf: none of these blocks can be adapted: the adapter follows "
            "blocks of conformer, branchformer and ebranchformer that are as wide as "
            f"the encoder's output ({encoder.output_size}), and there is none"
        )
    return frozenset(passed)


def with_layers[M: torch.nn.Module](
    copied: M, layers: Layers, change: Callable[[int, torch.nn.Module], Any]
) -> M:
    """Give a shallow copy of an encoder other layers; the original keeps its own.

    Args:
        copied: The copy.
        layers: Where its layers are.
        change: Makes the new layer of an index and the old one. What it returns need
            not be a module: it is called as one.
    """

    def renewed(own: torch.nn.Module) -> torch.nn.Module:
        new = shallow_copy(own)
        new._modules = {
            key: change(i, layer)
            for i, (key, layer) in enumerate(own._modules.items())
            if layer is not None
        }
        return new

    return changed(copied, {layers.path: renewed})
