"""What the header of a recording promises, to find files that end early.

libsndfile takes a file that ends early for a shorter recording. Only the header tells,
and only these formats have a length there that libsndfile ignores.
"""

import os
import re
from typing import BinaryIO, Literal

#: A WAV header that claims more than this was written to a pipe, by a program that
#: could not go back to fill in the length (sox leaves 0x7FFFF..., FFmpeg 0xFFFFFFFF).
_UNKNOWN_SIZE = 0x7FFF0000

_Order = Literal["little", "big"]


def expected_size(handle: BinaryIO, base: int) -> int | None:
    """The size that a file must at least have, by the header of a recording in it.

    Args:
        handle: The open file.
        base: Where the recording starts.

    Returns:
        The number of bytes up to its end, None if the header does not say.
    """
    handle.seek(base)
    head = handle.read(1024)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        order: _Order = "big" if head[:4] == b"RIFX" else "little"
        return _chunk_end(handle, base, b"data", order)
    if head[:4] == b"FORM":
        return _chunk_end(handle, base, b"SSND", "big")
    if head[:4] == b".snd" and len(head) >= 12:
        start, size = (int.from_bytes(head[i : i + 4], "big") for i in (4, 8))
        return base + start + size if size < _UNKNOWN_SIZE else None
    if head[:7] == b"NIST_1A":
        fields = dict(re.findall(rb"^(\w+) -\w+ (\S+)", head, re.MULTILINE))
        names = (b"sample_count", b"channel_count", b"sample_n_bytes")
        try:
            start = int(head[8:16])
            count, channels, width = (int(fields[name]) for name in names)
        except (KeyError, ValueError):
            return None
        if fields.get(b"sample_coding", b"pcm") not in (b"pcm", b"ulaw", b"alaw"):
            return None  # compressed
        return base + start + count * channels * width
    if head[:4] == b"OggS" and base == 0:
        return _last_ogg_page_end(handle)
    return None


def _chunk_end(handle: BinaryIO, base: int, wanted: bytes, order: _Order) -> int | None:
    """The end of a chunk of a RIFF or AIFF file (None: its length is not given)."""
    position = base + 12
    wide_size = None
    for _ in range(1000):  # a damaged file may hold millions of empty chunks
        handle.seek(position)
        head = handle.read(8)
        if len(head) < 8:
            # No samples up to the end of the file; is this the end that it promises?
            handle.seek(base + 4)
            size = int.from_bytes(handle.read(4), order)
            return base + 8 + size if size < _UNKNOWN_SIZE else None
        size = int.from_bytes(head[4:], order)
        if head[:4] == b"ds64":
            wide_size = int.from_bytes(handle.read(16)[8:], "little")
        if head[:4] == wanted:
            if size == 0xFFFFFFFF and wide_size is not None:
                size = wide_size
            elif size >= _UNKNOWN_SIZE:
                return None
            return position + 8 + size
        position += 8 + size + size % 2
    return None


def _last_ogg_page_end(handle: BinaryIO) -> int | None:
    """Where the last page that begins in an Ogg file should end."""
    longest = 27 + 255 + 255 * 255
    size = handle.seek(0, os.SEEK_END)
    start = max(0, size - longest)
    handle.seek(start)
    tail = handle.read()
    page = tail.rfind(b"OggS")
    if page < 0:
        return None
    header = tail[page : page + 27]
    if len(header) < 27:
        return start + page + 27
    sizes = tail[page + 27 : page + 27 + header[26]]
    return start + page + 27 + header[26] + sum(sizes)
