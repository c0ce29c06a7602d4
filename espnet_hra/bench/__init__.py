"""Benchmarks: programs that measure, resume where they stopped, and write tables."""

import argparse
import importlib
from collections.abc import Sequence

#: Each is a module of this package with a `main(argv)`.
BENCHMARKS = {
    "quality": "error rates of all adapters on one frozen backbone",
    "findings": "the page of open questions, from tables of results",
    "speed": "time and memory, against the bare encoder and the rivals",
    "many_tasks": "time, memory and pauses with thousands of tasks",
    "whisper": "how fast an adapted Whisper reads, beside faster-whisper",
    "soak": "kills, load and damage: does it stand them?",
    "serve": "requests a second of a server, and whether each text is right",
    "auto": "errors and time of choosing the task by confidence",
    "cache_hits": "how often a task is in memory, by popularity and cache size",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of :data:`BENCHMARKS`.

    Args:
        argv: Its name and its options.

    Returns:
        The exit status.
    """
    listed = "\n".join(f"  {name:<12}{text}" for name, text in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="espnet-hra bench",
        usage="espnet-hra bench BENCHMARK [OPTION ...]",
        epilog=f"benchmarks:\n{listed}\n\n"
        "espnet-hra bench BENCHMARK --help lists its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "benchmark", choices=BENCHMARKS, metavar="BENCHMARK", help="below"
    )
    words = list(argv or ())
    name = parser.parse_args(words[:1]).benchmark
    return importlib.import_module(f"espnet_hra.bench.{name}").main(words[1:])
