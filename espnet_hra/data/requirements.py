"""What a model needs of its data, read off its configuration."""

import argparse
import functools
import itertools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_hra.errors import ConfigError
from espnet_hra.tasks.config import labels_by_task, read_tasks

#: The time-axis convolutions (kernel size, stride) of ESPnet's input layers.
INPUT_LAYERS: dict[str | None, tuple[tuple[int, int], ...]] = {
    "conv2d": ((3, 2), (3, 2)),
    "conv2d1": ((3, 1), (3, 1)),
    "conv2d2": ((3, 2), (3, 1)),
    "conv2d6": ((3, 2), (5, 3)),
    "conv2d8": ((3, 2), (3, 2), (3, 2)),
    "conv1d1": ((3, 1), (3, 1)),
    "conv1d2": ((3, 1), (3, 2)),
    "conv1d3": ((3, 1), (5, 3)),
    "linear": (),
    "embed": (),
    None: (),
}

#: The encoders whose ``input_layer`` means what :data:`INPUT_LAYERS` says.
_ENCODERS = {
    "branchformer",
    "conformer",
    "contextual_block_conformer",
    "contextual_block_transformer",
    "e_branchformer",
    "longformer",
    "multiconv_conformer",
    "transformer",
    "transformer_multispkr",
}


#: What Whisper hears at once. ESPnet's encoder cuts the rest off in silence.
WHISPER_SECONDS = 30.0


@dataclass
class Requirements:
    """What the model needs of its data; None claims nothing.

    Attributes:
        sample_rate: The sampling rate in Hz.
        tokenizer: Splits a text into tokens.
        tokens: The token list of the model.
        frames: The number of encoder frames for a number of samples, 0 if they are
            too few for the subsampling.
        tasks: The tasks of the model; None accepts every valid name.
        longest: The seconds that the model hears of an utterance it learns from; None
            for all.
        ctc: Whether a CTC loss is computed, which needs a frame for every token and
            one between two equal ones.
        labels: What the tasks tell that classify, by name: one of these stands in the
            place of a text.
    """

    sample_rate: int = 16000
    tokenizer: Callable[[str], list[str]] | None = None
    tokens: Collection[str] | None = None
    frames: Callable[[int], int] | None = None
    tasks: Collection[str] | None = None
    longest: float | None = None
    ctc: bool = True
    labels: Mapping[str, Collection[str]] = field(default_factory=dict)


