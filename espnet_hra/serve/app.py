"""The interface: paths, and what they answer."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Header, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from espnet_hra.serve.batcher import Batcher
from espnet_hra.serve.door import Door, Gate
from espnet_hra.serve.engine import Engine
from espnet_hra.serve.formats import FORMATS
from espnet_hra.serve.managing import Manager
from espnet_hra.serve.metrics import Metrics
from espnet_hra.serve.problems import Problem
from espnet_hra.serve.settings import AUTO, Settings
from espnet_hra.serve.transcribing import Transcriber
from espnet_hra.version import __version__

#: Most tasks that are listed, and most that are said to be unusable.
_LISTED, _NAMED = 10_000, 100


def build(engine: Engine, settings: Settings) -> Any:
    """The app of a server.

    Args:
        engine: What decodes.
        settings: What the server is told.

    Returns:
        An ASGI app. It decodes from now on, until its lifespan ends.
    """
    started = int(time.time())
    gate = Gate(settings.requests)
    metrics = Metrics(
        lambda: len(batcher), lambda: gate.inside, lambda: len(engine.unusable.names)
    )
    batcher = Batcher(engine, settings.batch_size, settings.wait, metrics.watch)
    transcriber = Transcriber(engine, batcher, settings)
    manager = Manager(engine, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)
        transcriber.intake.close()

    app = FastAPI(title="espnet-hra", version=__version__, lifespan=lifespan)
    _answer_problems(app)

    # ---------------------------------------------------------------- transcripts

    @app.post("/v1/audio/transcriptions")
    async def transcribe(
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()],
        language: Annotated[str, Form()] = "",
        prompt: Annotated[str, Form()] = "",
        response_format: Annotated[str, Form()] = "json",
        temperature: Annotated[float, Form()] = 0.0,
        stream: Annotated[bool, Form()] = False,
        granularities: Annotated[
            list[str], Form(alias="timestamp_granularities[]")
        ] = [],  # noqa: B006 (FastAPI copies it)
    ) -> Response:
        """What is said in a recording."""
        _refuse_unsupported(prompt, temperature, stream, granularities)
        if response_format not in FORMATS:
            raise Problem(
                400,
                f"response_format {response_format[:40]!r}: possible are "
                f"{', '.join(FORMATS)}",
                "response_format",
                "unknown_format",
            )
        found = await transcriber.transcribe(
            file.file, file.filename or "", model, language
        )
        write, media_type = FORMATS[response_format]
        metrics.speech_seconds.inc(found.duration)
        metrics.choices.labels(_how(found.choice, settings)).inc()
        # The model that was used: with auto, the client does not know.
        headers = {"X-Model": str(found.choice["model"])}
        return Response(write(found), headers=headers, media_type=media_type)

    # ---------------------------------------------------------------------- tasks

    def described(name: str, owner: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": owner}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        """The base, ``auto``, and the tasks."""
        names = engine.some_tasks(_LISTED)
        fixed = [settings.name, AUTO] if names else [settings.name]
        listed = [described(name, "base") for name in fixed]
        listed += [described(name, "task") for name in names]
        return {"object": "list", "data": listed}

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        """One of them."""
        task, candidates = transcriber.task_of(name)
        return described(name, "base" if task is None else "task")

    @app.put("/v1/tasks/{name}")
    async def put(
        name: str, request: Request, authorization: Annotated[str, Header()] = ""
    ) -> Response:
        """Add a task or replace it; the body is its file."""
        manager.check(authorization)
        content = await request.body()
        replaced = await run_in_threadpool(manager.put, name, content)
        metrics.changes.labels("replace" if replaced else "add").inc()
        answer = {"id": name, "object": "model", "replaced": replaced}
        return JSONResponse(answer, 200 if replaced else 201)

    @app.delete("/v1/tasks/{name}")
    async def remove(
        name: str, authorization: Annotated[str, Header()] = ""
    ) -> dict[str, Any]:
        """Forget a task."""
        manager.check(authorization)
        await run_in_threadpool(manager.remove, name)
        metrics.changes.labels("remove").inc()
        return {"id": name, "object": "model", "deleted": True}

    # ------------------------------------------------------------------ operation

    @app.get("/healthz")
    def healthz() -> Response:
        """Whether recordings are decoded."""
        alive = batcher.alive
        answer = {
            "status": "ok" if alive else "decoder stopped",
            # Of those that were asked for: nobody looks at a million files.
            "unusable_tasks": engine.unusable.names[:_NAMED],
        }
        return JSONResponse(answer, 200 if alive else 503)

    @app.get("/metrics")
    def metrics_text() -> Response:
        """What Prometheus reads."""
        text, media_type = metrics.text()
        return Response(text, media_type=media_type)

    def answered(path: str, status: int, seconds: float) -> None:
        metrics.requests.labels(path, str(status)).inc()
        if path == "/v1/audio/transcriptions":
            metrics.request_seconds.observe(seconds)

    return Door(app, gate, settings.most_bytes, settings.timeout, answered)


def _how(choice: Mapping[str, Any], settings: Settings) -> str:
    """How a transcript's task was found, for counting."""
    if choice.get("asked") == AUTO:
        return "auto_abstained" if choice["abstained"] else AUTO
    return "base" if choice["model"] == settings.name else "name"


def _refuse_unsupported(
    prompt: str, temperature: float, stream: bool, granularities: list[str]
) -> None:
    """Refuse what would change the answer and is not done here."""
    refused = {
        "prompt": bool(prompt.strip()),
        "temperature": temperature != 0,
        "stream": stream,
        "timestamp_granularities[]": any(g != "segment" for g in granularities),
    }
    instead = {
        "prompt": "texts are not continued here; leave it out",
        "temperature": "decoding is greedy; leave it out, or give 0",
        "stream": "answers come whole; leave it out",
        "timestamp_granularities[]": "times are those of segments; leave it out",
    }
    for param, asked in refused.items():
        if asked:
            raise Problem(400, f"{param}: {instead[param]}", param, "unsupported")


def _answer_problems(app: FastAPI) -> None:
    """Let every refusal have the shape that OpenAI's clients know."""

    def answer(problem: Problem) -> JSONResponse:
        return JSONResponse(problem.body, problem.status, problem.headers)

    @app.exception_handler(Problem)
    async def own(_: Request, e: Problem) -> Response:
        return answer(e)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, e: RequestValidationError) -> Response:
        first = e.errors()[0]
        param = str(first["loc"][-1])
        return answer(Problem(400, f"{param}: {first['msg']}", param))

    @app.exception_handler(HTTPException)
    async def other(_: Request, e: HTTPException) -> Response:
        return answer(Problem(e.status_code, str(e.detail)))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, e: Exception) -> Response:
        name = type(e).__name__
        return answer(Problem(500, f"the server failed ({name}); its log says why"))
