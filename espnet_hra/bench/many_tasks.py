"""What many tasks cost: time, memory, and pauses while tasks change.

    espnet-hra bench many_tasks --tasks 10000 [--measure time memory changes]

time: a training step and decoding with so many tasks registered, against one. A step
is forward, backward, gradient clipping and AdamW over all parameters, with one task in
the batch; once as a plain loop of PyTorch, once within ``stepping.used_only`` as
``espnet-hra train`` does it. Decoding is measured with tasks in memory, and with tasks
in a folder, where every batch has another one at random. All encoders run in turn, in
one process; what counts is the ratio of the medians.

memory: growth of the process (resident set) by registering the tasks in memory, by
attaching a folder with as many, and by serving from it.

changes: how long requests take, and how long one waits for its head, in percentiles:
alone; beside a thread that reads task files, which takes its share of the processor;
and beside one that adds, replaces and removes tasks, in memory and in the folder.
"""

import argparse
import contextlib
import functools
import gc
import random
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_hra.bench import memory, timing
from espnet_hra.encoder.adapted import AdaptedEncoder, wrap_encoder
from espnet_hra.encoder.stepping import used_only
from espnet_hra.files import atomic
from espnet_hra.tasks import file as taskfile

MEASURES = ("time", "memory", "changes")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra bench many_tasks",
        description="What many tasks cost: time, memory, pauses while tasks change.",
    )
    parser.add_argument("--tasks", type=int, default=10_000, help="against 1")
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--width", type=int, default=144, help="d, and c")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--linear_units", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="of speech")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--max_loaded", type=int, help="heads; default: 256 MiB")
    parser.add_argument("--requests", type=int, default=200, help="for changes")
    parser.add_argument("--folder", help="for the task files (default: a temporary)")
    return parser.parse_args(argv)


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
    ).eval()


def write_files(encoder: AdaptedEncoder, folder: Path, tasks: int) -> None:
    """Files of tasks of random weights for an encoder."""
    identity, heads = encoder.identity(), encoder.adapter.heads
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(tasks):
        path = folder / f"task{i}.safetensors"
        if not path.exists():
            tensors = heads.layout.split(0.01 * torch.randn(heads.size))
            path.write_bytes(taskfile.pack(f"task{i}", tensors, identity))


def batch(args: argparse.Namespace) -> list[torch.Tensor]:
    """Features, (b, t, 80), and their lengths."""
    frames = int(100 * args.seconds)
    return [torch.randn(args.batch, frames, 80), torch.full((args.batch,), frames)]


# ------------------------------------------------------------------------------- time


def compare(
    name: str, runs: Mapping[str, Callable[[], None]], repeats: int, tasks: int
) -> None:
    """Run all in turn and print one line for each but the first, with 1 task."""
    times = timing.interleave(runs, repeats, torch.device("cpu"), warm_up=3)
    one, *others = times
    for what in others:
        found = timing.ratio(times, [what], [one])
        first, second = (statistics.median(times[key]) for key in (one, what))
        print(
            f"{name}: {first:.1f} ms with 1 task, {second:.1f} ms with {tasks:,} "
            f"{what}, ratio {found.value:.3f} ({found.low:.3f} to {found.high:.3f})",
            flush=True,
        )


def measure_time(args: argparse.Namespace, folder: Path) -> None:
    """Training steps and decoding."""
    features, lengths = batch(args)
    encoders = {"one": build(args, 1), "in memory": build(args, args.tasks)}
    optimizers = {
        what: torch.optim.AdamW(encoder.parameters(), lr=1e-4, weight_decay=0.01)
        for what, encoder in encoders.items()
    }

    def step(what: str) -> None:
        encoder = encoders[what].train()
        with encoder.use_task("task0"):
            output = encoder(features, lengths)[0]
        output.pow(4).mean().backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizers[what].step()
        optimizers[what].zero_grad()

    def step_of_used(what: str) -> None:
        with used_only([optimizers[what]]):
            step(what)

    runs = {
        "one": functools.partial(step, "one"),
        "in a plain loop": functools.partial(step, "in memory"),
        "by used_only": functools.partial(step_of_used, "in memory"),
    }
    compare("training step", runs, args.repeats, args.tasks)

    encoders["in a folder"] = build(args, 1)
    write_files(encoders["in a folder"], folder, args.tasks)
    encoders["in a folder"].attach_store(folder, max_loaded=args.max_loaded)
    encoders["in a folder"].remove_task("task0")
    choice = random.Random(0)

    @torch.inference_mode()
    def decode(what: str) -> None:
        encoder = encoders[what].eval()
        tasks = 1 if what == "one" else args.tasks
        with encoder.use_task(f"task{choice.randrange(tasks)}"):
            encoder(features, lengths)

    runs = {what: functools.partial(decode, what) for what in encoders}
    compare("decoding", runs, args.repeats, args.tasks)
    stored = encoders["in a folder"].adapter.heads.stored
    assert stored is not None, "a folder was attached above"
    print(f"  of the folder: {stored.hits} heads were in memory, {stored.misses} not")


# ----------------------------------------------------------------------------- memory


def measure_memory(args: argparse.Namespace, folder: Path) -> None:
    """Growth of a process, of a fresh one for each: freed memory is used again."""
    write_files(build(args, 1), folder, args.tasks)
    for part in (_memory_of_new, _memory_of_loaded, _memory_of_files):
        for line in memory.fresh(part, args, folder):
            print(line, flush=True)


