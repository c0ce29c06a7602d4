"""LoRA: ``W x + (alpha / r) B A x`` for chosen linear modules of every layer.

What is computed is computed by PEFT's own layer; the tasks' A and B live in the bank
and stand in the place of that layer's for one pass. B starts at zero: step 0 is the
backbone.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import (
    Adapter,
    Backbone,
    Change,
    changed,
    check_size,
    init_matrix,
)
from espnet_hra.tasks.bank import TaskBank, Tensors, zeros


class LoRA(Adapter):
    """Low-rank changes of matrices, of rank r, one for each task.

    Args:
        backbone: The encoder.
        rank: Rank r.
        alpha: The changes are multiplied by alpha / r.
        matrices: Names of linear modules within a layer, or how these names end.
        dropout: Of the input of A, while training.

    Raises:
        ConfigError: A value is not possible, or PEFT is not installed.
    """

    mixes = False

    def __init__(
        self,
        backbone: Backbone,
        rank: int = 8,
        alpha: float = 16,
        matrices: Sequence[str] = ("linear_q", "linear_v"),
        dropout: float = 0.0,
    ):
        super().__init__()
        check_size("rank", rank)
        if type(alpha) not in (int, float) or alpha <= 0:
            raise ConfigError(f"adapter_conf: alpha: {alpha!r} must be above 0")
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise ConfigError(
                f"adapter_conf: dropout: {dropout!r} must be at least 0 and below 1"
            )
        found = _find(backbone, matrices)
        self.own_config = {
            "adapter": "lora",
            "width": backbone.output_size(),
            "layers": len(backbone.encoders),
            "rank": rank,
            "alpha": alpha,
            "matrices": sorted(matrices),
        }
        self._shapes = {path: tuple(m.weight.shape) for path, m in found.items()}
        self._layers = {
            (m.in_features, m.out_features): _peft_layer(m, rank, alpha, dropout)
            for m in found.values()
        }
        layout: dict[str, Sequence[int]] = {}
        for path, (outputs, inputs) in self._shapes.items():
            layout[f"{path}.A"] = (rank, inputs)
            layout[f"{path}.B"] = (outputs, rank)
        self.heads = TaskBank(layout, _init)

    def train(self, mode: bool = True) -> "LoRA":
        """As ``Module.train``, and for the dropout of PEFT's layers."""
        for layer in self._layers.values():
            layer.train(mode)
        return super().train(mode)

    def changes(self, name: str) -> Mapping[str, Change]:
        tensors = self.heads.gather([name], section=self.heads.sections[0])
        return {
            path: functools.partial(
                self._adapted, a=tensors[f"{path}.A"], b=tensors[f"{path}.B"]
            )
            for path in self._shapes
        }

    def _adapted(
        self, linear: torch.nn.Linear, a: torch.Tensor, b: torch.Tensor
    ) -> torch.nn.Module:
        """PEFT's layer around a frozen one, with these matrices."""
        return changed(
            self._layers[linear.in_features, linear.out_features],
            {
                "base_layer": lambda _: linear,
                "lora_A.default.weight": lambda _: a,
                "lora_B.default.weight": lambda _: b,
            },
        )

    def count(self) -> tuple[int, int]:
        r = self.own_config["rank"]
        return 0, sum(r * (i + o) for o, i in self._shapes.values())

    def own_macs(self) -> int:
        return self.count()[1]


def _init(p: Tensors) -> None:
    zeros(p)
    for name, tensor in p.items():
        if name.endswith(".A"):
            init_matrix(tensor)  # as PEFT does


def _find(backbone: Backbone, wanted: Sequence[str]) -> dict[str, torch.nn.Linear]:
    """The linear modules that are meant, by their path in the encoder.

    Raises:
        ConfigError: A name fits no module of any layer.
    """
    if not isinstance(wanted, (list, tuple)) or not wanted:
        raise ConfigError(f"adapter_conf: matrices: {wanted!r} is no list of names")
    linear = {
        f"encoders.{path}": module
        for path, module in backbone.encoders.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    inner = {path: path.split(".", 2)[2] for path in linear}  # within its layer
    possible = ", ".join(dict.fromkeys(inner.values()))
    for name in wanted:
        if not any(_ends(path, name) for path in inner.values()):
            raise ConfigError(
                f"adapter_conf: matrices: {name!r} is no linear module of the "
                f"encoder's layers; possible are: {possible}"
            )
    return {
        path: module
        for path, module in linear.items()
        if any(_ends(inner[path], name) for name in wanted)
    }


def _ends(path: str, name: Any) -> bool:
    return f".{path}".endswith(f".{name}")


def _peft_layer(
    linear: torch.nn.Linear, rank: int, alpha: float, dropout: float
) -> torch.nn.Module:
    """PEFT's layer for linear modules of this shape; without memory for its weights."""
    try:
        import peft
    except ImportError as e:
        raise ConfigError(
            f"adapter: lora computes with PEFT, which cannot be imported ({e}): "
            "pip install 'espnet-hra[lora]'"
        ) from e
    sizes = (linear.in_features, linear.out_features)
    holder = torch.nn.ModuleDict({"linear": torch.nn.Linear(*sizes, device="meta")})
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=["linear"]
    )
    return peft.inject_adapter_in_model(config, holder)["linear"]
