"""Where the parameters of the tasks live: one flat vector for each task.

A task's tensors are laid end to end in **one** ``Parameter``. This is what makes ten
thousand tasks cheap and keeps them apart:

* A head that a step did not use has the gradient ``None`` (not zero), so no torch
  optimizer moves it, whatever its momentum or weight decay.
* Optimizers and gradient clipping loop over parameters in Python; one vector a task
  instead of two or four tensors keeps that loop short.
* A batch of mixed tasks stacks the vectors it needs, never the whole bank.

Further tasks may lie in a folder, see :mod:`espnet_hra.tasks.cache`: their vectors are
fetched when a batch asks for them, are no parameters and do not learn.

Any thread may add, replace or remove a task while others serve. Nobody waits: a new
vector is complete before it is known, and replaces the old one by one assignment. A
pass, or a whole request (:meth:`TaskBank.hold`), keeps the vectors that it began with.

In ``state_dict`` the vector of task ``it.carlo`` is called ``heads.it/carlo``: torch
forbids dots in parameter names, and task names cannot contain a slash.
"""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import (
    Any,
    NamedTuple,
)

import torch

from espnet_hra.errors import TaskError
from espnet_hra.names import check_task_name, listing
from espnet_hra.tasks.cache import HeadCache

Tensors = dict[str, torch.Tensor]


class Section(NamedTuple):
    """Tensors that lie side by side in a task's vector and are needed together."""

    start: int
    layout: dict[str, torch.Size]

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(shape.numel() for shape in self.layout.values())


def zeros(tensors: Tensors) -> None:
    """The initial values of what a task adds: nothing."""
    for tensor in tensors.values():
        tensor.zero_()


# The vectors that the running requests began with, by the id of their bank.
_held: ContextVar[Mapping[int, Tensors]] = ContextVar("espnet_hra_held", default={})

# Memory of the vectors that were replaced last: it outlives threads that are about to
# look at it, at this very moment.
_replaced: collections.deque[torch.Tensor] = collections.deque(maxlen=4)


