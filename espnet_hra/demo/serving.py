"""How the page is served: at an address of this machine, and to nobody else."""

import contextlib
import socket
import sys
import webbrowser
from collections.abc import Sequence

import fastapi
import gradio as gr
import uvicorn

from espnet_hra.demo import showing
from espnet_hra.demo.listening import MOST_BYTES
from espnet_hra.demo.privacy import StaysHere

#: Ports that are tried where none is asked for.
PORTS = range(7860, 7960)

#: System fonts: the theme's own would be fetched from elsewhere.
_FONTS = ("system-ui", "sans-serif")
_MONO = ("ui-monospace", "monospace")


def serve(blocks: gr.Blocks, address: str, port: int | None, browser: bool) -> None:
    """Serve a page until it is interrupted.

    Args:
        blocks: The page.
        address: Of this machine.
        port: The port; None for the first free one of :data:`PORTS`.
        browser: Whether to open it in the browser.

    Raises:
        OSError: The port is taken, or all of them.
    """
    sock = _bound(address, PORTS if port is None else (port,))
    place = f"http://{address}:{sock.getsockname()[1]}"
    config = uvicorn.Config(
        app(blocks), log_level="warning", timeout_graceful_shutdown=2
    )
    print(f"The page is at {place} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    if browser:  # its request waits in the socket until it is answered
        webbrowser.open(place)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[sock])


def app(blocks: gr.Blocks) -> StaysHere:
    """A page as an ASGI application."""
    blocks.queue(default_concurrency_limit=1, max_size=32)
    # Not `launch`, which can share pages, and asks for itself through proxies.
    mounted = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="",
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        enable_monitoring=False,
        mcp_server=False,
        max_file_size=MOST_BYTES,
        theme=gr.themes.Default(
            primary_hue="blue", font=list(_FONTS), font_mono=list(_MONO)
        ),
        css=showing.STYLE,
    )
    return StaysHere(mounted)


def _bound(address: str, ports: Sequence[int]) -> socket.socket:
    """A socket that listens at the first port that is free.

    Raises:
        OSError: None is.
    """
    for port in ports:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
            sock.listen(128)
            return sock
        except OSError:
            sock.close()
            if port == ports[-1]:
                raise
    raise OSError("no port was given")
