"""One run of `espnet-hra adapt` over its workers."""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_hra.adapt import cluster, plan, signals, table, worker
from espnet_hra.adapt.folder import is_home
from espnet_hra.errors import TaskError
from espnet_hra.names import check_task_name

#: Seconds between two looks at how many workers there are.
_TICK = 2.0

INTERRUPTED = 130


def sort_jobs(
    spec: worker.Spec, names: Sequence[str], parts: Mapping[str, plan.Lines]
) -> tuple[list[plan.Job], dict[str, dict[str, Any]]]:
    """Who must be trained, and rows of those who need not, or cannot.

    The largest come first: otherwise one worker would be at work on them in the end,
    while all others have nothing to do.
    """
    jobs, rows = [], {}
    for name in names:
        job = plan.make_job(name, parts, spec.key)
        rows[name] = {"task": name, "status": "left", "utterances": job.utterances}
        try:
            check_task_name(name)
        except TaskError as e:
            rows[name].update(status="failed", note=str(e))
            continue
        if plan.is_done(Path(spec.out), job):
            rows[name] = {
                **worker.result_of(Path(spec.out), job),
                "note": "from an earlier run",
            }
        else:
            jobs.append(job)
    return sorted(jobs, key=lambda job: (-job.utterances, job.name)), rows


class Run:
    """One run of the command over its workers."""

    def __init__(
        self,
        spec: worker.Spec,
        jobs: list[plan.Job],
        rows: dict[str, dict[str, Any]],
        block: dict[str, Any],
    ):
        self.spec, self.jobs, self.rows, self.block = spec, jobs, rows, block
        self.finished = 0
        self.counts = Counter(row["status"] for row in rows.values())

    def run(self) -> int:
        """Train all jobs and write the table; the exit status."""
        print(
            f"{len(self.rows):,} tasks: {self.counts['done']:,} done before, "
            f"{len(self.jobs):,} to do",
            flush=True,
        )
        self.start = time.monotonic()
        try:
            with signals.terminable():
                if self.jobs:
                    self._spread()
        except KeyboardInterrupt:
            print("\nespnet-hra adapt: interrupted", file=sys.stderr, flush=True)
            for job in self.jobs:  # workers end, and some have made it
                left = self.rows[job.name]["status"] == "left"
                if left and plan.is_done(Path(self.spec.out), job):
                    self._put(worker.result_of(Path(self.spec.out), job))
        return self._conclude()

    def _spread(self) -> None:
        """Give each worker one job, and the next when it is done with it.

        No more than one: Dask holds a job that waits on a worker responsible for the
        worker's death, and thousands of them at once would fill the scheduler.
        """
        from distributed import TimeoutError, wait

        waiting = list(reversed(self.jobs))
        running: dict[Any, plan.Job] = {}
        told = False
        # More workers than jobs would be of no use.
        self.block["n_workers"] = min(self.block["n_workers"], len(waiting))
        with cluster.client(self.block) as client, signals.quiet_end():
            while waiting or running:
                slots = sum(client.nthreads().values())
                while waiting and len(running) < slots:
                    job = waiting.pop()
                    future = client.submit(
                        worker.run, self.spec, job, key=f"adapt-{job.name}", pure=False
                    )
                    running[future] = job
                if not running:
                    if not told:
                        print("waiting for workers", flush=True)
                        told = True
                    time.sleep(_TICK)
                    continue
                try:
                    ready = wait(list(running), _TICK, "FIRST_COMPLETED").done
                except TimeoutError:
                    continue
                for future in ready:
                    self._take(running.pop(future), future)

    def _take(self, job: plan.Job, future: Any) -> None:
        error = future.exception()
        if error is None:
            row = future.result()
        else:
            row = {**self.rows[job.name], "status": "failed", "note": _why(error)}
        future.release()
        self._put(row)
        self.finished += 1
        self._tell(row)

    def _put(self, row: dict[str, Any]) -> None:
        """Replace a task's row, and what is counted of all."""
        self.counts[self.rows[row["task"]]["status"]] -= 1
        self.counts[row["status"]] += 1
        self.rows[row["task"]] = row

    def _tell(self, row: Mapping[str, Any]) -> None:
        """A line of progress."""
        found = self.counts
        spent = time.monotonic() - self.start
        left = spent / self.finished * (len(self.jobs) - self.finished)
        words = [f"{found['done']:,} of {len(self.rows):,} done"]
        if found["failed"]:
            words.append(f"{found['failed']:,} failed")
        if found["left"]:
            words.append(f"about {_duration(left)} left")
        what = f"{row['task']} {row['status']}"
        if row["status"] == "failed":
            what += f": {row['note']}"
        elif row.get("cer") is not None:
            what += f", CER {row['cer_before']:.1f} -> {row['cer']:.1f}"
        print(f"[{', '.join(words)}] {what}", flush=True)

    def _conclude(self) -> int:
        rows = [self.rows[name] for name in sorted(self.rows)]
        out = Path(self.spec.out)
        path = table.write(rows, out)
        print(f"\n{table.summary(rows)}\n")
        found = self.counts
        words = [f"{found[s]:,} {s}" for s in table.STATUSES if found[s]]
        print(
            f"{', '.join(words)}, in {_duration(time.monotonic() - self.start)}: {path}"
        )
        if found["failed"]:
            print(f"Logs: {out / plan.WORK}/NAME/{worker.LOG}")
        if found["failed"] or found["left"]:
            print("The same command goes on, and does what has failed again")
        if found["done"]:
            model = self._model()
            print(f"Use them: espnet-hra transcribe FILE --model {model} --task NAME")
        sys.stdout.flush()
        return INTERRUPTED if found["left"] else int(found["failed"] > 0)

    def _model(self) -> Path:
        """How the model is named that the tasks belong to."""
        from espnet_hra.espnet.base import open_base

        out, used = Path(self.spec.out), self.spec.options["init_adapter"]
        if not is_home(used, out):
            return out
        found = open_base(str(out)).model_file
        return out if found.resolve() == Path(used).resolve() else Path(used)


def _why(error: BaseException) -> str:
    """Why a job has no result."""
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        times = error.allowed_failures + 1
        return (
            f"{times} worker{'s' if times > 1 else ''} died of it (of memory, most "
            f"likely; the last was {error.last_worker.address})"
        )
    return worker.reason(error)


def _duration(seconds: float) -> str:
    """For people: 12 s, 3 min, 2 h 10 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
