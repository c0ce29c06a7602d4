"""``SPEED.md``, made of ``speed.tsv`` alone.

What stands in the table are runs: milliseconds or MiB, one value for each round of each
variant. Ratios, intervals and verdicts are computed from them here.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_hra.bench.speed_picture import draw
from espnet_hra.bench.speed_table import (
    TSV,
    Measurement,
    Row,
    SpeedError,
    measurements,
)
from espnet_hra.bench.timing import Ratio
from espnet_hra.files import atomic
from espnet_hra.files.tables import markdown
from espnet_hra.report.pictures import encoded

MARKDOWN = "SPEED.md"


@dataclass(frozen=True)
class Claim:
    """A ratio that is shown.

    Attributes:
        text: What it is; the sizes of the variants are added.
        case: Where it is measured.
        top: The variant above; with a second name, what it has more than that one.
        bottom: The same, below.
        target: What it is to be at most.
        only: The part for which that holds; empty for all.
        arithmetic: Whether multiply-accumulates say what to expect.
    """

    text: str
    case: str
    top: tuple[str, ...]
    bottom: tuple[str, ...]
    target: float | None = None
    only: str = ""
    arithmetic: bool = False


_MIXED = "32 tasks"
_MANY = "10,000 tasks"

#: What is shown, in this order.
CLAIMS = (
    Claim("HRA, c = d / bare", "encoder", ("hra",), ("none",), 1.09, "", True),
    Claim("HRA, c = d / bare", "encoder", ("hra_plain",), ("none",), None, "", True),
    Claim("HRA, c = d/2 / bare", "encoder", ("hra_half",), ("none",), 1.05, "", True),
    Claim("HRA, ffn head / bare", "encoder", ("hra_ffn",), ("none",), None, "", True),
    Claim("residual / bare", "encoder", ("residual",), ("none",), None, "", True),
    Claim("PEFT LoRA / bare", "encoder", ("lora8",), ("none",), None, "", True),
    Claim("PEFT LoRA, merged / bare", "encoder", ("lora8_merged",), ("none",)),
    Claim(
        "HRA, a task per utterance / one task",
        "mixed",
        ("hra_mixed",),
        ("hra",),
        1.05,
        _MIXED,
    ),
    Claim(
        "HRA, ffn head, a task per utterance / one task",
        "mixed",
        ("hra_ffn_mixed",),
        ("hra_ffn",),
    ),
    Claim(
        "PEFT LoRA, `adapter_names` / one task", "mixed", ("lora8_mixed",), ("lora8",)
    ),
    Claim(
        "what HRA's mixed batch adds to bare / what PEFT's adds, at HRA's budget",
        "mixed",
        ("hra_mixed", "none"),
        ("lora_mixed", "none"),
        0.5,
        _MIXED,
    ),
    Claim(
        "what HRA's mixed batch adds to bare / what PEFT's adds, r = 8",
        "mixed",
        ("hra_mixed", "none"),
        ("lora8_mixed", "none"),
    ),
    Claim(
        "what HRA's mixed batch adds to bare / what our residual adapters' adds",
        "mixed",
        ("hra_mixed", "none"),
        ("residual_mixed", "none"),
    ),
    Claim("HRA / full fine-tuning", "training", ("hra",), ("full",), 0.75),
    Claim("HRA / full fine-tuning", "training", ("hra_dropout",), ("full",), 0.75),
    Claim("HRA, a head only / full fine-tuning", "training", ("hra_head",), ("full",)),
    Claim("PEFT LoRA / full fine-tuning", "training", ("lora",), ("full",)),
    Claim("residual / full fine-tuning", "training", ("residual",), ("full",)),
    Claim("HRA / PEFT LoRA at HRA's budget", "training", ("hra",), ("lora",), 1.1),
    Claim("HRA / PEFT LoRA, r = 8", "training", ("hra",), ("lora8",)),
    Claim("HRA / full fine-tuning", "memory", ("hra",), ("full",), 0.6),
    Claim("HRA / full fine-tuning", "memory", ("hra_dropout",), ("full",), 0.6),
    Claim("PEFT LoRA / full fine-tuning", "memory", ("lora",), ("full",)),
    Claim("residual / full fine-tuning", "memory", ("residual",), ("full",)),
    Claim("HRA, a task per utterance / bare", "memory", ("hra_mixed",), ("none",)),
    Claim("PEFT LoRA, `adapter_names` / bare", "memory", ("lora_mixed",), ("none",)),
    Claim("10,000 tasks registered / 1", "many", ("hra_10000",), ("hra_1",)),
    Claim(
        "memory of the heads / their bytes", "heads", ("heads",), ("bytes",), 1.1, _MANY
    ),
)

#: Targets that depend on the part.
_TARGETS = {("many", "decoding"): 1.02, ("many", "training step"): 1.1}

_INTRO = """\
Ratios of medians: every round runs all variants of a block once, in an order drawn
anew, in one process, after a warm-up, with the garbage collector off; intervals are the
5th and 95th percentile of a bootstrap over rounds. *Same twice* is the ratio of a
variant to itself, timed as if it were another: what the machine's noise does to a ratio
of 1. A target is *met* or *missed* by the ratio; *within noise* says that it is nearer
to the target than that noise, or that the interval has both sides. A "-" is no number:
what is below costs nothing that could be measured. float32 everywhere.

