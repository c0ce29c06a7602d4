"""LoRA: ``W x + (alpha / r) B A x`` for chosen linear modules of every layer.

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
from espnet_hra.methods.substitution import Change, changed
from espnet_hra.methods.tensors import init_matrix
from espnet_hra.tasks.bank import zeros
from espnet_hra.tasks.layout import Tensors

#: Value of ``matrices``: every linear module of a layer.
ALL = "all"


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
        found = _find(backbone, matrices)
        self._shapes = {path: tuple(m.weight.shape) for path, m in found.items()}
        shapes: dict[str, Sequence[int]] = {}
        for path, (outputs, inputs) in self._shapes.items():
            shapes[f"{path}.A"] = (rank, inputs)
            shapes[f"{path}.B"] = (outputs, rank)
            if dora:
                shapes[f"{path}.m"] = (outputs,)
        config: dict[str, Any] = {
            "adapter": "lora",
            "width": backbone.width,
            "layers": len(backbone.layers),
            "rank": rank,
            "alpha": alpha,
            "matrices": matrices if matrices == ALL else sorted(matrices),
        }
        for key, value in (("rslora", rslora), ("dora", dora)):
            if value:  # so that files from before there was the key still fit
                config[key] = value
        super().__init__(config, shapes, _initialise)
        self._ratio = float(loraplus_lr_ratio)
        self.quantizes = not dora  # which reads the lengths of the weights' rows
        self._layers = {
            (m.in_features, m.out_features): _peft_layer(
                m,
                r=rank,
                lora_alpha=alpha,
                lora_dropout=dropout,
                use_rslora=rslora,
                use_dora=dora,
            )
            for m in found.values()
        }

    def train(self, mode: bool = True) -> Self:
        """As ``Module.train``, and for the dropout of PEFT's layers."""
        for layer in self._layers.values():
            layer.train(mode)
        return super().train(mode)

    def changes(self, tensors: Tensors) -> Mapping[str, Change]:
        return {
            path: functools.partial(
                self._adapted,
                a=tensors[f"{path}.A"],
                b=tensors[f"{path}.B"],
                m=tensors.get(f"{path}.m"),
            )
            for path in self._shapes
        }

    def _adapted(
        self,
        linear: torch.nn.Linear,
        a: torch.Tensor,
        b: torch.Tensor,
        m: torch.Tensor | None,
    ) -> torch.nn.Module:
        """PEFT's layer around a frozen one, with these matrices and lengths."""
        changes: dict[str, Change] = {
            "base_layer": lambda _: linear,
            "lora_A.default.weight": lambda _: a,
            "lora_B.default.weight": lambda _: b,
        }
        if m is not None:
            lengths = torch.linalg.norm(linear.weight, dim=1) + m
            changes["lora_magnitude_vector.default.weight"] = lambda _: lengths
        return changed(self._layers[linear.in_features, linear.out_features], changes)

    def rates(self) -> Mapping[str, float]:
        if self._ratio == 1.0:
            return {}
        return {f"{path}.B": self._ratio for path in self._shapes}

    def count(self) -> tuple[int, int]:
        lengths = sum(o for o, _ in self._shapes.values())
        return 0, self.own_macs() + lengths * bool(self.own_config.get("dora"))

    def own_macs(self) -> int:
        r = self.own_config["rank"]
        return sum(r * (i + o) for o, i in self._shapes.values())


def _initialise(tensors: Tensors) -> None:
    zeros(tensors)
    for name, tensor in tensors.items():
        if name.endswith(".A"):
            init_matrix(tensor)  # as PEFT does


def _find(
    backbone: Backbone, wanted: str | Sequence[str]
) -> dict[str, torch.nn.Linear]:
    """The linear modules that are meant, by their path in the encoder.

    Raises:
        ConfigError: A name fits no module of any layer of the encoder, or none fits
            one of the decoder.
    """
    if wanted != ALL and (not isinstance(wanted, (list, tuple)) or not wanted):
        raise ConfigError(
            f"adapter_conf: matrices: {wanted!r} is no list of names, nor: {ALL}"
        )
    linear: dict[str, torch.nn.Linear] = {}
    inner: dict[str, str] = {}  # the path within its layer
    for i, layer in enumerate(backbone.layers):
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                linear[f"{backbone.path}.{i}.{name}"] = module
                inner[f"{backbone.path}.{i}.{name}"] = name
    if wanted == ALL:
        return linear
    possible = ", ".join(dict.fromkeys(inner.values()))
    found = {
        path: module
        for path, module in linear.items()
        if any(_ends(inner[path], name) for name in wanted)
    }
    for name in wanted:
        if backbone.kind == "decoder" and found:
            break  # what only the encoder's layers have
        if not any(_ends(path, name) for path in inner.values()):
            raise ConfigError(
                f"adapter_conf: matrices: {name!r} is no linear module of the "
                f"{backbone.kind}'s layers; possible are: {possible}"
            )
    return found


def _ends(path: str, name: Any) -> bool:
    return f".{path}".endswith(f".{name}")


def _peft_layer(linear: torch.nn.Linear, **keys: Any) -> torch.nn.Module:
    """PEFT's layer for linear modules of this shape; without memory for its weights.

    Args:
        linear: One of them.
        **keys: Of PEFT's ``LoraConfig``.
    """
    try:
        import peft
    except ImportError as e:
        raise ConfigError(
            f"adapter: lora computes with PEFT, which cannot be imported ({e}): "
            "pip install 'espnet-hra[lora]'"
        ) from e
    sizes = (linear.in_features, linear.out_features)
    holder = torch.nn.ModuleDict({"linear": torch.nn.Linear(*sizes, device="meta")})
    config = peft.LoraConfig(target_modules=["linear"], **keys)
    peft.inject_adapter_in_model(config, holder)  # in place
    return holder["linear"]
