"""Adapters by the name that `encoder_conf: adapter:` gives them.

A rival is added here: one module with one :class:`~espnet_hra.methods.base.Adapter`,
one line in :data:`ADAPTERS`.
"""

import inspect
from typing import Any

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import Adapter, Backbone
from espnet_hra.methods.bitfit import BitFit
from espnet_hra.methods.full import FullFineTuning
from espnet_hra.methods.hra import HierarchicalRecurrentAdapter
from espnet_hra.methods.lora import LoRA
from espnet_hra.methods.none import NoAdapter
from espnet_hra.methods.residual import ResidualAdapter

ADAPTERS: dict[str, type[Adapter]] = {
    "hra": HierarchicalRecurrentAdapter,
    "residual": ResidualAdapter,
    "lora": LoRA,
    "bitfit": BitFit,
    "full": FullFineTuning,
    "none": NoAdapter,
}


def adapter_class(name: str) -> type[Adapter]:
    """The adapter of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in ADAPTERS:
        raise ConfigError(
            f"adapter: {name!r} is not available; built are: {', '.join(ADAPTERS)}"
        )
    return ADAPTERS[name]


def build_adapter(
    name: str, backbone: Backbone, conf: dict[str, Any] | None = None
) -> Adapter:
    """Build the adapter of a configuration.

    Args:
        name: Value of `adapter:`.
        backbone: The encoder that it adapts, still without an adapter.
        conf: Value of `adapter_conf:`.

    Raises:
        ConfigError: The name is not one of :data:`ADAPTERS`, or the configuration has
            an unknown key or a value that is not possible.
    """
    built = adapter_class(name)
    own = list(inspect.signature(built).parameters)[1:]
    common = list(inspect.signature(built.configure).parameters)[1:]
    conf = conf or {}
    for key in conf:
        if key not in own + common:
            raise ConfigError(
                f"adapter_conf: {key!r} is no key of the adapter {name!r}; possible "
                f"are: {', '.join(own + common)}"
            )
    adapter = built(backbone, **{k: v for k, v in conf.items() if k in own})
    adapter.configure(**{k: v for k, v in conf.items() if k in common})
    return adapter
