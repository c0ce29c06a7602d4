"""What a task has brought: error rates on sentences that it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_hra.demo.lesson import Lesson
from espnet_hra.demo.listening import Ears
from espnet_hra.demo.sentences import folded
from espnet_hra.report.diagnosis import paired
from espnet_hra.report.scoring import Errors, count_errors
from espnet_hra.report.statistics import Interval

#: Fewer held-out sentences than this say little, and the page says so.
FEW = 10


@dataclass(frozen=True)
class Held:
    """A sentence that was held out.

    Attributes:
        said: What was read aloud.
        before: What the plain base makes of it.
        after: What the task makes of it.
    """

    said: str
    before: str
    after: str


@dataclass(frozen=True)
class Learned:
    """What a task brings on held-out sentences.

    Words are compared, without case and signs: how a text is written is no error.

    Attributes:
        held: The sentences.
        sentences: How many it was taught with.
    """

    held: tuple[Held, ...]
    sentences: int

    def errors(self) -> tuple[list[Errors], list[Errors]]:
        """Errors of each sentence, before and after."""
        return _errors(self.held, "before"), _errors(self.held, "after")

    def rates(self, what: str = "word_errors") -> tuple[Interval, Interval, Interval]:
        """Rates before and after, and the difference, see ``diagnosis.paired``."""
        return paired(*self.errors(), what)


def _errors(held: Sequence[Held], which: str) -> list[Errors]:
    return [
        count_errors([(folded(one.said), folded(getattr(one, which)))]) for one in held
    ]


def measure(
    ears: Ears,
    lesson: Lesson,
    numbers: Sequence[int],
    task: str,
    *,
    sentences: int,
    language: str | None = None,
) -> Learned:
    """Read held-out sentences with a task and without.

    Args:
        ears: The model, which has the task.
        lesson: Has the recordings.
        numbers: Of the sentences that were held out.
        task: The task.
        sentences: How many it was taught with.
        language: Code of the language, for models that are told.
    """
    held = []
    for number in numbers:
        wave = ears.wave(str(lesson.recording(number)))
        before, after = ears.read(wave, [task], language)
        held.append(Held(lesson.sentences[number], before.text, after.text))
    return Learned(tuple(held), sentences)


def measure_file(
    ears: Ears,
    lesson: Lesson,
    numbers: Sequence[int],
    file: Path,
    *,
    sentences: int,
    language: str | None = None,
) -> Learned:
    """The same with a task's file that is not kept. Arguments as above."""
    encoder = ears.speech2text.model.encoder
    with ears.lock:
        name = ears.speech2text.load_task(file)
        try:
            return measure(
                ears, lesson, numbers, name, sentences=sentences, language=language
            )
        finally:
            encoder.remove_task(name)


def verdict(found: Learned) -> str:
    """Whether the task is better than the base, in a sentence."""
    _, _, change = found.rates()
    if change.high < 0:
        return "The task is better than the base on sentences that it has not seen."
    if change.low > 0:
        return "The task is worse than the base: do not keep it."
    if change.value >= 0:
        return "On these sentences the task is no better than the base."
    return "The task may be better than the base; more sentences would tell."


def outlook(curve: Sequence[Learned]) -> str:
    """Whether more sentences would pay, in a sentence or two.

    Args:
        curve: From few sentences to all; the same ones were held out.
    """
    last = curve[-1]
    few = ""
    if len(last.held) < FEW:
        few = (
            f" Only {len(last.held)} sentences were held out, which says little: "
            f"record {5 * FEW} or more to be surer."
        )
    if len(curve) < 2:
        return f"There is no curve of so few sentences.{few}"
    half = curve[-2]
    _, _, change = paired(half.errors()[1], last.errors()[1])
    told = (
        f"From {half.sentences} to {last.sentences} sentences, the word error rate "
        f"changed by {change.text('+')} points."
    )
    if change.high < 0:
        verdict = "More sentences will very likely pay."
    elif change.value < 0:
        verdict = "More sentences may pay; this cannot tell for certain."
    elif change.value == 0:
        verdict = "Nothing was gained by the later sentences."
    else:
        verdict = "The later sentences have not helped."
    return f"{told} {verdict}{few}"
