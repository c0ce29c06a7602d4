r"""What choosing the task without a name costs in errors and time.

::

    espnet-hra bench auto --model exp/asr_hra --dev dump/dev --data dump/test \
        --other DIR

Every utterance is decoded with its true name, and as ``model=auto`` of ``espnet-hra
serve`` does it: by the voices of the tasks or, where one has none or with ``--by
confidence``, by the base and every task. The threshold is chosen on the dev set
(without ``--dev``, it is the server's): for voices the least one that sends no more
than one in a hundred of its utterances to the base, for confidence the one with the
fewest errors. Error rates are means over the tasks; texts are compared in lower case,
without punctuation. ``--other`` is speech of none of the tasks, for which the base is
right.
"""

import argparse
import dataclasses
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from espnet_hra.bench.whisper import plain
from espnet_hra.data.audio import read_audio, resample
from espnet_hra.data.lists import read_entries
from espnet_hra.errors import DataError
from espnet_hra.files.tables import write_table
from espnet_hra.report.scoring import Errors, count_errors
from espnet_hra.serve.auto import (
    BY_CONFIDENCE,
    BY_VOICE,
    Choice,
    by_confidence,
    by_voice,
)
from espnet_hra.serve.cutting import pieces
from espnet_hra.serve.engine import Compared, Engine, Heard, Job, Listening
from espnet_hra.serve.settings import DISTANCE
from espnet_hra.tasks.voice import Likeness, compare

#: The name of the base in the table.
BASE = "base"

#: Thresholds of confidence that are tried, in mean logarithmic probability.
THRESHOLDS = tuple(np.round(np.arange(-0.3, 0.305, 0.02), 2).tolist())

#: The part of the dev set whose voices may be taken for a stranger's.
_LOST = 0.01

#: Resamples of the bootstrap.
_SAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Line:
    """What auto made of an utterance, a line of the table.

    Attributes:
        utterance: Its name.
        task: Its true task; empty for speech of none.
        chosen: The task that was chosen, or base.
        value: Distance of the likeliest voice, or confidence of the surest task.
        named: What was written down with the true name.
        auto: What was with the choice.
    """

    utterance: str
    task: str
    chosen: str
    value: float
    named: str
    auto: str


@dataclasses.dataclass(frozen=True)
class Utterance:
    """An utterance, and what was made of it.

    Attributes:
        name: Its name.
        task: Its true task; None for speech of none.
        said: What is said in it.
        heard: By candidate, as far as it was decoded; None is the base.
        like: Likeness of each candidate's voice; None where it was not asked for.
        named_seconds: Decoding with the true name.
        auto_seconds: Choosing, and decoding with what was chosen.
    """

    name: str
    task: str | None
    said: str
    heard: dict[str | None, Heard]
    like: Mapping[str, Likeness] | None = None
    named_seconds: float = 0.0
    auto_seconds: float = 0.0

    def choice(self, threshold: float) -> Choice:
        """What is chosen at a threshold."""
        if self.like is not None:
            return by_voice(self.like, threshold)
        sure = {n: one.confidence for n, one in self.heard.items() if n is not None}
        return by_confidence(sure, self.heard[None].confidence, threshold)


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra bench auto",
        description="What choosing the task without a name costs in errors and time.",
    )
    parser.add_argument("--model", required=True, help="as of espnet-hra serve")
    parser.add_argument("--pretrained_model", help="as of espnet-hra serve")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with wav.scp, text, utt2task"
    )
    parser.add_argument("--dev", type=Path, help="such a folder, for the threshold")
    parser.add_argument(
        "--other", type=Path, help="folder with wav.scp: speech of none of the tasks"
    )
    parser.add_argument(
        "--by",
        choices=(BY_VOICE, BY_CONFIDENCE),
        help="(default: by voice, where all tasks have one)",
    )
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
    candidates, voices = usable(engine)
    by = args.by or (BY_VOICE if voices else BY_CONFIDENCE)
    if by == BY_VOICE and not voices:
        raise DataError(
            f"{args.model}: a task has no voice: espnet-hra tasks voice DIR --model "
            f"{args.model}"
        )
    listener = Listener(engine, by, candidates, args.limit, args.batch_size)
    threshold = DISTANCE if by == BY_VOICE else 0.0
    if args.dev:
        dev = listener.listen(args.dev)
        threshold = least_distance(dev) if by == BY_VOICE else best_threshold(dev)
        print(f"{args.dev}: {summary(dev, threshold)}")
    data = listener.listen(args.data, None if by == BY_CONFIDENCE else threshold)
    print(f"{args.data}: {summary(data, threshold)}")
    named = sum(one.named_seconds for one in data) / len(data)
    auto = sum(one.auto_seconds for one in data) / len(data)
    print(
        f"by {by}, an utterance takes {1e3 * named:.0f} ms with the name and "
        f"{1e3 * auto:.0f} ms with auto among {len(listener.candidates)} tasks: "
        f"{1e3 * (auto - named):+.0f} ms, {auto / named:.2f} times as long"
    )
    others: list[Utterance] = []
    if args.other:
        others = listener.listen(args.other, strangers=True)
        none = sum(one.choice(threshold).task is None for one in others)
        print(
            f"{args.other}: {len(others)} utterances of none of the tasks; the base "
            f"was taken {none} times"
        )
    if args.out:
        write_table(args.out, [line(one, threshold) for one in [*data, *others]], Line)
    return 0