class TaskBank(torch.nn.Module):
    """The parameters of all tasks, one flat vector each.

    Args:
        layout: Names and shapes of a task's tensors, in their order in the vector.
        init: Fills a new task's tensors (views of its vector) in place.

    Attributes:
        size: Number of values of a task.
        sections: Where in the vector lies what, see :meth:`extend`.
        stored: The tasks of a folder, see :meth:`attach`; None without one.
    """

    stored: HeadCache | None = None

    def __init__(
        self,
        layout: Mapping[str, Sequence[int]],
        init: Callable[[Tensors], None] = zeros,
    ):
        super().__init__()
        self.size = 0
        self.sections: list[Section] = []
        self._inits: list[Callable[[Tensors], None]] = []
        self._behind: set[str] = set()
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
        assert not self._parameters, "tasks exist already"
        shapes = {name: torch.Size(shape) for name, shape in layout.items()}
        section = Section(self.size, shapes)
        self.sections.append(section)
        self._inits.append(init)
        self.size += section.size
        return section

    @property
    def layout(self) -> dict[str, torch.Size]:
        """Names and shapes of all tensors of a task, in their order in the vector."""
        return {k: s for section in self.sections for k, s in section.layout.items()}

    # `_parameters` is written to directly: `register_parameter` and `setattr` refuse
    # names such as "keys", "type" or "train" that modules have methods for.

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the tasks that are parameters, in the order of their adding."""
        # The list is made in one step; other threads may add tasks meanwhile.
        return tuple(key.replace("/", ".") for key in list(self._parameters))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tasks: the parameters, and behind them those of the folder."""
        return tuple(iter(self))

    def __len__(self) -> int:
        return len(self._parameters) if self.stored is None else len(self.names)

    def __iter__(self) -> Iterator[str]:
        if self.stored is None:
            yield from self.own
            return
        gone = self._behind & self.stored.store.removed
        own = [name for name in self.own if name not in gone]
        yield from own
        listed = set(own)
        yield from (name for name in self.stored.store if name not in listed)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or "/" in name:
            return False
        if name in _held.get().get(id(self), {}):
            return True
        if self.is_parameter(name):
            return True
        return self.stored is not None and name in self.stored

    def is_parameter(self, name: str) -> bool:
        """Whether a name stands for a parameter, and not for a file or nothing."""
        own = _key(name) in self._parameters
        if not own or self.stored is None or name not in self._behind:
            return own
        return not (name in self.stored or name in self.stored.store.removed)

    def train(self, mode: bool = True) -> "TaskBank":
        """As ``Module.train``, which fails where a task is called "training"."""
        self.__dict__["training"] = mode
        if mode:
            self.read_anew()
        return self

    # ------------------------------------------------------------------- a folder

    def attach(self, stored: HeadCache | None, behind: Iterable[str] = ()) -> None:
        """Let tasks come from a folder, besides those that are parameters.

        Args:
            stored: The tasks of the folder; None for no folder any more.
            behind: Parameters that tasks of the folder go before. Other parameters,
                and all that are added later, go before the folder's.
        """
        self.stored, self._behind = stored, set(behind)

    def read_anew(self) -> None:
        """Verify the folder's tasks again: they may not fit any more.

        Done by itself where the encoder is trained, converted or loaded.
        """
        if self.stored is not None:
            self.stored.clear()

    def _apply(self, *args: Any, **kwargs: Any) -> "TaskBank":
        super()._apply(*args, **kwargs)  # to another device or type
        self.read_anew()
        return self

    # -------------------------------------------------------------------- reading

    def vector(self, name: str) -> torch.Tensor:
        """The flat vector of a task, shape (size,).

        It is a ``Parameter``, unless it is one of the folder's.

        Raises:
            TaskError: The task is unknown, or its file cannot be used.
        """
        found = None
        if isinstance(name, str) and "/" not in name:
            found = self._parameters.get(_key(name))
            if self.stored is not None and (found is None or name in self._behind):
                stored = self.stored.get(name)
                if stored is not None:
                    found = stored
                elif name in self.stored.store.removed:
                    found = None
        if found is None:
            raise TaskError(f"unknown task {name!r}; known tasks: {listing(self)}")
        return found

    @contextlib.contextmanager
    def hold(self, names: Iterable[str] = ()) -> Iterator[None]:
        """A block in which every task stays what it is when it is first used.

        For this thread and without gradients: while a request is served, its tasks may
        be replaced or removed. Blocks within a block belong to it.

        Args:
            names: Tasks to look up at once.

        Raises:
            TaskError: One of them is unknown, or its file cannot be used.
        """
        held = _held.get()
        token = None
        if id(self) not in held:
            token = _held.set({**held, id(self): {}})
        try:
            for name in names:
                self._in_use(name)
            yield
        finally:
            if token is not None:
                _held.reset(token)

    def _in_use(self, name: str) -> torch.Tensor:
        """The vector of a task for a pass.

        Raises:
            TaskError: The task is unknown, or cannot learn in a pass that is to teach.
        """
        if torch.is_grad_enabled():
            vector = self.vector(name)
            if self.training and not isinstance(vector, torch.nn.Parameter):
                raise TaskError(
                    f"task {name!r} is a file in {self.stored.store.folder} and would "
                    "not learn: load_task makes it a parameter; to use it as it is, "
                    "call eval()"
                )
            return vector
        held = _held.get().get(id(self), {})
        if name not in held:
            # An alias of what a parameter is now, see `put`.
            held[name] = self.vector(name).data
        return held[name]

    # -------------------------------------------------------------------- writing

    def add(self, name: str, like: torch.Tensor) -> None:
        """Add a task with newly initialised tensors.

        Args:
            name: Name of the new task.
            like: A tensor on the device and of the type that the task shall have.

        Raises:
            TaskError: The name is not valid or taken.
        """
        check_task_name(name)
        taken = name in self
        if not taken:
            with torch.inference_mode(False):
                vector = torch.nn.Parameter(torch.empty(self.size).to(like))
                self.initialise(vector)
            taken = self._parameters.setdefault(_key(name), vector) is not vector
        if taken:
            raise TaskError(
                f"task {name!r} exists already; remove it first, or choose another "
                f"name than {listing(self)}"
            )

    def initialise(self, vector: torch.Tensor) -> None:
        """Fill a task's vector with initial values."""
        with torch.no_grad():
            for section, init in zip(self.sections, self._inits):
                init(self.split(vector, section))

    def remove(self, name: str) -> None:
        """Forget a task.

        Raises:
            TaskError: The task is unknown, or one of the folder's.
        """
        if name not in self:
            raise TaskError(f"unknown task {name!r}; known tasks: {listing(self)}")
        if self._parameters.pop(_key(name), None) is None:
            raise TaskError(
                f"task {name!r} is a file in {self.stored.store.folder}: remove it "
                "there (espnet-hra tasks remove), or attach another folder"
            )
        self._behind.discard(name)

    def put(
        self, name: str, tensors: Mapping[str, torch.Tensor], like: torch.Tensor
    ) -> None:
        """Give a task, new or existing, the values of these tensors.

        An existing task keeps its ``Parameter``, so that an optimizer keeps it too.

        Args:
            name: Name of the task.
            tensors: For each name of the layout a tensor of its shape.
            like: A tensor on the device and of the type that a new task shall have.
        """
        check_task_name(name)
        with torch.inference_mode(False), torch.no_grad():
            vector = self._parameters.get(_key(name))
            flat = self.flatten(tensors, like if vector is None else vector)
            if vector is None:
                self._parameters[_key(name)] = torch.nn.Parameter(flat)
            else:
                # Other memory, not other values in the same: a pass that another
                # thread runs goes on with the old values.
                _replaced.append(vector.data)
                vector.data = flat
        self._behind.discard(name)

    def flatten(
        self, tensors: Mapping[str, torch.Tensor], like: torch.Tensor
    ) -> torch.Tensor:
        """A vector of its own with the values of these tensors. Arguments as above."""
        parts = [tensors[part].reshape(-1) for part in self.layout]
        return (torch.cat(parts) if parts else like.new_empty(0)).to(like)

    def split(self, vector: torch.Tensor, section: Section | None = None) -> Tensors:
        """The tensors of a task as views of its vector.

        Args:
            vector: Shape (size,), or (batch, size) for one task per utterance.
            section: The tensors that are wanted; None for all.

        Returns:
            For each name of the layout a view of shape (...) or (batch, ...).
        """
        return self._views(self._part(vector, section), section)

    def _part(self, vector: torch.Tensor, section: Section | None) -> torch.Tensor:
        """A section's values, (..., size of the section)."""
        if section is None or section.size == vector.size(-1):
            return vector
        return vector.narrow(-1, section.start, section.size)

    def _views(self, part: torch.Tensor, section: Section | None) -> Tensors:
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
        dtype: torch.dtype | None = None,
        section: Section | None = None,
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
        distinct: list[str] = list(dict.fromkeys(names))
        parts = [self._part(self._in_use(name), section) for name in distinct]
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
        return f"tasks={len(self._parameters)}, parameters_per_task={self.size:,}"


def _key(name: str) -> str:
    """How a task's parameter is called: torch forbids dots."""
    return name.replace(".", "/")
