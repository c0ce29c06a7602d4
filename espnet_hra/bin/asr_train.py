#!/usr/bin/env python3
"""Train an adapter (or a backbone): `espnet2.bin.asr_train` with frozen bases."""

from collections.abc import Sequence

from espnet_hra.errors import one_line
from espnet_hra.espnet.task import HRATask


def main(cmd: Sequence[str] | None = None) -> None:
    """Train; `--help` lists the options."""
    HRATask.main(cmd=cmd)


if __name__ == "__main__":
    with one_line("asr_train"):
        main()
