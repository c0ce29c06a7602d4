"""What HRA costs in time and memory: against the bare encoder, and against its rivals.

::

    espnet-hra bench speed                       # everything, into speed/
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from espnet_hra.bench import memory, speed_page, timing
from espnet_hra.bench.backbones import (
    PACK,
    SHIPPED,
    Backbone,
    random_backbone,
    trained_backbone,
)
from espnet_hra.bench.speed_cases import (
    CASES,
    FEWEST,
    MOST,
    QUICK,
    Block,
    Sizes,
    plan,
)
from espnet_hra.bench.speed_table import AGAIN, TSV, Row, SpeedError
from espnet_hra.bench.variants import Subject, Variant, import_peft
from espnet_hra.files.shipped import RecipeError, find_recipe
from espnet_hra.files.tables import read_table, write_table
from espnet_hra.report.environment import git
from espnet_hra.report.results import merge

#: By default, next to the trained one.
RANDOM = ("12x256", "18x512")

#: Share of a matrix product's speed that an encoder reaches, for the estimate.
EFFICIENCY = 0.5


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
        self.rows = read_table(self.table, Row)
        commit = git(Path(__file__).parent, "rev-parse", "--short", "HEAD")
        status = ("status", "--porcelain", "--", str(Path(__file__).parent.parent))
        changed = commit and git(Path(__file__).parent, *status)
        self._shared: dict[str, Any] = {
            "machine": timing.machine(device),
            "device": device.type,
            "threads": threads,
            "versions": timing.versions(),
            "commit": f"{commit}+" if changed else commit,
        }
        self._stock: tuple[Backbone, torch.nn.Module] | None = None

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
        self.rows = merge(self.rows, measure[block.kind](block))
        write_table(self.table, self.rows, Row)

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
        if self._stock is None or self._stock[0] != block.backbone:
            self._stock = block.backbone, block.backbone.build().to(self.device)
        stock = self._stock[1]
        subjects: dict[str, Subject] = {}
        for variant in block.variants:
            original = variant.name.removesuffix(AGAIN)
            subjects[variant.name] = subjects.get(original) or Subject(
                variant, block.backbone, stock, block.batch, block.seconds
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
            _, task_params, arithmetic = found[0]
            rows.append(
                self._row(block, variant, peaks, task_params, arithmetic, unit="MiB")
            )
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
        help="where to write (default: speed; with --quick speed/quick)",
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
    out = Path(args.out or ("speed/quick" if args.quick else "speed"))
    if not args.page:
        torch.set_num_threads(args.threads)
        measure(args, cases, out)
    command = "espnet-hra bench speed" + (f" --out {args.out}" if args.out else "")
    files = speed_page.write(read_table(out / TSV, Row), out, command)
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
