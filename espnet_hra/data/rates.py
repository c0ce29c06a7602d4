"""The sampling rates of recordings that no other check reads."""

from pathlib import Path

from espnet_hra.data.intake import check_plain
from espnet_hra.data.lists import KaldiList, read_list
from espnet_hra.data.recordings import in_archive, rate_of
from espnet_hra.errors import DataError

#: Types of ESPnet's data streams whose recordings may have a rate, which it ignores.
WITH_A_RATE = ("sound", "kaldi_ark")


def check_rates(path: str | Path, form: str, wanted: int) -> None:
    """Refuse recordings that ESPnet's loops cannot read, or of another rate.

    Args:
        path: A ``wav.scp``. What cannot be opened is left to ESPnet.
        form: The type of the data stream, one of :data:`WITH_A_RATE`.
        wanted: The model's rate, in Hz.

    Raises:
        DataError: A recording has another, is a command, or is cut by segments, or
            ESPnet cannot open it as of this type.
    """
    found = read_list(path)
    check_plain(Path(path), found)
    if form == "sound":
        check_openable(path, found)
    for utterance, entry in found.entries.items():
        rate = rate_of(entry)
        if rate not in (None, wanted):
            raise DataError(
                f"{path}: {utterance} has {rate:,} Hz, and the model wants {wanted:,}: "
                f"run `espnet-hra format DIR OUT --fs {wanted}` and give OUT "
                "(`espnet-hra transcribe` converts by itself)"
            )


def check_openable(path: str | Path, found: KaldiList | None = None) -> None:
    """Refuse archives in a stream of the type sound, which opens files only.

    Args:
        path: A ``wav.scp``.
        found: What was read of it, if it was.

    Raises:
        DataError: A recording is in an archive.
    """
    for utterance, entry in (found or read_list(path)).entries.items():
        if in_archive(entry):
            raise DataError(
                f"{path}: {utterance} is in an archive ({entry}), which the type sound "
                f"cannot open: give the stream as {path},speech,kaldi_ark"
            )
