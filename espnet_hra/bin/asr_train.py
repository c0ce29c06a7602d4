#!/usr/bin/env python3
"""Train an adapter (or a backbone): `espnet2.bin.asr_train` with frozen bases."""

from espnet_hra.bin.programs import training
from espnet_hra.errors import one_line

main = training("asr")

if __name__ == "__main__":
    with one_line("asr_train"):
        main()
