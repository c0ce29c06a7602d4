"""What `espnet-hra bench speed` measures: blocks of variants, and how many rounds."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from espnet_hra.bench.backbones import Backbone, random_backbone
from espnet_hra.bench.speed_table import AGAIN
from espnet_hra.bench.variants import (
    Variant,
    hra,
    hra_ffn,
    import_peft,
    lora,
    residual,
)

#: What can be measured.
CASES = {
    "encoder": "encoder with an adapter / bare, batch 1 and 8",
    "mixed": "32 tasks in a batch / one task, and / PEFT's mixed batch",
    "training": "training step / full fine-tuning's, and / PEFT LoRA's",
    "memory": "peak memory of a training step / full fine-tuning's",
    "many": "10,000 registered tasks / one, decoding and training",
    "heads": "memory of 10,000 heads / their bytes",
    "growth": "curves over layers and batch, for the first backbone's width",
}

#: Billions of multiply-accumulates that a block may take on a CPU: rounds are as many
#: as that gives, between these bounds. A rule of the block alone, so that all machines
#: measure the same.
LIMIT, FEWEST, MOST = 1000, 5, 31

#: Seconds of speech in an utterance: the first with which a run stays below so many
#: billions of multiply-accumulates.
SPEECH = ((5.0, 25), (2.0, 0))


@dataclass(frozen=True)
class Sizes:
    """How large the cases are."""

    mixed: int = 32
    many: tuple[int, ...] = (1, 10, 100, 1000, 10_000)
    depths: tuple[int, ...] = (6, 12, 24, 48)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)


QUICK = Sizes(4, (1, 100), (2, 4), (1, 2, 4))


@dataclass(frozen=True)
class Block:
    """Variants that are measured together.

    Attributes:
        case: Key of :data:`CASES`.
        backbone: What they stand on.
        part: Which part of the case.
        work: ``decode`` or ``step``, of :class:`Subject`.
        kind: ``time``, ``peak`` or ``heads``.
        batch: Number of utterances.
        seconds: Of speech, in each.
        rounds: Runs of each variant.
        variants: They.
    """

    case: str
    backbone: Backbone
    part: str
    work: str
    kind: str
    batch: int
    seconds: float
    rounds: int
    variants: tuple[Variant, ...]

    @property
    def label(self) -> str:
        """The block in words."""
        return (
            f"{self.case}, {self.backbone.name}, {self.part}: {len(self.variants)} "
            f"variants, batch {self.batch} of {self.seconds:g} s, {self.rounds} rounds"
        )

    @property
    def warm_up(self) -> int:
        """Rounds that do not count; one where they are long."""
        return 2 if self.rounds > FEWEST else 1

    def estimate(self, rate: float) -> float:
        """Seconds that it takes, about.

        Args:
            rate: Billions of multiply-accumulates a second.
        """
        gmacs = self.backbone.gmacs * self.batch * self.seconds
        if self.work == "step":
            gmacs *= 2.3  # 3 for all weights, 2 for activations only
        runs = self.rounds + self.warm_up if self.kind == "time" else 3 * self.rounds
        if self.kind == "heads":
            gmacs = 0.0
        tasks = sum(v.tasks for v in self.variants)
        building = 0.3 + self.backbone.layers * self.backbone.width**2 * 2e-7
        seconds = len(self.variants) * (runs * (gmacs / rate + 0.01) + building)
        seconds += 4e-6 * runs * tasks if self.work == "step" else 0
        children = 0 if self.kind == "time" else len(self.variants) * self.rounds
        return seconds + 2.5 * children + 1e-4 * tasks + 2e-9 * self.head_bytes

    @property
    def head_bytes(self) -> int:
        """Bytes of all heads in it."""
        d = self.backbone.width
        return 4 * (d * d + d) * sum(v.tasks for v in self.variants)


# -------------------------------------------------------------------------- the plan


def plan(
    backbones: Sequence[Backbone],
    cases: Sequence[str],
    sizes: Sizes,
    repeats: int | None,
    seconds: float | None,
    device: torch.device,
) -> list[Block]:
    """All blocks, in the order in which they are measured.

    Args:
        backbones: The backbones; growth is measured at the width of the first.
        cases: Keys of :data:`CASES`.
        sizes: How large the cases are.
        repeats: Rounds of every block; None for as many as its size allows.
        seconds: Of speech; None for 5, or 2 where that takes long.
        device: What computes.
    """
    power = 1 if device.type == "cpu" else 500

    def block(
        case: str,
        backbone: Backbone,
        part: str,
        batch: int,
        variants: Sequence[Variant],
        work: str = "decode",
        kind: str = "time",
    ) -> Block:
        present = [v for v in variants if v.method != "lora" or import_peft()]
        speech = seconds
        if speech is None:
            one = backbone.gmacs * batch
            fits = (s for s, most in SPEECH if one * s <= most * power)
            speech = next(fits, SPEECH[-1][0])
        rounds = repeats
        if rounds is None:
            one = backbone.gmacs * batch * speech * (3 if work == "step" else 1)
            rounds = int(LIMIT * power / (one * len(present)))
            rounds = max(FEWEST, min(MOST, rounds))
            if kind != "time":
                rounds = 3 if rounds == MOST else 1
        return Block(
            *(case, backbone, part, work, kind, batch, speech, rounds),
            tuple(present),
        )

    blocks: list[Block] = []
    for case in cases:
        if case == "growth":
            blocks += _growth(backbones[0], sizes, block)
            continue
        for number, backbone in enumerate(backbones):
            blocks += _BLOCKS[case](backbone, sizes, block, number == 0)
    return blocks


def _encoder(b: Backbone, sizes: Sizes, block: Callable, first: bool) -> list[Block]:
    variants = [
        Variant("none", "none", b.text),
        Variant("none" + AGAIN, "none", b.text),
        hra(b),
        hra(b, "hra_plain", output_scale="none"),
        hra(b, "hra_half", c=b.width // 2),
        hra_ffn(b),
        residual(b),
        lora(b, "lora8", 8),
        lora(b, "lora8_merged", 8, merged=True),
    ]
    return [block("encoder", b, f"batch {n}", n, variants) for n in (1, 8)]


def _mixed(b: Backbone, sizes: Sizes, block: Callable, first: bool) -> list[Block]:
    n = sizes.mixed
    variants = [
        Variant("none", "none", b.text),
        Variant("none" + AGAIN, "none", b.text),
        hra(b, tasks=n),
        hra(b, "hra_mixed", tasks=n, mixed=True),
        lora(b, "lora8", 8, tasks=n),
        lora(b, "lora8_mixed", 8, tasks=n, mixed=True),
        lora(b, "lora_mixed", tasks=n, mixed=True),
        residual(b, "residual_mixed", tasks=n, mixed=True),
    ]
    if first:
        variants += [
            hra_ffn(b, tasks=n),
            hra_ffn(b, "hra_ffn_mixed", tasks=n, mixed=True),
        ]
    return [block("mixed", b, f"{n} tasks", n, variants)]


def _training(b: Backbone, sizes: Sizes, block: Callable, first: bool) -> list[Block]:
    variants = [
        Variant("full", "full"),
        hra(b),
        hra(b, "hra" + AGAIN),
        hra(b, "hra_dropout", backbone_dropout=True),
        hra(b, "hra_head", regime="new_task"),
        residual(b),
        lora(b, "lora"),
        lora(b, "lora8", 8),
    ]
    return [block("training", b, "training step", 4, variants, "step")]


def _memory(b: Backbone, sizes: Sizes, block: Callable, first: bool) -> list[Block]:
    n = sizes.mixed
    step = [
        Variant("full", "full"),
        hra(b),
        hra(b, "hra" + AGAIN),
        hra(b, "hra_dropout", backbone_dropout=True),
        residual(b),
        lora(b, "lora"),
    ]
    decode = [
        Variant("none", "none", b.text),
        hra(b, "hra_mixed", tasks=n, mixed=True),
        lora(b, "lora_mixed", tasks=n, mixed=True),
    ]
    return [
        block("memory", b, "training step", 4, step, "step", "peak"),
        block("memory", b, f"decoding, {n} tasks", n, decode, "decode", "peak"),
    ]


def _many(b: Backbone, sizes: Sizes, block: Callable, first: bool) -> list[Block]:
    counts = sizes.many if first else (sizes.many[0], sizes.many[-1])
    variants = [hra(b, f"hra_{n}", tasks=n) for n in counts]
    variants.insert(1, dataclasses.replace(variants[0], name=f"hra_{counts[0]}{AGAIN}"))
    return [
        block("many", b, "decoding", 4, variants),
        block("many", b, "training step", 4, variants, "step"),
    ]


def _heads(b: Backbone, sizes: Sizes, block: Callable, first: bool) -> list[Block]:
    n = sizes.many[-1]
    variants = [hra(b, "heads", tasks=n)]
    return [block("heads", b, f"{n:,} tasks", 1, variants, "decode", "heads")]


_BLOCKS = {
    "encoder": _encoder,
    "mixed": _mixed,
    "training": _training,
    "memory": _memory,
    "many": _many,
    "heads": _heads,
}


def _growth(first: Backbone, sizes: Sizes, block: Callable) -> Iterator[Block]:
    for layers in sizes.depths:
        b = random_backbone(f"{layers}x{first.width}")
        variants = [
            Variant("none", "none", b.text),
            hra(b),
            residual(b),
            lora(b, "lora8", 8),
        ]
        yield block("growth", b, f"{layers} layers", 1, variants)
    for n in sizes.batches:
        variants = [
            Variant("none", "none", first.text),
            hra(first, tasks=n),
            hra(first, "hra_mixed", tasks=n, mixed=True),
            lora(first, "lora", tasks=n),
            lora(first, "lora_mixed", tasks=n, mixed=True),
        ]
        yield block("growth", first, f"batch {n}", n, variants)
