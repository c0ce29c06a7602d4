"""The folder of a model that tasks are put into, and what all jobs have in common."""

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_hra.adapt import plan, worker
from espnet_hra.errors import BaseModelError, ConfigError, TaskError
from espnet_hra.files import atomic
from espnet_hra.files.checkpoint import beginning, read_state
from espnet_hra.files.config import write_yaml
from espnet_hra.names import from_key

#: Of a model's folder: the controller, with what else is in its checkpoint.
_CONFIG, _CHECKPOINT, _IDENTITY = "config.yaml", "latest.pth", "model.json"

#: Options of ESPnet that each job has its own value of, or that make no sense here.
_OWN_OPTIONS = (
    "output_dir",
    "train_data_path_and_name_and_type",
    "valid_data_path_and_name_and_type",
    "train_shape_file",
    "valid_shape_file",
    "resume",
    "collect_stats",
    "dry_run",
    "print_config",
    "multiprocessing_distributed",
    "use_adapter",
)

#: What is said to ESPnet before the user's options, which go before these. Thousands
#: of small trainings need no pictures, and a worker for each processor no data loaders
#: in processes of their own.
_DEFAULTS = (
    *("--num_workers", "0"),
    *("--use_tensorboard", "false"),
    *("--use_matplotlib", "false"),
)


def check_options(rest: Sequence[str]) -> None:
    """Refuse options that each job has a value of its own of."""
    for option in rest:
        name = option.partition("=")[0].removeprefix("--")
        if option.startswith("--") and name in _OWN_OPTIONS:
            raise ConfigError(
                f"--{name} is not possible here: each task has a training of its own, "
                "in --out, on its utterances of --data"
            )


def check_out(out: Path, init_adapter: str | None) -> None:
    """Refuse a folder of another model, and a controller that is not there."""
    if init_adapter is not None and not Path(init_adapter).expanduser().is_file():
        raise BaseModelError(
            f"--init_adapter {init_adapter}: there is no such file; give the "
            "checkpoint of a joint adaptation, e.g. exp/asr_hra/valid.cer_ctc.ave.pth"
        )
    if is_home(init_adapter, out) or (out / plan.WORK / _IDENTITY).is_file():
        return
    others = [p.name for p in (out / _CONFIG, *out.glob("*.pth")) if p.exists()]
    if others:
        raise BaseModelError(
            f"--out {out}: this is the folder of a model ({', '.join(sorted(others))}) "
            "that --init_adapter does not name; give a checkpoint of it, or another "
            "folder"
        )


def _espnet_args(
    args: argparse.Namespace, rest: Sequence[str], out: Path
) -> argparse.Namespace:
    """ESPnet's options for all tasks."""
    from espnet_hra.espnet import ctc as projection
    from espnet_hra.espnet.task import HRATask

    command = [*_DEFAULTS, "--output_dir", str(out)]
    for name in ("config", "pretrained_model", "init_adapter"):
        if getattr(args, name) is not None:
            command += [f"--{name}", getattr(args, name)]
    found = HRATask.parse([*command, *rest])
    if found.ngpu > 1:
        raise ConfigError(
            f"--ngpu {found.ngpu}: a task trains on one GPU; for several, "
            "--parallel with env: local_gpu, n_workers, and --ngpu 1"
        )
    for name in _OWN_OPTIONS[5:]:
        if getattr(found, name, False):
            raise ConfigError(f"{name}: true is not possible here; leave it out")
    if found.init_param:
        raise ConfigError("init_param: give the base as --pretrained_model instead")
    if found.init_adapter is not None:
        found.init_adapter = str(Path(found.init_adapter).expanduser().absolute())
    own = dict(found.encoder_conf.get("adapter_conf") or {}, regime="new_task")
    if own.get("new_tokens") == projection.AUTO:
        raise ConfigError(
            f"adapter_conf: new_tokens: {projection.AUTO} would give every task other "
            "tokens: give the list that stands in the joint adaptation's config.yaml"
        )
    found.encoder_conf = {**found.encoder_conf, "adapter_conf": own}
    return found


@contextlib.contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """One command at a time works on a folder.

    Raises:
        TaskError: Another does, or the folder cannot be written to.
    """
    import fcntl

    folder = out / plan.WORK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")
    except OSError as e:
        raise TaskError(f"--out {out}: tasks cannot be kept here: {e}") from e
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TaskError(
                f"--out {out}: another `espnet-hra adapt` is at work here; wait for "
                "its end, or give another folder"
            ) from None
        yield


def make_spec(args: argparse.Namespace, rest: Sequence[str], out: Path) -> worker.Spec:
    """What all jobs have in common; tried here, so that one message serves for all."""
    options = _espnet_args(args, rest, out)
    # The machine that hands out the jobs need not have a GPU.
    ngpu, options.ngpu = options.ngpu, 0
    bench = worker.Workbench(options)
    state, tasks = _checkpoint(options.init_adapter)
    found = argparse.Namespace(**vars(bench.args))
    found.encoder_conf = {**found.encoder_conf, "tasks": tasks}
    _model_folder(out, found, bench.identity, state)
    print(
        f"{bench.parameters:,} parameters for each task; the base "
        f"({options.pretrained_model}) and what tasks share are frozen",
        flush=True,
    )
    found.ngpu = ngpu
    return worker.Spec(
        options={**vars(found), "encoder_conf": {**found.encoder_conf, "tasks": []}},
        key=plan.config_key(vars(found), bench.identity),
        out=str(out),
        data=args.data,
        in_checkpoint=tuple(tasks),
        replace=args.replace,
    )


def _checkpoint(init_adapter: str | None) -> tuple[dict[str, Any], list[str]]:
    """The adapter that tasks are added to: its tensors, and its tasks."""
    from espnet_hra.espnet.model import ADAPTER_PREFIX

    if init_adapter is None:  # nothing is shared
        return {}, []
    adapter = beginning(read_state(Path(init_adapter)), ADAPTER_PREFIX)
    tasks = sorted(from_key(key) for key in beginning(adapter, "heads."))
    return {f"{ADAPTER_PREFIX}{key}": tensor for key, tensor in adapter.items()}, tasks


def _model_folder(
    out: Path,
    args: argparse.Namespace,
    identity: Mapping[str, Any],
    state: Mapping[str, Any],
) -> None:
    """Make a model of a folder, unless the controller comes from it."""
    from espnet_hra.espnet.trainer import save as atomic_save

    if is_home(args.init_adapter, out):
        return
    marker = out / plan.WORK / _IDENTITY
    text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
    whole = all((out / name).is_file() for name in (_CONFIG, _CHECKPOINT))
    if whole and marker.is_file() and marker.read_text(encoding="utf-8") == text:
        return
    out.mkdir(parents=True, exist_ok=True)
    atomic_save(dict(state), out / _CHECKPOINT)
    write_yaml(out / _CONFIG, {**vars(args), "config": None})
    atomic.write(marker, text)


def is_home(init_adapter: str | None, out: Path) -> bool:
    """Whether the controller comes from this folder."""
    if init_adapter is None:
        return False
    return Path(init_adapter).expanduser().absolute().parent.resolve() == out.resolve()
