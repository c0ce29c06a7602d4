#!/usr/bin/env python3
"""Train an adapter: `espnet2.bin.st_train` with frozen bases."""

from espnet_hra.bin.programs import training
from espnet_hra.errors import one_line

main = training("st")

if __name__ == "__main__":
    with one_line("st_train"):
        main()
