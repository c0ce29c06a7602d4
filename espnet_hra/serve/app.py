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
from starlette.routing import Match

from espnet_hra.errors import UserError
from espnet_hra.serve.batcher import Batcher
from espnet_hra.serve.door import TRANSCRIPTIONS, Door, Gate
from espnet_hra.serve.engine import Engine
from espnet_hra.serve.fields import NEEDED, check_fields, refuse_unsupported
from espnet_hra.serve.formats import FORMATS
from espnet_hra.serve.managing import Manager
from espnet_hra.serve.metrics import Metrics
from espnet_hra.serve.problems import Problem, unknown_url
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

    # The framework's pages of documentation load scripts from elsewhere.
    app = FastAPI(
        title="espnet-hra",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    _answer_problems(app)

    # ---------------------------------------------------------------- transcripts

    @app.post(TRANSCRIPTIONS)
    async def transcribe(
        request: Request,
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()],
        language: Annotated[str, Form()] = "",
        prompt: Annotated[str, Form()] = "",
        response_format: Annotated[str, Form()] = "json",
        temperature: Annotated[float, Form()] = 0.0,
        stream: Annotated[bool, Form()] = False,
    ) -> Response:
        """What is said in a recording."""
        check_fields((await request.form()).multi_items())
        refuse_unsupported(prompt, temperature, stream)
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
        try:
            manager.check(authorization)
        except Problem:
            # Whoever still sends might not read the answer.
            async for _ in request.stream():
                pass
            raise
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

    @app.api_route("/healthz", methods=["GET", "HEAD"])
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
        if path == TRANSCRIPTIONS:
            metrics.request_seconds.observe(seconds)

    return Door(app, gate, settings.most_bytes, settings.timeout, answered)


def _how(choice: Mapping[str, Any], settings: Settings) -> str:
    """How a transcript's task was found, for counting."""
    if choice.get("asked") == AUTO:
        return "auto_abstained" if choice["abstained"] else AUTO
    return "base" if choice["model"] == settings.name else "name"


def _answer_problems(app: FastAPI) -> None:
    """Let every refusal have the shape that OpenAI's clients know."""

    def answer(problem: Problem) -> JSONResponse:
        return JSONResponse(problem.body, problem.status, problem.headers)

    @app.exception_handler(Problem)
    async def own(_: Request, e: Problem) -> Response:
        return answer(e)

    @app.exception_handler(UserError)
    async def user(_: Request, e: UserError) -> Response:
        return answer(Problem(503, str(e), code="tasks_unreadable"))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, e: RequestValidationError) -> Response:
        first = e.errors()[0]
        param = str(first["loc"][-1])
        said = NEEDED.get(param, str(first["msg"]))
        return answer(Problem(400, f"{param}: {said}", param, "invalid_field"))

    @app.exception_handler(HTTPException)
    async def other(request: Request, e: HTTPException) -> Response:
        return answer(
            unknown_url(
                e.status_code,
                str(e.detail),
                request.method,
                request.url.path,
                _methods(app, request),
            )
        )

    @app.exception_handler(Exception)
    async def unexpected(_: Request, e: Exception) -> Response:
        name = type(e).__name__
        return answer(Problem(500, f"the server failed ({name}); its log says why"))


def _methods(app: FastAPI, request: Request) -> list[str]:
    """What can be done at the path of a request."""
    found: set[str] = set()
    for route in app.routes:
        match, _ = route.matches(request.scope)
        if match != Match.NONE:
            found |= set(getattr(route, "methods", None) or ())
    return sorted(found)
