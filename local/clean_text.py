#!/usr/bin/env python3
"""Fit the transcripts of a corpus to the tokens of the backbone, and say how.

What can be folded safely is folded, in all sets alike, so that error rates stay
comparable: the case, if the tokens have one case only, typographic apostrophes, and
punctuation that the tokens lack (to spaces). Digits, signs that are read out and
letters with other accents stay as they are, because nobody can tell how they were
spoken.

Utterances that a model cannot learn from (characters without a token, no text, too
little audio for the text) are left out of the sets for training, and listed. Nothing is
left out of the test set: characters that cannot be recognised count as errors there,
and a recording that is too short for the encoder is made longer with silence.
"""

import argparse
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from espnet_hra.data.audio import write_flac
from espnet_hra.data.lists import read_entries, write_list, write_lists
from espnet_hra.data.problems import describe
from espnet_hra.data.requirements import (
    Requirements,
    frames_for_ctc,
    requirements_from_config,
)
from espnet_hra.files.config import read_yaml

from corpus import (
    APOSTROPHES,
    SPOKEN_SIGNS,
    CorpusError,
    one_line,
    safe_name,
)

COLUMNS = ("wav.scp", "text", "utt2spk", "utt2task")

#: How many utterances and characters are printed; the list has all.
NAMED = 10


#: Tokens in brackets that are no words of a text: ESPnet's own.
SPECIAL = {"<blank>", "<unk>", "<space>", "<sos/eos>", "<s>", "</s>", "<sos>", "<eos>"}


def in_brackets(token: str) -> bool:
    """Whether a token is one symbol: ``<en>``, ``[noise]``."""
    return len(token) > 2 and token[0] + token[-1] in ("<>", "[]")


def known_characters(tokens: Collection[str]) -> frozenset:
    """The characters that tokens (letters, or pieces of words) are made of."""
    pieces = [token for token in tokens if not in_brackets(token)]
    return frozenset("".join(pieces).replace("\u2581", ""))


def known_symbols(tokens: Collection[str]) -> frozenset:
    """Language tags and the like, which stand in a text as one word."""
    return frozenset(filter(in_brackets, tokens)) - SPECIAL


class Folding:
    """Brings texts closer to the characters that are known, and counts what it did.

    Args:
        known: The characters.
        symbols: Words that stay as they are.
    """

    def __init__(self, known: Collection[str], symbols: Collection[str] = ()) -> None:
        self.known, self.symbols = frozenset(known), frozenset(symbols)
        lower = any(char != char.upper() for char in self.known)
        upper = any(char != char.lower() for char in self.known)
        self.case: Callable[[str], str] | None = None
        self.case_name = ""
        if lower and not upper:
            self.case, self.case_name = str.lower, "lower case"
        elif upper and not lower:
            self.case, self.case_name = str.upper, "upper case"
        self.other_case = 0
        self.removed: Counter = Counter()

    def __call__(self, text: str) -> str:
        """The folded text."""
        words = unicodedata.normalize("NFC", text).split()
        if self.case is not None:
            folded = [w if w in self.symbols else self._other_case(w) for w in words]
            self.other_case += folded != words
            words = folded
        words = [w if w in self.symbols else "".join(map(self._fold, w)) for w in words]
        return " ".join(" ".join(words).split())

    def _other_case(self, word: str) -> str:
        assert self.case is not None, "asked for only where there is one case"
        return unicodedata.normalize("NFC", self.case(word))

    def _fold(self, char: str) -> str:
        if char in self.known or char.isspace():
            return char
        if char in APOSTROPHES and "'" in self.known:
            return "'"
        kind = unicodedata.category(char)
        if kind == "Cf":  # soft hyphens and the like: nothing is heard or seen
            return ""
        if (kind[0] == "P" or kind == "Sk") and char not in SPOKEN_SIGNS:
            self.removed[char] += 1
            return " "
        return char


