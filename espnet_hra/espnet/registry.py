"""Makes `hra_<name>` a valid `encoder:` in ESPnet's registries.

ESPnet has no plug-in mechanism: each task module keeps a plain dict of encoder classes,
and ESPnet3 has one of its own. Importing all of them takes long and needs packages that
not everybody has, so those that are loaded are extended at once, and the others when
they are imported.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

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


def register() -> None:
    """Add the adapted encoders to every registry of ESPnet2 and ESPnet3.

    Call it before ESPnet's argument parser is built. Calling it again changes nothing.
    """
    for name in REGISTRIES:
        if name in sys.modules:
            _extend(sys.modules[name])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _extend(module: ModuleType) -> None:
    """Add an adapted counterpart to each encoder of a module's registry."""
    from espnet2.asr.encoder.abs_encoder import AbsEncoder

    from espnet_hra.encoder.adapted import wrap_encoder
    from espnet_hra.espnet import whisper

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
        if name not in REGISTRIES:
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
