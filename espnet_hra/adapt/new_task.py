"""What it takes to train one new task, whoever asks for it.

`espnet-hra tasks add` trains one, `espnet-hra adapt` thousands: the data are prepared,
the trained head is taken and scored in the same way.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_hra.data.checks import check, shapes
from espnet_hra.data.intake import check_plain, settle
from espnet_hra.data.lists import (
    read_entries,
    read_list,
    write_lists,
    write_subset,
)
from espnet_hra.data.problems import Report
from espnet_hra.data.requirements import Requirements
from espnet_hra.data.sentences import hold_out
from espnet_hra.errors import ConfigError, DataError, TaskError

#: Files of a prepared folder that become data streams: name and type.
_STREAMS = {"wav.scp": ("speech", "sound"), "text": ("text", "text")}


class BadDataError(DataError):
    """Utterances have failed the check.

    Args:
        source: The folder that was checked.
        report: What was found there.
        remedy: What can be done about all of it.
    """

    def __init__(self, source: Path, report: Report, remedy: str):
        super().__init__(f"{source}: {report}\n{remedy}")
        self.report = report

    def brief(self) -> str:
        """The first problem, and how many more there are."""
        first, *more = self.report.problems
        text = f"{first.where}: {first.kind}: {first.detail}"
        return f"{text} (and {len(more):,} more problems)" if more else text


def prepare(
    folder: Path,
    requirements: Requirements,
    work: Path,
    skip_bad: bool = False,
    *,
    jobs: int | None = None,
    tell: Callable[[str], None] = print,
) -> tuple[dict[str, Path], float]:
    """Check the data of a task and write them as lists for training.

    Args:
        folder: Kaldi-style: ``train`` and ``dev`` with ``wav.scp`` and ``text``, or
            these two files, of which every tenth sentence is held out.
        requirements: What the model needs of its data.
        work: Gets ``data/train`` and ``data/valid``.
        skip_bad: Leave out utterances that fail the check.
        jobs: How many recordings to read at once; None for one for each processor.
        tell: Is given the report about what was left out.

    Returns:
        The folders of ``train`` and ``valid``, and the minutes to train on.

    Raises:
        DataError: There are no such files, an utterance failed the check
            (:class:`BadDataError`), or none is left.
    """
    parts = {"train": folder / "train", "valid": folder / "dev"}
    if not all(path.is_dir() for path in parts.values()):
        parts = {"all": folder}
    reports = {}
    for part, source in parts.items():
        for name in _STREAMS:
            if not (source / name).is_file():
                raise DataError(
                    f"{source / name}: there is no such file; a Kaldi-style folder has "
                    "wav.scp and text, or the folders train and dev with these"
                )
        check_plain(source / "wav.scp")
        report = check(
            source / "wav.scp",
            source / "text",
            requirements=requirements,
            jobs=jobs,
            settle=functools.partial(settle, folder=source),
        )
        if not report.ok:
            if not skip_bad:
                raise BadDataError(
                    source,
                    report,
                    "Correct them, or leave these utterances out with --skip_bad true",
                )
            tell(f"{source}: {report}\nLeft out, because of --skip_bad true")
        reports[part] = report
    good = {part: sorted(report.good) for part, report in reports.items()}
    if "all" in good:
        every = set(good.pop("all"))
        texts = read_list(folder / "text").entries
        held = hold_out({utterance: texts[utterance] for utterance in every})
        good = {"valid": sorted(held), "train": sorted(every - held)}
    lists = {}
    for part in ("train", "valid"):
        if not good[part]:
            raise DataError(f"{folder}: no utterances for {part}")
        key = part if part in parts else "all"
        lists[part] = work / "data" / part
        sources = {name: parts[key] / name for name in _STREAMS}
        write_subset(sources, lists[part], good[part])
        # The training does not begin in the folder that paths of the data begin in.
        entries = read_entries(lists[part] / "wav.scp")
        lines = [f"{u} {settle(entry, parts[key])}" for u, entry in entries.items()]
        write_lists(lists[part], {"wav.scp": lines})
        tokens = requirements.tokens
        size = None if tokens is None else len(tokens)
        write_lists(lists[part], shapes(reports[key], size, good[part]))
    report = reports["train" if "train" in reports else "all"]
    samples = sum(report.samples[utterance] for utterance in good["train"])
    return lists, samples / requirements.sample_rate / 60


def data_options(
    lists: dict[str, Path],
) -> dict[str, list[str | tuple[str, str, str]]]:
    """ESPnet's options that name prepared data.

    Args:
        lists: From :func:`prepare`.

    Returns:
        By the option's name without dashes: triples of path, name and type of the data
        streams, and paths of shape files.
    """
    options: dict[str, list[str | tuple[str, str, str]]] = {}
    for part, folder in lists.items():
        options[f"{part}_data_path_and_name_and_type"] = [
            (str(folder / file), *stream) for file, stream in _STREAMS.items()
        ]
        shapes = (folder / "speech_shape", folder / "text_shape")
        options[f"{part}_shape_file"] = [str(p) for p in shapes if p.is_file()]
    return options


def utterances(folder: Path) -> int:
    """How many utterances a prepared folder has."""
    with open(folder / "wav.scp", encoding="utf-8") as file:
        return sum(1 for _ in file)


def describe(source: Path, lists: dict[str, Path], minutes: float) -> str:
    """What a task's file says about its data."""
    count = utterances(lists["train"])
    return f"{source.resolve().name} ({count:,} utterances, {minutes:.1f} minutes)"


