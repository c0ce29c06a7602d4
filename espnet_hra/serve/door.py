"""What is refused before it is read: too many requests, and bodies that are too large.

A plain ASGI middleware, since a framework's own reads a body first.
"""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from espnet_hra.serve.problems import Problem, busy, too_large, too_slow

#: Where transcripts are asked for.
TRANSCRIPTIONS = "/v1/audio/transcriptions"

#: Seconds in which what a refused client still sends is thrown away: a connection that
#: ends before would take the answer with it.
_LINGER = 10

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """Counts the requests that are being answered.

    Args:
        most: How many there may be at the same time.
    """

    def __init__(self, most: int):
        self._most, self.inside = most, 0
        self._usual = 1.0

    def enter(self) -> None:
        """Take a request in.

        Raises:
            Problem: There are as many as may be.
        """
        if self.inside >= self._most:
            raise busy(min(60, max(1, math.ceil(self._usual / 2))))
        self.inside += 1

    def leave(self, seconds: float) -> None:
        """A request was answered, after so long."""
        self.inside -= 1
        self._usual += 0.1 * (seconds - self._usual)


class Door:
    """Stands before an app.

    Args:
        app: The app.
        gate: Counts.
        most_bytes: Of a body.
        timeout: Seconds in which a body must have come.
        answered: Is told the path and status of each answer, and its seconds.
    """

    def __init__(
        self,
        app: App,
        gate: Gate,
        most_bytes: int,
        timeout: float,
        answered: Callable[[str, int, float], None],
    ):
        self._app, self._gate, self._most_bytes = app, gate, most_bytes
        self._timeout, self._answered = timeout, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._enter(scope, receive, noted)
        except Problem as problem:
            await refuse(problem, noted, receive)
        finally:
            own = TRANSCRIPTIONS if scope["path"] == TRANSCRIPTIONS else "other"
            path = getattr(scope.get("route"), "path", own)
            self._answered(path, status, time.monotonic() - start)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What costs nothing is answered however full it is.
        if scope["method"] not in ("POST", "PUT"):
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > self._most_bytes:
            raise too_large(self._most_bytes)
        self._gate.enter()
        start = time.monotonic()
        try:
            await self._bounded(scope, receive, send)
        finally:
            self._gate.leave(time.monotonic() - start)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app, which gets no more of a body than it may have."""
        count, problem = 0, None
        end = asyncio.get_running_loop().time() + self._timeout

        async def bounded() -> Message:
            nonlocal count, problem
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                problem = too_slow(self._timeout)
                raise problem from None
            count += len(message.get("body", b""))
            if count > self._most_bytes:
                problem = too_large(self._most_bytes)
                raise problem
            return message

        async def unless_refused(message: Message) -> None:
            # The app takes the end of its reading for a broken body, and would say so.
            if problem is None:
                await send(message)

        try:
            await self._app(scope, bounded, unless_refused)
        except Problem:
            pass
        if problem is not None:
            raise problem


async def refuse(problem: Problem, send: Send, receive: Receive) -> None:
    """Answer with a problem, and let whoever still sends read it."""
    body = json.dumps(problem.body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        # Its body was not read to the end: nothing can follow it.
        "connection": "close",
        **problem.headers,
    }
    raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    await send(
        {"type": "http.response.start", "status": problem.status, "headers": raw}
    )
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if problem.status != 408:  # who was too slow has been waited for
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while (await receive()).get("more_body", False):
                    pass
    await send({"type": "http.response.body", "body": b""})
