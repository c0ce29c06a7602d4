#!/usr/bin/env python3
"""Align texts with tasks: `espnet2.bin.asr_align` for adapted models."""

from espnet_hra.bin.aligning import aligning
from espnet_hra.errors import one_line

main = aligning("asr")

if __name__ == "__main__":
    with one_line("asr_align"):
        main()
