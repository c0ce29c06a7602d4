"""Python for an unmodified `asr.sh`: ESPnet's programs that have a counterpart here.

    ./asr.sh --python "python3 -m espnet_hra.bin.python" ...

``-m espnet2.bin.asr_train``, ``asr_inference``, ``asr_align`` and those of s2t, st and
slu become this package's, with all of their options; everything else is run as it is.
"""

import os
import sys
from collections.abc import Sequence

from espnet_hra.espnet.kinds import KINDS

COUNTERPARTS = {
    f"espnet2.bin.{theirs}": f"espnet_hra.bin.{kind.name}_{ours}"
    for kind in KINDS.values()
    for theirs, ours in (
        (kind.train, "train"),
        (kind.inference, "inference"),
        (kind.align, "align"),
    )
    if theirs
}


def translate(words: Sequence[str]) -> list[str]:
    """A command line of Python with our programs in the place of ESPnet's.

    Args:
        words: What follows ``python``.
    """
    found = list(words)
    for i, word in enumerate(found[:-1]):
        if word == "-m":
            found[i + 1] = COUNTERPARTS.get(found[i + 1], found[i + 1])
            break
        if not word.startswith("-") or word == "-c":
            break  # a script or a program; what follows is its own
    return found


def main() -> None:
    """Become the program."""
    os.execv(sys.executable, [sys.executable, *translate(sys.argv[1:])])


if __name__ == "__main__":
    main()