def usable(engine: Engine) -> tuple[tuple[str, ...], bool]:
    """The tasks to choose from, and whether all of them have a voice.

    A task whose file cannot be used is left out, as the server does it, and said.

    Raises:
        DataError: There is none.
    """
    names = engine.some_tasks(10_000)
    (found,) = engine.decode([Listening(np.zeros(engine.rate, np.float32), names)])
    if isinstance(found, Exception):
        raise found
    assert isinstance(found, Compared)
    for name, error in found.unusable.items():
        print(f"left out: task {name}: {error}")
    left = tuple(name for name in names if name not in found.unusable)
    if not left:
        raise DataError("the model has no task that can be used")
    return left, bool(found.voices)


class Listener:
    """Decodes folders.

    Args:
        engine: The model.
        by: How tasks are chosen.
        candidates: The tasks to choose from.
        limit: Most utterances of a folder, drawn at random.
        batch_size: Most candidates that are decoded at once.

    Attributes:
        candidates: The tasks to choose from.
    """

    def __init__(
        self,
        engine: Engine,
        by: str,
        candidates: tuple[str, ...],
        limit: int | None,
        batch_size: int,
    ):
        self._engine, self._by, self._limit = engine, by, limit
        self.candidates, self._size = candidates, batch_size

    def listen(
        self, folder: Path, threshold: float | None = None, strangers: bool = False
    ) -> list[Utterance]:
        """What is made of the utterances of a folder.

        Args:
            folder: Has ``wav.scp``, and unless they are of strangers ``text`` and
                ``utt2task``.
            threshold: For voices, where it is known already: what is chosen then is
                decoded and its time taken.
            strangers: Whether they are of none of the tasks.

        Raises:
            DataError: An utterance's task is none of the model's, or a list lacks it.
        """
        wavs = read_entries(folder / "wav.scp")
        texts: Mapping[str, str] = {}
        tasks: Mapping[str, str] = {}
        if not strangers:
            texts, tasks = (read_entries(folder / n) for n in ("text", "utt2task"))
        names = list(wavs)
        random.Random(0).shuffle(names)
        found = []
        for number, name in enumerate(names[: self._limit], 1):
            task = None if strangers else tasks.get(name)
            known = name in texts and task in self.candidates
            if not (known or strangers):
                raise DataError(
                    f"{folder}: {name}: expected a text and a task of the model, found "
                    f"the task {task!r}"
                )
            rate = self._engine.rate
            wave = resample(*read_audio(wavs[name]), rate).astype(np.float32)
            # As `auto` does it: by the first piece.
            wave = pieces(wave, rate, self._engine.longest)[0].wave
            found.append(
                self._utterance(name, task, texts.get(name, ""), wave, threshold)
            )
            if number % 50 == 0:
                print(
                    f"    {folder}: {number} of {len(names[: self._limit])}", flush=True
                )
        if not found:
            raise DataError(f"{folder}: there are no utterances in wav.scp")
        return found

    def _utterance(
        self,
        name: str,
        task: str | None,
        said: str,
        wave: np.ndarray,
        threshold: float | None,
    ) -> Utterance:
        start = time.perf_counter()
        heard: dict[str | None, Heard] = {}
        # Of a dev set only the distances of voices count.
        wanted = self._by == BY_CONFIDENCE or threshold is not None
        if task is not None and wanted:
            heard[task] = self._decode([Job(wave, task)])[0]
        named = time.perf_counter() - start
        start = time.perf_counter()
        like = None
        if self._by == BY_VOICE:
            like = self._likenesses(wave)
            one = Utterance(name, task, said, heard, like)
            if threshold is not None:
                chosen = one.choice(threshold).task
                if chosen not in heard:
                    heard[chosen] = self._decode([Job(wave, chosen)])[0]
                else:  # it would be the same again, and take as long
                    start -= named
        else:
            everyone = (None, *self.candidates)
            found = self._decode([Job(wave, candidate) for candidate in everyone])
            heard = dict(zip(everyone, found))
        auto = time.perf_counter() - start
        return Utterance(name, task, said, heard, like, named, auto)

    def _likenesses(self, wave: np.ndarray) -> Mapping[str, Likeness]:
        (found,) = self._engine.decode([Listening(wave, self.candidates)])
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, Compared) and found.voices is not None
        if found.heard is None:  # nothing is said
            return {}
        return compare(found.heard, found.voices)

    def _decode(self, jobs: Sequence[Job]) -> list[Heard]:
        groups: dict[object, list[int]] = {}
        for i, job in enumerate(jobs):
            groups.setdefault(self._engine.group(job), []).append(i)
        heard: dict[int, Heard] = {}
        for rows in groups.values():
            for start in range(0, len(rows), self._size):
                part = rows[start : start + self._size]
                found = self._engine.decode([jobs[i] for i in part])
                for i, one in zip(part, found):
                    if isinstance(one, Exception):
                        raise one
                    assert isinstance(one, Heard)
                    heard[i] = one
        return [heard[i] for i in range(len(jobs))]


