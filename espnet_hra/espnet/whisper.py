"""ESPnet's Whisper with today's openai-whisper, built without fetching weights.

ESPnet's encoder and decoder call ``whisper.load_model``, which downloads, and copy the
parts that they need. A base brings its weights along, so here they get parts of the
right sizes without weights. They also use names that openai-whisper no longer has
(``N_MELS``, tokenizers of Hugging Face's).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from espnet2.asr.encoder.whisper_encoder import OpenAIWhisperEncoder

from espnet_hra.espnet.seam import standing_in
from espnet_hra.whisper import memory, package, tokens
from espnet_hra.whisper.sizes import Sizes, sizes_of

#: ESPnet's name of the encoder and of the decoder.
NAME = "whisper"

#: Samples a second that Whisper hears.
RATE = 16_000

#: Their default of ``whisper_model``.
_USUAL = "small"


def model_sizes(encoder_conf: Mapping[str, Any] | None) -> Sizes:
    """The sizes that an ``encoder_conf`` or ``decoder_conf`` names.

    Raises:
        BaseModelError: There is no such Whisper.
    """
    return sizes_of(str((encoder_conf or {}).get("whisper_model", _USUAL)))


def uses_whisper(config: Mapping[str, Any]) -> bool:
    """Whether a configuration has anything of Whisper's: a part, or its tokens."""
    return bool(_parts(config)) or "whisper" in str(config.get("token_type"))


def _parts(config: Mapping[str, Any]) -> list[str]:
    """The parts of a configuration's model that are Whisper's."""
    return [
        part
        for part in ("encoder", "decoder", "frontend")
        if str(config.get(part)).removeprefix("hra_") == NAME
    ]


def check_memory(config: Mapping[str, Any]) -> None:
    """Refuse a configuration whose Whisper does not fit into memory.

    Raises:
        BaseModelError: It does not, or there is no such Whisper.
    """
    for part in _parts(config)[:1]:
        conf = config.get(f"{part}_conf") or {}
        name = str(conf.get("whisper_model", _USUAL))
        memory.check(f"{part}_conf: whisper_model: {name}", sizes_of(name))


@contextlib.contextmanager
def without_weights(config: Mapping[str, Any]) -> Iterator[None]:
    """A block in which ESPnet builds its Whisper of a configuration without weights.

    Args:
        config: Of a model; nothing happens if it has nothing of Whisper's.

    Raises:
        BaseModelError: openai-whisper is not installed, or there is no such Whisper.
    """
    if not uses_whisper(config):
        yield
        return
    module = package.openai_whisper()
    part = next(iter(_parts(config)), "decoder")
    sizes = model_sizes(config.get(f"{part}_conf"))
    tokenizer = functools.partial(
        tokens.Tokenizer,
        num_languages=sizes.num_languages,
    )
    # A frontend keeps the whole model, encoder and decoder copy their part.
    load: Callable[..., Any] = _whole if config.get("frontend") == NAME else _Blank
    with (
        standing_in(module, load_model=load, available_models=_Any),
        standing_in(module.audio, "N_MELS", N_MELS=sizes.n_mels),
        standing_in(module.tokenizer, get_tokenizer=tokenizer),
    ):
        yield


def _whole(name: str, **others: Any) -> torch.nn.Module:
    """Stands for ``whisper.load_model``. Arguments as of :class:`_Blank`."""
    return package.whole(sizes_of(name))


class _Any:
    """Stands for the list of models: any that :func:`sizes_of` knows."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and sizes_of(name) is not None


class _Blank:
    """Stands for ``whisper.load_model``: its parts, without a model's weights.

    Args:
        name: See :func:`espnet_hra.whisper.sizes.sizes_of`.
        **others: Where weights would be kept, and on which device.
    """

    def __init__(self, name: str, **others: Any):
        self._sizes = sizes_of(name)

    @property
    def encoder(self) -> torch.nn.Module:
        """A new encoder."""
        return package.encoder(self._sizes)

    @property
    def decoder(self) -> torch.nn.Module:
        """A new decoder."""
        return package.decoder(self._sizes)


class WhisperEncoder(OpenAIWhisperEncoder):
    """ESPnet's Whisper encoder without weights, and with as much silence as is needed.

    Whisper was trained on windows of 30 seconds, most of which end in silence. Where an
    utterance ends without any, it goes on to repeat itself. ESPnet pads to 30 seconds
    (``do_pad_trim``) or not at all. A second of silence is enough, and ten times
    quicker on short utterances; it is the same in training and decoding.

    Args:
        *args: As of ESPnet's encoder.
        pad_seconds: Seconds of silence after the longest utterance of a batch.
        least_seconds: How long a batch is at least, with that silence.
        **kwargs: As of ESPnet's encoder.
    """

    def __init__(
        self,
        input_size: int = 1,
        dropout_rate: float = 0.0,
        whisper_model: str = _USUAL,
        download_dir: str | None = None,
        use_specaug: bool = False,
        specaug_conf: dict | None = None,
        do_pad_trim: bool = False,
        pad_seconds: float = 0.0,
        least_seconds: float = 0.0,
    ):
        with without_weights(
            {"encoder": NAME, "encoder_conf": {"whisper_model": whisper_model}}
        ):
            super().__init__(
                input_size,
                dropout_rate,
                whisper_model,
                download_dir,
                use_specaug,
                specaug_conf,
                do_pad_trim,
            )
        self.pad_seconds, self.least_seconds = pad_seconds, least_seconds

    def forward(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        prev_states: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """As ESPnet's, with silence.

        Args:
            xs_pad: Samples, (b, samples).
            ilens: How many of each, (b).
            prev_states: Not used.

        Returns:
            (b, frames, d), how many frames are of speech (b), and None.
        """
        silence = int(self.pad_seconds * RATE)
        silence = max(silence, int(self.least_seconds * RATE) - xs_pad.size(1))
        if silence > 0 and not self.do_pad_trim:
            xs_pad = torch.nn.functional.pad(xs_pad, (0, silence))
        return super().forward(xs_pad, ilens, prev_states)
