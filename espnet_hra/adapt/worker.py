"""What a worker does: one task after the other, on a base that it loads once.

Importing ESPnet and loading, verifying and freezing a base takes many seconds, training
a small task not many more. So a worker keeps a :class:`Workbench`: the model with base
and controller and no task. For each job a fresh head goes in, ESPnet's own training
(`HRATask.main_worker`) runs in this process, and the head comes out as a task file.
"""

import argparse
import contextlib
import copy
import fcntl
import json
import logging
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_hra.adapt import new_task, plan
from espnet_hra.adapt.plan import Job
from espnet_hra.data.lists import write_lists
from espnet_hra.errors import TaskError, UserError
from espnet_hra.files import atomic
from espnet_hra.tasks import file as taskfile

logger = logging.getLogger(__name__)

LOG, RESULT = "train.log", "result.json"

#: Within a task's folder: as its data are given, and as training wants them.
_LISTS, _DATA, _EXP, _KEY, _LOCK = "lists", "data", "exp", "key", ".lock"

#: The head that a workbench is built with, to see how heads begin.
_FIRST = "first"

#: So many times the loss that it began with is none that a training may end with.
_DIVERGED = 1.1

#: Logging, random numbers and ESPnet's checkpoints belong to the process: where workers
#: have several threads, or are threads, they take turns.
_turn = threading.Lock()
_benches: dict[str, "Workbench"] = {}


@dataclass(frozen=True)
class Spec:
    """What all jobs have in common.

    Attributes:
        options: ESPnet's options, with fingerprints of the base.
        key: Digest of options, base and controller.
        out: The model's folder.
        data: The data folder, for what the files say about it.
        in_checkpoint: Names of the tasks in the checkpoint of the controller.
        replace: Whether tasks may take the place of others of their name.
    """

    options: dict[str, Any]
    key: str
    out: str
    data: str
    in_checkpoint: tuple[str, ...] = ()
    replace: bool = False


def run(spec: Spec, job: Job) -> dict[str, Any]:
    """Train a task and put its file into the store. What goes wrong is a result too.

    Returns:
        The task's row, see :mod:`espnet_hra.adapt.table`.
    """
    # It would complain of every job that is at work when the command is interrupted.
    logging.getLogger("distributed.worker.state_machine").setLevel(logging.ERROR)
    start = time.monotonic()
    folder = plan.work_of(Path(spec.out), job.name)
    row: dict[str, Any] = {"task": job.name, "utterances": job.utterances}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _turn, _locked(folder), _log_to(folder / LOG, spec.options["log_level"]):
            try:
                row.update(_run(spec, job, folder))
                row["status"] = "done"
            except Exception as e:
                if not isinstance(e, UserError):
                    _benches.clear()  # it may be in any state
                logger.exception(f"task {job.name!r} failed")
                # A training that has failed would fail again: the next one begins anew.
                shutil.rmtree(folder / _EXP, ignore_errors=True)
                row.update(status="failed", note=reason(e))
            row["seconds"] = round(time.monotonic() - start, 1)
            if row["status"] == "done":
                text = json.dumps({**row, "key": job.key}, indent=2) + "\n"
                atomic.write(folder / RESULT, text.encode())
                for name in (_LISTS, _DATA, _EXP):
                    shutil.rmtree(folder / name, ignore_errors=True)
    except (OSError, UserError) as e:  # no place to work at
        row.update(status="failed", note=reason(e))
    return row


def result_of(out: Path, job: Job) -> dict[str, Any]:
    """The row of a task that is done; less of it if only its file is left."""
    path = plan.store_of(out).path(job.name)
    row = {"task": job.name, "status": "done", "utterances": job.utterances}
    try:
        text = (plan.work_of(out, job.name) / RESULT).read_text(encoding="utf-8")
        kept = json.loads(text)
        if kept.pop("key") == job.key:
            row = kept
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    return {**row, "file": str(path)}


