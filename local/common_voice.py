#!/usr/bin/env python3
"""Prepare one language of Common Voice; tasks are speakers, or accents.

Most speakers have few sentences, so those with the most are taken. The corpus's own
sets share no speakers; therefore all is split anew.
"""

import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from corpus import CorpusError
from named import Recording, main

LAYOUT = "validated.tsv (or train.tsv, dev.tsv, test.tsv), and clips/*.mp3"

TASKS = ("speaker", "accent")

#: Columns of the lists; older versions say "accent".
_NEEDED = ("client_id", "path", "sentence")


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of one of its lists.

    Raises:
        CorpusError: It has other columns, or is not UTF-8.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [name for name in _NEEDED if name not in (rows.fieldnames or ())]
        if missing:
            raise CorpusError(
                f"{path} has no column {', '.join(missing)}: unpack the corpus again"
            )
        try:
            for row in rows:
                yield {key: value or "" for key, value in row.items() if key}
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path} is not UTF-8: {error.reason}") from None


def language_of(row: Mapping[str, str], source: Path) -> str:
    """The code that Whisper knows: zh of zh-CN."""
    return (row.get("locale") or source.resolve().name).partition("-")[0]


def recordings(source: Path, config: Mapping[str, Any]) -> Iterator[Recording]:
    """All validated recordings; without that list, those of the corpus's sets."""
    kind = config.get("tasks", "speaker")
    if kind not in TASKS:
        raise CorpusError(
            f"conf/corpora.yaml: tasks of common_voice: {kind!r}; it can be "
            f"{' or '.join(TASKS)}"
        )
    files = [source / "validated.tsv"]
    if not files[0].is_file():
        files = [source / f"{name}.tsv" for name in ("train", "dev", "test")]
    for path in filter(Path.is_file, files):
        for row in read_rows(path):
            accent = row.get("accents") or row.get("accent", "")
            why = ""
            if not row["client_id"] or not row["path"]:
                why = "a row without speaker or recording"
            elif kind == "accent" and not accent:
                why = "the accent is not known"
            yield Recording(
                Path(row["path"]).stem,
                # Its beginning tells them apart; the whole has 128 letters.
                f"speaker_{row['client_id'][:16]}",
                source / "clips" / row["path"],
                row["sentence"],
                accent if kind == "accent" else "",
                language=language_of(row, source),
                why=why,
            )


if __name__ == "__main__":
    sys.exit(main("common_voice", __doc__, LAYOUT, recordings))
