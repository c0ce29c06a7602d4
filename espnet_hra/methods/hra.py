r"""Hierarchical recurrent adapters (HRA): all equations of the method.

For one frame, x_l is the output of the frozen layer l = 1..L, of width d. A small
recurrent *controller* of size c, shared by all layers and all tasks, runs over the
**depth** of the encoder, and one small *head* per task, the same at every layer, writes
back to the residual stream::

    layer 1        layer 2                    layer L
      | x_1          | x_2                      | x_L
      |--norm,W--.   |--norm,W--.               |--norm,W--.
      |          v   |          v               |          v
      |    0 -> h_1 --------->  h_2 --> ... ------------>  h_L
      |          |   |          |               |          |
      + <-head---'   + <-head---'               + <-head---'
      v y_1          v y_2                      v y_L

    y_l = x_l + head_task(h_l)          what layer l+1 receives

There is no recurrence over time, so frames, streaming and padding are unaffected. The
source is arXiv 2403.19709; IndRNN is arXiv 1803.04831, the light GRU arXiv 1803.10225.

What the paper leaves open, and what is chosen here:

* a LayerNorm before W (``input_norm: layer_norm``; ``none`` switches it off);
* u starts uniform in [0, ``recurrent_init``], by default 1;
* layers share all of W, u and b (``layer_bias: true`` gives each a b of its own);
* what the head returns is added as it is (``output_scale: layer`` or ``channel``
  multiplies it by numbers that each layer learns, and all tasks share);
* the controller reads and the head writes what a layer returns, as above (``reads:
  input``: it reads what the layer was given, which the layer then runs beside);
* the head's last matrix and bias start at zero, so that step 0 is the backbone;
* the attention decoder's layers are left alone (``decoder: true`` lets the same
  controller run over their depth as well, from h = 0 for each token, and gives each
  task a second head there);
* controller and heads are trained together (``regime: joint``), or the controller is
  frozen and only heads learn (``regime: new_task``).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import Adapter, Backbone, OnePass
from espnet_hra.methods.checks import check_choice, check_number, check_size, is_number
from espnet_hra.methods.tensors import affine, init_matrix
from espnet_hra.tasks.layout import Tensors


def _dense(*shape: int) -> torch.nn.Parameter:
    """A matrix to be initialised."""
    return torch.nn.Parameter(torch.empty(*shape))


# ---------------------------------------------------------------------- controllers


class Controller(torch.nn.Module):
    """One step of the recurrence over depth; subclasses hold the equations.

    Args:
        d: Width of the encoder.
        c: Size of the controller.
        input_norm: Whether a LayerNorm stands before W.
        recurrent_init: Upper bound of the initial recurrent weights u.
        layers: Number of layers that have a b of their own; 0: all have the same.
    """

    #: How many rows of W, b and U each value of the state has.
    rows = 1

    #: What brings the state of the layer before: "u" (c), "U" (rows c, c), or nothing.
    memory = ""

    W: torch.nn.Parameter
    b: torch.nn.Parameter
    u: torch.nn.Parameter
    U: torch.nn.Parameter

    def __init__(
        self,
        d: int,
        c: int,
        input_norm: bool = True,
        recurrent_init: float = 1.0,
        layers: int = 0,
    ):
        super().__init__()
        self.d, self.c, self.recurrent_init = d, c, recurrent_init
        self.norm = torch.nn.LayerNorm(d) if input_norm else None
        self.W, self.b = _dense(self.rows * c, d), _dense(self.rows * c)
        if self.memory == "u":
            self.u = _dense(c)
        elif self.memory == "U":
            self.U = _dense(self.rows * c, c)
        self.own_bias = layers > 0
        if self.own_bias:
            self.b = _dense(layers, *self.b.shape)
        self.reset_parameters()

    def add_layers(self, layers: int) -> None:
        """Make room for further layers, where each has a b of its own."""
        if self.own_bias:
            more = self.b.new_zeros(layers, *self.b.shape[1:])
            self.b = torch.nn.Parameter(
                torch.cat([self.b.detach(), more]), self.b.requires_grad
            )

    def reset_parameters(self) -> None:
        """Initialise: W as torch's linear layers do, biases zero, u in [0, bound]."""
        if self.norm is not None:
            self.norm.reset_parameters()
        for name, p in self.named_parameters(recurse=False):
            if name == "b":
                torch.nn.init.zeros_(p)
            elif name == "u":
                torch.nn.init.uniform_(p, 0.0, self.recurrent_init)
            else:
                init_matrix(p)

    @classmethod
    def count(cls, d: int, c: int) -> int:
        """Number of parameters without the norm, from the arithmetic."""
        memory = {"u": c, "U": cls.rows * c * c, "": 0}[cls.memory]
        return cls.rows * (d * c + c) + memory

    def forward(
        self, x: torch.Tensor, h: torch.Tensor | None, index: int
    ) -> torch.Tensor:
        """One layer further.

        Args:
            x: What is read of the layer, (..., d).
            h: State after the layer before, (..., c); None stands for zeros.
            index: Which layer, from 0.

        Returns:
            State after this layer, (..., c).
        """
        b = self.b[index] if self.own_bias else self.b
        return self.step(x if self.norm is None else self.norm(x), h, b)

    def step(
        self, x: torch.Tensor, h: torch.Tensor | None, b: torch.Tensor
    ) -> torch.Tensor:
        """The recurrence, on the normalised input. Shapes as in :meth:`forward`."""
        raise NotImplementedError


