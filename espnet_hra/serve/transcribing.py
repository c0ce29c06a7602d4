"""What becomes of a request: read, cut, decoded, put together."""

import asyncio
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from espnet_hra.errors import NoRoomError, TaskError, UserError
from espnet_hra.names import TASK_NAME, listing
from espnet_hra.serve.auto import Choice, by_confidence, by_voice
from espnet_hra.serve.batcher import Batcher, ClosedError
from espnet_hra.serve.cutting import Piece, pieces
from espnet_hra.serve.engine import Engine, Heard, Job, Listening, is_silent
from espnet_hra.serve.formats import Segment, Transcript
from espnet_hra.serve.intake import Intake
from espnet_hra.serve.problems import Problem, unknown_model
from espnet_hra.serve.settings import AUTO, Settings
from espnet_hra.tasks.voice import Likeness, compare

#: Most tasks that one is chosen among by voice.
_MOST = 1000


class Transcriber:
    """Answers requests.

    Args:
        engine: What decodes, in batches of
        batcher: this.
        settings: What the server is told.
    """

    def __init__(self, engine: Engine, batcher: Batcher, settings: Settings):
        self._engine, self._batcher, self._settings = engine, batcher, settings
        self.intake = Intake(engine.rate, settings.most_seconds)

    # ---------------------------------------------------------------------- names

    def task_of(self, model: str) -> tuple[str | None, tuple[str, ...] | None]:
        """What a client's ``model`` stands for: a task, the base (None), or candidates.

        Raises:
            Problem: There is no such task, or there are too many candidates.
        """
        if model == self._settings.name:
            return None, None
        word, _, names = model.partition(":")
        if word == AUTO:
            return None, self._candidates(names)
        if not TASK_NAME.fullmatch(model) or not self._engine.knows(model):
            raise self.unknown(model)
        return model, None

    def unknown(self, model: str) -> Problem:
        """There is no such task."""
        known = [self._settings.name, AUTO, *self._engine.some_tasks(10_001)]
        return unknown_model(model, listing(known))

    def _candidates(self, names: str) -> tuple[str, ...]:
        asked = tuple(dict.fromkeys(filter(None, names.split(","))))
        for name in asked:
            if not TASK_NAME.fullmatch(name) or not self._engine.knows(name):
                raise self.unknown(name)
        found = asked or self._engine.some_tasks(_MOST + 1)
        if not found:
            raise Problem(
                400, "there are no tasks to choose among", "model", "no_tasks"
            )
        _check_few(found, _MOST)
        return found

    # ------------------------------------------------------------------- decoding

    async def transcribe(
        self, upload: BinaryIO, name: str, model: str, language: str
    ) -> Transcript:
        """The transcript of an upload.

        Args:
            upload: A recording.
            name: What the client calls it.
            model: The task, the base, or :data:`AUTO`.
            language: Its language, as the client says it, or empty.

        Raises:
            Problem: It is refused.
        """
        task, candidates = self.task_of(model)
        code = self._code(language)
        try:
            async with asyncio.timeout(self._settings.timeout):
                wave = await self.intake.read(upload, name)
                return await self._decoded(wave, task, candidates, code)
        except TimeoutError:
            raise Problem(
                504,
                f"not done after {self._settings.timeout:g} s, which is the limit "
                "here; send shorter recordings",
                code="timeout",
            ) from None
        except ClosedError as e:
            raise Problem(503, str(e), code="server_stopping", retry=5) from e
        except TaskError as e:  # it was removed, or its file is damaged
            gone = task is not None and not self._engine.knows(task)
            if gone:
                raise self.unknown(model) from e
            raise Problem(422, str(e), "model", "task_unusable") from e
        except NoRoomError as e:
            raise Problem(413, str(e), "file", "out_of_memory") from e
        except UserError as e:
            raise Problem(400, str(e)) from e

    def _code(self, language: str) -> str:
        if not language:
            return ""
        try:
            return self._engine.language_code(language)
        except UserError as e:
            raise Problem(400, str(e), "language", "unknown_language") from e

    async def _decoded(
        self,
        wave: np.ndarray,
        task: str | None,
        candidates: Sequence[str] | None,
        language: str,
    ) -> Transcript:
        engine = self._engine
        cut = pieces(wave, engine.rate, engine.longest)
        choice: dict[str, Any] = {"model": task or self._settings.name}
        known: dict[int, Heard] = {}
        if candidates is not None:
            first = next(
                (i for i, p in enumerate(cut) if not is_silent(p.wave, engine.rate)), 0
            )
            chosen, heard = await self._choose(cut[first], candidates, language)
            task, choice = chosen.task, chosen.told(self._settings.name)
            if heard is not None:
                known[first] = heard
        jobs = [
            Job(piece.wave, task, language)
            for i, piece in enumerate(cut)
            if i not in known
        ]
        rest = iter(await self._all(jobs))
        read = [known[i] if i in known else next(rest) for i in range(len(cut))]
        segments = [Segment(p.start, p.end, one) for p, one in zip(cut, read)]
        codes = {one.language for one in read if one.language and one.text}
        name = language_name(codes.pop()) if len(codes) == 1 else None
        return Transcript(segments, len(wave) / engine.rate, name, choice)

    async def _choose(
        self, piece: Piece, candidates: Sequence[str], language: str
    ) -> tuple[Choice, Heard | None]:
        """The task of a piece, and what it heard if that is known already."""
        settings = self._settings
        compared = await self._batcher.listen(Listening(piece.wave, tuple(candidates)))
        if compared.voices is not None:
            distance = settings.auto_distance
            found: dict[str, Likeness] = {}
            if compared.heard is not None:  # something is said
                found = compare(compared.heard, compared.voices)
            return by_voice(found, distance), None
        _check_few(candidates, settings.auto_tasks)
        names = [None, *candidates]
        heard = dict(
            zip(names, await self._all([Job(piece.wave, n, language) for n in names]))
        )
        confidences = {name: heard[name].confidence for name in candidates}
        threshold = settings.auto_threshold
        chosen = by_confidence(confidences, heard[None].confidence, threshold)
        return chosen, heard[chosen.task]

    async def _all(self, jobs: Sequence[Job]) -> list[Heard]:
        """Decode jobs; no more than two batches of one request are in line at once."""
        room = asyncio.Semaphore(2 * self._settings.batch_size)

        async def decode(job: Job) -> Heard:
            async with room:
                return await self._batcher.decode(job)

        # Where one fails or time is over, the others are taken out of the line.
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(decode(job)) for job in jobs]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]


def _check_few(candidates: Sequence[str], most: int) -> None:
    """Refuse too many candidates.

    Raises:
        Problem: They are.
    """
    if len(candidates) > most:
        raise Problem(
            400,
            f"{AUTO} chooses among {most:,} tasks at most here, and there are more: "
            f"name some, as {AUTO}:NAME,NAME",
            "model",
            "too_many_tasks",
        )


def language_name(code: str) -> str:
    """The English name of a language, as OpenAI's interface says it."""
    from espnet_hra.whisper.package import openai_whisper

    return str(openai_whisper().tokenizer.LANGUAGES.get(code, code))
