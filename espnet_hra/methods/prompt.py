r"""Soft prompts: learned vectors of a task that every attention of the layers can see.

A task has n vectors P: (n, d). They stand in front of the sequence that a layer's
self-attention is given, as further keys and values of the frozen projections::

    y = attention(q, K, V)  +  g_l W_o attention(q, W_k P, W_v P)

with a number g_l for each layer, zero at the start, so that step 0 is the backbone (the
gated attention of arXiv 2303.16199; a plain prompt changes what the softmax leaves for
the frames, and no value of it is the backbone). g comes first to learn, and P with it.

No frame is added to the sequence: positions, convolutions, masks and padding are those
of the backbone, and what comes out has its frames. Relative positions (Conformers)
would have to count the vectors; here they have none, and meet the queries by content
alone, with the bias for it (u in arXiv 1901.02860). With ``decoder: true`` the
self-attention of the attention decoder sees n more vectors, in front of its tokens (of
Whisper, of its prompt).

A streaming encoder is refused: it hears an utterance block by block, and prompts stand
in front of an utterance.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F

from espnet_hra.errors import ConfigError
from espnet_hra.methods.base import Adapter, Backbone
from espnet_hra.methods.checks import check_size
from espnet_hra.methods.substitution import Change, shallow_copy
from espnet_hra.tasks.layout import Tensors

#: What attentions call their projections (query, key, value, output) and the number of
#: their heads: ESPnet's, and Whisper's.
_NAMES = (
    ("linear_q", "linear_k", "linear_v", "linear_out", "h"),
    ("query", "key", "value", "out", "n_head"),
)

#: Attentions that look at another sequence than their own.
_OTHERS = ("src_attn", "cross_attn")


class SoftPrompt(Adapter):
    """Learned vectors for each task, in front of what attention sees.

    Args:
        backbone: The encoder.
        prompt_size: Number n of the vectors.

    Raises:
        ConfigError: A value is not possible, the encoder is a streaming one, or a layer
            has no attention that is known here.
    """

    mixes = False

    def __init__(self, backbone: Backbone, prompt_size: int = 16):
        check_size("prompt_size", prompt_size)
        prompts = Prompts(backbone, prompt_size)
        config = {
            "adapter": "prompt",
            "width": backbone.width,
            "layers": len(backbone.layers),
            "prompt_size": prompt_size,
        }
        super().__init__(config, prompts.shapes, initialise)
        self._prompts = prompts

    def changes(self, tensors: Tensors) -> Mapping[str, Change]:
        return self._prompts.changes(tensors)

    def count(self) -> tuple[int, int]:
        return 0, self._prompts.count()

    def own_macs(self) -> int:
        return self._prompts.macs()


class Prompts:
    """The soft prompts of an encoder or decoder, for any method that has them.

    Args:
        backbone: The encoder or decoder.
        size: Number n of the vectors.

    Attributes:
        shapes: Names and shapes of a task's tensors.

    Raises:
        ConfigError: See :class:`SoftPrompt`.
    """

    def __init__(self, backbone: Backbone, size: int):
        streams = ("forward_infer", "chunk_forward")
        if any(hasattr(backbone.module, name) for name in streams):
            raise ConfigError(
                "adapter_conf: soft prompts (prompt_size) stand in front of an "
                "utterance, and this encoder hears it block by block, each with a "
                "context of its own: take adapter: hra without prompt_size, or another "
                "encoder"
            )
        self._paths = _attentions(backbone)
        self._size = (len(self._paths), size, backbone.width)
        layers, n, d = self._size
        self.shapes: dict[str, Sequence[int]] = {"prompt": (n, d), "gate": (layers,)}

    def changes(self, tensors: Tensors) -> Mapping[str, Change]:
        """What a pass changes within the encoder; tensors of one task."""
        return {
            path: functools.partial(_seeing, prompt=tensors["prompt"], gate=gate)
            for path, gate in zip(self._paths, tensors["gate"].unbind(0))
        }

    def count(self) -> int:
        """Parameters of a task."""
        layers, n, d = self._size
        return n * d + layers

    def macs(self) -> int:
        """Multiply-accumulates per frame; keys and values are those of an utterance."""
        layers, n, d = self._size
        return layers * (2 * n * d + 2 * d * d)


def initialise(tensors: Tensors) -> None:
    """Vectors like normalised frames, which nobody looks at yet."""
    torch.nn.init.normal_(tensors["prompt"])
    tensors["gate"].zero_()


def _attentions(backbone: Backbone) -> list[str]:
    """Paths of the layers' self-attentions, one a layer.

    Raises:
        ConfigError: A layer has none.
    """
    found = []
    for i, (path, layer) in enumerate(backbone.named.items()):
        own = [
            name
            for name, child in layer.named_children()
            if name not in _OTHERS and _names_of(child)
        ]
        if not own:
            children = ", ".join(name for name, _ in layer.named_children())
            raise ConfigError(
                "adapter_conf: soft prompts (prompt_size) are seen by self-attentions "
                f"with projections {', '.join(_NAMES[0][:4])} or "
                f"{', '.join(_NAMES[1][:4])}, and layer {i} of the {backbone.kind} has "
                f"none; it has: {children}. Take adapter: hra without prompt_size"
            )
        found.append(f"{path}.{own[0]}")
    return found


def _names_of(module: torch.nn.Module) -> Sequence[str]:
    """What an attention calls its parts; nothing if it is none."""
    return next((n for n in _NAMES if all(hasattr(module, one) for one in n)), ())


@functools.cache
def _kind_of(attention: type) -> type:
    """The class of an attention that sees a prompt as well."""

    def forward(self: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = attention.forward(self, query, *args, **kwargs)  # type: ignore
        if isinstance(output, tuple):  # Whisper's, with its weights
            return (output[0] + self.seen(query, output[0]), *output[1:])
        return output + self.seen(query, output)

    own = {"forward": forward, "__module__": __name__}
    return type(f"Prompted{attention.__name__}", (attention,), own)


def _seeing(
    inner: torch.nn.Module, prompt: torch.Tensor, gate: torch.Tensor
) -> torch.nn.Module:
    """An attention for one pass that sees a prompt as well.

    It is the same object otherwise: whoever looks for its parts, or changes them for
    the pass (keys that a decoder keeps from step to step), finds them.
    """
    copied, kind = shallow_copy(inner), cast(Any, type(inner))
    copied.__class__ = _kind_of(kind)
    parts = [getattr(inner, name) for name in _names_of(inner)]
    given: Callable[..., torch.Tensor] = functools.partial(
        _seen, inner, parts, prompt, gate
    )
    copied.__dict__["seen"] = given
    return copied


def _seen(
    inner: Any,
    parts: Sequence[Any],
    prompt: torch.Tensor,
    gate: torch.Tensor,
    query: torch.Tensor,
    output: torch.Tensor,
) -> torch.Tensor:
    """What an attention sees of a prompt.

    Args:
        inner: The attention.
        parts: Its projections, and how many heads it has.
        prompt: (n, d).
        gate: By what it is multiplied.
        query: (b, t, d).
        output: What it sees of the sequence, (b, t, d).

    Returns:
        (b, t, d).
    """
    of_query, of_key, of_value, of_output, heads = parts
    p = prompt.to(query.dtype).unsqueeze(0)  # [1, n, d]
    q, k, v = (
        x.unflatten(-1, (heads, -1)) for x in (of_query(query), of_key(p), of_value(p))
    )
    if hasattr(inner, "pos_bias_u"):
        q = q + inner.pos_bias_u.to(q.dtype)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [b, h, t, d / h]
    if hasattr(inner, "q_norm"):
        q, k = inner.q_norm(q), inner.k_norm(k)
    k, v = (x.to(q.dtype).expand(len(q), -1, -1, -1) for x in (k, v))
    seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
    return (gate * of_output(seen)).to(output.dtype)
