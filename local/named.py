"""What the named corpora share: from a corpus as it is distributed to data folders.

A corpus is a file that yields its recordings (``local/torgo.py`` for one) and an entry
of ``conf/corpora.yaml``. Texts are cleaned, sets are made so that no sentence stands in
two of them, and all that is left out is counted by reason.
"""

import argparse
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_hra.data.lists import by_speaker, read_list, write_lists
from espnet_hra.data.sentences import position, sentence_key
from espnet_hra.errors import DataError
from espnet_hra.files.config import read_yaml

from corpus import (
    SPLITS,
    CorpusError,
    Split,
    clean_text,
    has_numerals,
    one_line,
    safe_name,
    strip_brackets,
)
from folder import SHOWN, Line, count_table, name_tasks, some, write_set

#: Beside this folder, in the repository and in the recipe alike.
CONFIG = Path(__file__).parent.parent / "conf" / "corpora.yaml"


@dataclass(frozen=True)
class Recording:
    """One recording of a corpus.

    Attributes:
        name: Its name, of which a speaker has one.
        speaker: Who speaks.
        audio: The file, which need not be there.
        text: The transcript as it came.
        task: The task; the speaker if it is empty.
        split: The set, where the corpus is split.
        language: Its code, where the corpus has several.
        why: A reason to leave it out.
    """

    name: str
    speaker: str
    audio: Path = Path()
    text: str = ""
    task: str = ""
    split: str = ""
    language: str = ""
    why: str = ""


#: A function that yields a corpus's recordings: of its folder and its configuration.
Reader = Callable[[Path, Mapping[str, Any]], Iterable[Recording]]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, hidden ones apart, in order."""
    return sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and not path.name.startswith(".")
    )


def read_text(path: Path) -> str | None:
    """A transcript that is a file of its own; None if there is none.

    Raises:
        CorpusError: It is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8 ({error.reason}): convert it with iconv, or remove it"
        ) from None


def fault_of(recording: Recording) -> str:
    """Why a recording is left out; empty if it is not."""
    if recording.why:
        return recording.why
    try:
        if os.path.getsize(recording.audio) == 0:
            return "the recording is an empty file"
    except OSError:
        return "there is no such recording"
    try:
        outside = strip_brackets(recording.text)
    except ValueError as error:
        return str(error)
    if has_numerals(outside):
        return "digits or signs, whose spoken form is not known"
    return "" if clean_text(outside) else "no words in the transcript"


class Corpus:
    """The usable recordings of a corpus, and what was left out.

    Args:
        recordings: All of them.
        config: Of the corpus.
    """

    def __init__(self, recordings: Iterable[Recording], config: Mapping[str, Any]):
        self.config = config
        self.left_out: dict[str, list[str]] = defaultdict(list)
        self.lines: dict[str, Line] = {}
        self.given: dict[str, str] = {}
        self.languages: dict[str, str] = {}
        self.read = 0
        for recording in recordings:
            self.read += 1
            self._take(recording)

    def _take(self, recording: Recording) -> None:
        speaker = safe_name(recording.speaker)
        # A name of digits alone would be a number in YAML.
        speaker = f"speaker{speaker}" if speaker.isdigit() else speaker
        utterance = f"{speaker}-{safe_name(recording.name)}"
        why = fault_of(recording)
        if not why and utterance in self.lines:
            why = "another recording has the same name"
        if why:
            self.left_out[why].append(utterance.rstrip("-"))
            return
        text = clean_text(strip_brackets(recording.text))
        audio = str(recording.audio.absolute())
        task = recording.task or speaker
        self.lines[utterance] = Line(audio, text, speaker, task)
        self.given[utterance] = recording.split
        self.languages[utterance] = recording.language or self.config["language"] or ""

    def sets(self) -> dict[str, dict[str, Line]]:
        """The utterances by set and id: split, without a sentence in two sets.

        Raises:
            CorpusError: Nothing is left of a set.
        """
        self._most()
        places = self._places()
        rank = {name: place for place, name in enumerate(reversed(SPLITS))}
        owner: dict[str, str] = {}
        for utterance, place in places.items():
            key = sentence_key(self.lines[utterance].text)
            owner[key] = min(owner.get(key, place), place, key=rank.__getitem__)
        sets: dict[str, dict[str, Line]] = {name: {} for name in SPLITS}
        for utterance, place in places.items():
            line = self.lines[utterance]
            if place == owner[sentence_key(line.text)]:
                sets[place][utterance] = line
            else:
                self.left_out["the sentence is held out"].append(utterance)
        self._least(sets)
        empty = [name for name in SPLITS if not sets[name]]
        if empty:
            raise CorpusError(
                f"nothing is left for {', '.join(empty)} of {self.read:,} recordings"
                f"{self.summary(': ', '; ')}: is the corpus whole, and do split and "
                "least of conf/corpora.yaml fit it?"
            )
        return sets

    def _most(self) -> None:
        """Keep the largest tasks."""
        counts = Counter(line.task for line in self.lines.values())
        ordered = sorted(counts, key=lambda task: (-counts[task], task))
        kept = set(ordered[: self.config.get("most", len(ordered))])
        for utterance in [u for u, line in self.lines.items() if line.task not in kept]:
            del self.lines[utterance]
            self.left_out["not one of the largest tasks"].append(utterance)

    def _places(self) -> dict[str, str]:
        """The set of each utterance, by the corpus's rule alone."""
        rule = self.config["split"]
        if rule == "given":
            return {utterance: self.given[utterance] for utterance in self.lines}
        if all(isinstance(value, float) for value in rule.values()):
            split = Split(rule["test"], rule["dev"], rule["test"])
            return {u: split(line.text) for u, line in self.lines.items()}
        return self._by_count(rule)

    def _by_count(self, rule: Mapping[str, int]) -> dict[str, str]:
        """So many sentences of each task, in the order of :func:`position`."""
        tasks: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for utterance, line in sorted(self.lines.items()):
            tasks[line.task][sentence_key(line.text)].append(utterance)
        order = [name for name in reversed(SPLITS) for _ in range(rule[name])]
        places = {}
        for sentences in tasks.values():
            ordered = sorted(sentences, key=lambda key: (position(key), key))
            for number, key in enumerate(ordered):
                for utterance in sentences[key]:
                    if number < len(order):
                        places[utterance] = order[number]
                    else:
                        self.left_out["more sentences than asked for"].append(utterance)
        return places

    def _least(self, sets: Mapping[str, dict[str, Line]]) -> None:
        """Leave tasks out that have too little."""
        for name, least in self.config["least"].items():
            counts = Counter(line.task for line in sets[name].values())
            for lines in sets.values():
                for utterance in [
                    u for u, line in lines.items() if counts[line.task] < least
                ]:
                    del lines[utterance]
                    self.left_out[f"a task with too little in {name}"].append(utterance)

    def summary(self, before: str = "", between: str = "\n") -> str:
        """What was left out and why; empty if nothing was."""
        said = [
            f"left out, {why}: {some(sorted(ids))}"
            for why, ids in self.left_out.items()
        ]
        return before + between.join(said) if said else ""