class IndRNN(Controller):
    """``h_l = relu(W x_l + u * h_{l-1} + b)``, ``*`` element by element."""

    memory = "u"

    def step(
        self, x: torch.Tensor, h: torch.Tensor | None, b: torch.Tensor
    ) -> torch.Tensor:
        z = F.linear(x, self.W, b)
        if h is not None:
            z.addcmul_(self.u.to(z.dtype), h)  # in place: z is needed nowhere else
        return z.relu_()


class Memoryless(Controller):
    """``h_l = relu(W x_l + b)``: u = 0, the control that shows what depth brings."""

    def step(
        self, x: torch.Tensor, h: torch.Tensor | None, b: torch.Tensor
    ) -> torch.Tensor:
        return F.linear(x, self.W, b).relu_()


class RNN(Controller):
    """``h_l = relu(W x_l + U h_{l-1} + b)``, U a full c-by-c matrix."""

    memory = "U"

    def step(
        self, x: torch.Tensor, h: torch.Tensor | None, b: torch.Tensor
    ) -> torch.Tensor:
        z = F.linear(x, self.W, b)
        if h is not None:
            z.add_(F.linear(h, self.U))
        return z.relu_()


class LiGRU(Controller):
    """Light GRU: an update gate, no reset gate, a relu candidate.

    ::

        z_l = sigmoid(W_z x_l + U_z h_{l-1} + b_z)
        a_l = relu(W_a x_l + U_a h_{l-1} + b_a)
        h_l = z_l * h_{l-1} + (1 - z_l) * a_l

    W, U and b hold the gate's rows first and then the candidate's.
    """

    rows, memory = 2, "U"

    def step(
        self, x: torch.Tensor, h: torch.Tensor | None, b: torch.Tensor
    ) -> torch.Tensor:
        both = F.linear(x, self.W, b)
        if h is not None:
            both.add_(F.linear(h, self.U))
        gate, candidate = both.chunk(2, dim=-1)
        gate, candidate = gate.sigmoid(), candidate.relu()
        if h is None:
            return (1 - gate) * candidate
        return torch.lerp(candidate, h, gate)  # candidate + gate * (h - candidate)


CONTROLLERS: dict[str, type[Controller]] = {
    "indrnn": IndRNN,
    "rnn": RNN,
    "ligru": LiGRU,
    "none": Memoryless,
}


# ---------------------------------------------------------------------------- heads


class Head:
    """What a task adds to a layer's output, from the controller's state.

    Sizes are those of the encoder (d), the controller (c), and inside (f).
    """

    @staticmethod
    def layout(d: int, c: int, f: int) -> dict[str, Sequence[int]]:
        """Names and shapes of its tensors."""
        raise NotImplementedError

    @staticmethod
    def count(d: int, c: int, f: int) -> int:
        """Number of parameters, from the arithmetic."""
        raise NotImplementedError

    @staticmethod
    def init(p: Tensors) -> None:
        """Initial values: the last matrix and bias are zero."""
        raise NotImplementedError

    @staticmethod
    def apply(h: torch.Tensor, p: Tensors) -> torch.Tensor:
        """What is added, (b, ..., d), from h, (b, ..., c)."""
        raise NotImplementedError


