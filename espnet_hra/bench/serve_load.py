"""A server that runs, and the load that `espnet-hra bench serve` puts on it."""

import concurrent.futures
import dataclasses
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from espnet_hra.errors import ConfigError

#: A recording's path and the task that it is read with.
Pair = tuple[str, str]

#: Seconds that a client waits for an answer.
_PATIENCE = 600


class Server:
    """A server that runs.

    Attributes:
        url: Its address.
        status: How it ended.
    """

    def __init__(self, url: str, process: subprocess.Popen[str]):
        self.url, self.process = url, process
        self.status: int | None = None

    def counts(self) -> dict[str, float]:
        """What it counts, without labels."""
        import httpx

        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        found = re.findall(r"^espnet_hra_(\w+) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def tasks(self) -> list[str]:
        """Names of its tasks."""
        import httpx

        listed = httpx.get(f"{self.url}/v1/models", timeout=60).json()["data"]
        return [model["id"] for model in listed if model["owned_by"] == "task"]

    def memory(self) -> float:
        """Its resident set, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s*(\d+)", status)
        return int(found[1]) / 1024 if found else 0.0


@contextmanager
def serving(model: str, threads: int, options: Sequence[str]) -> Iterator[Server]:
    """A block in which a server runs; then it is told to stop.

    Raises:
        ConfigError: It does not start.
    """
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "espnet_hra.cli", "serve", model]
    command += ["--port", str(port), "--threads", str(threads), *options]
    process = subprocess.Popen(command, text=True)
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        while True:
            if process.poll() is not None:
                raise ConfigError("the server did not start; the lines above say why")
            try:
                httpx.get(f"{server.url}/healthz", timeout=60).raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.5)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        server.status = process.wait()


# -------------------------------------------------------------------------- the load


@dataclasses.dataclass
class Block:
    """What came of one turn.

    Attributes:
        load: Its kind.
        seconds: How long it took.
        latencies: Of its requests, in seconds.
        speech: Seconds of speech that were read.
        wrong: Requests with another text than alone.
        refused: How often a client was told to come again.
        counts: What the server has counted meanwhile.
    """

    load: str
    seconds: float = 0.0
    latencies: list[float] = dataclasses.field(default_factory=list)
    speech: float = 0.0
    wrong: list[Pair] = dataclasses.field(default_factory=list)
    refused: int = 0
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Load:
    """Clients that ask for recordings.

    Args:
        server: Whom they ask.
        recordings: Paths, and how long each is in seconds.
        clients: How many ask at the same time.
    """

    def __init__(self, server: Server, recordings: Mapping[str, float], clients: int):
        self._server, self._clients = server, clients
        self._seconds = recordings
        self._contents = {path: Path(path).read_bytes() for path in recordings}
        self._right: dict[Pair, str] = {}
        self._counting = threading.Lock()

    def _ask(self, client: Any, pair: Pair) -> Any:
        path, task = pair
        return client.post(
            f"{self._server.url}/v1/audio/transcriptions",
            files={"file": (Path(path).name, self._contents[path])},
            data={"model": task},
        )

    def read_alone(self, pairs: Sequence[Pair]) -> None:
        """Ask for each once, one at a time: these are the right texts."""
        import httpx

        start = time.perf_counter()
        with httpx.Client(timeout=_PATIENCE) as client:
            for number, pair in enumerate(pairs, 1):
                self._right[pair] = (
                    self._ask(client, pair).raise_for_status().json()["text"]
                )
                if number % 50 == 0 or number == len(pairs):
                    print(f"    one at a time: {number} of {len(pairs)}", flush=True)
        took = (time.perf_counter() - start) / len(pairs)
        different = len(set(self._right.values()))
        print(f"one at a time: {1e3 * took:.0f} ms each, {different} different texts")

    def run(self, load: str, pairs: Sequence[Pair], seconds: float, seed: int) -> Block:
        """Let all clients ask for so long, each in an order of its own."""
        block, before = Block(load), self._server.counts()
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(self._clients) as threads:
            futures = [
                threads.submit(
                    self._client, block, pairs, start + seconds, f"{seed} {number}"
                )
                for number in range(self._clients)
            ]
            for future in futures:
                future.result()
        block.seconds = time.perf_counter() - start
        after = self._server.counts()
        block.counts = {name: after[name] - before.get(name, 0.0) for name in after}
        return block

    def _client(
        self, block: Block, pairs: Sequence[Pair], end: float, seed: str
    ) -> None:
        import httpx

        drawn = random.Random(seed)
        with httpx.Client(timeout=_PATIENCE) as client:
            while (start := time.perf_counter()) < end:
                pair = drawn.choice(pairs)
                answer = self._ask(client, pair)
                took = time.perf_counter() - start
                if answer.status_code == 503:
                    with self._counting:
                        block.refused += 1
                    time.sleep(float(answer.headers["Retry-After"]))
                    continue
                text = answer.raise_for_status().json()["text"]
                with self._counting:
                    block.latencies.append(took)
                    block.speech += self._seconds[pair[0]]
                    if text != self._right[pair]:
                        block.wrong.append(pair)
