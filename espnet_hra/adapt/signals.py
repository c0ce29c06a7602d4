"""Ctrl-C and SIGTERM: they end the command, and the command ends its workers."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def dask_setup(worker: Any) -> None:
    """Called by Dask in each new worker: Ctrl-C in a terminal reaches workers as well.

    They would die with a traceback each, before the command could end them.
    """
    if _in_main_thread():  # the worker is a process, not a thread of the command
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep what Ctrl-C does while something is imported.

    dask_jobqueue, which ESPnet3 imports, lets it end the program with status 0.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if _in_main_thread():
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM, which batch systems send before they kill, be like Ctrl-C."""
    if not _in_main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def quiet_end() -> Iterator[None]:
    """Let Dask not complain of workers that end at work when that is what is wanted."""
    try:
        yield
    except BaseException:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        raise
