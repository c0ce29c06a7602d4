"""Audio of any format: reading, resampling, and conversion to mono FLAC.

Files that libsndfile knows are read by soundfile, everything else by PyAV
(FFmpeg). Both come with ESPnet's training extra, as does soxr, the resampler.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import soundfile

from espnet_hra.data.recordings import ARK_ENTRY, Flaw, expected_size, read_ark
from espnet_hra.errors import UserError
from espnet_hra.files import atomic

#: The sampling rate of what is written, where nothing else is asked for.
SAMPLE_RATE = 16000

#: File endings of audio without a header, and FFmpeg's name of the format.
#: FFmpeg's decoder gives them its default rate (16 kHz for G.722).
RAW_FORMATS = {".g722": "g722"}

#: FFmpeg's names of formats that hold all of their audio. Others are lists of further
#: files and addresses, which a stranger's file must not make this machine read.
SELF_CONTAINED = (
    "aac,ac3,aiff,amr,amrnb,amrwb,asf,au,caf,eac3,flac,g722,"
    "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,wav,w64"
)

PathLike = atomic.PathLike


class AudioError(UserError, ValueError):
    """A recording that cannot be read."""


@dataclass(frozen=True)
class Conversion:
    """One recording to convert.

    Attributes:
        source: The recording as it came.
        target: The FLAC file to write.
        silence: The most silence to leave at either end, in seconds, or None
            to leave all of it.
        rate: The rate of the FLAC file, in Hz.
    """

    source: str
    target: str
    silence: float | None = None
    rate: int = SAMPLE_RATE


def read_audio(
    path: PathLike, *, longest: float | None = None, formats: str | None = None
) -> tuple[np.ndarray, int]:
    """Read a recording of any format, mixed down to one channel.

    Args:
        path: The file, or an entry of an archive (``foo.ark:123``).
        longest: Refuse a longer one, in seconds, before it takes memory. (Archives
            are read whole.)
        formats: FFmpeg's names of the formats that it may try; see
            :data:`SELF_CONTAINED`.

    Returns:
        The samples as float32 in about [-1, 1], and their rate in Hz.

    Raises:
        AudioError: If the file is missing, damaged, empty or of an unknown
            format, or longer than asked for.
    """
    path = os.fspath(path)
    try:
        ark = None if os.path.exists(path) else ARK_ENTRY.fullmatch(path)
        if ark is not None:
            samples, rate = _read_from_ark(ark["path"], int(ark["offset"]))
        elif os.path.splitext(path)[1].lower() in RAW_FORMATS:
            samples, rate = _read_with_av(path, longest, formats)
        else:
            try:
                samples, rate = read_sound(path, path, longest)
            except soundfile.LibsndfileError:
                samples, rate = _read_with_av(path, longest, formats)
    except OSError as error:
        raise AudioError(f"cannot read {path}: {error.strerror or error}") from error
    if samples.size == 0:
        raise AudioError(f"no audio in {path}")
    if not np.isfinite(samples).all():
        raise AudioError(f"samples that are not numbers in {path}")
    return samples, rate


def read_sound(
    source: str | io.BytesIO, path: str, longest: float | None = None
) -> tuple[np.ndarray, int]:
    """Read a recording with libsndfile, mixed down to one channel.

    Args:
        source: A file's name, or the content of one.
        path: Its name, for messages.
        longest: Refuse a longer one, in seconds.

    Raises:
        AudioError: It ends before its header says so (libsndfile takes that for a
            shorter recording), or it is too long.
        soundfile.LibsndfileError: It is of a format that libsndfile does not know.
    """
    with contextlib.ExitStack() as stack:
        file: BinaryIO = (
            stack.enter_context(open(source, "rb"))
            if isinstance(source, str)
            else source
        )
        missing = (expected_size(file, 0) or 0) - file.seek(0, os.SEEK_END)
        file.seek(0)
    with soundfile.SoundFile(source) as sound:
        promised, rate = sound.frames, sound.samplerate
        if longest is not None and longest * rate < promised < 1 << 62:
            raise _too_long(path, longest, promised / rate)
        try:
            samples = _mixed_down(sound, path, longest)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{path} is cut short or damaged: {error}") from error
    if missing > 0 or len(samples) < promised < 1 << 62:
        raise AudioError(
            f"{path} is cut short: it ends before its header says so; copy or convert "
            "it again from its source"
        )
    return samples, rate


def _read_from_ark(path: str, offset: int) -> tuple[np.ndarray, int]:
    """Read a recording from a Kaldi archive, mixed down to one channel."""
    with open(path, "rb") as file:
        missing = (expected_size(file, offset) or 0) - file.seek(0, os.SEEK_END)
    if missing > 0:
        raise AudioError(
            f"{path}:{offset} is cut short: the archive ends before the recording's "
            "header says so; copy or make it again from its source"
        )
    try:
        samples, rate = read_ark(path, offset)
    except Flaw as flaw:
        raise AudioError(f"cannot read {path}:{offset}: {flaw}") from flaw
    if rate is None:
        raise AudioError(
            f"{path}:{offset} does not say its sampling rate: write the archive anew "
            "from its source, with the rate"
        )
    samples = samples.astype(np.float32)
    return (samples if samples.ndim == 1 else samples.mean(axis=1)), rate


def _mixed_down(
    sound: soundfile.SoundFile, path: str, longest: float | None
) -> np.ndarray:
    """All of a file in parts: its channels together may not fit into memory."""
    parts, count = [np.zeros(0, np.float32)], 0
    while len(part := sound.read(1 << 20, dtype="float32", always_2d=True)):
        parts.append(part.mean(axis=1))
        count += len(part)
        # Of some formats the length is not known before their end.
        if longest is not None and count > longest * sound.samplerate:
            raise _too_long(path, longest)
    return np.concatenate(parts)


def _too_long(path: str, longest: float, found: float | None = None) -> AudioError:
    given = "" if found is None else f" ({found:,.0f} s)"
    return AudioError(
        f"{path} is longer{given} than the {longest:,.0f} s that are read"
    )


def _read_with_av(
    path: str, longest: float | None = None, formats: str | None = None
) -> tuple[np.ndarray, int]:
    """Read a recording with PyAV, mixed down to one channel."""
    import av  # not needed for the formats that soundfile reads

    raw_format = RAW_FORMATS.get(os.path.splitext(path)[1].lower())
    chunks: list[np.ndarray] = []
    rate = count = 0
    options = {} if formats is None else {"format_whitelist": formats}
    try:
        with av.open(path, format=raw_format, options=options) as container:
            if not container.streams.audio:
                raise AudioError(f"no audio in {path}")
            resampler: av.AudioResampler | None = None
            for frame in container.decode(audio=0):
                if resampler is None:
                    rate = frame.sample_rate
                    resampler = av.AudioResampler("fltp", frame.layout, rate)
                for part in resampler.resample(frame):
                    chunks.append(part.to_ndarray().mean(axis=0))
                    count += len(chunks[-1])
                if longest is not None and count > longest * rate:
                    raise _too_long(path, longest)
    except av.FFmpegError as error:
        why = error.strerror or error
        raise AudioError(f"cannot read {path} as audio: {why}") from error
    if not chunks:
        raise AudioError(f"no audio in {path}")
    return np.concatenate(chunks).astype(np.float32), rate


def resample(samples: np.ndarray, rate: int, target: int = SAMPLE_RATE) -> np.ndarray:
    """Bring samples to another rate.

    Args:
        samples: One channel.
        rate: Its rate in Hz.
        target: The rate wanted.

    Returns:
        The samples at ``target`` Hz, the same array where nothing changes.
    """
    if rate == target:
        return samples
    import soxr

    return soxr.resample(samples, rate, target, quality="HQ")


def trim_silence(
    samples: np.ndarray, keep: float, rate: int = SAMPLE_RATE
) -> np.ndarray:
    """Cut long silence at the beginning and the end.

    Silence is what lies 35 dB below the loud parts, or below -70 dB, in
    windows of 10 ms.

    Args:
        samples: One channel.
        keep: The most silence to leave at either end, in seconds.
        rate: Of the samples, in Hz.

    Returns:
        The middle part of the samples; all of them where nothing is loud.
    """
    window = rate // 100
    count = len(samples) // window
    if count == 0:
        return samples
    power = np.square(samples[: count * window].reshape(count, window)).mean(axis=1)
    level = 10 * np.log10(power + 1e-14)
    loud = np.flatnonzero(level > max(np.percentile(level, 95) - 35, -70))
    if len(loud) == 0:
        return samples
    margin = round(keep * rate)
    return samples[max(0, loud[0] * window - margin) : (loud[-1] + 1) * window + margin]


def convert(job: Conversion) -> int:
    """Write a recording as mono FLAC of a rate, if that was not done before.

    The file appears under its name only when it is whole, so that an
    interrupted conversion can be taken up again.

    Args:
        job: What to convert.

    Returns:
        The number of samples of the FLAC file.

    Raises:
        AudioError: If the recording cannot be read.
        OSError: If the FLAC file cannot be written.
    """
    try:
        return soundfile.info(job.target).frames
    except soundfile.LibsndfileError:
        pass  # not there yet, or damaged
    samples, rate = read_audio(job.source)
    samples = np.clip(resample(samples, rate, job.rate), -1.0, 1.0)
    if job.silence is not None:
        samples = trim_silence(samples, job.silence, job.rate)
    os.makedirs(os.path.dirname(job.target), exist_ok=True)
    write_flac(job.target, samples, job.rate)
    return len(samples)


def write_flac(path: PathLike, samples: np.ndarray, rate: int) -> None:
    """Write one channel as 16-bit FLAC, in one step.

    Raises:
        OSError: The file cannot be written.
    """
    encoded = io.BytesIO()  # libsndfile does not tell a full disk apart
    soundfile.write(encoded, samples, rate, "PCM_16", format="FLAC")
    atomic.write(path, encoded.getvalue())


def _convert_or_explain(job: Conversion) -> int | str:
    """Convert one recording in a worker; a recording's own fault is a text."""
    try:
        return convert(job)
    except AudioError as error:
        return str(error)


