"""The recipe on mini AN4 on a disk that is full, at each of its stages.

A small file system of one's own (tmpfs) holds two runs. The first is not disturbed, and
shows how much each stage writes. In the second, each stage begins with no room at all,
and then with less than it needs, so that the disk is full in the middle of it. It must
say so in one line; with room again, the same command must go on, do this stage alone,
and the run must end with the results of the first.
"""

import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_hra.bench.soak.recipe import Recipe, differences
from espnet_hra.bench.soak.rows import Row
from espnet_hra.errors import UserError

#: Stages that write something, with those of the backbone.
STAGES = (1, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14)

_DONE = re.compile(r"Stage (\d+): done in (\d+) s")

#: What is said where there is no room, and what to do.
_FULL = re.compile(r"no room is left|cannot write|No space left on device")
_REMEDY = "run the same command again"

#: Longest that a run may take, in seconds, and lines that it may take to say it.
_PATIENCE, _LINES = 3600, 4


class SmallDisk:
    """A file system in memory that only its own processes see.

    Args:
        folder: Where it is put; made if it is not there.
        size: Bytes.

    Attributes:
        folder: The same, as its processes see it.
        path: The same, as this process sees it.

    Raises:
        UserError: There can be none here.
    """

    def __init__(self, folder: Path, size: int):
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        mount = (
            f'mount -t tmpfs -o size={size} tmpfs "$1" && echo ready && exec sleep 1d'
        )
        command = ["unshare", "-rm", "bash", "-c", mount, "bash", str(self.folder)]
        try:
            self._holder = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except OSError as e:
            raise UserError(f"there is no unshare (util-linux) here: {e}") from e
        assert self._holder.stdout is not None and self._holder.stderr is not None
        if self._holder.stdout.readline() != "ready\n":
            said = self._holder.stderr.read().strip()
            self.close()
            raise UserError(f"no file systems of one's own here: {said}")
        self.path = Path(f"/proc/{self._holder.pid}/root{self.folder}")

    def run(self, command: Sequence[str], env: dict[str, str]) -> tuple[int, str, str]:
        """Run a command there; its status and what it said, errors apart."""
        enter = ["nsenter", "-t", str(self._holder.pid), "-U", "-m"]
        done = subprocess.run(
            [*enter, "--preserve-credentials", *command],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    @property
    def free(self) -> int:
        """Bytes that are free."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    @contextlib.contextmanager
    def filled(self, leave: int) -> Iterator[None]:
        """A block in which only so many bytes are free."""
        filler = self.path / "filler"
        try:
            with open(filler, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(self.free - leave, 1))
            yield
        finally:
            filler.unlink(missing_ok=True)

    def close(self) -> None:
        """End it, and all that is on it."""
        self._holder.kill()
        self._holder.communicate()


@dataclass
class _Found:
    stages: Counter[int] = field(default_factory=Counter)
    middle: int = 0
    enough: int = 0
    wrong: list[str] = field(default_factory=list)


class _Run:
    """A run of the recipe on a small disk."""

    def __init__(self, disk: SmallDisk, name: str):
        self.disk = disk
        self.recipe = Recipe(disk.path / name)
        self._seen = disk.folder / name
        self.recipe.top = str(self._seen)

    def until(self, stage: int) -> tuple[int, str, str]:
        """Run all stages up to one that are not done yet."""
        command = [
            "bash",
            str(self._seen / "recipe" / "run.sh"),
            "--corpus",
            "mini_an4",
        ]
        command += ["--python", sys.executable, "--expdir", str(self._seen / "exp")]
        command += ["--skip_packing", "false", "--stop_stage", str(stage)]
        return self.disk.run(command, {"OMP_NUM_THREADS": "1", **_python_path()})


def _python_path() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[3])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def soak(folder: Path, count: int, seed: int, command: str) -> list[Row]:
    """Fill the disk at each stage so many times, and compare what comes out.

    Args:
        folder: For the small disk.
        count: How often at each stage: first without any room, then with some.
        seed: Of how much.
        command: What does the same again.
    """
    return fill(folder, count, seed, command, STAGES)


def fill(
    folder: Path, count: int, seed: int, command: str, stages: Sequence[int]
) -> list[Row]:
    """The same for some of the stages, and those before them.

    Raises:
        UserError: There can be no small disk, or the recipe does not work as it is.
    """
    rnd, found = random.Random(seed), _Found()
    disk = SmallDisk(folder / "disk", 2**28)
    try:
        whole, filled = _Run(disk, "whole"), _Run(disk, "filled")
        needs = {}
        for stage in stages:
            before = disk.free
            status, _, said = whole.until(stage)
            if status != 0:
                raise UserError(f"the recipe does not work as it is: {said[-500:]}")
            needs[stage] = before - disk.free
        for stage in stages:
            _one_stage(filled, stage, needs[stage], count, rnd, found)
            print(
                f"disk: stage {stage}: full {found.stages[stage]} times, "
                f"{len(found.wrong)} faults {found.wrong[-1:]}",
                flush=True,
            )
        if not found.wrong:
            found.wrong += _differences(whole, filled, stages)
        if found.wrong:
            shutil.rmtree(folder / "kept", ignore_errors=True)
            shutil.copytree(
                disk.path / "filled" / "exp", folder / "kept", symlinks=True
            )
    finally:
        disk.close()
    parts = ", ".join(f"{stage}: {found.stages[stage]}" for stage in stages)
    return [
        Row(
            "disk",
            "a disk that is full when a stage of the recipe on mini AN4 begins, or in "
            f"the middle of it ({found.middle})",
            sum(found.stages.values()),
            len(found.wrong),
            "each said so, and what to do, in a few lines; with room again the same "
            "command did this stage alone, and the run ended with the lists, texts, "
            f"error rates and parameters of an undisturbed one (by stage: {parts})"
            if not found.wrong
            else "; ".join(found.wrong[:5]),
            command,
        )
    ]


def _one_stage(
    run: _Run, stage: int, need: int, count: int, rnd: random.Random, found: _Found
) -> None:
    """Fill the disk at a stage, make room, and let the stage be done."""
    page = 4096
    for number in range(count):
        leave = 0
        if number > 0:
            if need <= page:  # it writes next to nothing
                break
            leave = page * rnd.randrange(1, -(-need // page))
        with run.disk.filled(leave):
            status, out, said = run.until(stage)
        if status == 0:  # some of its files take the place of others
            found.enough += 1
            return
        found.stages[stage] += 1
        found.middle += leave > 0
        where = f"stage {stage}, {leave} bytes free"
        if not _FULL.search(said):
            found.wrong.append(f"{where}: does not say that the disk is full: {said!r}")
        if _REMEDY not in said:
            found.wrong.append(f"{where}: does not say what to do: {said!r}")
        if "Traceback" in out + said or len(said.splitlines()) > _LINES:
            found.wrong.append(f"{where}: says too much: {said!r}")
    status, out, said = run.until(stage)
    if status != 0:
        found.wrong.append(f"stage {stage}: does not go on: {said!r}")
    ran = {int(number) for number, _ in _DONE.findall(out)}
    if not ran <= {stage}:
        found.wrong.append(f"stage {stage}: did the stages {sorted(ran)} again")


def _differences(whole: _Run, filled: _Run, stages: Sequence[int]) -> list[str]:
    """What differs between the two runs, in words."""
    found = differences(whole.recipe, filled.recipe, "the run")
    if 14 in stages:
        packs = [_members(run.recipe.work) for run in (whole, filled)]
        if packs[0] != packs[1]:
            found.append("the packs differ")
    return found


def _members(work: Path) -> dict[str, int]:
    """What is in a pack, with sizes; all checksums are looked at."""
    (path,) = work.glob("asr_*/pack.zip")
    with zipfile.ZipFile(path) as pack:
        if pack.testzip() is not None:
            return {}
        return {one.filename.split("/", 1)[-1]: one.file_size for one in pack.filelist}
