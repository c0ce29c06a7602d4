#!/usr/bin/env python3
"""Decode with tasks: `espnet2.bin.s2t_inference` for adapted models."""

from espnet_hra.bin.programs import decoding
from espnet_hra.errors import one_line

main = decoding("s2t")

if __name__ == "__main__":
    with one_line("s2t_inference"):
        main()
