"""What a model needs of its data, read off its configuration."""

import argparse
import functools
import itertools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        ctc: Whether a CTC loss is computed, which needs a frame for every token and
            one between two equal ones.
    """

    sample_rate: int = 16000
    tokenizer: Callable[[str], list[str]] | None = None
    tokens: Collection[str] | None = None
    frames: Callable[[int], int] | None = None
    tasks: Collection[str] | None = None
    ctc: bool = True


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
    frames = (n_samples + 2 * pad - n_fft) // hop_length + 1
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
        ValueError: If a value of the configuration cannot be what it is.
        OSError: If a file that the configuration names cannot be read.
    """
    config = vars(args) if isinstance(args, argparse.Namespace) else args
    requirements = Requirements(
        frames=_frames_from_config(config),
        tasks=_tasks_from_config(config),
        ctc=(config.get("model_conf") or {}).get("ctc_weight", 0.5) != 0.0,
    )
    rate = (config.get("frontend_conf") or {}).get("fs", requirements.sample_rate)
    requirements.sample_rate = _parse_rate(rate)
    tokens = _tokens_from_config(config)
    if tokens is not None:
        tokenizer = _tokenizer_from_config(config)
        if tokenizer is not None:
            requirements.tokens, requirements.tokenizer = tokens, tokenizer
    return requirements


def _parse_rate(value: Any) -> int:
    import humanfriendly  # as ESPnet: 16k is 16000

    try:
        rate = humanfriendly.parse_size(value) if isinstance(value, str) else int(value)
    except (TypeError, ValueError, humanfriendly.InvalidSize) as error:
        raise ValueError(f"frontend_conf: fs: {value!r} is no sampling rate") from error
    if rate <= 0:
        raise ValueError(f"frontend_conf: fs: {value!r} is no sampling rate")
    return rate


def _read_names(path: str, key: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as handle:
            return [line.rstrip("\n") for line in handle]
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}: {path} is not UTF-8") from error
    except OSError as error:
        raise type(error)(error.errno, f"{key}: {error.strerror}", path) from error


def _tokens_from_config(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    tokens = config.get("token_list")
    if tokens is None:
        return None
    if isinstance(tokens, (str, os.PathLike)):
        # A token may be a white-space character itself: ESPnet keeps the first one.
        lines = _read_names(os.fspath(tokens), "token_list")
        tokens = [line[:1] + line[1:].rstrip() for line in lines]
    conf = (config.get("encoder_conf") or {}).get("adapter_conf") or {}
    new = conf.get("new_tokens")
    if not isinstance(new, list | tuple):
        new = []
    return tuple(str(t) for t in (*tokens, *(t for t in new if t not in tokens)))


def _tasks_from_config(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    tasks = (config.get("encoder_conf") or {}).get("tasks")
    if tasks is None:
        return None
    if isinstance(tasks, (str, os.PathLike)):
        lines = _read_names(os.fspath(tasks), "encoder_conf: tasks")
        tasks = [line.strip() for line in lines if line.strip()]
    # YAML reads a task named 1 as a number.
    return tuple(str(task) for task in tasks)


def _frames_from_config(config: Mapping[str, Any]) -> Callable[[int], int] | None:
    encoder = str(config.get("encoder")).removeprefix("hra_")
    input_layer = (config.get("encoder_conf") or {}).get("input_layer", "conv2d")
    frontend = config.get("frontend_conf") or {}
    if (
        config.get("frontend", "default") != "default"
        or config.get("input_size") is not None  # features, no waveforms
        or not frontend.get("apply_stft", True)
        or config.get("preencoder") not in (None, "linear")
        or config.get("postencoder") is not None
        or encoder not in _ENCODERS
        or input_layer not in INPUT_LAYERS
    ):
        return None
    return functools.partial(
        subsampled_frames,
        hop_length=int(frontend.get("hop_length", 128)),
        n_fft=int(frontend.get("n_fft", 512)),
        center=bool(frontend.get("center", True)),
        input_layer=input_layer,
    )


def _tokenizer_from_config(
    config: Mapping[str, Any],
) -> Callable[[str], list[str]] | None:
    """Build what ESPnet's preprocessor does to a text."""
    if not config.get("use_preprocessor", True):
        return None
    kind = config.get("token_type", "bpe")
    symbols = config.get("non_linguistic_symbols")
    conf = config.get("preprocessor_conf") or {}
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
            raise ValueError("token_type: bpe needs a bpemodel")
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
