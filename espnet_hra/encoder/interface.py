"""What users do with the tasks of an encoder: choose, add, save, load."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from espnet_hra.encoder import folder, selection
from espnet_hra.errors import TaskError
from espnet_hra.methods.base import Adapter
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.bank import Said
from espnet_hra.tasks.config import check_labels
from espnet_hra.tasks.fingerprint import fingerprint
from espnet_hra.tasks.store import TaskStore

#: A file or folder.
PathLike = str | os.PathLike[str]

#: What is untrue of a task that was trained since its file was loaded.
_UNTRUE = ("scores", "date", "training")


class TaskInterface:
    """The tasks of an adapted encoder. A mixin: the encoder has the parameters."""

    adapter: Adapter

    # The choice of `set_task`.
    _default: Any

    @property
    def backbone_fingerprint(self) -> str:
        """Fingerprint of the wrapped encoder's weights."""
        raise NotImplementedError

    def identity(self, backbone: str | None = None) -> dict[str, Any]:
        """What a task's file must agree with."""
        raise NotImplementedError

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, those of a folder included."""
        return self.adapter.tasks

    @property
    def chosen_task(self) -> selection.Choice:
        """The choice in force in this thread.

        None for the plain backbone, a name, or a tuple with one name per utterance.

        Raises:
            TaskError: No choice among several tasks.
        """
        return selection.current(self, self._default, self.adapter.heads)

    def tasks_of_batch(self, size: int) -> tuple[str, ...]:
        """The tasks in force in this thread: none, one, or one per utterance.

        Args:
            size: Number of utterances.

        Raises:
            TaskError: Several tasks and no choice, or a choice that does not fit.
        """
        return selection.resolve(self, self._default, self.adapter.heads, size) or ()

    def set_task(self, task: None | str | Sequence[str]) -> None:
        """Choose the task of the following batches, for all threads.

        Args:
            task: A name for the whole batch, one name per utterance, or None for the
                plain backbone.

        Raises:
            TaskError: A task is unknown, or its file cannot be used.
        """
        choice = selection.as_choice(task, self.adapter.heads)
        for name in selection.distinct(choice):
            self.adapter.heads.vector(name)  # a file is read now, or refused
        self._default = choice

    def use_task(
        self, task: None | str | Sequence[str]
    ) -> AbstractContextManager[None]:
        """Choose the task for a ``with`` block of this thread; wins over `set_task`.

        Args:
            task: As for :meth:`set_task`.

        Raises:
            TaskError: A task is unknown.
        """
        return selection.block(self, selection.as_choice(task, self.adapter.heads))

    def add_task(self, name: str, labels: Sequence[str] = ()) -> None:
        """Add a task that computes exactly what the backbone does until it is trained.

        An optimizer that was built before does not know it: build it afterwards, or
        call its ``add_param_group``.

        Args:
            name: Its name.
            labels: Of a task that classifies utterances, what it may answer; see
                :mod:`espnet_hra.methods.classify`.

        Raises:
            TaskError: The name is not valid or taken, or labels cannot be told apart.
        """
        labels = check_labels(name, labels) if len(labels) else ()
        self.adapter.heads.add(name, like=self.like(), labels=labels)

    def labels_of(self, name: str) -> tuple[str, ...]:
        """What a task may answer; empty if it does not classify.

        Raises:
            TaskError: The task is unknown, or its file cannot be used.
        """
        return self.adapter.heads.labels_of(name)

    def like(self) -> torch.Tensor:
        """A tensor of the device and type that tasks have."""
        raise NotImplementedError

    def remove_task(self, name: str) -> None:
        """Forget a task; if it was chosen by `set_task`, no task is chosen any more.

        Raises:
            TaskError: The task is unknown.
        """
        self.adapter.heads.remove(name)
        chosen = self._default
        if chosen == name or (isinstance(chosen, tuple) and name in chosen):
            self._default = selection.UNSET

    def attach_store(
        self,
        store: PathLike | TaskStore | None,
        *,
        max_loaded: int | None = None,
        behind: Sequence[str] = (),
    ) -> None:
        """Let tasks come from a folder of task files, each fetched when it is used.

        The encoder then knows them all, now and later, and keeps those in memory that
        were used last. Whoever adds, replaces or removes a file (in one step, as
        :class:`~espnet_hra.tasks.store.TaskStore` does) changes the next pass that
        uses it.
        Tasks from a folder do not learn; :meth:`load_task` makes them parameters.

        Args:
            store: The folder with files ``NAME.safetensors``; None for none any more.
            max_loaded: Most heads that are kept in memory; by default as many as take
                256 MiB. What a pass uses lives until it ends, whatever their number.
            behind: Tasks that the encoder has and that those of the folder go before.
                By default what the encoder has goes before the folder's.

        Raises:
            ConfigError: `max_loaded` is no whole number above 0.
        """
        stored = None
        if store is not None:
            stored = folder.heads_of(self, store, max_loaded)
        self.adapter.heads.attach(stored, behind)

    @property
    def loaded_tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are in memory."""
        heads = self.adapter.heads
        stored = () if heads.stored is None else heads.stored.names
        return tuple(dict.fromkeys((*heads.own, *stored)))

    def save_task(
        self,
        name: str,
        path: PathLike,
        *,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a task to a safetensors file, with the fingerprints of what it needs.

        Args:
            name: The task.
            path: The file to write.
            info: What is said about the task: ``license``, ``languages``, ``data``,
                ``scores``, ``date``; see :data:`espnet_hra.tasks.file.INFO`. What was
                said in the file that it was loaded from is said again, but for scores,
                date and training if the task has been trained since.

        Raises:
            TaskError: The task is unknown, has values that are no numbers, or the file
                cannot be written.
        """
        taskfile.save(
            path,
            name,
            self.adapter.heads.tensors(name),
            self.identity(),
            {**self.task_info(name), **(info or {})},
            labels=self.labels_of(name),
        )

    def task_info(self, name: str) -> dict[str, Any]:
        """What the file that a task was loaded from says about it.

        Raises:
            TaskError: The task is unknown.
        """
        heads = self.adapter.heads
        info, loaded, _ = heads.said(name)
        if loaded is not None and loaded != _digest(heads.vector(name)):
            info = {k: v for k, v in info.items() if k not in _UNTRUE}
        return dict(info)

    def task_checksum(self, name: str) -> str:
        """What tells a task from any other: the checksum of its file.

        Returns:
            ``sha256:`` and 64 digits, as they stand in the file that the task came
            from (``espnet-hra tasks list --json`` shows them). Of a task that came from
            a checkpoint, or was trained since: ``values sha256:`` and the digits of its
            values.

        Raises:
            TaskError: The task is unknown.
        """
        heads = self.adapter.heads
        _, loaded, checksum = heads.said(name)
        if checksum is not None and loaded is None:
            return checksum  # a file of a folder, which does not change
        values = _digest(heads.vector(name))
        return checksum if checksum and loaded == values else f"values {values}"

    def load_task(self, path: PathLike, *, replace: bool = False) -> str:
        """Add the task of a file, under the name that stands in it.

        Args:
            path: A file of :meth:`save_task`.
            replace: Whether it may take the place of a task of the same name. (It goes
                before one of :meth:`attach_store`'s folder in any case.)

        Returns:
            The name of the task.

        Raises:
            TaskError: The file is damaged, was made for another backbone, controller or
                head, or its name is taken.
        """
        heads, file = self.adapter.heads, self.read_task(path)
        name = file.name
        if heads.is_parameter(name) and not replace:  # goes before a folder's
            raise TaskError(
                f"{path}: task {name!r} exists already; load it with replace=True, or "
                "remove the other first"
            )
        like = self.like()
        # Digested in the type that the task has here, which may be another.
        loaded = _digest(heads.flatten(file.tensors, like))
        said = Said(file.info, loaded, file.checksum)
        heads.put(name, file.tensors, like, said, file.labels)
        return name

    def read_task(
        self,
        path: PathLike,
        *,
        said: PathLike | None = None,
    ) -> taskfile.TaskFile:
        """Read and verify the task of a file, without adding it.

        Args:
            path: A file of :meth:`save_task`.
            said: How messages name the file, if not by `path`.

        Raises:
            TaskError: The file is damaged, or was made for another backbone, controller
                or head.
        """
        heads = self.adapter.heads
        shapes = heads.layout.shapes
        return taskfile.load(path, shapes, self.identity(), said, heads.pooled)


def _digest(vector: torch.Tensor) -> str:
    return fingerprint([("", vector)])
