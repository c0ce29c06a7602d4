"""The command itself: options, the model's folder, and who trains what."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_hra.adapt import cluster, plan, signals, table, worker
from espnet_hra.errors import BaseModelError, ConfigError, DataError, TaskError
from espnet_hra.files import atomic
from espnet_hra.names import check_task_name

#: Of a model's folder: the controller, with what else is in its checkpoint.
_CONFIG, _CHECKPOINT, _IDENTITY = "config.yaml", "latest.pth", "model.json"

#: Options of ESPnet that each job has its own value of, or that make no sense here.
_OWN = (
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

#: Seconds between two looks at how many workers there are.
_TICK = 2.0

INTERRUPTED = 130


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra adapt",
        description="Train a new task for every task of a data folder: one head each, "
        "base and controller frozen, spread over workers with Dask. The same command "
        "goes on where it was stopped, does what has failed again, and nothing twice.",
        epilog="All other options are ESPnet's, as of `espnet-hra train`, and hold for "
        "every task: --max_epoch 10 --seed 3 --skip_bad true --ngpu 1 ... "
        "One *joint* training of controller and heads does not scale this way but "
        "with torchrun (DDP): torchrun --nproc_per_node 4 -m espnet_hra.bin.asr_train "
        "--multiprocessing_distributed false ...",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="YAML",
        help="ESPnet's training options, as for `espnet-hra train`; `regime: new_task` "
        "is set, `tasks` is not read",
    )
    parser.add_argument(
        "--pretrained_model",
        metavar="BASE",
        required=True,
        help="The frozen base: pack, experiment folder, checkpoint or tag",
    )
    parser.add_argument(
        "--init_adapter",
        metavar="PTH",
        help="Checkpoint of an earlier joint adaptation, whose controller is used",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        required=True,
        help="Kaldi-style: DIR/{train,dev}/{wav.scp,text,utt2task}, with all tasks",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="Model folder to put the tasks into: DIR/tasks/NAME.safetensors. A new "
        "one gets a copy of the controller (default: the folder of --init_adapter)",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME|FILE",
        help="Only these, or those of a file with one name a line (default: all)",
    )
    parser.add_argument(
        "--parallel",
        metavar="YAML",
        help="ESPnet3's block `parallel`: env (local, local_gpu, slurm, pbs, sge, "
        "...), n_workers, options (default: workers on this machine)",
    )
    parser.add_argument(
        "--nj",
        type=int,
        metavar="N",
        help="Workers (default: those of --parallel, or one for each processor)",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=2,
        metavar="N",
        help="How often a task whose worker died (of memory, say) is given to another "
        "before it counts as failed (default: 2)",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="Tasks may take the place of tasks of their name that were made otherwise",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0 if all tasks are done, 1 if some have failed, 130 if it was
        interrupted.

    Raises:
        UserError: What was asked for is not possible for any task.
    """
    parser = get_parser()
    args, rest = parser.parse_known_args(argv)
    for name, least in (("nj", 1), ("retries", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name}: {value} is below {least}")
    _check_options(rest)
    block = cluster.read(args.parallel, args.nj)
    parts, warnings = plan.read_data(Path(args.data))
    names = plan.choose(parts, args.tasks)
    if not names:
        raise DataError(f"{args.data}: no utterance in utt2task has a task")
    for warning in warnings:
        print(f"espnet-hra adapt: {warning}", file=sys.stderr)
    out = _out(args)
    _check_out(out, args.init_adapter)
    ngpu = _ngpu(args.config, rest)
    with _exclusive(out), cluster.settings(block, args.retries, ngpu):
        spec = _spec(args, rest, out)
        jobs, rows = _sort(spec, names, parts)
        return _Run(spec, jobs, rows, block).run()


# ----------------------------------------------------------------------------- options


def _check_options(rest: Sequence[str]) -> None:
    """Refuse options that each job has a value of its own of."""
    for option in rest:
        name = option.partition("=")[0].removeprefix("--")
        if option.startswith("--") and name in _OWN:
            raise ConfigError(
                f"--{name} is not possible here: each task has a training of its own, "
                "in --out, on its utterances of --data"
            )


def _out(args: argparse.Namespace) -> Path:
    if args.out is not None:
        return Path(args.out).expanduser().absolute()
    if args.init_adapter is None:
        raise ConfigError("give --out DIR, the folder that the tasks shall be put into")
    return Path(args.init_adapter).expanduser().absolute().parent


def _check_out(out: Path, init_adapter: str | None) -> None:
    """Refuse a folder of another model, and a controller that is not there."""
    if init_adapter is not None and not Path(init_adapter).expanduser().is_file():
        raise BaseModelError(
            f"--init_adapter {init_adapter}: there is no such file; give the "
            "checkpoint of a joint adaptation, e.g. exp/asr_hra/valid.cer_ctc.ave.pth"
        )
    if _is_home(init_adapter, out) or (out / plan.WORK / _IDENTITY).is_file():
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
    for name in _OWN[5:]:
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


def _ngpu(config: str | None, rest: Sequence[str]) -> int:
    """ESPnet's ``--ngpu``, which is needed before ESPnet can be asked."""
    from espnet_hra.files.config import read_yaml

    default = 0
    if config is not None and Path(config).is_file():
        default = read_yaml(Path(config)).get("ngpu", 0)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ngpu", type=int, default=default)
    return parser.parse_known_args(rest)[0].ngpu


# --------------------------------------------------------------------------- the model


@contextlib.contextmanager
def _exclusive(out: Path) -> Iterator[None]:
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


def _spec(args: argparse.Namespace, rest: Sequence[str], out: Path) -> worker.Spec:
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
    from espnet_hra.files.checkpoint import read_state

    if init_adapter is None:  # nothing is shared
        return {}, []
    state = {
        key: tensor
        for key, tensor in read_state(Path(init_adapter)).items()
        if key.startswith(ADAPTER_PREFIX)
    }
    heads = f"{ADAPTER_PREFIX}heads."
    tasks = [k.removeprefix(heads).replace("/", ".") for k in state if heads in k]
    return state, sorted(tasks)


def _model_folder(
    out: Path,
    args: argparse.Namespace,
    identity: Mapping[str, Any],
    state: Mapping[str, Any],
) -> None:
    """Make a model of a folder, unless the controller comes from it."""
    import yaml

    from espnet_hra.espnet.trainer import save as atomic_save

    if _is_home(args.init_adapter, out):
        return
    marker = out / plan.WORK / _IDENTITY
    text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
    whole = all((out / name).is_file() for name in (_CONFIG, _CHECKPOINT))
    if whole and marker.is_file() and marker.read_text(encoding="utf-8") == text:
        return
    out.mkdir(parents=True, exist_ok=True)
    atomic_save(dict(state), out / _CHECKPOINT)
    config = yaml.safe_dump({**vars(args), "config": None}, sort_keys=False)
    atomic.write(out / _CONFIG, config.encode())
    atomic.write(marker, text.encode())


def _is_home(init_adapter: str | None, out: Path) -> bool:
    """Whether the controller comes from this folder."""
    if init_adapter is None:
        return False
    return Path(init_adapter).expanduser().absolute().parent.resolve() == out.resolve()


# ------------------------------------------------------------------------- the fan-out


def _sort(
    spec: worker.Spec, names: Sequence[str], parts: Mapping[str, plan.Lines]
) -> tuple[list[plan.Job], dict[str, dict[str, Any]]]:
    """Who must be trained, and rows of those who need not, or cannot.

    The largest come first: otherwise one worker would be at work on them in the end,
    while all others have nothing to do.
    """
    jobs, rows = [], {}
    for name in names:
        job = plan.make_job(name, parts, spec.key)
        rows[name] = {"task": name, "status": "left", "utterances": job.utterances}
        try:
            check_task_name(name)
        except TaskError as e:
            rows[name].update(status="failed", note=str(e))
            continue
        if plan.is_done(Path(spec.out), job):
            rows[name] = {
                **worker.result_of(Path(spec.out), job),
                "note": "from an earlier run",
            }
        else:
            jobs.append(job)
    return sorted(jobs, key=lambda job: (-job.utterances, job.name)), rows


class _Run:
    """One run of the command over its workers."""

    def __init__(
        self,
        spec: worker.Spec,
        jobs: list[plan.Job],
        rows: dict[str, dict[str, Any]],
        block: dict[str, Any],
    ):
        self.spec, self.jobs, self.rows, self.block = spec, jobs, rows, block
        self.finished = 0

    def run(self) -> int:
        """Train all jobs and write the table; the exit status."""
        done = table.counts(list(self.rows.values()))
        print(
            f"{len(self.rows):,} tasks: {done['done']:,} done before, "
            f"{len(self.jobs):,} to do",
            flush=True,
        )
        self.start = time.monotonic()
        try:
            with signals.terminable():
                if self.jobs:
                    self._spread()
        except KeyboardInterrupt:
            print("\nespnet-hra adapt: interrupted", file=sys.stderr, flush=True)
            for job in self.jobs:  # workers end, and some have made it
                left = self.rows[job.name]["status"] == "left"
                if left and plan.is_done(Path(self.spec.out), job):
                    self.rows[job.name] = worker.result_of(Path(self.spec.out), job)
        return self._conclude()

    def _spread(self) -> None:
        """Give each worker one job, and the next when it is done with it.

        No more than one: Dask holds a job that waits on a worker responsible for the
        worker's death, and thousands of them at once would fill the scheduler.
        """
        from distributed import TimeoutError, wait

        waiting, running = list(reversed(self.jobs)), {}
        told = False
        # More workers than jobs would be of no use.
        self.block["n_workers"] = min(self.block["n_workers"], len(waiting))
        with cluster.client(self.block) as client, signals.quiet_end():
            while waiting or running:
                slots = sum(client.nthreads().values())
                while waiting and len(running) < slots:
                    job = waiting.pop()
                    future = client.submit(
                        worker.run, self.spec, job, key=f"adapt-{job.name}", pure=False
                    )
                    running[future] = job
                if not running:
                    if not told:
                        print("waiting for workers", flush=True)
                        told = True
                    time.sleep(_TICK)
                    continue
                try:
                    ready = wait(list(running), _TICK, "FIRST_COMPLETED").done
                except TimeoutError:
                    continue
                for future in ready:
                    self._take(running.pop(future), future)

    def _take(self, job: plan.Job, future: Any) -> None:
        error = future.exception()
        if error is None:
            row = future.result()
        else:
            row = {**self.rows[job.name], "status": "failed", "note": _why(error)}
        future.release()
        self.rows[job.name] = row
        self.finished += 1
        self._tell(row)

    def _tell(self, row: Mapping[str, Any]) -> None:
        """A line of progress."""
        found = table.counts(list(self.rows.values()))
        spent = time.monotonic() - self.start
        left = spent / self.finished * (len(self.jobs) - self.finished)
        words = [f"{found['done']:,} of {len(self.rows):,} done"]
        if found["failed"]:
            words.append(f"{found['failed']:,} failed")
        if found["left"]:
            words.append(f"about {_duration(left)} left")
        what = f"{row['task']} {row['status']}"
        if row["status"] == "failed":
            what += f": {row['note']}"
        elif row.get("cer") is not None:
            what += f", CER {row['cer_before']:.1f} -> {row['cer']:.1f}"
        print(f"[{', '.join(words)}] {what}", flush=True)

    def _conclude(self) -> int:
        rows = [self.rows[name] for name in sorted(self.rows)]
        out = Path(self.spec.out)
        path = table.write(rows, out)
        found = table.counts(rows)
        print(f"\n{table.summary(rows)}\n")
        words = [f"{number:,} {status}" for status, number in found.items() if number]
        print(
            f"{', '.join(words)}, in {_duration(time.monotonic() - self.start)}: {path}"
        )
        if found["failed"]:
            print(f"Logs: {out / plan.WORK}/NAME/{worker.LOG}")
        if found["failed"] or found["left"]:
            print("The same command goes on, and does what has failed again")
        if found["done"]:
            model = self._model()
            print(f"Use them: espnet-hra transcribe FILE --model {model} --task NAME")
        sys.stdout.flush()
        return INTERRUPTED if found["left"] else int(found["failed"] > 0)

    def _model(self) -> Path:
        """How the model is named that the tasks belong to."""
        from espnet_hra.espnet.base import open_base

        out, used = Path(self.spec.out), self.spec.options["init_adapter"]
        if not _is_home(used, out):
            return out
        found = open_base(str(out)).model_file
        return out if found.resolve() == Path(used).resolve() else Path(used)


def _why(error: BaseException) -> str:
    """Why a job has no result."""
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        times = error.allowed_failures + 1
        return (
            f"{times} worker{'s' if times > 1 else ''} died of it (of memory, most "
            f"likely; the last was {error.last_worker.address})"
        )
    return worker.reason(error)


def _duration(seconds: float) -> str:
    """For people: 12 s, 3 min, 2 h 10 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
