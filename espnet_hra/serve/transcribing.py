"""What becomes of a request: read, cut, decoded, put together."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, TypeVar

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

T = TypeVar("T")

#: Most tasks that one is chosen among by voice.
_MOST = 1000


class Candidates(NamedTuple):
    """The tasks that one is to be chosen from.

    Attributes:
        names: Their names.
        said: Whether the client named them. One of these that cannot be used is an
            error; of all tasks of a server, it is left out.
    """

    names: tuple[str, ...]
    said: bool

    def without(self, name: str) -> "Candidates":
        """The others."""
        return self._replace(names=tuple(n for n in self.names if n != name))


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

    def task_of(self, model: str) -> tuple[str | None, Candidates | None]:
        """What a client's ``model`` stands for: a task, the base (None), or candidates.

        Raises:
            Problem: There is no such task, or there are too many candidates.
        """
        if model == self._settings.name:
            return None, None
        word, colon, names = model.partition(":")
        if word == AUTO:
            return None, self._candidates(names, said=bool(colon))
        if not TASK_NAME.fullmatch(model) or not self._engine.knows(model):
            raise self.unknown(model)
        return model, None

    def unknown(self, model: str) -> Problem:
        """There is no such task."""
        known = [self._settings.name, AUTO, *self._engine.some_tasks(10_001)]
        return unknown_model(model, listing(known))

    def _candidates(self, names: str, said: bool) -> Candidates:
        asked = tuple(dict.fromkeys(filter(None, names.split(","))))
        if said and not asked:
            raise Problem(
                400,
                f"{AUTO}: names no task to choose from; give {AUTO}:NAME,NAME, or "
                f"{AUTO} for all",
                "model",
                "no_tasks",
            )
        for name in asked:
            if not TASK_NAME.fullmatch(name) or not self._engine.knows(name):
                raise self.unknown(name)
        found = asked or self._engine.some_tasks(_MOST + 1)
        if not found:
            raise Problem(
                400, "there are no tasks to choose among", "model", "no_tasks"
            )
        _check_few(found, _MOST)
        return Candidates(found, said)

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
            named = (task,) if candidates is None else candidates.names
            gone = [n for n in named if n is not None and not self._engine.knows(n)]
            if gone:
                raise self.unknown(gone[0]) from e
            raise Problem(422, self._said(e), "model", "task_unusable") from e
        except NoRoomError as e:
            raise Problem(413, str(e), "file", "out_of_memory") from e
        except UserError as e:
            raise Problem(400, str(e)) from e

    def _said(self, error: UserError) -> str:
        """What is wrong with a file, without where it is on the server."""
        folder = self._engine.store and self._engine.store.folder
        return str(error).replace(f"{folder}/", "")

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
        candidates: Candidates | None,
        language: str,
    ) -> Transcript:
        engine = self._engine
        cut = pieces(wave, engine.rate, engine.longest)
        if candidates is None:
            choice: dict[str, Any] = {"model": task or self._settings.name}
            read = await self._read(cut, task, language)
        else:
            chosen, read = await self._chosen(cut, candidates, language)
            choice = chosen.told(self._settings.name)
        segments = [Segment(p.start, p.end, one) for p, one in zip(cut, read)]
        codes = {one.language for one in read if one.language and one.text}
        name = language_name(codes.pop()) if len(codes) == 1 else None
        return Transcript(segments, len(wave) / engine.rate, name, choice)

    async def _read(
        self,
        cut: Sequence[Piece],
        task: str | None,
        language: str,
        known: Mapping[int, Heard] = {},
    ) -> list[Heard]:
        """Decode the pieces of a recording, but for those that are known."""
        jobs = [
            Job(piece.wave, task, language)
            for i, piece in enumerate(cut)
            if i not in known
        ]
        rest = iter(await self._all(jobs))
        return [known[i] if i in known else next(rest) for i in range(len(cut))]

    async def _chosen(
        self, cut: Sequence[Piece], candidates: Candidates, language: str
    ) -> tuple[Choice, list[Heard]]:
        """The task of a recording, and its pieces decoded with it."""
        rate = self._engine.rate
        first = next((i for i, p in enumerate(cut) if not is_silent(p.wave, rate)), 0)
        while True:
            chosen, heard = await self._choose(cut[first], candidates, language)
            known = {} if heard is None else {first: heard}
            try:
                return chosen, await self._read(cut, chosen.task, language, known)
            except TaskError:
                # Its file was removed or damaged since it was compared.
                if candidates.said or chosen.task is None:
                    raise
                candidates = candidates.without(chosen.task)

    async def _choose(
        self, piece: Piece, candidates: Candidates, language: str
    ) -> tuple[Choice, Heard | None]:
        """The task of a piece, and what it heard if that is known already."""
        settings = self._settings
        compared = await self._batcher.listen(Listening(piece.wave, candidates.names))
        for name, error in compared.unusable.items():
            if candidates.said:
                raise error
            candidates = candidates.without(name)
        if compared.voices is not None:
            distance = settings.auto_distance
            found: dict[str, Likeness] = {}
            if compared.heard is not None:  # something is said
                found = compare(compared.heard, compared.voices)
            return by_voice(found, distance), None
        _check_few(candidates.names, settings.auto_tasks)
        tried = await self._tried(piece, candidates, language)
        confidences = {n: one.confidence for n, one in tried.items() if n is not None}
        threshold = settings.auto_threshold
        chosen = by_confidence(confidences, tried[None].confidence, threshold)
        return chosen, tried[chosen.task]

    async def _tried(
        self, piece: Piece, candidates: Candidates, language: str
    ) -> dict[str | None, Heard]:
        """What the base (None) and each candidate that can be used hear in a piece."""

        async def attempt(job: Job) -> Heard | None:
            try:
                return await self._batcher.decode(job)
            except TaskError:
                if candidates.said or job.task is None:
                    raise
                return None

        names = (None, *candidates.names)
        jobs = [Job(piece.wave, name, language) for name in names]
        tried = zip(names, await self._together(attempt, jobs))
        return {name: heard for name, heard in tried if heard is not None}

    async def _all(self, jobs: Sequence[Job]) -> list[Heard]:
        """Decode jobs."""
        return await self._together(self._batcher.decode, jobs)

    async def _together(
        self, decode: Callable[[Job], Awaitable[T]], jobs: Sequence[Job]
    ) -> list[T]:
        """Decode jobs; no more than two batches of one request are in line at once."""
        room = asyncio.Semaphore(2 * self._settings.batch_size)

        async def in_turn(job: Job) -> T:
            async with room:
                return await decode(job)

        # Where one fails or time is over, the others are taken out of the line.
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(in_turn(job)) for job in jobs]
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
