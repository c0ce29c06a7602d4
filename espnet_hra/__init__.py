"""Hierarchical recurrent adapters for ESPnet: one frozen encoder, many tasks.

Importing this package is quick: ESPnet and torch are loaded when they are needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from espnet_hra.errors import TaskError
from espnet_hra.espnet.registry import register
from espnet_hra.version import __version__

if TYPE_CHECKING:
    from espnet_hra.espnet.alignment import CTCSegmentation
    from espnet_hra.espnet.inference import Speech2Text
    from espnet_hra.espnet.streaming import Speech2TextStreaming


__all__ = [
    "CTCSegmentation",
    "Speech2Text",
    "Speech2TextStreaming",
    "TaskError",
    "__version__",
    "register",
]

# An encoder called hra_... in anybody's configuration should just work.
register()


def __getattr__(name: str) -> Any:
    if name == "Speech2Text":
        return import_module("espnet_hra.espnet.inference").Speech2Text
    if name == "CTCSegmentation":
        return import_module("espnet_hra.espnet.alignment").CTCSegmentation
    if name == "Speech2TextStreaming":
        return import_module("espnet_hra.espnet.streaming").Speech2TextStreaming
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