@dataclass
class Found:
    """What was found in one set.

    Attributes:
        kept: The utterances that stay.
        reasons: Why each of the others goes.
        unknown: The utterances of each character that has no token.
        affected: The utterances with such characters that stay.
        padded: The recordings that were made longer.
    """

    kept: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    unknown: Counter = field(default_factory=Counter)
    affected: list[str] = field(default_factory=list)
    padded: list[str] = field(default_factory=list)


def clean_set(
    raw: Path,
    out: Path,
    requirements: Requirements,
    folding: Folding,
    keep_all: bool,
    labels: Collection[str] = (),
) -> Found:
    """Clean one data folder.

    Args:
        raw: The folder to read.
        out: The folder to write.
        requirements: What the backbone needs.
        folding: What is done to the texts.
        keep_all: Whether every utterance stays, as in a test set.
        labels: Tasks whose texts are labels, and stay as they are.

    Returns:
        What was found.
    """
    columns = {name: read_entries(raw / name) for name in COLUMNS}
    found = Found()
    for utt_id, text in columns["text"].items():
        if columns["utt2task"][utt_id] in labels:
            continue
        text = columns["text"][utt_id] = folding(text)
        tokens = requirements.tokenizer(text) if text else []
        unknown = sorted(
            {token for token in tokens if token not in requirements.tokens}
        )
        found.unknown.update(unknown)
        samples = _samples(columns["wav.scp"][utt_id])
        frames = needed = 1
        if samples and requirements.frames is not None:
            frames = requirements.frames(samples)
            if requirements.ctc:
                needed = frames_for_ctc(tokens)
        if keep_all:
            if unknown:
                found.affected.append(utt_id)
            if frames < 1:
                source = columns["wav.scp"][utt_id]
                target = out / "audio" / f"{safe_name(utt_id)[:100]}.flac"
                columns["wav.scp"][utt_id] = _pad(source, target, requirements)
                found.padded.append(utt_id)
        elif not tokens:
            found.reasons[utt_id] = "no text"
        elif unknown:
            names = ", ".join(describe(token, named=True) for token in unknown)
            found.reasons[utt_id] = f"characters without a token: {names}"
        elif frames < 1:
            found.reasons[utt_id] = f"too short: {samples} samples"
        elif frames < needed:
            found.reasons[utt_id] = (
                f"too short for its text: {frames} frames for {needed} tokens"
            )
    found.kept = sorted(columns["text"].keys() - found.reasons.keys())
    lists = {
        name: [f"{utt} {column[utt]}" for utt in found.kept]
        for name, column in columns.items()
    }
    stamp = (raw / "audio_stamp").read_text(encoding="utf-8").split()
    write_lists(out, {**lists, "audio_stamp": stamp})
    return found


def _samples(path: str) -> int:
    """The length of a recording; 0 for one that the validation will report."""
    try:
        return soundfile.info(path).frames
    except (soundfile.LibsndfileError, OSError):
        return 0


