"""Tables: TSV for programs, Markdown and aligned columns for people.

A TSV table has one dataclass for its lines; the fields are the columns.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from espnet_hra.errors import UserError
from espnet_hra.files import atomic

PathLike = str | os.PathLike[str]


class TableError(UserError, ValueError):
    """A table that cannot be read; the message names file and line."""


def header(kind: type[Any]) -> str:
    """The first line of a table."""
    return "\t".join(field.name for field in fields(kind))


def read_table[Line](path: PathLike, kind: type[Line]) -> list[Line]:
    """Read a table; no lines if there is no such file.

    Args:
        path: The file.
        kind: Dataclass of its lines, with fields of the types str, int and float.

    Raises:
        TableError: It has other columns, or a damaged line.
    """
    path, head = Path(path), header(kind)
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    if lines[0].rstrip("\r") != head:
        raise TableError(f"{path} has other columns than {head.split()}: move it away")
    types: list[Any] = [field.type for field in fields(kind)]  # type: ignore[arg-type]
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            values = line.rstrip("\r").split("\t")
            rows.append(kind(*(t(v) for t, v in zip(types, values, strict=True))))
        except ValueError as error:
            raise TableError(f"{path}, line {number}: {error}") from error
    return rows


def write_rows(path: PathLike, rows: Iterable[Sequence[str]]) -> None:
    """Write cells as TSV in one step; the first row is the header."""
    atomic.write(path, "".join("\t".join(row) + "\n" for row in rows))


def write_table[Line](path: PathLike, lines: Sequence[Line], kind: type[Line]) -> None:
    """Write a table in one step; its folder is made if it is not there."""
    cells = ([_cell(v) for v in astuple(line)] for line in lines)  # type: ignore
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, [header(kind).split("\t"), *cells])


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head, the first column its names."""
    names, *body = [[_escape(cell) for cell in row] for row in cells]
    rule = ["---", *("---:" for _ in names[1:])]
    return "\n".join("|" + "|".join(row) + "|" for row in (names, rule, *body)) + "\n"


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """The lines of a table in columns of equal width.

    Args:
        rows: Cells; the first row is the head.
        left: Which columns are set to the left; the others, to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def _cell(value: str | int | float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
