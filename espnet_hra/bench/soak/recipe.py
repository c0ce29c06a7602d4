"""The recipe on mini AN4, killed at random moments of every stage.

A run is killed once in each stage and started again; at its end everything that it has
computed is compared with a run that nobody disturbed. In a stage, the moment is either
any, or one of its changes to files, see :mod:`~espnet_hra.bench.soak.at_write`. Killed
are all processes at once, the script alone (what it has started goes on, and a second
run must say so and stop), or one of the others.
"""

import copy
import os
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_hra.bench.soak import at_write
from espnet_hra.bench.soak.killing import TICK, Group
from espnet_hra.bench.soak.rows import Row
from espnet_hra.errors import UserError

_BEGUN = re.compile(
    r"^\d\d:\d\d:\d\d Stage (\d+): (?!done in)(?!.*: done before)", re.M
)
_DONE = re.compile(r"Stage (\d+): done in (\d+) s")
_BUSY = "another run works in"

#: Longest that a run may take, in seconds.
_PATIENCE = 3600


@dataclass
class Found:
    """What became of all runs."""

    kills: Counter[str] = field(default_factory=Counter)
    who: Counter[str] = field(default_factory=Counter)
    how: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    runs: int = 0
    refused: int = 0
    twice: int = 0


class Recipe:
    """A copy of the recipe, and where its results go.

    Args:
        folder: A folder for both; made if it is not there.
        options: More options of its runs.

    Attributes:
        script: The copy's ``run.sh``.
        work: Where results go.
        hook: Where its changes to files are counted.
        env: Variables that its runs need.
        top: The folder as its runs see it, which stands in their lists.
    """

    def __init__(self, folder: Path, options: Sequence[str] = ()):
        from espnet_hra.files.shipped import find_recipe

        self.options = tuple(options)
        self.groups: list[Group] = []

        self.folder, self.top = folder, str(folder)
        self.script = folder / "recipe" / "run.sh"
        self.work = folder / "exp" / "mini_an4"
        hook = folder / "hook"
        if not self.script.exists():
            shutil.rmtree(folder, ignore_errors=True)
            hook.mkdir(parents=True)
            shutil.copyfile(at_write.__file__, hook / "sitecustomize.py")
            shutil.copytree(
                find_recipe(),
                folder / "recipe",
                ignore=shutil.ignore_patterns("data", "downloads", "exp", "*.old-*"),
            )
        at_write.prepare(str(hook))
        root = Path(__file__).resolve().parents[3]
        paths = [str(hook), str(root), os.environ.get("PYTHONPATH", "")]
        self.env = {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "OMP_NUM_THREADS": "1",
            at_write.FOLDER: str(hook),
        }
        self.hook = str(hook)

    def start(self, log: str = "run.log") -> Group:
        """Start a run of all stages."""
        command = ["bash", str(self.script), "--corpus", "mini_an4"]
        command += ["--python", sys.executable, "--expdir", str(self.folder / "exp")]
        command += self.options
        self.groups.append(Group(command, self.folder / log, self.env, self.folder))
        return self.groups[-1]

    def end(self) -> None:
        """End all runs that have been started."""
        for group in self.groups:
            group.end()


@dataclass(frozen=True)
class Course:
    """How a run goes that nobody disturbs: seconds and changes of each stage."""

    seconds: dict[str, float]
    changes: dict[str, int]


def reference(folder: Path, options: Sequence[str] = ()) -> tuple[Recipe, Course]:
    """A run that is not disturbed; one that is there already is taken.

    Args:
        folder: For all runs.
        options: More options of the recipe.

    Raises:
        UserError: It fails.
    """
    recipe = Recipe(folder / "reference", options)
    marker = recipe.folder / "course.tsv"
    if not marker.exists():
        shutil.rmtree(recipe.folder)
        recipe = Recipe(folder / "reference", options)
        group = recipe.start()
        seen: dict[str, list[tuple[float, int]]] = {}
        while group.alive():
            for stage in _BEGUN.findall(group.said):
                seen.setdefault(stage, []).append(
                    (time.monotonic(), at_write.count(recipe.hook))
                )
            time.sleep(TICK)
        if group.wait(1) != 0:
            raise UserError(f"the recipe does not work as it is: see {group.log}")
        lines = []
        stages = [stage for stage, _ in _DONE.findall(group.said)]
        ends = [seen[stage][0] for stage in stages[1:]]
        ends.append((time.monotonic(), at_write.count(recipe.hook)))
        for stage, end in zip(stages, ends):
            begin = seen[stage][0]
            lines.append(f"{stage}\t{end[0] - begin[0]:.2f}\t{end[1] - begin[1]}\n")
        marker.write_text("".join(lines), encoding="utf-8")
    rows = [line.split("\t") for line in marker.read_text().splitlines()]
    return recipe, Course(
        {r[0]: float(r[1]) for r in rows}, {r[0]: int(r[2]) for r in rows}
    )


