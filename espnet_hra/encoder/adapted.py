"""Any ESPnet encoder with its layers in `.encoders`, frozen, with an adapter.

Nothing of the encoder is copied or changed. A forward pass runs the encoder's own
``forward`` on a *view* of the encoder: a shallow copy that shares all parameters,
buffers and submodules, except that each layer in ``.encoders`` is followed by one step
of the adapter. The view and all state of the adapter belong to the one call, so threads
and nested calls cannot meet, and whatever the encoder does with its layers
(intermediate CTC, conditioning, stochastic depth, layer drop) goes on as it was.
"""

import collections
import functools
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from espnet_hra.encoder import compiling, selection, stepping
from espnet_hra.encoder.checkpointing import Passes, in_backward
from espnet_hra.errors import ConfigError, TaskError
from espnet_hra.methods import build_adapter
from espnet_hra.methods.base import AfterLayer, Change, changed, shallow_copy
from espnet_hra.names import check_task_name, listing
from espnet_hra.tasks import cache
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.fingerprint import ContentCache, VersionCache, fingerprint, walk
from espnet_hra.tasks.store import TaskStore

PREFIX = "hra_"

#: All that torch calls dropout, of single values or whole channels.
_Dropout = torch.nn.modules.dropout._DropoutNd

#: Keys of `encoder_conf` that are not the wrapped encoder's.
OWN_KEYS = ("adapter", "adapter_conf", "tasks", "backbone_fingerprint")


def read_tasks(tasks: str | os.PathLike | Sequence[str] | None) -> tuple[str, ...]:
    """Task names of a configuration.

    Args:
        tasks: Names, or the path of a file with one name a line; may be empty.

    Raises:
        TaskError: A name is not valid or stands twice, or the file cannot be read.
    """
    if isinstance(tasks, (str, os.PathLike)):
        try:
            lines = Path(tasks).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as e:
            raise TaskError(
                f"tasks: {str(tasks)!r} is read as a file with one task name a line "
                f"and cannot be: {e}; give a list for names themselves"
            ) from e
        tasks = [line.strip() for line in lines if line.strip()]
    if not isinstance(tasks, (list, tuple, type(None))):
        raise TaskError(
            f"tasks: {tasks!r} is neither a list of names nor the path of a file"
        )
    names = tuple(check_task_name(name) for name in tasks or ())
    twice = sorted(name for name, n in collections.Counter(names).items() if n > 1)
    if twice:
        raise TaskError(f"tasks: these names stand twice: {', '.join(twice)}")
    return names


