"""An encoder or decoder as one pass sees it: a step of the adapter after each layer.

A view is a shallow copy of the encoder that shares all parameters, buffers and
submodules. It belongs to one call, so threads and nested calls cannot meet.
"""

from collections.abc import Callable, Mapping
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
    # Some encoders count their updates, and what is frozen has none.
    counters = {
        name: buffer.clone()
        for name, buffer in copied._buffers.items()
        if buffer is not None and buffer.dtype == torch.long
    }
    if counters:
        copied._buffers = {**copied._buffers, **counters}
    usual = _ContextLayer if layers.streaming else _AdaptedLayer

    def followed(index: int, layer: torch.nn.Module) -> _AdaptedLayer:
        kind = _PassedLayer if index in layers.passed else usual
        return kind(_private(layer), layers.position(index), after_layer)

    return with_layers(copied, layers, followed)


class _AdaptedLayer:
    """A layer of the encoder, followed by a step of the adapter.

    Layers take ``x`` or ``(x, pos_emb)`` first, and return ``x``, ``(x, mask, ...)`` or
    ``((x, pos_emb), mask, ...)``; only x changes. A layer that is given a ``cache`` of
    what it returned before computes the last position only, and so does the adapter.
    Whatever else is asked of a layer is answered by the layer.
    """

    def __init__(self, layer: torch.nn.Module, index: int, after_layer: OnePass | None):
        self._layer, self._index = layer, index
        self._after_layer: Any = after_layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._followed(self._layer, args, kwargs)

    def chunk_forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer's own, of encoders that are given chunk after chunk."""
        layer: Any = self._layer  # one that can do it
        return self._followed(layer.chunk_forward, args, kwargs)

    def _followed(
        self, layer: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        output = layer(*args, **kwargs)
        if self._after_layer is None:
            return output
        given = args[0] if args else next(iter(kwargs.values()))
        if isinstance(given, tuple):
            given = given[0]
        return self._adapt(output, given, kwargs.get("cache") is not None)

    def _adapt(self, output: Any, given: torch.Tensor, cached: bool) -> Any:
        if not isinstance(output, torch.Tensor):
            return (self._adapt(output[0], given, cached), *output[1:])
        if not cached:
            return self._after_layer(self._index, output, given)
        last = self._after_layer(self._index, output[:, -1:], given[:, -1:])
        return torch.cat([output[:, :-1], last], dim=1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class _PassedLayer(_AdaptedLayer):
    """A layer that no step follows, and whose frames are others than before it."""

    def _adapt(self, output: Any, given: torch.Tensor, cached: bool) -> Any:
        self._after_layer.restart()
        return output


class _ContextLayer(_AdaptedLayer):
    """A layer of a contextual block encoder, ESPnet's streaming Conformer for one.

    Its input are blocks of frames, (b, blocks, frames, d). In each, the last frame
    gathers a context, which the next layer finds in the first frame of the next block.
    ESPnet's layer hands on what it has computed itself; here the context is taken again
    from what the adapter makes of it. So an utterance in blocks, one after the other,
    is what it is in one piece.
    """

    def __call__(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        infer_mode: bool = False,
        past_ctx: torch.Tensor | None = None,
        next_ctx: torch.Tensor | None = None,
        is_short_segment: bool = False,
        layer_idx: int = 0,
        cache: torch.Tensor | None = None,
    ) -> Any:
        own = (infer_mode, past_ctx, next_ctx, is_short_segment, layer_idx, cache)
        output = super().__call__(x, mask, *own)
        if self._after_layer is None or output[4] is None:
            return output  # as it is, or too short for blocks
        y, mask, infer_mode, past, following, short, index = output
        if infer_mode:  # one block after the other; (b, layers, d) for the next ones
            first = y[:, 0, -1] if past_ctx is None else past_ctx[:, layer_idx]
            y[:, 0, 0] = first
            y[:, 1:, 0] = y[:, :-1, -1]
            following[:, layer_idx] = y[:, -1, -1]
        elif index < following.size(2):  # all at once; (b, blocks, layers, d)
            past = following = following.clone()
            following[:, 0, index] = y[:, 0, -1]
            following[:, 1:, index] = y[:, :-1, -1]
        return y, mask, infer_mode, past, following, short, index


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
