"""The files that Whisper's weights come in, and one form for all of them.

OpenAI's ``.pt``, a folder of Hugging Face's and one of faster-whisper's give the same
tensors under OpenAI's names. All are kept in float16, the precision in which OpenAI
publishes them and in which most copies are, so that one model has one fingerprint
wherever it comes from.
"""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from espnet_hra.errors import BaseModelError
from espnet_hra.files import archive
from espnet_hra.files.checkpoint import State, differences
from espnet_hra.whisper import ctranslate2, package
from espnet_hra.whisper.sizes import Sizes, checked

_POSSIBLE = (
    "possible are OpenAI's .pt, a folder of Hugging Face's (config.json and "
    "model.safetensors) and one of faster-whisper's (model.bin)"
)

#: Most bytes of a config.json.
_MAX_JSON = 2**22


#: Called with the sizes of a model before its tensors are loaded; may refuse them.
Check = Callable[[Sizes], None]


def _any(sizes: Sizes) -> None:
    """Refuses nothing."""


def read(path: Path, check: Check = _any) -> tuple[Sizes, State]:
    """A Whisper from files.

    Args:
        path: OpenAI's ``.pt``, or a folder of Hugging Face's or of faster-whisper's.
        check: Called with its sizes before its tensors are loaded.

    Returns:
        Its sizes, and its tensors in float16 under OpenAI's names.

    Raises:
        BaseModelError: They are missing, damaged, or of another model.
    """
    sizes, state = _reader(path)(path, check)
    return sizes, normal(path, sizes, state)


def weights_file(path: Path) -> Path:
    """The file among those of :func:`read` that has the weights, or lists those."""
    if not path.is_dir():
        return path
    for name in ("model.bin", "model.safetensors", "model.safetensors.index.json"):
        if (path / name).is_file():
            return path / name
    raise BaseModelError(f"{path}: no Whisper in this folder; {_POSSIBLE}")


def _reader(path: Path) -> Callable[[Path, Check], tuple[Sizes, State]]:
    if not path.exists():
        raise BaseModelError(f"{path}: there is no such file or folder; {_POSSIBLE}")
    if not path.is_dir():
        return _read_openai
    if weights_file(path).name == "model.bin":
        return _read_ctranslate2
    return _read_hugging_face


def normal(source: object, sizes: Sizes, state: State) -> State:
    """Tensors in float16, after a check that they are those of a whole Whisper.

    Raises:
        BaseModelError: Some are missing, surplus, of another shape, or not finite.
    """
    with torch.device("meta"):
        needed = package.whole(sizes).state_dict()
    problems = differences(needed, state)
    if problems:
        raise BaseModelError(f"{source}: not a whole Whisper: {problems}")
    state = {key: state[key].detach().to(torch.float16).contiguous() for key in needed}
    bad = [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise BaseModelError(
            f"{source}: {bad[0]} has values that are no numbers of float16: the file "
            "is damaged, or the model cannot be kept in half precision"
        )
    return state


def _read_ctranslate2(path: Path, check: Check) -> tuple[Sizes, State]:
    check(ctranslate2.sizes(path / "model.bin"))
    return ctranslate2.read(path / "model.bin")


# ------------------------------------------------------------------------- OpenAI's


def _read_openai(path: Path, check: Check) -> tuple[Sizes, State]:
    archive.check_checkpoint(path)
    try:
        # Mapped, the file's tensors take no memory before they are used.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        dims, state = content["dims"], dict(content["model_state_dict"])
        if not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
            raise TypeError("not all of its values are tensors")
    except Exception as e:  # whatever damaged data may raise
        raise BaseModelError(
            f"{path}: not a Whisper of OpenAI's ({type(e).__name__}: "
            f"{' '.join(str(e).split()):.150}); {_POSSIBLE}"
        ) from e
    sizes = checked(path, dims)
    check(sizes)
    return sizes, state


# -------------------------------------------------------------------- Hugging Face's

_BLOCK = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias)")
_PARTS = {
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    **{
        f"{theirs}.{linear}": f"{ours}.{name}"
        for theirs, ours in (("self_attn", "attn"), ("encoder_attn", "cross_attn"))
        for linear, name in (
            ("q_proj", "query"),
            ("k_proj", "key"),
            ("v_proj", "value"),
            ("out_proj", "out"),
        )
    },
}
_OUTSIDE = {
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
    "decoder.embed_tokens.weight": "decoder.token_embedding.weight",
    "encoder.layer_norm.weight": "encoder.ln_post.weight",
    "encoder.layer_norm.bias": "encoder.ln_post.bias",
    "decoder.layer_norm.weight": "decoder.ln.weight",
    "decoder.layer_norm.bias": "decoder.ln.bias",
}


def _read_hugging_face(path: Path, check: Check) -> tuple[Sizes, State]:
    config = _json(path / "config.json")
    if config.get("model_type") != "whisper":
        raise BaseModelError(
            f"{path}: config.json is that of a model of the type "
            f"{config.get('model_type')!r}, not of a whisper; {_POSSIBLE}"
        )
    keys = {
        "n_mels": "num_mel_bins",
        "n_audio_ctx": "max_source_positions",
        "n_audio_state": "d_model",
        "n_audio_head": "encoder_attention_heads",
        "n_audio_layer": "encoder_layers",
        "n_vocab": "vocab_size",
        "n_text_ctx": "max_target_positions",
        "n_text_state": "d_model",
        "n_text_head": "decoder_attention_heads",
        "n_text_layer": "decoder_layers",
    }
    sizes = checked(
        path / "config.json", {k: config.get(theirs) for k, theirs in keys.items()}
    )
    check(sizes)
    state: State = {}
    for key, tensor in _safetensors(path).items():
        key = key.removeprefix("model.")
        if key == "proj_out.weight":
            continue  # the token embedding again
        found = _BLOCK.fullmatch(key)
        if key in _OUTSIDE:
            state[_OUTSIDE[key]] = tensor
        elif found and found[3] in _PARTS:
            part = f"{found[1]}.blocks.{found[2]}.{_PARTS[found[3]]}"
            state[f"{part}.{found[4]}"] = tensor
        else:
            state[key] = tensor  # the convolutions have the same names
    return sizes, state


def _safetensors(path: Path) -> State:
    """The tensors of a folder, which may be spread over several files."""
    files = [path / "model.safetensors"]
    if not files[0].is_file():
        index = _json(path / "model.safetensors.index.json").get("weight_map")
        names = set(index.values()) if isinstance(index, dict) else set()
        if not names or not all(isinstance(n, str) and "/" not in n for n in names):
            raise BaseModelError(
                f"{path}: its index of safetensors names no files: download it again"
            )
        files = [path / name for name in sorted(names)]
    state: State = {}
    for file in files:
        try:
            state.update(safetensors.torch.load_file(file))
        except (safetensors.SafetensorError, OSError, ValueError) as e:
            raise BaseModelError(
                f"{file}: not readable as safetensors ({e}): download it again"
            ) from e
    return state


def _json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(_MAX_JSON))
    except (OSError, ValueError) as e:
        raise BaseModelError(f"{path}: not readable: {e!r:.150}; {_POSSIBLE}") from e
    return value if isinstance(value, dict) else {}
