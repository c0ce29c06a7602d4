"""How large a Whisper is: OpenAI's sizes by name, and others by their dimensions."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from espnet_hra.errors import BaseModelError


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The fields of openai-whisper's ``ModelDimensions``, under the same names."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    @property
    def multilingual(self) -> bool:
        """Whether it knows other languages than English."""
        return self.n_vocab >= MULTILINGUAL

    @property
    def num_languages(self) -> int:
        """How many languages it has a token for; one of English alone counts 99 too."""
        return self.n_vocab - 51_765 - int(self.multilingual)

    @property
    def parameters(self) -> int:
        """About how many numbers it has."""
        audio = 12 * self.n_audio_state**2 * self.n_audio_layer
        text = 16 * self.n_text_state**2 * self.n_text_layer
        return audio + text + self.n_vocab * self.n_text_state


#: Tokens of a Whisper of 99 languages; one of English alone has one fewer.
MULTILINGUAL = 51_865


def _sizes(
    width: int, layers: int, text_layers: int = 0, mels: int = 80, vocab: int = 0
) -> Sizes:
    heads = width // 64
    return Sizes(
        *(mels, 1500, width, heads, layers),
        *(vocab or MULTILINGUAL, 448, width, heads, text_layers or layers),
    )


#: OpenAI's models. Those of English alone have one token less than the others.
NAMED: dict[str, Sizes] = {
    "tiny": _sizes(384, 4),
    "tiny.en": _sizes(384, 4, vocab=MULTILINGUAL - 1),
    "base": _sizes(512, 6),
    "base.en": _sizes(512, 6, vocab=MULTILINGUAL - 1),
    "small": _sizes(768, 12),
    "small.en": _sizes(768, 12, vocab=MULTILINGUAL - 1),
    "medium": _sizes(1024, 24),
    "medium.en": _sizes(1024, 24, vocab=MULTILINGUAL - 1),
    "large-v1": _sizes(1280, 32),
    "large-v2": _sizes(1280, 32),
    "large-v3": _sizes(1280, 32, mels=128, vocab=MULTILINGUAL + 1),
    "large": _sizes(1280, 32, mels=128, vocab=MULTILINGUAL + 1),
    "large-v3-turbo": _sizes(1280, 32, 4, mels=128, vocab=MULTILINGUAL + 1),
    "turbo": _sizes(1280, 32, 4, mels=128, vocab=MULTILINGUAL + 1),
}

_WRITTEN = re.compile(r"\w+=\d+(,\w+=\d+)*")


def sizes_of(name: str) -> Sizes:
    """The sizes that ``whisper_model:`` of a configuration stands for.

    Args:
        name: A name of OpenAI's, or what :func:`written` has made.

    Raises:
        BaseModelError: It is neither.
    """
    if name in NAMED:
        return NAMED[name]
    if _WRITTEN.fullmatch(name):
        return checked(
            name,
            {
                key: int(value)
                for key, _, value in (p.partition("=") for p in name.split(","))
            },
        )
    raise BaseModelError(
        f"whisper_model: {name}: no such Whisper; known are {', '.join(NAMED)}"
    )


def written(sizes: Sizes) -> str:
    """Sizes as ``whisper_model:`` of a configuration: OpenAI's name if one fits."""
    for name, known in NAMED.items():
        if known == sizes:
            return name
    return ",".join(f"{k}={v}" for k, v in dataclasses.asdict(sizes).items())


def checked(source: object, values: Mapping[str, Any]) -> Sizes:
    """Sizes that a file tells, if they can be those of a Whisper.

    Raises:
        BaseModelError: One is missing or no number, or they do not fit together.
    """
    wanted = [field.name for field in dataclasses.fields(Sizes)]
    wrong = [
        f"{key}: {values.get(key)!r}"
        for key in wanted
        if not isinstance(values.get(key), int) or not 0 < values[key] < 2**20
    ]
    if wrong or set(values) - set(wanted):
        raise BaseModelError(
            f"{source}: not the sizes of a Whisper "
            f"({', '.join(wrong) or 'unknown: ' + ', '.join(set(values) - set(wanted))}"
            f"); expected {', '.join(wanted)}"
        )
    sizes = Sizes(**{key: values[key] for key in wanted})
    if (
        sizes.n_audio_state % (2 * sizes.n_audio_head)
        or sizes.n_text_state % sizes.n_text_head
        or sizes.n_audio_state != sizes.n_text_state
        or not MULTILINGUAL - 1 <= sizes.n_vocab < MULTILINGUAL + 100
    ):
        raise BaseModelError(f"{source}: not the sizes of a Whisper: {sizes}")
    return sizes
