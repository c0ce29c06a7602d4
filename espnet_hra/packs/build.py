"""Packs: models and tasks to give away.

A *base pack* opens with ``espnet_hra.Speech2Text``, with ESPnet's own (once
``espnet_hra`` is imported) and with ``espnet_model_zoo``::

    meta.yaml       what ESPnet's packs have: which file is what
    config.yaml     the configuration, with all tokens and without paths of this machine
    model.pth       backbone, controller, CTC and all else: tensors, no pickled objects;
                    of a public Whisper the controller alone
    hra_pack.json   fingerprints and tasks
    README.md       the model card
    tasks/          tasks that go along, if any

Its configuration registers no task, so that ESPnet's class begins with the plain
backbone; ``espnet_hra.Speech2Text`` knows those in ``tasks``. A Whisper
that everyone can have by name is left out: the configuration names it, with its
fingerprints.

A *task pack* holds task files, ``hra_pack.json`` that names the base by tag and
fingerprint, and a model card.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from espnet2 import __version__ as espnet_version

from espnet_hra.errors import BaseModelError
from espnet_hra.espnet import whisper_frontend
from espnet_hra.espnet.base import open_base
from espnet_hra.espnet.building import build
from espnet_hra.espnet.kinds import KINDS, Kind, espnet_task_of
from espnet_hra.espnet.model import ADAPTER_PREFIX
from espnet_hra.espnet.models import (
    BASE_FORMAT,
    MANIFEST,
    TASK_FORMAT,
    Found,
    find_model,
    unknown_task,
)
from espnet_hra.espnet.paths import named_files
from espnet_hra.files import atomic
from espnet_hra.files.checkpoint import read_state
from espnet_hra.files.config import write_yaml
from espnet_hra.names import ENCODER_HINT
from espnet_hra.packs.card import About, base_card, own_rows, scores_of, task_card
from espnet_hra.packs.left_out import Choice, choose
from espnet_hra.tasks import file as taskfile
from espnet_hra.version import __version__

#: Keys of a saved configuration that tell about the machine it was trained on.
_LOCAL_LISTS = (
    "train_data_path_and_name_and_type",
    "valid_data_path_and_name_and_type",
    "train_shape_file",
    "valid_shape_file",
    "init_param",
)
#: Sections of ESPnet3 that say where data is and how the training runs.
_LOCAL_SECTIONS = (
    "create_dataset",
    "dataloader",
    "dataset",
    "dataset_dir",
    "parallel",
    "tokenizer",
    "trainer",
)
_LOCAL_VALUES = ("config", "output_dir", "pretrained_model", "init_adapter")


# --------------------------------------------------------------------------- base pack


@dataclass(frozen=True)
class Held:
    """What a base pack holds.

    Attributes:
        choice: Whether it holds its base, and why.
        base: Bytes of the base's weights, in the pack or left out.
    """

    choice: Choice
    base: int

    def summary(self, size: int) -> str:
        """What people are told about the pack and its size in bytes.

        Of models that are no Whisper there is nothing to choose, and nothing is told.
        """
        name, why = self.choice.name, self.choice.why
        if name is not None:
            return (
                f"{megabytes(size)} MB instead of {megabytes(size + self.base)}: "
                f"{name} is named with its fingerprint and fetched where the pack is "
                "opened (--whole true puts it in)"
            )
        if why:
            held = f"{megabytes(self.base)} MB of {megabytes(size)}"
            return f"{held} are the Whisper, which is in the pack {why}"
        return ""


def megabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:,.1f}"


def base_pack(
    model: str,
    folder: Path,
    about: About,
    tasks: Sequence[str] = (),
    half: bool = False,
    pretrained_model: str | None = None,
    whole: bool = False,
) -> Held:
    """Write a base pack into an empty folder.

    Args:
        model: Experiment folder of an adaptation, or another base pack.
        folder: The folder.
        about: For the model card.
        tasks: Tasks that go along.
        half: Store weights with 16 bits. The rounded base is **another base**, with
            fingerprints of its own: tasks that go along are bound to it anew, tasks
            from elsewhere do not fit it.
        pretrained_model: Where the frozen base is, if not where the model says.
        whole: Hold the base even if it is a Whisper that everyone can have by name.

    Returns:
        What it holds.

    Raises:
        BaseModelError: The model is incomplete, or has no adapter.
        TaskError: A task is unknown.
    """
    found, built, trained, about = _open(model, about, tasks, pretrained_model)
    encoder, choice = built.encoder, choose(trained, whole, half)
    config = found.read_config(pretrained_model)
    weights = built.state_dict()
    if not whole and whisper_frontend.is_used(config):
        # As its base has it: with the weights that it hears with, or by their name.
        held = read_state(open_base(trained.pretrained_model).model_file)
        if whisper_frontend.is_left_out(config, held):
            weights = whisper_frontend.without(weights)
    base = sum(
        tensor.numel() * (2 if half else tensor.element_size())
        for key, tensor in weights.items()
        if not key.startswith(ADAPTER_PREFIX)
    )
    state = {
        key: tensor.detach().clone()
        for key, tensor in weights.items()
        if not key.startswith(f"{ADAPTER_PREFIX}heads.")
        and (choice.name is None or key.startswith(ADAPTER_PREFIX))
    }
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        large = [k for k, v in state.items() if not torch.isfinite(v).all()]
        if large:
            raise BaseModelError(f"{large[0]} has values that 16 bits cannot hold")
    with atomic.replacing(folder / "model.pth") as file:
        torch.save(state, file)
    config = _portable(config, folder)
    kind = KINDS[espnet_task_of(config)]
    _write_meta(folder, kind, found.model_file.stat().st_mtime)
    config["encoder_conf"] = {**config["encoder_conf"], "tasks": []}
    config["encoder"] += ENCODER_HINT
    if choice.name is not None:
        config["pretrained_model"] = choice.name
        config["base_fingerprint"] = trained.base_fingerprint
    packed = built
    if half:  # another base: what it is called shows when it is opened
        config["base_fingerprint"] = None
        config["encoder_conf"]["backbone_fingerprint"] = None
        write_yaml(folder / "config.yaml", config)
        packed, rounded = build(find_model(str(folder)))
        config["base_fingerprint"] = rounded.base_fingerprint
        own = rounded.base_fingerprint["encoder"]
        config["encoder_conf"]["backbone_fingerprint"] = own
    write_yaml(folder / "config.yaml", config)
    identity = packed.encoder.identity()
    files = _write_tasks(found, encoder, identity, tasks, folder, about, not half)
    _write_manifest(folder, BASE_FORMAT, identity, about.base_tag, files, choice.name)
    card = base_card(about, packed, kind, files, half, choice.name)
    atomic.write(folder / "README.md", card)
    return Held(choice, base)


def _open(
    model: str, about: About, tasks: Sequence[str], pretrained_model: str | None
) -> tuple[Found, Any, argparse.Namespace, About]:
    """The model with these tasks loaded, and what is said about it and no other."""
    found = find_model(model, pretrained_model)
    built, trained = build(found, pretrained_model)
    encoder = built.encoder
    for name in {*found.store.names, *found.store.removed}.intersection(encoder.tasks):
        encoder.remove_task(name)
    for name in tasks:
        if name not in encoder.adapter.heads:
            if name not in found.store:
                raise unknown_task(found, name)
            encoder.load_task(found.store.path(name))
    own = own_rows(about.results, built, trained)
    return found, built, trained, replace(about, results=own)


def _portable(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A configuration without this machine's paths; files it needs are copied."""
    for place, key in named_files(config):
        source = Path(place[key])
        if not source.is_file():
            raise BaseModelError(f"{key}: {source} is needed and not there")
        (folder / "files").mkdir(exist_ok=True)
        inside = f"files/{source.name}"
        if (folder / inside).exists():  # a translation's two are both bpe.model
            inside = f"files/{key}.{source.name}"
        shutil.copyfile(source, folder / inside)
        place[key] = inside
    for key in _LOCAL_LISTS:
        if key in config:
            config[key] = []
    for key in _LOCAL_SECTIONS:
        config.pop(key, None)
    for key, value in config.items():
        local = isinstance(value, str) and os.path.isabs(value)
        if key in _LOCAL_VALUES or key.startswith("wandb_") or local:
            config[key] = None
    return config


