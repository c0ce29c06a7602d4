"""Serve a model and its tasks behind OpenAI's interface for transcripts.

    espnet-hra serve exp/asr_hra
    curl localhost:8000/v1/audio/transcriptions -F file=@call.mp3 -F model=fr_june

The ``model`` of a request is the name of a task, that of the base, or auto. Requests of
different tasks share batches. Whoever has the token (ESPNET_HRA_TOKEN, or --token_file)
may add, replace and remove tasks meanwhile.
"""

import argparse
import importlib.util
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.errors import ConfigError
from espnet_hra.names import TASK_NAME
from espnet_hra.serve.settings import AUTO, Settings

#: What must be installed beside ESPnet: the extra ``serve``.
_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")

#: A shorter token could be guessed.
_TOKEN = 16


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    usual = Settings("")
    parser = argparse.ArgumentParser(
        prog="espnet-hra serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="Experiment folder of an adaptation, or folder, zip or tag of a model: a "
        "Whisper, or one with a CTC",
    )
    parser.add_argument(
        "--tasks",
        metavar="DIR",
        type=Path,
        help="Folder of task files (default: tasks beside the model)",
    )
    parser.add_argument(
        "--name", help="The base's name for clients (default: the model's)"
    )
    parser.add_argument(
        "--pretrained_model",
        help="Where the frozen base is, if not where the saved configuration says",
    )
    parser.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--threads", type=int, help="(default: torch's own)")
    parser.add_argument(
        "--max_loaded_tasks",
        type=int,
        help="Most heads in memory (default: as many as take 256 MiB)",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=usual.batch_size,
        help=f"Most pieces decoded at once (default: {usual.batch_size})",
    )
    parser.add_argument(
        "--wait_ms",
        type=float,
        default=1000 * usual.wait,
        help="Most milliseconds that a piece waits for company "
        f"(default: {1000 * usual.wait:g})",
    )
    parser.add_argument(
        "--max_requests",
        type=int,
        default=usual.requests,
        help="Most requests at the same time; others are told to come again "
        f"(default: {usual.requests})",
    )
    parser.add_argument(
        "--max_mb", type=float, default=25, help="Of an upload (default: 25)"
    )
    parser.add_argument(
        "--max_minutes", type=float, default=30, help="Of a recording (default: 30)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=usual.timeout,
        help=f"Seconds until a request is given up (default: {usual.timeout:g})",
    )
    parser.add_argument(
        "--auto_tasks",
        type=int,
        default=usual.auto_tasks,
        help="Most tasks that auto tries by decoding with each, where one has no voice "
        f"in its file (default: {usual.auto_tasks})",
    )
    parser.add_argument(
        "--auto_distance",
        type=float,
        default=usual.auto_distance,
        help="The greatest distance from the voice of a task at which auto takes it "
        f"(default: {usual.auto_distance:g}; see espnet-hra bench auto)",
    )
    parser.add_argument(
        "--auto_threshold",
        type=float,
        default=usual.auto_threshold,
        help="Where a task has no voice in its file: by how much auto's must be surer "
        "than the base, in mean log probability (default: "
        f"{usual.auto_threshold:g})",
    )
    parser.add_argument(
        "--token_file",
        type=Path,
        help="File with the token of those who may change tasks (default: the "
        "variable ESPNET_HRA_TOKEN; without either, nobody may)",
    )
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """What the server is told.

    Raises:
        ConfigError: A value is not possible.
    """
    for key in ("batch_size", "max_requests", "max_mb", "max_minutes", "timeout"):
        if getattr(args, key) <= 0:
            raise ConfigError(f"--{key} {getattr(args, key)}: must be above 0")
    if args.wait_ms < 0:
        raise ConfigError(f"--wait_ms {args.wait_ms}: must not be below 0")
    name = args.name or base_name(args.model)
    if not TASK_NAME.fullmatch(name) or name == AUTO:
        raise ConfigError(
            f"--name {name!r}: use letters, digits, dots, underscores and hyphens, and "
            f"not {AUTO}"
        )
    return Settings(
        name=name,
        batch_size=args.batch_size,
        wait=args.wait_ms / 1000,
        requests=args.max_requests,
        most_bytes=int(args.max_mb * 2**20),
        most_seconds=60 * args.max_minutes,
        timeout=args.timeout,
        token=_token(args.token_file),
        auto_tasks=args.auto_tasks,
        auto_distance=args.auto_distance,
        auto_threshold=args.auto_threshold,
    )


def base_name(model: str) -> str:
    """What clients call the base of a model: its file's or folder's name."""
    path = Path(model)
    if path.suffix == ".pth":
        path = path.parent
    # Not of a name with a dot in it, such as whisper:tiny.en.
    last = path.resolve().name if path.exists() else path.name
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", last.removesuffix(".zip")).strip("-._")
    return "base" if word in ("", AUTO) else word[:128]


def _token(path: Path | None) -> str:
    token = os.environ.get("ESPNET_HRA_TOKEN", "").strip()
    if path is not None:
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"--token_file {path}: cannot be read: {e}") from e
    if (token or path) and len(token) < _TOKEN:
        raise ConfigError(
            f"the token has {len(token)} characters: give at least {_TOKEN}, e.g. of "
            "openssl rand -hex 32"
        )
    return token


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; what was taken in is answered before the end.

    Args:
        argv: The options.

    Returns:
        The exit status.

    Raises:
        UserError: The model is not there, or an option is not possible.
    """
    args = get_parser().parse_args(argv)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serving needs {', '.join(missing)}: pip install 'espnet-hra[serve]'"
        )
    settings = settings_of(args)
    import torch
    import uvicorn

    from espnet_hra.serve.app import build
    from espnet_hra.serve.engine import Engine
    from espnet_hra.tasks.store import TaskStore

    if args.threads:
        torch.set_num_threads(args.threads)
    engine = Engine.open(
        args.model,
        pretrained_model=args.pretrained_model,
        device=args.device,
        max_loaded_tasks=args.max_loaded_tasks,
        store=None if args.tasks is None else TaskStore(args.tasks),
    )
    if engine.knows(settings.name) or engine.knows(AUTO):
        name = settings.name if engine.knows(settings.name) else AUTO
        raise ConfigError(
            f"{name} is a task of this model and a name of the server's: give the base "
            "another with --name, and remove a task of the name auto"
        )
    count = len(engine.some_tasks(10_000))
    print(
        f"{settings.name} with {count:,}{'+' if count == 10_000 else ''} tasks at "
        f"http://{args.host}:{args.port}; {engine.about}; tasks "
        f"{'can be changed' if settings.token else 'are fixed'}",
        flush=True,
    )
    config = uvicorn.Config(
        build(engine, settings),
        host=args.host,
        port=args.port,
        lifespan="on",
        log_level="warning",
        timeout_graceful_shutdown=None,
    )
    # uvicorn raises the signal again once it has ended in order; that is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 1
