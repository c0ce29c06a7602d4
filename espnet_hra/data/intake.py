"""Kaldi's ways to name recordings, and how they become plain files.

``wav.scp`` may name a file (relative to the folder where the recipe of the data ran),
an entry of an archive (``foo.ark:123``) or a command whose output is the recording
(``sph2pipe -f wav a.sph |``), and ``segments`` may cut utterances out of them. ESPnet's
programs read files and archives only. Whatever is not plain is formatted by
`espnet-hra format` and by stage 3 of the recipe, and refused everywhere else
(:func:`check_plain`), with the remedy.

Commands are run by a shell, as Kaldi does, and only where the user asks for that: they
are programs that came with the data.
"""

import hashlib
import io
import os
import re
import shlex
import stat
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from espnet_hra.data.audio import (
    SAMPLE_RATE,
    AudioError,
    in_parallel,
    read_audio,
    read_sound,
    resample,
    write_flac,
)
from espnet_hra.data.lists import KaldiList, read_entries, read_list
from espnet_hra.data.progress import Progress
from espnet_hra.data.recordings import ARK_ENTRY, RUN_COMMANDS, is_command
from espnet_hra.errors import DataError
from espnet_hra.names import listing

#: How far a segment may go beyond the end of its recording, in seconds; as for Kaldi's
#: extract-segments.
OVERSHOOT = 0.5

#: What is done about `segments`.
CUT = "run `espnet-hra format DIR OUT`, which cuts them, and give OUT"


