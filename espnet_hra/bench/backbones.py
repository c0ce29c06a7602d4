"""The frozen encoders that a bench puts adapters on."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from espnet_hra.errors import ConfigError
from espnet_hra.espnet.base import check_adaptable, open_base

#: Stands for the trained backbone that comes with the repository.
SHIPPED = "shipped"

#: Where it is, from the top of the repository.
PACK = Path("egs2/hra_asr/pretrained/debian_voices.zip")


@dataclass(frozen=True)
class Backbone:
    """What it takes to build a stock ESPnet encoder, in any process.

    Attributes:
        name: How tables call it.
        kind: ESPnet's name of the encoder.
        width: Width d.
        layers: Number L of layers.
        conf: Its ``encoder_conf``.
        input_size: Dimension of the features.
        source: The model that has its weights; None for random weights.
    """

    name: str
    kind: str
    width: int
    layers: int
    conf: dict[str, Any] = field(default_factory=dict)
    input_size: int = 80
    source: str | None = None

    @property
    def text(self) -> str:
        """The encoder in words."""
        return f"{self.kind}, {self.layers} layers of {self.width}"

    @property
    def gmacs(self) -> float:
        """Billions of multiply-accumulates for one second of speech, about.

        For planning only: 25 frames a second, layers of 24 d^2 weights, and a 3x3
        convolution over 19 bands.
        """
        return 25e-9 * (24 * self.layers + 171) * self.width**2

    def build(self) -> torch.nn.Module:
        """ESPnet's own encoder, frozen, in evaluation mode.

        Raises:
            ConfigError: The weights do not fit the configuration.
        """
        from espnet2.tasks.asr import encoder_choices

        torch.manual_seed(0)
        encoder = encoder_choices.get_class(self.kind)(self.input_size, **self.conf)
        if self.source is not None:
            state = open_base(self.source).state_dict()
            own = {
                key.removeprefix("encoder."): tensor
                for key, tensor in state.items()
                if key.startswith("encoder.")
            }
            try:
                encoder.load_state_dict(own)
            except RuntimeError as e:
                raise ConfigError(
                    f"{self.source}: its encoder's weights do not fit its "
                    f"configuration ({' '.join(str(e).split())[:200]})"
                ) from e
        return encoder.requires_grad_(False).eval()


def random_backbone(name: str) -> Backbone:
    """A Conformer of ESPnet's usual proportions, with random weights.

    Args:
        name: ``LxD``: L layers of width D.

    Raises:
        ConfigError: The name is not of this form, or the width not possible.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
    if not found:
        raise ConfigError(
            f"--backbones: {name!r} is no backbone: give {SHIPPED}, or LxD for L "
            "layers of width D with random weights, such as 12x256"
        )
    layers, width = map(int, found.groups())
    heads = 8 if width >= 512 else 4
    if width % heads:
        raise ConfigError(
            f"--backbones: {name!r}: a width must be a multiple of {heads}, its heads "
            f"of attention, such as {layers}x{width + -width % heads}"
        )
    conf = {
        "output_size": width,
        "attention_heads": heads,
        "linear_units": 4 * width,
        "num_blocks": layers,
        "input_layer": "conv2d",
        "macaron_style": True,
        "use_cnn_module": True,
        "cnn_module_kernel": 31,
        "pos_enc_layer_type": "rel_pos",
        "selfattention_layer_type": "rel_selfattn",
        "rel_pos_type": "latest",
    }
    return Backbone(name, "conformer", width, layers, conf)


def trained_backbone(source: str) -> Backbone:
    """The encoder of an ESPnet model.

    Args:
        source: A pack, a folder or a tag, as for ``--pretrained_model``.

    Raises:
        BaseModelError: There is no such model, or it cannot be adapted.
    """
    base = open_base(source)
    check_adaptable(base)
    config = base.model_config()
    conf = dict(config.get("encoder_conf") or {})
    frontend = config.get("frontend_conf") or {}
    return Backbone(
        SHIPPED if Path(source).name == PACK.name else Path(source).stem,
        config["encoder"],
        conf.get("output_size", 256),
        conf.get("num_blocks", 12),
        conf,
        config.get("input_size") or frontend.get("n_mels", 80),
        source,
    )
