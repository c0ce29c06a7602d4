"""Chunk after chunk: the encoder of ``asr_transducer`` while somebody speaks.

Its ``chunk_forward`` is given the frames of a chunk, and each of its blocks keeps what
the next chunk must see. The adapter has no part in that: it looks at one frame at a
time, and what the blocks keep comes of what it has made of the frames.
"""

from typing import Any

import torch

from espnet_hra.encoder import selection
from espnet_hra.encoder.layers import Layers
from espnet_hra.methods.base import Adapter, OnePass


class TakesChunks:
    """Mixin for adapted encoders whose ESPnet class has a ``chunk_forward``."""

    backbone_class: Any
    adapter: Adapter
    layer_list: Layers

    def _names(self, xs_pad: torch.Tensor) -> tuple[str, ...]:
        raise NotImplementedError

    def _prepared(self, names: tuple[str, ...]) -> tuple[Any, OnePass | None]:
        raise NotImplementedError

    def chunk_forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The wrapped encoder's ``chunk_forward``, with the chosen task.

        Whoever begins a stream calls ``reset_cache``, and keeps to one task until it
        ends.

        Args:
            x: Features of a chunk, (1, frames, d).
            *args: As of ESPnet's class.
            **kwargs: As of ESPnet's class.

        Raises:
            TaskError: Several tasks and no choice, or a choice that does not fit.
        """
        with self.adapter.heads.hold():
            names = self._names(x)
            prepared, after_layer = self._prepared(names)
            with selection.block(self, next(iter(names), None)):
                try:
                    output = self.backbone_class.chunk_forward(
                        prepared, x, *args, **kwargs
                    )
                finally:
                    if after_layer is not None:
                        after_layer.end()
        # The blocks of a pass are copies, which go; what they keep stays.
        own: Any = self
        passing = prepared.encoders.blocks._modules.values()
        for block, used in zip(own.encoders.blocks, passing):
            block.cache = used.cache
        return output
