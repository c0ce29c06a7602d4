"""Any ESPnet encoder with a list of layers, frozen, with an adapter.

Nothing of the encoder is copied or changed. A forward pass runs the encoder's own
``forward`` on a *view* of the encoder, see :mod:`espnet_hra.encoder.view`; whatever the
encoder does with its layers (intermediate CTC, conditioning, stochastic depth, layer
drop) goes on as it was.
"""

import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import torch

from espnet_hra.encoder import compiling, effect, folder, mixed, selection, stepping
from espnet_hra.encoder.checkpointing import Passes, in_backward
from espnet_hra.encoder.chunks import TakesChunks
from espnet_hra.encoder.freezing import (
    freeze_dropout,
    freeze_statistics,
    learn_at_once,
)
from espnet_hra.encoder.identity import Identity
from espnet_hra.encoder.interface import TaskInterface
from espnet_hra.encoder.layers import find_layers
from espnet_hra.encoder.view import view
from espnet_hra.methods import build_adapter
from espnet_hra.methods.base import OnePass
from espnet_hra.tasks.config import Tasks, read_records
from espnet_hra.tasks.fingerprint import walk

#: Keys of `encoder_conf` that are not the wrapped encoder's.
OWN_KEYS = ("adapter", "adapter_conf", "tasks", "backbone_fingerprint")


#: What a training by ESPnet's own task is told.
STOCK_TASK = (
    "{} trains this model, and knows nothing of a frozen base: it would stay random, "
    "or decoder and CTC would be trained as well. Give the same options to `espnet-hra "
    "train` (python -m espnet_hra.bin.asr_train), and the base as --pretrained_model. "
    "With ESPnet3: task: espnet_hra.task.HRATask, and the base as pretrained_model in "
    "the section model"
)