* **Backbones**: `shipped` is the trained backbone of the repository; `LxD` a Conformer
  of L layers of width D with random weights: conv2d subsampling to 25 frames a second,
  macaron feed-forward of 4 D, relative attention (4 heads, 8 from D = 512), convolution
  kernel 31. Inputs are features of 80 bands: the frontend is not in the times.
* **bare** is ESPnet's own encoder. All variants stand on the same tensors. `HRA` is
  that of the recipe: an IndRNN controller, a linear head (where nothing else is said),
  and a learned scale for each layer; `residual` is this package's; LoRA is PEFT's own
  model on ESPnet's own encoder, on linear_q and linear_v; *at HRA's budget* is the rank
  whose tasks come nearest to HRA's parameters (c = d).
* **arithmetic**: multiply-accumulates of the layers' weights with the adapter over
  those without; for `LxD` it is 1 + c / (12 d).
* A **training step** is forward, CTC (64 tokens), backward, clipping over all
  parameters, and AdamW over those with a gradient, as `espnet-hra train` does it; one
  task is in the batch. HRA trains controller and head. BatchNorm is frozen in all
  variants, full fine-tuning too. Dropout is at work in full fine-tuning; a frozen
  backbone has none (this package's default, set for PEFT's LoRA as well), except where
  the table says *backbone's dropout*.
* **Memory** on a CPU is the largest resident set during the third step, in a process of
  its own, less what was there before anything was built: weights, gradients, states of
  the optimizer and activations are in it. On a GPU it is torch's
  `max_memory_allocated`.
