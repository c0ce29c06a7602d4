"""Check Kaldi-style data folders before a training: all problems in one report."""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.data.checks import add_skip_bad, check, write_shapes
from espnet_hra.data.lists import copy_lists, of_folder
from espnet_hra.data.problems import Report, number
from espnet_hra.data.requirements import Requirements, requirements_from_config
from espnet_hra.errors import ConfigError, DataError
from espnet_hra.files import atomic
from espnet_hra.files.config import read_yaml

HELP = "check the audio, texts and tasks of data folders"

#: The folders of a corpus that is split.
_PARTS = ("train", "dev", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    from espnet2.utils.types import str2bool

    parser.description = __doc__
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="Has wav.scp, text and, if tasks shall be checked, utt2task; or the "
        "folders train, dev and test with these",
    )
    parser.add_argument(
        "--config",
        help="The training configuration of the model; without it, only what is wrong "
        "for every model at 16 kHz is found",
    )
    parser.add_argument(
        "--check_text",
        type=str2bool,
        default=True,
        metavar="true|false",
        help="false: texts are only compared with, as those of a test set: anything "
        "may stand in them, or nothing (default: true)",
    )
    add_skip_bad(parser)
    parser.add_argument("--report", type=Path, help="Write the whole report here")
    parser.add_argument(
        "--out_dir",
        type=Path,
        help="Write the lists of the good utterances, and their shapes for ESPnet, to "
        "OUT_DIR/<name of DIR>",
    )
    parser.add_argument("--jobs", type=int, help="Recordings to read at once")


def run(args: argparse.Namespace) -> int:
    """Check, report, and write what is kept.

    Returns:
        The exit status: 0 if training can go on, 1 if it cannot.

    Raises:
        UserError: A folder or the configuration cannot be used.
    """
    if args.skip_bad and args.out_dir is None:
        raise ConfigError(
            "--skip_bad true needs --out_dir for the utterances that are kept"
        )
    folders = [part for folder in args.folders for part in _parts(folder)]
    twice = [name for name, n in Counter(f.name for f in folders).items() if n > 1]
    if twice and args.out_dir is not None:
        raise ConfigError(
            f"--out_dir: several folders are called {', '.join(twice)}: check them one "
            "by one"
        )
    requirements = Requirements()
    if args.config is not None:
        requirements = requirements_from_config(read_yaml(args.config))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    reports = {}
    for folder in folders:
        found = of_folder(folder)
        reports[folder] = check(
            found["wav.scp"],
            folder / "text" if args.check_text else None,
            found.get("utt2task"),
            requirements=requirements,
            jobs=args.jobs,
        )
        bad = not reports[folder].ok
        print(f"{folder}: {reports[folder]}", file=sys.stderr if bad else sys.stdout)
    if args.report is not None:
        whole = [f"{folder}: {r.format(limit=None)}\n" for folder, r in reports.items()]
        atomic.write_all(args.report.parent, {args.report.name: "\n".join(whole)})
        if not all(report.ok for report in reports.values()):
            print(f"The whole report: {args.report}", file=sys.stderr)
    return _keep(reports, requirements, args.skip_bad, args.out_dir)


def _parts(folder: Path) -> Sequence[Path]:
    """The folders with lists that a folder stands for."""
    folder = folder.absolute() if folder.name in ("", "..") else folder
    if (folder / "wav.scp").exists():
        return [folder]
    parts = [folder / name for name in _PARTS if (folder / name / "wav.scp").exists()]
    if not parts:
        raise DataError(
            f"{folder}: there is no wav.scp in it, nor folders {', '.join(_PARTS)} "
            "with one; give a Kaldi-style data folder"
        )
    return parts


def _keep(
    reports: dict[Path, Report],
    requirements: Requirements,
    skip_bad: bool,
    out_dir: Path | None,
) -> int:
    """Write the good utterances, if training can go on; see :func:`run`."""
    if not skip_bad and not all(report.ok for report in reports.values()):
        return 1
    empty = [str(folder) for folder, report in reports.items() if not report.good]
    if empty:
        print(f"No utterance is left in {', '.join(empty)}.", file=sys.stderr)
        return 1
    if out_dir is None:
        return 0
    size = None if requirements.tokens is None else len(requirements.tokens)
    for folder, report in reports.items():
        target = out_dir / folder.name
        kept = copy_lists(of_folder(folder), target, report.good)
        write_shapes(report, target, size)
        left_out = f", {len(report.bad):,} left out" if report.bad else ""
        print(f"{number(kept, 'utterance')} kept{left_out}: {target}")
    return 0
