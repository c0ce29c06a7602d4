"""`tasks add`, `import` and `remove`, killed at random moments.

Each trial begins with a copy of a model whose folder has a task, and kills a command:
at any time, at one of its changes to files, or while a file grows beyond some byte.
Then every task must be whole, the others as they were, and the command that is given
again must end with what an undisturbed one leaves.
"""

import random
import shutil
from collections import Counter
from pathlib import Path

from espnet_hra.bench.soak import forks
from espnet_hra.bench.soak.rows import Row
from espnet_hra.errors import TaskError
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.store import FOLDER, TaskStore

#: The task in the folder at the beginning, and the one that comes.
OLD, NEW = "old", "new"


class Trials:
    """Commands on copies of a model.

    Args:
        folder: For the copies.
        model: An adaptation with tasks in its checkpoint.
        data: Kaldi-style data of a new task.
    """

    def __init__(self, folder: Path, model: Path, data: Path):
        self.folder = folder
        self.model = folder / "model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.original = folder / "original"
        shutil.copytree(model, self.original)
        shutil.rmtree(self.original / FOLDER, ignore_errors=True)
        self.inside = _make_files(self.original, folder)
        shutil.copy(folder / f"{OLD}.safetensors", _store(self.original).folder)
        at = ["--model", self.model]
        epochs = ["--max_epoch", 2]
        # What is killed, and what is given again.
        self.commands: dict[str, tuple[list[object], list[object]]] = {
            "add": (
                ["tasks", "add", NEW, data, *at, *epochs],
                ["tasks", "add", NEW, data, *at, *epochs, "--replace"],
            ),
            "import": (
                ["tasks", "import", folder / f"{NEW}.safetensors", *at],
                ["tasks", "import", folder / f"{NEW}.safetensors", *at, "--replace"],
            ),
            "import --replace": (
                ["tasks", "import", folder / "other.safetensors", *at, "--replace"],
            )
            * 2,
            "remove": (["tasks", "remove", OLD, *at],) * 2,
            "remove (in the checkpoint)": (["tasks", "remove", self.inside, *at],) * 2,
        }
        self.whole: dict[str, tuple[forks.Done, dict[str, bytes]]] = {}

    def fresh(self) -> None:
        """Begin with a new copy."""
        shutil.rmtree(self.model, ignore_errors=True)
        shutil.copytree(self.original, self.model)

    def undisturbed(self, name: str) -> tuple[forks.Done, dict[str, bytes]]:
        """A command that is not killed, and what it leaves."""
        if name not in self.whole:
            self.fresh()
            done = forks.command(self.commands[name][0], self.folder / "hook")
            if done.status != 0:
                raise TaskError(f"tasks {name} does not work as it is: {done.said}")
            self.whole[name] = done, self.state()
        return self.whole[name]

    def state(self) -> dict[str, bytes]:
        """What counts of a model: its files but for locks and what was left half."""
        return {
            str(path.relative_to(self.model)): path.read_bytes()
            for path in self.model.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }

    def kill(self, name: str, rnd: random.Random) -> tuple[forks.Moment, str]:
        """Kill a command once, and give it again; what is wrong, in words."""
        whole, after = self.undisturbed(name)
        self.fresh()
        before = self.state()
        size = (self.folder / f"{OLD}.safetensors").stat().st_size
        at = forks.moment(rnd, whole, size)
        done = forks.command(self.commands[name][0], self.folder / "hook", at)
        wrong = []
        if not done.killed and done.status != 0:
            wrong.append(f"status {done.status}: {done.said[-200:]}")
        now = self.state()
        for path in before.keys() | after.keys() | now.keys():
            if now.get(path) not in (before.get(path), after.get(path)):
                wrong.append(f"{path} is neither as before nor as after")
        store = _store(self.model)
        for task in store.names:
            try:
                store.verify(task)
            except TaskError as e:
                wrong.append(str(e))
        again = forks.command(self.commands[name][1], self.folder / "hook")
        gone = again.status == 1 and "unknown task" in again.said
        if again.status != 0 and not (name.startswith("remove") and gone):
            wrong.append(f"given again: status {again.status}: {again.said[-200:]}")
        elif self.state() != after:
            wrong.append("given again, it leaves something else")
        return at if done.killed else forks.Moment("none", 0), "; ".join(wrong)


def _store(model: Path) -> TaskStore:
    store = TaskStore(model / FOLDER)
    store.folder.mkdir(exist_ok=True)
    return store


def _make_files(model: Path, folder: Path) -> str:
    """Task files that fit a model; the name of a task in its checkpoint."""
    import torch

    from espnet_hra.espnet.inference import Speech2Text

    encoder = Speech2Text.from_pretrained(str(model), ctc_greedy=True).model.encoder
    torch.manual_seed(1)
    for file, task in ((OLD, OLD), (NEW, NEW), ("other", OLD)):
        encoder.add_task(task)
        with torch.no_grad():
            encoder.adapter.heads.vector(task).normal_(0, 0.1)
        encoder.save_task(task, folder / f"{file}{taskfile.SUFFIX}")
        encoder.remove_task(task)
    return encoder.tasks[0]


def soak(folder: Path, count: int, seed: int, command: str) -> list[Row]:
    """Kill commands until there were so many kills.

    Args:
        folder: To work in.
        count: How many kills.
        seed: Of the random moments.
        command: What does the same again.
    """
    from espnet_hra.bench.soak.recipe import reference

    whole, _ = reference(folder)
    forks.preload()
    model = next(whole.work.glob("asr_*"))
    trials = Trials(folder / "tasks", model, whole.work / "dump" / "raw")
    return kill(trials, count, seed, command)


def kill(trials: Trials, count: int, seed: int, command: str) -> list[Row]:
    """The kills of :func:`soak`, in turn over all commands."""
    rnd = random.Random(seed)
    kinds: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    wrong: list[str] = []
    names = list(trials.commands)
    for i in range(4 * count):  # some end before they are killed
        if sum(killed.values()) == count:
            break
        name = names[i % len(names)]
        at, found = trials.kill(name, rnd)
        if found:
            wrong.append(f"{name}, {at}: {found}")
            print(f"tasks: {wrong[-1]}", flush=True)
        if at.kind != "none":
            kinds[at.kind] += 1
            killed[name] += 1
            print(f"tasks: {name} killed at {at.kind} {at.value:.2f}", flush=True)
    each = ", ".join(f"{name}: {killed[name]}" for name in names)
    return [
        Row(
            "tasks",
            f"SIGKILL of `tasks {'|'.join(('add', 'import', 'remove'))}` "
            f"({kinds['change']} at a change to a file, {kinds['byte']} while a file "
            f"grew, {kinds['time']} at any time)",
            sum(killed.values()),
            len(wrong),
            "; ".join(wrong[:5])
            or "every task file whole and as before or as after; the command given "
            f"again ends as an undisturbed one, byte for byte ({each})",
            command,
        )
    ]
