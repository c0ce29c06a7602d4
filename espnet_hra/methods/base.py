"""What a method of adaptation is: the small protocol behind the key `adapter:`.

For one forward pass a method may act in two ways. It may change what each layer hands
to the next (:meth:`Adapter.after_layers`), or let others stand in the place of
parameters and modules of the encoder (:meth:`Adapter.changes`). In both cases nothing
is written to the encoder itself, and the method sees the tensors of the tasks at hand,
not the tasks.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from espnet_hra.errors import ConfigError
from espnet_hra.methods.checks import check_choice, check_number, check_size, is_number
from espnet_hra.methods.classify import pooled_size
from espnet_hra.methods.parts import (
    DecoderPart,
    OwnProjection,
    in_decoder,
    initialise_part,
)
from espnet_hra.methods.substitution import REENTRANT, Change
from espnet_hra.tasks.bank import ALL, Initialise, OneForAll, TaskBank, zeros
from espnet_hra.tasks.layout import Section, Tensors


@dataclass(frozen=True)
class Backbone:
    """What a method may know of the encoder, before the adapter is attached to it.

    Attributes:
        module: The encoder.
        width: Width d of what its layers return.
        layers: Its layers, in order.
        path: Dotted path of their list within the encoder.
        kind: ``encoder``, or ``decoder`` where it is the attention decoder.
        indices: Where in that list the layers are; None if they are all of it.
    """

    module: torch.nn.Module
    width: int
    layers: Sequence[torch.nn.Module]
    path: str
    kind: str = "encoder"
    indices: Sequence[int] | None = None

    @property
    def named(self) -> dict[str, torch.nn.Module]:
        """Its layers, by their dotted paths within the encoder."""
        indices = range(len(self.layers)) if self.indices is None else self.indices
        return {f"{self.path}.{i}": layer for i, layer in zip(indices, self.layers)}


class OnePass:
    """What happens after each layer, for one pass over the depth of the encoder.

    All state of a pass is kept here and not on the method's module: so threads, nested
    calls and activation checkpointing cannot mix it up.

    Attributes:
        ended: Whether the pass is over. A layer that runs later is one that activation
            checkpointing runs again.
    """

    #: What would be lost by reentrant checkpoints, for the message.
    what = "the adapter"

    def __init__(self) -> None:
        self.grad = torch.is_grad_enabled()
        self.ended = False

    def __call__(
        self, index: int, x: torch.Tensor, given: torch.Tensor
    ) -> torch.Tensor:
        """What the next layer receives. Arguments as of :meth:`step`.

        Raises:
            RuntimeError: In reentrant checkpoints. They run layers without gradients
                first, and give gradients to nothing but their inputs: what the tasks
                own would silently learn nothing.
        """
        if self.grad and not self.ended and not torch.is_grad_enabled():
            raise RuntimeError(REENTRANT.format(self.what))
        return self.step(index, x, given)

    def step(self, index: int, x: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """One layer.

        Args:
            index: Which layer, from 0.
            x: Its output, (b, ..., d).
            given: Its input, (b, ..., d).

        Returns:
            What the next layer receives, (b, ..., d).
        """
        return x

    def restart(self) -> None:
        """Say that what comes has other frames: nothing can be taken over to them."""

    def end(self) -> None:
        """Say that the pass is over."""
        self.ended = True


class Adapter(torch.nn.Module):
    """A method: a module that lives at ``encoder.adapter``.

    A subclass takes the backbone and its own keys of ``adapter_conf``, and keeps no
    reference to the backbone. The keys that all methods have are those of
    :meth:`configure`.

    Args:
        config: Name, sizes and choices that a task's file must agree with; ``adapter``
            and ``width`` at least.
        shapes: Names and shapes of the tensors that a task has.
        initialise: Fills a new task's tensors in place, so that it changes nothing yet.

    Attributes:
        heads: The parameters of the tasks.
        common: What they would have, once for all of them (``one_for_all: true``);
            they then have nothing. None otherwise.
        mixes: Whether one pass can serve utterances of several tasks. Where it is
            False, the encoder runs a mixed batch task by task.
        quantizes: Whether tasks work on a backbone with quantised weights: where they
            change its parameters themselves, they cannot.
        default_ctc: The key ``ctc`` of a model that does not say.
        ctc: The tasks' CTC projections; None if they have none.
        keys: The method's own keys of ``adapter_conf``, as they were given.
        adapts_decoder: Whether the attention decoder's layers are adapted as well.
        decoder: The method on these layers, once the decoder is there.
        backbone_dropout: Whether the frozen backbone drops out while tasks are
            trained.
        shared_rate: See :meth:`configure` and :mod:`espnet_hra.encoder.rates`.
    """

    mixes = True
    quantizes = True
    default_ctc = "frozen"

    def __init__(
        self,
        config: Mapping[str, Any],
        shapes: Mapping[str, Sequence[int]],
        initialise: Initialise = zeros,
    ):
        super().__init__()
        self.own_config = dict(config)
        self.heads = TaskBank(shapes, initialise, pooled_size(self.width))
        self.common: OneForAll | None = None
        self.ctc: OwnProjection | None = None
        self.backbone_dropout = False
        self.keys: dict[str, Any] = {}
        self.adapts_decoder = False
        self.decoder: DecoderPart | None = None
        self.shared_rate = 1.0
        self._initialise = initialise

    def configure(
        self,
        regime: str = "joint",
        ctc: str = "frozen",
        vocab_size: int | None = None,
        new_tokens: Sequence[str] | None = None,
        backbone_dropout: bool = False,
        decoder: bool = False,
        one_for_all: bool = False,
        shared_rate: float = 1.0,
    ) -> None:
        """Set what every method can be asked for. Once, before there are tasks.

        Args:
            regime: ``joint`` trains what tasks share with the tasks; ``new_task``
                freezes it. Where nothing is shared, both are the same.
            ctc: ``frozen``: the CTC projection is the backbone's. ``task``: every task
                adds its own to it.
            vocab_size: Number of tokens, for ``ctc: task``.
            new_tokens: Tokens that the backbone does not have, for ``ctc: task``.
            backbone_dropout: Whether the backbone drops out in training, at the rates
                that its configuration names. What is frozen cannot overfit; without
                dropout, training is faster as well.
            decoder: Whether the layers of the attention decoder are adapted as well.
            one_for_all: Whether all tasks share what each would have for itself: the
                control that shows what tasks of their own bring.
            shared_rate: What is shared beside (a controller, a head or matrices that
                all tasks have) learns at this multiple of the optimizer's rate.

        Raises:
            ConfigError: A value is not possible.
        """
        check_choice("one_for_all", one_for_all, (False, True))
        positive = is_number(shared_rate) and shared_rate > 0
        check_number("shared_rate", shared_rate, positive, "above 0")
        self.shared_rate = float(shared_rate)
        if one_for_all:
            self._share_all(regime)
        # Optimizers count parameters in this order: what is shared, then the tasks.
        self._modules["heads"] = self._modules.pop("heads")
        check_choice("ctc", ctc, ("frozen", "task"))
        check_choice("backbone_dropout", backbone_dropout, (False, True))
        check_choice("decoder", decoder, (False, True))
        self.regime = regime
        self.backbone_dropout = backbone_dropout
        self.adapts_decoder = decoder
        if ctc == "frozen":
            return
        if vocab_size is None:
            raise ConfigError(
                "adapter_conf: ctc: 'task' needs to know how many tokens there are: "
                "the trainer takes it from the token list; for an encoder without a "
                "model, give vocab_size"
            )
        check_size("vocab_size", vocab_size)
        section = self._extend(
            {"ctc.weight": (vocab_size, self.width), "ctc.bias": (vocab_size,)}
        )
        self.ctc = OwnProjection(section, vocab_size, list(new_tokens or ()))

    def add_decoder(self, backbone: Backbone) -> None:
        """Adapt the layers of the attention decoder as well. Once, before training.

        Tasks that exist are made anew: their vectors grow.

        Args:
            backbone: The decoder.

        Raises:
            ConfigError: The method cannot adapt it.
        """
        method: Callable[..., Adapter] = type(self)
        regime, part = self.regime, method(backbone, **self.keys)
        part.follow(self)
        self.regime = regime  # of what the decoder has added to the shared, too
        self._modules["heads"] = self._modules.pop("heads")  # the last, as before
        shapes = part.heads.layout.shapes
        section = self._extend(
            in_decoder(shapes),
            functools.partial(initialise_part, part._initialise),
        )
        self.decoder = DecoderPart(part, self.bank, section)

    def _share_all(self, regime: str) -> None:
        """Make one vector of what tasks would have, and leave them nothing."""
        if regime == "new_task":
            raise ConfigError(
                "adapter_conf: one_for_all: true leaves a task nothing of its own, and "
                "regime: new_task freezes what is shared: take one of the two"
            )
        shapes = self.heads.layout.shapes
        self.common = OneForAll(shapes, self._initialise)
        self.common.add(ALL, torch.empty(0))
        self.heads = TaskBank({}, pooled=pooled_size(self.width))

    def _extend(
        self, shapes: Mapping[str, Sequence[int]], initialise: Initialise = zeros
    ) -> Section:
        """Give tasks further tensors; those that exist are made anew."""
        like = next(self.parameters(), torch.empty(0)).detach()
        labels = {name: self.bank.labels_of(name) for name in self.bank.own}
        for name in labels:
            self.bank.remove(name)
        section = self.bank.extend(shapes, initialise)
        for name, own in labels.items():
            self.bank.add(name, like, own)
        return section

    @property
    def bank(self) -> TaskBank:
        """Where the tensors of a pass come from."""
        return self.heads if self.common is None else self.common

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self.heads.names

    @property
    def in_one_pass(self) -> bool:
        """Whether one pass serves utterances of several tasks, see :attr:`mixes`."""
        return self.mixes or self.common is not None

    @property
    def width(self) -> int:
        """Width d of the encoder."""
        return self.own_config["width"]

    @property
    def config(self) -> dict[str, Any]:
        """What a task's head and the shared part must agree on."""
        config = dict(self.own_config)
        if self.ctc is not None:
            config.update(ctc="task", vocab_size=self.ctc.vocab_size)
            if self.ctc.new_tokens:
                config["new_tokens"] = self.ctc.new_tokens
        if self.adapts_decoder:
            config["decoder"] = True
        if self.common is not None:
            config["one_for_all"] = True
        return config

    # ------------------------------------------------------------ what a method says

    def after_layers(self, tensors: Tensors) -> OnePass:
        """Start a pass over the depth of the encoder.

        Args:
            tensors: Of the task, of the shapes that the constructor was given; or of
                one task per utterance of the batch, with a leading batch axis.
        """
        return OnePass()

    def changes(self, tensors: Tensors) -> Mapping[str, Change]:
        """What a pass changes within the encoder, by dotted path.

        Asked for only where :attr:`mixes` is False.

        Args:
            tensors: Of the task, of the shapes that the constructor was given.
        """
        return {}

    def shared_changes(self) -> Mapping[str, Change]:
        """What every pass with tasks changes within the encoder, whichever they are."""
        return {}

    def pass_dtype(self) -> torch.dtype | None:
        """The type in which a pass computes with the tensors; None for their own."""
        return None

    def follow(self, encoder: Any) -> None:
        """Share with the method on the encoder what both have; this is the decoder's.

        Args:
            encoder: The same method with the same keys, on the encoder.

        Raises:
            ConfigError: They cannot share it.
        """

    def rates(self) -> Mapping[str, float]:
        """Tensors of a task that learn at another rate, as multiples of it, by name."""
        return {}

    def shared_rates(self) -> Mapping[str, torch.Tensor]:
        """The same for what is shared: a number, or one for each of its values."""
        if self.shared_rate == 1.0:
            return {}
        rate = torch.tensor(self.shared_rate)
        names = self.shared_parameters()
        return {name: rate for name in names if not name.startswith("common.")}

    def reset_shared(self) -> None:
        """Initialise what all tasks share."""

    def count(self) -> tuple[int, int]:
        """Parameters from the method's arithmetic: shared, and of each task.

        Both without the CTC projection.
        """
        raise NotImplementedError

    def own_macs(self) -> int:
        """Multiply-accumulates that the method adds per encoder frame."""
        raise NotImplementedError

    # --------------------------------------------------------------------- parameters

    def shared_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Parameters that all tasks share, by name."""
        return {
            name: p
            for name, p in self.named_parameters()
            if not name.startswith("heads.")
        }

    @property
    def regime(self) -> str:
        """``joint`` or ``new_task``; setting it freezes or frees what is shared."""
        shared = self.shared_parameters().values()
        frozen = shared and not any(p.requires_grad for p in shared)
        return "new_task" if frozen else "joint"

    @regime.setter
    def regime(self, value: str) -> None:
        check_choice("regime", value, ("joint", "new_task"))
        for p in self.shared_parameters().values():
            p.requires_grad_(value == "joint")

    def train(self, mode: bool = True) -> Self:
        """As ``Module.train``."""
        if self.decoder is not None:  # which is no submodule: tasks are in one place
            self.decoder.method.train(mode)
        return super().train(mode)

    def espnet_initialization_fn(self) -> None:
        """ESPnet's ``--init`` rewrites every matrix; a new task must stay neutral."""
        self.reset_shared()
        for name in self.bank.own:
            self.bank.initialise(self.bank.vector(name))

    def all_rates(self) -> dict[str, float]:
        """As :meth:`rates`, with the tensors for the decoder."""
        rates = dict(self.rates())
        if self.decoder is not None:
            rates.update(in_decoder(self.decoder.method.rates()))
        return rates

    # -------------------------------------------------------------------- computation

    def begin(self, names: Sequence[str]) -> OnePass:
        """Start a pass with these tasks: one per utterance of the batch, or one.

        Raises:
            TaskError: A task is unknown.
        """
        return self.after_layers(self._own_tensors(names, self.pass_dtype()))

    def changes_for(self, name: str) -> Mapping[str, Change]:
        """What a pass with this task changes within the encoder, by dotted path.

        Raises:
            TaskError: The task is unknown.
        """
        shared = self.shared_changes()
        if self.mixes:
            return shared
        return {**shared, **self.changes(self._own_tensors([name], None))}

    def _own_tensors(self, names: Sequence[str], dtype: torch.dtype | None) -> Tensors:
        return self.bank.gather(names, dtype, self.bank.layout.sections[0])

    def projection(self, names: Sequence[str], dtype: torch.dtype) -> Tensors:
        """What tasks add to the CTC projection: `weight` (v, d) and `bias` (v).

        Args:
            names: One task per utterance of the batch, or one for all; with one per
                utterance the tensors have a leading batch axis.
            dtype: Type to compute in.
        """
        assert self.ctc is not None, "asked for with ctc: task only"
        tensors = self.bank.gather(names, dtype, self.ctc.section)
        return {name.removeprefix("ctc."): t for name, t in tensors.items()}

    # --------------------------------------------------------------------- arithmetic

    def formula(self) -> dict[str, int]:
        """Parameter counts from arithmetic: ``shared``, ``per_task``."""
        shared, per_task = self.count()
        if self.decoder is not None:
            per_task += self.decoder.method.count()[1]
        per_task += sum(self._projection_counts())
        if self.common is not None:
            shared, per_task = shared + per_task, 0
        return {"shared": shared, "per_task": per_task}

    def macs(self) -> int:
        """Multiply-accumulates that the adapter adds per encoder frame.

        One for each weight of a matrix; biases and norms are left out, as usual.
        """
        weights, _ = self._projection_counts()
        return self.own_macs() + weights

    def decoder_macs(self) -> int:
        """Multiply-accumulates that the adapter adds per token of the decoder."""
        return 0 if self.decoder is None else self.decoder.method.own_macs()

    def _projection_counts(self) -> tuple[int, int]:
        """Weights and biases of a task's CTC projection."""
        tokens = 0 if self.ctc is None else self.ctc.vocab_size
        return self.width * tokens, tokens


def count_weights(shapes: Iterable[Sequence[int]]) -> int:
    """Number of values of these shapes."""
    return sum(torch.Size(shape).numel() for shape in shapes)
