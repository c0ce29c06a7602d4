"""`espnet-hra adapt`, killed at random moments, and twice at once."""

import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from espnet_hra.bench.soak import forks
from espnet_hra.bench.soak.killing import TICK, Group
from espnet_hra.bench.soak.rows import Row
from espnet_hra.errors import TaskError
from espnet_hra.files.config import read_yaml, write_yaml
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.store import FOLDER, TaskStore

#: New tasks, and which utterances each has.
_TASKS = {"one": slice(0, 3), "two": slice(2, 5), "three": slice(1, 4)}


def make_data(source: Path, folder: Path) -> Path:
    """Data of new tasks: each has some of the utterances, under names of its own."""
    for part in ("train", "dev"):
        (folder / part).mkdir(parents=True)
        for name in ("wav.scp", "text", "utt2task"):
            lines = []
            for task, some in _TASKS.items():
                read = "text" if name == "utt2task" else name
                for line in (source / part / read).read_text().splitlines()[some]:
                    word = task if name == "utt2task" else line.split(maxsplit=1)[1]
                    lines.append(f"{task}-{line.split()[0]} {word}\n")
            (folder / part / name).write_text("".join(sorted(lines)))
    return folder


def words_of(model: Path, data: Path, folder: Path, epochs: int = 4) -> list[str]:
    """The command, but for ``--out``."""
    saved = read_yaml(model / "config.yaml")
    keys = ("encoder_conf", "optim", "optim_conf", "batch_type", "batch_size")
    config = {key: saved[key] for key in keys}
    conf = {k: v for k, v in config["encoder_conf"].items() if k.startswith("adapter")}
    config.update(encoder_conf=conf, max_epoch=epochs, keep_nbest_models=1, seed=1)
    config["best_model_criterion"] = [["valid", "loss", "min"]]
    write_yaml(folder / "train.yaml", config)
    write_yaml(
        folder / "parallel.yaml",
        {
            "parallel": {
                "env": "local",
                "n_workers": 1,
                "options": {"processes": False, "dashboard_address": None},
            }
        },
    )
    checkpoint = next(model.glob("valid.*.best.pth"))
    words = ["adapt", "--config", folder / "train.yaml", "--data", data]
    words += ["--pretrained_model", saved["pretrained_model"]]
    words += ["--init_adapter", checkpoint, "--parallel", folder / "parallel.yaml"]
    return [str(word) for word in words]


def heads(out: Path) -> dict[str, dict]:
    """The tensors of all tasks of a folder, each file verified."""
    store = TaskStore(out / FOLDER)
    for name in store.names:
        store.verify(name)
    return {name: taskfile.read(store.path(name)).tensors for name in store.names}


def equal(one: dict[str, dict], other: dict[str, dict]) -> bool:
    """Whether two folders have the same tasks, bit for bit."""
    import torch

    return one.keys() == other.keys() and all(
        one[name].keys() == other[name].keys()
        and all(torch.equal(one[name][k], other[name][k]) for k in one[name])
        for name in one
    )


def soak(folder: Path, count: int, seed: int, command: str) -> list[Row]:
    """Kill the command so often, and compare what comes out in the end.

    Args:
        folder: To work in.
        count: How many kills.
        seed: Of the random moments.
        command: What does the same again.
    """
    from espnet_hra.bench.soak.recipe import reference

    whole, _ = reference(folder)
    forks.preload()
    work = folder / "adapt"
    shutil.rmtree(work, ignore_errors=True)
    data = make_data(whole.work / "dump" / "raw", work / "data")
    words = words_of(next(whole.work.glob("asr_*")), data, work)
    return kill(words, work, count, seed, command)


def kill(
    words: list[str], work: Path, count: int, seed: int, command: str
) -> list[Row]:
    """The kills of :func:`soak`; a run is killed up to three times before its end."""
    undisturbed = forks.command([*words, "--out", work / "whole"], work / "hook")
    if undisturbed.status != 0:
        raise TaskError(f"adapt does not work as it is: {undisturbed.said[-500:]}")
    expected = heads(work / "whole")
    rnd = random.Random(seed)
    kinds: Counter[str] = Counter()
    wrong: list[str] = []
    runs = 0
    while sum(kinds.values()) < count and runs < 3 * count:
        runs += 1
        out = work / f"out{runs}"
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(min(3, count - sum(kinds.values()))):
            at = forks.moment(rnd, undisturbed, 20_000)
            if at.kind == "byte":  # the log would be the first to grow so far
                at = forks.Moment("time", rnd.uniform(0, undisturbed.seconds))
            done = forks.command([*words, "--out", out], work / "hook", at)
            if not done.killed:
                break
            kinds[at.kind] += 1
            print(f"adapt: killed at {at.kind} {at.value:.2f}", flush=True)
            found = heads(out)  # each is whole
            if not equal(found, {name: expected[name] for name in found}):
                wrong.append(f"{at}: a head that is done is another")
        done = forks.command([*words, "--out", out], work / "hook")
        if done.status != 0:
            wrong.append(f"given again: status {done.status}: {done.said[-300:]}")
        elif not equal(heads(out), expected):
            wrong.append(f"run {runs}: heads are others than of an undisturbed run")
        else:
            shutil.rmtree(out)
    total = sum(kinds.values())
    twice = _twice(words, work)
    return [
        Row(
            "adapt",
            f"SIGKILL of `adapt` on three tasks ({kinds['change']} at a change to a "
            f"file, {kinds['time']} at any time)",
            total,
            len(wrong),
            "; ".join(wrong[:5])
            or f"{runs} runs, killed up to three times each, ended with the heads of "
            "an undisturbed one, bit for bit",
            command,
        ),
        Row(
            "adapt",
            "a second `adapt` on the same folder at the same time",
            1,
            int(bool(twice)),
            twice or "the second said so and stopped; the first went on",
            command,
        ),
    ]


def _twice(words: list[str], work: Path) -> str:
    """Two commands on one folder; what is wrong, in words."""
    program = [sys.executable, "-m", "espnet_hra.cli", *words, "--out"]
    out = work / "twice"
    first = Group([*program, str(out)], work / "first.log")
    while first.alive() and not (out / "adapt" / ".lock").exists():
        time.sleep(TICK)
    second = forks.command([*words, "--out", out], work / "hook")
    status = first.wait(3600)
    if second.status != 1 or "another `espnet-hra adapt` is at work" not in second.said:
        return f"the second: status {second.status}: {second.said[-300:]}"
    return "" if status == 0 else f"the first: status {status}: {first.said[-300:]}"
