"""Fingerprints of weights: does this adapter stand on the backbone it was trained on?

A fingerprint is the SHA-256 over names, types, shapes and bytes of tensors. Hashing a
large encoder takes a tenth of a second and more, so it is done once and kept until a
tensor is written to or replaced.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch.multiprocessing.reductions import StorageWeakRef

NamedTensor = tuple[str, torch.Tensor]


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


def walk(module: torch.nn.Module, without: str = "") -> list[NamedTensor]:
    """Parameters and persistent buffers, as ``state_dict`` names them, but quickly.

    ``state_dict`` and ``named_parameters`` cannot leave out a child; with ten thousand
    tasks they take tens of milliseconds.

    Args:
        module: Where to begin.
        without: Name of a child of `module` that is left out.
    """
    found: list[NamedTensor] = []

    def visit(module: torch.nn.Module, prefix: str) -> None:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.append((prefix + name, parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found.append((prefix + name, buffer))
        for name, child in module._modules.items():
            if child is not None and (prefix or name != without):
                visit(child, f"{prefix}{name}.")

    visit(module, "")
    return found


class VersionCache:
    """Keeps the fingerprint of large tensors until torch counts a change.

    A change is another tensor or storage, or a write that torch counts: what optimizers
    (but the fused ones), ``load_state_dict`` and operations in place do. Writes through
    ``tensor.data``, NumPy or a fused optimizer are not counted. So this is for tensors
    that are frozen; :class:`ContentCache` is for those that are not.
    """

    def __init__(self) -> None:
        self._state: list[tuple] = []
        self._kept: list[StorageWeakRef] = []
        self._value = ""

    def get(
        self,
        tensors: Iterable[torch.Tensor],
        compute: Callable[[], str],
    ) -> str:
        """The fingerprint; computed if one of the tensors has changed.

        Args:
            tensors: All tensors, always in the same order.
            compute: Computes their fingerprint.
        """
        tensors = list(tensors)
        state = [
            (
                t.untyped_storage()._cdata,
                t.data_ptr(),
                # Tensors of inference mode do not count their versions.
                -1 if t.is_inference() else t._version,
                t.stride(),  # of a transposed view
            )
            for t in tensors
        ]
        if state != self._state or not self._value:
            self._value = compute()
            # Held weakly, a storage gives its memory back but not its address, so that
            # no other one can be taken for it.
            self._kept = [StorageWeakRef(t.untyped_storage()) for t in tensors]
            self._state = state
        return self._value

    def __reduce__(self):
        return type(self), ()  # copies begin anew: they have other storages


class ContentCache:
    """Keeps the fingerprint of small tensors until their content changes.

    Whoever writes to them and however: the tensors are compared with a copy, which
    takes a fraction of the time of hashing them.
    """

    def __init__(self) -> None:
        self._copy: dict[str, torch.Tensor] = {}
        self._value = ""

    def get(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Fingerprint of the tensors, computed if it is not known."""
        if not self._value or not self._unchanged(tensors):
            self._copy = {k: v.detach().clone() for k, v in tensors.items()}
            self._value = fingerprint(self._copy.items())
        return self._value

    def _unchanged(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        copy = self._copy
        return tensors.keys() == copy.keys() and all(
            t.dtype == copy[k].dtype
            and t.device == copy[k].device
            and t.shape == copy[k].shape
            and torch.equal(_bits(t), _bits(copy[k]))
            for k, t in tensors.items()
        )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits as integers: as numbers, -0 equals 0 and NaN does not equal itself."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().view(kinds.get(tensor.element_size(), torch.uint8))
