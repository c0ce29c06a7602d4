r"""How many requests a server answers, and whether each text is the right one.

::

    espnet-hra bench serve --model exp/asr_hra --data dump/test --minutes 10

starts ``espnet-hra serve`` and asks it for every recording once, one at a time: these
texts are the right ones. Then clients ask all at once, in blocks that take turns:
*mixed* (every request has one of many tasks) and *one* (all have the same task), each
for so many minutes. Every text is compared. The throughput of both is compared block by
block, so that whatever else the machine does meets both.

``--random_heads`` puts tasks of random values on a base: for time and equality they are
as good as trained ones.
"""

import argparse
import dataclasses
import random
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from espnet_hra.bench import timing
from espnet_hra.bench.random_heads import adapt_at_random
from espnet_hra.bench.serve_load import Block, Load, Pair, Server, serving
from espnet_hra.data.audio import read_audio
from espnet_hra.data.lists import read_entries
from espnet_hra.errors import ConfigError, DataError
from espnet_hra.files.tables import write_table

MIXED, ONE = "mixed", "one"

#: With how many tasks each recording is read in the mixed load.
_TASKS_EACH = 4


@dataclasses.dataclass(frozen=True)
class Line:
    """What came of one kind of load, a line of the table.

    Attributes:
        load: mixed or one.
        tasks: How many different ones were asked for.
        requests: How many were answered with a text.
        wrong: Texts that differ from those of a request alone.
        refused: How often a client was told to come again.
        seconds: Of the blocks.
        per_second: Requests.
        speed: Seconds of speech in a second.
        pieces: Mean of a batch.
        batch_tasks: Mean of a batch.
        again: Share of pieces that were decoded again, alone, in percent.
        p50: Of a request, in milliseconds.
        p95: Likewise.
        p99: Likewise.
    """

    load: str
    tasks: int
    requests: int
    wrong: int
    refused: int
    seconds: float
    per_second: float
    speed: float
    pieces: float
    batch_tasks: float
    again: float
    p50: float
    p95: float
    p99: float


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra bench serve",
        usage="espnet-hra bench serve [OPTION ...] [-- OPTION OF SERVE ...]",
        description="How many requests a server answers, and whether each is right.",
    )
    parser.add_argument("--model", required=True, help="as of espnet-hra serve")
    parser.add_argument("--data", type=Path, required=True, help="folder with wav.scp")
    parser.add_argument("--recordings", type=int, default=48, help="(default: 48)")
    parser.add_argument("--tasks", type=int, default=32, help="(default: 32)")
    parser.add_argument(
        "--random_heads", action="store_true", help="--model is a base without tasks"
    )
    parser.add_argument("--clients", type=int, default=8, help="(default: 8)")
    parser.add_argument(
        "--minutes", type=float, default=10, help="of each load (default: 10)"
    )
    parser.add_argument(
        "--block", type=float, default=30, help="seconds of a turn (default: 30)"
    )
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--out", type=Path, help="write the table as TSV here")
    parser.add_argument("serve", nargs="*", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table.

    Returns:
        1 if a text was wrong or the server did not end in an orderly way, else 0.

    Raises:
        ConfigError: The server does not start, or there are too few tasks.
        DataError: There are no recordings.
    """
    args = get_parser().parse_args(argv)
    recordings = draw(args.data, args.recordings)
    with ExitStack() as stack:
        model = args.model
        if args.random_heads:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            model = adapt_at_random(args.model, Path(folder) / "random", args.tasks)
        with serving(str(model), args.threads, args.serve) as server:
            lines, blocks = _measure(args, server, recordings)
    _report(args, lines, blocks)
    if args.out:
        write_table(args.out, lines, Line)
    print(f"the server ended with status {server.status}")
    return int(any(line.wrong for line in lines) or server.status != 0)


def draw(folder: Path, count: int) -> dict[str, float]:
    """Recordings of a folder, drawn at random, and their lengths in seconds.

    Raises:
        DataError: There are none.
    """
    paths = list(read_entries(folder / "wav.scp").values())
    random.Random(0).shuffle(paths)
    found = {}
    for path in paths[:count]:
        samples, rate = read_audio(path)
        found[path] = len(samples) / rate
    if not found:
        raise DataError(f"{folder}: there are no recordings in wav.scp")
    return found


def _measure(
    args: argparse.Namespace, server: Server, recordings: Mapping[str, float]
) -> tuple[list[Line], list[Block]]:
    tasks = server.tasks()[: args.tasks]
    if len(tasks) < args.tasks:
        raise ConfigError(
            f"--tasks {args.tasks}: the model has {len(tasks)}; give fewer, or a base "
            "and --random_heads"
        )
    each = min(_TASKS_EACH, len(tasks))
    pairs: dict[str, list[Pair]] = {
        MIXED: [
            (path, tasks[(each * i + k) % len(tasks)])
            for i, path in enumerate(recordings)
            for k in range(each)
        ],
        ONE: [(path, tasks[0]) for path in recordings],
    }
    load = Load(server, recordings, args.clients)
    load.read_alone(sorted({*pairs[MIXED], *pairs[ONE]}))
    drawn, blocks = random.Random(0), []
    turns = max(1, round(60 * args.minutes / args.block))
    for number in range(turns):
        for name in drawn.sample([MIXED, ONE], 2):
            block = load.run(name, pairs[name], args.block, seed=number)
            blocks.append(block)
            print(
                f"    turn {number + 1} of {turns}, {name}: {len(block.latencies)} "
                f"requests, {len(block.wrong)} wrong, {server.memory():.0f} MiB",
                flush=True,
            )
    lines = [
        line_of(name, len({task for _, task in pairs[name]}), blocks)
        for name in (MIXED, ONE)
    ]
    return lines, blocks


def line_of(load: str, tasks: int, blocks: Sequence[Block]) -> Line:
    """The line of one kind of load."""
    own = [block for block in blocks if block.load == load]
    latencies = np.array([t for block in own for t in block.latencies])
    seconds = sum(block.seconds for block in own)

    def counted(name: str) -> float:
        return sum(block.counts.get(name, 0.0) for block in own)

    batches, pieces = counted("batch_pieces_count"), counted("batch_pieces_sum")
    p50, p95, p99 = 1e3 * np.quantile(latencies, [0.5, 0.95, 0.99])
    return Line(
        load,
        tasks,
        len(latencies),
        sum(len(block.wrong) for block in own),
        sum(block.refused for block in own),
        seconds,
        len(latencies) / seconds,
        sum(block.speech for block in own) / seconds,
        pieces / max(1, batches),
        counted("batch_tasks_sum") / max(1, batches),
        100 * counted("decoded_alone_total") / max(1, pieces),
        float(p50),
        float(p95),
        float(p99),
    )


def ratio_of(blocks: Sequence[Block]) -> timing.Ratio:
    """Throughput of the mixed load by that of the other, with its interval."""
    speeds: dict[str, list[float]] = {MIXED: [], ONE: []}
    for block in blocks:
        speeds[block.load].append(block.speech / block.seconds)
    return timing.ratio(speeds, [MIXED], [ONE])


def _report(
    args: argparse.Namespace, lines: Sequence[Line], blocks: Sequence[Block]
) -> None:
    for line in lines:
        print(
            f"{line.load:<6}{line.tasks:4} tasks: {line.requests:,} requests in "
            f"{line.seconds:.0f} s, {line.wrong} wrong, {line.refused} refused; "
            f"{line.per_second:.1f} a second, {line.speed:.1f} x real time; batches of "
            f"{line.pieces:.1f} with {line.batch_tasks:.1f} tasks, {line.again:.2f} % "
            f"decoded again; p50 {line.p50:.0f}, p95 {line.p95:.0f}, p99 "
            f"{line.p99:.0f} ms"
        )
        for path, task in [w for b in blocks if b.load == line.load for w in b.wrong]:
            print(f"    wrong: {task} {path}")
    value, low, high = ratio_of(blocks)
    print(
        f"throughput mixed / one: {value:.3f} (90 % interval {low:.3f} to {high:.3f})"
    )
    cpu = torch.device("cpu")
    print(f"{args.clients} clients, {args.threads} threads; {timing.machine(cpu)}")
    print(timing.versions())
