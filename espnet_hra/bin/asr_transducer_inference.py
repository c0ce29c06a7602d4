#!/usr/bin/env python3
"""Decode with tasks: `espnet2.bin.asr_transducer_inference` for adapted models."""

from espnet_hra.bin.programs import decoding
from espnet_hra.errors import one_line

main = decoding("asr_transducer")

if __name__ == "__main__":
    with one_line("asr_transducer_inference"):
        main()