def _memory_of_new(args: argparse.Namespace, folder: Path) -> list[str]:
    encoder = _after_first_pass(args)
    before = _resident()
    for i in range(1, args.tasks):
        encoder.add_task(f"task{i}")
    return [_growth(encoder, f"{args.tasks:,} tasks added", before, args.tasks - 1)]


def _memory_of_loaded(args: argparse.Namespace, folder: Path) -> list[str]:
    encoder = _after_first_pass(args)
    before = _resident()
    for i in range(1, args.tasks):
        encoder.load_task(folder / f"task{i}.safetensors")
    return [_growth(encoder, f"{args.tasks:,} tasks loaded", before, args.tasks - 1)]


def _memory_of_files(args: argparse.Namespace, folder: Path) -> list[str]:
    encoder = _after_first_pass(args)
    encoder.remove_task("task0")
    before = _resident()
    encoder.attach_store(folder, max_loaded=args.max_loaded)
    assert f"task{args.tasks - 1}" in encoder.adapter.heads
    idle = _growth(encoder, f"{args.tasks:,} tasks in a folder", before, 0)
    choice = random.Random(0)
    for _ in range(2 * args.tasks):
        with torch.inference_mode():
            encoder.adapter.begin([f"task{choice.randrange(args.tasks)}"])
    loaded = len(encoder.loaded_tasks)
    return [idle, _growth(encoder, "the same, served at random", before, loaded)]


def _after_first_pass(args: argparse.Namespace) -> AdaptedEncoder:
    """An encoder with one task, in a process that has run once."""
    encoder = build(args, 1)
    with torch.inference_mode():
        encoder(*batch(args))
    return encoder


def _resident() -> int:
    """Bytes of this process in memory, without what nobody holds."""
    gc.collect()
    return memory.resident()


def _growth(encoder: AdaptedEncoder, what: str, before: int, loaded: int) -> str:
    """What the process has more than before, and what so many heads are, in words."""
    grown, one = _resident() - before, 4 * encoder.adapter.heads.size
    text = f"memory: {what}: {grown / memory.MIB:,.1f} MiB more"
    if loaded:
        own = loaded * one
        text += (
            f"; {loaded:,} heads of {one:,} bytes are {own / memory.MIB:,.1f} MiB, "
            f"ratio {grown / own:.3f}"
        )
    return text


# ---------------------------------------------------------------------------- changes


def measure_changes(args: argparse.Namespace, folder: Path) -> None:
    """Requests of one thread while another changes tasks."""
    encoder = build(args, args.tasks)
    features, lengths = (tensor[:1] for tensor in batch(args))
    with tempfile.TemporaryDirectory() as temporary:
        stored, other = Path(temporary) / "tasks", Path(temporary) / "other"
        write_files(encoder, stored, 2)
        write_files(encoder, other, 2)
        files = [path / "task1.safetensors" for path in (stored, other)]
        versions = [path.read_bytes() for path in files]
        encoder.remove_task("task1")
        encoder.attach_store(stored)

        def read(i: int) -> None:
            for _ in range(2):
                encoder.read_task(other / "task0.safetensors")

        def change(i: int) -> None:
            encoder.load_task(other / "task0.safetensors", replace=True)
            encoder.add_task(f"added{i}")
            encoder.remove_task(f"added{i}")
            atomic.write(files[0], versions[i % 2])

        serve = functools.partial(_serve, encoder, features, lengths)
        serve(10)
        _print_waits("nothing else", *serve(args.requests))
        for what, work in (("files read only", read), ("tasks changed", change)):
            with _beside(work) as done:
                waits = serve(args.requests)
            _print_waits(f"{what}, {len(done)} times", *waits)


def _serve(
    encoder: AdaptedEncoder,
    features: torch.Tensor,
    lengths: torch.Tensor,
    requests: int,
) -> list[list[float]]:
    """Seconds that each request takes, and those until it has its head."""
    whole, heads = [], []
    for i in range(requests):
        with torch.inference_mode(), encoder.use_task(f"task{i % 2}"):
            begin = functools.partial(encoder.adapter.begin, [f"task{i % 2}"])
            heads.append(timing.clock(begin))
            whole.append(timing.clock(lambda: encoder(features, lengths)))
    return [whole, heads]


@contextlib.contextmanager
def _beside(work: Callable[[int], None]) -> Iterator[list[int]]:
    """Another thread works, fifty times a second at most."""
    ended = threading.Event()
    done: list[int] = []

    def run() -> None:
        while not ended.wait(0.02):
            work(len(done))
            done.append(1)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        ended.set()
        thread.join()


def _print_waits(when: str, whole: list[float], heads: list[float]) -> None:
    for what, seconds in (("request", whole), ("wait for a head", heads)):
        ordered = sorted(1e3 * s for s in seconds)
        at = {p: ordered[int(p / 100 * (len(ordered) - 1))] for p in (50, 95, 99, 100)}
        text = ", ".join(f"{p} %: {ms:.2f}" for p, ms in at.items())
        print(f"changes: {when}: ms of a {what}: {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; `--help` lists the options."""
    args = parse(argv)
    print(f"{torch.get_num_threads()} threads, head of {args.width}x{args.width}")
    measures = {
        "time": measure_time,
        "memory": measure_memory,
        "changes": measure_changes,
    }
    with contextlib.ExitStack() as stack:
        folder = args.folder or stack.enter_context(tempfile.TemporaryDirectory())
        for name in args.measure:
            measures[name](args, Path(folder))
            gc.collect()
