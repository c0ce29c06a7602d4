#!/usr/bin/env python3
"""Align texts with tasks: `espnet2.bin.s2t_align` for adapted models of s2t_ctc."""

from espnet_hra.bin.aligning import aligning
from espnet_hra.errors import one_line

main = aligning("s2t_ctc")

if __name__ == "__main__":
    with one_line("s2t_ctc_align"):
        main()
