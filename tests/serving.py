"""A server in a thread of the test, on a port of its own."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import soundfile

from espnet_hra.serve.engine import Engine
from espnet_hra.serve.settings import Settings

TOKEN = "0123456789abcdef"
SETTINGS = Settings("small", token=TOKEN)


@contextlib.contextmanager
def serving(engine: Engine, **settings: object) -> Iterator[str]:
    """The address of a server, stopped in an orderly way at the end of the block."""
    import uvicorn

    from espnet_hra.serve.app import build  # needs FastAPI, an extra

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = build(engine, replace(SETTINGS, **settings))
    config = uvicorn.Config(app, port=port, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def ask(url: str, path: Path | str, model: str, timeout: float = 120, **form: object):
    """The answer to a recording."""
    with open(path, "rb") as file:
        return httpx.post(
            f"{url}/v1/audio/transcriptions",
            files={"file": (Path(path).name, file)},
            data={"model": model, **form},
            timeout=timeout,
        )


def write(path: Path, wave: np.ndarray, rate: int = 16_000) -> Path:
    """A recording as a file."""
    soundfile.write(path, wave, rate)
    return path
