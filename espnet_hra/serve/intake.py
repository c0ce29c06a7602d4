"""An upload becomes samples, by the project's own reader."""

import asyncio
import concurrent.futures
import os
import re
import shutil
import tempfile
from typing import BinaryIO

import numpy as np

from espnet_hra.data.audio import (
    RAW_FORMATS,
    SELF_CONTAINED,
    AudioError,
    read_audio,
    resample,
)
from espnet_hra.serve.problems import Problem

#: Recordings that are read at the same time, whose samples are in memory.
_TOGETHER = 2


class Intake:
    """Reads uploads.

    Args:
        rate: Samples a second of what the model hears.
        most_seconds: Longer recordings are refused.
    """

    def __init__(self, rate: int, most_seconds: float):
        self._rate, self._most_seconds = rate, most_seconds
        self._threads = concurrent.futures.ThreadPoolExecutor(_TOGETHER, "reader")

    async def read(self, upload: BinaryIO, name: str) -> np.ndarray:
        """Samples of an upload, (samples).

        Args:
            upload: Its content.
            name: What the client calls it.

        Raises:
            Problem: It is empty, no audio, damaged, or too long.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._read, upload, name)

    def _read(self, upload: BinaryIO, name: str) -> np.ndarray:
        suffix = os.path.splitext(name)[1].lower()
        # A file's ending counts only where the content does not tell what it is.
        suffix = suffix if suffix in RAW_FORMATS else ""
        last = re.split(r"[/\\]", name)[-1][-80:]
        shown = "".join(c if c.isprintable() else "?" for c in last) or "file"
        with tempfile.NamedTemporaryFile(prefix="espnet_hra.", suffix=suffix) as file:
            upload.seek(0)
            shutil.copyfileobj(upload, file)
            file.flush()
            if file.tell() == 0:
                raise Problem(400, f"{shown} is empty", "file", "empty_file")
            try:
                samples, rate = read_audio(
                    file.name, longest=self._most_seconds, formats=SELF_CONTAINED
                )
            except AudioError as e:
                message = str(e).replace(file.name, shown)
                raise Problem(400, message, "file", "unreadable_audio") from e
        if rate < 1000:
            raise Problem(
                400, f"{shown} has {rate} samples a second", "file", "unreadable_audio"
            )
        return np.ascontiguousarray(resample(samples, rate, self._rate), np.float32)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()
