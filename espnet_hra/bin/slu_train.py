#!/usr/bin/env python3
"""Train an adapter: `espnet2.bin.slu_train` with frozen bases."""

from espnet_hra.bin.programs import training
from espnet_hra.errors import one_line

main = training("slu")

if __name__ == "__main__":
    with one_line("slu_train"):
        main()
