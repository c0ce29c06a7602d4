"""`espnet-hra report`: RESULTS.md and its pictures, made anew from the tables."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.files.tables import read_table
from espnet_hra.report import page
from espnet_hra.report.results import TSV, UTTERANCES, Results, Row, Utterance
from espnet_hra.report.statistics import ReportError


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra report",
        description="Write RESULTS.md and its pictures anew, from results.tsv and the "
        "utterances.tsv beside it.",
    )
    parser.add_argument(
        "results", nargs="?", default=TSV, help=f"the table (default: {TSV})"
    )
    parser.add_argument("--out_dir", help="where to write (default: beside the table)")
    parser.add_argument(
        "--reference",
        help="the method that others are compared with, or the first word of several "
        "names for the best of these on dev (default: hra)",
    )
    parser.add_argument("--split", help="the data set of the pictures (default: test)")
    parser.add_argument(
        "--samples", type=int, default=10_000, help="resamples (default: 10000)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="what they are drawn with (default: 0)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and its pictures, and print their names.

    Args:
        argv: The arguments, by default those of the process.

    Returns:
        The exit status.

    Raises:
        UserError: The tables are not there or cannot be read.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.samples < 1 or args.seed < 0:
        parser.error("--samples must be at least 1 and --seed at least 0")
    table = Path(args.results)
    if table.is_dir():
        table /= TSV
    if not table.is_file():
        raise ReportError(f"there is no table {table}: name a {TSV}")
    results = Results(
        read_table(table, Row), read_table(table.with_name(UTTERANCES), Utterance)
    )
    if not results.utterances:
        print(f"no {UTTERANCES} beside {table}: no intervals")
    try:
        files = page.write(
            results,
            args.out_dir or table.parent,
            split=args.split,
            reference=args.reference,
            samples=args.samples,
            seed=args.seed,
        )
    except OSError as error:
        raise ReportError(f"cannot write the report: {error}") from error
    for file in files:
        print(file)
    return 0
