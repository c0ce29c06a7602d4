r"""Hierarchical recurrent adapters (HRA): the method.

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

Controllers and heads are written down in :mod:`espnet_hra.methods.equations`. There is
no recurrence over time, so frames, streaming and padding are unaffected. The
source is arXiv 2403.19709; IndRNN is arXiv 1803.04831, the light GRU arXiv 1803.10225.

What the paper leaves open, and what is chosen here:

* a LayerNorm before W (``input_norm: layer_norm``; ``none`` switches it off);
* u starts uniform in [0, ``recurrent_init``], by default 1;
* layers share all of W, u and b (``layer_bias: true`` gives each a b of its own);
* what the head returns is added as it is (``output_scale: layer`` or ``channel``
  multiplies it by numbers that each layer learns, and all tasks share);
* the controller reads and the head writes what a layer returns, as above (``reads:
  input``: it reads what the layer was given, which the layer then runs beside);
* a task's head is all that is added (``shared_head: true`` adds a linear head that all
  tasks share and that learns with the controller: ``y_l = x_l + V_0 h_l + v_0 +
  head_task(h_l)``, so that a task need only learn what is its own; ``shared_head:
  layer`` adds one for each layer, V_l and v_l in the place of V_0 and v_0);
* the layers stay what they are (``shared_rank: r`` gives each of their linear modules a
  change of rank r that all tasks share, ``W x + 2 B_0 A_0 x``, and that learns with the
  controller: what all tasks have in common is learned where it is made, and heads have
  the rest; needs PEFT);
* a task has no soft prompt (``prompt_size: n`` gives it n vectors that the layers'
  attention sees, see :mod:`espnet_hra.methods.prompt`; a mixed batch then runs task by
  task);
* the last matrix and bias of heads start at zero, so that step 0 is the backbone;
* the attention decoder's layers are left alone (``decoder: true`` lets the same
  controller run over their depth as well, from h = 0 for each token, and gives each
  task a second head there);
* controller and heads are trained together (``regime: joint``), or the controller is
  frozen and only heads learn (``regime: new_task``).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import Adapter, Backbone, OnePass
from espnet_hra.methods.checks import check_choice, check_number, check_size, is_number
from espnet_hra.methods.equations import CONTROLLERS, HEADS
from espnet_hra.methods.linear import ALL_LINEAR, find
from espnet_hra.methods.prompt import Prompts, initialise
from espnet_hra.methods.shared_change import SharedChange
from espnet_hra.methods.substitution import Change
from espnet_hra.tasks.layout import Tensors

#: The head that tasks share: of all layers, or one for each.
SharedHead = torch.nn.Linear | torch.nn.ModuleList

#: What the low-rank change that tasks share is multiplied by: LoRA's usual alpha / r.
SHARED_SCALE = 2.0

# -------------------------------------------------------------------------- adapter


class HierarchicalRecurrentAdapter(Adapter):
    """One controller for all layers and tasks, one head per task.

    Args:
        backbone: The encoder, for its width d and number L of layers (L for the
            arithmetic only: neither controller nor head depends on the depth).
        controller: ``indrnn``, ``rnn``, ``ligru``, ``none`` or ``gated``.
        controller_size: Size c of the controller.
        head: ``linear``, ``ffn`` or ``low_rank``.
        head_size: Inner size f of an ``ffn`` head, rank of a ``low_rank`` one.
        input_norm: ``layer_norm`` or ``none``, before W.
        recurrent_init: Upper bound of the initial u of an ``indrnn``.
        layer_bias: Whether each layer has a b of its own in the shared controller.
        output_scale: ``none``, or by what the head's output is multiplied:
            ``layer``, one learned number for each layer, or ``channel``, d of them.
            Tasks share them; they start at one.
        reads: ``output`` or ``input`` of the layer.
        shared_head: Whether a linear head that all tasks share is added to the task's:
            False, True, or ``layer`` for one for each layer.
        shared_rank: Rank of the change of the layers' linear modules that all tasks
            share; 0 for none.
        prompt_size: Number of vectors of a task's soft prompt; 0 for none.

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
        shared_head: bool | str = False,
        shared_rank: int = 0,
        prompt_size: int = 0,
    ):
        check_choice("controller", controller, CONTROLLERS)
        check_choice("head", head, HEADS)
        check_choice("input_norm", input_norm, ("layer_norm", "none"))
        check_choice("layer_bias", layer_bias, (False, True))
        check_choice("output_scale", output_scale, ("none", "layer", "channel"))
        check_choice("reads", reads, ("output", "input"))
        check_choice("shared_head", shared_head, (False, True, "layer"))
        check_size("controller_size", controller_size)
        check_size("head_size", head_size)
        for name, n in (("shared_rank", shared_rank), ("prompt_size", prompt_size)):
            whole = type(n) is int and n >= 0
            check_number(name, n, whole, "a whole number, 0 or more")
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
        if head != "linear":
            config["head_size"] = head_size
        if layer_bias or output_scale != "none" or shared_head == "layer":
            config["layers"] = layers
        for key, value, usual in (
            ("layer_bias", layer_bias, False),
            ("output_scale", output_scale, "none"),
            ("reads", reads, "output"),
            ("shared_head", shared_head, False),
            ("shared_rank", shared_rank, 0),
            ("prompt_size", prompt_size, 0),
        ):
            if value != usual:  # so that files from before there was the key still fit
                config[key] = value
        size = (width, controller_size, head_size)
        kind = HEADS[head]
        shapes, init = dict(kind.layout(*size)), kind.init
        prompts = Prompts(backbone, prompt_size) if prompt_size else None
        if prompts is not None:
            config["layers"] = layers
            shapes.update(prompts.shapes)
            init = functools.partial(_with_prompt, init)
        super().__init__(config, shapes, init)
        self._prompts, self.mixes = prompts, prompts is None
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
        self.shared_head: SharedHead | None = None
        self.shared_head_of_decoder: SharedHead | None = None
        if shared_head:
            self.shared_head = torch.nn.Linear(controller_size, width)
            if shared_head == "layer":
                self.shared_head = torch.nn.ModuleList(
                    torch.nn.Linear(controller_size, width) for _ in range(layers)
                )
            _zero(self.shared_head)
        self.shared: SharedChange | None = None
        self.shared_of_decoder: SharedChange | None = None
        if shared_rank:
            modules = find(backbone, ALL_LINEAR)
            self.shared = SharedChange(modules, shared_rank, SHARED_SCALE)

    def reset_shared(self) -> None:
        self.controller.reset_parameters()
        if self.scale is not None:
            torch.nn.init.ones_(self.scale)
        for shared in (self.shared_head, self.shared_head_of_decoder):
            if shared is not None:
                _zero(shared)
        for change in (self.shared, self.shared_of_decoder):
            if change is not None:
                change.reset()

    def pass_dtype(self) -> torch.dtype:
        device = self.controller.W.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.controller.W.dtype

    def after_layers(self, tensors: Tensors) -> OnePass:
        (shared,) = self._encoder or (self,)
        first = shared.num_layers if self._encoder else 0
        return _DepthRecurrence(shared, tensors, self.shared_head, first)

    def changes(self, tensors: Tensors) -> Mapping[str, Change]:
        return {} if self._prompts is None else self._prompts.changes(tensors)

    def shared_changes(self) -> Mapping[str, Change]:
        return {} if self.shared is None else self.shared.changes()

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
        encoder.shared_head_of_decoder = self.shared_head
        encoder.shared_of_decoder = self.shared

    def step(
        self,
        index: int,
        read: torch.Tensor,
        x: torch.Tensor,
        h: torch.Tensor | None,
        head: Tensors,
        shared_head: torch.nn.Linear | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer: the method in a few lines.

        Args:
            index: Which layer, from 0.
            read: What the controller reads, (b, ..., d).
            x: Output of the frozen layer, (b, ..., d).
            h: State of the controller after the layer before, (b, ..., c), or None.
            head: Tensors of the task, or of one task per utterance.
            shared_head: What all tasks add to it.

        Returns:
            What the next layer receives, (b, ..., d), and the new state, (b, ..., c).
        """
        h = self.controller(read, h, index)
        change = self.head.apply(h, head).to(x.dtype)
        if shared_head is not None:
            change.add_(shared_head(h).to(x.dtype))
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
        for other in (self.shared_head, self.shared_head_of_decoder):
            if other is not None:
                heads = len(other) if isinstance(other, torch.nn.ModuleList) else 1
                shared += heads * (d * c + d)
        for change in (self.shared, self.shared_of_decoder):
            shared += 0 if change is None else change.size
        prompt = 0 if self._prompts is None else self._prompts.count()
        return shared, self.head.count(*self._size) + prompt

    def own_macs(self) -> int:
        shapes: list[Sequence[int]] = [
            p.shape for n, p in self.controller.named_parameters() if n != "b"
        ]
        shapes += self.head.layout(*self._size).values()
        if self.shared_head is not None:
            shapes.append((self.width, self.controller.c))
        # one for each weight of a matrix, biases and norms left out as usual
        macs = self.num_layers * sum(math.prod(s) for s in shapes if len(s) == 2)
        macs += 0 if self.shared is None else self.shared.size
        return macs + (0 if self._prompts is None else self._prompts.macs())


def _with_prompt(head: Callable[[Tensors], None], tensors: Tensors) -> None:
    """Initial values of a head, and of the prompt beside it."""
    head(tensors)
    initialise(tensors)


def _zero(shared: SharedHead) -> None:
    for parameter in shared.parameters():
        torch.nn.init.zeros_(parameter)


class _DepthRecurrence(OnePass):
    """State of one pass over the depth: h after the latest layer, and the heads.

    Layers are identified by their index because an encoder may skip one (layer drop),
    or run its stack several times in one call (streaming blocks): a layer that is not
    deeper than the latest starts a new pass with h = 0.
    """

    what = "the recurrence over depth"

    def __init__(
        self,
        adapter: HierarchicalRecurrentAdapter,
        head: Tensors,
        shared_head: SharedHead | None,
        first: int,
    ):
        super().__init__()
        self.adapter, self.head, self.shared_head = adapter, head, shared_head
        self.first = first  # layers of the encoder that come before those of this pass
        self.h: torch.Tensor | None = None
        self.latest = -1
        # Activation checkpointing runs a layer again during backward; it must then
        # meet the same h as the first time. (Autograd keeps them all anyway.)
        self.came_from: dict[int, torch.Tensor | None] = {}

    def restart(self) -> None:
        self.h = None

    def step(self, index: int, x: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        read = given if self.adapter.reads == "input" else x
        if self.ended:
            h = self.came_from[index]
            return self._layer(index, read, x, h)[0]
        h = self.h if index > self.latest else None
        if h is not None and h.size(-2) > x.size(-2):
            h = h[..., : x.size(-2), :]  # the encoder cut off a tail of blanks
        if self.grad:
            self.came_from[index] = h
        self.latest = index
        y, self.h = self._layer(index, read, x, h)
        return y

    def _layer(
        self,
        index: int,
        read: torch.Tensor,
        x: torch.Tensor,
        h: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer of this pass, whatever comes before it."""
        shared: Any = self.shared_head
        if isinstance(shared, torch.nn.ModuleList):
            shared = shared[index]
        return self.adapter.step(self.first + index, read, x, h, self.head, shared)
