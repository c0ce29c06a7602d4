"""What is wrong with data, and how it is reported."""

import unicodedata
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the data.

    Attributes:
        kind: What sort of problem, e.g. ``"missing audio"``.
        where: The utterance id, or ``file:line`` where no utterance is known.
        detail: What was found, and what is expected.
        remedy: What the user can do.
    """

    kind: str
    where: str
    detail: str
    remedy: str


@dataclass
class Report:
    """What the check found.

    Attributes:
        problems: Everything that is wrong.
        utterances: The number of distinct ids in all lists.
        samples: The length in samples of every good utterance.
        tokens: The number of tokens of every good utterance with a text.
        bad: The utterances that cannot be trained on.
        unknown_tokens: For every token that the model does not know, the number of
            utterances that have it.
        too_long: The utterances that were left out as they are too long.
        tasks: How many utterances of each task are good, and how many it has.
    """

    problems: list[Problem] = field(default_factory=list)
    utterances: int = 0
    samples: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    unknown_tokens: dict[str, int] = field(default_factory=dict)
    too_long: list[str] = field(default_factory=list)
    tasks: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def good(self) -> list[str]:
        """The utterances that can be trained on, sorted."""
        return sorted(self.samples)

    @property
    def counts(self) -> dict[str, int]:
        """The number of problems of every kind, in order of first appearance."""
        return dict(Counter(problem.kind for problem in self.problems))

    def format(self, limit: int | None = 20) -> str:
        """Write the report for people.

        Args:
            limit: How many problems of a kind to write out; None for all.

        Returns:
            Lines of text: the problems by kind, each with where it is and what was
            found, their remedies, and the totals.
        """
        lines: list[str] = []
        for kind, count in self.counts.items():
            lines.append(f"{kind}: {count:,}")
            if kind == "unknown token":
                lines.append(f"  In all: {self._unknown_tokens(limit)}.")
            left = count if limit is None else limit
            by_remedy: dict[str, list[Problem]] = {}
            for problem in self.problems:
                if problem.kind == kind:
                    by_remedy.setdefault(problem.remedy, []).append(problem)
            for remedy, problems in by_remedy.items():
                shown, left = problems[:left], max(0, left - len(problems))
                for problem in shown:
                    lines.append(f"  {problem.where}: {problem.detail}")
                if len(shown) < len(problems):
                    lines.append(f"  ... and {len(problems) - len(shown):,} more")
                lines.append(f"  Remedy: {remedy}")
            lines.append("")
        losses = self.losses(limit)
        if losses and self.samples:
            lines += ["What the good utterances alone leave of each task:", *losses, ""]
        lines.append(self.summary())
        # An id or a path may hold control characters, which a terminal would obey.
        return "\n".join(map(_printable, lines))

    @property
    def lost(self) -> list[str]:
        """The tasks of which no utterance is good, sorted."""
        return sorted(name for name, (good, _) in self.tasks.items() if not good)

    def losses(self, limit: int | None = 20) -> list[str]:
        """What each task loses, a line each, those that lose all first.

        Args:
            limit: How many tasks to write out that keep something; None for all.
        """
        lines = [
            f"  {name}: nothing; all of its {number(self.tasks[name][1], 'utterance')} "
            "are bad or left out, and it is not in this set any more"
            for name in self.lost
        ]
        some = [
            f"  {name}: {good:,} of {number(every, 'utterance')}"
            for name, (good, every) in sorted(self.tasks.items())
            if 0 < good < every
        ]
        shown = some[:limit]
        lines += shown
        if len(shown) < len(some):
            lines.append(f"  ... and {len(some) - len(shown):,} more that lose some")
        return lines

    def summary(self) -> str:
        """The totals, in one line."""
        fine = f"{len(self.samples):,} of {number(self.utterances, 'utterance')} good"
        if self.ok:
            return f"The data are fine: {fine}."
        line = (
            f"{number(len(self.problems), 'problem')} of "
            f"{number(len(self.counts), 'kind')}: {fine}, {len(self.bad):,} bad."
        )
        if self.samples:
            line += " Repair them, or train on the good ones only: --skip_bad true."
        return line

    def __str__(self) -> str:
        return self.format()

    def _unknown_tokens(self, limit: int | None) -> str:
        counts = sorted(self.unknown_tokens.items(), key=lambda item: (-item[1], item))
        shown = ", ".join(
            f"{describe(token, named=True)} in {number(count, 'utterance')}"
            for token, count in counts[:limit]
        )
        more = 0 if limit is None else len(counts) - limit
        return f"{shown}, ... and {more:,} more" if more > 0 else shown


def number(count: int, noun: str) -> str:
    """A count with its noun: 1 line, 2,000 lines."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def describe(token: str, named: bool = False) -> str:
    """A token as people can find it: 'é' (U+00E9) is another one than e and accent."""
    if len(token) != 1 or (token.isascii() and not named):
        return repr(token)
    # A combining mark would sit on the quote.
    shown = repr(f" {token}" if unicodedata.combining(token) else token)
    name = f" {unicodedata.name(token, '')}".rstrip() if named else ""
    return f"{shown} (U+{ord(token):04X}{name})"


def _printable(line: str) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in line
    )
