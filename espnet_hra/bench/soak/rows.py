"""What the soak has found: a table for programs, and a page for people."""

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

from espnet_hra.errors import UserError
from espnet_hra.files import atomic
from espnet_hra.files.tables import markdown, read_table, write_table

#: Between these lines of the page, the table is written.
BEGIN, END = "<!-- the soak's table -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Row:
    """One kind of fault.

    Attributes:
        part: What ``--only`` calls it.
        fault: What was done.
        tried: How often.
        wrong: How often it did not end as it should.
        outcome: What came of it.
        command: What does the same again.
        minutes: How long it took.
        date: When.
    """

    part: str
    fault: str
    tried: int
    wrong: int
    outcome: str
    command: str
    minutes: float = 0.0
    date: str = ""


def put(path: Path, rows: list[Row], part: str, start: float) -> None:
    """Let rows take the place of those that a part has in the results.

    Args:
        path: The results.
        rows: The part's rows.
        part: Its name.
        start: When it began, of ``time.monotonic``.
    """
    minutes = (time.monotonic() - start) / 60
    date = time.strftime("%Y-%m-%d")
    done = [replace(row, minutes=minutes, date=date) for row in rows]
    kept = [row for row in read_table(path, Row) if row.part != part]
    write_table(path, sorted([*kept, *done], key=lambda row: row.part), Row)


def table(rows: list[Row]) -> str:
    """The rows for people."""
    cells = [["fault", "tried", "wrong", "outcome", "again", "minutes"]]
    for row in rows:
        again = f"`{row.command}`"
        numbers = [f"{row.tried:,}", f"{row.wrong:,}"]
        cells.append([row.fault, *numbers, row.outcome, again, f"{row.minutes:.0f}"])
    return re.sub(r"---:\|---:\|---:\|$", "---|---|---:|", markdown(cells), flags=re.M)


def write_page(page: Path, results: Path) -> None:
    """Write the table of the results into a page, between its two marks.

    Raises:
        UserError: The page has no such marks.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{page}: expected the lines {BEGIN!r} and {END!r}")
    rows = table(read_table(results, Row))
    atomic.write(page, f"{before}{BEGIN}\n\n{rows}\n{END}{after}")
