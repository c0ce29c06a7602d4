"""Kaldi's lists: an utterance's id, a space, and its entry on each line.

There is one reader. It takes a list line by line, as ESPnet splits it, and never gives
up: what is wrong with which line is part of the result. (ESPnet's own ends at the first
such line.) :func:`read_entries` is for those who want whole lists only.
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_hra.data.problems import Problem, number
from espnet_hra.errors import DataError
from espnet_hra.files import atomic
from espnet_hra.names import listing

PathLike = str | os.PathLike[str]

#: The lists of a data directory, in the order in which they are written.
LISTS = ("wav.scp", "text", "utt2spk", "spk2utt", "utt2task")

_UTF8 = "Convert the file to UTF-8 (iconv -f <its encoding> -t UTF-8)."
_BLANK = "the line is blank"
_LINE_ENDS = "Convert the line ends to LF (tr -d '\\r', or dos2unix)."


@dataclass
class KaldiList:
    """A list of a data directory as it was read.

    Attributes:
        path: Where it is.
        entries: The entry of every id, the first one if there are several.
        lines: Every id and entry that could be read, in order, repetitions as well.
        ids: All ids, with those whose line could not be read.
        problems: What is wrong with it.
        bad: The ids that this concerns.
        usable: Whether there is anything in it.
    """

    path: str
    entries: dict[str, str] = field(default_factory=dict)
    lines: list[tuple[str, str]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)
    usable: bool = True

    def tell(self, kind: str, where: str, detail: str, remedy: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(kind, where, detail, remedy))

    def useless(self, detail: str, remedy: str) -> "KaldiList":
        """Say that there is nothing in it."""
        self.usable = False
        self.tell("unreadable file", self.path, detail, remedy)
        return self


def read_list(path: PathLike) -> KaldiList:
    """Read a list. Whatever is wrong with it is in what is returned."""
    result = KaldiList(os.fspath(path))
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return result.useless(
            f"cannot be read: {error.strerror or error}",
            "Correct the path, or run the stage that writes this file.",
        )
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return result.useless("is UTF-16, not UTF-8", _UTF8)
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
        result.tell(
            "byte order mark",
            f"{path}:1",
            "the file starts with U+FEFF, which would become part of the first id",
            "Save the file as UTF-8 without a byte order mark.",
        )
    _read_lines(result, content)
    if not result.ids:
        result.useless(
            "there is no utterance in it",
            f"Write a line for each utterance into {os.path.basename(path)}: its id, "
            "a space, and the entry.",
        )
    return result


def _read_lines(result: KaldiList, content: bytes) -> None:
    lines_of: dict[str, list[int]] = {}
    values_of: dict[str, set[str]] = {}
    with_cr: list[int] = []
    raw_lines = content.split(b"\n")
    if raw_lines[-1] == b"":
        raw_lines.pop()  # the end of the last line
    for line_number, raw in enumerate(raw_lines, 1):
        if raw.endswith(b"\r"):
            with_cr.append(line_number)
            raw = raw[:-1]
        line = raw.decode("utf-8", errors="replace")
        utterance, value = (*line.split(maxsplit=1), "", "")[:2]
        fault = _fault(raw, line)
        if fault is not None:
            result.tell("unreadable line", f"{result.path}:{line_number}", *fault)
            # An id that is itself damaged belongs to nobody.
            if utterance and "\ufffd" not in utterance:
                result.ids.add(utterance)
                result.bad.add(utterance)
            continue
        result.ids.add(utterance)
        result.lines.append((utterance, value.rstrip()))
        result.entries.setdefault(utterance, value.rstrip())
        lines_of.setdefault(utterance, []).append(line_number)
        values_of.setdefault(utterance, set()).add(value.rstrip())
    if with_cr:
        result.tell(
            "line ends",
            f"{result.path}:{with_cr[0]}",
            f"{number(len(with_cr), 'line')} end with CR LF, expected LF alone",
            _LINE_ENDS,
        )
    for utterance, numbers in lines_of.items():
        if len(numbers) > 1:
            what = "equal" if len(values_of[utterance]) == 1 else "different"
            shown = listing([str(one) for one in numbers], limit=5)
            result.tell(
                "duplicate id",
                utterance,
                f"stands in lines {shown} of {result.path}, with {what} entries",
                "Give every utterance its own id, or remove the surplus lines.",
            )
            result.bad.add(utterance)


def _fault(raw: bytes, line: str) -> tuple[str, str] | None:
    """What is wrong with a line, and the remedy."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        return f"byte 0x{byte:02x} at position {error.start + 1} is not UTF-8", _UTF8
    if b"\r" in raw:
        return "a carriage return stands within the line", _LINE_ENDS
    if not line.strip():
        return _BLANK, "Remove the line."
    return None


