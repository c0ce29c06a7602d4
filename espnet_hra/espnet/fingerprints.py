"""Fingerprints of a base: is it the one that an adapter was trained on?"""

from collections.abc import Mapping
from typing import Any

import torch

from espnet_hra.errors import BaseModelError
from espnet_hra.files.checkpoint import State
from espnet_hra.tasks.fingerprint import fingerprint


def components(model: torch.nn.Module) -> dict[str, list[tuple[str, torch.Tensor]]]:
    """The base's tensors within a model, by component (encoder, ctc, ...)."""
    return _parted(model.state_dict(keep_vars=True))


def _parted(state: State) -> dict[str, list[tuple[str, torch.Tensor]]]:
    parts: dict[str, list[tuple[str, torch.Tensor]]] = {}
    for key, tensor in state.items():
        if not key.startswith("encoder.adapter."):
            name, _, rest = key.partition(".")
            parts.setdefault(name, []).append((rest, tensor))
    return parts


def of_state(state: State) -> dict[str, str]:
    """Fingerprints of the base within tensors by name, by component."""
    return {name: fingerprint(part) for name, part in _parted(state).items()}


def fingerprints(model: Any) -> dict[str, str]:
    """Fingerprints of the base within an adapted model, by component."""
    return {
        # The encoder keeps its own, so that it is not computed again to verify it.
        name: (
            model.encoder.backbone_fingerprint
            if name == "encoder"
            else fingerprint(part)
        )
        for name, part in components(model).items()
    }


def check_fingerprints(
    source: str,
    found: Mapping[str, str],
    expected: Mapping[str, str],
    remedy: str = "",
) -> None:
    """Refuse another base than an adapter was trained on.

    Args:
        source: How the base is named.
        found: Its fingerprints, by component.
        expected: Those that it must have.
        remedy: What to do if it is another.

    Raises:
        BaseModelError: One differs.
    """
    wrong = [k for k in expected if found.get(k) != expected[k]]
    if wrong:
        raise BaseModelError(
            f"{source}: this is not the base that the adapter was trained on; "
            + "; ".join(
                f"{k}: expected {expected[k]}, found {found.get(k)}" for k in wrong
            )
            + (f": {remedy}" if remedy else "")
        )
