"""Decodes batches of mixed tasks, such that a text does not depend on the batch.

Neither padding nor rounding lets one, see :mod:`espnet_hra.espnet.padding`; and what a
batch uses of its tasks is fetched once, at its beginning.
"""

import contextlib
import itertools
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from espnet_hra.data.requirements import Requirements, requirements_from_config
from espnet_hra.encoder import selection
from espnet_hra.errors import ConfigError, TaskError, UserError
from espnet_hra.espnet.inference import Speech2Text
from espnet_hra.espnet.inputs import encoded_names
from espnet_hra.serve import lengths
from espnet_hra.serve.unusable import Unusable
from espnet_hra.tasks.store import TaskStore
from espnet_hra.tasks.voice import Voice, spectra

#: What is softer throughout is silence, in dB of full scale; no model is asked.
_SILENT_DB = -70

#: Most seconds that a CTC model is given at once.
_CTC_SECONDS = 20.0


@dataclass(frozen=True)
class Job:
    """A piece of a recording to decode.

    Attributes:
        wave: Its samples at the engine's rate, (samples).
        task: Its task; None for the base.
        language: A code that Whisper is told; empty for what the task says.
    """

    wave: np.ndarray
    task: str | None = None
    language: str = ""


@dataclass(frozen=True)
class Listening:
    """A piece of a recording of which is asked whose voice it is.

    Attributes:
        wave: Its samples at the engine's rate, (samples).
        candidates: The tasks to choose from.
    """

    wave: np.ndarray
    candidates: tuple[str, ...]
    task: None = None


@dataclass(frozen=True)
class Compared:
    """What was found for a :class:`Listening`.

    Attributes:
        voices: Of the candidates that can be used; None where one of these has none.
        heard: The recording's spectra, (windows, values); None where nothing is said,
            or there is nothing to compare it with.
        unusable: Why the other candidates cannot be used: their files are damaged, of
            another model, or gone.
    """

    voices: Mapping[str, Voice] | None
    heard: np.ndarray | None = None
    unusable: Mapping[str, UserError] = field(default_factory=dict)


@dataclass(frozen=True)
class Heard:
    """What was found for a job.

    Attributes:
        text: What was said.
        ids: Numbers of its tokens.
        score: Sum of the logarithmic probabilities of all decisions.
        steps: How many these were: frames for CTC, tokens and the end for Whisper.
        language: The code that Whisper read with; None for other models.
        alone: Whether it was decoded again, alone, because a decision was close.
    """

    text: str
    ids: tuple[int, ...] = ()
    score: float = 0.0
    steps: int = 0
    language: str | None = None
    alone: bool = False

    @property
    def confidence(self) -> float:
        """Mean logarithmic probability of a decision; 0 where nothing was decided."""
        return self.score / self.steps if self.steps else 0.0


