"""Where the parameters of the tasks live: one flat vector for each task.

A task's tensors are laid end to end in **one** ``Parameter``. This is what makes ten
thousand tasks cheap and keeps them apart:

* A head that a step did not use has the gradient ``None`` (not zero), so no torch
  optimizer moves it, whatever its momentum or weight decay.
* Optimizers and gradient clipping loop over parameters in Python; one vector a task
  instead of two or four tensors keeps that loop short.
* A batch of mixed tasks stacks the vectors it needs, never the whole bank.

A task that tells labels (``head: classify``, see :mod:`espnet_hra.methods.classify`)
has those tensors as well, behind the others in the same vector.

Further tasks may lie in a folder, see :mod:`espnet_hra.tasks.cache`: their vectors are
fetched when a batch asks for them, are no parameters and do not learn.

Any thread may add, replace or remove a task while others serve. A new vector is
complete before it is known. Replacing gives the ``Parameter`` other memory; whoever
uses a task takes an alias of its memory first, which lives as long as that use. The two
exclude each other, for as long as it takes to copy a pointer.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from espnet_hra.errors import TaskError
from espnet_hra.names import check_task_name, from_key, listing, to_key
from espnet_hra.tasks import holding
from espnet_hra.tasks.cache import HeadCache
from espnet_hra.tasks.holding import Held
from espnet_hra.tasks.layout import CLASSIFIER, Layout, Section, Tensors, classifier

#: Fills a new task's tensors (views of its vector) in place.
Initialise = Callable[[Tensors], None]


def zeros(tensors: Tensors) -> None:
    """The initial values of what a task adds: nothing."""
    for tensor in tensors.values():
        tensor.zero_()


class Said(NamedTuple):
    """What the file that a task came from says about it.

    Attributes:
        info: See :data:`espnet_hra.tasks.file.INFO`.
        loaded: Fingerprint of the values that were in it; None for a task that cannot
            have changed since.
        checksum: Of the file; None for a task that comes from none.
    """

    info: dict[str, Any]
    loaded: str | None
    checksum: str | None = None


class TaskBank(torch.nn.Module):
    """The parameters of all tasks, one flat vector each.

    In ``state_dict`` the vector of task ``it.carlo`` is called ``it/carlo``, see
    :func:`espnet_hra.names.to_key`.

    Args:
        shapes: Names and shapes of a task's tensors, in their order in the vector.
        initialise: Their initial values.
        pooled: Size of what an utterance is pooled to for tasks that tell labels.

    Attributes:
        layout: Where in a vector lies what.
        stored: The tasks of a folder, see :meth:`attach`; None without one.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        initialise: Initialise = zeros,
        pooled: int = 0,
    ):
        super().__init__()
        self.layout, self.pooled = Layout(), pooled
        self._labels: dict[str, tuple[str, ...]] = {}
        self.stored: HeadCache | None = None
        self._initial: list[Initialise] = []
        self._said: dict[str, Said] = {}
        self._behind: set[str] = set()
        self._swapping = threading.Lock()
        self.extend(shapes, initialise)

    def extend(
        self, shapes: Mapping[str, Sequence[int]], initialise: Initialise = zeros
    ) -> Section:
        """Give every task further tensors; possible as long as there is no task.

        Returns:
            Where they are, for :meth:`gather`.
        """
        assert not self._parameters, "tasks exist already"
        self._initial.append(initialise)
        return self.layout.extend(shapes)

    # `_parameters` is written to directly: `register_parameter` and `setattr` refuse
    # names such as "keys", "type" or "train" that modules have methods for.

    @property
    def size(self) -> int:
        """Number of values of a task."""
        return self.layout.size

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the tasks that are parameters, in the order of their adding."""
        # The list is made in one step; other threads may add tasks meanwhile.
        return tuple(map(from_key, list(self._parameters)))

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
        if name in holding.of(self) or self.is_parameter(name):
            return True
        return self.stored is not None and name in self.stored

    def exists(self, name: str) -> bool:
        """Whether there is a task of this name now.

        ``in``, which is asked for every pass, still knows a task that is in memory when
        its file has just gone.
        """
        if name in holding.of(self) or self.is_parameter(name):
            return True
        return self.stored is not None and name in self.stored.store

    def is_parameter(self, name: str) -> bool:
        """Whether a name stands for a parameter, and not for a file or nothing."""
        own = to_key(name) in self._parameters
        if not own or self.stored is None or name not in self._behind:
            return own
        return not (name in self.stored or name in self.stored.store.removed)

    # --------------------------------------------------------------------- a folder

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

    # ---------------------------------------------------------------------- reading

    def vector(self, name: str) -> torch.Tensor:
        """The flat vector of a task, shape (size,).

        It is a ``Parameter``, unless it is one of the folder's.

        Raises:
            TaskError: The task is unknown, or its file cannot be used.
        """
        return self._found(name).vector

    def _found(self, name: str) -> Held:
        """A task's vector and labels as they are now. Errors as of :meth:`vector`."""
        found: torch.Tensor | None = None
        if isinstance(name, str) and "/" not in name:
            found = self._parameters.get(to_key(name))
            if self.stored is not None and (found is None or name in self._behind):
                head = self.stored.get(name)
                if head is not None:
                    return Held(head.vector, head.labels)
                if name in self.stored.store.removed:
                    found = None
        if found is None:
            raise TaskError(f"unknown task {name!r}; known tasks: {listing(self)}")
        return Held(found, self._labels.get(name, ()))

    def tensors(self, name: str) -> Tensors:
        """The tensors of one task by name (views: writing to them changes the task).

        Raises:
            TaskError: The task is unknown.
        """
        vector = self.vector(name).detach()
        return {**self.layout.split(vector), **self._classifier(vector, name)}

    @property
    def classifies(self) -> bool:
        """Whether a task that is a parameter tells labels."""
        return any(list(self._labels.values()))

    def labels_of(self, name: str) -> tuple[str, ...]:
        """The labels that a task tells; none of a task that does not classify.

        Raises:
            TaskError: The task is unknown, or its file cannot be used.
        """
        return (holding.of(self).get(name) or self._found(name)).labels

    def gather_classifier(self, name: str) -> Tensors:
        """The tensors with which a task tells its labels: ``weight``, ``bias``.

        Raises:
            TaskError: The task is unknown.
        """
        vector = self._in_use(name)
        own = self._classifier(vector, name)
        return {key.removeprefix(CLASSIFIER): tensor for key, tensor in own.items()}

    def _classifier(self, vector: torch.Tensor, name: str) -> Tensors:
        labels = len(self.labels_of(name))
        if not labels:
            return {}
        section = Section(self.size, classifier(labels, self.pooled))
        return self.layout.split(vector, section)

    def flatten(
        self, tensors: Mapping[str, torch.Tensor], like: torch.Tensor
    ) -> torch.Tensor:
        """As of the layout, of a task that may tell labels."""
        own = [self.layout.flatten(tensors, like)]
        more = (tensors[key] for key in classifier(0, 0) if key in tensors)
        return torch.cat([*own, *(tensor.reshape(-1).to(like) for tensor in more)])

    def said(self, name: str) -> Said:
        """What the file that a task came from says about it.

        Raises:
            TaskError: The task is unknown.
        """
        if isinstance(self.vector(name), torch.nn.Parameter):
            return self._said.get(name, Said({}, None))
        head = self.stored.get(name) if self.stored is not None else None
        return Said({}, None) if head is None else Said(head.info, None, head.checksum)

    def note(self, name: str, **info: str) -> None:
        """Let more be said about a task that is a parameter, see :meth:`said`."""
        said = self._said.get(name, Said({}, None))
        self._said[name] = said._replace(info={**said.info, **info})

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
            TaskError: A task is unknown, or cannot learn in a pass that is to teach.
        """
        distinct = list(dict.fromkeys(names))
        parts = [self.layout.part(self._in_use(name), section) for name in distinct]
        dtype = dtype or parts[0].dtype
        if len(distinct) == 1:
            return self.layout.views(parts[0].to(dtype), section)
        rows = torch.stack(parts).to(dtype)
        if len(distinct) < len(names):
            position = {name: i for i, name in enumerate(distinct)}
            index = [position[name] for name in names]
            rows = rows.index_select(0, torch.tensor(index, device=rows.device))
        return self.layout.views(rows, section)  # [b, ...]

    @contextlib.contextmanager
    def hold(self, names: Iterable[str] = ()) -> Iterator[None]:
        """A block in which every task stays what it is when it is first used.

        Args:
            names: Tasks to use at once. See :mod:`espnet_hra.tasks.holding`.

        Raises:
            TaskError: One of them is unknown, or its file cannot be used.
        """
        with holding.hold(self):
            for name in names:
                self._in_use(name)
            yield

    def _in_use(self, name: str) -> torch.Tensor:
        """An alias of a task's vector, for a pass; with gradients one that has them."""
        if torch.is_grad_enabled():
            vector = self.vector(name)
            if isinstance(vector, torch.nn.Parameter):
                with self._swapping:
                    return vector.view_as(vector)
            if self.training and self.stored is not None:
                raise TaskError(
                    f"task {name!r} is a file in {self.stored.store.folder} and would "
                    "not learn: load_task makes it a parameter; to use it as it is, "
                    "call eval()"
                )
            return vector
        held = holding.of(self)
        if name not in held:
            found = self._found(name)
            with self._swapping:
                # A graph that torch.export makes loses sight of `data`.
                exported = torch.compiler.is_exporting()
                alias = found.vector.detach() if exported else found.vector.data
                held[name] = found._replace(vector=alias)
        return held[name].vector

    # ---------------------------------------------------------------------- writing

    def add(self, name: str, like: torch.Tensor, labels: Sequence[str] = ()) -> None:
        """Add a task with newly initialised tensors.

        Args:
            name: Name of the new task.
            like: A tensor on the device and of the type that the task shall have.
            labels: What it tells, if it classifies.

        Raises:
            TaskError: The name is not valid or taken.
        """
        check_task_name(name)
        taken = self.exists(name)
        if not taken:
            with torch.inference_mode(False):
                more = Section(0, classifier(len(labels), self.pooled)).size
                size = self.layout.size + more
                vector = torch.nn.Parameter(torch.empty(size).to(like))
                self.initialise(vector)
            with self._swapping:
                taken = to_key(name) in self._parameters
                if not taken:  # the labels first: who knows the task knows them
                    self._labels[name] = tuple(labels)
                    self._parameters[to_key(name)] = vector
        if taken:
            raise TaskError(
                f"task {name!r} exists already; remove it first, or choose another "
                f"name than {listing(self)}"
            )

    def initialise(self, vector: torch.Tensor) -> None:
        """Fill a task's vector with initial values."""
        with torch.no_grad():
            for section, initial in zip(self.layout.sections, self._initial):
                initial(self.layout.split(vector, section))
            vector[self.layout.size :].zero_()  # of a classifier: all labels alike

    def remove(self, name: str) -> None:
        """Forget a task.

        Raises:
            TaskError: The task is unknown, or one of the folder's.
        """
        if not self.exists(name):
            raise TaskError(f"unknown task {name!r}; known tasks: {listing(self)}")
        if self._parameters.pop(to_key(name), None) is None:
            folder = self.stored.store.folder if self.stored is not None else None
            raise TaskError(
                f"task {name!r} is a file in {folder}: remove it there (espnet-hra "
                "tasks remove), or attach another folder"
            )
        self._said.pop(name, None)
        self._labels.pop(name, None)
        self._behind.discard(name)

    def put(
        self,
        name: str,
        tensors: Mapping[str, torch.Tensor],
        like: torch.Tensor,
        said: Said | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        """Give a task, new or existing, the values of these tensors.

        An existing task keeps its ``Parameter``, so that an optimizer keeps it too.

        Args:
            name: Name of the task.
            tensors: For each name of the layout a tensor of its shape.
            like: A tensor on the device and of the type that a new task shall have.
            said: What is said about it.
            labels: What it tells, if it classifies.
        """
        check_task_name(name)
        with torch.inference_mode(False), torch.no_grad():
            vector = self._parameters.get(to_key(name))
            flat = self.flatten(tensors, like if vector is None else vector)
            with self._swapping:
                self._labels[name] = tuple(labels)
                if vector is None:
                    self._parameters[to_key(name)] = torch.nn.Parameter(flat)
                else:
                    # Other memory, not other values in the same: a pass that another
                    # thread runs goes on with the old values.
                    vector.data = flat
        self._said[name] = said or Said({}, None)
        self._behind.discard(name)

    # --------------------------------------------------------------------- as a module

    def train(self, mode: bool = True) -> "TaskBank":
        """As ``Module.train``, which fails where a task is called "training"."""
        self.__dict__["training"] = mode
        if mode:
            self.read_anew()
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> "TaskBank":
        super()._apply(*args, **kwargs)  # to another device or type
        self.read_anew()
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_swapping"]  # a lock belongs to its process
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._swapping = threading.Lock()

    def extra_repr(self) -> str:
        return f"tasks={len(self._parameters)}, parameters_per_task={self.size:,}"


#: Name of the one vector of :class:`OneForAll`.
ALL = "all"


class OneForAll(TaskBank):
    """A single vector, which serves whatever tasks are asked for."""

    def gather(
        self,
        names: Sequence[str],
        dtype: torch.dtype | None = None,
        section: Section | None = None,
    ) -> Tensors:
        """As of a :class:`TaskBank`; the tensors never have a batch axis."""
        return super().gather((ALL,), dtype, section)
