"""A method as CONTRIBUTING.md describes it: one module, one line in METHODS.

Each task shifts what every layer returns by a vector: ``y_l = x_l + s_l``.
"""

import torch

from espnet_hra.methods.base import Adapter, Backbone, OnePass
from espnet_hra.tasks.layout import Tensors


class Shift(Adapter):
    """One vector for each layer, and for each task.

    Args:
        backbone: The encoder.
    """

    def __init__(self, backbone: Backbone):
        layers, d = len(backbone.layers), backbone.width
        config = {"adapter": "toy", "width": d, "layers": layers}
        super().__init__(config, {"s": (layers, d)})

    def after_layers(self, tensors: Tensors) -> OnePass:
        return _Shifts(tensors["s"])

    def count(self) -> tuple[int, int]:
        return 0, self.own_config["layers"] * self.width

    def own_macs(self) -> int:
        return 0


class _Shifts(OnePass):
    def __init__(self, s: torch.Tensor):
        super().__init__()
        self.s = s.unbind(-2)  # by layer: (d), or (b, d) for a mixed batch

    def step(self, index: int, x: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        return x + self.s[index].to(x.dtype).unsqueeze(-2)