def _pad(source: str, target: Path, requirements: Requirements) -> str:
    """Write a recording with silence behind it, long enough for the encoder."""
    samples, rate = soundfile.read(source, dtype="float32")
    length = max(rate // 10, len(samples))
    while requirements.frames(length) < 1:
        length += rate // 10
    target.parent.mkdir(parents=True, exist_ok=True)
    padded = np.pad(samples, (0, length - len(samples)))
    write_flac(target, padded, rate)
    return os.path.abspath(target)


def some(items: Sequence[str]) -> str:
    """A few of many."""
    return ", ".join(items[:NAMED]) + (", ..." if len(items) > NAMED else "")


def summarize(
    found: dict[str, Found], folding: Folding, kept_whole: Collection[str]
) -> tuple[list[str], str]:
    """Say what was done.

    Args:
        found: What was found, by set.
        folding: What was done to the texts.
        kept_whole: The sets of which nothing is left out.

    Returns:
        Lines for the log, and a note for those who read the results; empty if nothing
        was done that they should know.
    """
    lines, done, left = [], [], []
    if folding.other_case:
        done.append(folding.case_name)
        lines.append(f"to {folding.case_name}: {folding.other_case} texts")
    if folding.removed:
        done.append("punctuation to spaces")
        counts = [f"{c} ({n})" for c, n in folding.removed.most_common()]
        lines.append(f"punctuation to spaces: {some(counts)}")
    unknown = sum((one.unknown for one in found.values()), Counter())
    if unknown:
        counts = [f"{describe(c, named=True)} in {n}" for c, n in unknown.most_common()]
        lines.append(f"characters without a token, and utterances: {some(counts)}")
    for name, one in found.items():
        total = len(one.kept) + len(one.reasons)
        if one.reasons:
            kinds = Counter(reason.split(":")[0] for reason in one.reasons.values())
            why = ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items()))
            left.append(f"{len(one.reasons)} of {total} utterances of {name}")
            lines.append(f"left out of {name}: {len(one.reasons)} of {total} ({why})")
        if one.affected:
            line = (
                f"{len(one.affected)} of {total} utterances of {name} have characters "
                "that the backbone cannot write; these count as errors"
            )
            left.append(line)
            lines.append(f"{line}: {some(one.affected)}")
        if one.padded:
            lines.append(
                f"{name}: {len(one.padded)} recordings too short for the encoder, made "
                f"longer with silence: {some(one.padded)}"
            )
    parts = []
    if done:
        parts.append(
            f"Texts were cleaned ({', '.join(done)}), references of "
            f"{' and '.join(kept_whole)} as well: error rates are those of cleaned "
            "texts."
        )
    if left:
        dropped = [item for item in left if "cannot write" not in item]
        parts += [f"{item}." for item in left if item not in dropped]
        if dropped:
            parts.append(f"Left out: {', '.join(dropped)}.")
    return lines, " ".join(parts)


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Fit transcripts to the tokens of a backbone."
    )
    parser.add_argument("--raw", type=Path, required=True, help="the folder to read")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--sets", nargs="+", required=True, help="the data sets")
    parser.add_argument(
        "--keep", nargs="*", default=[], help="the sets that nothing is left out of"
    )
    parser.add_argument(
        "--labels", nargs="*", default=[], help="tasks whose texts are labels"
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="the backbone's configuration"
    )
    parser.add_argument("--report", type=Path, required=True, help="the whole list")
    parser.add_argument(
        "--note", type=Path, required=True, help="where to write a note for the results"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Clean the data sets.

    Args:
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    args = get_parser().parse_args(arguments)
    with one_line(ValueError):
        requirements = requirements_from_config(read_yaml(args.config))
        if requirements.tokenizer is None:
            raise CorpusError(
                "the characters of the backbone's tokens are not known (its token_type "
                "is neither char nor bpe): use --clean_text none"
            )
        folding = Folding(
            known_characters(requirements.tokens), known_symbols(requirements.tokens)
        )
        found = {
            name: clean_set(
                args.raw / name,
                args.out / name,
                requirements,
                folding,
                name in args.keep,
                args.labels,
            )
            for name in args.sets
        }
        lines, note = summarize(found, folding, [n for n in args.sets if n != "train"])
        full = [
            f"{name} {utt_id}: {reason}"
            for name, one in found.items()
            for utt_id, reason in sorted(one.reasons.items())
        ]
        write_list(args.report, [*lines, *full])
        write_list(args.note, [note] if note else [])
    print("Texts and the backbone's tokens (--clean_text auto):")
    for line in lines or ["nothing had to be changed"]:
        print(f"  {line}")
    if full:
        print(f"  all that was left out: {args.report}")
    empty = [name for name, one in found.items() if not one.kept]
    if empty:
        print(
            f"error: no utterance is left in {', '.join(empty)}; see {args.report}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
