"""`espnet-hra format`: any Kaldi-style data as plain files that all commands read."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.data.audio import SAMPLE_RATE
from espnet_hra.data.intake import (
    make_plain,
    parts_of,
    read_pieces,
    read_speakers,
    some_failures,
)
from espnet_hra.data.lists import by_speaker, read_entries, write_lists
from espnet_hra.data.problems import number
from espnet_hra.errors import DataError

#: Lists that go along, beside those of speakers.
_LISTS = ("text", "utt2task", "utt2lang")

_EXAMPLES = """examples:
  espnet-hra format data/train plain/train
  espnet-hra format corpus plain --fs 8000 --nj 8
  espnet-hra format data/dev plain/dev --root ~/kaldi/egs/swbd/s5c --run_pipes true
"""


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra format",
        description="Write Kaldi-style data as plain files: every utterance a mono "
        "file of one rate, cut out of its recording where there are segments. Files of "
        "any format and rate, archives (a.ark:123) and, if you say so, commands are "
        "read. "
        "What is mono FLAC or WAV of the rate already stays where it lies.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="has wav.scp, and what there is of segments, text, utt2spk, spk2utt, "
        "utt2task, utt2lang; or folders train, dev, valid, test with these",
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="the folder to write; audio in OUT/audio"
    )
    parser.add_argument(
        "--fs",
        type=int,
        default=SAMPLE_RATE,
        help=f"the sampling rate in Hz that the model wants (default: {SAMPLE_RATE})",
    )
    parser.add_argument(
        "--root",
        type=Path,
        help="the folder where the recipe of the data ran, which relative paths begin "
        "from (default: the first of this folder, DIR, and those above it, where the "
        "file is)",
    )
    parser.add_argument(
        "--run_pipes",
        choices=["true", "false"],
        default="false",
        help="run the commands that stand in wav.scp (sph2pipe ... |) by a shell, as "
        "Kaldi does: only for data that you trust (default: false)",
    )
    parser.add_argument(
        "--skip_bad",
        choices=["true", "false"],
        default="false",
        help="leave out and count what cannot be read, instead of writing no lists "
        "(default: false)",
    )
    parser.add_argument(
        "--nj", type=int, default=2, help="the number of processes (default: 2)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0 if all is written, 1 if recordings cannot be read.

    Raises:
        DataError: The lists are damaged, or there are commands that may not be run.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.fs < 1 or args.nj < 1:
        parser.error("--fs and --nj must be 1 or more")
    if args.out.resolve() == args.folder.resolve():
        parser.error(f"OUT is DIR ({args.out}): choose another folder for OUT")
    if args.root is not None and not args.root.is_dir():
        parser.error(f"--root {args.root}: there is no such folder")
    lists, failed = {}, 0
    for part, folder in parts_of(args.folder).items():
        pieces = read_pieces(folder, root=args.root, run_pipes=args.run_pipes == "true")
        made = make_plain(pieces, args.out / "audio", args.fs, args.nj)
        good = [utt for utt in sorted(pieces) if utt not in made.failures]
        for line in some_failures(made.failures):
            print(f"espnet-hra format: {folder}: {line}", file=sys.stderr)
        failed += len(made.failures)
        if not good:
            raise DataError(f"{folder}: no utterance is left that can be read")
        lists[part] = _lists(folder, {utt: made.paths[utt] for utt in good})
        print(
            f"{folder}: {number(len(good), 'utterance')}, {made.converted:,} of them "
            f"converted, {len(made.failures):,} left out"
        )
    if failed and args.skip_bad == "false":
        print(
            f"espnet-hra format: {number(failed, 'utterance')} cannot be read, and no "
            "lists are written: repair them, or leave them out with --skip_bad true",
            file=sys.stderr,
        )
        return 1
    for part, columns in lists.items():
        write_lists(args.out / part, columns)
    return 0


def _lists(folder: Path, paths: dict[str, str]) -> dict[str, list[str] | None]:
    """The lists of what is written, sorted; None for those of an earlier run."""
    lists: dict[str, list[str] | None] = {"utt2spk": None, "spk2utt": None}
    lists["wav.scp"] = [f"{utt} {path}" for utt, path in paths.items()]
    for name in _LISTS:
        lists[name] = None
        if (folder / name).exists():
            entries = read_entries(folder / name)
            lists[name] = [f"{utt} {entries[utt]}" for utt in paths if utt in entries]
    speakers = read_speakers(folder)
    if speakers is not None:
        kept = {utt: speakers[utt] for utt in paths if utt in speakers}
        lists["utt2spk"] = [f"{utt} {speaker}" for utt, speaker in kept.items()]
        lists["spk2utt"] = by_speaker(kept)
    return lists
