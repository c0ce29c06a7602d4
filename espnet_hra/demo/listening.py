"""The model behind the page: it reads recordings, plainly and with tasks."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_hra.data.audio import AudioError, read_audio, resample
from espnet_hra.data.requirements import Requirements, requirements_from_config
from espnet_hra.errors import DataError, TaskError
from espnet_hra.espnet.models import Found, find_model
from espnet_hra.names import listing

#: Most seconds of a recording on the page.
LONGEST = 120

#: Most bytes of a file that is read at all.
MOST_BYTES = 100 * 2**20

#: The loudest sample of a recording in which nothing was said.
_SILENT = 1e-3


@dataclass(frozen=True)
class Reading:
    """What was read from a recording.

    Attributes:
        task: With which task; None for the plain base.
        text: The text.
    """

    task: str | None
    text: str


class Ears:
    """An adapted model that reads. Requests take turns.

    Args:
        model: As the user named it.
        found: The same, found.
        speech2text: The same, opened.
        base: Where the frozen base is, if not where the model says.
    """

    def __init__(
        self, model: str, found: Found, speech2text: Any, base: str | None = None
    ):
        self.model, self.found, self.base = model, found, base
        self.speech2text = speech2text
        self.requirements: Requirements = requirements_from_config(
            speech2text.train_args
        )
        #: Held by whoever uses the model.
        self.lock = threading.RLock()

    @classmethod
    def open(cls, model: str, base: str | None = None, device: str = "cpu") -> "Ears":
        """Open a model.

        Args:
            model: Experiment folder of an adaptation, or folder, zip or tag of a model.
            base: Where its frozen base is, if not where it says.
            device: Where it computes.

        Raises:
            BaseModelError: There is no such model, or it is broken.
            TaskError: It has no adapter.
        """
        from espnet_hra.espnet.inference import Speech2Text

        found = find_model(model, base)
        speech2text = Speech2Text.from_pretrained(
            model, ctc_greedy="auto", pretrained_model=base, device=device
        )
        if speech2text._heads is None:
            raise TaskError(
                f"{model}: this model has no adapter, so it can neither have tasks nor "
                "be taught: give an adaptation of it (espnet-hra train)"
            )
        return cls(model, found, speech2text, base)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the model, as they are now."""
        return tuple(sorted(self.speech2text.tasks))

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the model can be told; empty if it is not."""
        args = self.speech2text.train_args
        if getattr(args, "bpemodel", None) != "whisper_multilingual":
            return ()
        from espnet_hra.espnet.whisper import model_sizes
        from espnet_hra.whisper.tokens import codes

        return tuple(codes(model_sizes(args.decoder_conf).num_languages))

    @property
    def teachable(self) -> str:
        """Why tasks cannot be kept beside this model; empty if they can."""
        path = Path(self.model).expanduser()
        if path.is_dir() or path.suffix == ".pth":
            return ""
        return (
            f"{self.model} is no folder: new tasks are kept beside the model. Unpack "
            "or download it into a folder, and open that."
        )

    def wave(self, path: str | None, spoken: bool = True) -> np.ndarray:
        """A recording at the model's rate, (samples,).

        Args:
            path: Its file; None if there is none.
            spoken: Whether silence is refused.

        Raises:
            DataError: There is none, or it is no audio, empty, silent, or too long or
                too short.
        """
        if not path:
            raise DataError("There is no recording yet: record or upload one.")
        name = Path(path).name
        _check_length(Path(path))
        try:
            samples, rate = read_audio(path)
        except AudioError as e:
            raise DataError(
                f"{name} is no audio that can be read: {str(e).replace(path, name)}"
            ) from e
        if len(samples) > LONGEST * rate:
            raise _too_long(name, len(samples) / rate)
        wave = resample(samples, rate, self.requirements.sample_rate)
        frames = self.requirements.frames
        short = len(wave) < self.requirements.sample_rate // 10
        if short or (frames is not None and not frames(len(wave))):
            raise DataError(
                f"{name} is too short ({len(samples) / rate:.2f} seconds): nothing can "
                "be said in it."
            )
        if spoken and np.abs(wave).max() < _SILENT:
            raise DataError(f"{name} is silent: was the microphone muted?")
        return wave

    def usable(self, tasks: Sequence[str]) -> tuple[list[str], list[str]]:
        """Which of some tasks can be used now, and of the others why not.

        Their files may be damaged, of another model, or gone since they were listed.
        """
        found, problems = [], []
        with self.lock:
            for name in tasks:
                try:
                    self._check_known(name)
                    self.speech2text.model.encoder.task_info(name)
                except TaskError as e:
                    problems.append(str(e))
                else:
                    found.append(name)
        return found, problems

    def _check_known(self, name: str) -> None:
        """Refuse a task that is not there.

        Raises:
            TaskError: It is not.
        """
        known = self.tasks
        if name not in known:
            raise TaskError(
                f"There is no task {name!r} any more; there are: {listing(known)}."
            )

    def read(
        self, wave: np.ndarray, tasks: Sequence[str], language: str | None = None
    ) -> list[Reading]:
        """What the plain base and tasks make of a recording, the base first.

        Args:
            wave: Samples at the model's rate, (samples,).
            tasks: The tasks.
            language: Code of the spoken language, for models that are told; None for
                that of each task.

        Raises:
            TaskError: A task is unknown.
        """
        speech2text = self.speech2text
        with self.lock:
            for name in tasks:
                self._check_known(name)
            speech2text.set_language(language if self.languages else None)
            try:
                whisper = speech2text.whisper
                least = 0 if whisper is None else whisper.least
                plain = np.pad(wave, (0, max(0, least - len(wave))))
                with speech2text.model.encoder.use_task(None):
                    texts = [speech2text.text_of(speech2text(plain))]
                if tasks:
                    several = speech2text([wave] * len(tasks), task=list(tasks))
                    texts += [speech2text.text_of(nbest) for nbest in several]
            finally:
                speech2text.set_language(None)
        return [Reading(name, text) for name, text in zip((None, *tasks), texts)]


def _too_long(name: str, seconds: float) -> DataError:
    return DataError(
        f"{name} is too long ({seconds:,.0f} seconds): this page takes {LONGEST}. "
        "For longer ones there is the command espnet-hra transcribe."
    )


def _check_length(path: Path) -> None:
    """Refuse what is too large before it is decoded.

    Raises:
        DataError: It is.
    """
    import soundfile

    try:
        size = path.stat().st_size
    except OSError as e:
        raise DataError(f"{path.name} cannot be read: {e.strerror}.") from e
    if size == 0:
        raise DataError(f"{path.name} is empty.")
    if size > MOST_BYTES:
        raise DataError(
            f"{path.name} is too large ({size / 2**20:,.0f} MB): this page takes up to "
            f"{MOST_BYTES // 2**20} MB."
        )
    try:
        seconds = soundfile.info(str(path)).duration
    except (soundfile.LibsndfileError, RuntimeError):
        seconds = _seconds_with_av(path)
    if seconds > LONGEST:
        raise _too_long(path.name, seconds)


def _seconds_with_av(path: Path) -> float:
    """How long a file says that it is; 0 if it does not say."""
    import av

    try:
        with av.open(str(path)) as container:
            return (container.duration or 0) / av.time_base
    except (av.FFmpegError, OSError, ValueError):
        return 0.0  # reading it will say what is wrong