def take(encoder: Any, name: str, exp: Path) -> None:
    """Put what was trained into a task's place.

    Args:
        encoder: Has the task.
        name: The task.
        exp: The finished training's folder; its best checkpoint is taken.

    Raises:
        TaskError: The training has changed what all tasks share.
    """
    import torch

    from espnet_hra.espnet.base import open_base
    from espnet_hra.espnet.model import ADAPTER_PREFIX
    from espnet_hra.files.checkpoint import read_state

    trained = read_state(open_base(str(exp)).model_file)
    key = f"{ADAPTER_PREFIX}heads.{name.replace('.', '/')}"
    own = encoder.adapter.state_dict()
    for other, tensor in trained.items():
        part = other.removeprefix(ADAPTER_PREFIX)
        if part.startswith("heads.") or part not in own:
            continue
        if not torch.equal(tensor, own[part].to(tensor.device)):
            raise TaskError(f"task {name!r}: the training has changed {part}")
    with torch.no_grad():
        encoder.adapter.heads.vector(name).copy_(trained[key])


def language_of(
    name: str, config: Mapping[str, Any], told: Sequence[str] | None
) -> str | None:
    """The language that Whisper is told in a training.

    Args:
        name: The task.
        config: The model's.
        told: What was said about the task's languages, if anything.

    Returns:
        Its code; None for models that are told none, or that know it already.

    Raises:
        ConfigError: Nobody has told it, or there are several.
    """
    if config.get("bpemodel") != "whisper_multilingual":
        return None
    if not told:
        usual = config.get("preprocessor_conf") or {}
        if usual.get("whisper_language", "en") is not None:
            return None  # an experiment that was trained on one language keeps it
        raise ConfigError(
            f"task {name!r}: Whisper must be told its language: give --language with a "
            "code, e.g. fr"
        )
    if len(told) > 1:
        raise ConfigError(
            f"task {name!r}: Whisper is told one language of a task, not "
            f"{' and '.join(told)}: give --language with one of them"
        )
    from espnet_hra.espnet.whisper import model_sizes
    from espnet_hra.whisper.tokens import code_of

    return code_of(told[0], model_sizes(config.get("decoder_conf")).num_languages)


def reading(config: Mapping[str, Any]) -> dict[str, Any]:
    """How ``Speech2Text`` reads with a new task: without a long search.

    Args:
        config: The model's.

    Returns:
        Its options: none for Whisper, whose usual beam is quick; the best CTC
        symbols of models that have a CTC; a beam of one of those that have none.
    """
    from espnet_hra.espnet.whisper_reader import reads_with_whisper

    if reads_with_whisper(config):
        return {}
    if (config.get("model_conf") or {}).get("ctc_weight", 0.5) == 0.0:
        return {"beam_size": 1, "ctc_weight": 0.0}
    return {"ctc_greedy": True, "ctc_weight": 1.0}


def score(speech2text: Any, name: str, folder: Path) -> dict[str, Any]:
    """Error rates of a task on the utterances that were held out.

    Args:
        speech2text: Knows the task; its way of decoding counts.
        name: The task.
        folder: Its ``wav.scp`` and ``text``.

    Returns:
        ``split``, ``utterances``, and ``cer`` and ``wer`` in percent.
    """
    from espnet2.fileio.sound_scp import SoundScpReader

    from espnet_hra.report.scoring import count_errors

    texts = read_entries(folder / "text")
    audio = SoundScpReader(str(folder / "wav.scp"), dtype="float32")
    pairs = []
    for utterance, reference in texts.items():
        wave = audio[utterance][1]
        wave = wave if wave.ndim == 1 else wave.mean(axis=1)
        hypothesis = speech2text(wave, task=name)[0][0]
        pairs.append((reference, hypothesis or ""))
    errors = count_errors(pairs)
    return {
        "split": "dev",
        "utterances": errors.utterances,
        "cer": round(errors.cer, 2),
        "wer": round(errors.wer, 2),
    }
