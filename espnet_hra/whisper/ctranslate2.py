"""``model.bin`` of faster-whisper: the binary format of CTranslate2, versions 4 to 6.

Numbers are little-endian. A header (version, name of the architecture, revision), then
the variables (name, shape, type, bytes), then aliases, which are not needed here. Names
are translated to OpenAI's, and what CTranslate2 has fused is split again.
"""

import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from espnet_hra.errors import BaseModelError
from espnet_hra.whisper.sizes import Sizes, checked

State = dict[str, torch.Tensor]

#: The types by number; for int16 quantisation no Whisper is known.
_TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
_READABLE = {"float32": "<f4", "int8": "|i1", "int16": "<i2", "float16": "<f2"}
#: Most variables and most axes of one.
_MAX_VARIABLES, _MAX_RANK = 10_000, 4

_BLOCK = re.compile(r"(encoder|decoder)/layer_(\d+)/(\w+)/(.+)")
_PARTS = {
    ("self_attention", "layer_norm"): "attn_ln",
    ("attention", "layer_norm"): "cross_attn_ln",
    ("ffn", "layer_norm"): "mlp_ln",
    ("ffn", "linear_0"): "mlp.0",
    ("ffn", "linear_1"): "mlp.2",
    ("self_attention", "linear_1"): "attn.out",
    ("attention", "linear_0"): "cross_attn.query",
    ("attention", "linear_2"): "cross_attn.out",
}
_FUSED = {
    ("self_attention", "linear_0"): ("attn", ("query", "key", "value")),
    ("attention", "linear_1"): ("cross_attn", ("key", "value")),
}
_LEAVES = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
_OUTSIDE = {
    "encoder/position_encodings/encodings": "encoder.positional_embedding",
    "decoder/position_encodings/encodings": "decoder.positional_embedding",
    "decoder/embeddings/weight": "decoder.token_embedding.weight",
    "encoder/layer_norm/gamma": "encoder.ln_post.weight",
    "encoder/layer_norm/beta": "encoder.ln_post.bias",
    "decoder/layer_norm/gamma": "decoder.ln.weight",
    "decoder/layer_norm/beta": "decoder.ln.bias",
    **{
        f"encoder/conv{i}/{leaf}": f"encoder.conv{i}.{leaf}"
        for i in (1, 2)
        for leaf in ("weight", "bias")
    },
}


def read(path: Path) -> tuple[Sizes, State]:
    """A Whisper from a ``model.bin``.

    Args:
        path: The file.

    Returns:
        Its sizes, and its tensors under OpenAI's names.

    Raises:
        BaseModelError: It is cut short, quantised, of another architecture, or no such
            file.
    """
    variables = _open(path, load=True)
    return _sizes(path, variables), _translated(path, variables)


def sizes(path: Path) -> Sizes:
    """Its sizes, without the tensors. Argument and errors as of :func:`read`."""
    return _sizes(path, _open(path, load=False))


def _open(path: Path, load: bool) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            return _variables(path, _Reader(path, file), load)
    except OSError as e:
        raise BaseModelError(f"{path}: cannot be read: {e}") from e


