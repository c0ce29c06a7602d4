"""Where the parameters of the tasks live: one flat vector for each task.

A task's tensors are laid end to end in **one** ``Parameter``. This is what makes ten
thousand tasks cheap and keeps them apart:

* A head that a step did not use has the gradient ``None`` (not zero), so no torch
  optimizer moves it, whatever its momentum or weight decay.
* Optimizers and gradient clipping loop over parameters in Python; one vector a task
  instead of two or four tensors keeps that loop short.
* A batch of mixed tasks stacks the vectors it needs, never the whole bank.

In ``state_dict`` the vector of task ``it.carlo`` is called ``heads.it/carlo``: torch
forbids dots in parameter names, and task names cannot contain a slash.
"""

from typing import (
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import torch

from espnet_hra.errors import TaskError
from espnet_hra.names import check_task_name, listing

Tensors = Dict[str, torch.Tensor]


class Section(NamedTuple):
    """Tensors that lie side by side in a task's vector and are needed together."""

    start: int
    layout: Dict[str, torch.Size]

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(shape.numel() for shape in self.layout.values())


def zeros(tensors: Tensors) -> None:
    """The initial values of what a task adds: nothing."""
    for tensor in tensors.values():
        tensor.zero_()


class TaskBank(torch.nn.Module):
    """The parameters of all tasks, one flat vector each.

    Args:
        layout: Names and shapes of a task's tensors, in their order in the vector.
        init: Fills a new task's tensors (views of its vector) in place.

    Attributes:
        size: Number of values of a task.
        sections: Where in the vector lies what, see :meth:`extend`.
    """

    def __init__(
        self,
        layout: Mapping[str, Sequence[int]],
        init: Callable[[Tensors], None] = zeros,
    ):
        super().__init__()
        self.size = 0
        self.sections: List[Section] = []
        self._inits: List[Callable[[Tensors], None]] = []
        self.extend(layout, init)

    def extend(
        self,
        layout: Mapping[str, Sequence[int]],
        init: Callable[[Tensors], None] = zeros,
    ) -> Section:
        """Give every task further tensors, behind those that it has.

        Possible as long as there is no task.

        Args:
            layout: As for the constructor.
            init: As for the constructor.

        Returns:
            Where they are, for :meth:`gather`.
        """
        assert not len(self), "tasks exist already"
        shapes = {name: torch.Size(shape) for name, shape in layout.items()}
        section = Section(self.size, shapes)
        self.sections.append(section)
        self._inits.append(init)
        self.size += section.size
        return section

    @property
    def layout(self) -> Dict[str, torch.Size]:
        """Names and shapes of all tensors of a task, in their order in the vector."""
        return {k: s for section in self.sections for k, s in section.layout.items()}

    # `_parameters` is written to directly: `register_parameter` and `setattr` refuse
    # names such as "keys", "type" or "train" that modules have methods for.

    @property
    def names(self) -> Tuple[str, ...]:
        """Names of the tasks, in the order in which they were added."""
        return tuple(key.replace("/", ".") for key in self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or "/" in name:
            return False
        return name.replace(".", "/") in self._parameters

    def train(self, mode: bool = True) -> "TaskBank":
        """As ``Module.train``, which fails where a task is called "training"."""
        self.__dict__["training"] = mode
        return self

    def vector(self, name: str) -> torch.nn.Parameter:
        """The flat parameter of a task, shape (size,).

        Raises:
            TaskError: The task is unknown.
        """
        if name not in self:
            raise TaskError(
                f"unknown task {name!r}; known tasks: {listing(self.names)}"
            )
        return self._parameters[name.replace(".", "/")]

    def add(self, name: str, like: torch.Tensor) -> None:
        """Add a task with newly initialised tensors.

        Args:
            name: Name of the new task.
            like: A tensor on the device and of the type that the task shall have.

        Raises:
            TaskError: The name is not valid or taken.
        """
        check_task_name(name)
        if name in self:
            raise TaskError(
                f"task {name!r} exists already; remove it first, or choose another "
                f"name than {listing(self.names)}"
            )
        vector = torch.nn.Parameter(torch.empty(self.size).to(like))
        self.initialise(vector)
        self._parameters[name.replace(".", "/")] = vector

    def initialise(self, vector: torch.Tensor) -> None:
        """Fill a task's vector with initial values."""
        with torch.no_grad():
            for section, init in zip(self.sections, self._inits):
                init(self.split(vector, section))

    def remove(self, name: str) -> None:
        """Forget a task.

        Raises:
            TaskError: The task is unknown.
        """
        self.vector(name)
        del self._parameters[name.replace(".", "/")]

    def put(
        self, name: str, tensors: Mapping[str, torch.Tensor], like: torch.Tensor
    ) -> None:
        """Give a task, new or existing, the values of these tensors.

        An existing task keeps its ``Parameter``, so that an optimizer keeps it too; a
        new one appears complete, so that no other thread can meet it half-filled.

        Args:
            name: Name of the task.
            tensors: For each name of the layout a tensor of its shape.
            like: A tensor on the device and of the type that a new task shall have.
        """
        parts = [tensors[part].reshape(-1) for part in self.layout]
        flat = torch.cat(parts) if parts else like.new_empty(0)
        with torch.no_grad():
            if name in self:
                self.vector(name).copy_(flat)
            else:
                vector = torch.nn.Parameter(flat.to(like))
                self._parameters[check_task_name(name).replace(".", "/")] = vector

    def split(self, vector: torch.Tensor, section: Optional[Section] = None) -> Tensors:
        """The tensors of a task as views of its vector.

        Args:
            vector: Shape (size,), or (batch, size) for one task per utterance.
            section: The tensors that are wanted; None for all.

        Returns:
            For each name of the layout a view of shape (...) or (batch, ...).
        """
        return self._views(self._part(vector, section), section)

    def _part(self, vector: torch.Tensor, section: Optional[Section]) -> torch.Tensor:
        """A section's values, (..., size of the section)."""
        if section is None or section.size == vector.size(-1):
            return vector
        return vector.narrow(-1, section.start, section.size)

    def _views(self, part: torch.Tensor, section: Optional[Section]) -> Tensors:
        """A section's values, (..., size of the section), cut into its tensors."""
        layout = self.layout if section is None else section.layout
        parts = part.split([s.numel() for s in layout.values()], dim=-1)
        return {
            name: part.view(*part.shape[:-1], *shape)
            for (name, shape), part in zip(layout.items(), parts)
        }

    def tensors(self, name: str) -> Tensors:
        """The tensors of one task by name (views: writing to them changes the task).

        Raises:
            TaskError: The task is unknown.
        """
        return self.split(self.vector(name).detach())

    def gather(
        self,
        names: Sequence[str],
        dtype: Optional[torch.dtype] = None,
        section: Optional[Section] = None,
    ) -> Tensors:
        """The tensors that a batch needs.

        Args:
            names: One task for the whole batch, or one per utterance.
            dtype: Type to compute in, converted once for all layers; None for that of
                the tasks.
            section: The tensors that are needed; None for all.

        Returns:
            Tensors of the layout's shapes if one task serves the whole batch, else
            with a leading batch axis. Only the tasks named are read; each gets its own
            gradient.

        Raises:
            TaskError: A task is unknown.
        """
        distinct: List[str] = list(dict.fromkeys(names))
        parts = [self._part(self.vector(name), section) for name in distinct]
        dtype = dtype or parts[0].dtype
        if len(distinct) == 1:
            return self._views(parts[0].to(dtype), section)
        rows = torch.stack(parts).to(dtype)
        if len(distinct) < len(names):
            position = {name: i for i, name in enumerate(distinct)}
            index = [position[name] for name in names]
            rows = rows.index_select(0, torch.tensor(index, device=rows.device))
        return self._views(rows, section)  # [b, ...]

    def extra_repr(self) -> str:
        return f"tasks={len(self)}, parameters_per_task={self.size:,}"
