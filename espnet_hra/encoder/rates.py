"""Parts of an adapter that learn at another rate than the optimizer's.

A task's tensors are one parameter, so that an optimizer's groups of parameters cannot
tell them apart; and some of ESPnet's schedules give all groups one rate. So the step
itself is scaled: what it adds to a value is multiplied by that value's own rate. For
optimizers whose steps are proportional to their rate, as those of SGD, Adam and AdamW
(weight decay included) are, this is the same as a group with that rate.
"""

from collections.abc import Iterator
from typing import Any

import torch

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.methods.base import Adapter


def differ(adapter: Adapter) -> bool:
    """Whether any part of an adapter has a rate of its own."""
    return bool(adapter.all_rates() or adapter.shared_rate != 1.0)


def apply(optimizer: torch.optim.Optimizer, encoder: AdaptedEncoder) -> None:
    """From now on an optimizer's steps follow the rates of the encoder's adapter.

    Tasks may be added and removed. Nothing to do where all rates are the same.

    Args:
        optimizer: Over the encoder's parameters.
        encoder: With ``adapter_conf: {shared_rate: ...}``, for one.
    """
    if differ(encoder.adapter):
        scaling = _Scaling(encoder.adapter)
        optimizer.register_step_pre_hook(scaling.before)
        optimizer.register_step_post_hook(scaling.after)


class _Scaling:
    """Remembers values before a step, and shortens or lengthens it afterwards."""

    def __init__(self, adapter: Adapter):
        self._adapter = adapter
        self._before: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        # (value, its rate, what it was); without a gradient it will not move
        self._before = [
            (p, rate.to(p), p.detach().clone())
            for p, rate in self._rates()
            if p.grad is not None
        ]

    @torch.no_grad()
    def after(self, *_: Any) -> None:
        for p, rate, old in self._before:
            scaled = torch.addcmul(old, p - old, rate)
            p.copy_(torch.where(rate == 1, p, scaled))  # no rounding where it is one
        self._before = []

    def _rates(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Parameters and the rates of their values."""
        adapter, own = self._adapter, self._adapter.all_rates()
        for name, rate in adapter.shared_rates().items():
            yield adapter.get_parameter(name), rate
        if own:
            bank = adapter.bank
            rates = torch.ones(bank.size)
            for name, part in bank.layout.split(rates).items():
                part.fill_(own.get(name, 1.0))
            for name in bank.own:
                vector = bank.vector(name)  # behind it may be a classifier's values
                more = vector.numel() - bank.size
                yield vector, torch.nn.functional.pad(rates, (0, more), value=1.0)