class Engine:
    """A model that reads with CTC or is a Whisper, and its tasks.

    Args:
        speech2text: See :meth:`open`.

    Attributes:
        rate: Samples a second of its recordings.
        longest: Most samples of a job.
        store: The folder that tasks are put into.
        unusable: The tasks that could not be used.

    Raises:
        ConfigError: The model decodes in another way.
    """

    def __init__(self, speech2text: Any):
        if not isinstance(speech2text, Speech2Text):
            raise ConfigError(
                "this model is not of the ESPnet task asr: serve a Whisper, or a model "
                "with a CTC, of asr"
            )
        self._speech2text = speech2text
        requirements: Requirements = requirements_from_config(speech2text.train_args)
        self.rate, self._frames = requirements.sample_rate, requirements.frames
        self.store: TaskStore | None = speech2text.store
        self.unusable = Unusable(self.store)
        self._lock = threading.Lock()
        self._voices: dict[str, tuple[str, Voice]] = {}
        whisper = speech2text.whisper
        #: Least samples that are decoded without a task.
        self._least = 0
        if whisper is not None:
            self.longest = whisper.longest
            self._least = whisper.least
        else:
            self.longest = int(_CTC_SECONDS * self.rate)

    @classmethod
    def open(cls, model: str, **options: Any) -> "Engine":
        """Open a model.

        Args:
            model: Experiment folder, pack, tag, or repository of the hub.
            **options: As of :class:`espnet_hra.Speech2Text`.

        Raises:
            UserError: There is none, or it cannot be served.
        """
        opened = Speech2Text.from_pretrained(model, ctc_greedy="auto", **options)
        opened.model.eval()
        return cls(opened)

    # --------------------------------------------------------------------- tasks

    def some_tasks(self, most: int) -> tuple[str, ...]:
        """Names of tasks, no more than so many: there may be a million."""
        return tuple(itertools.islice(self._heads or (), most))

    @property
    def about(self) -> str:
        """How it reads, for people."""
        if self._speech2text.encoder_masks:
            return "padded recordings go through the encoder together"
        return "only recordings of equal length go through the encoder together"

    @property
    def own_tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are in the checkpoint, and not only in the folder."""
        return () if self._heads is None else self._heads.own

    @property
    def encoder(self) -> Any:
        """The model's encoder, which knows the tasks."""
        return self._speech2text.model.encoder

    @property
    def adapted(self) -> bool:
        """Whether the model has an adapter and can have tasks."""
        return self._heads is not None

    @property
    def _heads(self) -> Any:
        return getattr(getattr(self.encoder, "adapter", None), "heads", None)

    def knows(self, task: str) -> bool:
        """Whether there is a task of a name, without a look at the others."""
        return self._heads is not None and task in self._heads

    def language_code(self, language: str) -> str:
        """The code of a language that someone asks for.

        Raises:
            ConfigError: The model is not told languages, or does not know this one.
        """
        whisper = self._speech2text.whisper
        if whisper is None:
            raise ConfigError(
                f"language {language!r}: this model is not told a language; leave it "
                "out"
            )
        if whisper.language_of(None, "en") is None:  # it knows English alone
            if language.lower() in ("en", "english"):
                return ""
            raise ConfigError(
                f"language {language!r}: this Whisper knows English alone"
            )
        return whisper.code(language)

    # ------------------------------------------------------------------- decoding

    def group(self, job: Job | Listening) -> Hashable:
        """Jobs with equal answers may share a batch."""
        if isinstance(job, Listening):
            return "voices"
        return job.task is None, lengths.group(len(self._samples(job)))

    def _samples(self, job: Job) -> np.ndarray:
        """What is decoded for a job, alone or not."""
        return lengths.lengthened(job.wave, self._least if job.task is None else 0)

    def decode(
        self, jobs: Sequence[Job | Listening]
    ) -> list[Heard | Compared | Exception]:
        """Decode a batch of one group, or listen to it.

        One thread at a time computes; others wait.

        Args:
            jobs: Of one :meth:`group`.

        Returns:
            For each job what was heard, or why it was not.
        """
        listening = [job for job in jobs if isinstance(job, Listening)]
        if listening:
            with self._lock, self._held():
                return [self._compared(job) for job in listening]
        return [*self._decoded([job for job in jobs if isinstance(job, Job)])]

    def _compared(self, job: Listening) -> Compared | Exception:
        voices: dict[str, Voice] = {}
        unusable: dict[str, UserError] = {}
        voiceless = False
        try:
            for name in job.candidates:
                try:
                    voice = self._voice(name)
                except UserError as e:
                    unusable[name] = e
                    continue
                if voice is None:
                    voiceless = True
                else:
                    voices[name] = voice
            if voiceless:
                return Compared(None, unusable=unusable)
            if self._nothing_said(job.wave):
                return Compared(voices, unusable=unusable)
            return Compared(voices, spectra(job.wave, self.rate), unusable)
        except Exception as e:  # of one recording or task, not of the others
            return e

    def _voice(self, name: str) -> Voice | None:
        """The voice of a task, if its file has one. Errors as of a task's file."""
        with self._noting(name):
            text = self.encoder.task_info(name).get("voice")
            if text is None:
                return None
            known = self._voices.get(name)
            if known is None or known[0] != text:
                known = self._voices[name] = (text, Voice.read(text))
            return known[1]

    @contextlib.contextmanager
    def _noting(self, task: str) -> Iterator[None]:
        """A block that needs a task; notes whether it can be used."""
        try:
            yield
        except UserError as e:
            if self.knows(task):  # one that was removed meanwhile is no fault
                self.unusable.note(task, e)
            raise
        self.unusable.forget(task)

    def _decoded(self, jobs: Sequence[Job]) -> list[Heard | Exception]:
        results: list[Heard | Exception | None] = [None] * len(jobs)
        # Not inference_mode: Whisper keeps its filters for the whole process, and a
        # training in it could not use them.
        with self._lock, torch.no_grad(), self._held():
            for i, job in enumerate(jobs):
                results[i] = self._without_model(job)
            rows = [i for i, result in enumerate(results) if result is None]
            if rows:
                found = self._safely([jobs[i] for i in rows])
                for i, one in zip(rows, found):
                    results[i] = one
        return [result for result in results if result is not None]

    def _held(self) -> contextlib.AbstractContextManager[None]:
        """A block in which a task stays what it is."""
        return contextlib.nullcontext() if self._heads is None else self._heads.hold()

    def _without_model(self, job: Job) -> Heard | Exception | None:
        """The answer if the model need not be asked; its task is fetched."""
        try:
            if job.task is not None:
                if self._heads is None:
                    raise TaskError(f"task {job.task!r}: this model has no tasks")
                with self._noting(job.task), self._heads.hold((job.task,)):
                    pass
        except UserError as e:
            return e
        return Heard("") if self._nothing_said(job.wave) else None

    def _nothing_said(self, wave: np.ndarray) -> bool:
        if self._frames is not None and self._frames(len(wave)) <= 0:
            return True
        return is_silent(wave, self.rate)

    def _safely(self, jobs: Sequence[Job]) -> list[Heard | Exception]:
        """Decode; if that fails in company, each alone."""
        try:
            return list(self._batch(jobs))
        except Exception as e:
            if len(jobs) == 1:
                return [e]
            return [self._safely([job])[0] for job in jobs]

    def _batch(self, jobs: Sequence[Job]) -> list[Heard]:
        speech2text, whisper = self._speech2text, self._speech2text.whisper
        waves = [torch.from_numpy(self._samples(job)) for job in jobs]
        spoken: Any = None, None
        if whisper is not None:
            spoken = encoded_names([job.language for job in jobs])
        with self._chosen([job.task for job in jobs]):
            found = speech2text.batch_decode(
                waves, utt2lang=spoken[0], utt2lang_lengths=spoken[1]
            )
        return [self._heard(speech2text.text_of(nbest), nbest[0]) for nbest in found]

    @contextlib.contextmanager
    def _chosen(self, tasks: Sequence[str | None]) -> Iterator[None]:
        if self._heads is None:
            yield
            return
        choice: Any = list(tasks)
        if len(set(tasks)) == 1:
            choice = tasks[0]
        with selection.block(self.encoder, selection.as_choice(choice, self._heads)):
            yield

    def _heard(self, text: str, best: tuple[Any, ...]) -> Heard:
        _, _, ids, hypothesis = best
        steps, language = len(ids) + 1, None
        scores = hypothesis.scores
        if "frames" in scores:
            steps = int(scores["frames"])
        elif self._speech2text.whisper is not None:
            language = self._speech2text.whisper.language_in(hypothesis.yseq)
        score, alone = float(hypothesis.score), "alone" in scores
        return Heard(text, tuple(ids), score, steps, language, alone)


def is_silent(wave: np.ndarray, rate: int) -> bool:
    """Whether a recording is softer throughout than anything that is said."""
    window = rate // 100
    count = len(wave) // window
    if count == 0:
        return True
    parts = wave[: count * window].reshape(count, window)
    power = np.square(parts, dtype=np.float64).mean(axis=1)
    return bool(10 * np.log10(power.max() + 1e-14) < _SILENT_DB)
