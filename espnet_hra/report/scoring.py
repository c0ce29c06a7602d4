"""Error rates per task and split.

What is counted:

* CER over the characters of a text *including spaces*, as ESPnet's scoring does (and
  jiwer); WER over its words. Nothing is normalised but Unicode (NFC) and white space
  (runs of it count as one space, at the ends it does not count).
* Errors are summed over the utterances of a task in a split and divided by the length
  of their references. A mean over tasks gives every task the same weight.
* An empty hypothesis is a hypothesis: everything in its reference is deleted. One that
  is missing is an error, since a system that fails on hard utterances would win.
* The answer of a task that classifies is a label, which is right or wrong: one word,
  whose error rate stands where WER does. There is no CER of labels.
"""

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

import jiwer

from espnet_hra.errors import UserError
from espnet_hra.report.results import Results, Row, Utterance, percent


class ScoringError(UserError, ValueError):
    """Texts that cannot be scored; the message names what is wrong."""


@dataclass(frozen=True)
class Errors:
    """Errors against references, and the length of these.

    Attributes:
        utterances: The number of utterances.
        words: The words of the references.
        characters: The characters of the references, spaces included.
        word_errors: Substitutions, deletions and insertions of words.
        character_errors: The same of characters.
    """

    utterances: int = 0
    words: int = 0
    characters: int = 0
    word_errors: int = 0
    character_errors: int = 0

    @property
    def cer(self) -> float:
        """Character error rate in percent; nan where nothing is said."""
        return percent(self.character_errors, self.characters)

    @property
    def wer(self) -> float:
        """Word error rate in percent; nan where nothing is said."""
        return percent(self.word_errors, self.words)

    def __add__(self, other: "Errors") -> "Errors":
        """The sums of both."""
        return Errors(*(a + b for a, b in zip(astuple(self), astuple(other))))


def count_errors(pairs: Iterable[tuple[str, str]]) -> Errors:
    """Count the errors of hypotheses.

    Args:
        pairs: Reference and hypothesis of each utterance; either may be empty.

    Returns:
        The sums over all utterances.
    """
    return sum((_count(*pair) for pair in pairs), Errors())


def _count(reference: str, hypothesis: str) -> Errors:
    """The errors of one hypothesis."""
    reference, hypothesis = _tidy(reference), _tidy(hypothesis)
    if reference:
        words = jiwer.process_words(reference, hypothesis)
        characters = jiwer.process_characters(reference, hypothesis)
        wrong = [
            output.substitutions + output.deletions + output.insertions
            for output in (words, characters)
        ]
    else:
        # Everything said where nothing should be is an insertion; jiwer's opinion on
        # empty references has changed between its versions.
        wrong = [len(hypothesis.split()), len(hypothesis)]
    return Errors(1, len(reference.split()), len(reference), *wrong)


def _count_label(reference: str, hypothesis: str) -> Errors:
    """The errors of a label."""
    return Errors(1, 1, 0, int(_tidy(reference) != _tidy(hypothesis)), 0)


def errors_by_task(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    utt2task: Mapping[str, str],
    classify: Collection[str] = (),
) -> dict[str, dict[str, Errors]]:
    """Count the errors of each utterance in one split.

    Args:
        references: The reference by utterance.
        hypotheses: The hypothesis by utterance.
        utt2task: The task by utterance; more utterances than needed do no harm.
        classify: Tasks whose texts are labels.

    Returns:
        The errors by task, in alphabetical order, and utterance.

    Raises:
        ScoringError: If there is nothing to score, or an utterance has no hypothesis,
            no reference or no task.
    """
    if not references:
        raise ScoringError("there are no references")
    for problem, ids in (
        ("no hypothesis", references.keys() - hypotheses.keys()),
        ("no reference", hypotheses.keys() - references.keys()),
        ("no task", references.keys() - utt2task.keys()),
    ):
        if ids:
            raise ScoringError(f"{_some(sorted(ids))} with {problem}")
    found: dict[str, dict[str, Errors]] = {}
    for utterance in sorted(references):
        task = utt2task[utterance]
        count = _count_label if task in classify else _count
        errors = count(references[utterance], hypotheses[utterance])
        found.setdefault(task, {})[utterance] = errors
    return dict(sorted(found.items()))


def tabulate(
    errors: Mapping[str, Mapping[str, Errors]],
    method: str,
    split: str,
    seed: int,
    shared_params: int,
    task_params: Mapping[str, int],
) -> Results:
    """The lines of both tables for one split.

    Args:
        errors: By task and utterance, see :func:`errors_by_task`.
        method: As in :class:`Row`, like the three that follow.
        split: The data set.
        seed: The seed of the training.
        shared_params: Trained parameters that all tasks share.
        task_params: Those of each task.

    Raises:
        ScoringError: If a name could not be read from a table again.
    """
    for name in (method, split, *errors):
        if not {"\t", "\n", "\r"}.isdisjoint(name):
            raise ScoringError(f"{name!r}: a table's cells have no tabs or line breaks")
    rows: list[Row] = []
    utterances: list[Utterance] = []
    for task, own in errors.items():
        key = method, task, split, seed
        sum_ = sum(own.values(), Errors())
        sizes = shared_params, task_params[task], sum_.utterances, sum_.words
        rows.append(Row(*key, *sizes, sum_.cer, sum_.wer))
        for utterance, one in own.items():
            characters = one.characters, one.character_errors
            words = one.words, one.word_errors
            utterances.append(Utterance(*key, utterance, *characters, *words))
    return Results(rows, utterances)


def _tidy(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _some(ids: Sequence[str]) -> str:
    more = ", ..." if len(ids) > 5 else ""
    noun = "utterance" if len(ids) == 1 else "utterances"
    return f"{len(ids)} {noun} ({', '.join(ids[:5])}{more})"