def _write_meta(folder: Path, kind: Kind, timestamp: float) -> None:
    # Every name under files and yaml_files becomes an argument of ESPnet's
    # Speech2Text, which refuses unknown ones: nothing may be added here.
    config, model = kind.files
    meta = {
        "files": {model: "model.pth"},
        "yaml_files": {config: "config.yaml"},
        "timestamp": timestamp,
        "python": sys.version,
        "torch": str(torch.__version__),
        "espnet": espnet_version,
        "espnet_hra": __version__,
    }
    write_yaml(folder / "meta.yaml", meta)


# --------------------------------------------------------------------------- task pack


def task_pack(
    model: str,
    folder: Path,
    about: About,
    tasks: Sequence[str],
    pretrained_model: str | None = None,
) -> None:
    """Write a task pack into an empty folder.

    Args:
        model: Model that has the tasks.
        folder: The folder.
        about: For the model card; ``base_tag`` names the base.
        tasks: The tasks.
        pretrained_model: Where the frozen base is, if not where the model says.

    Raises:
        BaseModelError: The model is incomplete, or has no adapter.
        TaskError: A task is unknown.
    """
    found, built, _, about = _open(model, about, tasks, pretrained_model)
    encoder = built.encoder
    identity = encoder.identity()
    files = _write_tasks(found, encoder, identity, tasks, folder, about, False)
    _write_manifest(folder, TASK_FORMAT, identity, about.base_tag, files)
    atomic.write(folder / "README.md", task_card(about, encoder, files))


def _write_tasks(
    found: Found,
    encoder: Any,
    identity: Mapping[str, Any],
    tasks: Sequence[str],
    folder: Path,
    about: About,
    exact: bool,
) -> dict[str, taskfile.TaskFile]:
    """Write the files of tasks; `exact`: those that exist are copied as they are."""
    files: dict[str, taskfile.TaskFile] = {}
    for name in tasks:
        path = folder / "tasks" / f"{name}{taskfile.SUFFIX}"
        path.parent.mkdir(exist_ok=True)
        if exact and name in found.store:
            shutil.copyfile(found.store.path(name), path)
        else:
            info = {
                "date": found.date,
                "license": about.license,
                "languages": about.languages or found.languages(name),
                "data": about.data,
                "scores": scores_of(about.results, name) or None,
                **encoder.task_info(name),
            }
            if about.base_tag:
                info["base_tag"] = about.base_tag
            tensors = encoder.adapter.heads.tensors(name)
            labels = encoder.labels_of(name)
            taskfile.save(path, name, tensors, identity, info, labels)
        files[name] = taskfile.read(path)
    return files


def _write_manifest(
    folder: Path,
    form: str,
    identity: Mapping[str, Any],
    tag: str | None,
    files: Mapping[str, taskfile.TaskFile],
    reference: str | None = None,
) -> None:
    named = {} if reference is None else {"reference": reference}
    manifest = {
        "format": form,
        "base": {"tag": tag, **named, **identity},
        "tasks": {name: f"tasks/{name}{taskfile.SUFFIX}" for name in files},
        "espnet_hra": __version__,
    }
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    atomic.write(folder / MANIFEST, text)
