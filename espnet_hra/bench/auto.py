r"""What choosing the task by confidence costs in errors and time.

::

    espnet-hra bench auto --model exp/asr_hra --dev dump/dev --data dump/test

Every utterance is decoded by the base and by every task, exactly as ``model=auto`` of
``espnet-hra serve`` does it. Then thresholds are tried: by how much the surest task
must be surer than the base to be taken. Of the dev set's errors the best threshold is
chosen (without ``--dev``, 0), and on the data it is compared with the base alone and
with the true names. Error rates are means over the tasks; texts are compared in lower
case, without punctuation.
"""

import argparse
import dataclasses
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from espnet_hra.bench.whisper import plain
from espnet_hra.data.audio import read_audio, resample
from espnet_hra.data.lists import read_entries
from espnet_hra.errors import DataError
from espnet_hra.files.tables import write_table
from espnet_hra.report.scoring import Errors, count_errors
from espnet_hra.serve.auto import choose
from espnet_hra.serve.cutting import pieces
from espnet_hra.serve.engine import Engine, Heard, Job

#: The name of the base in the table.
BASE = "base"

#: Thresholds that are tried, in mean logarithmic probability.
THRESHOLDS = tuple(np.round(np.arange(-0.3, 0.305, 0.02), 2).tolist())


@dataclasses.dataclass(frozen=True)
class Line:
    """What a candidate made of an utterance, a line of the table.

    Attributes:
        utterance: Its name.
        task: Its true task.
        candidate: The task that it was decoded with, or base.
        confidence: Mean logarithmic probability of a decision.
        text: What was written down.
    """

    utterance: str
    task: str
    candidate: str
    confidence: float
    text: str


