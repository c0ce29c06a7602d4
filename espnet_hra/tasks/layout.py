"""How a task's tensors lie end to end in one flat vector."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

Tensors = dict[str, torch.Tensor]

#: What the names of a classifier's tensors begin with, see :func:`classifier`.
CLASSIFIER = "classify."


def classifier(labels: int, pooled: int) -> dict[str, torch.Size]:
    """Names and shapes of the tensors with which a task tells labels.

    Args:
        labels: How many there are.
        pooled: Size of what an utterance is pooled to.
    """
    return {
        f"{CLASSIFIER}weight": torch.Size((labels, pooled)),
        f"{CLASSIFIER}bias": torch.Size((labels,)),
    }


class Section(NamedTuple):
    """Tensors that lie side by side in a task's vector and are needed together.

    Attributes:
        start: Where the first begins.
        shapes: Names and shapes, in their order in the vector.
    """

    start: int
    shapes: dict[str, torch.Size]

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(shape.numel() for shape in self.shapes.values())


class Layout:
    """Names, shapes and places of all tensors of a task.

    Attributes:
        sections: In their order in the vector, see :meth:`extend`.
    """

    def __init__(self) -> None:
        self.sections: list[Section] = []

    def extend(self, shapes: Mapping[str, Sequence[int]]) -> Section:
        """Further tensors, behind those that are there."""
        section = Section(self.size, {k: torch.Size(s) for k, s in shapes.items()})
        self.sections.append(section)
        return section

    @property
    def size(self) -> int:
        """Number of values of a task."""
        return sum(section.size for section in self.sections)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of all tensors, in their order in the vector."""
        return {k: s for section in self.sections for k, s in section.shapes.items()}

    def flatten(
        self, tensors: Mapping[str, torch.Tensor], like: torch.Tensor
    ) -> torch.Tensor:
        """A vector of its own with the values of these tensors, (size,).

        Args:
            tensors: For each name a tensor of its shape.
            like: A tensor on the device and of the type that the vector shall have.
        """
        parts = [tensors[name].reshape(-1) for name in self.shapes]
        return (torch.cat(parts) if parts else like.new_empty(0)).to(like)

    def split(self, vector: torch.Tensor, section: Section | None = None) -> Tensors:
        """The tensors of a task as views of its vector.

        Args:
            vector: Shape (size,), or (batch, size) for one task per utterance.
            section: The tensors that are wanted; None for all.

        Returns:
            For each name a view of shape (...) or (batch, ...).
        """
        return self.views(self.part(vector, section), section)

    def part(self, vector: torch.Tensor, section: Section | None) -> torch.Tensor:
        """A section's values, (..., size of the section)."""
        start, size = 0, self.size
        if section is not None:
            start, size = section.start, section.size
        if size == vector.size(-1):
            return vector
        return vector.narrow(-1, start, size)  # behind it may be a classifier's values

    def views(self, part: torch.Tensor, section: Section | None) -> Tensors:
        """A section's values, (..., size of the section), cut into its tensors."""
        shapes = self.shapes if section is None else section.shapes
        parts = part.split([s.numel() for s in shapes.values()], dim=-1)
        return {
            name: part.view(*part.shape[:-1], *shape)
            for (name, shape), part in zip(shapes.items(), parts)
        }