def convert_all(
    jobs: Iterable[Conversion],
    nj: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, int], dict[str, str]]:
    """Convert many recordings in parallel.

    Args:
        jobs: What to convert.
        nj: The number of processes.
        progress: Called after each recording with the number done and the
            number of all.

    Returns:
        The lengths in samples of what was written (by target), and the
        messages about what could not be read (by target).
    """
    jobs = list(jobs)
    lengths: dict[str, int] = {}
    failures: dict[str, str] = {}

    results = in_parallel(_convert_or_explain, jobs, nj, progress)
    for job, result in zip(jobs, results):
        if isinstance(result, str):
            failures[job.target] = result
        else:
            lengths[job.target] = result
    return lengths, failures


def in_parallel[Job, Result](
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    nj: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Result]:
    """Do jobs in several processes, and yield the results in their order.

    Args:
        work: Does one; a function of a module.
        jobs: What to do.
        nj: The number of processes; with 1, it is this one.
        progress: As for :func:`convert_all`.
    """
    with contextlib.ExitStack() as stack:
        results: Iterable[Result] = map(work, jobs)
        if nj > 1 and len(jobs) > 1:
            pool = stack.enter_context(ProcessPoolExecutor(nj))
            results = pool.map(
                work, jobs, chunksize=max(1, min(16, len(jobs) // (4 * nj)))
            )
        for done, result in enumerate(results, 1):
            yield result
            if progress is not None:
                progress(done, len(jobs))
