"""What ``torch.export`` sees of an adapted encoder: a pass whose heads are an input.

A graph that knows its tasks would serve these alone. Here each utterance brings the
vector of its task along, so that one graph serves all tasks, those of tomorrow
included. What chooses tasks by their names (locks, files, threads) stays outside.
"""

from typing import Any

import torch

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.encoder.view import view
from espnet_hra.errors import ConfigError
from espnet_hra.methods.tensors import affine

#: Methods whose tasks cannot be an input, and why.
_REFUSED = {
    "full": "its tasks are whole encoders: export each as a model of its own",
    "none": "it has no tasks: its model is the base, which ESPnet's own tools export",
}

#: Encoders (ESPnet's names of their classes) whose masks and lengths are known to be
#: tensors throughout.
ENCODERS = (
    "BranchformerEncoder",
    "ConformerEncoder",
    "EBranchformerEncoder",
    "TransformerEncoder",
)


def check(encoder: torch.nn.Module) -> AdaptedEncoder:
    """Refuse an encoder whose pass cannot become a graph with heads as an input.

    Raises:
        ConfigError: It is so.
    """
    if not isinstance(encoder, AdaptedEncoder):
        raise ConfigError(
            "this model has no adapter, so there are no heads to be an input; export "
            "takes the folder of an adaptation"
        )
    name = encoder.backbone_class.__name__
    if name not in ENCODERS:
        raise ConfigError(
            f"export of the encoder {name} is not possible: what it does depends on "
            f"values that a graph does not have; these can be exported: "
            f"{', '.join(ENCODERS)}"
        )
    method = encoder.adapter.config["adapter"]
    if method in _REFUSED:
        raise ConfigError(
            f"adapter: {method} cannot be exported with the head as an input: "
            f"{_REFUSED[method]}"
        )
    if encoder.adapter.common is not None:
        raise ConfigError(
            "adapter_conf: one_for_all: true cannot be exported with the head as an "
            "input: tasks have none; take an adaptation without that key"
        )
    if encoder.adapter.adapts_decoder:
        raise ConfigError(
            "adapter_conf: decoder: true cannot be exported: the graph ends with the "
            "encoder and its CTC; take an adaptation without that key"
        )
    if getattr(encoder, "interctc_use_conditioning", False):
        raise ConfigError(
            "an encoder that feeds its intermediate CTC back "
            "(interctc_use_conditioning: true) cannot be exported; take another base"
        )
    return encoder


def encode(
    encoder: AdaptedEncoder,
    xs: torch.Tensor,
    lengths: torch.Tensor,
    heads: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One pass with these heads.

    Args:
        encoder: The encoder; its own tasks are not asked for.
        xs: Features, (b, t, d).
        lengths: Their lengths, (b).
        heads: The vector of a task for each utterance, (b, size). A method that serves
            one task at a time takes one for the whole batch, (1, size).

    Returns:
        Output, (b, t', width), and its lengths, (b).
    """
    adapter = encoder.adapter
    tensors = adapter.heads.layout.split(heads, adapter.heads.layout.sections[0])
    changes = dict(adapter.shared_changes())
    if not adapter.mixes:
        tensors = {k: t[0] for k, t in tensors.items()}
        changes.update(adapter.changes(tensors))
    after_layer = adapter.after_layers(tensors)
    prepared = view(encoder, encoder.layer_list, after_layer, changes)
    output, lengths, *_ = encoder.backbone_class.forward(prepared, xs, lengths)
    return output[0] if isinstance(output, tuple) else output, lengths


def own_logits(
    encoder: AdaptedEncoder, encoded: torch.Tensor, heads: torch.Tensor
) -> torch.Tensor | None:
    """What heads add to the CTC's logits, (b, t', tokens); None for nothing.

    Args:
        encoder: The encoder.
        encoded: Its output, (b, t', width).
        heads: As of :func:`encode`.
    """
    adapter: Any = encoder.adapter
    if adapter.ctc is None:
        return None
    own = adapter.heads.layout.split(heads, adapter.ctc.section)
    if not adapter.mixes:
        own = {name: t[0] for name, t in own.items()}
    return affine(encoded, own["ctc.weight"], own["ctc.bias"])