class LinearHead(Head):
    """``V h + v``."""

    @staticmethod
    def layout(d: int, c: int, f: int) -> dict[str, Sequence[int]]:
        return {"V": (d, c), "v": (d,)}

    @staticmethod
    def count(d: int, c: int, f: int) -> int:
        return c * d + d

    @staticmethod
    def init(p: Tensors) -> None:
        p["V"].zero_()
        p["v"].zero_()

    @staticmethod
    def apply(h: torch.Tensor, p: Tensors) -> torch.Tensor:
        return affine(h, p["V"], p["v"])


class FeedForwardHead(Head):
    """``V2 relu(V1 h + v1) + v2``."""

    @staticmethod
    def layout(d: int, c: int, f: int) -> dict[str, Sequence[int]]:
        return {"V1": (f, c), "v1": (f,), "V2": (d, f), "v2": (d,)}

    @staticmethod
    def count(d: int, c: int, f: int) -> int:
        return c * f + f + f * d + d

    @staticmethod
    def init(p: Tensors) -> None:
        init_matrix(p["V1"])
        p["v1"].zero_()
        p["V2"].zero_()
        p["v2"].zero_()

    @staticmethod
    def apply(h: torch.Tensor, p: Tensors) -> torch.Tensor:
        return affine(affine(h, p["V1"], p["v1"]).relu_(), p["V2"], p["v2"])


HEADS: dict[str, type[Head]] = {"linear": LinearHead, "ffn": FeedForwardHead}


# -------------------------------------------------------------------------- adapter