def soak(
    folder: Path, kills: int, seed: int, command: str, options: Sequence[str] = ()
) -> list[Row]:
    """Kill runs until there were so many kills, and compare what comes out.

    Args:
        folder: For the runs.
        kills: How many, at least; a run is brought to its end in any case.
        seed: Of the random moments.
        command: What does the same again.
        options: More options of the recipe.
    """
    whole, course = reference(folder, options)
    rnd, found = random.Random(seed), Found()
    while sum(found.kills.values()) < kills and len(found.wrong) < 10:
        place = folder / f"killed{found.runs + 1}"
        shutil.rmtree(place, ignore_errors=True)
        before, earlier = len(found.wrong), copy.deepcopy(found)
        recipe = Recipe(place, options)
        try:
            _one_run(recipe, course, rnd, found)
        except KeyboardInterrupt:
            recipe.end()
            found = earlier
            print("recipe: interrupted: the runs that have ended count", flush=True)
            break
        found.runs += 1
        if len(found.wrong) == before:
            found.wrong += differences(whole, Recipe(place), f"run {found.runs}")
        if len(found.wrong) == before:
            shutil.rmtree(place)
        print(
            f"recipe: {sum(found.kills.values())} kills in {found.runs} runs, "
            f"{len(found.wrong)} faults {found.wrong[before:]}",
            flush=True,
        )
    stages = ", ".join(
        f"{s}: {found.kills[s]}" for s in sorted(found.kills, key=_number)
    )
    total = sum(found.kills.values())
    return [
        Row(
            "recipe",
            "SIGKILL of the recipe on mini AN4, in every stage "
            f"({found.how['change']} at a change to a file, {found.how['time']} at any "
            f"time; {found.who['all']} of all processes, {found.who['first']} of the "
            f"script alone, {found.who['one']} of another one)",
            total,
            len(found.wrong),
            f"{found.runs} runs, started again after each kill, ended with the lists, "
            "texts, error rates and parameters of an undisturbed one, bit for bit "
            f"(kills by stage: {stages})"
            if not found.wrong
            else "; ".join(found.wrong[:5]),
            command,
        ),
        Row(
            "recipe",
            "a second run of the recipe at the same time, or while what a killed "
            "script had started went on",
            found.twice,
            found.twice - found.refused,
            "the second said so and stopped; the first went on",
            command,
        ),
    ]


def _number(text: str) -> tuple[bool, int]:
    return (not text.isdigit(), int(text) if text.isdigit() else 0)


def _one_run(recipe: Recipe, course: Course, rnd: random.Random, found: Found) -> None:
    """One run: killed once in each stage, then brought to its end."""
    if not recipe.options:  # else it would be over before the second has begun
        group = recipe.start()
        _twice(recipe, group, found)
        group.end()
        # By now the first stages are done, and are to be killed as well.
        shutil.rmtree(recipe.folder)
        recipe = Recipe(recipe.folder)
    reached = 0
    for stage in course.seconds:
        if int(stage) < reached:  # the last kill came later than it was meant to
            continue
        group = recipe.start()
        how = rnd.choice(("time", "change"))
        who = rnd.choices(("all", "first", "one"), (3, 1, 1))[0]
        moment = rnd.uniform(0, max(course.seconds[stage], 0.5))
        change = rnd.randint(1, max(course.changes[stage], 1))
        if not _until(group, stage):
            status = group.wait(1)
            if status != 0:
                found.wrong.append(f"stage {stage}: status {status}, see {group.log}")
                return
            break  # all is done
        if how == "change":
            at_write.choose(recipe.hook, at_write.count(recipe.hook) + change)
            end = time.monotonic() + course.seconds[stage] + 1
            while group.alive() and time.monotonic() < end:
                time.sleep(TICK)
            if group.alive():  # it makes fewer changes this time
                how, who = "time", group.kill(who, rnd)
            else:
                who = "all"
        else:
            end = time.monotonic() + moment
            while group.alive() and time.monotonic() < end:
                time.sleep(TICK)
            who = group.kill(who, rnd)
        at_write.choose(recipe.hook, 0)
        _after(recipe, group, who, found)
        status = group.process.returncode
        begun = [int(number) for number in _BEGUN.findall(group.said)]
        reached = max([reached, *begun])
        now = (_BEGUN.findall(group.said) or ["0"])[-1]
        if now in {number for number, _ in _DONE.findall(group.said)}:
            now = "between"
        if status != 0:  # else it was over before, or nothing that mattered was killed
            found.kills[now] += 1
            found.who[who] += 1
            found.how[how] += 1
        print(
            f"recipe: run {found.runs + 1}: {who} killed at a {how} in stage {now}: "
            f"status {status}",
            flush=True,
        )
        if status == 0:
            break  # whoever was killed, the run came to its end
    group = recipe.start()
    status = group.wait(_PATIENCE)
    if status != 0:
        group.end()
        found.wrong.append(f"the last start ended with {status}, see {group.log}")


