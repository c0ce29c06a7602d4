#!/usr/bin/env python3
"""Time of an encoder with a hierarchical recurrent adapter, against without.

    python benchmarks/encoder_time.py --batch 1 8

Both run in turn, in one process, on the same input; what counts is the ratio of the
medians. The arithmetic for ESPnet's default Conformer is 1 + c / (12 d).
"""

import argparse
import statistics
import time
from typing import List

import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_hra.encoder import wrap_encoder


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=256, help="d")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--linear_units", type=int, default=2048)
    parser.add_argument("--controller_size", type=int, default=256, help="c")
    parser.add_argument("--head", choices=["linear", "ffn"], default="linear")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=10.0, help="of speech")
    parser.add_argument("--tasks", type=int, default=1, help="that are registered")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def main() -> None:
    """Measure and print one line per batch size."""
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    encoder = wrap_encoder(ConformerEncoder)(
        80,
        output_size=args.width,
        num_blocks=args.layers,
        linear_units=args.linear_units,
        rel_pos_type="latest",
        adapter_conf={"controller_size": args.controller_size, "head": args.head},
        tasks=[f"task{i}" for i in range(args.tasks)],
    ).eval()
    torch.nn.init.normal_(encoder.adapter.heads.vector("task0").data, std=0.01)
    frames = int(100 * args.seconds)
    for batch in args.batch:
        features = torch.randn(batch, frames, 80)
        lengths = torch.full((batch,), frames)
        seconds: dict = {None: [], "task0": []}
        with torch.inference_mode():
            for repeat in range(args.repeats + 3):
                for task, times in seconds.items():
                    encoder.set_task(task)
                    start = time.perf_counter()
                    encoder(features, lengths)
                    if repeat >= 3:  # after the warm-up
                        times.append(time.perf_counter() - start)
        print(report(batch, args, seconds[None], seconds["task0"]), flush=True)


def report(
    batch: int, args: argparse.Namespace, off: List[float], on: List[float]
) -> str:
    """One line: medians, their ratio, and the quartiles of the ratios pair by pair."""
    pairs = statistics.quantiles([b / a for a, b in zip(off, on)], n=4)
    without, with_hra = statistics.median(off), statistics.median(on)
    return (
        f"batch {batch}, d {args.width}, c {args.controller_size}, "
        f"{args.layers} layers, {args.threads} threads: "
        f"without {1e3 * without:.1f} ms, with {1e3 * with_hra:.1f} ms, "
        f"ratio {with_hra / without:.3f} "
        f"(pairs: quartiles {pairs[0]:.3f} to {pairs[2]:.3f})"
    )


if __name__ == "__main__":
    main()
