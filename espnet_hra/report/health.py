"""Tasks that an adaptation has made worse, or has done nothing for.

A rate that was too high, a head that diverged, data of another language: training ends
as if all were well, and a mean over tasks hides it. So each adapted task is compared
with the frozen backbone, on the development set if both have it. What was seen inside
the model (``espnet-hra diagnose --faults``) comes on top: a controller that is dead or
saturated, an adapter without an effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from espnet_hra.report.results import FROZEN, FaultyTask, Row, Utterance

#: The status of a program whose results stand, while a task needs a look.
NEEDS_A_LOOK = 3

#: A task is worse that makes so many errors more, at least, and this share.
_LEAST, _SHARE = 10, 0.1


@dataclass(frozen=True)
class Sick:
    """A task that needs a look.

    Attributes:
        method: Of its adaptation.
        seed: Likewise.
        task: Its name.
        split: What shows it.
        why: What is wrong, for people.
    """

    method: str
    seed: int
    task: str
    split: str
    why: str

    def line(self) -> str:
        """For people, in one line."""
        return (
            f"{self.task} ({self.method}, seed {self.seed}, {self.split}): {self.why}"
        )


def sick(
    rows: Sequence[Row],
    utterances: Sequence[Utterance],
    faults: Sequence[FaultyTask] = (),
) -> list[Sick]:
    """The tasks that need a look.

    Args:
        rows: Of ``results.tsv``.
        utterances: Of ``utterances.tsv``: the errors are counted there.
        faults: Of ``faults.tsv``: what was seen inside the model.
    """
    errors: dict[tuple[str, int, str, str], dict[str, tuple[int, int]]] = {}
    for one in utterances:
        counted = errors.setdefault((one.method, one.seed, one.task, one.split), {})
        counted[one.utterance] = one.errors, one.word_errors
    frozen = {key[2:]: counts for key, counts in errors.items() if key[0] == FROZEN}
    rates = {(r.method, r.seed, r.task, r.split): r.cer for r in rows}
    before = {key[2:]: rate for key, rate in rates.items() if key[0] == FROZEN}
    found = []
    tasks = dict.fromkeys(
        (r.method, r.seed, r.task) for r in rows if r.method != FROZEN
    )
    for method, seed, task in tasks:
        splits = [s for s in ("dev", "test") if (task, s) in frozen]
        splits = [s for s in splits if (method, seed, task, s) in errors]
        if not splits:
            continue
        split = splits[0]
        own, base = (
            sum(characters for characters, _ in counts.values())
            for counts in (errors[method, seed, task, split], frozen[task, split])
        )
        now, was = rates[method, seed, task, split], before[task, split]
        if own - base >= max(_LEAST, _SHARE * base):
            why = (
                f"worse than the frozen backbone, CER {was:.1f} -> {now:.1f} %: take a "
                "lower rate, or look at its data"
            )
        elif base >= _LEAST and all(
            errors[method, seed, task, s] == frozen[task, s] for s in splits
        ):
            why = (
                "the same errors as the frozen backbone in every utterance: nothing "
                "was learned (espnet-hra doctor says whether its head does anything)"
            )
        else:
            continue
        found.append(Sick(method, seed, task, split, why))
    return found + [
        Sick(one.method, one.seed, one.task, one.split, one.why) for one in faults
    ]


def section(found: Sequence[Sick]) -> str:
    """A section of RESULTS.md; nothing if all are well."""
    if not found:
        return ""
    lines = "".join(f"- {one.line()}\n" for one in found)
    return f"{HEADING}\n\n{lines}"


#: What the section is called; the recipe looks for it.
HEADING = "## Tasks that need a look"