class HierarchicalRecurrentAdapter(Adapter):
    """One controller for all layers and tasks, one head per task.

    Args:
        backbone: The encoder, for its width d and number L of layers (L for the
            arithmetic only: neither controller nor head depends on the depth).
        controller: ``indrnn``, ``rnn``, ``ligru`` or ``none``.
        controller_size: Size c of the controller.
        head: ``linear`` or ``ffn``.
        head_size: Inner size f of an ``ffn`` head.
        input_norm: ``layer_norm`` or ``none``, before W.
        recurrent_init: Upper bound of the initial u of an ``indrnn``.
        layer_bias: Whether each layer has a b of its own in the shared controller.
        output_scale: ``none``, or by what the head's output is multiplied:
            ``layer``, one learned number for each layer, or ``channel``, d of them.
            Tasks share them; they start at one.
        reads: ``output`` or ``input`` of the layer.

    Raises:
        ConfigError: A value is not possible.
    """

    def __init__(
        self,
        backbone: Backbone,
        controller: str = "indrnn",
        controller_size: int = 256,
        head: str = "linear",
        head_size: int = 64,
        input_norm: str = "layer_norm",
        recurrent_init: float = 1.0,
        layer_bias: bool = False,
        output_scale: str = "none",
        reads: str = "output",
    ):
        check_choice("controller", controller, CONTROLLERS)
        check_choice("head", head, HEADS)
        check_choice("input_norm", input_norm, ("layer_norm", "none"))
        check_choice("layer_bias", layer_bias, (False, True))
        check_choice("output_scale", output_scale, ("none", "layer", "channel"))
        check_choice("reads", reads, ("output", "input"))
        check_size("controller_size", controller_size)
        check_size("head_size", head_size)
        positive = is_number(recurrent_init) and recurrent_init >= 0
        check_number("recurrent_init", recurrent_init, positive, "a number, 0 or more")
        width, layers = backbone.width, len(backbone.layers)
        config: dict[str, Any] = {
            "adapter": "hra",
            "width": width,
            "controller": controller,
            "controller_size": controller_size,
            "head": head,
            "input_norm": input_norm,
        }
        if head == "ffn":
            config["head_size"] = head_size
        if layer_bias or output_scale != "none":
            config["layers"] = layers
        for key, value, usual in (
            ("layer_bias", layer_bias, False),
            ("output_scale", output_scale, "none"),
            ("reads", reads, "output"),
        ):
            if value != usual:  # so that files from before there was the key still fit
                config[key] = value
        size = (width, controller_size, head_size)
        kind = HEADS[head]
        super().__init__(config, kind.layout(*size), kind.init)
        self.num_layers, self.reads, self._size = layers, reads, size
        #: On the decoder: the adapter of the encoder, whose controller it uses.
        self._encoder: tuple[HierarchicalRecurrentAdapter, ...] = ()
        self.head = kind
        self.controller = CONTROLLERS[controller](
            width,
            controller_size,
            input_norm == "layer_norm",
            recurrent_init,
            layers if layer_bias else 0,
        )
        self.scale: torch.nn.Parameter | None = None
        if output_scale != "none":
            numbers = width if output_scale == "channel" else 1
            self.scale = torch.nn.Parameter(torch.ones(layers, numbers))

    def reset_shared(self) -> None:
        self.controller.reset_parameters()
        if self.scale is not None:
            torch.nn.init.ones_(self.scale)

    def pass_dtype(self) -> torch.dtype:
        device = self.controller.W.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.controller.W.dtype

    def after_layers(self, tensors: Tensors) -> OnePass:
        (shared,) = self._encoder or (self,)
        first = shared.num_layers if self._encoder else 0
        return _DepthRecurrence(shared, tensors, first)

    def follow(self, encoder: "HierarchicalRecurrentAdapter") -> None:
        """One controller for both; the decoder's layers come after the encoder's."""
        if encoder.width != self.width:
            raise ConfigError(
                "adapter_conf: decoder: true: one controller runs over encoder and "
                f"decoder, and the widths of their layers differ ({encoder.width} and "
                f"{self.width}); leave decoder: true out, or take adapter: residual"
            )
        encoder.controller.add_layers(self.num_layers)
        if encoder.scale is not None:
            more = torch.ones(self.num_layers, encoder.scale.size(1))
            scale = torch.cat([encoder.scale.detach(), more.to(encoder.scale)])
            encoder.scale = torch.nn.Parameter(scale, encoder.scale.requires_grad)
        self.controller, self._encoder = encoder.controller, (encoder,)

    def step(
        self,
        index: int,
        read: torch.Tensor,
        x: torch.Tensor,
        h: torch.Tensor | None,
        head: Tensors,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer: the method in two lines.

        Args:
            index: Which layer, from 0.
            read: What the controller reads, (b, ..., d).
            x: Output of the frozen layer, (b, ..., d).
            h: State of the controller after the layer before, (b, ..., c), or None.
            head: Tensors of the task, or of one task per utterance.

        Returns:
            What the next layer receives, (b, ..., d), and the new state, (b, ..., c).
        """
        h = self.controller(read, h, index)
        change = self.head.apply(h, head).to(x.dtype)
        if self.scale is None:
            return change.add_(x), h  # in place: y = x + ...
        return torch.addcmul(x, change, self.scale[index].to(x.dtype)), h

    def count(self) -> tuple[int, int]:
        d, c, _ = self._size
        shared = self.controller.count(d, c)
        if self.controller.norm is not None:
            shared += 2 * d
        if self.controller.own_bias:
            shared += self.controller.b[1:].numel()
        if self.scale is not None:
            shared += self.scale.numel()
        return shared, self.head.count(*self._size)

    def own_macs(self) -> int:
        shapes: list[Sequence[int]] = [
            p.shape for n, p in self.controller.named_parameters() if n != "b"
        ]
        shapes += self.head.layout(*self._size).values()
        # one for each weight of a matrix, biases and norms left out as usual
        return self.num_layers * sum(math.prod(s) for s in shapes if len(s) == 2)


class _DepthRecurrence(OnePass):
    """State of one pass over the depth: h after the latest layer, and the heads.

    Layers are identified by their index because an encoder may skip one (layer drop),
    or run its stack several times in one call (streaming blocks): a layer that is not
    deeper than the latest starts a new pass with h = 0.
    """

    what = "the recurrence over depth"

    def __init__(
        self, adapter: HierarchicalRecurrentAdapter, head: Tensors, first: int
    ):
        super().__init__()
        self.adapter, self.head = adapter, head
        self.first = first  # layers of the encoder that come before those of this pass
        self.h: torch.Tensor | None = None
        self.latest = -1
        # Activation checkpointing runs a layer again during backward; it must then
        # meet the same h as the first time. (Autograd keeps them all anyway.)
        self.came_from: dict[int, torch.Tensor | None] = {}

    def step(self, index: int, x: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        read = given if self.adapter.reads == "input" else x
        if self.ended:
            h = self.came_from[index]
            return self.adapter.step(self.first + index, read, x, h, self.head)[0]
        h = self.h if index > self.latest else None
        if h is not None and h.size(-2) > x.size(-2):
            h = h[..., : x.size(-2), :]  # the encoder cut off a tail of blanks
        if self.grad:
            self.came_from[index] = h
        self.latest = index
        y, self.h = self.adapter.step(self.first + index, read, x, h, self.head)
        return y