def reason(error: BaseException, limit: int = 300) -> str:
    """An error in one line."""
    if isinstance(error, new_task.BadDataError):
        text = error.brief()
    elif isinstance(error, UserError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


# ---------------------------------------------------------------------------- one task


def _run(spec: Spec, job: Job, folder: Path) -> dict[str, Any]:
    out = Path(spec.out)
    if plan.is_done(out, job):  # a worker that was given up has finished it after all
        return result_of(out, job)
    if not spec.replace:
        plan.check_free(out, job, spec.in_checkpoint)
    _tidy(folder, job)
    for part, files in job.lists.items():
        write_lists(folder / _LISTS / part, files)
    if spec.key not in _benches:
        _benches.clear()  # one base at a time
        _benches[spec.key] = Workbench(argparse.Namespace(**spec.options))
    bench = _benches[spec.key]
    lists, minutes = new_task.prepare(
        folder / _LISTS,
        bench.requirements,
        folder,
        bench.args.skip_bad,
        jobs=1,
        tell=logger.warning,
    )
    row = bench.train(job.name, lists, folder / _EXP)
    about = new_task.describe(Path(spec.data), lists, minutes)
    info = {"data": about, "training": job.key, "voice": row.pop("voice")}
    if "scores" in row:
        info["scores"] = row.pop("scores")
    content = taskfile.pack(job.name, row.pop("tensors"), bench.identity, info)
    path = plan.store_of(out).put(content, job.name, replace=True)
    count = new_task.utterances(lists["train"])
    return {"utterances": count, "minutes": round(minutes, 2), **row, "file": str(path)}


def _tidy(folder: Path, job: Job) -> None:
    """Go on with what an interrupted run has left, if it is of the same key."""
    marker = folder / _KEY
    if not marker.is_file() or marker.read_text(encoding="utf-8") != job.key:
        for name in (_LISTS, _DATA, _EXP):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / RESULT).unlink(missing_ok=True)
        atomic.write(marker, job.key.encode())


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: another may have been given up without being dead."""
    with open(folder / _LOCK, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{socket.gethostname()} {os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextlib.contextmanager
def _log_to(path: Path, level: Any) -> Iterator[None]:
    """Let everything that is logged go to a file: thousands of tasks are no output."""
    root, handler = logging.getLogger(), logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(
        logging.Formatter(
            "%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s"
        )
    )
    before, others = root.level, root.handlers[:]
    for other in others:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
        root.setLevel(before)
        for other in others:
            root.addHandler(other)


def _check_learned(name: str, before: float | None, after: float | None) -> None:
    """Refuse a head that is worse on the dev set than it was at the beginning.

    Raises:
        TaskError: It is.
    """
    if before is None or after is None:
        return
    if not math.isfinite(after) or after > _DIVERGED * before:
        raise TaskError(
            f"task {name!r}: it did not learn, dev loss {before:.4g} -> {after:.4g} in "
            f"the best epoch: take a lower rate (optim_conf: lr), or look at its data"
        )


# --------------------------------------------------------------------------- the bench


class Workbench:
    """A base with its controller, frozen, on which heads are trained one by one.

    Args:
        args: ESPnet's options; ``encoder_conf: tasks`` does not matter.

    Attributes:
        args: The options, completed as ESPnet completes them.
        identity: What the tasks' files must agree with.
        requirements: What the model needs of its data.

    Raises:
        UserError: Base, controller and configuration do not go together.
    """

    def __init__(self, args: argparse.Namespace):
        import torch
        from espnet2.torch_utils.set_all_random_seed import set_all_random_seed

        from espnet_hra.data.requirements import requirements_from_config
        from espnet_hra.espnet.base import token_hash
        from espnet_hra.espnet.task import HRATask

        self.args = copy.deepcopy(args)
        self.args.encoder_conf["tasks"] = [_FIRST]
        # A head begins with the numbers that it would have in a training of its own
        # with this seed, where it is the only one.
        set_all_random_seed(self.args.seed)
        self.model: Any = HRATask.build_model(self.args)
        HRATask.load_initial_adapter(self.args, self.model)
        encoder: Any = self.model.encoder
        self.parameters = encoder.adapter.heads.size
        vector = encoder.adapter.heads.vector(_FIRST)
        encoder.remove_task(_FIRST)
        base = dict(self.args.base_fingerprint)
        base.pop("encoder")
        encoder.surroundings = {
            "base": base,
            "tokens": token_hash(self.args.token_list),
        }
        self.identity = encoder.identity()
        self.model.to(
            dtype=getattr(torch, self.args.train_dtype),
            device="cuda" if self.args.ngpu > 0 else "cpu",
        )
        self._initial = vector.detach().to(next(self.model.parameters()))
        self._at_rest = encoder.identity()  # another where the type is another
        self.requirements = requirements_from_config(self.args)
        self.requirements.tasks = None
        self._speech2text: Any | None = None

    def train(self, name: str, lists: dict[str, Path], exp: Path) -> dict[str, Any]:
        """Train a new task; afterwards the bench is as it was.

        Args:
            name: The task.
            lists: Folders with the data of ``train`` and ``valid``.
            exp: Where ESPnet keeps what it needs. A training that was interrupted there
                goes on.

        Returns:
            ``tensors`` of the head; its ``voice``; ``updates``; ``loss`` and ``cer`` on
            the dev set, and those ``_before``; ``scores`` for the task's file.

        Raises:
            TaskError: The training has changed something else than the head, or
                nothing.
        """
        import torch
        from espnet2.train.distributed_utils import resolve_distributed_mode

        from espnet_hra.adapt.training import train_head
        from espnet_hra.espnet import voices

        args = copy.deepcopy(self.args)
        vars(args).update(new_task.data_options(lists))
        vars(args).update(output_dir=str(exp), resume=True)
        args.encoder_conf["tasks"] = [name]
        encoder = self.model.encoder
        encoder.add_task(name)
        try:
            encoder.adapter.heads.vector(name).data.copy_(self._initial)
            resolve_distributed_mode(args)
            before = self._score(name, lists["valid"])
            found = train_head(self.model, args)
            after = self._score(name, lists["valid"])
            if encoder.identity() != self._at_rest:
                raise TaskError(f"task {name!r}: its training has changed the base")
            if torch.equal(encoder.adapter.heads.vector(name), self._initial):
                raise TaskError(
                    f"task {name!r}: its training has changed nothing (were all losses "
                    "or gradients infinite? its log says it)"
                )
            _check_learned(name, found.before.get("loss"), found.after.get("loss"))
            row = {
                "tensors": copy.deepcopy(encoder.adapter.heads.tensors(name)),
                "updates": found.updates,
                "loss_before": found.before.get("loss"),
                "loss": found.after.get("loss"),
                "voice": voices.texts(exp).get(name),
            }
            if after is not None and before is not None:
                row.update(cer_before=before["cer"], cer=after["cer"], scores=[after])
            return row
        finally:
            encoder.remove_task(name)

    def _score(self, name: str, folder: Path) -> dict[str, Any] | None:
        """Error rates of a head as it is now; None of what takes a beam search."""
        from espnet_hra.adapt.training import decoder_of
        from espnet_hra.espnet.whisper_reader import reads_with_whisper

        ctc = getattr(self.model, "ctc", None)
        if ctc is None and not reads_with_whisper(vars(self.args)):
            return None
        if self._speech2text is None:
            self._speech2text = decoder_of(self.model, self.args)
        self.model.eval()
        return new_task.score(self._speech2text, name, folder)
