"""How many tasks: trainings of 1, 2, 5 ... of them, and new ones after these.

Three parts of a plan::

    counts:                 # trainings of so many tasks each
        config: hra
        seeds: [1]
        numbers: [1, 2, 5]
    newcomers:              # new tasks, whose controller comes of so many others
        config: hra
        seeds: [1]
        after: [0, 1, 2]    # 0: the controller is trained with the new ones alone
        new: 2              # how many are held out, the same for all
        utterances: [1, 3]  # besides: after the most others, so many of each new one
    each:                   # some tasks, of a method whose tasks share nothing
        config: full_each
        seeds: [1]
        tasks: 25
        together: 5         # so many in one training, for which there is memory

Tasks are spread over the list of all, and the more hold the fewer, so that differences
are due to the number. A task hears as much whatever their number: batches are smaller
in proportion (those of ``each`` are the configuration's). Rows are called ``hra_n5``,
``hra_after5``, ``hra_after5_train3`` and ``full_each``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from espnet_hra.bench.quality_plan import Step, best_model, label_of, smaller_batch
from espnet_hra.data.lists import nested, read_entries, write_lists

_SPLITS = ("dev", "test")


def counts(comparison: Any) -> Iterator[Step]:
    """The steps of the part ``counts``."""
    part = comparison.plan.get("counts", {})
    for seed in part.get("seeds", [1]):
        for number in part.get("numbers", ()):
            yield _count(comparison, part["config"], seed, number)


def newcomers(comparison: Any) -> Iterator[Step]:
    """The steps of the part ``newcomers``."""
    part = comparison.plan.get("newcomers", {})
    for seed in part.get("seeds", [1]):
        after = part.get("after", ())
        for number in after:
            yield _after(comparison, part["config"], seed, number, part["new"])
        for some in part.get("utterances", ()):
            most = max(after, default=0)
            yield _after(comparison, part["config"], seed, most, part["new"], some)


def each(comparison: Any) -> Iterator[Step]:
    """The steps of the part ``each``."""
    part = comparison.plan.get("each", {})
    for seed in part.get("seeds", ()):
        yield _each(comparison, part["config"], seed, part["tasks"], part["together"])


def _count(comparison: Any, config: str, seed: int, number: int) -> Step:
    name = f"{label_of(config)}_n{number}"

    def run() -> None:
        tasks = nested(comparison.tasks(), number)
        folder = _train(comparison, config, f"{name}_seed{seed}", seed, tasks)
        _score(comparison, name, seed, folder, tasks)

    return Step(
        *("counts", name, f"{name}, seed {seed}"),
        lambda: comparison.has_rows(name, seed, number),
        run,
    )


def _after(
    comparison: Any,
    config: str,
    seed: int,
    number: int,
    new: int,
    utterances: int | None = None,
) -> Step:
    name = f"{label_of(config)}_after{number}"
    if utterances is not None:
        name += f"_train{utterances}"

    def run() -> None:
        held = nested(comparison.tasks(), new)
        options: list[str] = []
        if number:
            others = [task for task in comparison.tasks() if task not in held]
            tag = f"{label_of(config)}_others{number}_seed{seed}"
            first = _train(
                comparison, config, tag, seed, nested(others, number), last="11"
            )
            options = ["--regime", "new_task", "--init_adapter", str(best_model(first))]
        if utterances is not None:
            options += ["--train_utterances", str(utterances)]
        tag = f"{name}_seed{seed}"
        folder = _train(comparison, config, tag, seed, held, *options)
        _score(comparison, name, seed, folder, held)

    return Step(
        *("newcomers", name, f"{name}, seed {seed}"),
        lambda: comparison.has_rows(name, seed, new),
        run,
    )


def _each(comparison: Any, config: str, seed: int, number: int, together: int) -> Step:
    name = label_of(config)

    def run() -> None:
        tasks = nested(comparison.tasks(), number)
        for i in range(0, number, together):
            part, tag = tasks[i : i + together], f"{name}_{i}_seed{seed}"
            if comparison.scored_tasks(name, seed) >= set(part):
                continue
            folder = _train(comparison, config, tag, seed, part, share=1)
            _score(comparison, name, seed, folder, part)
            # A model for each task: what has been scored needs no place on the disk.
            for weights in folder.glob("*.pth"):
                weights.unlink()

    return Step(
        *("each", name, f"{name}, seed {seed}"),
        lambda: comparison.has_rows(name, seed, number),
        run,
    )


def _train(
    comparison: Any,
    config: str,
    tag: str,
    seed: int,
    tasks: Sequence[str],
    *options: str,
    last: str = "12",
    share: float | None = None,
) -> Path:
    """Train some of the tasks, and decode them; the experiment's folder.

    The batch is the configuration's times `share`, by default the tasks' part of all.
    """
    share = len(tasks) / len(comparison.tasks()) if share is None else share
    words = smaller_batch(comparison.configs[config], share)
    comparison.recipe_run(
        *(*comparison.named(config), "--seed", str(seed), "--asr_tag", tag),
        *("--tasks", " ".join(tasks), "--asr_args", " ".join(words)),
        *("--stop_stage", last, "--skip_stages", "9", *options),
    )
    folder: Path = comparison.work / f"asr_{tag}"
    return folder


def _score(
    comparison: Any, name: str, seed: int, folder: Path, tasks: Sequence[str]
) -> None:
    """Write the rows of a training of some of the tasks."""
    dump, found = comparison.work / "dump", folder / "references"
    options = []
    for split in _SPLITS:
        of = read_entries(dump / split / "utt2task")
        texts = read_entries(dump / split / "text")
        lines = [f"{u} {text}" for u, text in texts.items() if of[u] in tasks]
        write_lists(found, {split: lines})
        heard = folder / comparison.decoding / split / "text"
        options += ["--ref", f"{split}={found / split}", "--hyp", f"{split}={heard}"]
        options += ["--utt2task", str(dump / split / "utt2task")]
    comparison.score(
        *("--method", name, "--seed", str(seed)),
        *("--params", str(folder / "params.json"), *options),
    )
