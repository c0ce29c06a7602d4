"""Hierarchical recurrent adapters for ESPnet: one frozen encoder, many tasks.

Importing this package is quick: ESPnet and torch are loaded when they are needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from espnet_hra.errors import TaskError
from espnet_hra.registry import register

if TYPE_CHECKING:
    from espnet_hra.inference import Speech2Text

__version__ = "0.1.0"

__all__ = ["Speech2Text", "TaskError", "register"]

# An encoder called hra_... in anybody's configuration should just work.
register()


def __getattr__(name: str) -> Any:
    if name == "Speech2Text":
        return import_module("espnet_hra.inference").Speech2Text
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