class AdaptedEncoder(torch.nn.Module):
    """Mixin that puts an adapter and its tasks on an ESPnet encoder class.

    The encoder's parameters and BatchNorm statistics are frozen, its ``state_dict``
    keys unchanged; what is added lives under ``adapter.``.

    Args:
        input_size: Dimension of the features.
        adapter: Name of the adapter, see :data:`espnet_hra.methods.ADAPTERS`.
        adapter_conf: Its configuration.
        tasks: Names of the tasks, or the path of a file with one name a line.
        backbone_fingerprint: Fingerprint that the backbone's weights must have before
            the first forward pass; saved configurations carry it.
        **backbone_conf: Every key of the wrapped encoder.

    Raises:
        ConfigError: The encoder does not keep a list of layers in ``.encoders``, or
            the adapter's configuration is not possible.
        TaskError: A task name is not valid.
    """

    #: The ESPnet class that is wrapped.
    backbone_class: type

    def __init__(
        self,
        input_size: int,
        adapter: str = "hra",
        adapter_conf: dict[str, Any] | None = None,
        tasks: str | Sequence[str] | None = (),
        backbone_fingerprint: str | None = None,
        **backbone_conf: Any,
    ):
        super().__init__(input_size, **backbone_conf)
        layers = getattr(self, "encoders", None)
        if not isinstance(layers, (torch.nn.Sequential, torch.nn.ModuleList)):
            raise ConfigError(
                f"{self.backbone_class.__name__} does not keep its layers in a list "
                "called `.encoders` and cannot be wrapped; conformer, transformer, "
                "branchformer and e_branchformer can"
            )
        if hasattr(self, "forward_infer"):
            raise ConfigError(
                f"{self.backbone_class.__name__} is a streaming encoder, and its "
                "layers hand on a context that is not adapted yet: take conformer, "
                "transformer, branchformer or e_branchformer"
            )
        self.requires_grad_(False)  # before the adapter, which learns, is there
        self.adapter = build_adapter(adapter, self, adapter_conf)
        for name in read_tasks(tasks):
            self.add_task(name)
        self.expected_fingerprint = backbone_fingerprint
        self._verified = False
        self._backbone_cache = VersionCache()
        self._controller_cache = ContentCache()
        #: What surrounds the encoder, if it is known: fingerprints of the base's other
        #: parts (`base`) and of the token list (`tokens`). Task files name them too.
        self.surroundings: dict[str, Any] = {}
        self._default: Any = selection.UNSET
        self._passes = Passes()
        self.train(self.training)

    # ------------------------------------------------------------------- forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped encoder's ``forward``, with the chosen tasks.

        Raises:
            TaskError: Several tasks and no choice, or a choice that does not fit.
            RuntimeError: The backbone's weights are not those that the configuration
                names.
        """
        with self.adapter.heads.hold():
            names = self._names(args[0] if args else kwargs["xs_pad"])
            if len(set(names)) > 1 and not self.adapter.mixes:
                return self._task_by_task(names, args, kwargs)
            return self._run(names, *args, **kwargs)

    def _names(self, xs_pad: torch.Tensor) -> tuple[str, ...]:
        """The tasks of a pass: none, one, or one per utterance."""
        if self.expected_fingerprint is not None and not self._verified:
            self.verify_backbone()
        names = self._passes.repeated(xs_pad) if in_backward() else None
        if names is None:
            names = self.tasks_of_batch(xs_pad.size(0))
            self._passes.record(xs_pad, names)
        return names

    def tasks_of_batch(self, size: int) -> tuple[str, ...]:
        """The tasks in force in this thread: none, one, or one per utterance.

        Args:
            size: Number of utterances.

        Raises:
            TaskError: Several tasks and no choice, or a choice that does not fit.
        """
        return selection.resolve(self, self._default, self.adapter.heads, size) or ()

    def _run(self, names: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        """One pass with these tasks: none, one, or one per utterance."""
        view, after_layer = self._prepared(names)
        # An intermediate CTC that is fed back must meet the tasks of this very pass.
        choice = names if len(names) > 1 else next(iter(names), None)
        with selection.block(self, choice):
            try:
                return self.backbone_class.forward(view, *args, **kwargs)
            finally:
                if after_layer is not None:
                    after_layer.ended = True

    def _prepared(
        self, names: tuple[str, ...]
    ) -> tuple["AdaptedEncoder", AfterLayer | None]:
        """A view of the encoder for one pass with these tasks, see :meth:`_view`."""
        if not names:
            return self._view(None, {}), None
        if self.adapter.ctc is not None and not self.adapter.projects:
            raise RuntimeError(
                "the tasks have CTC projections of their own (ctc: task), and this "
                "model's CTC does not use them: decode with `espnet-hra decode` or "
                "`espnet_hra.Speech2Text`, or call espnet_hra.espnet.ctc.attach(model)"
            )
        after_layer = self.adapter.begin(names)
        return self._view(after_layer, self.adapter.changes(names[0])), after_layer

    def _task_by_task(
        self, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A mixed batch for an adapter that serves one task at a time.

        Each task's utterances run as the batch that they would be without the others,
        with no more padding than that; the outputs are put together again in order.
        """
        xs_pad = args[0] if args else kwargs["xs_pad"]
        lengths = args[1] if len(args) > 1 else kwargs["ilens"]
        size, frames = xs_pad.shape[:2]
        rows = {
            name: [i for i, other in enumerate(names) if other == name]
            for name in dict.fromkeys(names)
        }
        outputs = []
        for name, own in rows.items():
            index = torch.tensor(own, device=xs_pad.device)
            end = frames - int(lengths.max() - lengths[own].max())

            def part(value: Any, index=index, end=end) -> Any:
                tensor = isinstance(value, torch.Tensor) and value.dim() > 0
                if not tensor or value.size(0) != size:
                    return value
                value = value.index_select(0, index.to(value.device))
                timed = value.dim() > 1 and value.size(1) == frames
                return value[:, :end] if timed else value

            outputs.append(
                self._run(
                    (name,),
                    *(part(value) for value in args),
                    **{key: part(value) for key, value in kwargs.items()},
                )
            )
        order = [i for own in rows.values() for i in own]
        return _together(outputs, torch.tensor(order).argsort())

    def _view(
        self, after_layer: AfterLayer | None, changes: Mapping[str, Change]
    ) -> "AdaptedEncoder":
        """A shallow copy whose layers are each followed by a step of the adapter."""
        view = changed(self, changes) if changes else shallow_copy(self)
        layers = shallow_copy(view.encoders)
        layers._modules = {
            key: _AdaptedLayer(_private(layer), i, after_layer)
            for i, (key, layer) in enumerate(view.encoders._modules.items())
        }
        view._modules = {**view._modules, "encoders": layers}
        return view

    def _replicate_for_data_parallel(self) -> "AdaptedEncoder":
        raise RuntimeError(
            "torch.nn.DataParallel is not supported: use DistributedDataParallel "
            "(in ESPnet: --multiprocessing_distributed true)"
        )

    def train(self, mode: bool = True) -> "AdaptedEncoder":
        """As ``Module.train``, but for what the frozen backbone keeps of evaluation.

        These are its BatchNorm statistics, which do not move, and with
        ``adapter_conf: {backbone_dropout: false}`` its dropout.
        """
        super().train(mode)
        freeze_statistics(self, mode, except_under="adapter")
        if mode and not self.adapter.backbone_dropout:
            for name, child in self.named_modules():
                if isinstance(child, _Dropout) and name.partition(".")[0] != "adapter":
                    child.eval()
        return self

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        """As ``Module.parameters``, quick with many tasks as well."""
        return stepping.parameters(self) if recurse else super().parameters(False)

    # --------------------------------------------------------------------- tasks

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

    def add_task(self, name: str) -> None:
        """Add a task that computes exactly what the backbone does until it is trained.

        An optimizer that was built before does not know it: build it afterwards, or
        call its ``add_param_group``.

        Raises:
            TaskError: The name is not valid or taken.
        """
        self.adapter.add_task(name, like=self.like())

    def like(self) -> torch.Tensor:
        """A tensor of the device and type that tasks have."""
        # Without controller or tasks, the adapter has no parameters.
        like = next(self.adapter.parameters(), next(self.parameters()))
        return like.detach()

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
        store: str | os.PathLike | TaskStore | None,
        *,
        max_loaded: int | None = None,
        behind: Sequence[str] = (),
    ) -> None:
        """Let tasks come from a folder of task files, each fetched when it is used.

        The encoder then knows them all, now and later, and keeps those in memory that
        were used last. Whoever adds, replaces or removes a file (in one step, as
        :class:`~espnet_hra.tasks.store.TaskStore` does) changes the next pass that uses it.
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
            stored = cache.heads_of(self, store, max_loaded)
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
        path: str | os.PathLike,
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
        )

    def task_info(self, name: str) -> dict[str, Any]:
        """What the file that a task was loaded from says about it.

        Raises:
            TaskError: The task is unknown.
        """
        vector = self.adapter.heads.vector(name)
        info, loaded = getattr(vector, "espnet_hra_info", ({}, None))
        if loaded is not None and loaded != fingerprint([("", vector)]):
            untrue = ("scores", "date", "training")
            info = {k: v for k, v in info.items() if k not in untrue}
        return dict(info)

    def load_task(self, path: str | os.PathLike, *, replace: bool = False) -> str:
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
        heads.put(name, file.tensors, like=self.like())
        vector = heads.vector(name)
        # Goes where the parameter goes, and ends with it.
        vector.espnet_hra_info = (file.info, fingerprint([("", vector)]))
        return name

    def read_task(
        self,
        path: str | os.PathLike,
        *,
        said: str | os.PathLike | None = None,
    ) -> taskfile.TaskFile:
        """Read and verify the task of a file, without adding it.

        Args:
            path: A file of :meth:`save_task`.
            said: How messages name the file, if not by `path`.

        Raises:
            TaskError: The file is damaged, or was made for another backbone, controller
                or head.
        """
        return taskfile.load(path, self.adapter.heads.layout, self.identity(), said)

    # -------------------------------------------------------------- verification

    def backbone_tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers of the wrapped encoder, under its own keys."""
        return dict(walk(self, without="adapter"))

    @property
    def backbone_fingerprint(self) -> str:
        """Fingerprint of the wrapped encoder's weights."""
        tensors = self.backbone_tensors()
        return self._backbone_cache.get(
            tensors.values(), lambda: fingerprint(tensors.items())
        )

    @property
    def controller_fingerprint(self) -> str:
        """Fingerprint of what all tasks share."""
        shared = walk(self.adapter, without="heads")
        return self._controller_cache.get(
            {k: v for k, v in shared if isinstance(v, torch.nn.Parameter)}
        )

    def identity(self, backbone: str | None = None) -> dict[str, Any]:
        """What a task's file must agree with: configuration and fingerprints.

        Args:
            backbone: The backbone's fingerprint, if it is known to be the same still.
        """
        return {
            "config": self.adapter.config,
            "backbone": backbone or self.backbone_fingerprint,
            "controller": self.controller_fingerprint,
            **self.surroundings,
        }

    def verify_backbone(self) -> None:
        """Check that the backbone has the weights that the configuration names.

        Raises:
            RuntimeError: It has others (for instance random ones, because only the
                adapter's checkpoint was loaded).
        """
        found = self.backbone_fingerprint
        if found != self.expected_fingerprint:
            raise RuntimeError(
                f"{_NOT_LOADED} (expected fingerprint {self.expected_fingerprint}, "
                f"found {found})"
            )
        self._verified = True

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors
    ) -> None:
        # ESPnet's inference loads with strict=False: a checkpoint that holds the
        # adapter only would leave a random backbone, in silence. Errors added here are
        # raised whatever `strict` is.
        keys = [key[len(prefix) :] for key in state_dict if key.startswith(prefix)]
        holds_adapter = any(key.startswith("adapter.") for key in keys)
        holds_backbone = any(not key.startswith("adapter.") for key in keys)
        if self.expected_fingerprint is not None and holds_adapter:
            if not holds_backbone and not self._verified:
                errors.append(_NOT_LOADED)
        heads = {k.removeprefix("adapter.heads.") for k in keys if ".heads." in k}
        self.adapter.heads.read_anew()
        own = self.adapter.heads.own
        without = [name for name in own if name.replace(".", "/") not in heads]
        if heads and without:  # they would go on as the backbone, in silence as well
            known = sorted(key.replace("/", ".") for key in heads)
            errors.append(
                f"the checkpoint has no head for {listing(without)}; it has those of "
                f"{listing(known)}"
            )
        if holds_backbone:
            self._verified = False
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected, errors
        )

    # ------------------------------------------------------------------ copying

    def __reduce_ex__(self, protocol):
        # The class is made at run time; pickling rebuilds it from the ESPnet class.
        return _blank, (self.backbone_class,), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_passes"] = None  # of this process and its tensors only
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._passes = Passes()
        cache.adopt(self.adapter.heads.stored, self)
        if isinstance(self._default, selection._Unset):
            self._default = selection.UNSET


