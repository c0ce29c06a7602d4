#!/usr/bin/env python3
"""Time of a training step and of decoding with many tasks registered, against one.

    python benchmarks/many_tasks.py --tasks 10000

A step is forward, backward, gradient clipping and AdamW over all parameters, with one
task in the batch. Both encoders run in turn, in one process; what counts is the ratio
of the medians.
"""

import argparse
import functools
import statistics
import time
from typing import Callable, Dict, List

import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_hra.encoder import AdaptedEncoder, wrap_encoder


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=10_000, help="against 1")
    parser.add_argument("--width", type=int, default=144, help="d, and c")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--linear_units", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="of speech")
    parser.add_argument("--repeats", type=int, default=21)
    return parser.parse_args()


def build(args: argparse.Namespace, tasks: int) -> AdaptedEncoder:
    """An encoder with so many tasks."""
    torch.manual_seed(0)
    return wrap_encoder(ConformerEncoder)(
        80,
        output_size=args.width,
        num_blocks=args.layers,
        linear_units=args.linear_units,
        macaron_style=True,
        rel_pos_type="latest",
        adapter_conf={"controller_size": args.width},
        tasks=[f"task{i}" for i in range(tasks)],
    )


def compare(name: str, runs: Dict[int, Callable[[], None]], repeats: int) -> None:
    """Run all in turn and print one line."""
    times: Dict[int, List[float]] = {n: [] for n in runs}
    for repeat in range(repeats + 3):
        for n, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat >= 3:  # after the warm-up
                times[n].append(time.perf_counter() - start)
    one, many = times.values()
    pairs = statistics.quantiles([b / a for a, b in zip(one, many)], n=4)
    first, second = statistics.median(one), statistics.median(many)
    print(
        f"{name}: {1e3 * first:.1f} ms with 1 task, {1e3 * second:.1f} ms with "
        f"{max(runs):,}, ratio {second / first:.3f} "
        f"(pairs: quartiles {pairs[0]:.3f} to {pairs[2]:.3f})",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    args = parse()
    frames = int(100 * args.seconds)
    features = torch.randn(args.batch, frames, 80)
    lengths = torch.full((args.batch,), frames)
    encoders = {n: build(args, n) for n in (1, args.tasks)}
    optimizers = {
        n: torch.optim.AdamW(encoder.parameters(), lr=1e-4, weight_decay=0.01)
        for n, encoder in encoders.items()
    }

    def step(n: int) -> None:
        encoder = encoders[n]
        with encoder.use_task("task0"):
            output = encoder(features, lengths)[0]
        output.pow(4).mean().backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizers[n].step()
        optimizers[n].zero_grad()

    @torch.inference_mode()
    def decode(n: int) -> None:
        with encoders[n].use_task("task0"):
            encoders[n](features, lengths)

    for name, run in (("training step", step), ("decoding", decode)):
        for encoder in encoders.values():
            encoder.train(run is step)
        runs = {n: functools.partial(run, n) for n in encoders}
        compare(name, runs, args.repeats)


if __name__ == "__main__":
    main()
