"""Times of several variants, and ratios of their medians."""

import gc
import math
import os
import platform
import random
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


class Ratio(NamedTuple):
    """A ratio, and the 5th and 95th percentile of its bootstrap (nan: one run only)."""

    value: float
    low: float
    high: float


def clock(run: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleave(
    runs: Mapping[str, Callable[[], None]],
    rounds: int,
    device: torch.device,
    warm_up: int = 2,
) -> dict[str, list[float]]:
    """Time variants in turn.

    Every round runs each of them once, in an order drawn anew, so that whatever else
    the machine does meets all of them, and none always runs behind the same other.
    Garbage is collected between the rounds and not while the clock runs.

    Args:
        runs: What to time, by name.
        rounds: How many times.
        device: What computes; a GPU is waited for.
        warm_up: Rounds that do not count.

    Returns:
        Milliseconds of each round, by name.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, drawn = list(runs), random.Random(0)
    collects = gc.isenabled()
    gc.collect()
    gc.freeze()  # what is there already need not be looked through every round
    gc.disable()
    try:
        for number in range(-warm_up, rounds):
            gc.collect()
            drawn.shuffle(order)
            for name in order:
                wait()
                start = time.perf_counter()
                runs[name]()
                wait()
                if number >= 0:
                    times[name].append(1e3 * (time.perf_counter() - start))
    finally:
        gc.unfreeze()
        if collects:
            gc.enable()
    return times


def ratio(
    values: Mapping[str, Sequence[float]],
    top: Sequence[str],
    bottom: Sequence[str],
    samples: int = 2000,
) -> Ratio:
    """The ratio of medians, with its interval.

    Rounds are drawn with replacement, the same ones for all variants: what slowed a
    whole round down cancels.

    Args:
        values: Of each variant, one value a round.
        top: The variant above; with a second name, what it has more than that one.
        bottom: The same, below.
        samples: Number of resamples.
    """
    arrays = {name: np.array(values[name], float) for name in {*top, *bottom}}
    rounds = min(map(len, arrays.values()))
    arrays = {name: array[:rounds] for name, array in arrays.items()}

    def of(index: np.ndarray) -> np.ndarray:
        median = {name: np.median(a[index], axis=-1) for name, a in arrays.items()}
        above = median[top[0]] - (median[top[1]] if len(top) > 1 else 0)
        below = median[bottom[0]] - (median[bottom[1]] if len(bottom) > 1 else 0)
        # Nothing to divide by: what is below does not cost anything.
        return np.where(below > 0, above / np.where(below > 0, below, 1), math.inf)

    value = float(of(np.arange(rounds)))
    if rounds < 2:
        return Ratio(value, math.nan, math.nan)
    seed = zlib.crc32(" ".join([*top, "/", *bottom]).encode())
    drawn = np.random.default_rng(seed).integers(rounds, size=(samples, rounds))
    # An order statistic, not a mean of two: some may be infinite.
    low, high = np.quantile(of(drawn), [0.05, 0.95], method="nearest")
    return Ratio(value, float(low), float(high))


# ---------------------------------------------------------------------- the machine


def machine(device: torch.device) -> str:
    """Processor, cores, memory, and the GPU if it computes."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text = f"{name}, {cores} cores, {memory:.0f} GiB"
    if device.type == "cuda":
        text = f"{torch.cuda.get_device_name(device)}; {text}"
    return text


def versions() -> str:
    """Of what computes."""
    parts = [f"python {platform.python_version()}"]
    for name in ("torch", "espnet", "peft"):
        try:
            parts.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            parts.append(f"{name} not installed")
    return ", ".join(parts)


def gmacs_per_second(device: torch.device) -> float:
    """What the machine does now, in billions of multiply-accumulates a second."""
    size = 512 if device.type == "cpu" else 4096
    matrix = torch.randn(size, size, device=device)
    matrix @ matrix
    seconds = [clock(lambda: (matrix @ matrix).sum().item()) for _ in range(5)]
    return size**3 / 1e9 / sorted(seconds)[2]
