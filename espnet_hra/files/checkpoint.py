"""Checkpoints: tensors by name, read without unpickling objects.

One reader for all of them: of ESPnet, Lightning and DeepSpeed, made for resuming or
for decoding, of a base or of an adapter.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from espnet_hra.errors import BaseModelError
from espnet_hra.files import archive

State = dict[str, torch.Tensor]

#: Where files that hold more than a model keep it: DeepSpeed's, Lightning's, and those
#: that ESPnet makes for resuming.
_WITHIN = ("module", "state_dict", "model")

#: What Lightning puts before all names: the attribute of the model in its module.
_LIGHTNING = "model."


def _load(path: Path) -> Any:
    """What torch reads without unpickling objects, whoever asks for it.

    ESPnet's ``safe_torch_load`` unpickles them after all where a variable is set, or
    somebody at a terminal says so; and waits for the answer.
    """
    return torch.load(path, map_location="cpu", weights_only=True)


def _brief(error: Exception) -> str:
    """An error of torch's in one line, without its advice."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.150}"


def read_training(path: Path) -> dict[str, Any]:
    """What ESPnet saves for resuming a training, without unpickling objects.

    Raises:
        BaseModelError: It is missing, or no such file.
    """
    archive.check_checkpoint(path)
    try:
        states = _load(path)
        states["reporter"]["stats"]
    except Exception as e:  # whatever damaged data may raise
        raise BaseModelError(
            f"{path}: not the state of a training ({_brief(e)}); give an experiment "
            "folder of ESPnet's, or train again"
        ) from e
    return states


def read_state(path: Path) -> State:
    """The tensors of a checkpoint.

    Raises:
        BaseModelError: It is missing, no checkpoint, or would take more memory than a
            file of its size can hold.
    """
    archive.check_checkpoint(path)
    try:
        state = _load(path)
        for key in _WITHIN:
            if isinstance(state.get(key), dict):
                state = state[key]
        if state and all(key.startswith(_LIGHTNING) for key in state):
            state = beginning(state, _LIGHTNING)
        # An expanded tensor takes no space in a file, and any in memory.
        total = sum(t.numel() * t.element_size() for t in state.values())
    except Exception as e:  # whatever damaged data may raise
        raise BaseModelError(
            f"{path}: not a readable checkpoint ({_brief(e)}); give an ESPnet model "
            "trained to the end, or download it again"
        ) from e
    if total > 2 * path.stat().st_size + 2**20:
        raise BaseModelError(
            f"{path}: expected tensors of the file's size, found {total:,} bytes"
        )
    return state


def beginning(state: Mapping[str, torch.Tensor], prefix: str) -> State:
    """The tensors whose names begin with a prefix, which is taken off."""
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in state.items()
        if key.startswith(prefix)
    }


def differences(
    needed: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]
) -> str:
    """What keeps a checkpoint from being loaded whole, in words; empty if nothing does.

    Args:
        needed: Tensors of the model, by name.
        found: Those of the checkpoint.
    """
    missing, surplus = needed.keys() - found.keys(), found.keys() - needed.keys()
    shapes = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(needed[key].shape)}"
        for key in sorted(needed.keys() & found.keys())
        if found[key].shape != needed[key].shape
    ]
    problems = [
        f"{len(keys)} {what} ({_some(keys)})"
        for what, keys in (
            ("keys are missing", sorted(missing)),
            ("keys are surplus", sorted(surplus)),
            ("shapes differ", shapes),
        )
        if keys
    ]
    return "; ".join(problems)


def _some(items: Iterable[str]) -> str:
    items = list(items)
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
