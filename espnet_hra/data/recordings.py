"""Recordings: each is read in full, in blocks, several at once."""

import functools
import itertools
import logging
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import soundfile

from espnet_hra.data.problems import Problem, number
from espnet_hra.data.progress import Progress

logger = logging.getLogger(__name__)

#: A recording whose loudest sample is below this is called silent (-80 dBFS; a 16-bit
#: recording of nothing but dither stays below, whispered speech does not).
SILENT_PEAK = 1e-4

#: A WAV header that claims more than this was written to a pipe, by a program that
#: could not go back to fill in the length (sox leaves 0x7FFFF..., FFmpeg 0xFFFFFFFF).
_UNKNOWN_SIZE = 0x7FFF0000

_BLOCK = 1 << 18  # samples read at once: long recordings need no more memory

#: An entry of an archive, as wav.scp names it.
ARK_ENTRY = re.compile(r"(?P<path>.+):(?P<offset>\d+)")


class _Audio(NamedTuple):
    """A recording: its length at the rate wanted (0: unknown), and its problems."""

    samples: int
    problems: list[Problem]


class Flaw(Exception):
    """A recording that cannot be read to its end."""

    def __init__(self, kind: str, detail: str, remedy: str):
        super().__init__(detail)
        self.kind, self.detail, self.remedy = kind, detail, remedy


class _Levels:
    """Extremes of a signal that arrives in blocks."""

    def __init__(self) -> None:
        self.samples = 0
        self.not_finite = 0
        self.low, self.high = math.inf, -math.inf

    def add(self, block: np.ndarray) -> None:
        """Take in a block of samples [samples] or [samples, channels]."""
        self.samples += len(block)
        if block.size:
            low, high = float(block.min()), float(block.max())
            if not math.isfinite(low) or not math.isfinite(high):
                self.not_finite += int(np.count_nonzero(~np.isfinite(block)))
            self.low, self.high = min(self.low, low), max(self.high, high)


_REMEDY_FORMAT = "Convert it: run `espnet-hra format DIR OUT` and give OUT."
#: What is done about commands.
RUN_COMMANDS = (
    "run `espnet-hra format DIR OUT --run_pipes true` and give OUT (the recipe takes "
    "--run_pipes true too), if you trust who wrote them"
)
_REMEDY_COPY = "Copy or convert the recording again from its source, or leave it out."


def read_all(
    entries: Mapping[str, str], sample_rate: int, jobs: int | None
) -> Iterator[tuple[str, _Audio]]:
    """Read all recordings, several at once, and yield them in order of the list."""
    if jobs is None:
        jobs = min(8, _cpus())
    # libsndfile decodes without Python's lock, so threads are enough. They get lists:
    # a million recordings must not become a million futures.
    batches = list(itertools.batched(entries.items(), 32))
    look = functools.partial(_check_batch, sample_rate=sample_rate)
    pool = ThreadPoolExecutor(max(1, jobs))
    progress, done = Progress("checked", logger.info), 0
    try:
        for results in pool.map(look, batches):
            yield from results
            done += len(results)
            progress(done, len(entries))
    finally:
        # After Ctrl-C nobody waits for the recordings that were not begun.
        pool.shutdown(cancel_futures=True)


