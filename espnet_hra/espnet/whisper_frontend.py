"""ESPnet's ``frontend: whisper``: any encoder that hears with a frozen Whisper's ears.

ESPnet's frontend downloads a whole Whisper when it is built, and its checkpoints hold a
copy of it. Here it is built without weights, gets those of ``whisper:NAME`` (see
:mod:`espnet_hra.whisper.sources`), and checkpoints and packs of what stands on it leave
them out: the configuration says by name which they are. A checkpoint that holds them,
of ESPnet's own training, keeps its own.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from espnet_hra.errors import BaseModelError
from espnet_hra.files import archive
from espnet_hra.files.checkpoint import State, read_state
from espnet_hra.whisper.folder import PREFIX, WEIGHTS, open_folder

logger = logging.getLogger(__name__)

#: ESPnet's name of the frontend.
NAME = "whisper"

#: Where its weights are within a model.
KEYS = "frontend.whisper."

#: ESPnet's default of ``frontend_conf: whisper_model``.
_USUAL = "small"

#: Where a Whisper's parts are in its folder, and where in the frontend.
_PLACES = (
    ("encoder.encoders.", f"{KEYS}encoder."),
    ("decoder.decoders.", f"{KEYS}decoder."),
)


def is_used(config: Mapping[str, Any]) -> bool:
    """Whether this is the configuration of a model with such a frontend."""
    return config.get("frontend") == NAME


def weights(config: Mapping[str, Any]) -> State:
    """The tensors of a configuration's frontend, under the model's names.

    Args:
        config: ESPnet's configuration of a model with such a frontend.

    Returns:
        Full precision.

    Raises:
        BaseModelError: There is no such Whisper, or its weights cannot be had.
    """
    name = str((config.get("frontend_conf") or {}).get("whisper_model", _USUAL))
    try:
        folder = open_folder(f"{PREFIX}{name}", archive.cache())
        state = read_state(folder / WEIGHTS)
    except BaseModelError as e:
        raise BaseModelError(f"frontend_conf: whisper_model: {name}: {e}") from e
    return {
        place + key.removeprefix(part): tensor.float()
        for key, tensor in state.items()
        for part, place in _PLACES
        if key.startswith(part)
    }


def complete(config: Mapping[str, Any], state: State) -> State:
    """A checkpoint's tensors, with the frontend's if the checkpoint has left them out.

    Args:
        config: The configuration of its model; nothing is done for other frontends.
        state: The tensors.

    Raises:
        BaseModelError: As of :func:`weights`.
    """
    return {**weights(config), **state} if is_left_out(config, state) else state


def is_left_out(config: Mapping[str, Any], state: State) -> bool:
    """Whether a checkpoint has left its frontend's weights to their name.

    Args:
        config: The configuration of its model.
        state: Its tensors.
    """
    return is_used(config) and not any(key.startswith(KEYS) for key in state)


def without(state: State) -> State:
    """Tensors of a model without its frontend's weights."""
    return {key: tensor for key, tensor in state.items() if is_own(key)}


def is_own(key: str) -> bool:
    """Whether a model's tensor is none of its frontend's weights, by its name."""
    return not key.startswith(KEYS)


def load(config: Mapping[str, Any], model: torch.nn.Module) -> None:
    """Give a model that is to be trained its frontend's weights, and freeze them.

    Args:
        config: Its configuration; nothing is done for other frontends. With
            ``frontend_conf: freeze_weights: false`` they are trained, and are then
            the model's own.
        model: ESPnet's model.

    Raises:
        BaseModelError: As of :func:`weights`.
    """
    if not is_used(config):
        return
    model.load_state_dict(weights(config), strict=False)
    if not (config.get("frontend_conf") or {}).get("freeze_weights", True):
        return
    for name, parameter in model.named_parameters():
        if name.startswith(KEYS):
            parameter.requires_grad_(False)


def prepare(config: Mapping[str, Any], model: torch.nn.Module) -> None:
    """Enable the frontend of a model that was just built to hear more than 30 seconds.

    ESPnet's drops what is longer than its table of positions. Here it is heard in
    windows, one after the other, and their frames are joined: the encoder behind it
    reads the recording as one.

    Args:
        config: Its configuration; nothing is done for other frontends.
        model: ESPnet's model.
    """
    if is_used(config):
        frontend: Any = model.frontend
        frontend.whisper_encode = _InWindows(frontend.whisper_encode, frontend.whisper)


class _InWindows:
    """Stands for the frontend's ``whisper_encode``."""

    def __init__(self, encode: Callable[..., Any], whisper: torch.nn.Module):
        self._encode = encode
        encoder = whisper.get_submodule("encoder")
        positions = encoder.get_buffer("positional_embedding").size(0)
        # The second convolution takes two frames of the spectrum for one.
        self._longest = 2 * positions

    def __call__(
        self, spectrum: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Frames (b, t, d) of a spectrum (b, mels, 2 t), and their numbers (b)."""
        if spectrum.size(2) <= self._longest:
            found: tuple[torch.Tensor, torch.Tensor | None]
            found = self._encode(spectrum, lengths)
            return found
        pieces = spectrum.split(self._longest, dim=2)
        logger.info(
            f"More than {self._longest // 100} seconds are heard in {len(pieces)} "
            "windows"
        )
        frames = torch.cat([self._encode(piece)[0] for piece in pieces], dim=1)
        return frames, None if lengths is None else (lengths - 1) // 2 + 1


def is_frozen(model: torch.nn.Module) -> bool:
    """Whether a model hears with a Whisper that is not trained."""
    whisper = getattr(getattr(model, "frontend", None), "whisper", None)
    if whisper is None:
        return False
    return not any(parameter.requires_grad for parameter in whisper.parameters())
