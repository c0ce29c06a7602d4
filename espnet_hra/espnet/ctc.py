r"""CTC projections of the tasks' own (``ctc: task``), and tokens that the base lacks.

Every task may add its own matrix and bias to the frozen projection of the model's CTC::

    logits = W x + b  +  W_task x + b_task        W_task, b_task start at zero

They lie in the task's vector, behind what the adapter keeps there. Whatever uses the
CTC (loss, error rate, greedy and beam search, intermediate CTC and its feedback into
the encoder) goes through this one place and meets the task in force, which is the
encoder's: each utterance's own in a mixed batch, and none for the plain backbone.

With a projection of its own a task can learn tokens that the backbone does not have. In
the backbone they get a row of the projection that can never win: the mean of its other
rows, minus :data:`MARGIN`. The mean of all logits is never above the largest, so a new
token's is at least the margin below it, for any input; its probability, below 1e-13,
vanishes in float32 beside the others', and yet a task can bring it up.
"""

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import torch

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.errors import ConfigError
from espnet_hra.methods import default_ctc
from espnet_hra.methods.tensors import affine
from espnet_hra.names import listing

logger = logging.getLogger(__name__)

#: How far below the mean of the backbone's logits those of new tokens are.
MARGIN = 30.0

#: Value of ``new_tokens``: what the training text has and the base lacks.
AUTO = "auto"


