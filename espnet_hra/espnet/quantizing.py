"""Decoding with a quantised base: ESPnet's ``quantize_asr_model`` and its kin.

ESPnet copies the model, with weights of 8 bits in the place of its linear modules. The
adapter holds its tensors in the tasks' vectors, which stay as they are.
"""

from collections.abc import Mapping
from typing import Any

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.errors import ConfigError


def asked(options: Mapping[str, Any]) -> str | None:
    """The option of ESPnet's class that quantises its model; None if none is given.

    Args:
        options: Arguments of that class.

    Raises:
        ConfigError: The model is to compute elsewhere, or in another type.
    """
    for name, value in options.items():
        if value and name.startswith("quantize_") and name.endswith("_model"):
            break
    else:
        return None
    wanted = {"device": "cpu", "dtype": "float32"}
    for key, able in wanted.items():
        given = str(options.get(key) or able)
        if not given.startswith(able):
            raise ConfigError(
                f"{name}: {key} {given}: torch computes with quantised weights on the "
                f"CPU and in float32: leave {key} out, or {name}"
            )
    return name


def check_method(model: Any, option: str) -> None:
    """Refuse methods that change weights which will not be there any more.

    Args:
        model: ESPnet's model, before it is quantised.
        option: What asks for it.

    Raises:
        ConfigError: It has such a method.
    """
    encoder = model.encoder
    if isinstance(encoder, AdaptedEncoder) and not encoder.adapter.quantizes:
        name = encoder.adapter.own_config["adapter"]
        name += " (dora: true)" if encoder.adapter.own_config.get("dora") else ""
        raise ConfigError(
            f"{option}: tasks of adapter: {name} change the base's own weights, which "
            "are rounded to 8 bits then: leave it out, or use hra, residual or lora "
            "(without dora)"
        )


def settle(model: Any, exact: Any, option: str) -> None:
    """Let a quantised model take the tasks of the one that it is a copy of.

    Args:
        model: The quantised one.
        exact: The one that it was made of.
        option: What asked for it.

    Raises:
        ConfigError: Nothing was quantised.
    """
    kinds = (type(module).__module__ for module in model.modules())
    if not any("quantized" in kind for kind in kinds):
        raise ConfigError(
            f"{option}: nothing of this model was quantised, as none of its layers is "
            "of torch.nn's classes that quantize_modules names (Whisper's are its "
            f"own): leave {option} out"
        )
    if isinstance(exact.encoder, AdaptedEncoder):
        model.encoder.stand_for(exact.encoder.backbone_fingerprint)
