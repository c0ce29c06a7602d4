"""A mixed batch for a method that serves one task at a time.

Each task's utterances run as the batch that they would be without the others, with no
more padding than that; the outputs are put together again in order.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

#: Arguments of ESPnet's encoders and decoders that have one row for each utterance, and
#: which of them has the lengths, if the next axis is time: (b, frames, d), (b),
#: (b, frames). All others are the same for the whole batch, whatever sizes they happen
#: to have.
_ROWS = {
    "xs_pad": "ilens",
    "ilens": None,
    "masks": "ilens",
    "hs_pad": "hlens",
    "hlens": None,
    "ys_in_pad": "ys_in_lens",
    "ys_in_lens": None,
    # of the encoder of asr_transducer
    "x": "x_len",
    "x_len": None,
    # the prompts of OWSM-CTC
    "prefix_embeds": None,
    "memory": None,
    "memory_mask": None,
}


#: Encodes utterances of one task: ((task,), (), arguments by name) -> the output.
Run = Callable[[tuple[str, ...], Sequence[Any], dict[str, Any]], Any]


def task_by_task(names: Sequence[str], run: Run, arguments: dict[str, Any]) -> Any:
    """The output of a mixed batch.

    Args:
        names: One task per utterance.
        run: Encodes or decodes a part of the batch.
        arguments: Those of the ``forward``, see :func:`by_name`.
    """
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        rows.setdefault(name, []).append(i)
    outputs = []
    for name, own in rows.items():
        part = dict(arguments)
        for key, lengths_key in _ROWS.items():
            value = part.get(key)
            if value is None:
                continue
            part[key] = value[own]
            if lengths_key is not None:
                lengths = arguments[lengths_key]
                surplus = int(lengths.max() - lengths[own].max())
                part[key] = part[key][:, : value.size(1) - surplus]
        outputs.append(run((name,), (), part))
    order = [i for own in rows.values() for i in own]
    return _together(outputs, torch.tensor(order).argsort())


def by_name(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call, by the names that a function gives them."""
    bound = inspect.signature(forward).bind(None, *args, **kwargs).arguments
    return {name: value for name, value in bound.items() if name != "self"}


def _together(parts: Sequence[Any], order: torch.Tensor) -> Any:
    """One output of those of parts of a batch.

    Args:
        parts: Outputs of ``forward``: tensors (b_i, ...), maybe in tuples and lists;
            whatever else is in them is the same in all.
        order: Where in the parts, laid end to end, each utterance is.
    """
    first = parts[0]
    if isinstance(first, tuple | list):
        return type(first)(_together(items, order) for items in zip(*parts))
    if not isinstance(first, torch.Tensor):
        return first
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts))]
    padded = []
    for part in parts:
        missing = [n - m for n, m in zip(shape, part.shape[1:])]
        before_after = [n for m in reversed(missing) for n in (0, m)]
        padded.append(torch.nn.functional.pad(part, before_after))
    return torch.cat(padded).index_select(0, order.to(first.device))
