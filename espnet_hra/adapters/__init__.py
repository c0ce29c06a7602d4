"""Adapters by the name that `encoder_conf: adapter:` gives them.

A rival is added here: one module with one :class:`~espnet_hra.adapters.base.Adapter`,
one line in :data:`ADAPTERS`.
"""

from typing import Any, Dict, Optional, Type

from espnet_hra.adapters.base import Adapter
from espnet_hra.adapters.hra import HierarchicalRecurrentAdapter

ADAPTERS: Dict[str, Type[Adapter]] = {
    "hra": HierarchicalRecurrentAdapter,
}


def build_adapter(
    name: str, width: int, num_layers: int, conf: Optional[Dict[str, Any]] = None
) -> Adapter:
    """Build the adapter of a configuration.

    Args:
        name: Value of `adapter:`.
        width: Width d of the encoder.
        num_layers: Number L of layers that it adapts.
        conf: Value of `adapter_conf:`.

    Raises:
        ValueError: The name is not one of :data:`ADAPTERS`, or the configuration has
            an unknown key or a value that is not possible.
    """
    if name not in ADAPTERS:
        raise ValueError(
            f"adapter: {name!r} is not available; built are: {', '.join(ADAPTERS)}"
        )
    return ADAPTERS[name](width, num_layers, **(conf or {}))
