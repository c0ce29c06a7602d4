"""Small pieces of linear algebra that several methods compute with."""

import torch
import torch.nn.functional as F


def init_matrix(matrix: torch.Tensor) -> None:
    """Uniform in +-1/sqrt(columns), torch's default for a linear layer."""
    bound = matrix.size(-1) ** -0.5
    torch.nn.init.uniform_(matrix, -bound, bound)


def affine(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``weight x + bias`` with one matrix for the batch, or one per utterance.

    Args:
        x: (b, ..., i).
        weight: (o, i), or (b, o, i).
        bias: (o), or (b, o); None for none.

    Returns:
        (b, ..., o).
    """
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    flat = x.reshape(x.size(0), -1, x.size(-1))  # [b, t, i]
    if bias is None:
        y = torch.bmm(flat, weight.transpose(1, 2))  # [b, t, o]
    else:
        y = torch.baddbmm(bias.unsqueeze(1), flat, weight.transpose(1, 2))
    return y.view(*x.shape[:-1], y.size(-1))
