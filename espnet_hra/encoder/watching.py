"""A look at what an adapter does, layer by layer, while a model works as usual."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.methods.base import OnePass

#: The parts of a model whose layers are adapted.
ENCODER, DECODER = "encoder", "decoder"


@dataclass(frozen=True)
class Step:
    """What followed one layer in one pass.

    Attributes:
        part: ``encoder`` or ``decoder``.
        layer: Which layer of it, from 0.
        x: What the layer has returned, (b, ..., d); a copy.
        y: What the next layer receives, (b, ..., d).
        state: The controller's state after this layer, (b, ..., c); None of methods
            without one.
        forgetful: The state that it would have if the state after layer 0 were zero,
            (b, ..., c); None at layer 0 itself.
        gate: How much of the state before is kept, (b, ..., c), of controllers that
            have a gate and a state before.
    """

    part: str
    layer: int
    x: torch.Tensor
    y: torch.Tensor
    state: torch.Tensor | None = None
    forgetful: torch.Tensor | None = None
    gate: torch.Tensor | None = None


class _Watched(OnePass):
    """A pass that tells what follows each layer."""

    def __init__(self, inner: Any, part: str, tell: Callable[[Step], None]):
        super().__init__()
        self._inner, self._part, self._tell = inner, part, tell
        self._forgetful: torch.Tensor | None = None
        self._latest = -1

    def step(self, index: int, x: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        before = x.detach().clone()  # a method may add to it in place
        came_from = getattr(self._inner, "h", None) if index > self._latest else None
        y = self._inner(index, x, given)
        state = getattr(self._inner, "h", None)
        forgetful = gate = None
        if state is not None:
            if index <= self._latest:  # the encoder runs its layers once more
                self._forgetful = None
            forgetful, gate = self._recomputed(index, before, given, came_from)
            self._forgetful = forgetful
        self._latest = index
        self._tell(Step(self._part, index, before, y, state, forgetful, gate))
        return y

    @torch.no_grad()
    def _recomputed(
        self,
        index: int,
        x: torch.Tensor,
        given: torch.Tensor,
        came_from: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The state without that of layer 0, and the gate."""
        adapter = self._inner.adapter
        read = given if adapter.reads == "input" else x
        at = self._inner.first + index
        came_from = _cut(came_from, read)
        gate = adapter.controller.gate(read, came_from, at)
        if index == 0:
            return None, gate
        forgetful = _cut(self._forgetful, read)
        return adapter.controller(read, forgetful, at), gate

    def restart(self) -> None:
        self._inner.restart()

    def end(self) -> None:
        super().end()
        self._inner.end()


def _cut(state: torch.Tensor | None, read: torch.Tensor) -> torch.Tensor | None:
    """A state with the frames that are left: an encoder may cut off a tail."""
    if state is None or state.size(-2) <= read.size(-2):
        return state
    return state[..., : read.size(-2), :]


@contextlib.contextmanager
def watching(encoder: AdaptedEncoder, tell: Callable[[Step], None]) -> Iterator[None]:
    """A block in which each step of the adapter is told, in encoder and decoder.

    It is for one thread: passes of others would be told as well.

    Args:
        encoder: The encoder; passes without a task tell nothing.
        tell: Is given each step.
    """
    adapter = encoder.adapter
    with contextlib.ExitStack() as stack:
        for part, holder in ((ENCODER, adapter), (DECODER, adapter.decoder)):
            if holder is None:
                continue
            begin = holder.begin

            def watched(
                *args: Any, begin: Any = begin, part: str = part, **kwargs: Any
            ) -> _Watched:
                return _Watched(begin(*args, **kwargs), part, tell)

            # Beside the class's own, which is there again afterwards.
            vars(holder)["begin"] = watched
            stack.callback(vars(holder).pop, "begin")
        yield


@contextlib.contextmanager
def layer_outputs(
    encoder: AdaptedEncoder, tell: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """A block in which what each layer of the encoder returns is told.

    Args:
        encoder: The encoder, with tasks or without.
        tell: Is given the layer, from 0, and its output, (b, ..., d).
    """

    def hook(index: int, module: Any, args: Any, output: Any) -> None:
        while isinstance(output, tuple):
            output = output[0]
        tell(index, output.detach())

    hooks = [
        layer.register_forward_hook(functools.partial(hook, i))
        for i, layer in enumerate(encoder.layer_list.each(encoder))
    ]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
