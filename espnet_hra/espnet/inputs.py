"""What users hand over to be decoded, and what is refused."""

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from espnet2.torch_utils.device_funcs import is_out_of_memory_error

from espnet_hra.errors import ConfigError, DataError, NoRoomError, TaskError
from espnet_hra.espnet.model import decode_names, encode_name
from espnet_hra.names import listing

Wave = torch.Tensor | np.ndarray


def check_greedy(model: Any, name: str = "ctc") -> None:
    """Refuse greedy CTC where there is none, or one for several speakers.

    Args:
        model: ESPnet's model.
        name: What it calls its CTC.

    Raises:
        ConfigError: It is so.
    """
    check_ctc(model, name, "ctc_greedy", "leave it out, for ESPnet's beam search")


def check_ctc(model: Any, name: str, asked: str, instead: str) -> None:
    """Refuse what needs a CTC where there is none, or one for several speakers.

    Args:
        model: ESPnet's model.
        name: What it calls its CTC.
        asked: What was asked for.
        instead: What to do instead.

    Raises:
        ConfigError: It is so.
    """
    if getattr(model, name, None) is None:
        raise ConfigError(
            f"{asked}: this model has no CTC (its weight is 0); {instead}"
        )
    if getattr(model, "num_ref", 1) > 1 or getattr(model, "num_inf", 1) > 1:
        raise ConfigError(
            f"{asked}: this model writes down several speakers at once (PIT); {instead}"
        )


def check_tags(known: Collection[str], *symbols: str | None) -> None:
    """Refuse tags that a model of s2t or s2t_ctc does not have.

    Args:
        known: Its tokens.
        *symbols: The tags, with their brackets; None is none.

    Raises:
        ConfigError: It does not.
    """
    for symbol in symbols:
        if symbol is not None and symbol not in known:
            tags = [
                token
                for token in known
                if re.fullmatch(r"<[a-z]{3}(_[a-z]{3})?>", token)
                and token not in ("<unk>", "<sos>", "<eos>", "<sop>")
            ]
            raise ConfigError(
                f"{symbol} is no tag of this model; it has {listing(tags)} and "
                "others, see its token list"
            )


def as_wave(speech: Any) -> torch.Tensor:
    """One channel of samples, (samples).

    Raises:
        DataError: It has another shape.
    """
    wave = torch.as_tensor(speech)
    if wave.dim() > 1 and sum(size != 1 for size in wave.shape) == 1:
        wave = wave.reshape(-1)
    if wave.dim() != 1:
        raise DataError(
            f"speech of shape {tuple(wave.shape)}: expected one channel, (samples,); "
            "mix the channels down first, e.g. wave.mean(axis=...), or give a list for "
            "several utterances"
        )
    return wave


def as_waves(speech: Any, lengths: Any = None) -> list[torch.Tensor]:
    """The utterances of a batch, each (samples).

    Args:
        speech: List of utterances, or padded, (utterances, samples).
        lengths: Number of samples of each, for padded speech.

    Raises:
        DataError: One has another shape.
        ValueError: Padded speech without lengths.
    """
    if isinstance(speech, list | tuple):
        return [as_wave(wave) for wave in speech]
    if lengths is None:
        raise ValueError("speech_lengths is required for a padded speech array")
    return [as_wave(w[:n]) for w, n in zip(speech, torch.as_tensor(lengths).tolist())]


#: What torch and the libraries below it say where the processor's memory runs out.
_NO_ROOM = ("can't allocate memory", "bad_alloc", "could not create a memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a GPU or of the processor."""
    return (
        isinstance(error, MemoryError)
        or is_out_of_memory_error(error)
        or any(words in str(error) for words in _NO_ROOM)
    )


@contextlib.contextmanager
def in_memory(samples: int) -> Iterator[None]:
    """A block that decodes one utterance, of so many samples.

    Raises:
        NoRoomError: Memory runs out in it.
    """
    try:
        yield
    except NoRoomError:
        raise
    except Exception as e:
        if not out_of_memory(e):
            raise
        raise NoRoomError(samples) from e


def named(utt2task: str | Wave | Sequence[str | Wave]) -> str | list[str]:
    """The names in arrays as the data loader gives them, or as they are.

    Raises:
        TaskError: They are none.
    """
    if isinstance(utt2task, str):
        return utt2task
    if isinstance(utt2task, list | tuple):
        return [str(named(one)) for one in utt2task]
    try:
        codes = torch.as_tensor(utt2task)
        (name,) = decode_names(codes[None], torch.tensor([len(codes)]))
        return name
    except (TypeError, ValueError, IndexError, RuntimeError) as e:
        raise TaskError(
            f"utt2task: {utt2task!r} is no task as a data loader gives it ({e}); give "
            "task=NAME, or one name per utterance"
        ) from e


def batch_names(
    names: torch.Tensor | None, lengths: torch.Tensor | None
) -> list[str] | None:
    """The names in a padded batch as the data loader gives it; None for none.

    Args:
        names: (b, characters).
        lengths: (b).
    """
    if names is None:
        return None
    if lengths is None:
        lengths = torch.full([names.size(0)], names.size(1))
    return decode_names(names, lengths)


def encoded_names(names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Names as the data loader gives them, padded, and their lengths.

    The reverse of :func:`batch_names`; a name may be empty.
    """
    codes = [torch.from_numpy(encode_name(name)) for name in names]
    padded = torch.nn.utils.rnn.pad_sequence(codes, batch_first=True)
    return padded, torch.tensor([len(code) for code in codes])