def _until(group: Group, stage: str) -> bool:
    """Wait until a stage begins; False if the run ends before."""
    while True:
        alive = group.alive()
        begun = _BEGUN.findall(group.said)
        if stage in begun:
            return True
        if not alive:
            return False
        time.sleep(TICK)


def _twice(recipe: Recipe, group: Group, found: Found) -> None:
    """A second run while the first goes on."""
    while "Corpus mini_an4" not in group.said and group.alive():
        time.sleep(TICK)
    second = recipe.start("second.log")
    status = second.wait(_PATIENCE)
    found.twice += 1
    if status == 0 and not group.alive():
        found.twice -= 1  # the first was quick: both are right
    elif status == 1 and _BUSY in second.said and "Traceback" not in second.said:
        found.refused += 1
    else:
        found.wrong.append(f"a second run ended with {status}: {second.said[-300:]}")


def _after(recipe: Recipe, group: Group, who: str, found: Found) -> None:
    """What is left of a killed run comes to its end; until then, no other begins."""
    if who == "first" and group.alive():
        second = recipe.start("second.log")
        status = second.wait(_PATIENCE)
        if _BUSY in second.said:
            found.twice += 1
            found.refused += 1
        elif status != 0:
            found.twice += 1
            found.wrong.append(f"after the script: {status}: {second.said[-300:]}")
    if group.wait(_PATIENCE) is None:
        group.end()
        found.wrong.append(f"a killed run does not end, see {group.log}")


# ------------------------------------------------------------------------- comparing


def differences(one: Recipe, other: Recipe, name: str) -> list[str]:
    """What differs between the results of two recipes, in words."""
    found = []
    for kind, contents in _results(one).items():
        others = _results(other)[kind]
        differing = sorted(
            path
            for path in contents.keys() | others.keys()
            if not _same(contents.get(path), others.get(path))
        )
        if differing:
            found.append(f"{name}: {kind} differ: {' '.join(differing[:4])}")
    return found


def _results(recipe: Recipe) -> dict[str, dict[str, Any]]:
    work, datadir = recipe.work, recipe.folder / "recipe" / "data" / "mini_an4"
    lists = [*work.glob("dump/**/*"), *datadir.glob("**/*"), work / "tokens.txt"]
    texts = [p for p in work.glob("**/*") if p.name in ("text", "token", "score")]
    tables = [work / "results.tsv", work / "utterances.tsv"]
    models = [*work.glob("asr_*/*.pth"), *work.glob("backbone/*.pth")]
    # A checkpoint also says how long each epoch took.
    models = [path for path in models if path.name != "checkpoint.pth"]

    def key(path: Path) -> str:
        return str(path.relative_to(recipe.folder))

    def content(path: Path) -> str:
        return path.read_text(encoding="utf-8", errors="surrogateescape").replace(
            recipe.top, ""
        )

    def read(paths: list[Path]) -> dict[str, Any]:
        # Times of files stand in the stamps; what was left half written is hidden.
        paths = [p for p in paths if p.is_file() and p.name != "audio_stamp"]
        paths = [p for p in paths if not p.name.startswith(".")]
        return {key(path): content(path) for path in paths if path.suffix != ".flac"}

    from espnet_hra.files.checkpoint import read_state

    return {
        "lists": read(lists),
        "texts": read(texts),
        "tables": read(tables),
        "parameters": {key(path): read_state(path) for path in models},
    }


def _same(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            torch.equal(one[k], other[k]) for k in one
        )
    return one is not None and one == other
