#!/usr/bin/env python3
"""How often a head is in memory when requests follow Zipf's law.

    python benchmarks/cache_hits.py --tasks 1000000 --loaded 1000 10000

The k-th most popular task is asked for in proportion to 1 / k^s. Every request goes
through the real cache; only the files are left out: each is there, old enough to be
trusted, and holds one number. Counted is what comes after the cache is full.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from espnet_hra.tasks.cache import HeadCache
from espnet_hra.tasks.store import TaskStore, Version


class NoFiles(TaskStore):
    """A folder in which every task has a file that never changes."""

    def version(self, name: str) -> Version | None:
        return Version(0, 0, 0, 0, 0)

    def path(self, name: str) -> Path:
        return self.folder


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument(
        "--loaded", type=int, nargs="+", default=[1000, 10_000, 100_000]
    )
    parser.add_argument("--s", type=float, nargs="+", default=[0.8, 1.0, 1.2])
    parser.add_argument("--requests", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Simulate and print one line for each case."""
    args = parse()
    vector = torch.zeros(1)
    for s in args.s:
        shares = np.cumsum(np.arange(1, args.tasks + 1) ** -s)
        for loaded in args.loaded:
            generator = np.random.default_rng(args.seed)
            cache = HeadCache(NoFiles("."), lambda: lambda *_: vector, loaded)

            def serve(count: int) -> None:
                drawn = generator.random(count) * shares[-1]
                for rank in np.searchsorted(shares, drawn).tolist():
                    cache.get(f"task{rank}")

            serve(args.requests)
            while len(cache) < min(loaded, args.tasks):
                serve(args.requests)
            cache.hits = cache.misses = 0
            start = time.perf_counter()
            serve(args.requests)
            seconds = time.perf_counter() - start
            print(
                f"{args.tasks:,} tasks, s = {s}, {loaded:,} heads in memory: "
                f"{100 * cache.hits / args.requests:.1f} % of {args.requests:,} "
                f"requests hit; {1e6 * seconds / args.requests:.1f} us each",
                flush=True,
            )


if __name__ == "__main__":
    main()