#: Problems that change nothing of what is read; so do blank lines.
_HARMLESS = {"byte order mark", "line ends"}


def read_entries(path: PathLike) -> dict[str, str]:
    """The entries of a list by id, in the order of the list.

    Raises:
        DataError: It cannot be read, has a line that cannot, or an id twice.
    """
    found = read_list(path)
    fault = first_fault(found)
    if fault is not None:
        at = (
            fault.where
            if fault.where.startswith(found.path)
            else f"{path}: {fault.where}"
        )
        raise DataError(f"{at}: {fault.detail}. {fault.remedy}")
    return found.entries


def first_fault(found: KaldiList) -> Problem | None:
    """The first problem that changes what is read of a list; None if there is none."""
    for problem in found.problems:
        if problem.kind not in _HARMLESS and problem.detail != _BLANK:
            return problem
    return None


# ------------------------------------------------------------------------------ writing


def write_list(path: PathLike, lines: Iterable[str]) -> None:
    """Write the lines of a file in one step; its folder is made if need be."""
    path = Path(path)
    write_lists(path.parent, {path.name: lines})


def write_lists(folder: PathLike, lists: Mapping[str, Iterable[str] | None]) -> None:
    """Write lists so that nobody sees half of them; None removes an old one.

    Args:
        folder: Where to, made if need be.
        lists: The lines of each, by name.

    Raises:
        OSError: One cannot be written; then all are as they were.
    """
    atomic.write_all(
        Path(folder),
        {
            name: None if lines is None else "".join(f"{line}\n" for line in lines)
            for name, lines in lists.items()
        },
    )


def by_speaker(speakers: Mapping[str, str]) -> list[str]:
    """The lines of spk2utt, from the speakers by utterance (utt2spk)."""
    spoken: dict[str, list[str]] = {}
    for utterance in sorted(speakers):
        spoken.setdefault(speakers[utterance], []).append(utterance)
    return [f"{speaker} {' '.join(spoken[speaker])}" for speaker in sorted(spoken)]


def write_subset(
    sources: Mapping[str, PathLike] | PathLike,
    target_dir: PathLike,
    keep: Collection[str],
) -> int:
    """Write lists, wherever they lie, restricted to some utterances and sorted.

    Args:
        sources: The lists by their names in Kaldi's data directories, or such a
            directory. A spk2utt is made from utt2spk.
        target_dir: Where to write. All files change together, each at once; lists of
            an earlier run that the sources lack are removed.
        keep: The ids of the utterances to keep.

    Returns:
        The number of lines of the new wav.scp.

    Raises:
        ValueError: Source and target are the same directory.
        OSError: A list cannot be read or written.
    """
    if not isinstance(sources, Mapping):
        paths = {name: os.path.join(sources, name) for name in LISTS}
        sources = {name: path for name, path in paths.items() if os.path.exists(path)}
    for source in sources.values():
        folder = os.path.dirname(os.path.abspath(source))
        if os.path.realpath(folder) == os.path.realpath(target_dir):
            raise ValueError(
                f"{os.fspath(target_dir)} holds the data themselves: choose another "
                "folder, nothing is overwritten"
            )
    kept = frozenset(keep)
    files: dict[str, list[str] | None] = dict.fromkeys(LISTS)
    for name, source in sources.items():
        if name == "spk2utt":
            continue
        found = read_list(source)
        if not found.entries and not os.path.exists(source):
            raise FileNotFoundError(f"{name}: {found.problems[0].detail}: {source}")
        ours = {utt: found.entries[utt] for utt in sorted(kept & found.entries.keys())}
        files[name] = [f"{utterance} {entry}" for utterance, entry in ours.items()]
        if name == "utt2spk":
            files["spk2utt"] = by_speaker(ours)
    write_lists(target_dir, files)
    return len(files["wav.scp"] or ())


def nested(items: Sequence[str], number: int) -> list[str]:
    """So many items of a list, spread over it; a larger number holds the smaller's.

    Args:
        items: All of them.
        number: How many; at most all.
    """
    # Numbers with their bits in reverse visit a list evenly: halves, then quarters.
    bits = max(len(items) - 1, 0).bit_length()
    visited = (int(f"{i:0{bits}b}"[::-1] or "0", 2) for i in range(2**bits))
    return [items[i] for i in visited if i < len(items)][:number]
