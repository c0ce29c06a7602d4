"""The command itself: options, the model's folder, and who trains what."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.errors import ConfigError, DataError
from espnet_hra.files.config import read_yaml


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
        help="Kaldi-style: DIR/{train,dev}/{wav.scp,text,utt2task}, with all tasks; or "
        "DIR/{wav.scp,text,utt2task}, of which every tenth sentence is held out. "
        "Without utt2task, every speaker is a task",
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

    from espnet_hra.adapt import cluster, plan  # torch takes seconds
    from espnet_hra.adapt.folder import (
        check_options,
        check_out,
        exclusive,
        make_spec,
    )
    from espnet_hra.adapt.run import Run, sort_jobs

    cluster.check_dask()
    check_options(rest)
    block = cluster.read(args.parallel, args.nj)
    parts, warnings = plan.read_data(Path(args.data))
    names = plan.choose(parts, args.tasks)
    if not names:
        raise DataError(f"{args.data}: no utterance in utt2task has a task")
    for warning in warnings:
        print(f"espnet-hra adapt: {warning}", file=sys.stderr)
    out = _out(args)
    check_out(out, args.init_adapter)
    ngpu = _ngpu(args.config, rest)
    with exclusive(out), cluster.settings(block, args.retries, ngpu):
        spec = make_spec(args, rest, out)
        jobs, rows = sort_jobs(spec, names, parts)
        return Run(spec, jobs, rows, block).run()


def _out(args: argparse.Namespace) -> Path:
    if args.out is not None:
        return Path(args.out).expanduser().absolute()
    if args.init_adapter is None:
        raise ConfigError("give --out DIR, the folder that the tasks shall be put into")
    return Path(args.init_adapter).expanduser().absolute().parent


def _ngpu(config: str | None, rest: Sequence[str]) -> int:
    """ESPnet's ``--ngpu``, which is needed before ESPnet can be asked."""
    default = 0
    if config is not None and Path(config).is_file():
        default = read_yaml(Path(config)).get("ngpu", 0)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ngpu", type=int, default=default)
    return parser.parse_known_args(rest)[0].ngpu
