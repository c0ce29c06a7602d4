"""A change of low rank that all tasks share: ``W x + scale B_0 A_0 x``.

It stands beside what each task has of its own, learns with the tasks, and is frozen for
a new one, as the controller of a hierarchical recurrent adapter is. What is computed is
computed by PEFT's layer for LoRA.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch

from espnet_hra.methods.linear import peft_layer
from espnet_hra.methods.substitution import Change, changed
from espnet_hra.methods.tensors import init_matrix
from espnet_hra.tasks.bank import ALL, OneForAll, zeros
from espnet_hra.tasks.layout import Tensors


class SharedChange(OneForAll):
    """One low-rank change of each of some linear modules, for all tasks.

    Args:
        modules: The linear modules, by their paths.
        rank: Rank of the changes.
        scale: What ``B A x`` is multiplied by.
        dropout: Of the input of A, while training.

    Raises:
        ConfigError: PEFT is not installed.
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Linear],
        rank: int,
        scale: float,
        dropout: float = 0.0,
    ):
        shapes: dict[str, Sequence[int]] = {}
        for path, module in modules.items():
            shapes |= of_rank(rank, path, *module.weight.shape)
        super().__init__(shapes, initialise)
        self._paths = list(modules)
        # A plain dictionary: they have no weights of their own, and are no submodules.
        self._layers = {
            (m.in_features, m.out_features): peft_layer(
                m,
                "LoraConfig",
                r=rank,
                lora_alpha=scale * rank,
                lora_dropout=dropout,
            )
            for m in modules.values()
        }
        self.add(ALL, torch.empty(0))

    def train(self, mode: bool = True) -> Self:
        """As ``Module.train``, and for the dropout of PEFT's layers."""
        for layer in self._layers.values():
            layer.train(mode)
        super().train(mode)
        return self

    def changes(self) -> dict[str, Change]:
        """What stands in for each of the modules in a pass, by its path."""
        tensors = self.gather(())

        def change(path: str) -> Change:
            a, b = tensors[f"{path}.A"], tensors[f"{path}.B"]
            return lambda linear: low_rank(self._layers, linear, linear, a, b)

        return {path: change(path) for path in self._paths}

    def reset(self) -> None:
        """Initialise: from here on nothing is changed."""
        self.initialise(self.vector(ALL))


def low_rank(
    layers: Mapping[tuple[int, int], torch.nn.Module],
    linear: torch.nn.Linear,
    inner: torch.nn.Module,
    a: torch.Tensor,
    b: torch.Tensor,
    **more: torch.Tensor,
) -> torch.nn.Module:
    """PEFT's layer around a module, with these matrices.

    Args:
        layers: PEFT's layers, by the sizes of input and output.
        linear: The frozen linear module, for these sizes.
        inner: What the layer stands around: that module, or one around it.
        a: A, (rank, inputs).
        b: B, (outputs, rank).
        more: Other parameters of the layer, by the beginnings of their names.
    """

    def always(stands_in: Any) -> Change:
        return lambda _: stands_in

    changes = {"base_layer": always(inner)}
    for name, tensor in {"lora_A": a, "lora_B": b, **more}.items():
        changes[f"{name}.default.weight"] = always(tensor)
    return changed(layers[linear.in_features, linear.out_features], changes)


def of_rank(rank: int, path: str, outputs: int, inputs: int) -> dict[str, Any]:
    """Names and shapes of the matrices that change one."""
    return {f"{path}.A": (rank, inputs), f"{path}.B": (outputs, rank)}


def initialise(tensors: Tensors) -> None:
    """A as PEFT does, all else zero: nothing is changed yet."""
    zeros(tensors)
    for name, tensor in tensors.items():
        if name.endswith(".A"):
            init_matrix(tensor)
