"""Let a process die at a chosen one of its changes to files.

A file of its own, without this package: a copy of it called ``sitecustomize.py`` is
imported by every Python below a run. Python tells of each opening, renaming and
removing of files before it happens (``sys.addaudithook``); the changes of all processes
are counted together, one byte each in a file, and at the chosen one the whole group of
processes is killed, as by a power cut: a file that was opened is empty or half written,
one that was to be renamed is not.
"""

import mmap
import os
import signal
import struct
import sys

#: The folder with the two files below; nothing is counted where it is not given.
FOLDER = "ESPNET_HRA_SOAK"
COUNTER, CHOSEN = "counter", "chosen"

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def prepare(folder: str) -> None:
    """Make the files anew: nothing counted, nothing chosen."""
    with open(os.path.join(folder, COUNTER), "wb"):
        pass
    choose(folder, 0)


def choose(folder: str, number: int) -> None:
    """Let the change of this number, of all from the beginning, be the last."""
    path = os.path.join(folder, CHOSEN)
    if not os.path.exists(path):
        with open(path, "wb") as new:
            new.write(struct.pack("q", number))
    with open(path, "r+b") as file:  # in place: others have it mapped
        file.write(struct.pack("q", number))


def count(folder: str) -> int:
    """How many changes there were."""
    return os.path.getsize(os.path.join(folder, COUNTER))


def arm(folder: str) -> None:
    """Count the changes of this process from now on, and die at the chosen one."""
    counter = os.open(
        os.path.join(folder, COUNTER), os.O_WRONLY | os.O_APPEND | os.O_CREAT
    )
    file = os.open(os.path.join(folder, CHOSEN), os.O_RDONLY)
    chosen = mmap.mmap(file, 8, access=mmap.ACCESS_READ)

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(path, int) or not (flags or 0) & _WRITING:
                return
            if str(path).startswith(("/dev/", "/proc/")) or "__pycache__" in str(path):
                return
        elif event not in _CHANGES:
            return
        os.write(counter, b".")
        if 0 < struct.unpack("q", chosen[:8])[0] <= os.fstat(counter).st_size:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "sitecustomize" and FOLDER in os.environ:
    arm(os.environ[FOLDER])
