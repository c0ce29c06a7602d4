"""Adapters by the name that `encoder_conf: adapter:` gives them.

A rival is added here: one module with one :class:`~espnet_hra.adapters.base.Adapter`,
one line in :data:`ADAPTERS`.
"""

import inspect
from typing import Any, Dict, Optional, Type

from espnet_hra.adapters.base import Adapter
from espnet_hra.adapters.hra import HierarchicalRecurrentAdapter
from espnet_hra.errors import ConfigError

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
        ConfigError: The name is not one of :data:`ADAPTERS`, or the configuration has
            an unknown key or a value that is not possible.
    """
    if name not in ADAPTERS:
        raise ConfigError(
            f"adapter: {name!r} is not available; built are: {', '.join(ADAPTERS)}"
        )
    conf = conf or {}
    possible = list(inspect.signature(ADAPTERS[name]).parameters)[2:]
    for key in conf:
        if key not in possible:
            raise ConfigError(
                f"adapter_conf: {key!r} is no key of the adapter {name!r}; possible "
                f"are: {', '.join(possible)}"
            )
    return ADAPTERS[name](width, num_layers, **conf)
