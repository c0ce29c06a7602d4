"""Residual (bottleneck) adapters: one small network per task *and layer*.

``y_l = x_l + U_l relu(D_l LN_l(x_l) + d_l) + u_l`` after every layer l, with D: (r, d),
U: (d, r). Nothing is shared between layers or tasks, so that a task costs
``L (2dr + r + d + 2d)`` parameters, the last 2d for its norm. U and u start at zero:
step 0 is the backbone.
"""

import torch
import torch.nn.functional as F

from espnet_hra.methods.base import Adapter, Backbone, OnePass
from espnet_hra.methods.checks import check_size
from espnet_hra.methods.tensors import affine, init_matrix
from espnet_hra.tasks.bank import zeros
from espnet_hra.tasks.layout import Tensors


class ResidualAdapter(Adapter):
    """A bottleneck after every layer, one for each task.

    Args:
        backbone: The encoder.
        rank: Width r of the bottleneck.

    Raises:
        ConfigError: A value is not possible.
    """

    def __init__(self, backbone: Backbone, rank: int = 8):
        check_size("rank", rank)
        d, layers = backbone.width, len(backbone.layers)
        super().__init__(
            {"adapter": "residual", "width": d, "layers": layers, "rank": rank},
            {
                "norm.weight": (layers, d),
                "norm.bias": (layers, d),
                "D": (layers, rank, d),
                "d": (layers, rank),
                "U": (layers, d, rank),
                "u": (layers, d),
            },
            _initialise,
        )
        self._size = (d, layers, rank)

    def after_layers(self, tensors: Tensors) -> OnePass:
        return _Bottlenecks(tensors)

    def count(self) -> tuple[int, int]:
        d, layers, r = self._size
        return 0, layers * (2 * d * r + r + d + 2 * d)

    def own_macs(self) -> int:
        d, layers, r = self._size
        return layers * 2 * d * r


def _initialise(tensors: Tensors) -> None:
    zeros(tensors)
    tensors["norm.weight"].fill_(1.0)
    init_matrix(tensors["D"])


class _Bottlenecks(OnePass):
    """The tensors of one pass, by layer: (...), or (b, ...) for a mixed batch."""

    def __init__(self, tensors: Tensors):
        super().__init__()
        self.mixed = tensors["u"].dim() == 3
        axis = 1 if self.mixed else 0
        # All at once: the gradient of one unbind is one stack, that of L selections
        # is L tensors of the full size.
        self.tensors = {name: t.unbind(axis) for name, t in tensors.items()}

    def step(self, index: int, x: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        p = {name: layers[index] for name, layers in self.tensors.items()}
        inner = affine(self._norm(x, p), p["D"], p["d"]).relu_()
        return affine(inner, p["U"], p["u"]).to(x.dtype).add_(x)  # in place: y = x + ..

    def _norm(self, x: torch.Tensor, p: Tensors) -> torch.Tensor:
        if not self.mixed:
            return F.layer_norm(x, x.shape[-1:], p["norm.weight"], p["norm.bias"])
        shape = (x.size(0), *[1] * (x.dim() - 2), x.size(-1))
        weight, bias = p["norm.weight"].view(shape), p["norm.bias"].view(shape)
        return F.layer_norm(x, x.shape[-1:]) * weight + bias  # [b, ..., d]
