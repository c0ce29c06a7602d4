"""Tasks in a folder, for one encoder: their files are read and verified against it."""

import functools
import os
import weakref
from pathlib import Path
from typing import Any, Protocol

import torch

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import Adapter
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.cache import DEFAULT_BYTES, Head, HeadCache, Read, Reader
from espnet_hra.tasks.store import TaskStore, check_name


class Knows(Protocol):
    """What files are verified against: an adapted encoder."""

    adapter: Adapter

    @property
    def backbone_fingerprint(self) -> str:
        """Fingerprint of the wrapped encoder's weights."""

    def identity(self, backbone: str | None = None) -> dict[str, Any]:
        """What a task's file must agree with."""

    def like(self) -> torch.Tensor:
        """A tensor of the device and type that tasks have."""


def heads_of(
    encoder: Knows,
    store: str | os.PathLike[str] | TaskStore,
    max_loaded: int | None = None,
) -> HeadCache:
    """The heads in a folder for an encoder. See ``AdaptedEncoder.attach_store``.

    Raises:
        ConfigError: `max_loaded` is no whole number above 0.
    """
    if max_loaded is None:
        head_bytes = encoder.adapter.heads.size * encoder.like().element_size()
        max_loaded = max(1, DEFAULT_BYTES // max(1, head_bytes))
    if type(max_loaded) is not int or max_loaded < 1:
        raise ConfigError(f"max_loaded: {max_loaded!r} must be a whole number above 0")
    if not isinstance(store, TaskStore):
        store = TaskStore(store)
    return HeadCache(store, reader_for(encoder), max_loaded)


def reader_for(encoder: Knows) -> Reader:
    """What verifies files against an encoder, and does not keep that alive."""
    known = weakref.ref(encoder)

    def alive() -> Knows:
        encoder = known()
        assert encoder is not None, "its heads ask for it, so it is there"
        return encoder

    def reader() -> Read:
        @functools.cache  # looking at all of a backbone takes longer than a file
        def backbone() -> str:
            return alive().backbone_fingerprint

        # Not of inference mode: the head may serve passes with gradients as well.
        @torch.inference_mode(False)
        @torch.no_grad()
        def read(path: Path, name: str) -> Head:
            encoder = alive()
            heads, identity = encoder.adapter.heads, encoder.identity(backbone())
            shapes = heads.layout.shapes
            file = taskfile.load(path, shapes, identity, pooled=heads.pooled)
            check_name(path, name, file.name)
            vector = heads.flatten(file.tensors, encoder.like())
            return Head(vector, file.info, file.checksum, file.labels)

        return read

    return reader
