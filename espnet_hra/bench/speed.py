"""What HRA costs in time and memory: against the bare encoder, and against its rivals.

::

    espnet-hra bench speed                       # everything, into benchmarks/
    espnet-hra bench speed --cases mixed --backbones 12x256
    espnet-hra bench speed --page                # the page, anew, of what is there

Every block of variants is measured together (:mod:`espnet_hra.bench.timing`) and its
runs are written to ``speed.tsv`` at once: what is there for this machine and these
settings is not measured again. ``SPEED.md`` and its pictures are made of the table
(:mod:`espnet_hra.bench.speed_page`).
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from espnet_hra.bench import memory, speed_page, timing
from espnet_hra.bench.backbones import (
    PACK,
    SHIPPED,
    Backbone,
    random_backbone,
    trained_backbone,
)
from espnet_hra.bench.speed_page import AGAIN, TSV, Row, SpeedError
from espnet_hra.bench.variants import (
    Subject,
    Variant,
    hra,
    hra_ffn,
    import_peft,
    lora,
    residual,
)
from espnet_hra.commands.recipe import RecipeError, find_recipe
from espnet_hra.report import page as report
from espnet_hra.report import scoring

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

#: By default, next to the trained one.
RANDOM = ("12x256", "18x512")

#: Billions of multiply-accumulates that a block may take on a CPU: rounds are as many
#: as that gives, between these bounds. A rule of the block alone, so that all machines
#: measure the same.
LIMIT, FEWEST, MOST = 1000, 5, 31

#: Seconds of speech in an utterance: the first with which a run stays below so many
#: billions of multiply-accumulates.
SPEECH = ((5.0, 25), (2.0, 0))

#: Share of a matrix product's speed that an encoder reaches, for the estimate.
EFFICIENCY = 0.5


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


# --------------------------------------------------------------------- measuring


class Bench:
    """Measures blocks and keeps the table.

    Args:
        out: The folder of the table.
        device: What computes.
        threads: Of the processor.
    """

    def __init__(self, out: Path, device: torch.device, threads: int):
        self.table, self.device, self.threads = out / TSV, device, threads
        self.rows = speed_page.read(self.table)
        commit = report._git(Path(__file__).parent, "rev-parse", "--short", "HEAD")
        status = ("status", "--porcelain", "--", str(Path(__file__).parent.parent))
        changed = commit and report._git(Path(__file__).parent, *status)
        self._shared = {
            "machine": timing.machine(device),
            "device": device.type,
            "threads": threads,
            "versions": timing.versions(),
            "commit": f"{commit}+" if changed else commit,
        }
        self._stock: tuple[Backbone | None, torch.nn.Module | None] = None, None

    def has(self, block: Block) -> bool:
        """Whether all of its variants are in the table, with these settings."""
        known = {row.key for row in self.rows}
        return all(self._row(block, v).key in known for v in block.variants)

    def lacks_memory_for(self, block: Block) -> bool:
        """Whether the heads of a block would not fit."""
        return 1.2 * block.head_bytes > memory.available(self.device)

    def measure(self, block: Block) -> None:
        """Measure a block, and write its rows."""
        measure = {"time": self._times, "peak": self._peaks, "heads": self._heads}
        self.rows = scoring.merge(self.rows, measure[block.kind](block))
        scoring.write_table(self.table, self.rows, Row)

    def _row(
        self,
        block: Block,
        variant: Variant,
        values: Sequence[float] = (),
        task_params: int = 0,
        arithmetic: float = 1.0,
        unit: str = "ms",
    ) -> Row:
        return Row(
            **self._shared,
            date=time.strftime("%Y-%m-%d %H:%M"),
            case=block.case,
            backbone=block.backbone.name,
            part=block.part,
            batch=block.batch,
            seconds=round(block.seconds, 2),  # as the table keeps it
            rounds=block.rounds,
            variant=variant.name,
            detail=variant.detail,
            task_params=task_params,
            arithmetic=f"{arithmetic:.3f}",
            unit=unit,
            values=" ".join(f"{value:.5g}" for value in values),
        )

    def _times(self, block: Block) -> list[Row]:
        if self._stock[0] != block.backbone:
            self._stock = block.backbone, block.backbone.build().to(self.device)
        subjects: dict[str, Subject] = {}
        for variant in block.variants:
            original = variant.name.removesuffix(AGAIN)
            subjects[variant.name] = subjects.get(original) or Subject(
                variant, block.backbone, self._stock[1], block.batch, block.seconds
            )
        runs = {name: getattr(s, block.work) for name, s in subjects.items()}
        times = timing.interleave(runs, block.rounds, self.device, block.warm_up)
        return [
            self._row(block, v, times[v.name], s.task_params, s.arithmetic)
            for v, s in zip(block.variants, subjects.values())
        ]

    def _peaks(self, block: Block) -> list[Row]:
        rows = []
        for variant in block.variants:
            work = (variant, block.work, block.batch, block.seconds)
            found = [
                memory.fresh(
                    memory.peak, block.backbone, *work, str(self.device), self.threads
                )
                for _ in range(block.rounds)
            ]
            peaks = [used for used, *_ in found]
            rows.append(self._row(block, variant, peaks, *found[0][1:], unit="MiB"))
        return rows

    def _heads(self, block: Block) -> list[Row]:
        (variant,) = block.variants
        found = [
            memory.fresh(
                memory.heads, block.backbone, variant, str(self.device), self.threads
            )
            for _ in range(block.rounds)
        ]
        own = dataclasses.replace(variant, name="bytes")
        return [
            self._row(block, v, values, found[0][2], unit="MiB")
            for v, values in zip((variant, own), zip(*(pair[:2] for pair in found)))
        ]


# ------------------------------------------------------------------- command line


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    cases = "\n".join(f"  {name:<10}{text}" for name, text in CASES.items())
    parser = argparse.ArgumentParser(
        prog="espnet-hra bench speed",
        description="Measure what HRA costs in time and memory, against the bare\n"
        "encoder, full fine-tuning, PEFT's LoRA and residual adapters, and write\n"
        f"{TSV}, {speed_page.MARKDOWN} and pictures. What is in {TSV} for this machine "
        "and\nthese settings is not measured again.",
        epilog=f"cases:\n{cases}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backbones",
        nargs="+",
        metavar="B",
        help=f"{SHIPPED}, or LxD: L layers of width D with random weights (default: "
        f"{SHIPPED} {' '.join(RANDOM)}; with --quick the first)",
    )
    parser.add_argument(
        "--cases", nargs="+", metavar="C", help="of those below (default: all)"
    )
    parser.add_argument(
        "--pretrained_model",
        help=f"an ESPnet model in the place of {SHIPPED} (default: {PACK})",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        help=f"rounds of every block (default: {FEWEST} to {MOST}, by its size; 1 or 3 "
        "for memory)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="of speech in an utterance (default: 5; 2 where a run is long)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="of the processor (default: %(default)s)",
    )
    parser.add_argument(
        "--ngpu",
        type=int,
        choices=(0, 1),
        default=int(torch.cuda.is_available()),
        help="1 to compute on a GPU (default: 1 if there is one)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where to write (default: benchmarks; with --quick benchmarks/quick)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="three rounds of small cases, to see that everything works",
    )
    parser.add_argument(
        "--again", action="store_true", help="measure what is there as well"
    )
    parser.add_argument(
        "--page", action="store_true", help="measure nothing, write the page anew"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the table, the page and the pictures.

    Args:
        argv: The arguments, by default those of the process.

    Returns:
        The exit status.

    Raises:
        UserError: An option has a value that is not possible.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.threads < 1 or (args.repeats or 1) < 1 or (args.seconds or 1) <= 0:
        parser.error("--threads, --repeats and --seconds must be above 0")
    if args.ngpu and not torch.cuda.is_available():
        raise SpeedError("--ngpu 1: torch sees no GPU; leave the option out for a CPU")
    cases = _cases(args.cases)
    out = Path(args.out or ("benchmarks/quick" if args.quick else "benchmarks"))
    if not args.page:
        torch.set_num_threads(args.threads)
        measure(args, cases, out)
    files = speed_page.write(speed_page.read(out / TSV), out, "espnet-hra bench speed")
    for file in files:
        print(file)
    return 0


def measure(args: argparse.Namespace, cases: Sequence[str], out: Path) -> None:
    """Measure what is not there yet, with a line for every block."""
    device = torch.device("cuda" if args.ngpu else "cpu")
    backbones = _backbones(args)
    if import_peft() is None:
        print(
            "PEFT is not installed: without its LoRA (pip install 'espnet-hra[lora]')"
        )
    bench = Bench(out, device, args.threads)
    sizes, repeats, seconds = Sizes(), args.repeats, args.seconds
    if args.quick:
        sizes, repeats, seconds = QUICK, repeats or 3, seconds or 1.0
    blocks = plan(backbones, cases, sizes, repeats, seconds, device)
    left = [b for b in blocks if args.again or not bench.has(b)]
    rate = EFFICIENCY * timing.gmacs_per_second(device)
    estimates = [block.estimate(rate) for block in left]
    print(
        f"{timing.machine(device)}, {args.threads} threads, {timing.versions()}"
        f"\n{len(blocks) - len(left)} of {len(blocks)} blocks are in {bench.table}; "
        f"the others take about {_minutes(sum(estimates))} (at {rate:.0f} billion "
        "multiply-accumulates a second)",
        flush=True,
    )
    start, before = time.monotonic(), 0.0
    for number, (block, estimate) in enumerate(zip(left, estimates), 1):
        name = f"[{number}/{len(left)}] {block.label}"
        if bench.lacks_memory_for(block):
            needed = block.head_bytes / memory.MIB
            print(f"{name}: left out, its heads need {needed:,.0f} MiB", flush=True)
            continue
        since = time.monotonic()
        bench.measure(block)
        before += estimate
        elapsed = time.monotonic() - start
        rest = sum(estimates[number:])
        if before > 0.1 * sum(estimates):  # the machine is slower or faster than that
            rest *= elapsed / before
        print(
            f"{name}: {time.monotonic() - since:.0f} s, about {_minutes(rest)} left",
            flush=True,
        )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _cases(names: Sequence[str] | None) -> list[str]:
    """The cases, in the order of :data:`CASES`."""
    for name in names or ():
        if name not in CASES:
            raise SpeedError(
                f"--cases: {name!r} is no case; there are: {', '.join(CASES)}"
            )
    return [name for name in CASES if not names or name in names]


def _backbones(args: argparse.Namespace) -> list[Backbone]:
    """The backbones that are asked for, or those that there are."""
    source = args.pretrained_model or _shipped()
    names = args.backbones
    if names is None:
        names = [*([SHIPPED] if source else []), *RANDOM]
        if not source:
            print(f"{PACK} is not here: without the trained backbone")
        names = names[:1] if args.quick else names
    found = []
    for name in dict.fromkeys(names):
        if name != SHIPPED:
            found.append(random_backbone(name))
        elif source is None:
            raise SpeedError(
                f"--backbones {SHIPPED}: {PACK} is not here: go to the top of the "
                "repository, or name an ESPnet model with --pretrained_model"
            )
        else:
            found.append(trained_backbone(source))
    return found


@functools.cache
def _shipped() -> str | None:
    """The trained backbone of the repository, from here or in the package."""
    if PACK.is_file():
        return str(PACK)
    try:
        pack = find_recipe() / "pretrained" / PACK.name
    except RecipeError:
        return None
    return str(pack) if pack.is_file() else None