def get_parser(name: str, about: str) -> argparse.ArgumentParser:
    """The parser of a corpus's command line."""
    parser = argparse.ArgumentParser(
        description=f"{about.splitlines()[0]} Written are data folders "
        f"DATADIR/{name}/{{train,dev,test}}; audio stays where it is.",
        epilog="Splits and tasks: conf/corpora.yaml. Where to get it: docs/corpora.md.",
    )
    parser.add_argument(
        "--source", type=Path, required=True, help="the corpus as distributed"
    )
    parser.add_argument(
        "--datadir",
        type=Path,
        default=Path("data"),
        help="the folder to write into (default: data)",
    )
    for option in ("--downloads", "--nj"):
        parser.add_argument(option, help="taken for the sake of other corpora")
    parser.add_argument("--part", nargs="+", help="taken for the sake of other corpora")
    return parser


def main(
    name: str,
    about: str,
    layout: str,
    reader: Reader,
    arguments: Sequence[str] | None = None,
) -> int:
    """Prepare a corpus from the command line.

    Args:
        name: The corpus's name.
        about: The docstring of its file.
        layout: What its folder looks like, for messages.
        reader: Yields its recordings.
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    args = get_parser(name, about).parse_args(arguments)
    with one_line():
        if not args.source.is_dir():
            raise CorpusError(
                f"there is no folder {args.source}: write the path of {name} into db.sh"
            )
        corpus = Corpus(
            reader(args.source, config := read_yaml(CONFIG, DataError)[name]), config
        )
        if not corpus.read:
            raise CorpusError(
                f"{args.source} is not {name} as it is distributed: there should be "
                f"{layout} (docs/corpora.md says where to get it)"
            )
        sets = corpus.sets()
        renamed = name_tasks(sets)
        for part, lines in sets.items():
            folder = args.datadir / name / part
            write_set(folder, lines)
            write_lists(
                folder,
                {
                    "spk2utt": by_speaker({u: x.speaker for u, x in lines.items()}),
                    "utt2lang": list(_languages(lines, corpus.languages)) or None,
                },
            )
    for task, new in list(renamed.items())[:SHOWN]:
        print(f"note: the task {task} is called {new}")
    print(f"{name}: {corpus.read:,} recordings")
    print(corpus.summary() or "nothing was left out")
    print(count_table(sets))
    return 0


def _languages(lines: Iterable[str], languages: Mapping[str, str]) -> Iterator[str]:
    for utterance in sorted(lines):
        if languages[utterance]:
            yield f"{utterance} {languages[utterance]}"


def entries(path: Path) -> dict[str, str]:
    """A Kaldi-style list, of which the corpus may have damaged lines.

    Raises:
        CorpusError: There is none.
    """
    found = read_list(path)
    if not found.usable:
        raise CorpusError(
            f"{path}: {found.problems[0].detail}; unpack the corpus again, and name "
            "its folder in db.sh"
        )
    return found.entries
