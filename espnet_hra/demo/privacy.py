"""What keeps the page on this machine, whatever Gradio or other pages would do.

The browser is told to load nothing from elsewhere and to send nothing there
(Content-Security-Policy), and requests of other web sites are refused: those that come
under another name than this machine's (DNS rebinding) or from another origin.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]

#: Names of this machine for itself.
HOSTS = ("127.0.0.1", "localhost")

POLICY = (
    "default-src 'self' data: blob:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; "
    "connect-src 'self' data: blob:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'self'"
)


class StaysHere:
    """ASGI middleware with the rules above.

    Args:
        app: What it stands before.
    """

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {
            k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]
        }
        if not allowed(headers.get("host", ""), headers.get("origin")):
            await _refuse(scope, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = (b"content-security-policy", POLICY.encode())
                message["headers"] = [*message.get("headers", []), own]
            await send(message)

        await self._app(scope, receive, answer)


def allowed(host: str, origin: str | None) -> bool:
    """Whether a request comes from the page itself, or is typed into the browser.

    Args:
        host: Its header ``Host``, with the port.
        origin: Its header ``Origin``, if it has one.
    """
    if urlsplit(f"//{host}").hostname not in HOSTS:
        return False
    return origin is None or urlsplit(origin).netloc == host


async def _refuse(scope: Message, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    text = b"This page is for the browser of its own machine."
    head = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 403, "headers": head})
    await send({"type": "http.response.body", "body": text})
