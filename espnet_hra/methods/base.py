"""What an adapter is to the encoder: the small protocol behind the key `adapter:`.

For one forward pass an adapter may act in two ways. It may change what each layer hands
to the next (:meth:`Adapter.begin`), or let others stand in the place of parameters and
modules of the encoder (:meth:`Adapter.changes`). In both cases nothing is written to
the encoder itself.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from espnet_hra.errors import ConfigError
from espnet_hra.tasks.bank import Section, TaskBank, Tensors

#: Called after each layer: (index of the layer, its output [b, ..., d], its input
#: [b, ..., d]) -> what the next layer receives, of the same shape.
AfterLayer = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]

#: What stands in for a parameter or module of the encoder: a function of the original.
Change = Callable[[Any], Any]

#: The encoder's own parameters and modules, before the adapter is attached to it.
Backbone = torch.nn.Module

REENTRANT = (
    "reentrant activation checkpointing of single layers would lose the gradient of "
    "{}: call torch.utils.checkpoint.checkpoint with use_reentrant=False"
)


class OnePass:
    """An :data:`AfterLayer` that hands on what the layer returned.

    Reentrant checkpoints run layers without gradients first, and give gradients to
    nothing but their inputs: what the tasks own would silently learn nothing.

    Attributes:
        ended: Whether the pass is over; the encoder sets it. A layer that runs later
            is one that activation checkpointing runs again.
    """

    def __init__(self) -> None:
        self.grad = torch.is_grad_enabled()
        self.ended = False

    def __call__(
        self, index: int, x: torch.Tensor, given: torch.Tensor
    ) -> torch.Tensor:
        if self.grad and not torch.is_grad_enabled():
            raise RuntimeError(REENTRANT.format("the adapter"))
        return x


class Adapter(torch.nn.Module):
    """A module that lives at ``encoder.adapter`` and changes what the encoder computes.

    The state of a pass belongs to what :meth:`begin` and :meth:`changes` return and not
    to the module: so threads, nested calls and activation checkpointing cannot mix it
    up.

    A subclass takes the backbone and its own keys of ``adapter_conf``, keeps no
    reference to the backbone, and sets :attr:`heads` and :attr:`own_config`. The keys
    that all adapters have are those of :meth:`configure`.

    Attributes:
        heads: The parameters of the tasks.
        mixes: Whether one pass can serve utterances of several tasks. Where it is
            False, the encoder runs a mixed batch task by task.
        default_ctc: The key ``ctc`` of a model that does not say.
        ctc: Where in a task's vector its CTC projection is; None if it has none.
        projects: Whether a model's CTC asks for these projections.
        backbone_dropout: Whether the frozen backbone drops out while tasks are
            trained.
        own_config: Name, sizes and choices that a task's file must agree with.
    """

    heads: TaskBank
    mixes = True
    default_ctc = "frozen"
    own_config: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.ctc: Section | None = None
        self.projects = False
        self.backbone_dropout = False
        self.vocab_size = 0
        self.new_tokens: list[str] = []

    def configure(
        self,
        regime: str = "joint",
        ctc: str = "frozen",
        vocab_size: int | None = None,
        new_tokens: Sequence[str] | None = None,
        backbone_dropout: bool = False,
    ) -> None:
        """Set what every adapter can be asked for. Once, before there are tasks.

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

        Raises:
            ConfigError: A value is not possible.
        """
        check_choice("ctc", ctc, ("frozen", "task"))
        check_choice("backbone_dropout", backbone_dropout, (False, True))
        self.regime = regime
        self.backbone_dropout = backbone_dropout
        if ctc == "frozen":
            return
        if vocab_size is None:
            raise ConfigError(
                "adapter_conf: ctc: 'task' needs to know how many tokens there are: "
                "the trainer takes it from the token list; for an encoder without a "
                "model, give vocab_size"
            )
        check_size("vocab_size", vocab_size)
        self.vocab_size, self.new_tokens = vocab_size, list(new_tokens or ())
        self.ctc = self.heads.extend(
            {"ctc.weight": (vocab_size, self.width), "ctc.bias": (vocab_size,)}
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self.heads.names

    @property
    def width(self) -> int:
        """Width d of the encoder."""
        return self.own_config["width"]

    @property
    def config(self) -> dict[str, Any]:
        """What a task's head and the shared part must agree on."""
        config = dict(self.own_config)
        if self.ctc is not None:
            config.update(ctc="task", vocab_size=self.vocab_size)
        if self.new_tokens:
            config["new_tokens"] = self.new_tokens
        return config

    # ---------------------------------------------------------------- parameters

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

    def reset_parameters(self) -> None:
        """Initialise every task that exists, and what they share."""
        for name in self.heads.own:
            self.heads.initialise(self.heads.vector(name))

    def espnet_initialization_fn(self) -> None:
        """ESPnet's ``--init`` rewrites every matrix; a new task must stay neutral."""
        self.reset_parameters()

    def add_task(self, name: str, like: torch.Tensor) -> None:
        """Add a task that changes nothing yet. See :meth:`TaskBank.add`."""
        self.heads.add(name, like)

    # --------------------------------------------------------------- computation

    def begin(self, names: Sequence[str]) -> AfterLayer:
        """Start a pass over the depth of the encoder.

        Args:
            names: One task per utterance of the batch, or one for all; only one task
                where :attr:`mixes` is False.

        Raises:
            TaskError: A task is unknown.
        """
        return OnePass()

    def changes(self, name: str) -> Mapping[str, Change]:
        """What a pass with this task changes within the encoder, by dotted path.

        Asked for only where :attr:`mixes` is False.

        Raises:
            TaskError: The task is unknown.
        """
        return {}

    def projection(self, names: Sequence[str], dtype: torch.dtype) -> Tensors:
        """What tasks add to the CTC projection: `weight` (v, d) and `bias` (v).

        Args:
            names: One task per utterance of the batch, or one for all; with one per
                utterance the tensors have a leading batch axis.
            dtype: Type to compute in.
        """
        tensors = self.heads.gather(names, dtype, self.ctc)
        return {name.removeprefix("ctc."): t for name, t in tensors.items()}

    # ---------------------------------------------------------------- arithmetic

    def count(self) -> tuple[int, int]:
        """Parameters from the method's arithmetic: shared, and of each task.

        Both without the CTC projection.
        """
        raise NotImplementedError

    def own_macs(self) -> int:
        """Multiply-accumulates that the method adds per encoder frame."""
        raise NotImplementedError

    def formula(self) -> dict[str, int]:
        """Parameter counts from arithmetic: ``shared``, ``per_task``."""
        shared, per_task = self.count()
        per_task += (self.width + 1) * self.vocab_size
        return {"shared": shared, "per_task": per_task}

    def macs(self) -> int:
        """Multiply-accumulates that the adapter adds per encoder frame.

        One for each weight of a matrix; biases and norms are left out, as usual.
        """
        return self.own_macs() + self.width * self.vocab_size