class AdaptedEncoder(TaskInterface, torch.nn.Module):
    """Mixin that puts an adapter and its tasks on an ESPnet encoder class.

    The encoder's parameters and BatchNorm statistics are frozen, its ``state_dict``
    keys unchanged; what is added lives under ``adapter.``.

    Args:
        input_size: Dimension of the features.
        adapter: Name of the method, see :data:`espnet_hra.methods.METHODS`.
        adapter_conf: Its configuration.
        tasks: Names of the tasks, with a record for each that classifies, or the path
            of a file with one of them a line; see
            :func:`espnet_hra.tasks.config.read_records`.
        backbone_fingerprint: Fingerprint that the backbone's weights must have before
            the first forward pass; saved configurations carry it.
        **backbone_conf: Every key of the wrapped encoder.

    Attributes:
        adapter: The method, and the parameters of all tasks.
        layer_list: Where the encoder keeps its layers.
        surroundings: What surrounds the encoder, if it is known: fingerprints of the
            base's other parts (`base`) and of the token list (`tokens`). Task files
            name them too.

    Raises:
        ConfigError: The encoder does not keep a list of layers, or the adapter's
            configuration is not possible.
        TaskError: A task name is not valid.
    """

    #: The ESPnet class that is wrapped.
    backbone_class: Any

    def __init__(
        self,
        input_size: int,
        adapter: str = "hra",
        adapter_conf: dict[str, Any] | None = None,
        tasks: Tasks = (),
        backbone_fingerprint: str | None = None,
        **backbone_conf: Any,
    ):
        super().__init__(input_size, **backbone_conf)
        self.layer_list = find_layers(self, self.backbone_class.__name__)
        self.requires_grad_(False)  # before the adapter, which learns, is there
        learn_at_once(self)
        self.adapter = build_adapter(
            adapter, self.layer_list.backbone(self), adapter_conf
        )
        self._default: Any = selection.UNSET
        for record in read_records(tasks):
            self.add_task(record.name, record.labels)
        self.surroundings: dict[str, Any] = {}
        self._identity = Identity(backbone_fingerprint)
        self._passes = Passes()
        self._stock_task = _built_by_stock_task()
        self.train(self.training)

    # ------------------------------------------------------------------- forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped encoder's ``forward``, with the chosen tasks.

        Raises:
            TaskError: Several tasks and no choice, or a choice that does not fit.
            RuntimeError: The backbone's weights are not those that the configuration
                names, or ESPnet's own task trains it.
        """
        with self.adapter.heads.hold():
            names = self._names(args[0] if args else next(iter(kwargs.values())))
            together = self.adapter.in_one_pass and (
                self.layer_list.batch_first or self.adapter.common is not None
            )
            if len(set(names)) > 1 and not together:
                output = mixed.task_by_task(
                    names,
                    self._run,
                    mixed.by_name(self.backbone_class.forward, args, kwargs),
                )
            else:
                output = self._run(names, args, kwargs)
            effect.note(names, output, lambda: self._run((), args, kwargs))
            return output

    def _names(self, xs_pad: torch.Tensor) -> tuple[str, ...]:
        """The tasks of a pass: none, one, or one per utterance."""
        self.verify_backbone()
        if self._stock_task and self.training and torch.is_grad_enabled():
            raise RuntimeError(STOCK_TASK.format(self._stock_task))
        names = self._passes.repeated(xs_pad) if in_backward() else None
        if names is None:
            names = self.tasks_of_batch(xs_pad.size(0))
            self._passes.record(xs_pad, names)
        return names

    def _run(
        self, names: tuple[str, ...], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """One pass with these tasks: none, one, or one per utterance."""
        prepared, after_layer = self._prepared(names)
        # An intermediate CTC that is fed back must meet the tasks of this very pass.
        choice = names if len(names) > 1 else next(iter(names), None)
        with selection.block(self, choice):
            try:
                return self.backbone_class.forward(prepared, *args, **kwargs)
            finally:
                if after_layer is not None:
                    after_layer.end()

    def _prepared(
        self, names: tuple[str, ...]
    ) -> tuple["AdaptedEncoder", OnePass | None]:
        """A view of the encoder for one pass, and what ends with the pass."""
        if not names:
            return view(self, self.layer_list, None, {}), None
        if self.adapter.ctc is not None and not self.adapter.ctc.attached:
            raise RuntimeError(
                "the tasks have CTC projections of their own (ctc: task), and this "
                "model's CTC does not use them: decode with `espnet-hra decode` or "
                "`espnet_hra.Speech2Text`, or call espnet_hra.espnet.ctc.attach(model)"
            )
        if self.adapter.adapts_decoder and self.adapter.decoder is None:
            raise RuntimeError(
                "the tasks adapt the attention decoder as well (decoder: true), and "
                "this encoder belongs to no model: decode with `espnet-hra decode` or "
                "`espnet_hra.Speech2Text`, or call "
                "espnet_hra.encoder.attention_decoder.attach(model)"
            )
        after_layer = self.adapter.begin(names)
        changes = self.adapter.changes_for(names[0])
        return view(self, self.layer_list, after_layer, changes), after_layer

    # ----------------------------------------------------------------- as a module

    def like(self) -> torch.Tensor:
        """A tensor of the device and type that tasks have."""
        # Without controller or tasks, the adapter has no parameters.
        like = next(self.adapter.parameters(), None)
        return (next(self.parameters()) if like is None else like).detach()

    def train(self, mode: bool = True) -> "AdaptedEncoder":
        """As ``Module.train``, but for what the frozen backbone keeps of evaluation.

        These are its BatchNorm statistics, which do not move, and with
        ``adapter_conf: {backbone_dropout: false}`` its dropout.
        """
        super().train(mode)
        freeze_statistics(self, mode, except_under="adapter")
        if not self.adapter.backbone_dropout:
            freeze_dropout(self, mode, except_under="adapter")
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # ESPnet's models add a layer later: the one that feeds an intermediate CTC
        # back. It belongs to the backbone.
        later = "adapter" in self.__dict__.get("_modules", {}) and name != "adapter"
        if later and isinstance(value, torch.nn.Module):
            value.requires_grad_(False)

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        """As ``Module.parameters``, quick with many tasks as well."""
        return stepping.parameters(self) if recurse else super().parameters(False)

    def _replicate_for_data_parallel(self) -> "AdaptedEncoder":
        raise RuntimeError(
            "torch.nn.DataParallel is not supported: use DistributedDataParallel "
            "(in ESPnet: --multiprocessing_distributed true)"
        )

    # -------------------------------------------------------------- verification

    def backbone_tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers of the wrapped encoder, under its own keys."""
        tensors = dict(walk(self, without="adapter"))
        # HuBERT counts the steps of its training, which say nothing about its weights.
        return {k: v for k, v in tensors.items() if not k.endswith("global_step")}

    @property
    def backbone_fingerprint(self) -> str:
        """Fingerprint of the wrapped encoder's weights."""
        return self._identity.backbone(self.backbone_tensors())

    def stand_for(self, backbone: str) -> None:
        """Take tasks of the backbone that this one is a rounded copy of.

        Args:
            backbone: Its fingerprint, which is this encoder's from now on.
        """
        self._identity.stand_for(backbone)

    @property
    def controller_fingerprint(self) -> str:
        """Fingerprint of what all tasks share."""
        return self._identity.controller(self.adapter)

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

    def verify_backbone(self, expected: str | None = None) -> None:
        """Check, once, that the backbone has the weights that were asked for.

        Args:
            expected: Fingerprint that is asked for from now on; None for the one that
                the configuration has named, if any.

        Raises:
            RuntimeError: It has others (for instance random ones, because only the
                adapter's checkpoint was loaded).
        """
        if expected is not None:
            self._identity.expect(expected)
        self._identity.verify(lambda: self.backbone_fingerprint)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors
    ) -> None:
        self.adapter.heads.read_anew()
        keys = [key[len(prefix) :] for key in state_dict if key.startswith(prefix)]
        # Errors that are added here are raised whatever `strict` is.
        errors += self._identity.check_state(keys, self.adapter.heads.own)
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
        if self.adapter.heads.stored is not None:
            self.adapter.heads.stored.adopt(folder.reader_for(self))


def _built_by_stock_task() -> str:
    """Name of the ESPnet task that builds an encoder, if it is not ours; else "".

    ESPnet's tasks give an encoder no sign of who builds it, so the callers are asked.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("espnet2.tasks.", "espnet3.systems.")):
            builder = frame.f_locals.get("cls")
            if getattr(builder, "freezes_base", False):
                return ""
            return getattr(builder, "__name__", module)
        frame = frame.f_back
    return ""


def _blank(backbone_class: type) -> AdaptedEncoder:
    cls: type[AdaptedEncoder] = wrap_encoder(backbone_class)
    return cls.__new__(cls)


@functools.cache
def wrap_encoder(backbone_class: Any) -> type:
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
    chunks = (TakesChunks,) if hasattr(backbone_class, "chunk_forward") else ()
    return type(
        f"HRA{backbone_class.__name__}",
        (AdaptedEncoder, *chunks, backbone_class),
        {
            "__init__": __init__,
            "__doc__": f"{backbone_class.__name__} with an adapter and its tasks.",
            "__module__": __name__,
            "backbone_class": backbone_class,
        },
    )
