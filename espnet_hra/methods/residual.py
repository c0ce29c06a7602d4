"""Residual (bottleneck) adapters: one small network per task *and layer*.

``y_l = x_l + U_l relu(D_l LN_l(x_l) + d_l) + u_l`` after every layer l, with D: (r, d),
U: (d, r). Nothing is shared between layers or tasks, so that a task costs
``L (2dr + r + d + 2d)`` parameters, the last 2d for its norm. U and u start at zero:
step 0 is the backbone.

With ``placement: parallel`` (arXiv 2110.04366) the bottleneck stands beside the layer's
feed-forward module instead: ``f_l(z) + U_l relu(D_l z + d_l) + u_l``, where z is what
that module f_l is given. The layer has normalised it, so there is no other norm. Of two
such modules in a layer (Conformers in macaron style) it is the second.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import Adapter, Backbone, OnePass
from espnet_hra.methods.checks import check_choice, check_size
from espnet_hra.methods.substitution import Change
from espnet_hra.methods.tensors import affine, init_matrix
from espnet_hra.tasks.bank import zeros
from espnet_hra.tasks.layout import Tensors

#: How layers call their feed-forward module: ESPnet's, and Whisper's.
_FEED_FORWARD = ("feed_forward", "mlp")


class ResidualAdapter(Adapter):
    """A bottleneck after every layer, or in it, one for each task.

    Args:
        backbone: The encoder.
        rank: Width r of the bottleneck.
        placement: ``after`` the layer, or ``parallel`` to its feed-forward module.

    Raises:
        ConfigError: A value is not possible, or a layer has no feed-forward module.
    """

    def __init__(self, backbone: Backbone, rank: int = 8, placement: str = "after"):
        check_size("rank", rank)
        check_choice("placement", placement, ("after", "parallel"))
        d, layers = backbone.width, len(backbone.layers)
        config: dict[str, Any] = {
            "adapter": "residual",
            "width": d,
            "layers": layers,
            "rank": rank,
        }
        norm = {"norm.weight": (layers, d), "norm.bias": (layers, d)}
        beside: list[str] = []
        if placement == "parallel":
            beside = _feed_forwards(backbone)
            norm, config["placement"] = {}, placement
        super().__init__(
            config,
            {
                **norm,
                "D": (layers, rank, d),
                "d": (layers, rank),
                "U": (layers, d, rank),
                "u": (layers, d),
            },
            _initialise,
        )
        self._beside, self.mixes = beside, not beside
        self._size = (d, layers, rank)

    def after_layers(self, tensors: Tensors) -> OnePass:
        return OnePass() if self._beside else _Bottlenecks(tensors)

    def changes(self, tensors: Tensors) -> Mapping[str, Change]:
        layers = {name: t.unbind(0) for name, t in tensors.items()}
        return {
            path: functools.partial(
                _Beside, tensors={k: t[i] for k, t in layers.items()}
            )
            for i, path in enumerate(self._beside)
        }

    def count(self) -> tuple[int, int]:
        d, layers, r = self._size
        norm = 0 if self._beside else 2 * d
        return 0, layers * (2 * d * r + r + d + norm)

    def own_macs(self) -> int:
        d, layers, r = self._size
        return layers * 2 * d * r


def _initialise(tensors: Tensors) -> None:
    zeros(tensors)
    if "norm.weight" in tensors:
        tensors["norm.weight"].fill_(1.0)
    init_matrix(tensors["D"])


def _feed_forwards(backbone: Backbone) -> list[str]:
    """Paths of the layers' feed-forward modules, one a layer.

    Raises:
        ConfigError: A layer has none.
    """
    found = []
    for i, (path, layer) in enumerate(backbone.named.items()):
        names = [n for n in _FEED_FORWARD if n in dict(layer.named_children())]
        if not names:
            children = ", ".join(name for name, _ in layer.named_children())
            raise ConfigError(
                "adapter_conf: placement: parallel stands beside a feed-forward module "
                f"({', '.join(_FEED_FORWARD)}), and layer {i} of the {backbone.kind} "
                f"has none; it has: {children}. Take placement: after"
            )
        found.append(f"{path}.{names[0]}")
    return found


class _Beside(torch.nn.Module):
    """A feed-forward module and the bottleneck beside it, for one pass."""

    def __init__(self, inner: torch.nn.Module, tensors: Tensors):
        super().__init__()
        self.inner, self.own = inner, tensors

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """What the layer adds to its input. Arguments as of the frozen module."""
        own = self.own
        y = self.inner(z)
        return y + affine(affine(z, own["D"], own["d"]).relu(), own["U"], own["u"]).to(
            y.dtype
        )


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
