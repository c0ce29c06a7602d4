"""RoAd (arXiv 2409.00119): what linear modules return is rotated in planes, and scaled.

Each pair of outputs is rotated by an angle and multiplied by a scale that a task has
for itself, two numbers for two outputs (PEFT's variant ``road_1``): the smallest of
the budgets. Pairs are an output of the first and one of the second half of a group of
``group_size``.

What is computed is computed by PEFT's own layer. A task holds angles, and differences
of the scales to one: zero is the backbone, to which weight decay then draws.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import Adapter, Backbone
from espnet_hra.methods.checks import check_size
from espnet_hra.methods.linear import ALL_LINEAR, find, peft_layer
from espnet_hra.methods.substitution import Change, changed
from espnet_hra.tasks.layout import Tensors


class Road(Adapter):
    """Rotations of what linear modules return, one set for each task.

    Args:
        backbone: The encoder.
        group_size: Number of outputs of which the first and the second half are
            paired; an even one.
        matrices: Names of linear modules within a layer, or how these names end;
            ``all`` for every one whose outputs are groups of this size.

    Raises:
        ConfigError: A value is not possible, or PEFT is not installed.
    """

    mixes = False

    def __init__(
        self,
        backbone: Backbone,
        group_size: int = 64,
        matrices: str | Sequence[str] = ALL_LINEAR,
    ):
        check_size("group_size", group_size)
        if group_size % 2:
            raise ConfigError(
                f"adapter_conf: group_size: {group_size} must be even: the halves of a "
                "group are paired"
            )
        found = find(backbone, matrices)
        unfit = {p: m for p, m in found.items() if m.out_features % group_size}
        if unfit and (matrices != ALL_LINEAR or len(unfit) == len(found)):
            path, module = next(iter(unfit.items()))
            raise ConfigError(
                f"adapter_conf: group_size: {path} has {module.out_features} outputs, "
                f"which are no groups of {group_size}"
            )
        for path in unfit:
            del found[path]
        shapes: dict[str, Sequence[int]] = {}
        for path, module in found.items():
            shapes[f"{path}.theta"] = shapes[f"{path}.scale"] = (
                module.out_features // 2,
            )
        config: dict[str, Any] = {
            "adapter": "road",
            "width": backbone.width,
            "layers": len(backbone.layers),
            "group_size": group_size,
            "matrices": matrices if matrices == ALL_LINEAR else sorted(matrices),
        }
        super().__init__(config, shapes)
        self._outputs = {path: m.out_features for path, m in found.items()}
        self._layers = {
            (m.in_features, m.out_features): peft_layer(
                m, "RoadConfig", variant="road_1", group_size=group_size
            )
            for m in found.values()
        }

    def changes(self, tensors: Tensors) -> Mapping[str, Change]:
        return {
            path: functools.partial(
                self._rotated,
                theta=tensors[f"{path}.theta"],
                scale=tensors[f"{path}.scale"],
            )
            for path in self._outputs
        }

    def _rotated(
        self, linear: torch.nn.Linear, theta: torch.Tensor, scale: torch.Tensor
    ) -> torch.nn.Module:
        """PEFT's layer around a frozen one, with these angles and scales."""
        return changed(
            self._layers[linear.in_features, linear.out_features],
            {
                "base_layer": lambda _: linear,
                "road_theta.default": lambda _: theta,
                "road_alpha.default": lambda _: 1.0 + scale,
            },
        )

    def count(self) -> tuple[int, int]:
        return 0, sum(self._outputs.values())

    def own_macs(self) -> int:
        return 2 * sum(self._outputs.values())  # the rotations have no matrices
