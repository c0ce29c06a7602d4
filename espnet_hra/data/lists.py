"""Kaldi's lists: `wav.scp`, `text`, `utt2spk`, `spk2utt`, `utt2task`, and shape files.

A line is an id, white space, and a value that may be empty. There is one parser and two
ways to use it: :func:`read_list` stops at the first fault, :func:`scan` collects all of
them for a report. (ESPnet's own reader takes a byte order mark for a part of the first
id, and its errors name no remedy.)
"""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from espnet_hra.data.problems import Problem, number
from espnet_hra.errors import DataError
from espnet_hra.files import atomic
from espnet_hra.names import listing

PathLike = atomic.PathLike

#: The lists of a data folder, in the order in which they are written.
NAMES = ("wav.scp", "text", "utt2spk", "spk2utt", "utt2task")

_REMEDY_UTF8 = "Convert the file to UTF-8 (iconv -f <its encoding> -t UTF-8)."
_REMEDY_LINE_ENDS = "Convert the line ends to LF (tr -d '\\r', or dos2unix)."
_BOM = b"\xef\xbb\xbf"


class ListError(DataError):
    """A list that cannot be read or written; the message names file and line."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line as it was read; a faulty one has an id only where that is whole."""

    number: int
    id: str
    value: str
    fault: str = ""
    remedy: str = ""
    ends_with_cr: bool = False


def _parse(content: bytes) -> Iterator[_Line]:
    raw_lines = content.removeprefix(_BOM).split(b"\n")
    if raw_lines[-1] == b"":
        raw_lines.pop()  # the end of the last line
    for number_, raw in enumerate(raw_lines, 1):
        with_cr = raw.endswith(b"\r")
        raw = raw.removesuffix(b"\r")
        fault, remedy = "", "Remove the line, or write it anew."
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            fault = f"byte 0x{byte:02x} at position {error.start + 1} is not UTF-8"
            remedy = _REMEDY_UTF8
            line = raw.decode("utf-8", errors="replace")
        else:
            if b"\r" in raw:
                fault = "a carriage return stands within the line"
                remedy = _REMEDY_LINE_ENDS
            elif not line.strip():
                fault, remedy = "the line is blank", "Remove the line."
        id_, value = (*line.split(maxsplit=1), "", "")[:2]
        if fault and "\ufffd" in id_:
            id_ = ""  # an id that is itself damaged belongs to nobody
        yield _Line(number_, id_, value.rstrip(), fault, remedy, with_cr)


def read_pairs(path: PathLike) -> list[tuple[str, str]]:
    """Ids and values of a list, line by line; an id may stand in it twice.

    Raises:
        ListError: The list cannot be read, or is not in UTF-8.
    """
    return [(line.id, line.value) for line in _read(path)]


def read_list(path: PathLike) -> dict[str, str]:
    """Values of a list by id, in its order.

    Blank lines, a byte order mark and the line ends of Windows are passed over.

    Raises:
        ListError: The list cannot be read, is not in UTF-8, or an id stands in it
            twice.
    """
    values: dict[str, str] = {}
    for line in _read(path):
        if line.id in values:
            raise ListError(f"{path}, line {line.number}: {line.id} stands twice")
        values[line.id] = line.value
    return values


def _read(path: PathLike) -> Iterator[_Line]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ListError(f"{path}: cannot be read: {error.strerror or error}") from error
    for line in _parse(content):
        if line.remedy == _REMEDY_UTF8:
            raise ListError(f"{path}, line {line.number}: {line.fault}. {line.remedy}")
        if line.id:
            yield line


@dataclass
class Scan:
    """All that a list has, and all that is wrong with it.

    Attributes:
        path: Where it is.
        entries: The value of every id, the first one if there are several.
        ids: All ids, with those whose line could not be read.
        bad: The ids that cannot be used.
        problems: What is wrong.
    """

    path: str
    entries: dict[str, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.ids)

    def tell(self, kind: str, where: str, detail: str, remedy: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(kind, where, detail, remedy))


