r"""Tasks that tell labels (``head: classify``): which language, which speaker.

Such a task has what every task of the method has, by which the frozen encoder looks at
its utterances, and a linear classifier on what comes out, pooled over the frames
t = 1..T of an utterance (without its padding)::

    m = mean_t y_t              s = sqrt(mean_t (y_t - m)^2)
    logits = W [m; s] + w       W: (labels, 2 d)    w: (labels)

y is the adapted encoder's output, of width d. W and w start at zero, all labels being
alike; they lie in the task's vector, behind what else it has, and so are saved, loaded
and kept apart as that is. The loss is the cross-entropy.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from espnet_hra.tasks.layout import Tensors

#: Of a variance, so that the gradient of its root is finite.
_LEAST = 1e-5


def pooled_size(width: int) -> int:
    """Size of what an utterance is pooled to, of an encoder of this width."""
    return 2 * width


def pool(encoded: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation over the frames of each utterance.

    Args:
        encoded: Output of the encoder, (b, t, d).
        lengths: How many frames each has, (b), 1 at least.

    Returns:
        (b, 2 d), in full precision.
    """
    y = encoded.float()
    frame = torch.arange(y.size(1), device=y.device)
    lengths = lengths.to(y.device).clamp(1, y.size(1))
    valid = (frame < lengths[:, None]).unsqueeze(-1)  # [b, t, 1]
    count = lengths[:, None].to(y.dtype)
    mean = y.masked_fill(~valid, 0.0).sum(1) / count  # [b, d]
    apart = (y - mean[:, None]).masked_fill(~valid, 0.0)
    spread = (apart.square().sum(1) / count + _LEAST).sqrt()
    return torch.cat([mean, spread], dim=-1)


def logits(pooled: torch.Tensor, classifiers: Sequence[Tensors]) -> list[torch.Tensor]:
    """What each utterance's classifier makes of it.

    Args:
        pooled: (b, 2 d), see :func:`pool`.
        classifiers: ``weight`` (labels, 2 d) and ``bias`` (labels) for each utterance.

    Returns:
        (labels) for each; tasks have as many labels as they have.
    """
    return [
        F.linear(one, own["weight"].float(), own["bias"].float())
        for one, own in zip(pooled, classifiers)
    ]
