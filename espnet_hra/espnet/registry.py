"""Makes `hra_<name>` a valid `encoder:` in ESPnet's registries.

ESPnet has no plug-in mechanism: each task module keeps a plain dict of encoder classes,
and ESPnet3 has one of its own. Importing all of them takes long and needs packages that
not everybody has, so those that are loaded are extended at once, and the others when
they are imported.

The ESPnet task ``asr_transducer`` has no registry: its models have one encoder, whose
class the module calls by name. What has that name from then on builds the adapted
encoder where ``encoder_conf`` has keys of an adapter, and ESPnet's own where not.
"""

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from espnet_hra.names import PREFIX, plain_encoder

#: Modules whose `encoder_choices` hold speech encoders.
REGISTRIES = (
    "espnet2.tasks.asr",
    "espnet2.tasks.s2t",
    "espnet2.tasks.s2t_ctc",
    "espnet2.tasks.st",
    "espnet2.tasks.slu",
    "espnet2.tasks.s2st",
    "espnet2.tasks.enh_s2t",
    "espnet2.tasks.cls",
    "espnet2.tasks.lid",
    "espnet2.tasks.ssl",
    "espnet2.tasks.spk",
    "espnet3.systems.esp2_asr.task",
)

#: The module without a registry.
WITHOUT = "espnet2.tasks.asr_transducer"


def register() -> None:
    """Add the adapted encoders to every registry of ESPnet2 and ESPnet3.

    Call it before ESPnet's argument parser is built. Calling it again changes nothing.
    """
    for name in (*REGISTRIES, WITHOUT):
        if name in sys.modules:
            _extend(sys.modules[name])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _extend(module: ModuleType) -> None:
    """Add an adapted counterpart to each encoder of a module's registry."""
    from espnet2.asr.encoder.abs_encoder import AbsEncoder

    from espnet_hra.encoder.adapted import wrap_encoder
    from espnet_hra.espnet import whisper

    if module.__name__ == WITHOUT:
        own = getattr(module, "Encoder", None)
        if isinstance(own, type):
            module.Encoder = _either(own)  # type: ignore[attr-defined]
        return
    choices = getattr(module, "encoder_choices", None)
    if choices is None:  # the module is still being imported, or has none
        return
    if not isinstance(choices.classes, _Classes):
        choices.classes = _Classes(choices.classes)
    for name, cls in list(choices.classes.items()):
        # ESPnet checks the type only when the registry is made.
        if issubclass(cls, AbsEncoder) and not name.startswith(PREFIX):
            wrapped = whisper.WhisperEncoder if name == whisper.NAME else cls
            choices.classes.setdefault(f"{PREFIX}{name}", wrap_encoder(wrapped))


def _either(own: type) -> Callable[..., Any]:
    """What builds an encoder of ESPnet's class, or its adapted counterpart."""
    from espnet_hra.encoder.adapted import OWN_KEYS, wrap_encoder

    @functools.wraps(own, updated=())
    def build(input_size: int, **conf: Any) -> Any:
        if not any(key in conf for key in OWN_KEYS):
            return own(input_size, **conf)
        # ESPnet writes sizes into a missing input_conf, and so into its default.
        return wrap_encoder(own)(input_size, **{"input_conf": {}, **conf})

    return build


class _Classes(dict):
    """ESPnet's registry, in which the name that packs give an encoder is found too."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(
            plain_encoder(name) if isinstance(name, str) else name
        )

    def __missing__(self, name: str) -> type:
        if plain_encoder(name) == name:
            raise KeyError(name)
        return self[plain_encoder(name)]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself; adds :func:`_extend` after a registry's import."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in REGISTRIES and name != WITHOUT:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader):
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec):
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _extend(module)

    def __getattr__(self, name: str):
        return getattr(self._loader, name)
