"""`espnet-hra validate`: the check of data before training, as a program."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.data.checks import add_skip_bad, check, shapes
from espnet_hra.data.lists import LISTS, write_lists, write_subset
from espnet_hra.data.problems import Report, number
from espnet_hra.data.requirements import Requirements, requirements_from_config
from espnet_hra.errors import DataError
from espnet_hra.files import atomic
from espnet_hra.files.config import read_yaml
from espnet_hra.names import listing
from espnet_hra.tasks.config import labels_by_task, read_tasks

logger = logging.getLogger(__name__)

_PARTS = ("train", "dev", "valid", "test")

_EXAMPLES = """examples:
  espnet-hra validate data/train
  espnet-hra validate data --config exp/train/config.yaml
  espnet-hra validate data/train --skip_bad true --out_dir dump/train
"""


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    from espnet2.utils.types import str2bool, str_or_none

    parser = argparse.ArgumentParser(
        prog="espnet-hra validate",
        description="Check the data of a training run before it starts: every list, "
        "every recording in full, texts and tasks. All problems come in one report, "
        "each with its remedy.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="DIR",
        help="Kaldi-style folders with wav.scp, and text and utt2task if they have "
        "them; or a folder of such (train, dev, test)",
    )
    parser.add_argument("--wav_scp", help="The list of recordings, instead of DIR")
    parser.add_argument("--text", type=str_or_none, help="The list of texts")
    parser.add_argument("--utt2task", type=str_or_none, help="The list of tasks")
    parser.add_argument(
        "--config",
        type=str_or_none,
        help="The training configuration of the model; without it, only what is wrong "
        "for every model at 16 kHz is found",
    )
    add_skip_bad(parser)  # needs --out_dir
    parser.add_argument(
        "--skip_long",
        type=str2bool,
        default=False,
        metavar="true|false",
        help="Leave out and count utterances that are longer than the model hears at "
        "once, which are a problem otherwise (default: false)",
    )
    parser.add_argument(
        "--tasks",
        type=str_or_none,
        metavar="FILE",
        help="The tasks, one a line, as encoder_conf: tasks may name them: those that "
        "classify have labels in the place of texts",
    )
    parser.add_argument(
        "--report", type=str_or_none, help="Where to write the whole report"
    )
    parser.add_argument(
        "--out_dir",
        type=str_or_none,
        help="Where to write the lists of the good utterances and their shapes; of "
        "several folders, each to a folder of its name in it",
    )
    parser.add_argument(
        "--jobs", type=int, help="The number of recordings to read at once"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check from the command line.

    Args:
        argv: The arguments, by default those of the process.

    Returns:
        The exit status: 0 if training can go on, 1 if it cannot.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.skip_bad and args.out_dir is None:
        parser.error("--skip_bad true needs --out_dir for the utterances that are kept")
    if bool(args.folders) == bool(args.wav_scp):
        parser.error("give either a folder with wav.scp, or --wav_scp LIST")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        requirements = Requirements()
        if args.config is not None:
            requirements = requirements_from_config(read_yaml(args.config, DataError))
        if args.tasks is not None:
            requirements.tasks = read_tasks(args.tasks)
            requirements.labels = labels_by_task({"tasks": args.tasks})
        sets = _lists_of(args)
        reports = {
            name: check(
                lists["wav.scp"],
                lists.get("text"),
                lists.get("utt2task"),
                requirements=requirements,
                jobs=args.jobs,
                skip_long=args.skip_long,
            )
            for name, lists in sets.items()
        }
        if args.report is not None:
            _write_report(Path(args.report), reports)
        fit = [
            _say(args, name, report, requirements.longest)
            for name, report in reports.items()
        ]
        if not all(fit):
            return 1  # and nothing is written, of the sound folders neither
        if args.out_dir is not None:
            for name, report in reports.items():
                _keep(Path(args.out_dir) / name, sets[name], report, requirements)
        return 0
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1


def _lists_of(args: argparse.Namespace) -> dict[str, dict[str, Path]]:
    """The lists of each set by Kaldi's names; an only set has the name "".

    Raises:
        DataError: A folder has none.
    """
    if args.wav_scp is not None:
        given = {"wav.scp": args.wav_scp, "text": args.text, "utt2task": args.utt2task}
        lists = {name: Path(path) for name, path in given.items() if path is not None}
        speakers = lists["wav.scp"].parent / "utt2spk"
        return {"": lists | ({"utt2spk": speakers} if speakers.exists() else {})}
    folders: list[Path] = []
    for folder in map(Path, args.folders):
        within = [folder / part for part in _PARTS]
        found = [p for p in (folder, *within) if (p / "wav.scp").exists()]
        if not found:
            raise DataError(
                f"{folder}: there is no wav.scp in it, nor in {', '.join(_PARTS)} "
                "within; write a line for each recording: its id, a space, its path"
            )
        folders += found[:1] if found[0] == folder else found
    for folder in folders:
        if not (folder / "text").exists():
            logger.warning(f"{folder}: there is no text in it, which training needs")
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder).strip("/").replace("/", "_") for folder in folders]
    return {
        name if len(folders) > 1 else "": {
            kind: folder / kind for kind in LISTS if (folder / kind).exists()
        }
        for name, folder in zip(names, folders)
    }


def _write_report(path: Path, reports: dict[str, Report]) -> None:
    texts = [
        f"{name}:\n{report.format(limit=None)}" if name else report.format(limit=None)
        for name, report in reports.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, "\n\n".join(texts) + "\n")


def _say(
    args: argparse.Namespace, name: str, report: Report, longest: float | None
) -> bool:
    """Say what was found in a set, and whether training can go on with it."""
    said = f"{name}: " if name else ""
    if report.too_long:
        print(
            f"{said}left out, as the model hears {longest:g} s at once: "
            f"{number(len(report.too_long), 'utterance')} "
            f"({listing(report.too_long)}); cut them to train on them"
        )
        if report.ok:
            for line in report.losses():
                print(f"{said}{line.strip()}")
    if report.ok:
        if name or args.out_dir is None:
            print(f"{said}{report.summary()}")
        return True
    print(f"{said}{report.format()}", file=sys.stderr)
    if args.report is not None:
        print(f"The whole report: {args.report}", file=sys.stderr)
    if args.skip_bad and not report.samples:
        print(f"{said}No utterance is left to train on.", file=sys.stderr)
    return args.skip_bad and bool(report.samples)


def _keep(
    target: Path, lists: dict[str, Path], report: Report, requirements: Requirements
) -> None:
    """Write the lists of a set's good utterances, and their shapes."""
    kept = write_subset(lists, target, report.good)
    tokens = requirements.tokens
    write_lists(target, shapes(report, None if tokens is None else len(tokens)))
    left_out = f", {len(report.bad):,} left out" if report.bad else ""
    logger.info(f"{number(kept, 'utterance')} kept{left_out}: {target}")
