"""What the machine has."""

import re
from collections.abc import Iterator
from pathlib import Path

#: Where Linux tells of its processes, and of their control groups.
_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")

#: Files of a control group of version 2 and of version 1: the limit, what is in use,
#: and the line of ``memory.stat`` with what the system gives back when it needs it.
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)


def available_memory() -> int:
    """Bytes of memory that can still be taken; 0 where the system does not tell.

    That is what the machine has free, or what a control group (of a container or a
    batch job) leaves to this process, if that is less.
    """
    found = re.search(r"MemAvailable:\s*(\d+)", _read(_PROC / "meminfo"))
    free = [1024 * int(found[1])] if found else []
    return max(1, min(free + list(_left_by_groups()))) if found else 0


def _left_by_groups() -> Iterator[int]:
    """What each control group leaves that this process is in, down from the root."""
    for line in _read(_PROC / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root, files = _GROUPS, _VERSION_2
        elif "memory" in controllers.split(","):
            root, files = _GROUPS / "memory", _VERSION_1
        else:
            continue
        # Within a container, the path may be that of the machine, which is not there.
        own = root / path.strip("/")
        for folder in (own, *own.parents):
            left = _left(folder, *files)
            if left is not None:
                yield left
            if folder == root:
                break


def _left(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    """What one control group leaves; None if it has no limit."""
    most, now = _read(folder / limit).strip(), _read(folder / used).strip()
    if not most.isdigit() or not now.isdigit():  # "max"
        return None
    found = re.search(rf"^{reclaimable} (\d+)", _read(folder / "memory.stat"), re.M)
    return int(most) - int(now) + (int(found[1]) if found else 0)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
