"""Chromium without a window, and the page of `espnet-hra demo` that it opens."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)

#: Seconds: machines are slow, and a training is waited for.
PATIENCE = 600


@contextlib.contextmanager
def demo(options: Sequence[object], temporary: Path, **keys: Any) -> Iterator[str]:
    """The address of a page, which ends with the block.

    Args:
        options: Of `espnet-hra demo`.
        temporary: Where it keeps what must not stay.
        **keys: As of `subprocess.Popen`.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "espnet_hra.cli", "demo", *map(str, options)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        **keys,
    )
    said = ""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            break
    else:
        raise AssertionError(said)
    try:
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(temporary.glob("espnet_hra*"))  # nothing is left behind


@contextlib.contextmanager
def chromium(*more: str) -> Iterator[Any]:
    """A browser.

    Args:
        *more: Options of the command.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", *more],
            timeout=1000 * PATIENCE,
        )
        yield opened
        opened.close()


def panel(page: Any, name: str) -> Any:
    """A tab of the page, opened."""
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def upload(part: Any, path: Any, first: bool = True) -> None:
    """Give a recording to the only recorder of a tab, or files to its list."""
    removes = part.get_by_role("button", name="Clear").filter(visible=True)
    if first and removes.count():
        removes.first.click()
    files = part.locator("input[type=file]")
    (files.first if first else files.last).set_input_files(path)