@dataclass(frozen=True)
class Piece:
    """What an utterance is: a recording, or a part of one.

    Attributes:
        recording: The recording's id.
        entry: Of ``wav.scp``, with paths that hold in any folder.
        start: Where it begins, in seconds.
        end: Where it ends, in seconds; None for the end of the recording.
    """

    recording: str
    entry: str
    start: float = 0.0
    end: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its recording."""
        return self.start == 0 and self.end is None


# ------------------------------------------------------------------------------- paths


def places(folder: Path) -> list[Path]:
    """Where the recipe of data may have run: here, in their folder, or above it."""
    folder = folder.absolute()
    return [Path.cwd(), folder, *list(folder.parents)[:3]]


def settle(entry: str, folder: Path, root: Path | None = None) -> str:
    """An entry of ``wav.scp`` with paths that hold in any folder.

    Args:
        entry: The entry.
        folder: Where the list is.
        root: The folder where the recipe of the data ran; None to look for it.
    """
    found = [root.absolute()] if root is not None else places(folder)
    if not entry or entry.startswith("|"):
        return entry
    if is_command(entry):
        words = [word for word in _words(entry) if not os.path.isabs(word)]
        for place in found:
            if root is not None or any(_is_file(place / word) for word in words):
                return f"cd {shlex.quote(str(place))} && {entry}"
        return entry
    for place in found:
        if _is_file(place / entry):
            return str(place / entry)
    ark = ARK_ENTRY.fullmatch(entry)
    if ark:
        for place in found:
            if _is_file(place / ark["path"]):
                return f"{place / ark['path']}:{ark['offset']}"
    # A missing file is for a check to report, with all others of its kind.
    return str(found[0] / entry)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name; a NUL character
        return False


def _words(command: str) -> list[str]:
    """The words of a command, as a shell takes them; for a look at its files only."""
    try:
        return shlex.split(command.rstrip().rstrip("|"))
    except ValueError:
        return command.split()


# ------------------------------------------------------------------------------- lists


def read_pieces(
    folder: Path, *, root: Path | None = None, run_pipes: bool = False
) -> dict[str, Piece]:
    """The utterances of a Kaldi-style folder: ``wav.scp``, cut by ``segments``.

    Args:
        folder: The folder.
        root: The folder where the recipe of the data ran; None to look for it.
        run_pipes: Whether commands may be run.

    Raises:
        DataError: A list is missing or damaged, or there are commands, which may not
            be run.
    """
    entries = read_entries(folder / "wav.scp")
    if not run_pipes:
        _refuse_commands(folder / "wav.scp", entries)
    settled = {name: settle(entry, folder, root) for name, entry in entries.items()}
    segments = folder / "segments"
    if not segments.exists():
        return {name: Piece(name, entry) for name, entry in settled.items()}
    pieces = {}
    for utterance, line in read_entries(segments).items():
        recording, start, end = _segment(f"{segments}: {utterance}", line)
        if recording not in settled:
            raise DataError(
                f"{segments}: {utterance} is cut out of {recording!r}, which wav.scp "
                "does not have: add the recording, or remove the line "
                "(utils/fix_data_dir.sh does)"
            )
        pieces[utterance] = Piece(recording, settled[recording], start, end)
    return pieces


def _segment(where: str, line: str) -> tuple[str, float, float | None]:
    """Recording, start and end of a line of segments."""
    columns = line.split()
    if len(columns) == 4 and columns[3].isdigit():
        raise DataError(
            f"{where} names a channel, {columns[3]}, which is not read: let wav.scp "
            "name a recording for each channel (sph2pipe -c, sox remix)"
        )
    try:
        recording, first, last = columns
        start, end = float(first), float(last)
    except ValueError:
        raise DataError(
            f"{where} has {line!r}; a line is an utterance, its recording, and where "
            "it begins and ends there in seconds"
        ) from None
    if end == -1:  # Kaldi's word for the end of the recording
        return recording, start, None
    if not 0 <= start < end < float("inf"):
        raise DataError(
            f"{where} goes from {first} to {last} seconds: correct or remove the line"
        )
    return recording, start, end


def read_speakers(folder: Path) -> dict[str, str] | None:
    """The speakers by utterance: of ``utt2spk`` or ``spk2utt``; None without either.

    Raises:
        DataError: The list is damaged, or an utterance has two speakers.
    """
    if (folder / "utt2spk").exists():
        return read_entries(folder / "utt2spk")
    if not (folder / "spk2utt").exists():
        return None
    speakers: dict[str, str] = {}
    for speaker, utterances in read_entries(folder / "spk2utt").items():
        for utterance in utterances.split():
            if utterance in speakers:
                raise DataError(
                    f"{folder}/spk2utt: {utterance} has two speakers, "
                    f"{speakers[utterance]} and {speaker}: correct one line"
                )
            speakers[utterance] = speaker
    return speakers


def has_segments(wav_scp: str | os.PathLike[str]) -> bool:
    """Whether a file ``segments`` beside a list cuts its recordings."""
    return os.path.exists(os.path.join(os.path.dirname(wav_scp), "segments"))


def check_plain(wav_scp: Path, found: KaldiList | None = None) -> None:
    """Refuse a list of recordings that must be formatted first.

    Args:
        wav_scp: The list.
        found: What was read of it, if it was.

    Raises:
        DataError: There are commands or segments.
    """
    if has_segments(wav_scp):
        raise DataError(
            f"{wav_scp.parent}/segments: utterances are parts of the recordings here: "
            f"{CUT}"
        )
    _refuse_commands(wav_scp, (found or read_list(wav_scp)).entries)


def _refuse_commands(wav_scp: Path, entries: Mapping[str, str]) -> None:
    named = [name for name, entry in entries.items() if is_command(entry)]
    if named:
        raise DataError(
            f"{wav_scp}: commands stand in place of files, and are not executed unless "
            f"you ask for it ({listing(sorted(named), 3)}): {RUN_COMMANDS}"
        )


# --------------------------------------------------------------------------- recordings


def read_recording(entry: str) -> tuple[np.ndarray, int]:
    """Read what an entry of ``wav.scp`` names; commands are run.

    Returns:
        The samples of one channel, and their rate in Hz.

    Raises:
        AudioError: It cannot be read to its end.
    """
    return _run(entry) if is_command(entry) else read_audio(entry)


def _run(entry: str) -> tuple[np.ndarray, int]:
    """The recording that a command writes."""
    if entry.startswith("|"):
        raise AudioError(f"a command that takes a recording, and gives none: {entry}")
    command = entry.rstrip().removesuffix("|")
    # Without pipefail only the last program of several is asked how it went.
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    said = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
    if done.returncode:
        hint = "; install it, or add its folder to PATH" * (done.returncode == 127)
        raise AudioError(
            f"a command ended with status {done.returncode}"
            f"{f' ({said[-1].strip()})' if said else ''}{hint}: {command.strip()}"
        )
    if not done.stdout:
        raise AudioError(f"a command wrote nothing: {command.strip()}")
    try:
        return read_sound(io.BytesIO(done.stdout), f"what {command.strip()!r} wrote")
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"what a command wrote is no recording ({error.error_string}); let it "
            f"write WAV: {command.strip()}"
        ) from error


def _part(
    samples: np.ndarray, rate: int, start: float, end: float | None
) -> np.ndarray:
    """Cut an utterance out of its recording."""
    length = len(samples) / rate
    if start >= length or (end is not None and end - length > OVERSHOOT):
        upto = "its end" if end is None else f"{end:g}"
        raise AudioError(
            f"the segment from {start:g} to {upto} seconds goes beyond the end of the "
            f"recording, {length:.2f} s"
        )
    last = len(samples) if end is None else round(end * rate)
    return samples[round(start * rate) : last]


@dataclass(frozen=True)
class _Job:
    """A recording, and the FLAC files to make of its parts."""

    entry: str
    parts: tuple[tuple[str, float, float | None], ...]
    rate: int


def _extract(job: _Job) -> dict[str, str]:
    """Write the parts of a recording that are not there; what failed, by target."""
    missing = [part for part in job.parts if not _is_whole_flac(part[0])]
    if not missing:
        return {}
    try:
        samples, rate = read_recording(job.entry)
    except AudioError as error:
        return dict.fromkeys((target for target, _, _ in missing), str(error))
    failures = {}
    for target, start, end in missing:
        try:
            part = resample(_part(samples, rate, start, end), rate, job.rate)
        except AudioError as error:
            failures[target] = f"{error}: {job.entry}"
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        write_flac(target, np.clip(part, -1.0, 1.0), job.rate)
    return failures


def _is_whole_flac(path: str) -> bool:
    try:
        soundfile.info(path)
    except soundfile.LibsndfileError:
        return False
    return True


def is_ready(path: str, rate: int) -> bool:
    """Whether a file is mono FLAC or WAV of a rate, which ESPnet reads as it is."""
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError):
        return False
    return (
        info.format in ("FLAC", "WAV", "WAVEX")
        and info.samplerate == rate
        and info.channels == 1
    )


def stamp(entry: str) -> str:
    """What changes when the files behind an entry do, without reading them."""
    names = [entry]
    if is_command(entry):
        words = _words(entry)
        root = words[1] if words[:1] == ["cd"] else ""  # from settle()
        names = [os.path.join(root, word) for word in words]
    elif ark := ARK_ENTRY.fullmatch(entry):
        names.append(ark["path"])
    stamps = [entry]
    for name in names:
        try:
            status = os.stat(name)
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode):  # a folder changes with all that is in it
            stamps.append(f"{status.st_size} {status.st_mtime_ns}")
    # Names have been written so since the first version: nothing is converted again.
    return " ".join(stamps) if len(stamps) > 1 else f"{entry} missing"


def _target(utterance: str, piece: Piece, audio: Path, rate: int) -> str:
    """The FLAC file of an utterance; another one if source, part or rate change."""
    kind = "" if rate == SAMPLE_RATE else f" at {rate}"
    if not piece.is_whole:
        kind += f" from {piece.start} to {piece.end}"
    digest = hashlib.sha256(f"{stamp(piece.entry)}{kind}".encode()).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", utterance.replace("/", "-"))
    return str(audio.absolute() / f"{name[:100]}-{digest}.flac")


@dataclass(frozen=True)
class Formatted:
    """What became of utterances.

    Attributes:
        paths: The file of each; of one that failed, where it was or would be.
        failures: What is wrong with those that failed.
        converted: How many have a new file.
    """

    paths: dict[str, str]
    failures: dict[str, str]
    converted: int


def make_plain(
    pieces: Mapping[str, Piece], audio: Path, rate: int = SAMPLE_RATE, nj: int = 2
) -> Formatted:
    """Give every utterance a file of its own that ESPnet reads.

    What is one already stays where it lies. A recording of several utterances is read
    once. What was made before is not made again.

    Args:
        pieces: From :func:`read_pieces`.
        audio: The folder for new files, mono FLAC.
        rate: Their rate in Hz.
        nj: The number of processes.
    """
    paths, owners = {}, {}
    parts: dict[str, list[tuple[str, float, float | None]]] = defaultdict(list)
    for utterance, piece in pieces.items():
        paths[utterance] = piece.entry
        if not (piece.is_whole and is_ready(piece.entry, rate)):
            target = _target(utterance, piece, audio, rate)
            paths[utterance] = owners[utterance] = target
            parts[piece.entry].append((target, piece.start, piece.end))
    jobs = [_Job(entry, tuple(cuts), rate) for entry, cuts in parts.items()]
    failed: dict[str, str] = {}
    for result in in_parallel(_extract, jobs, nj, Progress("read")):
        failed.update(result)
    failures = {u: failed[target] for u, target in owners.items() if target in failed}
    for utterance in failures:
        piece = pieces[utterance]
        if piece.is_whole and not is_command(piece.entry):
            paths[utterance] = piece.entry
    return Formatted(paths, failures, len(owners) - len(failures))


def some_failures(failures: Mapping[str, str], limit: int = 5) -> Iterator[str]:
    """Lines about the first of what failed, and the number of the others."""
    for utterance in list(failures)[:limit]:
        yield f"{utterance}: {failures[utterance]}"
    if len(failures) > limit:
        yield f"... and {len(failures) - limit:,} more"


def parts_of(folder: Path, names: Sequence[str] = ("train", "dev", "valid", "test")):
    """The data folders of a folder: itself if it has ``wav.scp``, or those within.

    Raises:
        DataError: There is none.
    """
    if (folder / "wav.scp").exists():
        return {"": folder}
    found = {
        name: folder / name for name in names if (folder / name / "wav.scp").exists()
    }
    if not found:
        raise DataError(
            f"{folder}: there is no wav.scp in it, nor in {', '.join(names)} within; "
            "write a line for each recording: its id, a space, its path"
        )
    return found