def _cpus() -> int:
    """The number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_batch(
    batch: Iterable[tuple[str, str]], sample_rate: int
) -> list[tuple[str, _Audio]]:
    return [(utt, _check_audio(utt, entry, sample_rate)) for utt, entry in batch]


def _check_audio(utterance: str, entry: str, sample_rate: int) -> _Audio:
    """Read one recording in full."""
    problems: list[Problem] = []

    def tell(kind: str, detail: str, remedy: str) -> None:
        problems.append(Problem(kind, utterance, detail, remedy))

    try:
        levels, rate, channels = _measure(entry)
    except Flaw as flaw:
        tell(flaw.kind, flaw.detail, flaw.remedy)
        return _Audio(0, problems)
    samples = levels.samples
    if rate is not None and rate != sample_rate:
        tell(
            "sample rate",
            f"{rate} Hz, expected {sample_rate} Hz: {entry}",
            f"Resample to {sample_rate} Hz: `espnet-hra format DIR OUT --fs "
            f"{sample_rate}`, and give OUT.",
        )
        samples = math.ceil(samples * sample_rate / max(1, rate))
    if channels > 1:
        tell(
            "several channels",
            f"{channels} channels, expected one: {entry}",
            "Mix down: run `espnet-hra format DIR OUT` and give OUT.",
        )
    if levels.not_finite:
        tell(
            "not a number",
            f"{number(levels.not_finite, 'sample')} of {levels.samples:,} are NaN or "
            f"infinite: {entry}",
            _REMEDY_COPY,
        )
    elif levels.samples:
        peak = (levels.high - levels.low) / 2  # a constant offset is no sound
        if peak == 0:
            silent = f"all samples are {levels.low:g}"
        elif peak < SILENT_PEAK:
            silent = f"the peak is {20 * math.log10(peak):.0f} dBFS"
        else:
            return _Audio(samples, problems)
        tell(
            "silent audio",
            f"{silent}: {entry}",
            "Leave the utterance out, or record it anew.",
        )
    else:
        tell("empty audio", f"no samples: {entry}", _REMEDY_COPY)
    return _Audio(samples, problems)


def _measure(entry: str) -> tuple[_Levels, int | None, int]:
    """Read the recording that an entry of wav.scp names.

    Returns:
        Its levels, sampling rate (None if the archive has none) and channels.

    Raises:
        Flaw: If it cannot be read to its end.
    """
    if not entry or entry == "None":
        raise Flaw(
            "missing audio",
            "wav.scp names no recording",
            "Write the path behind the id in wav.scp, or leave the utterance out.",
        )
    if is_command(entry):
        raise Flaw(
            "pipe",
            f"is a command, which neither this check nor training runs: {entry}",
            f"Format first: {RUN_COMMANDS}.",
        )
    ark = None if _exists(entry) else ARK_ENTRY.fullmatch(entry)
    path, offset = (ark["path"], int(ark["offset"])) if ark else (entry, None)
    try:
        info = os.stat(path)
    except (OSError, ValueError) as error:
        columns = entry.split()
        if len(columns) > 1 and all(map(_exists, columns)):
            raise Flaw(
                "several channels",
                f"{len(columns)} files, expected one: {entry}",
                "Mix down: run `espnet-hra format DIR OUT` and give OUT.",
            ) from None
        reason = getattr(error, "strerror", None) or str(error)
        seen_from = "" if os.path.isabs(path) else f" (seen from {os.getcwd()})"
        raise Flaw(
            "missing audio",
            f"{reason}: {path}{seen_from}",
            "Correct the path in wav.scp (relative paths start where training is "
            "started; `espnet-hra format DIR OUT` also looks in DIR and above), "
            "restore the file, or leave the utterance out.",
        ) from None
    if not stat.S_ISREG(info.st_mode):
        # Opening a named pipe would wait for ever.
        raise Flaw("unreadable audio", f"is not a file: {path}", _REMEDY_FORMAT)
    if info.st_size == 0:
        raise Flaw("empty audio", f"the file has no bytes: {path}", _REMEDY_COPY)
    try:
        with open(path, "rb") as handle:
            missing = (expected_size(handle, offset or 0) or 0) - info.st_size
    except OSError as error:
        raise Flaw(
            "unreadable audio", f"{error.strerror or error}: {path}", _REMEDY_COPY
        ) from None
    if missing > 0:
        raise Flaw(
            "truncated audio",
            f"{number(missing, 'byte')} of what the header promises are missing: "
            f"{entry}",
            _REMEDY_COPY,
        )
    return _measure_file(path) if offset is None else _measure_ark(path, offset)


def in_archive(entry: str) -> bool:
    """Whether an entry of a ``wav.scp`` is a place in an archive: ``file.ark:13``."""
    return not _exists(entry) and ARK_ENTRY.fullmatch(entry) is not None


def rate_of(entry: str) -> int | None:
    """The rate of a recording in Hz, from its header; None if it does not say.

    Args:
        entry: Of a ``wav.scp``. What cannot be opened has no rate.
    """
    ark = None if _exists(entry) else ARK_ENTRY.fullmatch(entry)
    try:
        if ark is None:
            return soundfile.info(entry).samplerate if _exists(entry) else None
        return _measure_ark(ark["path"], int(ark["offset"]))[1]
    except (Flaw, OSError, RuntimeError, TypeError, ValueError):
        return None


def _measure_file(path: str) -> tuple[_Levels, int, int]:
    """Read a sound file in blocks; see :func:`_measure`."""
    levels = _Levels()
    promised = None
    try:
        with soundfile.SoundFile(path) as sound:
            promised = sound.frames
            rate, channels = sound.samplerate, sound.channels
            if promised > 1 << 62:
                # A FLAC file from a pipe. ESPnet asks for all samples at once, which
                # needs their number.
                raise Flaw(
                    "unreadable audio",
                    f"its header does not say how long it is: {path}",
                    _REMEDY_FORMAT,
                )
            while len(block := sound.read(_BLOCK, dtype="float32")):
                levels.add(block)
    # TypeError: soundfile asks for the rate of a file whose name ends in .raw.
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        if promised is None:
            reason = getattr(error, "error_string", None) or str(error)
            raise Flaw("unreadable audio", f"{reason} {path}", _REMEDY_FORMAT) from None
        raise Flaw(
            "truncated audio",
            f"decoding fails after {levels.samples:,} or more of the {promised:,} "
            f"samples that the header promises (truncated or damaged): {path}",
            _REMEDY_COPY,
        ) from None
    if levels.samples < promised:
        raise Flaw(
            "truncated audio",
            f"{levels.samples:,} samples, but the header promises {promised:,}: {path}",
            _REMEDY_COPY,
        )
    return levels, rate, channels


def _measure_ark(path: str, offset: int) -> tuple[_Levels, int | None, int]:
    """Read a recording from a Kaldi archive; see :func:`_measure`."""
    value, rate = read_ark(path, offset)
    levels = _Levels()
    levels.add(value)
    return levels, rate, 1 if value.ndim == 1 else value.shape[1]


def read_ark(path: str, offset: int) -> tuple[np.ndarray, int | None]:
    """Read a recording from a Kaldi archive.

    Args:
        path: The archive.
        offset: Where its value begins there.

    Returns:
        The samples in about [-1, 1], of shape [samples] or [samples, channels], and
        their rate in Hz if the archive has it.

    Raises:
        Flaw: It cannot be read, or is no recording.
    """
    # ESPnet reads archives with it as well. (kaldiio runs what is pickled in one.)
    from omniio import kaldi

    try:
        # Never by name: a name is run by a shell if it looks like a command.
        with open(path, "rb") as handle:
            handle.seek(offset)
            value = kaldi.load_mat(handle)
    except Exception as error:  # damaged binary data can raise anything
        raise Flaw(
            "unreadable audio",
            f"{type(error).__name__}: {error}: {path}:{offset}",
            _REMEDY_COPY,
        ) from None
    rate = None
    if isinstance(value, tuple):
        rate, value = value if isinstance(value[0], int) else value[::-1]
    value = np.asarray(value)
    if rate is None and value.ndim > 1:
        raise Flaw(
            "unreadable audio",
            f"a matrix of {value.shape[0]} x {value.shape[1]} features, expected a "
            f"waveform: {path}:{offset}",
            "Give the recordings instead of features.",
        )
    if value.dtype.kind in "iu":
        value = value.astype(np.float32) / 2.0 ** (8 * value.dtype.itemsize - 1)
    return value, rate


def expected_size(handle: BinaryIO, base: int) -> int | None:
    """The size that a file must at least have, by the header of a recording in it.

    libsndfile takes a file that ends early for a shorter recording. Only the header
    tells, and only these formats have a length there that libsndfile ignores.

    Args:
        handle: The open file.
        base: Where the recording starts.

    Returns:
        The number of bytes up to its end, None if the header does not say.
    """
    handle.seek(base)
    head = handle.read(1024)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return _chunk_end(
            handle, base, b"data", "big" if head[:4] == b"RIFX" else "little"
        )
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


def _chunk_end(
    handle: BinaryIO, base: int, wanted: bytes, order: Literal["big", "little"]
) -> int | None:
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


def is_command(entry: str) -> bool:
    """Whether an entry of ``wav.scp`` is a command, as Kaldi writes them."""
    return entry.endswith("|") or entry.startswith("|")


def _exists(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a NUL character
        return False
