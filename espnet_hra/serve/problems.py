"""Refusals in the shape that OpenAI's clients know."""

from collections.abc import Sequence
from typing import Any


class Problem(Exception):
    """A request that is refused.

    Args:
        status: The HTTP status.
        message: What was given, what is possible, what to do.
        param: The field that is wrong.
        code: A word for programs.
        retry: Seconds after which it may be tried again.
        allow: Methods that are possible, where the given one is not.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry: int | None = None,
        allow: Sequence[str] = (),
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.retry = status, param, code, retry
        self.allow = tuple(allow)

    @property
    def body(self) -> dict[str, Any]:
        """What is answered."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """What is answered above it."""
        found = {} if self.retry is None else {"Retry-After": str(self.retry)}
        return {**found, **({"Allow": ", ".join(self.allow)} if self.allow else {})}


def unknown_model(name: str, listed: str) -> Problem:
    """There is no task of a name."""
    return Problem(
        404,
        f"The model {name[:140]!r} does not exist; this server has {listed}",
        "model",
        "model_not_found",
    )


def unknown_url(
    status: int, detail: str, method: str, path: str, possible: Sequence[str]
) -> Problem:
    """What the framework refuses: another path, another method, a broken body.

    Args:
        status: The status that it gives.
        detail: What it says.
        method: Of the request.
        path: Likewise.
        possible: Methods of this path.
    """
    if status == 404:
        return Problem(404, f"there is nothing at {path[:140]}", code="unknown_url")
    if status == 405:
        return Problem(
            405,
            f"{method} is not possible at {path[:140]}: {' or '.join(possible)} is",
            code="unknown_url",
            allow=possible,
        )
    return Problem(status, f"the request cannot be read: {detail}", code="broken_body")


def busy(seconds: int) -> Problem:
    """Too many requests wait already."""
    return Problem(
        503,
        f"the server has as many requests as it takes; try again in {seconds} s",
        code="server_busy",
        retry=seconds,
    )


def too_large(most: int) -> Problem:
    """A body has too many bytes."""
    return Problem(
        413,
        f"the request is larger than {most:,} bytes, which is the limit here; send "
        "compressed audio (FLAC, Ogg, MP3), or parts of it",
        "file",
        "file_too_large",
    )


def too_slow(seconds: float) -> Problem:
    """A body did not come in time."""
    return Problem(
        408,
        f"the request has not come whole within {seconds:g} s, which is the limit here",
        code="timeout",
    )
