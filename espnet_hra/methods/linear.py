"""The linear modules of layers, and what PEFT computes around one of them."""

from collections.abc import Sequence
from typing import Any

import torch

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import Backbone

#: Value of ``matrices``: every linear module of a layer.
ALL_LINEAR = "all"


def find(backbone: Backbone, wanted: str | Sequence[str]) -> dict[str, torch.nn.Linear]:
    """The linear modules that are meant, by their path in the encoder.

    Raises:
        ConfigError: A name fits no module of any layer of the encoder, or none fits
            one of the decoder.
    """
    if wanted != ALL_LINEAR and (not isinstance(wanted, (list, tuple)) or not wanted):
        raise ConfigError(
            f"adapter_conf: matrices: {wanted!r} is no list of names, nor: {ALL_LINEAR}"
        )
    linear: dict[str, torch.nn.Linear] = {}
    inner: dict[str, str] = {}  # the path within its layer
    for path, layer in backbone.named.items():
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                linear[f"{path}.{name}"] = module
                inner[f"{path}.{name}"] = name
    if wanted == ALL_LINEAR:
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


def peft_layer(linear: torch.nn.Linear, config: str, **keys: Any) -> torch.nn.Module:
    """PEFT's layer for linear modules of this shape; without memory for its weights.

    Args:
        linear: One of them.
        config: PEFT's class of the method's configuration.
        **keys: Its keys.

    Raises:
        ConfigError: PEFT is not installed.
    """
    try:
        import peft
    except ImportError as e:
        raise ConfigError(
            f"this adapter computes with PEFT, which cannot be imported ({e}): "
            "pip install 'espnet-hra[lora]'"
        ) from e
    sizes = (linear.in_features, linear.out_features)
    holder = torch.nn.ModuleDict({"linear": torch.nn.Linear(*sizes, device="meta")})
    own = getattr(peft, config)(target_modules=["linear"], **keys)
    peft.inject_adapter_in_model(own, holder)  # in place
    return holder["linear"]