def subsampled_frames(
    n_samples: int,
    *,
    hop_length: int = 128,
    n_fft: int = 512,
    center: bool = True,
    input_layer: str | None = "conv2d",
) -> int:
    """The number of frames that ESPnet's default frontend and an encoder make.

    Args:
        n_samples: The number of samples.
        hop_length: ``frontend_conf: hop_length``.
        n_fft: ``frontend_conf: n_fft``.
        center: ``frontend_conf: center``.
        input_layer: ``encoder_conf: input_layer``.

    Returns:
        The number of encoder frames, 0 if ESPnet would refuse so few samples.

    Raises:
        ValueError: If the input layer is unknown.
    """
    if input_layer not in INPUT_LAYERS:
        known = ", ".join(str(name) for name in INPUT_LAYERS)
        raise ValueError(f"unknown input_layer {input_layer!r}; known: {known}")
    pad = n_fft // 2 if center else 0
    # The padding mirrors the signal, which must be longer than what is mirrored.
    if n_samples <= pad or n_samples + 2 * pad < n_fft:
        return 0
    return _behind(input_layer, (n_samples + 2 * pad - n_fft) // hop_length + 1)


def whisper_frames(n_samples: int, input_layer: str | None) -> int:
    """The number of frames that ESPnet's ``frontend: whisper`` and an encoder make.

    Args:
        n_samples: The number of samples.
        input_layer: ``encoder_conf: input_layer``.

    Returns:
        The number of encoder frames, 0 if it is too little to be heard.
    """
    if n_samples <= 200:  # mirrored, as above
        return 0
    return _behind(input_layer, (n_samples // 160 - 1) // 2 + 1)


def _behind(input_layer: str | None, frames: int) -> int:
    """How many of a frontend's frames come out of an encoder's input layer."""
    for kernel, stride in INPUT_LAYERS[input_layer]:
        if frames < kernel:
            return 0
        frames = (frames - kernel) // stride + 1
    return frames


def frames_for_ctc(tokens: Sequence[str]) -> int:
    """The least number of frames in which CTC can emit tokens (or a text's letters).

    It needs a frame for each, and a blank one between two equal ones.
    """
    return len(tokens) + sum(a == b for a, b in itertools.pairwise(tokens))


def requirements_from_config(
    args: Mapping[str, Any] | argparse.Namespace,
) -> Requirements:
    """What the model of an ESPnet training configuration needs.

    Args:
        args: The configuration, as read from YAML or as the Task gets it.

    Returns:
        The requirements. Nothing is claimed about frames where the frontend or the
        encoder is not known here, nor about tokens whose tokenizer is not ESPnet's own.

    Raises:
        UserError: A value of the configuration cannot be what it is, or a file that it
            names cannot be read.
    """
    config = vars(args) if isinstance(args, argparse.Namespace) else args
    tasks = _section(config, "encoder_conf").get("tasks")
    requirements = Requirements(
        sample_rate=rate_from_config(config),
        frames=_frames_from_config(config),
        tasks=None if tasks is None else read_tasks(tasks),
        labels=labels_by_task({"tasks": tasks}),
        ctc=_ctc_weight(config) != 0.0,
    )
    tokens = _tokens_from_config(config)
    if tokens is not None and str(config.get("bpemodel")).startswith("whisper_"):
        requirements.longest = WHISPER_SECONDS
    try:
        tokenizer = None if tokens is None else _tokenizer_from_config(config)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    if tokenizer is not None:
        requirements.tokens, requirements.tokenizer = tokens, tokenizer
    return requirements


def _ctc_weight(config: Mapping[str, Any]) -> float:
    """The weight of the CTC loss of what is in the list `text`."""
    conf = _section(config, "model_conf")
    if "joint_network_conf" in config:  # a transducer, whose loss has no such limit
        return 0.0
    if "src_token_list" in config:  # a translation; `ctc_weight` is another task's
        return conf.get("st_mtlalpha", 0.0)
    return conf.get("ctc_weight", 0.5)


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of the configuration; empty where it has none."""
    section = config.get(key) or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{key}: {section!r} is not keys and values")
    return section


def rate_from_config(config: Mapping[str, Any]) -> int:
    """The sampling rate of a configuration's model, in Hz.

    Raises:
        ConfigError: It is none.
    """
    import humanfriendly  # as ESPnet: 16k is 16000

    value = _section(config, "frontend_conf").get("fs", 16000)
    try:
        rate = humanfriendly.parse_size(value) if isinstance(value, str) else int(value)
    except (TypeError, ValueError, humanfriendly.InvalidSize):
        rate = 0
    if rate <= 0:
        raise ConfigError(f"frontend_conf: fs: {value!r} is no sampling rate")
    return rate


def _tokens_from_config(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    tokens = config.get("token_list")
    if tokens is None:
        return None
    if isinstance(tokens, str | os.PathLike):
        try:
            lines = Path(tokens).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"token_list: {tokens}: cannot be read: {error}"
            ) from error
        # A token may be a white-space character itself: ESPnet keeps the first one.
        tokens = [line[:1] + line[1:].rstrip() for line in lines.split("\n")]
    new = _section(_section(config, "encoder_conf"), "adapter_conf").get("new_tokens")
    new = new if isinstance(new, list | tuple) else ()
    return tuple(str(t) for t in (*tokens, *(t for t in new if t not in tokens)))


def _frames_from_config(config: Mapping[str, Any]) -> Callable[[int], int] | None:
    encoder = str(config.get("encoder")).removeprefix("hra_")
    input_layer = _section(config, "encoder_conf").get("input_layer", "conv2d")
    if "joint_network_conf" in config:
        encoder, input_layer = _of_transducer(_section(config, "encoder_conf"))
    frontend = _section(config, "frontend_conf")
    heard = config.get("frontend", "default")
    if (
        heard not in ("default", "whisper")
        or config.get("input_size") is not None  # features, no waveforms
        or not frontend.get("apply_stft", True)
        or config.get("preencoder") not in (None, "linear")
        or config.get("postencoder") is not None
        # Models of s2t pad or cut every utterance to one length.
        or str(config.get("preprocessor")).startswith("s2t")
        or encoder not in _ENCODERS
        or input_layer not in INPUT_LAYERS
    ):
        return None
    if heard == "whisper":
        return functools.partial(whisper_frames, input_layer=input_layer)
    return functools.partial(
        subsampled_frames,
        hop_length=int(frontend.get("hop_length", 128)),
        n_fft=int(frontend.get("n_fft", 512)),
        center=bool(frontend.get("center", True)),
        input_layer=input_layer,
    )


def _of_transducer(conf: Mapping[str, Any]) -> tuple[str, str]:
    """An encoder and input layer that make the frames of one of asr_transducer's.

    Args:
        conf: Its ``encoder_conf``.

    Returns:
        Their names; that of the encoder is empty if there is none.
    """
    own = _section(conf, "input_conf")
    blocks = [dict(block).get("block_type") for block in conf.get("body_conf") or ()]
    layer = {2: "conv2d2", 4: "conv2d", 6: "conv2d6"}.get(
        own.get("subsampling_factor") or 4
    )
    if own.get("vgg_like") or "conv1d" in blocks or layer is None:
        return "", "conv2d"
    return "conformer", layer


def _tokenizer_from_config(
    config: Mapping[str, Any],
) -> Callable[[str], list[str]] | None:
    """Build what ESPnet's preprocessor does to a text."""
    if not config.get("use_preprocessor", True):
        return None
    kind = config.get("token_type", "bpe")
    symbols = config.get("non_linguistic_symbols")
    conf = _section(config, "preprocessor_conf")
    space = conf.get("space_symbol", "<space>")
    # Not espnet2.text.build_tokenizer where it can be helped: it imports all
    # tokenizers and their toolkits, which takes seconds.
    if kind == "char":
        from espnet2.text.char_tokenizer import CharTokenizer

        tokenizer = CharTokenizer(
            non_linguistic_symbols=symbols,
            space_symbol=space,
            nonsplit_symbols=conf.get("nonsplit_symbol"),
        )
    elif kind == "word":
        from espnet2.text.word_tokenizer import WordTokenizer

        tokenizer = WordTokenizer(delimiter=conf.get("delimiter"))
    elif kind == "bpe":
        from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer

        model = config.get("bpemodel")
        if model is None:
            raise ConfigError("token_type: bpe needs a bpemodel")
        with open(model, "rb"):
            pass  # SentencePiece opens it late, and aborts without naming it
        tokenizer = SentencepiecesTokenizer(model)
    elif kind == "phn":
        from espnet2.text.build_tokenizer import build_tokenizer

        tokenizer = build_tokenizer(
            token_type=kind,
            non_linguistic_symbols=symbols,
            space_symbol=space,
            g2p_type=config.get("g2p"),
        )
    else:
        return None  # Whisper's and the like bring their own vocabulary

    cleaner = config.get("cleaner")
    if cleaner is None:
        return tokenizer.text2tokens
    from espnet2.text.cleaner import TextCleaner

    clean = TextCleaner(cleaner)
    return lambda text: tokenizer.text2tokens(clean(text))
