"""Controllers and heads: the equations of hierarchical recurrent adapters.

What they are to each other, and where the equations come from, is told in
:mod:`espnet_hra.methods.hra`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

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

    def gate(
        self, x: torch.Tensor, h: torch.Tensor | None, index: int
    ) -> torch.Tensor | None:
        """How much of the state before is kept, (..., c), in [0, 1].

        None without a state before, and of controllers without a gate. Arguments as of
        :meth:`forward`.
        """
        return None


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

    def gate(
        self, x: torch.Tensor, h: torch.Tensor | None, index: int
    ) -> torch.Tensor | None:
        if h is None:
            return None
        x = x if self.norm is None else self.norm(x)
        b = self.b[index] if self.own_bias else self.b
        c = self.c
        return torch.sigmoid(F.linear(x, self.W[:c], b[:c]) + F.linear(h, self.U[:c]))


class Gated(Controller):
    """``h_l = (1 - sigmoid(W_z x_l + b_z)) * relu(W_a x_l + b_a)``: a gate, no memory.

    What a light GRU is without the state before: the control that tells its gate from
    its recurrence. W and b hold the gate's rows first and then the candidate's.
    """

    rows = 2

    def step(
        self, x: torch.Tensor, h: torch.Tensor | None, b: torch.Tensor
    ) -> torch.Tensor:
        gate, candidate = F.linear(x, self.W, b).chunk(2, dim=-1)
        return (1 - gate.sigmoid()) * candidate.relu()


CONTROLLERS: dict[str, type[Controller]] = {
    "indrnn": IndRNN,
    "rnn": RNN,
    "ligru": LiGRU,
    "none": Memoryless,
    "gated": Gated,
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


class LowRankHead(Head):
    """``B A h + v``: a linear head whose matrix has rank f at most."""

    @staticmethod
    def layout(d: int, c: int, f: int) -> dict[str, Sequence[int]]:
        return {"A": (f, c), "B": (d, f), "v": (d,)}

    @staticmethod
    def count(d: int, c: int, f: int) -> int:
        return f * (c + d) + d

    @staticmethod
    def init(p: Tensors) -> None:
        init_matrix(p["A"])
        p["B"].zero_()
        p["v"].zero_()

    @staticmethod
    def apply(h: torch.Tensor, p: Tensors) -> torch.Tensor:
        return affine(affine(h, p["A"]), p["B"], p["v"])


HEADS: dict[str, type[Head]] = {
    "linear": LinearHead,
    "ffn": FeedForwardHead,
    "low_rank": LowRankHead,
}
