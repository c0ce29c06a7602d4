#!/usr/bin/env python3
"""What the stages of a run have written: recorded, and compared later.

    outputs.py record --notes EXP/.done/outputs/stage3_- --work EXP --files PATTERN...
    outputs.py check --notes EXP/.done/outputs --work EXP

A stage that was done is not done again, so what it has left must be what it wrote. A
note lists the files, with size, time and SHA-256 of each. Where size and time are the
same a file counts as unchanged; else its content is read. A file with the old content
and another time, as a copy has it, is unchanged too.

Only the standard library is imported to check: every run begins with it.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

#: How paths in a note begin: inside the folder of the run, which may be moved, inside
#: the folder of the call, or anywhere.
_WORK, _HERE, _ANYWHERE = "work", "here", "anywhere"

Note = dict[str, dict[str, tuple[int, int, str]]]


def _sum(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _placed(path: str, work: str) -> tuple[str, str]:
    full = os.path.abspath(path)
    for kind, root in ((_WORK, os.path.abspath(work)), (_HERE, os.getcwd())):
        if full.startswith(os.path.join(root, "")):
            return kind, os.path.relpath(full, root)
    return _ANYWHERE, full


def _found(kind: str, path: str, work: str) -> str:
    return os.path.join(work, path) if kind == _WORK else path


def _write(path: Path, files: dict[str, dict[str, tuple[int, int, str]]]) -> None:
    from espnet_hra.files import atomic

    text = json.dumps(files, indent=0, sort_keys=True)
    head = hashlib.sha256(text.encode()).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, f"{head}\n{text}\n")


def _read(path: Path) -> Note | None:
    """A note; None if it is damaged itself."""
    try:
        head, _, text = path.read_text(encoding="utf-8").partition("\n")
        text = text.removesuffix("\n")
        if hashlib.sha256(text.encode()).hexdigest() != head:
            return None
        note: Note = json.loads(text)
        return note
    except (OSError, ValueError):
        return None


def listed(
    patterns: Sequence[str],
    named: str = "",
    lists: Sequence[str] = (),
    within: str = "",
) -> Iterator[str]:
    """The files that are to be recorded.

    Args:
        patterns: Files; the last part of one may have ``*``.
        named: A file with the names of others, one a line.
        lists: Lists as ``wav.scp`` is: an id and a file in each line.
        within: Of those, the files below this folder.
    """
    if named and os.path.isfile(named):
        yield from Path(named).read_text(encoding="utf-8").splitlines()
    for pattern in patterns:
        folder, name = os.path.split(pattern)
        if "*" not in name:
            yield pattern
        elif os.path.isdir(folder):
            for found in sorted(os.listdir(folder)):
                if fnmatch.fnmatchcase(found, name) and not found.startswith("."):
                    yield os.path.join(folder, found)
    top = os.path.join(os.path.abspath(within), "") if within else None
    for path in lists:
        if top is None or not os.path.isfile(path):
            continue
        with open(path, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                entry = line.rstrip("\n").partition(" ")[2]
                if os.path.abspath(entry).startswith(top):
                    yield entry


def record(note: Path, work: str, paths: Iterable[str]) -> None:
    """Write down files that a stage has just written.

    A file whose content is what it was gets the time back that it had: what depends on
    it is not done again.

    Args:
        note: What is written.
        work: The folder of the run.
        paths: The files; folders, and what is not there, are passed over.
    """
    before = _read(note) or {}
    files: Note = {}
    sums: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        if not os.path.isfile(path):
            continue
        real = os.path.realpath(path)
        if real not in sums:
            sums[real] = _sum(real)
        kind, short = _placed(path, work)
        old = before.get(kind, {}).get(short)
        status = os.stat(path)
        if old is not None and old[2] == sums[real] and old[1] != status.st_mtime_ns:
            os.utime(path, ns=(status.st_atime_ns, old[1]))
            status = os.stat(path)
        known = files.setdefault(kind, {})
        known[short] = status.st_size, status.st_mtime_ns, sums[real]
    _write(note, files)


def changes(note: Path, work: str) -> Iterator[tuple[str, str]]:
    """Files that are not what was recorded, each with what has become of it."""
    files = _read(note)
    if files is None:
        yield str(note), "damaged"
        return
    for kind, known in files.items():
        for short, (size, time, content) in known.items():
            path = _found(kind, short, work)
            try:
                status = os.stat(path)
            except OSError:
                yield path, "gone"
                continue
            if (status.st_size, status.st_mtime_ns) == (size, time):
                continue
            if status.st_size < size:
                yield path, f"cut short, {status.st_size} of {size} bytes"
                continue
            try:
                same = status.st_size == size and _sum(path) == content
            except OSError:
                same = False
            if not same:
                yield path, "changed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Record or check; see above.

    Args:
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        description="Record what stages have written, and tell what has changed."
    )
    parser.add_argument("what", choices=["record", "check"])
    parser.add_argument("--notes", type=Path, required=True, help="file, or folder")
    parser.add_argument("--work", required=True, help="the folder of the run")
    parser.add_argument("--named", default="", help="a file with names of more files")
    parser.add_argument("--lists", nargs="*", default=[], help="lists of recordings")
    parser.add_argument("--within", default="", help="of those, what lies in here")
    parser.add_argument("--files", nargs="*", default=[], help="patterns of files")
    args = parser.parse_args(arguments)
    try:
        if args.what == "record":
            found = listed(args.files, args.named, args.lists, args.within)
            record(args.notes, args.work, found)
        elif args.notes.is_dir():
            for note in sorted(args.notes.iterdir()):
                if note.name.startswith("."):
                    continue
                for path, how in changes(note, args.work):
                    # Names may have anything but a line's end and a tab.
                    print(note.name, how, path, sep="\t")
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
