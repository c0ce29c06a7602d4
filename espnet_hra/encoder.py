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
from pathlib import Path
from typing import Any, ContextManager, Dict, Mapping, Optional, Sequence, Tuple, Union

import torch

from espnet_hra import selection, taskfile
from espnet_hra.adapters import build_adapter
from espnet_hra.adapters.base import AfterLayer
from espnet_hra.checkpointing import Passes, in_backward
from espnet_hra.errors import ConfigError, TaskError
from espnet_hra.fingerprint import FingerprintCache, fingerprint
from espnet_hra.names import check_task_name, listing

PREFIX = "hra_"

#: Keys of `encoder_conf` that are not the wrapped encoder's.
OWN_KEYS = ("adapter", "adapter_conf", "tasks", "backbone_fingerprint")


def read_tasks(tasks: Union[str, os.PathLike, Sequence[str], None]) -> Tuple[str, ...]:
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
        adapter: Name of the adapter, see :data:`espnet_hra.adapters.ADAPTERS`.
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
        adapter_conf: Optional[Dict[str, Any]] = None,
        tasks: Union[str, Sequence[str], None] = (),
        backbone_fingerprint: Optional[str] = None,
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
        self.adapter = build_adapter(
            adapter, self.output_size(), len(layers), adapter_conf
        )
        for name in read_tasks(tasks):
            self.adapter.add_task(name)
        self.expected_fingerprint = backbone_fingerprint
        self._verified = False
        self._backbone_cache = FingerprintCache()
        self._default: Any = selection.UNSET
        self._passes = Passes()
        freeze_statistics(self, self.training, except_under="adapter")

    # ------------------------------------------------------------------- forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped encoder's ``forward``, with the chosen tasks.

        Raises:
            TaskError: Several tasks and no choice, or a choice that does not fit.
            RuntimeError: The backbone's weights are not those that the configuration
                names.
        """
        if self.expected_fingerprint is not None and not self._verified:
            self.verify_backbone()
        xs_pad = args[0] if args else kwargs["xs_pad"]
        names = self._passes.repeated(xs_pad) if in_backward() else None
        if names is None:
            names = (
                selection.resolve(
                    self, self._default, self.adapter.heads, xs_pad.size(0)
                )
                or ()
            )
            self._passes.record(xs_pad, names)
        view = self._view(self.adapter.begin(names) if names else None)
        return self.backbone_class.forward(view, *args, **kwargs)

    def _view(self, after_layer: Optional[AfterLayer]) -> "AdaptedEncoder":
        """A shallow copy whose layers are each followed by a step of the adapter."""
        layers = _shallow_copy(self.encoders)
        layers._modules = {
            key: _AdaptedLayer(_private(layer), i, after_layer)
            for i, (key, layer) in enumerate(self.encoders._modules.items())
        }
        view = _shallow_copy(self)
        view._modules = {**self._modules, "encoders": layers}
        return view

    def _replicate_for_data_parallel(self) -> "AdaptedEncoder":
        raise RuntimeError(
            "torch.nn.DataParallel is not supported: use DistributedDataParallel "
            "(in ESPnet: --multiprocessing_distributed true)"
        )

    def train(self, mode: bool = True) -> "AdaptedEncoder":
        """As ``Module.train``, but the frozen BatchNorm statistics do not move."""
        super().train(mode)
        freeze_statistics(self, mode, except_under="adapter")
        return self

    # --------------------------------------------------------------------- tasks

    @property
    def tasks(self) -> Tuple[str, ...]:
        """Names of the tasks."""
        return self.adapter.tasks

    @property
    def chosen_task(self) -> selection.Choice:
        """The choice in force in this thread.

        None for the plain backbone, a name, or a tuple with one name per utterance.

        Raises:
            TaskError: No choice among several tasks.
        """
        return selection.current(self, self._default, self.adapter.heads)

    def set_task(self, task: Union[None, str, Sequence[str]]) -> None:
        """Choose the task of the following batches, for all threads.

        Args:
            task: A name for the whole batch, one name per utterance, or None for the
                plain backbone.

        Raises:
            TaskError: A task is unknown.
        """
        self._default = selection.as_choice(task, self.adapter.heads)

    def use_task(self, task: Union[None, str, Sequence[str]]) -> ContextManager[None]:
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
        self.adapter.add_task(name)

    def remove_task(self, name: str) -> None:
        """Forget a task; if it was chosen by `set_task`, no task is chosen any more.

        Raises:
            TaskError: The task is unknown.
        """
        self.adapter.heads.remove(name)
        chosen = self._default
        if chosen == name or (isinstance(chosen, tuple) and name in chosen):
            self._default = selection.UNSET

    def save_task(self, name: str, path: Union[str, os.PathLike]) -> None:
        """Write a task to a safetensors file, with the fingerprints of what it needs.

        Raises:
            TaskError: The task is unknown.
        """
        taskfile.save(path, name, self.adapter.heads.tensors(name), self._identity())

    def load_task(self, path: Union[str, os.PathLike], *, replace: bool = False) -> str:
        """Add the task of a file, under the name that stands in it.

        Args:
            path: A file of :meth:`save_task`.
            replace: Whether it may take the place of a task of the same name.

        Returns:
            The name of the task.

        Raises:
            TaskError: The file is damaged, was made for another backbone, controller or
                head, or its name is taken.
        """
        name, tensors = taskfile.load(path, self.adapter.heads.layout, self._identity())
        if name in self.adapter.heads and not replace:
            raise TaskError(
                f"{path}: task {name!r} exists already; load it with replace=True, or "
                "remove the other first"
            )
        self.adapter.heads.put(name, tensors, like=next(self.adapter.parameters()))
        return name

    # -------------------------------------------------------------- verification

    def backbone_tensors(self) -> Dict[str, torch.Tensor]:
        """Parameters and buffers of the wrapped encoder, under its own keys."""
        state = torch.nn.Module.state_dict(self, keep_vars=True)
        return {k: v for k, v in state.items() if not k.startswith("adapter.")}

    @property
    def backbone_fingerprint(self) -> str:
        """Fingerprint of the wrapped encoder's weights."""
        return self._backbone_cache.get(self.backbone_tensors())

    @property
    def controller_fingerprint(self) -> str:
        """Fingerprint of what all tasks share."""
        # Not cached: fused optimizers write without torch counting it.
        return fingerprint(self.adapter.shared_parameters().items())

    def _identity(self) -> Mapping[str, Any]:
        return {
            "config": self.adapter.config,
            "backbone": self.backbone_fingerprint,
            "controller": self.controller_fingerprint,
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
        without = [name for name in self.tasks if name.replace(".", "/") not in heads]
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

    def __getstate__(self) -> Dict[str, Any]:
        state = self.__dict__.copy()
        state["_passes"] = None  # of this process and its tensors only
        return state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        self._passes = Passes()
        if isinstance(self._default, selection._Unset):
            self._default = selection.UNSET


_NOT_LOADED = (
    "this checkpoint holds a hierarchical recurrent adapter only, and the backbone it "
    "was trained on is not loaded: decode it with `espnet-hra decode` or "
    "`espnet_hra.Speech2Text` (pip install espnet-hra), which load and verify the "
    "backbone, instead of ESPnet's own inference"
)


class _AdaptedLayer:
    """A layer of the encoder, followed by a step of the adapter.

    Layers return ``x``, ``(x, mask, ...)`` or ``((x, pos_emb), mask, ...)``; only x
    changes. Whatever else is asked of a layer is answered by the layer.
    """

    def __init__(
        self, layer: torch.nn.Module, index: int, after_layer: Optional[AfterLayer]
    ):
        self._layer, self._index, self._after_layer = layer, index, after_layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._layer(*args, **kwargs)
        return output if self._after_layer is None else self._adapt(output)

    def _adapt(self, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return self._after_layer(self._index, output)
        return (self._adapt(output[0]), *output[1:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _private(layer: torch.nn.Module) -> torch.nn.Module:
    """A layer for one pass: ESPnet's attention keeps its weights on the module.

    It writes them to ``self.attn`` and reads them back, so that threads would take each
    other's. Copies of such modules share everything else, hooks included.
    """
    stateful = {
        name: _shallow_copy(child)
        for name, child in layer._modules.items()
        if child is not None and "attn" in child.__dict__
    }
    if stateful:
        layer = _shallow_copy(layer)
        layer._modules = {**layer._modules, **stateful}
    return layer


def _shallow_copy(module: torch.nn.Module) -> torch.nn.Module:
    copied = module.__class__.__new__(module.__class__)
    copied.__dict__.update(module.__dict__)
    return copied


def _blank(backbone_class: type) -> AdaptedEncoder:
    cls = wrap_encoder(backbone_class)
    return cls.__new__(cls)


def freeze_statistics(
    module: torch.nn.Module, mode: bool, except_under: Optional[str] = None
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


@functools.lru_cache(maxsize=None)
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
