"""The encoder as one pass sees it: each layer is followed by a step of the adapter.

A view is a shallow copy of the encoder that shares all parameters, buffers and
submodules. It belongs to one call, so threads and nested calls cannot meet.
"""

from collections.abc import Mapping
from typing import Any

import torch

from espnet_hra.encoder.layers import Layers, with_layers
from espnet_hra.methods.base import OnePass
from espnet_hra.methods.substitution import Change, changed, shallow_copy


def view[M: torch.nn.Module](
    encoder: M,
    layers: Layers,
    after_layer: OnePass | None,
    changes: Mapping[str, Change],
) -> M:
    """A shallow copy of an encoder for one pass.

    Args:
        encoder: Is left as it is.
        layers: Where its layers are.
        after_layer: What follows each layer; None for nothing.
        changes: What stands in for parts of the encoder, by dotted path.
    """
    copied = changed(encoder, changes) if changes else shallow_copy(encoder)
    return with_layers(
        copied,
        layers,
        lambda index, layer: _AdaptedLayer(_private(layer), index, after_layer),
    )


class _AdaptedLayer:
    """A layer of the encoder, followed by a step of the adapter.

    Layers take ``x`` or ``(x, pos_emb)`` first, and return ``x``, ``(x, mask, ...)`` or
    ``((x, pos_emb), mask, ...)``; only x changes. Whatever else is asked of a layer is
    answered by the layer.
    """

    def __init__(self, layer: torch.nn.Module, index: int, after_layer: OnePass | None):
        self._layer, self._index = layer, index
        self._after_layer: Any = after_layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._layer(*args, **kwargs)
        if self._after_layer is None:
            return output
        given = args[0] if args else next(iter(kwargs.values()))
        return self._adapt(output, given[0] if isinstance(given, tuple) else given)

    def _adapt(self, output: Any, given: torch.Tensor) -> Any:
        if isinstance(output, torch.Tensor):
            return self._after_layer(self._index, output, given)
        return (self._adapt(output[0], given), *output[1:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _private(layer: torch.nn.Module) -> torch.nn.Module:
    """A layer for one pass: ESPnet's attention keeps its weights on the module.

    It writes them to ``self.attn`` and reads them back, so that threads would take each
    other's. Copies of such modules share everything else, hooks included.
    """
    stateful = {
        name: shallow_copy(child)
        for name, child in layer._modules.items()
        if child is not None and "attn" in child.__dict__
    }
    if stateful:
        layer = shallow_copy(layer)
        layer._modules = {**layer._modules, **stateful}
    return layer
