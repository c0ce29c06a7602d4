r"""How fast an adapted Whisper reads, beside faster-whisper on the same weights.

::

    espnet-hra bench whisper --model exp/debian_voices/asr_hra_seed1 \
        --data exp/debian_voices/dump/test --faster_whisper DIR

Both decode greedily in float32 with as many threads, each in a process of its own. They
take turns at the same utterances, a block at a time, so that whatever else the machine
does meets both. Loading, and reading of audio, are not counted. faster-whisper (``pip
install faster-whisper``) encodes 30 seconds for every utterance, as Whisper was
trained; the adapted model encodes what was said and some silence.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet_hra.bench import timing
from espnet_hra.bench.whisper_worker import SIDES
from espnet_hra.data.audio import read_audio
from espnet_hra.data.lists import read_entries
from espnet_hra.errors import ConfigError, DataError
from espnet_hra.files.config import read_yaml
from espnet_hra.files.tables import write_table
from espnet_hra.report.scoring import Errors, count_errors

OURS, RIVAL = SIDES

#: What Whisper hears.
RATE = 16_000


@dataclass(frozen=True)
class Line:
    """One side's result, a line of the table.

    Attributes:
        system: Its name.
        utterances: How many were decoded.
        speech_seconds: How long they are.
        seconds: What decoding them took.
        wer: Mean over the tasks of the word error rate, in percent.
    """

    system: str
    utterances: int
    speech_seconds: float
    seconds: float
    wer: float


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra bench whisper",
        description="How fast an adapted Whisper reads, beside faster-whisper.",
    )
    parser.add_argument("--model", required=True, help="experiment folder or pack")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with wav.scp, text, utt2task"
    )
    parser.add_argument(
        "--faster_whisper",
        type=Path,
        required=True,
        help="folder with the same Whisper in faster-whisper's format",
    )
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument(
        "--batch_size", type=int, default=8, help="of ours (default: 8)"
    )
    parser.add_argument("--block", type=int, default=20, help="utterances a turn")
    parser.add_argument("--limit", type=int, help="only so many, drawn at random")
    parser.add_argument("--out", type=Path, help="write the table as TSV here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    compare(get_parser().parse_args(argv))
    return 0


def compare(args: argparse.Namespace) -> None:
    """Let both sides decode the same blocks in turn.

    Raises:
        ConfigError: faster-whisper or its folder is not there.
        DataError: The data are not there, or of another sampling rate.
    """
    if not (args.faster_whisper / "model.bin").is_file():
        raise ConfigError(
            f"--faster_whisper {args.faster_whisper}: there is no model.bin in it; "
            "give a folder with model.bin, config.json, tokenizer.json and "
            "vocabulary.json"
        )
    items = read_items(args.data, languages_of(args.model))
    drawn = random.Random(0)
    drawn.shuffle(items)
    items = items[: args.limit]
    speech = sum(seconds for *_, seconds in items)
    print(f"{len(items)} utterances, {speech:.0f} s of speech, {args.threads} threads")
    sides = {name: Side(name, args, items) for name in SIDES}
    blocks = [
        list(range(start, min(start + args.block, len(items))))
        for start in range(0, len(items), args.block)
    ]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    texts: dict[str, dict[int, str]] = {name: {} for name in sides}
    for number, block in enumerate(blocks, 1):
        for name in drawn.sample(list(sides), len(sides)):
            took, found = sides[name].decode(block)
            seconds[name].append(took)
            texts[name].update(zip(block, found))
        times = ", ".join(f"{name} {seconds[name][-1]:.1f} s" for name in sides)
        print(f"    block {number} of {len(blocks)}: {times}", flush=True)
    for side in sides.values():
        side.close()
    report(args, items, speech, seconds, texts)


def report(
    args: argparse.Namespace,
    items: Sequence[tuple[str, str, str, str, float]],
    speech: float,
    seconds: Mapping[str, Sequence[float]],
    texts: Mapping[str, Mapping[int, str]],
) -> None:
    """Print, and write, what was found."""
    lines = []
    for name in seconds:
        rates = []
        for task in sorted({task for _, task, *_ in items}):
            own = [i for i, item in enumerate(items) if item[1] == task]
            errors: Errors = count_errors(
                (plain(items[i][3]), plain(texts[name][i])) for i in own
            )
            rates.append(errors.wer)
        total = sum(seconds[name])
        lines.append(Line(name, len(items), speech, total, float(np.mean(rates))))
        print(
            f"{name:<15} {total:7.1f} s, {speech / total:5.1f} x real time, mean WER "
            f"{lines[-1].wer:.1f} %"
        )
    value, low, high = ratio_of_sums(seconds[RIVAL], seconds[OURS])
    print(f"ours is {value:.1f} x as fast (90 % interval {low:.1f} to {high:.1f})")
    print(f"{timing.machine(torch.device('cpu'))}; {timing.versions()}")
    if args.out:
        write_table(args.out, lines, Line)


def ratio_of_sums(above: Sequence[float], below: Sequence[float]) -> timing.Ratio:
    """The ratio of two sums over the same blocks, with its bootstrap interval."""
    a, b = np.array(above), np.array(below)
    drawn = np.random.default_rng(0).integers(len(a), size=(2000, len(a)))
    low, high = np.quantile(a[drawn].sum(axis=1) / b[drawn].sum(axis=1), [0.05, 0.95])
    return timing.Ratio(float(a.sum() / b.sum()), float(low), float(high))


def plain(text: str) -> str:
    """A text in lower case without punctuation, for both sides alike."""
    folded = unicodedata.normalize("NFC", text).replace("’", "'").lower()
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in folded)
    return " ".join(kept.split())


def languages_of(model: str) -> Mapping[str, str]:
    """What each task of a model speaks, where its configuration knows."""
    path = Path(model) / "config.yaml"
    return (read_yaml(path).get("languages") or {}) if path.is_file() else {}


def read_items(
    folder: Path, languages: Mapping[str, str]
) -> list[tuple[str, str, str, str, float]]:
    """Language, task, path, text and seconds of each utterance of a folder."""
    wavs = read_entries(folder / "wav.scp")
    text, task = (read_entries(folder / name) for name in ("text", "utt2task"))
    items = []
    for utterance, path in wavs.items():
        samples, rate = read_audio(path)
        if rate != RATE:
            raise DataError(f"{path}: {rate} Hz; Whisper hears {RATE} Hz: resample it")
        name = task[utterance]
        items.append(
            (languages.get(name, ""), name, path, text[utterance], len(samples) / rate)
        )
    return items


class Side:
    """A process that decodes.

    Args:
        name: One of :data:`espnet_hra.bench.whisper_worker.SIDES`.
        args: The command line.
        items: What there is to decode.
    """

    def __init__(self, name: str, args: argparse.Namespace, items: Sequence[Any]):
        self._name = name
        env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "espnet_hra.bench.whisper_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        settings = {
            "side": name,
            "model": args.model,
            "faster_whisper": str(args.faster_whisper),
            "threads": args.threads,
            "batch_size": args.batch_size,
            "items": [item[:3] for item in items],
        }
        self._ask(settings)

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin and self._process.stdout, "both are pipes"
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ConfigError(
                f"{self._name} has stopped; the lines above say why (faster-whisper is "
                "installed with: pip install faster-whisper)"
            )
        return json.loads(answer)

    def decode(self, block: Sequence[int]) -> tuple[float, list[str]]:
        """Seconds, and a text for each of these utterances."""
        seconds, texts = self._ask(list(block))
        return seconds, texts

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
