"""Workers, as the block ``parallel`` of ESPnet3's configurations asks for them.

ESPnet3's own functions start them, so its keys are ours::

    parallel:
        env: slurm              # local, local_gpu, slurm, pbs, sge, lsf, htcondor, ...
        n_workers: 32
        options:                # of dask.distributed's or dask_jobqueue's cluster
            queue: cpu
            cores: 1
            ...
"""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet_hra.adapt import signals
from espnet_hra.errors import ConfigError
from espnet_hra.files.config import read_yaml

_KEYS = ("env", "n_workers", "options", "allow_overwrite_lock")


def check_dask() -> None:
    """Say how to install Dask where it is missing: nothing else here needs it.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as e:
        raise ConfigError(
            f"tasks are spread over workers with Dask, which cannot be imported ({e}): "
            "pip install 'espnet-hra[adapt]'"
        ) from e


def read(path: str | None, n_workers: int | None) -> dict[str, Any]:
    """The block `parallel`.

    Args:
        path: A YAML file that is the block, or has it under the key ``parallel``; None
            for workers on this machine.
        n_workers: Goes before the file's; None for the file's, or one for each
            processor.

    Raises:
        ConfigError: The file cannot be read, or has other keys.
    """
    block: Any = {"env": "local"}
    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(f"--parallel {path}: there is no such file")
        block = read_yaml(Path(path))
        block = block.get("parallel", block)
    unknown = sorted(set(block) - set(_KEYS)) if isinstance(block, dict) else [block]
    if unknown or not isinstance(block.get("options") or {}, dict):
        raise ConfigError(
            f"--parallel {path}: expected ESPnet3's block `parallel` with env, "
            f"n_workers and options, found {', '.join(map(str, unknown)) or 'options'}"
        )
    block = {"env": "local", **block, "options": dict(block.get("options") or {})}
    if n_workers is not None:
        block["n_workers"] = n_workers
    block.setdefault("n_workers", processors() if path is None else 1)
    return block


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def settings(block: dict[str, Any], retries: int, ngpu: int) -> Iterator[None]:
    """A block with the configuration of Dask that these workers need.

    Args:
        block: From :func:`read`; options of local workers are completed.
        retries: How many workers a task may lose before it counts as failed.
        ngpu: ESPnet's option.
    """
    import dask
    import distributed  # noqa: F401 - first its own values, then ours

    config: dict[str, Any] = {
        "distributed.scheduler.allowed-failures": retries,
        # A task that waits on a worker would be suspected of its death as well.
        "distributed.scheduler.worker-saturation": 1.0,
        # What fills the memory of a worker is the model. To spill it is not possible,
        # and a worker that pauses because of it would pause for ever.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.preload": [signals.__name__],
        # Data loaders may start processes (--num_workers).
        "distributed.worker.daemon": False,
    }
    if block["env"] == "local":
        options = block["options"]
        options.setdefault("threads_per_worker", 1)
        # A page for this machine's eyes only, and on a port that nobody else has.
        options.setdefault("dashboard_address", "127.0.0.1:0")
        if options.setdefault("processes", True) and ngpu == 0:
            config["distributed.worker.multiprocessing-method"] = "forkserver"
    with dask.config.set(config):
        if "distributed.worker.multiprocessing-method" in config:
            _import_once()
        yield


def _import_once() -> None:
    """Let one process import ESPnet, of which workers on this machine are forks.

    Otherwise each would spend its first ten seconds and more on it, as would each that
    takes the place of a dead one. (Not with GPUs: CUDA does not survive a fork.)
    """
    from multiprocessing import forkserver

    import dask
    from distributed.utils import get_mp_context

    # The libraries read these when they are imported; Dask would set them later.
    for key, value in dask.config.get("distributed.nanny.pre-spawn-environ").items():
        os.environ.setdefault(key, str(value))
    get_mp_context()  # sets a list of its own, once
    multiprocessing.set_forkserver_preload(["distributed", "espnet_hra.adapt.preload"])
    forkserver.ensure_running()


@contextlib.contextmanager
def client(block: dict[str, Any]) -> Iterator[Any]:
    """A Dask client of workers that end with the block.

    Raises:
        ConfigError: They cannot be started.
    """
    from omegaconf import OmegaConf

    with signals.kept():
        from espnet3.parallel.parallel import get_client

    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(get_client(OmegaConf.create(block)))
        except Exception as e:
            raise ConfigError(
                f"parallel: env: {block['env']}: the workers cannot be started: "
                f"{type(e).__name__}: {' '.join(str(e).split())}"
            ) from e
        yield found
