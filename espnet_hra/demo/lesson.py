"""Recordings of a person, and the Kaldi-style folder that a task is taught from."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_hra.data.audio import write_flac
from espnet_hra.data.lists import write_lists
from espnet_hra.data.sentences import hold_out, position, sentence_key
from espnet_hra.errors import DataError

#: Fewest recordings to teach from: one to learn, one to choose by, one to score.
FEWEST = 3

#: Shares of the sentences that are held out: to score, and to choose the epoch by.
_TEST, _DEV = 0.2, 0.1

#: Lengths at which a learning curve is measured, as shares of what is learned.
CURVE = (0.25, 0.5)


@dataclass(frozen=True)
class Parts:
    """Which sentences are for what, by number.

    Attributes:
        train: To learn from.
        dev: To choose the epoch by.
        test: To score; nothing of them is seen in the training.
    """

    train: tuple[int, ...]
    dev: tuple[int, ...]
    test: tuple[int, ...]


class Lesson:
    """Sentences, and the recordings of those that were read.

    Args:
        sentences: The sentences.
        folder: Where recordings and data are kept; made if it is not there.
        rate: The model's sampling rate in Hz.
    """

    def __init__(self, sentences: Sequence[str], folder: Path, rate: int):
        self.sentences = tuple(sentences)
        self.folder, self._rate = folder, rate
        self._kept: dict[int, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def recorded(self) -> tuple[int, ...]:
        """Numbers of the sentences that have a recording, from 0."""
        return tuple(sorted(self._kept))

    def recording(self, number: int) -> Path | None:
        """The recording of a sentence, if there is one."""
        return self._kept.get(number)

    def keep(self, number: int, wave: np.ndarray) -> None:
        """Keep the recording of a sentence in place of an earlier one.

        Args:
            number: Of the sentence, from 0.
            wave: Samples at the model's rate, (samples,).
        """
        path = self.folder / "audio" / f"{_utterance(number)}.flac"
        path.parent.mkdir(exist_ok=True)
        write_flac(path, np.clip(wave, -1.0, 1.0), self._rate)
        self._kept[number] = path

    def forget(self, number: int) -> None:
        """Delete the recording of a sentence."""
        path = self._kept.pop(number, None)
        if path is not None:
            path.unlink(missing_ok=True)

    def next_open(self, number: int) -> int:
        """The next sentence without a recording after this one; or the following."""
        count = len(self.sentences)
        for step in range(1, count + 1):
            if (number + step) % count not in self._kept:
                return (number + step) % count
        return (number + 1) % count

    def parts(self) -> Parts:
        """What is learned and what is held out, by sentence.

        A sentence is in the same part whenever it was recorded; the share held out to
        be scored is a fifth, of five sentences or more two at least.

        Raises:
            DataError: There are too few recordings, or too few different sentences.
        """
        numbers = self.recorded
        texts = {str(n): self.sentences[n] for n in numbers}
        different = {sentence_key(text.lower()) for text in texts.values()}
        if len(different) < FEWEST:
            raise DataError(
                f"{len(different)} different sentences are recorded: {FEWEST} are "
                "needed at least, and from twenty on it is worth while."
            )
        least = 2 / len(different) if len(different) >= 5 else 0.0
        test = hold_out(texts, max(_TEST, least))
        rest = {n: text for n, text in texts.items() if n not in test}
        dev = hold_out(rest, _DEV)
        return Parts(
            tuple(n for n in numbers if str(n) in rest and str(n) not in dev),
            tuple(n for n in numbers if str(n) in dev),
            tuple(n for n in numbers if str(n) in test),
        )

    def smaller(self, parts: Parts, share: float) -> Parts:
        """The same with fewer sentences to learn from; the smaller are in the larger.

        Args:
            parts: Of :meth:`parts`.
            share: How many of them, rounded; one at least.
        """
        order = sorted(parts.train, key=lambda n: (position(self.sentences[n]), n))
        count = max(1, round(share * len(order)))
        return Parts(tuple(sorted(order[:count])), parts.dev, parts.test)

    def write(self, texts: Sequence[str], parts: Parts, name: str) -> Path:
        """Write the data of a training: ``train``, ``dev`` and ``test``, Kaldi-style.

        Args:
            texts: Each sentence as the model writes it.
            parts: Which are for what.
            name: Of the folder; an earlier one goes.

        Returns:
            The folder.
        """
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        for part in ("train", "dev", "test"):
            numbers = getattr(parts, part)
            lists = {
                "wav.scp": [
                    f"{_utterance(n)} {self._kept[n].resolve()}" for n in numbers
                ],
                "text": [f"{_utterance(n)} {texts[n]}" for n in numbers],
            }
            write_lists(folder / part, lists)
        return folder


def _utterance(number: int) -> str:
    """The name of a sentence's recording; sorted by name is sorted by number."""
    return f"sentence{number + 1:04d}"