def scan(path: PathLike) -> Scan:
    """Read a list without ever giving up."""
    result = Scan(os.fspath(path))
    path = result.path
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        result.tell(
            "unreadable file",
            path,
            f"cannot be read: {error.strerror or error}",
            "Correct the path, or run the stage that writes this file.",
        )
        return result
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        result.tell("unreadable file", path, "is UTF-16, not UTF-8", _REMEDY_UTF8)
        return result
    if content.startswith(_BOM):
        result.tell(
            "byte order mark",
            f"{path}:1",
            "the file starts with U+FEFF, which would become part of the first id",
            "Save the file as UTF-8 without a byte order mark.",
        )

    found: dict[str, list[_Line]] = {}
    with_cr: list[int] = []
    for line in _parse(content):
        if line.ends_with_cr:
            with_cr.append(line.number)
        if line.id:
            result.ids.add(line.id)
        if line.fault:
            where = f"{path}:{line.number}"
            result.tell("unreadable line", where, line.fault, line.remedy)
            result.bad.update({line.id} - {""})
            continue
        result.entries.setdefault(line.id, line.value)
        found.setdefault(line.id, []).append(line)
    if with_cr:
        result.tell(
            "line ends",
            f"{path}:{with_cr[0]}",
            f"{number(len(with_cr), 'line')} end with CR LF, expected LF alone",
            _REMEDY_LINE_ENDS,
        )
    for id_, lines in found.items():
        if len(lines) > 1:
            what = "equal" if len({line.value for line in lines}) == 1 else "different"
            shown = listing([str(line.number) for line in lines], limit=5)
            result.tell(
                "duplicate id",
                id_,
                f"stands in lines {shown} of {path}, with {what} entries",
                "Give every utterance its own id, or remove the surplus lines.",
            )
            result.bad.add(id_)
    if not result.usable:
        result.tell(
            "unreadable file",
            path,
            "there is no utterance in it",
            f"Write a line for each utterance into {os.path.basename(path)}: its id, "
            "a space, and the entry.",
        )
    return result


def write_lists(
    folder: PathLike, lists: Mapping[str, Mapping[str, object] | None]
) -> None:
    """Write lists of a folder together: all of them are new, or all are as before.

    Args:
        folder: The folder, which is made if it is not there.
        lists: Values by id, in the order to write, by the list's name; None removes a
            list of an earlier run.

    Raises:
        OSError: A list cannot be written.
    """
    atomic.write_all(
        folder,
        {
            name: None
            if entries is None
            else "".join(f"{id_} {value}\n" for id_, value in entries.items())
            for name, entries in lists.items()
        },
    )


def speakers(utt2spk: Mapping[str, str]) -> dict[str, str]:
    """The list `spk2utt` that belongs to an `utt2spk`, sorted."""
    utterances: dict[str, list[str]] = {}
    for utterance in sorted(utt2spk):
        utterances.setdefault(utt2spk[utterance], []).append(utterance)
    return {speaker: " ".join(utterances[speaker]) for speaker in sorted(utterances)}


def of_folder(folder: PathLike) -> dict[str, str]:
    """The paths of a data folder's lists, of those that are there, by their names."""
    paths = {name: os.path.join(folder, name) for name in NAMES}
    return {name: path for name, path in paths.items() if os.path.exists(path)}


def copy_lists(
    sources: Mapping[str, PathLike], target: PathLike, keep: Collection[str]
) -> int:
    """Copy lists, wherever they lie, restricted to some utterances and sorted.

    All lists of the target change together; those of an earlier run that the sources
    lack are removed, and `spk2utt` is made from `utt2spk`.

    Args:
        sources: Paths of lists by their names in data folders.
        target: The folder to write into.
        keep: The ids of the utterances to keep.

    Returns:
        The number of lines of the new `wav.scp`.

    Raises:
        ListError: A source lies in the target, or cannot be read.
        OSError: A list cannot be written.
    """
    for source in sources.values():
        folder = os.path.dirname(os.path.abspath(source))
        if os.path.realpath(folder) == os.path.realpath(target):
            raise ListError(
                f"{os.fspath(target)} holds the data themselves: choose another "
                "folder, nothing is overwritten"
            )
    kept = frozenset(keep)
    lists: dict[str, dict[str, str] | None] = dict.fromkeys(NAMES)
    for name, source in sources.items():
        if name == "spk2utt":
            continue
        found = scan(source)
        if not found.usable and not os.path.exists(source):
            raise ListError(f"{found.path}: {found.problems[0].detail}")
        ids = sorted(kept & found.entries.keys())
        lists[name] = {id_: found.entries[id_] for id_ in ids}
    if (utt2spk := lists["utt2spk"]) is not None:
        lists["spk2utt"] = speakers(utt2spk)
    write_lists(target, lists)
    return len(lists["wav.scp"] or ())