class TaskProjection(torch.nn.Linear):
    """The frozen projection of a CTC, and what the tasks in force add to it.

    These are the tasks that the encoder would use now: within ESPnet's model encoder
    and CTC are called under one choice, and whoever calls them apart must see to that.

    Args:
        frozen: The CTC's own projection, whose parameters this one takes over.
        encoder: The encoder that knows the tasks.
    """

    def __init__(self, frozen: torch.nn.Linear, encoder: AdaptedEncoder):
        super().__init__(frozen.in_features, frozen.out_features, device="meta")
        self.weight, self.bias = frozen.weight, frozen.bias
        self.training = frozen.training
        # In a tuple: it is no submodule of this one.
        self._encoder = (encoder,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits.

        Args:
            x: Output of the encoder, (b, t, d).

        Returns:
            (b, t, vocabulary).

        Raises:
            TaskError: Several tasks and no choice, or a choice that does not fit.
        """
        logits = super().forward(x)
        (encoder,) = self._encoder
        names = encoder.tasks_of_batch(x.size(0))
        if not names:
            return logits
        own = encoder.adapter.projection(names, self.weight.dtype)
        return logits + affine(x, own["weight"], own["bias"])


def attach(model: torch.nn.Module) -> None:
    """Let a model's CTC use the projections of its encoder's tasks, if they have any.

    Raises:
        ConfigError: They have, and the model has no CTC.
    """
    encoder = model.encoder
    assert isinstance(encoder, AdaptedEncoder), "asked for adapted models only"
    own, width = encoder.adapter.ctc, encoder.adapter.width
    if own is None:
        return
    ctc: Any = getattr(model, "ctc", None)
    if ctc is None:
        raise ConfigError(
            "adapter_conf: ctc: 'task' gives every task a CTC projection, and this "
            "model has no CTC (ctc_weight: 0)"
        )
    if ctc.ctc_lo.weight.shape != (own.vocab_size, width):
        raise ConfigError(
            f"adapter_conf: ctc: 'task': the model's CTC has {ctc.ctc_lo}, expected "
            f"{width} features (no postencoder) and vocab_size: {own.vocab_size}"
        )
    ctc.ctc_lo = TaskProjection(ctc.ctc_lo, encoder)
    own.attached = True


# ------------------------------------------------------------------------- new tokens


def settle(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Write to ``adapter_conf`` what the adapter must know of the vocabulary.

    Args:
        args: Options of a training, or its saved configuration.

    Returns:
        The tokens of the base, and those that are new.

    Raises:
        ConfigError: New tokens, and a model or adapter that cannot learn them.
    """
    conf = args.encoder_conf
    usual = default_ctc(conf.get("adapter", "hra"))
    own: dict[str, Any] = dict(conf.get("adapter_conf") or {})
    translates = hasattr(args, "src_token_list")
    if translates and own.get("ctc", "frozen") != "frozen":
        raise ConfigError(
            f"adapter_conf: ctc: {own['ctc']!r}: models of speech translation keep "
            "theirs frozen, which writes down another language; leave the key out"
        )
    transduces = hasattr(args, "joint_network_conf")
    asked = [key for key in ("ctc", "new_tokens") if own.get(key, "frozen") != "frozen"]
    if transduces and asked:
        raise ConfigError(
            f"adapter_conf: {asked[0]}: {own[asked[0]]!r}: models of asr_transducer "
            "decode without a CTC, whose projection a task could have for itself; "
            "leave the key out"
        )
    has_ctc = (args.model_conf or {}).get("ctc_weight", 0.5) != 0.0
    if has_ctc and not translates and not transduces and usual != "frozen":
        own.setdefault("ctc", usual)
    tokens, new = split_tokens(args)
    if new:
        _check_new(args, own.get("ctc"), tokens, new)
    if "new_tokens" in own:
        own["new_tokens"] = new
    if own.get("ctc") == "task":
        own["vocab_size"] = len(tokens) + len(new)
    if own:
        conf["adapter_conf"] = own
    return tokens, new


def split_tokens(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The token list without the new tokens of ``adapter_conf``, and these."""
    own = (args.encoder_conf or {}).get("adapter_conf") or {}
    tokens, new = read_tokens(args.token_list), own.get("new_tokens") or []
    if new == AUTO:  # without a training there is no text to look at
        new = []
    if not isinstance(new, (list, tuple)) or not all(isinstance(t, str) for t in new):
        raise ConfigError(
            f"adapter_conf: new_tokens: {new!r} must be a list of tokens, or {AUTO}"
        )
    new = list(new)
    if new and tokens[-1 - len(new) : -1] == new:  # a saved configuration's list
        del tokens[-1 - len(new) : -1]
    return tokens, new


def read_tokens(tokens: Any) -> list[str]:
    """A token list, or that of a file as ESPnet reads it."""
    if tokens is None:
        raise ConfigError(
            "--token_list is missing: it comes along with a base's folder"
        )
    if isinstance(tokens, str):
        with open(tokens, encoding="utf-8") as file:
            return [line.rstrip() for line in file]
    return list(tokens)


def with_new(tokens: Sequence[str], new: Sequence[str]) -> list[str]:
    """A token list with new ones in front of its last, which is ``<sos/eos>``."""
    return [*tokens[:-1], *new, *tokens[-1:]]


def _check_new(
    args: argparse.Namespace, ctc: Any, tokens: Sequence[str], new: Sequence[str]
) -> None:
    if ctc != "task":
        raise ConfigError(
            "adapter_conf: new_tokens: only a task's own CTC projection can learn "
            "them; add ctc: task"
        )
    known = [token for token in new if token in tokens]
    twice = sorted({token for token in new if list(new).count(token) > 1})
    if known or twice:
        raise ConfigError(
            f"adapter_conf: new_tokens: known to the base: {listing(known)}; named "
            f"twice: {listing(twice)}"
        )
    if (args.model_conf or {}).get("ctc_weight", 0.5) != 1.0:
        raise ConfigError(
            "adapter_conf: new_tokens: this model has a decoder or takes prompts, "
            "which would not know them; a model of asr with ctc_weight: 1.0 can"
        )
    if args.encoder_conf.get("interctc_use_conditioning"):
        raise ConfigError(
            "adapter_conf: new_tokens: this model feeds its intermediate CTC back into "
            "the encoder (interctc_use_conditioning), which does not know them"
        )


def extend(model: Any, tokens: list[str], new: Sequence[str]) -> None:
    """Give a model new tokens, after its base was loaded and verified.

    Args:
        model: CTC model with the vocabulary of its base.
        tokens: Token list of the base.
        new: What comes in front of its last token.
    """
    projection, n = model.ctc.ctc_lo, len(new)
    with torch.no_grad():
        for name in ("weight", "bias"):
            old = getattr(projection, name)
            row = old.mean(0, keepdim=True) - (MARGIN if name == "bias" else 0.0)
            rows = row.expand(n, *old.shape[1:])
            value = torch.cat([old[:-1], rows, old[-1:]])
            setattr(projection, name, torch.nn.Parameter(value, requires_grad=False))
    projection.out_features += n
    for name in ("sos", "eos"):
        if getattr(model, name) == model.vocab_size - 1:
            setattr(model, name, model.vocab_size - 1 + n)
    model.vocab_size += n
    model.token_list = with_new(tokens, new)
    if getattr(model, "error_calculator", None) is not None:
        model.error_calculator.char_list = model.token_list


def without_new(
    state: dict[str, torch.Tensor], size: int, n: int
) -> dict[str, torch.Tensor]:
    """A base's weights without the rows of new tokens, if it has been given them.

    Args:
        state: Weights of a model.
        size: Number of the base's tokens.
        n: Number of new tokens.
    """
    keys = ("ctc.ctc_lo.weight", "ctc.ctc_lo.bias")
    if not n or any(k not in state or len(state[k]) != size + n for k in keys):
        return state
    shorter = {k: torch.cat([state[k][: size - 1], state[k][-1:]]) for k in keys}
    return {**state, **shorter}
