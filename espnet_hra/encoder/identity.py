"""Which weights an adapter stands on: fingerprints, and the check before first use."""

from collections.abc import Callable, Iterable, Mapping

import torch

from espnet_hra.methods.base import Adapter
from espnet_hra.names import from_key, listing, to_key
from espnet_hra.tasks.fingerprint import (
    ContentCache,
    VersionCache,
    fingerprint,
    walk,
)

_NOT_LOADED = (
    "this checkpoint holds an adapter only, and the backbone it was trained on is not "
    "loaded: decode it with `espnet-hra decode` or "
    "`espnet_hra.Speech2Text` (pip install espnet-hra), which load and verify the "
    "backbone, instead of ESPnet's own inference"
)


class Identity:
    """Fingerprints of an adapted encoder, computed when they are asked for and kept.

    Args:
        expected: Fingerprint that the backbone must have; None for any.
    """

    def __init__(self, expected: str | None = None):
        self._expected = expected
        self._verified = False
        self._stood_for: str | None = None
        self._backbone = VersionCache()
        self._controller = ContentCache()

    def backbone(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Fingerprint of the wrapped encoder's weights, given by name."""
        if self._stood_for is not None:
            return self._stood_for
        return self._backbone.get(
            tensors.values(), lambda: fingerprint(tensors.items())
        )

    def controller(self, adapter: Adapter) -> str:
        """Fingerprint of what all tasks share."""
        shared = walk(adapter, without="heads")
        return self._controller.get(
            {k: v for k, v in shared if isinstance(v, torch.nn.Parameter)}
        )

    def stand_for(self, backbone: str) -> None:
        """Take the weights for those of this fingerprint from now on."""
        self._stood_for = backbone

    def expect(self, backbone: str) -> None:
        """Ask for a backbone of this fingerprint from now on."""
        self._expected, self._verified = backbone, False

    def verify(self, backbone: Callable[[], str]) -> None:
        """Check, once, that the backbone has the weights that were expected.

        Args:
            backbone: Tells its fingerprint.

        Raises:
            RuntimeError: It has others (for instance random ones, because only the
                adapter's checkpoint was loaded).
        """
        if self._expected is None or self._verified:
            return
        found = backbone()
        if found != self._expected:
            raise RuntimeError(
                f"{_NOT_LOADED} (expected fingerprint {self._expected}, found {found})"
            )
        self._verified = True

    def check_state(self, keys: Iterable[str], own: Iterable[str]) -> list[str]:
        """What is wrong with a checkpoint that is about to be loaded, in words.

        ESPnet's inference loads with ``strict=False``: a checkpoint that holds the
        adapter only would leave a random backbone, and one without a task's head would
        leave that task to be the backbone, both in silence.

        Args:
            keys: Names in the checkpoint, without the encoder's prefix.
            own: Tasks that are parameters of the encoder.
        """
        adapter = {key for key in keys if key.startswith("adapter.")}
        holds_backbone = len(adapter) < len(set(keys))
        errors = []
        if self._expected is not None and adapter:
            if not holds_backbone and not self._verified:
                errors.append(_NOT_LOADED)
        heads = {
            key.removeprefix("adapter.heads.")
            for key in adapter
            if key.startswith("adapter.heads.")
        }
        without = [name for name in own if to_key(name) not in heads]
        if heads and without:
            errors.append(
                f"the checkpoint has no head for {listing(without)}; it has those of "
                f"{listing(sorted(map(from_key, heads)))}"
            )
        if holds_backbone:
            self._verified = False
        return errors