class _Reader:
    """Reads numbers and bytes; the file is known to be long enough for them."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file = path, file
        self._left = path.stat().st_size

    def bytes(self, count: int) -> bytes:
        self._take(count)
        return self._file.read(count)

    def skip(self, count: int) -> None:
        self._take(count)
        self._file.seek(count, os.SEEK_CUR)

    def _take(self, count: int) -> None:
        if count > self._left:
            raise BaseModelError(
                f"{self._path}: cut short ({self._left:,} bytes are left where "
                f"{count:,} are announced), or no model of CTranslate2: download it "
                "again"
            )
        self._left -= count

    def number(self, kind: str) -> int:
        return int(struct.unpack(f"<{kind}", self.bytes(struct.calcsize(kind)))[0])

    def text(self) -> str:
        raw = self.bytes(self.number("H")).rstrip(b"\0")
        return raw.decode("utf-8", errors="replace")


def _variables(path: Path, reader: _Reader, load: bool) -> dict[str, np.ndarray]:
    """The variables; of those that are not loaded, shape and type alone are right."""
    version = reader.number("I")
    if not 4 <= version <= 6:
        raise BaseModelError(
            f"{path}: no model.bin of CTranslate2 that is known (version {version}; "
            "known are 4 to 6): convert the model again, or give OpenAI's .pt"
        )
    name, _ = reader.text(), reader.number("I")
    if name != "WhisperSpec":
        raise BaseModelError(
            f"{path}: a model of the architecture {name}, and expected was a Whisper "
            "(WhisperSpec): give the folder of a faster-whisper model"
        )
    variables: dict[str, np.ndarray] = {}
    count = reader.number("I")
    for _ in range(min(count, _MAX_VARIABLES)):
        key = reader.text()
        shape = tuple(reader.number("I") for _ in range(reader.number("B")))
        kind = _TYPES[min(reader.number("B"), len(_TYPES) - 1)]
        length = reader.number("I")
        if kind not in _READABLE or (kind == "int8" and len(shape) > 1):
            raise BaseModelError(
                f"{path}: its weights are of the type {kind} ({key}), and a base needs "
                "float16 or float32: give a model that is not quantised, e.g. one "
                "converted with --quantization float16"
            )
        size = int(np.prod(shape, dtype=np.int64))
        found = length // np.dtype(_READABLE[kind]).itemsize
        if len(shape) > _MAX_RANK or found != size:
            raise BaseModelError(
                f"{path}: {key} of shape {shape} has {found:,} numbers: the file is "
                "damaged, download it again"
            )
        if load or not shape:
            raw = reader.bytes(length)
            variables[key] = np.frombuffer(raw, _READABLE[kind]).reshape(shape)
        else:
            reader.skip(length)
            variables[key] = np.broadcast_to(np.zeros((), _READABLE[kind]), shape)
    return variables


def _translated(path: Path, variables: dict[str, np.ndarray]) -> State:
    state: State = {}
    for key, values in variables.items():
        if not np.issubdtype(values.dtype, np.floating):
            continue  # what CTranslate2 computes with: activation, heads, ...
        tensor = torch.from_numpy(values.copy())
        if key in _OUTSIDE:
            state[_OUTSIDE[key]] = tensor
            continue
        found = _BLOCK.fullmatch(key)
        place, _, leaf = found[4].rpartition("/") if found else ("", "", "")
        if found is None or leaf not in _LEAVES:
            raise BaseModelError(f"{path}: {key} is in no Whisper")
        block, part = f"{found[1]}.blocks.{found[2]}", (found[3], place)
        if part in _PARTS:
            state[f"{block}.{_PARTS[part]}.{_LEAVES[leaf]}"] = tensor
        elif part in _FUSED:
            module, names = _FUSED[part]
            for name, piece in zip(names, tensor.chunk(len(names))):
                if (name, leaf) == ("key", "bias"):
                    continue  # Whisper's keys have none: CTranslate2 writes zeros
                state[f"{block}.{module}.{name}.{leaf}"] = piece.clone()
        else:
            raise BaseModelError(f"{path}: {key} is in no Whisper")
    return state


def _sizes(path: Path, variables: dict[str, np.ndarray]) -> Sizes:
    try:
        mels = variables["encoder/conv1/weight"].shape[1]
        audio = variables["encoder/position_encodings/encodings"].shape
        text = variables["decoder/position_encodings/encodings"].shape
        vocab = len(variables["decoder/embeddings/weight"])
        heads = [int(variables[f"{part}/num_heads"]) for part in ("encoder", "decoder")]
        audio_state, text_state = audio[1], text[1]
    except (KeyError, IndexError, TypeError) as e:
        raise BaseModelError(f"{path}: not a whole Whisper: {e} is missing") from e
    blocks = [found for key in variables if (found := _BLOCK.fullmatch(key))]
    layers = [
        len({found[2] for found in blocks if found[1] == part})
        for part in ("encoder", "decoder")
    ]
    return checked(
        path,
        {
            "n_mels": mels,
            "n_audio_ctx": audio[0],
            "n_audio_state": audio_state,
            "n_audio_head": heads[0],
            "n_audio_layer": layers[0],
            "n_vocab": vocab,
            "n_text_ctx": text[0],
            "n_text_state": text_state,
            "n_text_head": heads[1],
            "n_text_layer": layers[1],
        },
    )
