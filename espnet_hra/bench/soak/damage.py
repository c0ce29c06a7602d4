"""Damaged files from strangers: packs, configurations, checkpoints, task files.

Each is opened as its command opens it, in a process that cannot take much memory, and
watched by Python itself (``sys.addaudithook``). It must be refused in one line
(``UserError``), or give what the undamaged one gives: some bytes, such as a date in a
zip, mean nothing. Nothing may be run, no file written outside the folder that it is
unpacked to, and nobody called over the network.
"""

import json
import os
import random
import resource
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_hra.bench.soak import forks
from espnet_hra.bench.soak.rows import Row
from espnet_hra.errors import UserError

#: Events that tell of code being run or of somebody being called.
_FORBIDDEN = {
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "socket.connect",
    "subprocess.Popen",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

#: Bytes that opening a file of some kilobytes may take besides what is taken already.
MEMORY = 2**31


def damages(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Damaged copies: bits and bytes changed, cut, mixed up, grown, doubled."""
    rnd = random.Random(seed)
    made = 0
    while made < count:
        damaged, kind = bytearray(content), made % 8
        # Lists of what is in a file stand at its ends.
        edge = min(len(content), 2048)
        regions = [(0, edge), (len(content) - edge, len(content)), (0, len(content))]
        start, end = regions[rnd.randrange(3)]
        at = rnd.randrange(start, end)
        if kind in (0, 1):  # a bit
            damaged[at] ^= 1 << rnd.randrange(8)
        elif kind == 2:  # a byte
            damaged[at] = rnd.randrange(256)
        elif kind == 3:  # several
            for _ in range(rnd.randrange(2, 50)):
                damaged[rnd.randrange(start, end)] ^= rnd.randrange(1, 256)
        elif kind == 4:
            damaged = damaged[: rnd.randrange(len(content))]
        elif kind == 5:  # a number becomes a large one
            damaged[at : at + 4] = rnd.choice((b"\xff" * 4, b"\x00\x00\x00\x7f"))
        elif kind == 6:  # a piece from elsewhere
            n = rnd.randrange(1, 256)
            other = rnd.randrange(len(content))
            damaged[at : at + n] = content[other : other + n]
        else:
            damaged[at:at] = rnd.randbytes(rnd.randrange(1, 64))
        if damaged != content:
            made += 1
            yield bytes(damaged)


@dataclass(frozen=True)
class Kind:
    """A kind of files.

    Attributes:
        name: What it is called.
        content: An undamaged one.
        file: Its name on the disk.
        read: What is got from it, in a form that can be compared.
        text: Whether a changed byte may be another meaning, as in any text.
    """

    name: str
    content: bytes
    file: str
    read: Callable[[Path], Any]
    text: bool = False


def kinds(model: Path, folder: Path) -> list[Kind]:
    """Undamaged files of all kinds, made of a model with tasks in its checkpoint."""
    import torch

    from espnet_hra.espnet.models import find_model, find_tasks
    from espnet_hra.files import archive
    from espnet_hra.files.checkpoint import read_state
    from espnet_hra.files.config import read_yaml
    from espnet_hra.tasks import file as taskfile
    from espnet_hra.tasks.fingerprint import fingerprint

    tops = folder / "cache"

    def base(path: Path) -> Any:
        archive_folder = archive.unpack(path, tops)
        found = find_model(str(archive_folder))
        state = read_state(found.model_file)
        config = json.dumps(found.written, sort_keys=True, default=str)
        tasks = [taskfile.read(found.store.path(n)).checksum for n in found.store.names]
        return (
            fingerprint(state.items()),
            config.replace(str(archive_folder), ""),
            tasks,
        )

    def tasks(path: Path) -> Any:
        archive.unpack(path, tops)  # not to the user's own folder
        return [taskfile.read(found).checksum for found in find_tasks(str(path))]

    def state(path: Path) -> Any:
        return fingerprint(read_state(path).items())

    def plain(path: Path) -> Any:
        return read_yaml(path)

    whole = folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir(parents=True)
    pack: list[object] = ["pack", "--model", model, "--license", "cc0-1.0"]
    pack += ["--language", "en", "--data", "mini AN4"]
    for name, more in (
        ("base.zip", ["--tasks", "all"]),
        ("tasks.zip", ["--task", "all", "--base_tag", whole / "base.zip"]),
    ):
        done = forks.command([*pack, "--out", whole / name, *more], folder / "hook")
        if done.status != 0:
            raise UserError(f"packing does not work as it is: {done.said[-500:]}")
    checkpoint = find_model(str(model)).model_file
    torch.save(
        {"state_dict": read_state(checkpoint), "epoch": 3, "global_step": 4},
        whole / "last.ckpt",
    )
    with zipfile.ZipFile(whole / "tasks.zip") as opened:
        name = next(n for n in opened.namelist() if n.endswith(taskfile.SUFFIX))
        (whole / "task.safetensors").write_bytes(opened.read(name))
    shutil.copy(checkpoint, whole / "model.pth")
    shutil.copy(model / "config.yaml", whole / "config.yaml")
    readers: dict[str, tuple[str, Callable[[Path], Any], bool]] = {
        "base packs": ("base.zip", base, False),
        "task packs": ("tasks.zip", tasks, False),
        "checkpoints (.pth)": ("model.pth", state, False),
        "checkpoints (.ckpt)": ("last.ckpt", state, False),
        "configurations": ("config.yaml", plain, True),
        "task files": ("task.safetensors", lambda p: taskfile.read(p).checksum, False),
    }
    return [
        Kind(name, (whole / file).read_bytes(), file, read, text)
        for name, (file, read, text) in readers.items()
    ]


class Watch:
    """What a process may not do while it opens a damaged file.

    Args:
        folder: Where it may write.
    """

    def __init__(self, folder: Path):
        self.seen: list[str] = []
        self.on = False
        allowed = (str(folder), "/dev/null", "/proc/")

        def hook(event: str, args: tuple) -> None:
            if not self.on:
                return
            if event in _FORBIDDEN:
                self.seen.append(f"{event} {args!r:.100}")
            elif event == "open" and args[2] and args[2] & _WRITING:
                if not isinstance(args[0], int):
                    path = os.path.abspath(os.fsdecode(args[0]))
                    if not path.startswith(allowed):
                        self.seen.append(f"wrote to {path}")

        sys.addaudithook(hook)


def open_damaged(kind: Kind, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Open damaged files of a kind, in this process; what came of it."""
    watch = Watch(folder)
    expected = kind.read(_written(kind.content, folder, kind.file))
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY,) * 2)
    for i, damaged in enumerate(damages(kind.content, count, seed)):
        path = _written(damaged, folder, kind.file)
        watch.on = True
        try:
            found = kind.read(path)
        except UserError as e:
            outcomes["refused"] += 1
            if "\n" in str(e) and not kind.text:
                wrong.append(f"{i}: more than one line: {e}")
        except BaseException as e:
            wrong.append(f"{i}: {type(e).__name__}: {e!s:.200}")
        else:
            same = found == expected
            outcomes["the same" if same else "another"] += 1
            if not same and not kind.text:
                wrong.append(f"{i}: read, and something else")
        watch.on = False
        if watch.seen:
            wrong.append(f"{i}: {watch.seen[0]}")
            watch.seen.clear()
        if i % 100 == 0:
            shutil.rmtree(folder / "cache", ignore_errors=True)
    return {"outcomes": dict(outcomes), "wrong": wrong}


