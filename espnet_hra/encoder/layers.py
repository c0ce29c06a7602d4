"""Where an encoder keeps its layers: the one place that knows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import Backbone
from espnet_hra.methods.substitution import shallow_copy
from espnet_hra.names import known_encoders


@dataclass(frozen=True)
class Layers:
    """The list of an encoder's layers.

    Attributes:
        path: Name of the list within the encoder.
    """

    path: str

    def of(self, encoder: torch.nn.Module) -> torch.nn.Module:
        """The list itself, a ``Sequential`` or ``ModuleList``."""
        return encoder.get_submodule(self.path)

    def backbone(self, encoder: Any) -> Backbone:
        """What a method may know of an encoder of ESPnet's."""
        layers = list(self.each(encoder))
        return Backbone(encoder, encoder.output_size(), layers, self.path)

    def each(self, encoder: torch.nn.Module) -> Iterator[torch.nn.Module]:
        """The layers, in order."""
        return self.of(encoder).children()


def find_layers(encoder: torch.nn.Module, name: str) -> Layers:
    """Where the layers of an encoder are.

    Args:
        encoder: The encoder.
        name: How messages name it.

    Raises:
        ConfigError: It does not keep a list of layers, or is a streaming one.
    """
    layers = getattr(encoder, "encoders", None)
    if not isinstance(layers, torch.nn.Sequential | torch.nn.ModuleList):
        raise ConfigError(
            f"{name} does not keep its layers in a list called `.encoders` and cannot "
            f"be wrapped; {known_encoders()} can"
        )
    if hasattr(encoder, "forward_infer"):
        raise ConfigError(
            f"{name} is a streaming encoder, and its layers hand on a context that is "
            f"not adapted yet; {known_encoders()} can be wrapped"
        )
    return Layers("encoders")


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
    own = shallow_copy(layers.of(copied))
    own._modules = {
        key: change(i, layer)
        for i, (key, layer) in enumerate(own._modules.items())
        if layer is not None
    }
    copied._modules = {**copied._modules, layers.path: own}
    return copied
