"""How many parameters learn, are shared, and belong to each task."""

import json
from collections.abc import Iterable
from typing import Any

import torch

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.files.tables import aligned


def count(model: torch.nn.Module) -> dict[str, Any]:
    """Parameters of an adapted ESPnet model.

    Args:
        model: Model with an adapted encoder at ``encoder``.

    Returns:
        ``backbone`` (everything that is not the adapter's), ``shared`` (the controller
        of HRA), ``per_task`` by name, ``one_task``, ``trainable``, the method's
        ``formula``, multiply-accumulates per encoder frame: ``adapter_macs`` and
        ``layer_macs``, and those of the adapter per token of an adapted decoder:
        ``decoder_macs``.
    """
    encoder = model.encoder
    assert isinstance(encoder, AdaptedEncoder), "asked for adapted models only"
    adapter = encoder.adapter
    total = sum(p.numel() for p in model.parameters())
    own = sum(p.numel() for p in adapter.parameters())
    return {
        "adapter": adapter.config["adapter"],
        "config": adapter.config,
        "backbone": total - own,
        "shared": sum(p.numel() for p in adapter.shared_parameters().values()),
        "one_task": adapter.heads.size,
        "per_task": {
            name: adapter.heads.vector(name).numel() for name in adapter.heads.own
        },
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "formula": adapter.formula(),
        "adapter_macs": adapter.macs(),
        "decoder_macs": adapter.decoder_macs(),
        "layer_macs": layer_macs(encoder.layer_list.each(encoder)),
    }


def layer_macs(layers: Iterable[torch.nn.Module]) -> int:
    """Multiply-accumulates of the layers' weights per encoder frame.

    One for each weight of a linear layer or convolution over time; the products of
    attention, which grow with the length of the utterance, are not in it.
    """
    kinds = (torch.nn.Linear, torch.nn.Conv1d)
    return sum(
        module.weight.numel()
        for layer in layers
        for module in layer.modules()
        if isinstance(module, kinds)
    )


def table(counts: dict[str, Any], title: str = "Parameters") -> str:
    """The counts for people.

    Args:
        counts: From :func:`count`.
        title: First line.
    """
    tasks = counts["per_task"]
    backbone, own = counts["backbone"], counts["shared"] + sum(tasks.values())
    percent = 100.0 / backbone
    rows: list[list[str]] = [["", "parameters", "of backbone"]]

    def row(label: str, number: int) -> None:
        rows.append([label, f"{number:,}", f"{number * percent:.3f} %"])

    row("backbone (frozen)", backbone)
    if counts["shared"]:
        row("controller (shared by all layers and tasks)", counts["shared"])
    row("one task", counts["one_task"])
    row(f"all {len(tasks):,} tasks", sum(tasks.values()))
    row("trainable now", counts["trainable"])
    lines = [
        f"{title}: {json.dumps(counts['config'], sort_keys=True)}",
        *(f"  {line}" for line in aligned(rows)),
        f"  trainable share of the model: "
        f"{100.0 * counts['trainable'] / (backbone + own):.3f} %",
        f"  formula: shared {counts['formula']['shared']:,}, per task "
        f"{counts['formula']['per_task']:,}",
        f"  multiply-accumulates per encoder frame: adapter {counts['adapter_macs']:,},"
        f" layers' weights {counts['layer_macs']:,} "
        f"(+{100.0 * counts['adapter_macs'] / counts['layer_macs']:.1f} %)",
    ]
    return "\n".join(lines)