def _written(content: bytes, folder: Path, name: str) -> Path:
    path = folder / "damaged" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def in_a_child(kind: Kind, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """As :func:`open_damaged`, in a forked process whose memory is bounded."""
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            os.environ["HOME"] = str(folder)
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 2)
            found = open_damaged(kind, folder, count, seed)
            result.write_text(json.dumps(found))
        except BaseException as e:
            result.write_text(json.dumps({"outcomes": {}, "wrong": [repr(e)]}))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    if not result.exists():
        return {"outcomes": {}, "wrong": ["the process died of it"]}
    return json.loads(result.read_text())


def soak(folder: Path, count: int, seed: int, command: str) -> list[Row]:
    """Damage files of each kind so often.

    Args:
        folder: To work in.
        count: How many of each kind.
        seed: Of the damage.
        command: What does the same again.
    """
    from espnet_hra.bench.soak.recipe import reference

    whole, _ = reference(folder)
    return damage(
        next(whole.work.glob("asr_*")), folder / "damage", count, seed, command
    )


def damage(model: Path, folder: Path, count: int, seed: int, command: str) -> list[Row]:
    """The files of :func:`soak`, made of a model."""
    import torch

    torch.set_num_threads(1)
    rows = []
    for kind in kinds(model, folder):
        found = in_a_child(kind, folder, count, seed)
        wrong, outcomes = found["wrong"], Counter(found["outcomes"])
        for text in wrong[:5]:
            print(f"damage: {kind.name}: {text}", flush=True)
        said = f"{outcomes['refused']:,} refused in one line"
        if outcomes["the same"]:
            said += f", {outcomes['the same']:,} without a meaning (read as undamaged)"
        if outcomes["another"]:
            said += f", {outcomes['another']:,} another text, which YAML can be"
        said += "; nothing run, nothing written outside, at most 2 GiB of memory"
        rows.append(
            Row(
                "damage",
                f"damaged {kind.name}",
                count,
                len(wrong),
                "; ".join(wrong[:3]) or said,
                command,
            )
        )
    return rows
