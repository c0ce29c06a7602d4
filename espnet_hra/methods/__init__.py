"""Methods by the name that `encoder_conf: adapter:` gives them.

A method is added here: one module with one
:class:`~espnet_hra.methods.base.Adapter`, one line in :data:`METHODS`.
"""

import inspect
from collections.abc import Callable
from typing import Any

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import Adapter, Backbone
from espnet_hra.methods.differences import BitFit, FullFineTuning, NoAdapter
from espnet_hra.methods.hra import HierarchicalRecurrentAdapter
from espnet_hra.methods.lily import Lily
from espnet_hra.methods.lora import LoRA
from espnet_hra.methods.prompt import SoftPrompt
from espnet_hra.methods.residual import ResidualAdapter
from espnet_hra.methods.road import Road

METHODS: dict[str, Callable[..., Adapter]] = {
    "hra": HierarchicalRecurrentAdapter,
    "residual": ResidualAdapter,
    "lora": LoRA,
    "lily": Lily,
    "road": Road,
    "prompt": SoftPrompt,
    "bitfit": BitFit,
    "full": FullFineTuning,
    "none": NoAdapter,
}


def method(name: object) -> Callable[..., Adapter]:
    """The method of a name.

    Raises:
        ConfigError: There is none.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(
            f"adapter: {name!r} is not available; built are: {', '.join(METHODS)}"
        )
    return METHODS[name]


def default_ctc(name: object) -> str:
    """The key ``ctc`` of a model with this method that does not say.

    Raises:
        ConfigError: There is no such method.
    """
    return getattr(method(name), "default_ctc", "frozen")


def build_adapter(
    name: str, backbone: Backbone, conf: dict[str, Any] | None = None
) -> Adapter:
    """Build the adapter of a configuration.

    Args:
        name: Value of `adapter:`.
        backbone: The encoder that it adapts, still without an adapter.
        conf: Value of `adapter_conf:`.

    Raises:
        ConfigError: The name is not one of :data:`METHODS`, or the configuration has
            an unknown key or a value that is not possible.
    """
    built = method(name)
    own = [key for key in inspect.signature(built).parameters if key != "backbone"]
    common = list(inspect.signature(Adapter.configure).parameters)[1:]
    conf = {} if conf is None else conf
    if not isinstance(conf, dict):
        raise ConfigError(f"adapter_conf: {conf!r} must be keys and values")
    for key in conf:
        if key not in own + common:
            raise ConfigError(
                f"adapter_conf: {key!r} is no key of the adapter {name!r}; possible "
                f"are: {', '.join(own + common)}"
            )
    keys = {k: v for k, v in conf.items() if k in own}
    adapter = built(backbone, **keys)
    adapter.keys = keys
    adapter.configure(**{k: v for k, v in conf.items() if k in common})
    return adapter
