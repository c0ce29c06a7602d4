"""A mixed batch for a method that serves one task at a time.

Each task's utterances run as the batch that they would be without the others, with no
more padding than that; the outputs are put together again in order.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

#: Arguments of ESPnet's encoders that have one row for each utterance, and whether the
#: next axis are frames: (b, frames, d), (b), (b, frames). All others are the same for
#: the whole batch, whatever sizes they happen to have.
_ROWS = {
    "xs_pad": True,
    "ilens": False,
    "masks": True,
    # the prompts of OWSM-CTC
    "prefix_embeds": False,
    "memory": False,
    "memory_mask": False,
}


#: Encodes utterances of one task: ((task,), (), arguments by name) -> the output.
Run = Callable[[tuple[str, ...], Sequence[Any], dict[str, Any]], Any]


def task_by_task(names: Sequence[str], run: Run, arguments: dict[str, Any]) -> Any:
    """The output of a mixed batch.

    Args:
        names: One task per utterance.
        run: Encodes a part of the batch.
        arguments: Those of the encoder's ``forward``, see :func:`by_name`.
    """
    xs_pad, lengths = arguments["xs_pad"], arguments["ilens"]
    frames = xs_pad.size(1)
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        rows.setdefault(name, []).append(i)
    outputs = []
    for name, own in rows.items():
        index = torch.tensor(own, device=xs_pad.device)
        end = frames - int(lengths.max() - lengths[own].max())
        part = dict(arguments)
        for key, timed in _ROWS.items():
            value = part.get(key)
            if value is not None:
                value = value.index_select(0, index.to(value.device))
                part[key] = value[:, :end] if timed else value
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