@dataclasses.dataclass(frozen=True)
class Utterance:
    """An utterance, and what every candidate made of it.

    Attributes:
        name: Its name.
        task: Its true task.
        said: What is said in it.
        heard: By candidate; None is the base.
        named_seconds: Decoding with the true name.
        auto_seconds: Decoding with all candidates.
    """

    name: str
    task: str
    said: str
    heard: dict[str | None, Heard]
    named_seconds: float
    auto_seconds: float


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra bench auto",
        description="What choosing the task by confidence costs in errors and time.",
    )
    parser.add_argument("--model", required=True, help="as of espnet-hra serve")
    parser.add_argument("--pretrained_model", help="as of espnet-hra serve")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with wav.scp, text, utt2task"
    )
    parser.add_argument("--dev", type=Path, help="such a folder, for the threshold")
    parser.add_argument("--limit", type=int, help="only so many, drawn at random")
    parser.add_argument("--batch_size", type=int, default=8, help="(default: 8)")
    parser.add_argument("--threads", type=int, help="(default: torch's own)")
    parser.add_argument("--out", type=Path, help="write all texts as TSV here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    args = get_parser().parse_args(argv)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    engine = Engine.open(args.model, pretrained_model=args.pretrained_model)
    threshold = 0.0
    if args.dev:
        dev = listen(engine, args.dev, args.limit, args.batch_size)
        threshold = best_threshold(dev)
        print(f"{args.dev}: {summary(dev, threshold)}")
    data = listen(engine, args.data, args.limit, args.batch_size)
    print(f"{args.data}: {summary(data, threshold)}")
    for other in THRESHOLDS[::5]:
        print(f"    threshold {other:+.2f}: {wer(data, other):.2f} %")
    named = sum(one.named_seconds for one in data) / len(data)
    auto = sum(one.auto_seconds for one in data) / len(data)
    print(
        f"an utterance takes {1e3 * named:.0f} ms by name and {1e3 * auto:.0f} ms with "
        f"auto among {len(data[0].heard) - 1} tasks, {auto / named:.1f} times as long"
    )
    if args.out:
        lines = [
            Line(one.name, one.task, name or BASE, heard.confidence, heard.text)
            for one in data
            for name, heard in one.heard.items()
        ]
        write_table(args.out, lines, Line)
    return 0


def listen(
    engine: Engine, folder: Path, limit: int | None, batch_size: int
) -> list[Utterance]:
    """Decode the utterances of a folder with every candidate.

    Raises:
        DataError: An utterance's task is none of the model's, or a list lacks it.
    """
    wavs, texts, tasks = (
        read_entries(folder / name) for name in ("wav.scp", "text", "utt2task")
    )
    candidates = engine.some_tasks(10_000)
    names = list(wavs)
    random.Random(0).shuffle(names)
    found = []
    for number, name in enumerate(names[:limit], 1):
        if name not in texts or tasks.get(name) not in candidates:
            raise DataError(
                f"{folder}: {name}: expected a text and a task of the model, found the "
                f"task {tasks.get(name)!r}"
            )
        wave = resample(*read_audio(wavs[name]), engine.rate).astype(np.float32)
        # As `auto` does it: by the first piece.
        wave = pieces(wave, engine.rate, engine.longest)[0].wave
        start = time.perf_counter()
        _decode(engine, [Job(wave, tasks[name])], batch_size)
        middle = time.perf_counter()
        jobs = [Job(wave, task) for task in (None, *candidates)]
        heard = _decode(engine, jobs, batch_size)
        end = time.perf_counter()
        found.append(
            Utterance(
                name,
                tasks[name],
                texts[name],
                dict(zip((None, *candidates), heard)),
                middle - start,
                end - middle,
            )
        )
        if number % 20 == 0:
            print(f"    {folder}: {number} of {len(names[:limit])}", flush=True)
    if not found:
        raise DataError(f"{folder}: there are no utterances in wav.scp")
    return found


def _decode(engine: Engine, jobs: Sequence[Job], size: int) -> list[Heard]:
    groups: dict[object, list[int]] = {}
    for i, job in enumerate(jobs):
        groups.setdefault(engine.group(job), []).append(i)
    heard: dict[int, Heard] = {}
    for rows in groups.values():
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            for i, one in zip(part, engine.decode([jobs[i] for i in part])):
                if isinstance(one, Exception):
                    raise one
                heard[i] = one
    return [heard[i] for i in range(len(jobs))]


def chosen(one: Utterance, threshold: float) -> str | None:
    """The task that is chosen for an utterance."""
    sure = {name: h.confidence for name, h in one.heard.items() if name is not None}
    return choose(sure, one.heard[None].confidence, threshold).task


def wer(
    data: Sequence[Utterance], threshold: float | None, named: bool = False
) -> float:
    """Mean over the tasks of the word error rate, in percent.

    Args:
        data: Utterances.
        threshold: Of the choice; None for the base alone.
        named: Take the true names.
    """
    rates = []
    for task in sorted({one.task for one in data}):
        own = [one for one in data if one.task == task]

        def text(one: Utterance) -> str:
            if named:
                return one.heard[one.task].text
            return one.heard[None if threshold is None else chosen(one, threshold)].text

        errors: Errors = count_errors(
            (plain(one.said), plain(text(one))) for one in own
        )
        rates.append(errors.wer)
    return float(np.mean(rates))


def best_threshold(data: Sequence[Utterance]) -> float:
    """The one with the fewest errors; of several, the middle one."""
    rates = [wer(data, threshold) for threshold in THRESHOLDS]
    best = [t for t, rate in zip(THRESHOLDS, rates) if rate <= min(rates) + 1e-9]
    return best[len(best) // 2]


def summary(data: Sequence[Utterance], threshold: float) -> str:
    """Error rates with the base, the true names, and the choice."""
    picks = [chosen(one, threshold) for one in data]
    right = sum(pick == one.task for pick, one in zip(picks, data))
    none = sum(pick is None for pick in picks)
    named, auto = wer(data, None, named=True), wer(data, threshold)
    more = f"{100 * (auto / named - 1):+.1f} %" if named else "from 0"
    return (
        f"{len(data)} utterances, WER {wer(data, None):.2f} % with the base, "
        f"{named:.2f} % by name, {auto:.2f} % with auto ({more}) at threshold "
        f"{threshold:+.2f}; the true task was taken {right} times, the base {none}"
    )
