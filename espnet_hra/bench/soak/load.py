"""Requests from eight threads while tasks are added, replaced and removed.

Some threads ask ``Speech2Text``, one utterance or a batch of mixed tasks, and some the
encoder. Each answer must be that of the same request alone: of one utterance text and
score, of the encoder every bit, of a batch the texts. A task that is being replaced may
answer as before or as after, one that is being removed may be unknown. Measured are how
long a request waits for its head, with and without changes, and the memory of the
process.
"""

import functools
import random
import shutil
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_hra.bench.memory import MIB, resident
from espnet_hra.bench.soak.rows import Row
from espnet_hra.errors import TaskError
from espnet_hra.files import atomic

THREADS = 8

#: Tasks that stay, of which those of the folder are fetched; one whose file is replaced
#: and one that is a parameter and is replaced; and one that comes and goes.
_STAY = ("stay0", "stay1", "stay2", "stay3")
_FILE, _PARAMETER, _GOES = "file", "parameter", "goes"

#: Seconds between two changes, and requests between two looks at the memory.
_PAUSE, _LOOK = 0.05, 200

#: Most that changes may add to the wait for a head, in milliseconds.
LONGEST_PAUSE = 5.0

#: Log probabilities that differ by less may change places by rounding.
_ROUNDING = 1e-3


