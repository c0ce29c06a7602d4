"""What it stands: kills, two at once, load, damage; figures for docs/reliability.md.

    espnet-hra bench soak --only recipe tasks

Each part ends with lines in a table of results, which take the place of its earlier
ones, and the table is written into a page. What is random depends on --seed.
"""

import argparse
import importlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

#: Each is a module of this package with ``soak(folder, count, seed, command)``:
#: what it does, and how much of it by default.
PARTS = {
    "recipe": ("kills of the recipe on mini AN4", 50),
    "adapt": ("kills of adapt", 10),
    "tasks": ("kills of tasks add, import and remove", 50),
    "disk": ("times that the disk is full, at each stage of the recipe", 2),
    "load": ("minutes of requests while tasks change", 60),
    "damage": ("damaged files of each kind", 10_000),
}


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    listed = "\n".join(f"  {n:<8}{text} ({d})" for n, (text, d) in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="espnet-hra bench soak",
        description="Kill, load and damage it, and compare what comes out.",
        epilog=f"parts, and how much of each by default:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, metavar="PART", help="(default: all)"
    )
    parser.add_argument(
        "--count", type=int, help="how much of it, of each part (default: below)"
    )
    parser.add_argument("--seed", type=int, default=1, help="(default: 1)")
    parser.add_argument(
        "--work", help="where to work; runs are kept there (default: thrown away)"
    )
    parser.add_argument("--results", help="a table that results are put into (TSV)")
    parser.add_argument("--page", help="a page that the table is written into")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts one after the other.

    Returns:
        The exit status: 1 if something did not end as it should.
    """
    from espnet_hra.bench.soak.rows import put, table, write_page

    args = get_parser().parse_args(argv)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="espnet_hra.soak.") as temporary:
        work = Path(args.work or temporary).absolute()
        work.mkdir(parents=True, exist_ok=True)
        for part in args.only or PARTS:
            start = time.monotonic()
            count = PARTS[part][1] if args.count is None else args.count
            command = f"espnet-hra bench soak --only {part}"
            if count != PARTS[part][1]:
                command += f" --count {count}"
            if args.seed != 1:
                command += f" --seed {args.seed}"
            module = importlib.import_module(f"espnet_hra.bench.soak.{part}")
            rows = module.soak(work, count, args.seed, command)
            wrong += sum(row.wrong for row in rows)
            print(table(rows), flush=True)
            if args.results:
                put(Path(args.results), rows, part, start)
            if args.results and args.page:
                write_page(Path(args.page), Path(args.results))
    return int(wrong > 0)
