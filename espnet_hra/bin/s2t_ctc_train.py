#!/usr/bin/env python3
"""Train an adapter: `espnet2.bin.s2t_train_ctc` with frozen bases."""

from espnet_hra.bin.programs import training
from espnet_hra.errors import one_line

main = training("s2t_ctc")

if __name__ == "__main__":
    with one_line("s2t_ctc_train"):
        main()