@dataclass
class Counts:
    """What the threads have seen."""

    requests: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    memory: list[tuple[int, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    refused: int = 0
    changes: int = 0


def prepare(model: Path, folder: Path) -> Any:
    """An open model with tasks of all kinds, and files to replace them with."""
    import torch

    from espnet_hra.espnet.inference import Speech2Text

    shutil.rmtree(folder, ignore_errors=True)
    store = folder / "exp" / "tasks"
    shutil.copytree(model, folder / "exp", ignore=shutil.ignore_patterns("tasks"))
    store.mkdir()
    speech2text: Any = Speech2Text.from_pretrained(
        str(folder / "exp"), ctc_greedy=True, max_loaded_tasks=3
    )
    encoder = speech2text.model.encoder
    torch.manual_seed(1)
    files = {f"{n}.0": n for n in (*_STAY, _FILE, _PARAMETER, _GOES)}
    files |= {f"{n}.1": n for n in (_FILE, _PARAMETER)}
    for stem, name in files.items():
        encoder.add_task(name)
        with torch.no_grad():
            encoder.adapter.heads.vector(name).normal_(0, 0.15)
        encoder.save_task(name, folder / stem)
        encoder.remove_task(name)
    for name in (*_STAY, _FILE):
        shutil.copy(folder / f"{name}.0", store / f"{name}.safetensors")
    encoder.load_task(folder / f"{_PARAMETER}.0")
    return speech2text


class Load:
    """The requests, and what they must be answered with.

    Args:
        speech2text: From :func:`prepare`.
        folder: The same.
        waves: The recordings, by name.
    """

    def __init__(self, speech2text: Any, folder: Path, waves: Mapping[str, Any]):
        self.speech2text, self.folder = speech2text, folder
        self.encoder = speech2text.model.encoder
        self.waves = list(waves.values())
        self.counts = Counts()
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.names = (*_STAY, *self.encoder.adapter.heads.own, _FILE)
        self.names = tuple(dict.fromkeys((*self.names, _GOES)))
        self.expected: dict[tuple[str, int], list[Any]] = {}
        for name in self.names:
            self._expect(name)
        self._change(1)
        for name in (_FILE, _PARAMETER):
            self._expect(name)

    def _expect(self, name: str) -> None:
        if name not in self.encoder.tasks:
            self.encoder.load_task(self.folder / f"{name}.0")
        for i in range(len(self.waves)):
            self.expected.setdefault((name, i), []).append(self._answer(name, i))
        if name == _GOES:
            self.encoder.remove_task(name)

    def _answer(self, name: str, i: int) -> tuple[str, float, Any]:
        """Text, score and output of the encoder."""
        import torch

        text, *_, hypothesis = self.speech2text(self.waves[i], task=name)[0]
        with torch.no_grad(), self.encoder.use_task(name):
            encoded = self.speech2text._encode([torch.as_tensor(self.waves[i])])[0]
        return text, float(hypothesis.score), encoded

    # --------------------------------------------------------------------- requests

    def serve(self, number: int) -> None:
        """The requests of one thread, until the end."""
        rnd = random.Random(number)
        ask = (self._single, self._batch, self._encoded)[number % 3]
        while not self.ended.is_set():
            names = [rnd.choice(self.names) for _ in range(rnd.randint(2, 3))]
            rows = [rnd.randrange(len(self.waves)) for _ in names]
            try:
                self._wait(names[0])
                wrong = ask(names, rows)
            except TaskError as e:
                known = _GOES in str(e)
                with self.lock:
                    self.counts.refused += known
                wrong = "" if known and _GOES in names else str(e)
            except Exception as e:  # whatever a race may raise
                wrong = f"{type(e).__name__}: {e}"
            with self.lock:
                self.counts.requests[ask.__name__.strip("_")] += 1
                total = sum(self.counts.requests.values())
                if total % _LOOK == 0:
                    self.counts.memory.append((total, resident() / MIB))
                if wrong:
                    self.counts.wrong.append(f"{names}: {wrong}")

    def _wait(self, name: str) -> None:
        """How long a request waits for its head, and how long it works for it."""
        heads = self.encoder.adapter.heads
        start, busy = time.perf_counter(), time.thread_time()
        with heads.hold((name,)):
            busy, wait = time.thread_time() - busy, time.perf_counter() - start
        with self.lock:
            self.counts.waits.append(wait)
            self.counts.busy.append(busy)

    def _single(self, names: list[str], rows: list[int]) -> str:
        text, *_, hypothesis = self.speech2text(self.waves[rows[0]], task=names[0])[0]
        found = text, float(hypothesis.score)
        expected = [one[:2] for one in self.expected[names[0], rows[0]]]
        return "" if found in expected else f"{found} and not one of {expected}"

    def _batch(self, names: list[str], rows: list[int]) -> str:
        """One recording with several tasks: zeros behind one would change its end."""
        found = self.speech2text([self.waves[rows[0]]] * len(names), task=names)
        for name, nbest in zip(names, found):
            texts = [one[0] for one in self.expected[name, rows[0]]]
            text, *_, hypothesis = nbest[0]
            # A product of several rows is not that of one, bit for bit.
            if text not in texts and hypothesis.scores["margin"] > _ROUNDING:
                return f"{name}: {text!r} and not one of {texts}"
        return ""

    def _encoded(self, names: list[str], rows: list[int]) -> str:
        import torch

        wave = torch.as_tensor(self.waves[rows[0]])
        with torch.no_grad(), self.encoder.use_task(names[0]):
            found = self.speech2text._encode([wave])[0]
        expected = self.expected[names[0], rows[0]]
        same = any(torch.equal(found, one[2]) for one in expected)
        return "" if same else f"another output of the encoder for {names[0]}"

    # ---------------------------------------------------------------------- changes

    def change(self) -> None:
        """Changes of tasks, one after the other, until the end."""
        while not self.ended.wait(_PAUSE):
            try:
                self._change(self.counts.changes // 4 + 1)
            except Exception as e:
                with self.lock:
                    self.counts.wrong.append(f"a change: {type(e).__name__}: {e}")

    def _change(self, number: int) -> None:
        """A file and a parameter are replaced, a task is added and removed."""
        version = number % 2
        store = self.folder / "exp" / "tasks"
        content = (self.folder / f"{_FILE}.{version}").read_bytes()
        atomic.write(store / f"{_FILE}.safetensors", content)
        path = self.folder / f"{_PARAMETER}.{version}"
        self.encoder.load_task(path, replace=True)
        self.encoder.load_task(self.folder / f"{_GOES}.0")
        self.encoder.remove_task(_GOES)
        self.counts.changes += 4

    # -------------------------------------------------------------------------- run

    def run(self, seconds: float, changing: bool, askers: int = THREADS) -> Counts:
        """Serve for a while, with changes or without, by so many threads."""
        self.counts, found = Counts(), self.counts
        self.counts.changes = found.changes
        self.ended.clear()
        work: list[Callable[[], None]] = [
            functools.partial(self.serve, number) for number in range(askers)
        ]
        work += [self.change] * changing
        threads = [threading.Thread(target=one) for one in work]
        for thread in threads:
            thread.start()
        self.ended.wait(seconds)
        self.ended.set()
        for thread in threads:
            thread.join()
        self.counts.changes -= found.changes
        return self.counts


def percentile(values: list[float], percent: float) -> float:
    """In milliseconds."""
    ordered = sorted(values)
    return 1e3 * ordered[int(percent / 100 * (len(ordered) - 1))] if ordered else 0.0


def slope(memory: list[tuple[int, float]]) -> float:
    """Growth of the memory in MiB per 1,000 requests, after the first quarter."""
    late = memory[len(memory) // 4 :]
    if len(late) < 3:
        return 0.0
    return 1000 * statistics.linear_regression(*zip(*late)).slope


def soak(folder: Path, count: int, seed: int, command: str) -> list[Row]:
    """Serve for some minutes.

    Args:
        folder: To work in.
        count: How many minutes.
        seed: Not used: the order is that of the threads.
        command: What does the same again.
    """
    import numpy as np
    import soundfile
    import torch

    from espnet_hra.bench.soak.recipe import reference

    torch.set_num_threads(1)
    whole, _ = reference(folder)
    model = next(whole.work.glob("asr_*"))
    speech2text = prepare(model, folder / "load")
    waves: dict[str, Any] = {}
    for line in (whole.work / "dump" / "train" / "wav.scp").read_text().splitlines():
        name, path = line.split(maxsplit=1)
        if not Path(path).is_absolute():  # as the recipe names them
            path = str(whole.script.parent / path)
        waves[name] = np.asarray(soundfile.read(path, dtype="float32")[0])
    return serve(Load(speech2text, folder / "load", waves), 60.0 * count, command)


def serve(load: Load, seconds: float, command: str) -> list[Row]:
    """The requests of :func:`soak`: a tenth of the time without changes first.

    How long a change makes others wait is told by one thread that asks alone: several
    wait for each other far longer, and for Python.
    """
    before = load.run(seconds / 10, changing=False)
    found = load.run(seconds, changing=True)
    alone = [
        load.run(min(seconds / 10, 120), changing, 1) for changing in (False, True)
    ]
    without, during = (percentile(one.waits, 99) for one in alone)
    late = during - without >= LONGEST_PAUSE
    wrong = before.wrong + found.wrong
    for text in wrong[:10]:
        print(f"load: {text}", flush=True)
    total = sum(found.requests.values())
    kinds = ", ".join(f"{n} {k}" for k, n in sorted(found.requests.items()))
    waits = "; ".join(
        f"{what} {percentile(one.waits, 99):.2f} ms ({percentile(one.busy, 99):.2f} ms "
        f"of work)"
        for what, one in (("without changes", before), ("with", found))
    )
    return [
        Row(
            "load",
            f"requests of {THREADS} threads ({kinds}) in {seconds / 60:.0f} minutes, "
            f"while tasks were added, replaced and removed {found.changes:,} times",
            total,
            len(wrong),
            "; ".join(wrong[:3])
            or f"each answer is that of the request alone ({found.refused:,} named a "
            f"task that was removed, and were told); memory grew by "
            f"{slope(found.memory):.2f} MiB per 1,000 requests; 99th percentile of the "
            f"wait for a head: {waits}",
            command,
        ),
        Row(
            "load",
            f"{alone[1].changes:,} changes of tasks while one thread asks alone",
            len(alone[1].waits),
            len(alone[0].wrong) + len(alone[1].wrong) + late,
            "; ".join([*alone[0].wrong, *alone[1].wrong][:3])
            or f"99th percentile of the wait for a head: without changes {without:.2f} "
            f"ms, with {during:.2f} ms",
            command,
        ),
    ]
