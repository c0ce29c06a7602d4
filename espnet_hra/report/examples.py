"""A sentence of each task before and after the adaptation, beside what was said."""

from collections.abc import Mapping
from dataclasses import dataclass

from espnet_hra.files.tables import markdown
from espnet_hra.report.scoring import Errors, errors_by_task

#: Shorter ones show little, if there are others.
_WORDS = 4

#: Most tasks that are shown.
MOST = 8


@dataclass(frozen=True)
class Example:
    """One utterance.

    Attributes:
        task: Its task.
        utterance: Its name.
        said: The reference.
        before: What the frozen backbone made of it.
        after: What the adapted one made of it.
    """

    task: str
    utterance: str
    said: str
    before: str
    after: str


def typical(
    references: Mapping[str, str],
    before: Mapping[str, str],
    after: Mapping[str, str],
    utt2task: Mapping[str, str],
) -> list[Example]:
    """For each task the utterance whose error rates are nearest to the task's own.

    So it is neither the best nor the worst: the distance of both rates (WER), before
    and after, to the task's rates is the smallest. Texts by utterance.

    Raises:
        ScoringError: An utterance has no text or no task.
    """
    first = errors_by_task(references, before, utt2task)
    second = errors_by_task(references, after, utt2task)
    return [
        _of_task(task, first[task], second[task], (references, before, after))
        for task in first
    ]


def _of_task(
    task: str,
    before: Mapping[str, Errors],
    after: Mapping[str, Errors],
    texts: tuple[Mapping[str, str], Mapping[str, str], Mapping[str, str]],
) -> Example:
    means = [sum(own.values(), Errors()).wer for own in (before, after)]

    def distance(utterance: str) -> tuple[bool, float, str]:
        rates = before[utterance].wer, after[utterance].wer
        away = sum(abs(rate - mean) for rate, mean in zip(rates, means))
        return before[utterance].words < _WORDS, away, utterance

    spoken = [utterance for utterance, errors in before.items() if errors.words]
    chosen = min(spoken or before, key=distance)
    return Example(task, chosen, *(text[chosen] for text in texts))


def for_terminal(examples: list[Example]) -> str:
    """Four lines for each task."""
    parts = []
    for example in examples[:MOST]:
        parts += [f"{example.task} ({example.utterance})"]
        parts += [f"  said    {example.said}", f"  before  {example.before}"]
        parts += [f"  after   {example.after}"]
    return "\n".join(parts)


def for_page(examples: list[Example], split: str) -> str:
    """A section of the page, in Markdown."""
    cells = [["task", "said", "before", "after"]]
    for one in examples[:MOST]:
        cells.append([one.task, one.said, one.before, one.after])
    return (
        f"## Examples\n\nOf each task the utterance of {split} whose word error rates, "
        "before and after the adaptation, are nearest to the task's.\n\n"
        f"{markdown(cells)}"
    )