class Differences(Adapter):
    """Tasks that have some of the encoder's parameters for themselves.

    What a task holds is the *difference* to the backbone's parameters. So zero is the
    backbone bit for bit, whichever base is loaded after the task was added; and weight
    decay draws towards the backbone, not towards zero.

    Args:
        name: Of the adapter.
        backbone: The encoder.
        parameters: Those that each task has for itself, by their path in the encoder.
    """

    mixes = False

    def __init__(
        self, name: str, backbone: Backbone, parameters: Mapping[str, torch.Tensor]
    ):
        super().__init__()
        self.own_config = {
            "adapter": name,
            "width": backbone.output_size(),
            "layers": len(backbone.encoders),
        }
        self._sizes = [p.numel() for p in parameters.values()]
        self.heads = TaskBank({path: p.shape for path, p in parameters.items()})

    def changes(self, name: str) -> Mapping[str, Change]:
        tensors = self.heads.gather([name], section=self.heads.sections[0])
        return {path: functools.partial(torch.add, t) for path, t in tensors.items()}

    def count(self) -> tuple[int, int]:
        return 0, sum(self._sizes)

    def own_macs(self) -> int:
        return 0  # other parameters, not more of them


# --------------------------------------------------------------------------- helpers


def check_choice(key: str, value: Any, possible: Sequence[str]) -> None:
    """Raise ConfigError if a value of ``adapter_conf`` is not one of the possible."""
    if value not in possible:
        raise ConfigError(
            f"adapter_conf: {key}: {value!r} is not available; "
            f"built are: {', '.join(map(str, possible))}"
        )


def check_size(key: str, value: Any) -> None:
    """Raise ConfigError if a value of ``adapter_conf`` is no whole number above 0."""
    if type(value) is not int or value < 1:
        raise ConfigError(
            f"adapter_conf: {key}: {value!r} must be a whole number above 0"
        )


def init_matrix(matrix: torch.Tensor) -> None:
    """Uniform in +-1/sqrt(columns), torch's default for a linear layer."""
    bound = matrix.size(-1) ** -0.5
    torch.nn.init.uniform_(matrix, -bound, bound)


def affine(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``weight x + bias`` with one matrix for the batch, or one per utterance.

    Args:
        x: (b, ..., i).
        weight: (o, i), or (b, o, i).
        bias: (o), or (b, o).

    Returns:
        (b, ..., o).
    """
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    flat = x.reshape(x.size(0), -1, x.size(-1))  # [b, t, i]
    y = torch.baddbmm(bias.unsqueeze(1), flat, weight.transpose(1, 2))  # [b, t, o]
    return y.view(*x.shape[:-1], y.size(-1))


def shallow_copy(module: torch.nn.Module) -> torch.nn.Module:
    """A module of its own that shares everything that it holds with the original."""
    copied = module.__class__.__new__(module.__class__)
    copied.__dict__.update(module.__dict__)
    return copied


def changed(module: torch.nn.Module, changes: Mapping[str, Change]) -> torch.nn.Module:
    """A shallow copy of a module in which some parameters and submodules are others.

    Args:
        module: Is left as it is.
        changes: What stands in for what, by the dotted path within the module.
    """
    if _WRAPPED in module._modules:  # a wrapper that its layer's paths do not show
        how = getattr(getattr(module, "checkpoint_impl", None), "name", None)
        if how == "REENTRANT" and torch.is_grad_enabled():
            raise RuntimeError(REENTRANT.format("the adapter"))
        changes = {f"{_WRAPPED}.{path}": change for path, change in changes.items()}
    by_child: dict[str, dict[str, Change]] = {}
    for path, change in changes.items():
        name, _, rest = path.partition(".")
        by_child.setdefault(name, {})[rest] = change
    copied = shallow_copy(module)
    copied._parameters = dict(module._parameters)
    copied._modules = dict(module._modules)
    for name, deeper in by_child.items():
        holder = copied._parameters if name in module._parameters else copied._modules
        change = deeper.get("")
        holder[name] = change(holder[name]) if change else changed(holder[name], deeper)
    return copied


#: Where torch's activation checkpointing and offloading wrappers keep their module.
_WRAPPED = "_checkpoint_wrapped_module"
