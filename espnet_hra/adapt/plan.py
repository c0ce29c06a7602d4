"""From a data folder to jobs, and which of them are done.

A job is a task with the lines of its utterances and a *key*: a digest of configuration,
controller, base and data. The key is written into the task's file (as ``training``).
What has a whole file with the key of today is done; what has another is trained anew.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_hra.data.intake import check_plain, read_speakers, settle
from espnet_hra.data.lists import read_list
from espnet_hra.data.recordings import ARK_ENTRY
from espnet_hra.data.sentences import hold_out
from espnet_hra.errors import DataError, TaskError
from espnet_hra.names import listing
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.config import read_tasks
from espnet_hra.tasks.store import FOLDER, TaskStore

#: Folder with the logs of the tasks, and whatever a training needs meanwhile.
WORK = "adapt"

#: Parts of the data, as Kaldi and ESPnet name them.
PARTS = ("train", "dev")

_FILES = ("wav.scp", "text")

#: Options without influence on what is learned, or with one that the fingerprints of
#: base and controller stand for.
_NO_INFLUENCE = {
    "base_fingerprint",
    "check_data",
    "config",
    "create_graph_in_tensorboard",
    "dry_run",
    "init_adapter",
    "log_interval",
    "log_level",
    "ngpu",
    "num_att_plot",
    "num_workers",
    "output_dir",
    "pretrained_model",
    "print_config",
    "required",
    "resume",
    "train_data_path_and_name_and_type",
    "train_shape_file",
    "use_matplotlib",
    "use_tensorboard",
    "valid_data_path_and_name_and_type",
    "valid_shape_file",
    "version",
}


@dataclass(frozen=True)
class Job:
    """A task to train.

    Attributes:
        name: The task.
        key: Digest of everything that its head depends on.
        lists: The lines of its utterances, by part (``train``, ``dev``) and file
            (``wav.scp``, ``text``).
    """

    name: str
    key: str
    lists: dict[str, dict[str, tuple[str, ...]]]

    @property
    def utterances(self) -> int:
        """Utterances to train on."""
        return len(self.lists["train"]["wav.scp"])


# ---------------------------------------------------------------------------- folders


def store_of(out: Path) -> TaskStore:
    """Where the tasks of a model folder are kept."""
    return TaskStore(out / FOLDER)


def work_of(out: Path, name: str) -> Path:
    """Where the log of a task is, and its training while it lasts."""
    return out / WORK / name


# ------------------------------------------------------------------------------- data

#: Lines of a part by task and file.
Lines = dict[str, dict[str, list[str]]]


def read_data(folder: Path) -> tuple[dict[str, Lines], list[str]]:
    """The lines of a data folder, by part and task.

    Whatever is wrong with a single utterance is left to the check of its task.

    Args:
        folder: Has ``train`` and ``dev`` with ``wav.scp``, ``text`` and ``utt2task``
            (without it, every speaker is a task); or these files itself, and then every
            tenth sentence of a task is its ``dev``.

    Returns:
        The lines, and warnings about utterances that no task has.

    Raises:
        DataError: A file is missing or cannot be read, or has commands or segments.
    """
    if not any((folder / part).is_dir() for part in PARTS):
        lines, warnings = _read_part(folder)
        return _hold_out(lines), warnings
    parts: dict[str, Lines] = {}
    warnings = []
    for part in PARTS:
        parts[part], some = _read_part(folder / part)
        warnings += some
    return parts, warnings


def _read_part(folder: Path) -> tuple[Lines, list[str]]:
    """The lines of one data folder by task, and warnings."""
    if (folder / "wav.scp").exists():
        check_plain(folder / "wav.scp")
    tasks: dict[str, str] = {}
    lines: Lines = {}
    for utterance, task in _read_tasks(folder):
        if task:
            tasks.setdefault(utterance, task)
            lines.setdefault(task, {name: [] for name in _FILES})
    without = set()
    for name in _FILES:
        for utterance, entry in _read(folder / name):
            if utterance not in tasks:
                without.add(utterance)
                continue
            # Workers may run in other folders.
            entry = settle(entry, folder) if name == "wav.scp" else entry
            lines[tasks[utterance]][name].append(f"{utterance} {entry}")
    if not without:
        return lines, []
    return lines, [
        f"{folder}: {len(without):,} utterances are left out, as utt2task does not "
        f"name their task: {listing(sorted(without), 3)}"
    ]


def _read_tasks(folder: Path) -> list[tuple[str, str]]:
    """The tasks of a folder: of utt2task, or else its speakers."""
    if not (folder / "utt2task").exists():
        speakers = read_speakers(folder)
        if speakers is not None:
            return list(speakers.items())
    return _read(folder / "utt2task")


def _hold_out(lines: Lines) -> dict[str, Lines]:
    """Part every task into training and dev by sentence."""
    parts: dict[str, Lines] = {part: {} for part in PARTS}
    for task, files in lines.items():
        texts = dict(line.partition(" ")[::2] for line in files["text"])
        held = hold_out(texts)
        for part, wanted in (("train", False), ("dev", True)):
            parts[part][task] = {
                name: [x for x in own if (x.partition(" ")[0] in held) is wanted]
                for name, own in files.items()
            }
    return parts


def _read(path: Path) -> list[tuple[str, str]]:
    """The lines of a list. An id that stands twice is left to the check of its task."""
    found = read_list(path)
    for fault in found.problems:
        if fault.kind == "unreadable file":
            raise DataError(
                f"{path}: {fault.detail}; --data is a folder with train and dev, and "
                "each of them (or the folder itself) has wav.scp, text and utt2task "
                "(or utt2spk), with one line for each utterance"
            )
    return found.lines


def choose(parts: Mapping[str, Lines], asked: Sequence[str] | None) -> list[str]:
    """The tasks that shall be trained.

    Args:
        parts: The data.
        asked: Names, or one file with a name a line; None for all tasks of the data.

    Raises:
        TaskError: A name is not that of a task of the data.
    """
    known = sorted({name for lines in parts.values() for name in lines})
    if asked is None:
        return known
    if len(asked) == 1 and asked[0] not in known and Path(asked[0]).is_file():
        names = read_tasks(asked[0])
    else:
        names = tuple(dict.fromkeys(asked))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TaskError(
            f"--tasks: no utterance in utt2task has the task {listing(unknown)}; tasks "
            f"of the data: {listing(known)}"
        )
    return list(names)


# -------------------------------------------------------------------------------- keys


def config_key(options: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """Digest of configuration, base and controller.

    Args:
        options: ESPnet's options.
        identity: Of the encoder, see :meth:`AdaptedEncoder.identity`.
    """
    kept = {k: v for k, v in options.items() if k not in _NO_INFLUENCE}
    conf = dict(kept.get("encoder_conf") or {})
    conf.pop("tasks", None)
    kept["encoder_conf"] = conf
    text = json.dumps([kept, dict(identity)], sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def make_job(name: str, parts: Mapping[str, Lines], config: str) -> Job:
    """The job of a task.

    A recording counts as changed when its path, its size or the time of its last change
    is another; it is not read.

    Args:
        name: The task.
        parts: The data.
        config: From :func:`config_key`.
    """
    empty: dict[str, list[str]] = {file: [] for file in _FILES}
    lists = {
        part: {file: tuple(lines.get(name, empty)[file]) for file in _FILES}
        for part, lines in parts.items()
    }
    digest = hashlib.sha256(config.encode())
    for part in PARTS:
        for file in _FILES:
            for line in sorted(lists[part][file]):
                state = _state(line.partition(" ")[2]) if file == "wav.scp" else ""
                digest.update(f"{part}\t{file}\t{line}\t{state}\n".encode())
    return Job(name, f"sha256:{digest.hexdigest()}", lists)


def _state(entry: str) -> str:
    """Size and time of change of a recording."""
    state = _stat(entry)
    if state is None and (ark := ARK_ENTRY.fullmatch(entry)):
        state = _stat(ark["path"])
    return "" if state is None else f"{state[0]} {state[1]}"


def _stat(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


# ------------------------------------------------------------------------ what is done


def is_done(out: Path, job: Job) -> bool:
    """Whether a task's file is there, whole, and made with the same key."""
    path = store_of(out).folder / f"{job.name}{taskfile.SUFFIX}"
    if not path.is_file():
        return False
    try:
        file = taskfile.read(path)
    except TaskError:
        return False
    return file.name == job.name and file.record.get("training") == job.key


def check_free(out: Path, job: Job, in_checkpoint: Iterable[str]) -> None:
    """Refuse to take the place of a task that this command has not made.

    Raises:
        TaskError: There is such a task.
    """
    path = store_of(out).folder / f"{job.name}{taskfile.SUFFIX}"
    ours = False
    if path.is_file():
        try:
            ours = "training" in taskfile.describe(path)
        except TaskError:
            ours = True  # damaged: nothing that could be kept
        if not ours:
            raise TaskError(
                f"task {job.name!r} exists already ({path}) and was not made by this "
                "command: remove it first, or give --replace"
            )
    if not ours and job.name in in_checkpoint:
        raise TaskError(
            f"task {job.name!r} exists already in the checkpoint that --init_adapter "
            "names: give the new one another name, or --replace"
        )
