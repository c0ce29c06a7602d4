"""How often a head is in memory when requests follow Zipf's law.

    espnet-hra bench cache_hits --tasks 1000000 --loaded 1000 10000

The k-th most popular task is asked for in proportion to 1 / k^s. Every request goes
through the real cache; only the files are left out: each is there, old enough to be
trusted, and holds one number. Counted is what comes after the cache is full.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from espnet_hra.bench.timing import clock
from espnet_hra.tasks.cache import Head, HeadCache
from espnet_hra.tasks.store import TaskStore, Version


class NoFiles(TaskStore):
    """A folder in which every task has a file that never changes."""

    def version(self, name: str) -> Version | None:
        return Version(0, 0, 0, 0, 0)

    def path(self, name: str) -> Path:
        return self.folder


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra bench cache_hits",
        description="How often a head is in memory when requests follow Zipf's law.",
    )
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument(
        "--loaded", type=int, nargs="+", default=[1000, 10_000, 100_000]
    )
    parser.add_argument("--s", type=float, nargs="+", default=[0.8, 1.0, 1.2])
    parser.add_argument("--requests", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate and print one line for each case."""
    args = get_parser().parse_args(argv)
    for s in args.s:
        shares = np.cumsum(np.arange(1, args.tasks + 1) ** -s)
        for loaded in args.loaded:
            simulate(args, s, shares, loaded)


def simulate(
    args: argparse.Namespace, s: float, shares: np.ndarray, loaded: int
) -> None:
    """One case.

    Args:
        args: The options.
        s: The law's exponent.
        shares: Cumulated popularity of the tasks, (tasks).
        loaded: Heads that are kept in memory.
    """
    generator = np.random.default_rng(args.seed)
    head = Head(torch.zeros(1), {})
    cache = HeadCache(NoFiles("."), lambda: lambda *_: head, loaded)

    def serve() -> None:
        drawn = generator.random(args.requests) * shares[-1]
        for rank in np.searchsorted(shares, drawn).tolist():
            cache.get(f"task{rank}")

    serve()
    while len(cache) < min(loaded, args.tasks):
        serve()
    cache.hits = cache.misses = 0
    seconds = clock(serve)
    print(
        f"{args.tasks:,} tasks, s = {s}, {loaded:,} heads in memory: "
        f"{100 * cache.hits / args.requests:.1f} % of {args.requests:,} "
        f"requests hit; {1e6 * seconds / args.requests:.1f} us each",
        flush=True,
    )
