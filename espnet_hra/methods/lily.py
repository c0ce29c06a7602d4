"""Lily (arXiv 2407.09946): low-rank changes whose matrices are shared across layers.

``W_l x + s sum_e p_e B_e A x`` with ``p = softmax(R_l A x)``. Of the matrices W_l that
have the same name in every layer, ``stride`` neighbours share one A: (r, inputs), and
all share the ``experts`` matrices B_e: (outputs, r), which the router R_l: (experts, r)
of each layer mixes. So it is the nearest relative of one controller and one head for
all layers. All of it is each task's own. B starts at zero: step 0 is the backbone.

PEFT's Lily, from which the shapes and names of the keys are, averages p over the whole
batch, padding included, so that what is heard in one recording would depend on the
others and on how often a step is repeated. Here each frame has its own p; where there
is one frame only, both are the same.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from espnet_hra.methods.base import Adapter, Backbone
from espnet_hra.methods.checks import check_number, check_size, is_number
from espnet_hra.methods.linear import ALL_LINEAR, find
from espnet_hra.methods.substitution import Change
from espnet_hra.methods.tensors import affine, init_matrix
from espnet_hra.tasks.bank import zeros
from espnet_hra.tasks.layout import Tensors


class Lily(Adapter):
    """Changes of rank r whose matrices layers share, one set for each task.

    Args:
        backbone: The encoder.
        rank: Rank r.
        stride: How many neighbouring layers share A (PEFT: ``stride_A``).
        experts: How many B there are for all layers (PEFT: ``num_B``).
        scaling: The changes are multiplied by it.
        matrices: Names of linear modules within a layer, or how these names end;
            ``all`` for every one.

    Raises:
        ConfigError: A value is not possible.
    """

    mixes = False

    def __init__(
        self,
        backbone: Backbone,
        rank: int = 8,
        stride: int = 3,
        experts: int = 4,
        scaling: float = 1.0,
        matrices: str | Sequence[str] = ALL_LINEAR,
    ):
        check_size("rank", rank)
        check_size("stride", stride)
        check_size("experts", experts)
        above = is_number(scaling) and scaling > 0
        check_number("scaling", scaling, above, "above 0")
        shapes: dict[str, Sequence[int]] = {}
        layers: dict[str, int] = {}  # how many have had a matrix of this name and shape
        names_of: dict[str, tuple[str, str, str]] = {}
        macs = 0
        for path, module in find(backbone, matrices).items():
            outputs, inputs = module.weight.shape
            name = path.removeprefix(f"{backbone.path}.").partition(".")[2]
            name = f"{name}.{outputs}x{inputs}"  # layers need not be alike
            group = layers.get(name, 0) // stride
            layers[name] = layers.get(name, 0) + 1
            own = (f"{name}.A{group}", f"{name}.B", f"{path}.router")
            shapes[own[0]] = (rank, inputs)
            shapes[own[1]] = (experts, outputs, rank)
            shapes[own[2]] = (experts, rank)
            names_of[path] = own
            macs += rank * inputs + experts * rank + experts * rank * outputs
        config: dict[str, Any] = {
            "adapter": "lily",
            "width": backbone.width,
            "layers": len(backbone.layers),
            "rank": rank,
            "stride": stride,
            "experts": experts,
            "scaling": scaling,
            "matrices": matrices if matrices == ALL_LINEAR else sorted(matrices),
        }
        super().__init__(config, shapes, _initialise)
        self._paths, self._macs, self._scaling = names_of, macs, float(scaling)

    def changes(self, tensors: Tensors) -> Mapping[str, Change]:
        return {
            path: functools.partial(
                _Mixed, own=[tensors[name] for name in names], scaling=self._scaling
            )
            for path, names in self._paths.items()
        }

    def count(self) -> tuple[int, int]:
        r, e = self.own_config["rank"], self.own_config["experts"]
        sizes: dict[str, int] = {}
        for a, b, router in self._paths.values():
            outputs, inputs = map(int, b[:-2].rpartition(".")[2].split("x"))
            sizes |= {a: r * inputs, b: e * r * outputs, router: e * r}
        return 0, sum(sizes.values())

    def own_macs(self) -> int:
        return self._macs


def _initialise(tensors: Tensors) -> None:
    zeros(tensors)
    for name, tensor in tensors.items():
        if not name.endswith(".B"):
            init_matrix(tensor)  # as PEFT does


class _Mixed(torch.nn.Module):
    """A frozen linear module and its change, for one pass.

    Args:
        linear: The frozen module.
        own: A, all B, and the router.
        scaling: The change is multiplied by it.
    """

    def __init__(
        self, linear: torch.nn.Module, own: Sequence[torch.Tensor], scaling: float
    ):
        super().__init__()
        self.linear, self.own, self.scaling = linear, own, scaling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As of the frozen module: (..., inputs) to (..., outputs)."""
        a, b, router = self.own
        y = self.linear(x)
        inner = affine(x, a)  # [..., r]
        p = affine(inner, router).softmax(-1)  # [..., e]
        each = (p.unsqueeze(-1) * inner.unsqueeze(-2)).flatten(-2)  # [..., e r]
        change = affine(each.to(inner.dtype), b.transpose(0, 1).flatten(1))
        return y + (self.scaling * change).to(y.dtype)
