"""One new task on a trained model: `espnet-hra tasks add`.

ESPnet's trainer trains it in a folder of its own, with the options that the model was
trained with. Nothing of the model changes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_hra.adapt import new_task
from espnet_hra.data.requirements import Requirements, requirements_from_config
from espnet_hra.errors import ConfigError, DataError
from espnet_hra.espnet import voices
from espnet_hra.espnet.inference import Speech2Text
from espnet_hra.espnet.kinds import check_kind
from espnet_hra.espnet.model import ADAPTER_PREFIX
from espnet_hra.espnet.models import Found
from espnet_hra.espnet.task import HRATask
from espnet_hra.files.checkpoint import read_state
from espnet_hra.files.config import write_yaml
from espnet_hra.tasks import file as taskfile

#: Options of a training that a new task takes over from the model's own.
_TRAINING = (
    "accum_grad",
    "autocast",
    "batch_bins",
    "batch_size",
    "batch_type",
    "best_model_criterion",
    "early_stopping_criterion",
    "exclude_weight_decay",
    "exclude_weight_decay_conf",
    "fold_length",
    "grad_clip",
    "grad_clip_type",
    "keep_nbest_models",
    "max_batch_size",
    "max_epoch",
    "min_batch_size",
    "num_iters_per_epoch",
    "num_workers",
    "optim",
    "optim_conf",
    "patience",
    "scheduler",
    "scheduler_conf",
    "seed",
    "sort_batch",
    "sort_in_batch",
    "specaug",
    "specaug_conf",
    "train_dtype",
    "use_amp",
    "val_scheduler_criterion",
    "valid_batch_bins",
    "valid_batch_size",
    "valid_batch_type",
)


def train_task(
    name: str,
    data: Path,
    found: Found,
    work: Path,
    *,
    options: Mapping[str, Any],
    info: Mapping[str, Any],
    base: str | None = None,
    ngpu: int = 0,
    skip_bad: bool = False,
) -> bytes:
    """Train a task of a model.

    Args:
        name: The task.
        data: Kaldi-style folder, see :func:`espnet_hra.adapt.new_task.prepare`.
        found: The model.
        work: An empty folder for data and training.
        options: ESPnet's training options that are not the model's own.
        info: What is said about the task. A multilingual Whisper takes its language
            from ``languages``.
        base: Where the frozen base is, if not where the model says.
        ngpu: Number of GPUs.
        skip_bad: Leave out utterances that fail the check.

    Returns:
        The content of the task's file.

    Raises:
        DataError: An utterance fails the check, or none is left.
        ConfigError: A multilingual Whisper is not told the language.
        UserError: The model cannot be used.
    """
    saved = found.read_config(base)
    check_kind("asr", saved, found.source)
    language = new_task.language_of(name, saved, info.get("languages"))
    lists, minutes = new_task.prepare(data, _requirements(saved), work, skip_bad)
    if language is not None:
        options = {**options, "languages": {name: language}}
        info = {**info, "languages": [language]}
    HRATask.main(cmd=_command(name, saved, found, work, options, lists, base, ngpu))
    speech2text = Speech2Text(
        found.config_file,
        found.model_file,
        language=language,
        **new_task.reading(saved),
        pretrained_model=base,
        store=found.store,
    )
    info = {**info, "voice": voices.texts(work / "exp").get(name)}
    encoder = speech2text.asr_model.encoder
    encoder.attach_store(None)  # the new task shall learn
    if name in encoder.tasks:
        encoder.remove_task(name)  # to be replaced
    encoder.add_task(name)
    new_task.take(encoder, name, work / "exp")
    scores = new_task.score(speech2text, name, lists["valid"])
    print(f"dev: {scores['utterances']} utterances, CER {scores['cer']} %")
    said = {"data": new_task.describe(data, lists, minutes)}
    said.update({key: value for key, value in info.items() if value is not None})
    tensors = encoder.adapter.heads.tensors(name)
    return taskfile.pack(
        name, tensors, encoder.identity(), {"scores": [scores], **said}
    )


def _command(
    name: str,
    saved: Mapping[str, Any],
    found: Found,
    work: Path,
    options: Mapping[str, Any],
    lists: dict[str, Path],
    base: str | None,
    ngpu: int,
) -> list[str]:
    """The options of the training."""
    state = read_state(found.model_file)
    adapted = any(key.startswith(ADAPTER_PREFIX) for key in state)
    if base is None and any(not key.startswith(ADAPTER_PREFIX) for key in state):
        base = str(found.model_file)  # a base pack is its own base
    conf = dict(saved["encoder_conf"])
    conf["tasks"] = [name]
    conf["adapter_conf"] = {**(conf.get("adapter_conf") or {}), "regime": "new_task"}
    conf.pop("backbone_fingerprint", None)
    config = {key: saved[key] for key in _TRAINING if key in saved}
    if "trainer" in saved:  # ESPnet3's, where the same keys mean other things
        if "optim" not in options:
            raise ConfigError(
                f"{found.source} was trained with ESPnet3, and a new task is with "
                "ESPnet2: give --config FILE with optim, optim_conf, max_epoch and "
                "batch_size"
            )
        config = {}
    config.update(options)
    config.update(
        encoder=saved["encoder"],
        encoder_conf=conf,
        base_fingerprint=None,
        use_tensorboard=False,
        use_matplotlib=False,
        check_data=False,  # it was checked with the shapes
    )
    write_yaml(work / "train.yaml", config)
    command = ["--config", str(work / "train.yaml"), "--ngpu", str(ngpu)]
    command += ["--output_dir", str(work / "exp")]
    command += ["--pretrained_model", str(base or saved.get("pretrained_model"))]
    if saved.get("base_fingerprint"):
        command += ["--base_fingerprint", json.dumps(saved["base_fingerprint"])]
    if adapted:
        command += ["--init_adapter", str(found.model_file)]
    for key, values in new_task.data_options(lists).items():
        for value in values:
            word = value if isinstance(value, str) else ",".join(value)
            command += [f"--{key}", word]
    return command


def _requirements(saved: Mapping[str, Any]) -> Requirements:
    """What a model needs of its data."""
    try:
        requirements = requirements_from_config(saved)
    except (ValueError, OSError) as e:
        raise DataError(f"the model's configuration cannot be used: {e}") from e
    requirements.tasks = None  # they are the old ones
    return requirements
