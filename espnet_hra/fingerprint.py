"""Fingerprints of weights: does this adapter stand on the backbone it was trained on?

A fingerprint is the SHA-256 over names, types, shapes and bytes of tensors. It is
computed once and kept until a tensor is written to or replaced, which torch counts.
"""

import hashlib
from typing import Any, Iterable, Mapping, Tuple

import torch

NamedTensor = Tuple[str, torch.Tensor]


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, whatever its device and type."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def fingerprint(tensors: Iterable[NamedTensor]) -> str:
    """Fingerprint of named tensors; their order does not matter.

    Returns:
        ``sha256:`` and 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        header = f"{name} {tensor.dtype} {tuple(tensor.shape)}\n"
        digest.update(header.encode())
        digest.update(tensor_bytes(tensor))
    return f"sha256:{digest.hexdigest()}"


class FingerprintCache:
    """Keeps the fingerprint of a module's tensors until one of them changes."""

    def __init__(self) -> None:
        self._state: Any = None
        self._value = ""

    def get(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Fingerprint of the tensors, from the cache if none has changed.

        A change is a write that torch's version counter sees, or another storage.
        """
        state = tuple(
            # Tensors of inference mode do not count their versions.
            (name, t.data_ptr(), t.dtype, -1 if t.is_inference() else t._version)
            for name, t in tensors.items()
        )
        if state != self._state:
            self._state, self._value = state, fingerprint(tensors.items())
        return self._value
