"""LoRA: ``W x + (alpha / r) B A x`` for chosen linear modules of every layer.

With ``shared_rank`` all tasks share a second change, of that rank and multiplied by the
same alpha / r: ``W x + (alpha / r) (B_0 A_0 + B_task A_task) x``. It learns with the
tasks and is frozen for a new one, as the controller of a hierarchical recurrent adapter
is; so it is the control for what "hierarchical" brings.

Two of its kin differ in one thing each: rank-stabilised LoRA (``rslora``, arXiv
2312.03732) multiplies by alpha / sqrt(r); DoRA (``dora``, arXiv 2402.09353) gives each
row of ``W + (alpha / r) B A`` a length of its own.

What is computed is computed by PEFT's own layer; the tasks' tensors live in the bank
and stand in the place of that layer's for one pass. B starts at zero, and so does what
a task adds to the lengths of W's rows: step 0 is the backbone.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import Adapter, Backbone
from espnet_hra.methods.checks import check_choice, check_number, check_size, is_number
from espnet_hra.methods.linear import ALL_LINEAR, find, peft_layer
from espnet_hra.methods.shared_change import (
    SharedChange,
    initialise,
    low_rank,
    of_rank,
)
from espnet_hra.methods.substitution import Change
from espnet_hra.tasks.bank import ALL
from espnet_hra.tasks.layout import Tensors


class LoRA(Adapter):
    """Low-rank changes of matrices, of rank r, one for each task.

    Args:
        backbone: The encoder.
        rank: Rank r.
        alpha: The changes are multiplied by alpha / r.
        matrices: Names of linear modules within a layer, or how these names end;
            ``all`` for every one.
        dropout: Of the input of A, while training.
        rslora: Whether the changes are multiplied by alpha / sqrt(r) instead.
        dora: Whether a task has the lengths of the rows for itself.
        loraplus_lr_ratio: B learns at this multiple of A's rate (LoRA+, arXiv
            2402.12354; PEFT's name).
        shared_rank: Rank of the change that all tasks share; 0 for none.

    Raises:
        ConfigError: A value is not possible, or PEFT is not installed.
    """

    mixes = False

    def __init__(
        self,
        backbone: Backbone,
        rank: int = 8,
        alpha: float = 16,
        matrices: str | Sequence[str] = ("linear_q", "linear_v"),
        dropout: float = 0.0,
        rslora: bool = False,
        dora: bool = False,
        loraplus_lr_ratio: float = 1.0,
        shared_rank: int = 0,
    ):
        check_size("rank", rank)
        above = is_number(alpha) and alpha > 0
        check_number("alpha", alpha, above, "above 0")
        share = is_number(dropout) and 0 <= dropout < 1
        check_number("dropout", dropout, share, "at least 0 and below 1")
        check_choice("rslora", rslora, (False, True))
        check_choice("dora", dora, (False, True))
        above = is_number(loraplus_lr_ratio) and loraplus_lr_ratio > 0
        check_number("loraplus_lr_ratio", loraplus_lr_ratio, above, "above 0")
        if shared_rank != 0:
            check_size("shared_rank", shared_rank)
        if shared_rank and dora:
            raise ConfigError(
                "adapter_conf: shared_rank goes with LoRA and rslora; the lengths of "
                "DoRA are those of one change of a matrix: leave dora out"
            )
        found = find(backbone, matrices)
        self._shapes = {path: tuple(m.weight.shape) for path, m in found.items()}
        shapes: dict[str, Sequence[int]] = {}
        for path, (outputs, inputs) in self._shapes.items():
            shapes |= of_rank(rank, path, outputs, inputs)
            if dora:
                shapes[f"{path}.m"] = (outputs,)
        config: dict[str, Any] = {
            "adapter": "lora",
            "width": backbone.width,
            "layers": len(backbone.layers),
            "rank": rank,
            "alpha": alpha,
            "matrices": matrices if matrices == ALL_LINEAR else sorted(matrices),
        }
        for key, value in (
            ("rslora", rslora),
            ("dora", dora),
            ("shared_rank", shared_rank),
        ):
            if value:  # so that files from before there was the key still fit
                config[key] = value
        super().__init__(config, shapes, initialise)
        self._ratio = float(loraplus_lr_ratio)
        self.quantizes = not dora  # which reads the lengths of the weights' rows
        self._layers = {
            (m.in_features, m.out_features): peft_layer(
                m,
                "LoraConfig",
                r=rank,
                lora_alpha=alpha,
                lora_dropout=dropout,
                use_rslora=rslora,
                use_dora=dora,
            )
            for m in found.values()
        }
        self.shared: SharedChange | None = None
        self.shared_of_decoder: SharedChange | None = None
        if shared_rank:  # a change of another rank that is multiplied by the same
            scale = alpha / (rank**0.5 if rslora else rank)
            self.shared = SharedChange(found, shared_rank, scale, dropout)

    def follow(self, encoder: "LoRA") -> None:
        """What tasks share for the decoder belongs to the method on the encoder."""
        encoder.shared_of_decoder = self.shared

    def _all_shared(self) -> dict[str, SharedChange]:
        shared = {"shared": self.shared, "shared_of_decoder": self.shared_of_decoder}
        return {name: bank for name, bank in shared.items() if bank is not None}

    def reset_shared(self) -> None:
        for bank in self._all_shared().values():
            bank.reset()

    def train(self, mode: bool = True) -> Self:
        """As ``Module.train``, and for the dropout of PEFT's layers."""
        for layer in self._layers.values():
            layer.train(mode)
        return super().train(mode)

    def changes(self, tensors: Tensors) -> Mapping[str, Change]:
        shared = {} if self.shared is None else self.shared.changes()
        return {
            path: functools.partial(
                self._adapted,
                a=tensors[f"{path}.A"],
                b=tensors[f"{path}.B"],
                m=tensors.get(f"{path}.m"),
                shared=shared.get(path),
            )
            for path in self._shapes
        }

    def _adapted(
        self,
        linear: torch.nn.Linear,
        a: torch.Tensor,
        b: torch.Tensor,
        m: torch.Tensor | None,
        shared: Change | None,
    ) -> torch.nn.Module:
        """PEFT's layer around a frozen one, with these matrices and lengths."""
        inner = linear if shared is None else shared(linear)
        more = {}
        if m is not None:
            lengths = torch.linalg.norm(linear.weight, dim=1) + m
            more["lora_magnitude_vector"] = lengths
        return low_rank(self._layers, linear, inner, a, b, **more)

    def rates(self) -> Mapping[str, float]:
        if self._ratio == 1.0:
            return {}
        return {f"{path}.B": self._ratio for path in self._shapes}

    def shared_rates(self) -> Mapping[str, torch.Tensor]:
        rates = dict(super().shared_rates())
        for name, bank in self._all_shared().items():
            rate = torch.full((bank.size,), self.shared_rate)
            for key, part in bank.layout.split(rate).items():
                part.mul_(self._ratio if key.endswith(".B") else 1.0)
            rates[f"{name}.{ALL}"] = rate
        return rates

    def count(self) -> tuple[int, int]:
        shared = self._weights(self.own_config.get("shared_rank", 0))
        if self.shared_of_decoder is not None:
            shared += self.shared_of_decoder.size
        lengths = sum(o for o, _ in self._shapes.values())
        own = self._weights(self.own_config["rank"])
        return shared, own + lengths * bool(self.own_config.get("dora"))

    def own_macs(self) -> int:
        ranks = self.own_config["rank"] + self.own_config.get("shared_rank", 0)
        return self._weights(ranks)

    def _weights(self, rank: int) -> int:
        """Weights of changes of this rank."""
        return sum(rank * (i + o) for o, i in self._shapes.values())
