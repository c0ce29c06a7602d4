#!/usr/bin/env python3
"""Train an adapter: `espnet2.bin.asr_transducer_train` with frozen bases."""

from espnet_hra.bin.programs import training
from espnet_hra.errors import one_line

main = training("asr_transducer")

if __name__ == "__main__":
    with one_line("asr_transducer_train"):
        main()
