"""What makes a training of Whisper quick on a CPU, and changes nothing else."""

import functools
from typing import Any

import torch
import torch.nn.functional as F

from espnet_hra.whisper import package


class PlainLoss(torch.nn.Module):
    """The cross-entropy that ESPnet's label smoothing of 0 is.

    ESPnet's goes over the vocabulary eight times, with a distribution that is 1 for one
    token; of Whisper's 51,865 tokens that is a tenth of a training.

    Args:
        padding: The token that is left out.
        by_length: Whether the loss is a mean over tokens, or over utterances.
    """

    def __init__(self, padding: int, by_length: bool):
        super().__init__()
        self.padding, self.by_length = padding, by_length

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of logits (b, tokens, vocabulary) for a target (b, tokens)."""
        total = F.cross_entropy(
            logits.flatten(0, 1),
            target.flatten(),
            ignore_index=self.padding,
            reduction="sum",
        )
        over = (target != self.padding).sum() if self.by_length else target.size(0)
        return total / over


def quicken(model: Any, on_cpu: bool) -> None:
    """Prepare a model for training, if it has a Whisper's parts.

    Args:
        model: ESPnet's model, adapted or not.
        on_cpu: Whether it will be trained there. torch's fused attention is made for
            long sequences; on a few seconds of speech its gradient takes longer than
            that of plain products.
    """
    hears = hasattr(getattr(model, "frontend", None), "whisper")
    if not hears and not getattr(model, "is_encoder_whisper", False):
        return
    own = getattr(model, "criterion_att", None)
    if own is not None and getattr(own, "smoothing", None) == 0:
        model.criterion_att = PlainLoss(own.padding_idx, own.normalize_length)
    if on_cpu:
        attention = package.openai_whisper().model.MultiHeadAttention
        for module in model.modules():
            if isinstance(module, attention):
                # Whisper's own switch between the two is one for the whole process.
                module.qkv_attention = functools.partial(_qkv, module.n_head)


def _qkv(
    heads: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """As Whisper's ``qkv_attention``: q, k and v are (b, tokens, d)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.size(-1) ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask[: q.size(2), : q.size(2)]
    weights = scores.float().softmax(dim=-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).flatten(2), None
