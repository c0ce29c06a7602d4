"""The voices of tasks: where they come from, and where they are kept.

What a voice is: :mod:`espnet_hra.tasks.voice`.

A training writes the voices of its tasks into ``voices.json`` beside its checkpoints,
and whatever makes files of them (``tasks add``, ``adapt``, ``tasks export``, packs)
takes them from there. ``espnet-hra tasks voice`` does it for tasks that have none.
"""

import argparse
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_hra.errors import DataError, TaskError
from espnet_hra.files import atomic
from espnet_hra.tasks.voice import Voice, spectra

logger = logging.getLogger(__name__)

#: The file beside checkpoints.
FILE = "voices.json"

#: Utterances that are listened to for each task, evenly spaced in its sorted list.
UTTERANCES = 96

#: ESPnet's names of what is read as samples.
_SOUND = ("sound", "multi_columns_sound", "kaldi_ark")

_FORMAT = "espnet-hra voices 1"


def measured(waves: Iterable[Any], rate: int) -> Voice | None:
    """The voice of a task.

    Args:
        waves: Some of its utterances: (samples), or (samples, channels).
        rate: In Hz.

    Returns:
        None if there are none.
    """
    found = []
    for wave in waves:
        samples = np.asarray(wave)
        if samples.ndim == 2:
            samples = samples.mean(axis=1)
        found.append(spectra(samples, rate))
    return Voice.of(found)


def some(utterances: Sequence[str]) -> list[str]:
    """The utterances of a task that are listened to."""
    names = sorted(utterances)
    if len(names) <= UTTERANCES:
        return names
    return [names[i * len(names) // UTTERANCES] for i in range(UTTERANCES)]


# -------------------------------------------------------------------------- training


def of_training(args: argparse.Namespace, model: Any) -> dict[str, Voice]:
    """The voices of the tasks of a training, from its own data.

    Args:
        args: Its options.
        model: With these tasks.
    """
    from espnet2.train.dataset import ESPnetDataset

    from espnet_hra.data.requirements import requirements_from_config

    streams = args.train_data_path_and_name_and_type
    speech = [stream for stream in streams if stream[1] == "speech"]
    if any(kind not in _SOUND for *_, kind in speech):
        raise DataError(f"the training has features, and no sound: {speech}")
    utt2task: dict[str, str] = {}
    for path, name, _ in streams:
        if name == "utt2task":
            with open(path, encoding="utf-8") as file:
                for line in file:
                    utterance, _, task = line.partition(" ")
                    utt2task[utterance] = task.strip()
    data = ESPnetDataset(speech, preprocess=None)
    utterances: dict[str, list[str]] = {name: [] for name in model.encoder.tasks}
    for utterance in data:
        task = utt2task.get(utterance, "").strip()
        if not utt2task and len(utterances) == 1:
            (task,) = utterances
        if task in utterances:
            utterances[task].append(utterance)
    rate = requirements_from_config(args).sample_rate
    found = {
        name: measured((data[u][1]["speech"] for u in some(own)), rate)
        for name, own in utterances.items()
    }
    return {name: voice for name, voice in found.items() if voice is not None}


def note(args: argparse.Namespace, model: Any) -> None:
    """Write the voices of a training's tasks; without them it is as good as before."""
    try:
        voices = of_training(args, model)
    except Exception as e:  # data of any kind, that other code reads
        logger.warning(f"how the tasks sound was not measured: {type(e).__name__}: {e}")
        return
    write(Path(args.output_dir), voices)


def write(folder: Path, voices: Mapping[str, Voice]) -> None:
    """Write voices beside checkpoints, in place of those that are there."""
    content = {"format": _FORMAT, "voices": {n: str(v) for n, v in voices.items()}}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    atomic.write(folder / FILE, text.encode())


def read(folder: Path) -> dict[str, Voice]:
    """The voices beside checkpoints; none if there is no such file.

    Raises:
        TaskError: The file is damaged.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise TaskError(f"{path}: expected the format {_FORMAT!r}")
        return {name: Voice.read(text) for name, text in content["voices"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise TaskError(f"{path}: not a readable file of voices: {e}") from e


def texts(folder: Path) -> dict[str, str]:
    """The same as they are written into task files. Errors as of :func:`read`."""
    return {name: str(voice) for name, voice in read(folder).items()}


def attach(model: Any, folder: Path) -> None:
    """Let the tasks of a checkpoint have the voices beside it.

    Raises:
        TaskError: The file is damaged.
    """
    heads = model.encoder.adapter.heads
    for name, text in texts(folder).items():
        if name in heads.own:
            heads.note(name, voice=text)


# --------------------------------------------------------------------- for old tasks


def of_folder(speech2text: Any, folder: Path) -> dict[str, Voice]:
    """The voices of a model's tasks, from a data folder.

    Args:
        speech2text: The model, opened.
        folder: Has ``wav.scp`` and ``utt2task``.

    Raises:
        DataError: The folder lacks them, or has no utterances of a task of the model.
    """
    from espnet_hra.data.audio import read_audio, resample
    from espnet_hra.data.lists import read_entries
    from espnet_hra.data.requirements import requirements_from_config

    wavs, tasks = (read_entries(folder / name) for name in ("wav.scp", "utt2task"))
    rate = requirements_from_config(speech2text.train_args).sample_rate
    found = {}
    for name in sorted(set(tasks.values()) & set(speech2text.tasks)):
        own = some([u for u in wavs if tasks.get(u) == name])
        voice = measured((resample(*read_audio(wavs[u]), rate) for u in own), rate)
        if voice is not None:
            found[name] = voice
    if not found:
        raise DataError(
            f"{folder}: expected several utterances of a task of the model in wav.scp "
            "and utt2task, found none"
        )
    return found