_NOT_LOADED = (
    "this checkpoint holds an adapter only, and the backbone it was trained on is not "
    "loaded: decode it with `espnet-hra decode` or "
    "`espnet_hra.Speech2Text` (pip install espnet-hra), which load and verify the "
    "backbone, instead of ESPnet's own inference"
)


class _AdaptedLayer:
    """A layer of the encoder, followed by a step of the adapter.

    Layers take ``x`` or ``(x, pos_emb)`` first, and return ``x``, ``(x, mask, ...)`` or
    ``((x, pos_emb), mask, ...)``; only x changes. Whatever else is asked of a layer is
    answered by the layer.
    """

    def __init__(
        self, layer: torch.nn.Module, index: int, after_layer: AfterLayer | None
    ):
        self._layer, self._index, self._after_layer = layer, index, after_layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._layer(*args, **kwargs)
        if self._after_layer is None:
            return output
        given = args[0] if args else next(iter(kwargs.values()))
        return self._adapt(output, given[0] if isinstance(given, tuple) else given)

    def _adapt(self, output: Any, given: torch.Tensor) -> Any:
        if isinstance(output, torch.Tensor):
            return self._after_layer(self._index, output, given)
        return (self._adapt(output[0], given), *output[1:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _private(layer: torch.nn.Module) -> torch.nn.Module:
    """A layer for one pass: ESPnet's attention keeps its weights on the module.

    It writes them to ``self.attn`` and reads them back, so that threads would take each
    other's. Copies of such modules share everything else, hooks included.
    """
    stateful = {
        name: shallow_copy(child)
        for name, child in layer._modules.items()
        if child is not None and "attn" in child.__dict__
    }
    if stateful:
        layer = shallow_copy(layer)
        layer._modules = {**layer._modules, **stateful}
    return layer


def _together(parts: Sequence[Any], order: torch.Tensor) -> Any:
    """One output of those of parts of a batch.

    Args:
        parts: Outputs of ``forward``: tensors (b_i, ...), maybe in tuples and lists;
            whatever else is in them is the same in all.
        order: Where in the parts, laid end to end, each utterance is.
    """
    first = parts[0]
    if isinstance(first, (tuple, list)):
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


def _blank(backbone_class: type) -> AdaptedEncoder:
    cls = wrap_encoder(backbone_class)
    return cls.__new__(cls)


def freeze_statistics(
    module: torch.nn.Module, mode: bool, except_under: str | None = None
) -> None:
    """Keep BatchNorm in evaluation mode: freezing its parameters is not enough.

    Args:
        module: Whose BatchNorm layers.
        mode: The training mode that was just set; nothing to do if it is False.
        except_under: Name of a child that is left alone.
    """
    if not mode:
        return
    for name, child in module.named_modules():
        if except_under and name.partition(".")[0] == except_under:
            continue
        if isinstance(child, torch.nn.modules.batchnorm._NormBase):
            child.eval()


@functools.cache
def wrap_encoder(backbone_class: type) -> type:
    """The adapted counterpart of an ESPnet encoder class.

    Args:
        backbone_class: For instance ``ConformerEncoder``.

    Returns:
        A subclass of :class:`AdaptedEncoder` and of `backbone_class`, whose signature
        lists the keys of both (ESPnet reads the default configuration from it).
    """
    own = inspect.signature(AdaptedEncoder.__init__).parameters
    theirs = inspect.signature(backbone_class.__init__).parameters
    compiling.leave_outside(AdaptedEncoder)
    keyword = inspect.Parameter.KEYWORD_ONLY
    merged = [p for p in theirs.values() if p.kind != inspect.Parameter.VAR_KEYWORD]
    merged += [own[key].replace(kind=keyword) for key in OWN_KEYS]

    def __init__(self, *args, **kwargs):
        AdaptedEncoder.__init__(self, *args, **kwargs)

    __init__.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    return type(
        f"HRA{backbone_class.__name__}",
        (AdaptedEncoder, backbone_class),
        {
            "__init__": __init__,
            "__doc__": f"{backbone_class.__name__} with an adapter and its tasks.",
            "__module__": __name__,
            "backbone_class": backbone_class,
        },
    )