def text(one: Utterance, threshold: float | None, named: bool = False) -> str:
    """What was written down.

    Args:
        one: The utterance.
        threshold: Of the choice; None for the base alone.
        named: Take the true name.
    """
    if named:
        return one.heard[one.task].text
    chosen = None if threshold is None else one.choice(threshold).task
    return one.heard[chosen].text


def errors_of(
    data: Sequence[Utterance], threshold: float | None, named: bool = False
) -> list[Errors]:
    """The errors of each utterance; arguments as of :func:`text`."""
    return [
        count_errors([(plain(one.said), plain(text(one, threshold, named)))])
        for one in data
    ]


def wer(
    data: Sequence[Utterance], threshold: float | None, named: bool = False
) -> float:
    """Mean over the tasks of the word error rate, in percent."""
    errors = errors_of(data, threshold, named)
    rates = [
        sum((e for e, one in zip(errors, data) if one.task == task), Errors()).wer
        for task in sorted({str(one.task) for one in data})
    ]
    return float(np.mean(rates))


def relative(
    data: Sequence[Utterance], threshold: float, samples: int = _SAMPLES
) -> tuple[float, float]:
    """95 % interval of how much more errors the choice makes, in percent.

    A paired bootstrap over the utterances of each task.
    """
    both = [errors_of(data, None, named=True), errors_of(data, threshold)]
    drawn = np.random.default_rng(0)
    rates = np.zeros((2, samples))
    for task in sorted({str(one.task) for one in data}):
        rows = [i for i, one in enumerate(data) if one.task == task]
        picked = drawn.integers(len(rows), size=(samples, len(rows)))
        words = np.array([both[0][i].words for i in rows])[picked].sum(axis=1)
        for rate, errors in zip(rates, both):
            wrong = np.array([errors[i].word_errors for i in rows])
            rate += wrong[picked].sum(axis=1) / np.maximum(words, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        more = 100 * (rates[1] / rates[0] - 1)
    low, high = np.nanpercentile(more, [2.5, 97.5])
    return float(low), float(high)


def best_threshold(data: Sequence[Utterance]) -> float:
    """The confidence with the fewest errors; of several, the middle one."""
    rates = [wer(data, threshold) for threshold in THRESHOLDS]
    best = [t for t, rate in zip(THRESHOLDS, rates) if rate <= min(rates) + 1e-9]
    return best[len(best) // 2]


def least_distance(data: Sequence[Utterance]) -> float:
    """The distance that no more than one in a hundred exceed."""
    choices = (one.choice(np.inf) for one in data)
    away = sorted(c.distance for c in choices if c.distance is not None)
    if not away:
        return DISTANCE
    kept = int(np.ceil(len(away) * (1 - _LOST))) - 1
    return float(np.ceil(100 * away[kept]) / 100)


def line(one: Utterance, threshold: float) -> Line:
    """A line of the table."""
    choice = one.choice(threshold)
    value = choice.distance
    if value is None:
        value = max(choice.values.values(), default=float("nan"))
    read = [
        one.heard[n].text if n in one.heard else "" for n in (one.task, choice.task)
    ]
    if one.task is None:
        read[0] = ""
    return Line(one.name, one.task or "", choice.task or BASE, round(value, 4), *read)


def summary(data: Sequence[Utterance], threshold: float) -> str:
    """Error rates with the base, the true names, and the choice."""
    picks = [one.choice(threshold).task for one in data]
    right = sum(pick == one.task for pick, one in zip(picks, data))
    none = sum(pick is None for pick in picks)
    told = (
        f"{len(data)} utterances at threshold {threshold:+.2f}; the true task was "
        f"taken {right} times, the base {none}, another {len(data) - right - none}"
    )
    if any(pick not in one.heard for pick, one in zip(picks, data)):
        return told  # the threshold was not known yet, so not all was decoded
    named, auto = wer(data, None, named=True), wer(data, threshold)
    more = "from 0"
    if named:
        low, high = relative(data, threshold)
        ahead = 100 * (auto / named - 1)
        more = f"{ahead:+.1f} %, 95 % interval {low:+.1f} to {high:+.1f}"
    base = ""
    if all(None in one.heard for one in data):
        base = f"{wer(data, None):.2f} % with the base, "
    rates = f"{named:.2f} % with the name, {auto:.2f} % with auto"
    return f"{told}; WER {base}{rates} ({more})"
