"""The package openai-whisper, which is an extra."""

import dataclasses
import importlib
from types import ModuleType

import torch

from espnet_hra.errors import BaseModelError
from espnet_hra.whisper.sizes import Sizes


def openai_whisper() -> ModuleType:
    """The module ``whisper``.

    Raises:
        BaseModelError: It is not installed, or another package has its name.
    """
    try:
        module = importlib.import_module("whisper")
        module.ModelDimensions, module.load_model, module.tokenizer  # noqa: B018
    except (ImportError, AttributeError) as e:
        raise BaseModelError(
            f"Whisper needs the package openai-whisper ({e}): pip install "
            "'espnet-hra[whisper]'"
        ) from e
    return module


def whole(sizes: Sizes) -> torch.nn.ModuleDict:
    """Encoder and decoder under the names that they have in openai-whisper's model."""
    return torch.nn.ModuleDict({"encoder": encoder(sizes), "decoder": decoder(sizes)})


def encoder(sizes: Sizes) -> torch.nn.Module:
    """An encoder of openai-whisper's, with random weights."""
    return _part("AudioEncoder", sizes, "n_mels", "audio")


def decoder(sizes: Sizes) -> torch.nn.Module:
    """A decoder of openai-whisper's, with random weights, also where it has none."""
    part = _part("TextDecoder", sizes, "n_vocab", "text")
    torch.nn.init.normal_(part.get_parameter("positional_embedding"), std=0.01)
    return part


def _part(kind: str, sizes: Sizes, first: str, which: str) -> torch.nn.Module:
    values = dataclasses.asdict(sizes)
    rest = [values[f"n_{which}_{key}"] for key in ("ctx", "state", "head", "layer")]
    made: torch.nn.Module = getattr(openai_whisper().model, kind)(values[first], *rest)
    return made