* **Registered** tasks are in the model and the optimizer; one of them is in the batch.
"""


# ---------------------------------------------------------------------- the page


def write(rows: Sequence[Row], folder: Path, command: str) -> list[Path]:
    """Write the page and its pictures.

    Args:
        rows: Of the table.
        folder: Where to write.
        command: The command that makes them.

    Returns:
        The files, the page first.

    Raises:
        SpeedError: There is nothing to show.
    """
    if not rows:
        raise SpeedError(f"there are no results to show: {folder / TSV} has no lines")
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        "# What HRA costs: time and memory\n",
        f"Made of [{TSV}]({TSV}) by `{command}`, which writes all of it anew.\n",
        _INTRO,
    ]
    files = []
    by_environment: dict[tuple[Any, ...], list[Measurement]] = {}
    for measurement in measurements(rows):
        by_environment.setdefault(measurement.first.environment, []).append(measurement)
    for number, (environment, found) in enumerate(by_environment.items(), 1):
        name, device, threads, versions = environment
        commits = sorted({m.first.commit for m in found} - {""})
        dates = sorted({m.first.date for m in found})
        parts += [
            f"## {name}\n",
            f"{'GPU' if device == 'cuda' else f'CPU, {threads} threads'}; {versions}; "
            f"commit {', '.join(commits) or 'unknown'}; "
            f"{' to '.join(dict.fromkeys([dates[0], dates[-1]]))}.\n",
            "### Ratios\n",
            markdown(ratio_cells(found)),
        ]
        figure = draw(found, name)
        if figure is not None:
            stem = f"speed_{device}" + (f"_{number}" if number > 1 else "")
            for kind in ("png", "svg"):
                files.append(folder / f"{stem}.{kind}")
                atomic.write(files[-1], encoded(figure, kind))
            parts.append(f"![How time grows]({stem}.png)\n")
        parts += [
            "<details><summary>All medians</summary>\n",
            markdown(median_cells(found)),
            "</details>\n",
        ]
    atomic.write(folder / MARKDOWN, "\n".join(parts))
    return [folder / MARKDOWN, *files]


def verdict(found: Ratio, target: float | None, noise: Ratio | None = None) -> str:
    """Whether a ratio is at most the target, and whether noise could turn that.

    Args:
        found: The ratio.
        target: What it is to be at most; None for no verdict.
        noise: Of the same variant to itself, if that says something about this ratio.
    """
    if target is None:
        return ""
    if not math.isfinite(found.value):
        return "not measurable"
    met = found.value <= target
    unsure = found.low <= target < found.high
    if noise is not None:
        unsure |= abs(found.value / target - 1) <= abs(noise.value - 1)
    return ("met" if met else "**missed**") + (", within noise" if unsure else "")


def ratio_cells(found: Sequence[Measurement]) -> list[list[str]]:
    """The table of ratios.

    Args:
        found: Of one machine.
    """
    cells = [
        ["ratio", "of", "backbone", "batch", "s", "target", "arithmetic"]
        + ["measured", "5 to 95 %", "same twice", "runs", "target is"]
    ]
    for claim in CLAIMS:
        for m in found:
            value = m.ratio(claim.top, claim.bottom)
            if m.first.case != claim.case or value is None:
                continue
            row, target = m.first, claim.target
            target = _TARGETS.get((claim.case, row.part), target)
            if claim.only not in ("", row.part):
                target = None
            noise = m.noise
            rounds = min(len(m.rows[name].numbers) for name in claim.top)
            cells.append(
                [
                    _filled(claim, m),
                    _WORK.get(row.case, "{part}").format(part=row.part),
                    row.backbone,
                    str(row.batch),
                    f"{row.seconds:g}",
                    "" if target is None else f"{target:g}",
                    m.rows[claim.top[0]].arithmetic if claim.arithmetic else "",
                    f"**{_number(value.value)}**",
                    _range(value),
                    "" if noise is None else f"{noise.value:.3f}",
                    str(rounds),
                    # The noise of a ratio says nothing about one of differences.
                    verdict(value, target, noise if len(claim.top) == 1 else None),
                ]
            )
    return cells


#: What is measured, where the part does not say it.
_WORK = {"encoder": "encoder", "mixed": "encoder", "memory": "peak memory, {part}"}


def _filled(claim: Claim, m: Measurement) -> str:
    """The text of a claim, with the sizes of its variants."""
    details = dict.fromkeys(
        m.rows[name].detail
        for name in (claim.top[0], claim.bottom[0])
        if m.rows[name].detail and name not in ("none", "full", "bytes")
    )
    text = f"{claim.text} ({'; '.join(details)})" if details else claim.text
    return f"{text}, {m.first.part}" if claim.case == "mixed" else text


def median_cells(found: Sequence[Measurement]) -> list[list[str]]:
    """The table of all medians.

    Args:
        found: Of one machine.
    """
    cells = [["case", "part", "backbone", "batch", "s", "variant", "size"]]
    cells[0] += ["one task", "median", "runs", "/ first"]
    for m in found:
        base = next(iter(m.rows))
        for name, row in m.rows.items():
            value = m.ratio([name], [base])
            cells.append(
                [
                    row.case,
                    row.part,
                    row.backbone,
                    str(row.batch),
                    f"{row.seconds:g}",
                    name,
                    row.detail,
                    f"{row.task_params:,}" if row.task_params else "",
                    f"{statistics.median(row.numbers):,.1f} {row.unit}",
                    str(len(row.numbers)),
                    "" if value is None or name == base else _number(value.value),
                ]
            )
    return cells


def _range(value: Ratio) -> str:
    if math.isnan(value.low):
        return ""
    return f"{_number(value.low)} to {_number(value.high)}"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
