"""``whisper:NAME`` and ``whisper:PATH`` as the folder of an ESPnet model.

The folder is made once and kept in the cache. It has what a pack of ESPnet's has, and
names ESPnet's own Whisper encoder, decoder and tokens.
"""

import functools
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from espnet_hra.errors import BaseModelError
from espnet_hra.files.checkpoint import State
from espnet_hra.files.config import write_yaml
from espnet_hra.whisper import formats, memory, package, sources, tokens
from espnet_hra.whisper.sizes import NAMED, Sizes, written

logger = logging.getLogger(__name__)

#: What such names begin with.
PREFIX = "whisper:"

#: Ends the folders' names; another number where what is written changes.
_VERSION = 1


def is_whisper(source: str) -> bool:
    """Whether this is the name of a Whisper."""
    return source.startswith(PREFIX)


def is_public(source: str) -> bool:
    """Whether this is the name of one of OpenAI's models, the same on every machine."""
    return is_whisper(source) and source.removeprefix(PREFIX) in NAMED


def whole_name(source: str) -> str:
    """A name that is the same from every folder: paths become whole."""
    if is_public(source):
        return source
    path = Path(source.removeprefix(PREFIX))
    return f"{PREFIX}{path.expanduser().resolve()}"


def open_folder(source: str, cache: Path) -> Path:
    """The folder of a Whisper; made if it is not in the cache.

    Args:
        source: ``whisper:`` and a name of OpenAI's (``base``, ``tiny.en``, ...) or a
            path of OpenAI's ``.pt``, a Hugging Face folder or a faster-whisper folder.
        cache: Where such folders are kept.

    Raises:
        BaseModelError: There is no such model, its weights cannot be had, or memory
            does not suffice.
    """
    rest = source.removeprefix(PREFIX)
    if rest in NAMED:
        folder = _named_folder(rest, cache)
        memory.check(source, NAMED[rest])
        if not folder.is_dir():
            sizes, state, where = sources.fetch(rest)
            logger.info(f"{source}: weights from {where}, kept in {folder}")
            _make(folder, sizes, state)
        return folder
    path = Path(rest).expanduser()
    if not path.exists() and "/" not in rest:
        raise BaseModelError(
            f"{source}: neither a Whisper of OpenAI's ({', '.join(NAMED)}) nor a file "
            "or folder here"
        )
    digest = sources.sha256(formats.weights_file(path)) if path.exists() else ""
    folder = cache / f"whisper-{digest[:32]}-{_VERSION}"
    if not folder.is_dir():
        sizes, state = formats.read(path, functools.partial(memory.check, source))
        _make(folder, sizes, state)
    return folder


def kept(name: str, cache: Path) -> bool:
    """Whether one of OpenAI's models is in the cache.

    Args:
        name: See :data:`espnet_hra.whisper.sizes.NAMED`.
        cache: As of :func:`open_folder`.
    """
    return _named_folder(name, cache).is_dir()


def _named_folder(name: str, cache: Path) -> Path:
    return cache / f"whisper-{written(NAMED[name])}-{_VERSION}"


def _make(folder: Path, sizes: Sizes, state: State) -> None:
    """Write the folder, which appears under its name when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making.") as temporary:
        inner = Path(temporary) / "pack"
        (inner / "data").mkdir(parents=True)
        listed = "".join(f"{token}\n" for token in tokens.token_list(sizes))
        (inner / TOKENS).write_text(listed, encoding="utf-8")
        write_yaml(inner / "config.yaml", configuration(sizes))
        write_yaml(
            inner / "meta.yaml",
            {
                "espnet": "202611",
                "files": {"asr_model_file": WEIGHTS},
                "yaml_files": {"asr_train_config": "config.yaml"},
            },
        )
        names = {"encoder": "encoder.encoders", "decoder": "decoder.decoders"}
        renamed = {
            f"{names[part]}.{rest}": tensor
            for (part, _, rest), tensor in (
                (key.partition("."), tensor) for key, tensor in state.items()
            )
        }
        torch.save(renamed, inner / WEIGHTS)
        try:
            inner.rename(folder)
        except OSError:  # another process was quicker
            if not folder.is_dir():
                raise


#: What ESPnet's models may have, and a Whisper has not.
_PARTS = ("frontend", "specaug", "normalize", "preencoder", "postencoder", "joint_net")
_TEXT = ("cleaner", "g2p", "non_linguistic_symbols")

#: The weights within the folder.
WEIGHTS = "whisper.pth"

#: The list of tokens within it.
TOKENS = "data/tokens.txt"


def configuration(sizes: Sizes) -> dict[str, Any]:
    """ESPnet's configuration of a Whisper, untouched: windows of 30 seconds."""
    package.openai_whisper()
    kind = "whisper_multilingual" if sizes.multilingual else "whisper_en"
    name = written(sizes)
    return {
        "input_size": 1,
        # ESPnet asks a saved configuration for every part, even if it lacks it.
        **dict.fromkeys((*_PARTS, *_TEXT)),
        **{f"{part}_conf": {} for part in (*_PARTS, "ctc")},
        "model": "espnet",
        "use_preprocessor": True,
        "init": None,
        "encoder": "whisper",
        "encoder_conf": {"whisper_model": name, "do_pad_trim": True},
        "decoder": "whisper",
        "decoder_conf": {"whisper_model": name},
        "token_type": kind,
        "bpemodel": kind,
        "token_list": TOKENS,
        # Whisper's texts begin with a space.
        "text_prefix": " ",
        # To be told for each task, or found out.
        "preprocessor_conf": {"whisper_language": None},
        "model_conf": {
            "ctc_weight": 0.0,
            "sym_sos": tokens.START,
            "sym_eos": tokens.END,
            "sym_space": tokens.SPACE,
            "report_cer": False,
            "report_wer": False,
        },
    }
