"""`espnet-hra pack`: models and tasks to give away, and their upload to the hub.

A *base pack* opens with ``espnet_hra.Speech2Text``, with ESPnet's own (once
``espnet_hra`` is imported) and with ``espnet_model_zoo``::

    meta.yaml       what ESPnet's packs have: which file is what
    config.yaml     the configuration, with all tokens and without paths of this machine
    model.pth       backbone, controller, CTC and all else: tensors, no pickled objects
    hra_pack.json   fingerprints and tasks
    README.md       the model card
    tasks/          tasks that go along, if any

Its configuration registers no task, so that ESPnet's class begins with the plain
backbone; ``espnet_hra.Speech2Text`` knows those in ``tasks``.

A *task pack* holds task files, ``hra_pack.json`` that names the base by tag and
fingerprint, and a model card.
"""

import argparse
import csv
import datetime
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from espnet_hra.commands.tasks import add_info, info_of
from espnet_hra.errors import BaseModelError, TaskError
from espnet_hra.files import archive
from espnet_hra.names import ENCODER_HINT, listing
from espnet_hra.tasks import file as taskfile
from espnet_hra.version import __version__

#: The hub's tag of these models; never bare "hra": PEFT has another method of that name
TAG = "hierarchical-recurrent-adapter"
TITLE = "Hierarchical recurrent adapters"

#: Keys of a saved configuration that tell about the machine it was trained on.
_LOCAL_LISTS = (
    "train_data_path_and_name_and_type",
    "valid_data_path_and_name_and_type",
    "train_shape_file",
    "valid_shape_file",
    "init_param",
)
_LOCAL_VALUES = ("config", "output_dir", "pretrained_model", "init_adapter")

#: Files that a configuration names and that go along.
_FILES = (("bpemodel",), ("non_linguistic_symbols",), ("normalize_conf", "stats_file"))


@dataclass
class About:
    """What people say about a pack.

    Attributes:
        name: Its name, for the title.
        license: Identifier of the licence.
        languages: Codes of languages.
        data: What it was trained on.
        base_tag: Tag of the base (of a base pack: of the backbone it was made from).
        results: Rows of ``results.tsv`` that belong to it.
        where: Where it will be, for the card's examples.
    """

    name: str
    license: str | None = None
    languages: list[str] = field(default_factory=list)
    data: str | None = None
    base_tag: str | None = None
    results: list[dict[str, str]] = field(default_factory=list)
    where: str = "PACK"


# --------------------------------------------------------------------------- base pack


def base_pack(
    model: str,
    folder: Path,
    about: About,
    tasks: Sequence[str] = (),
    half: bool = False,
    pretrained_model: str | None = None,
) -> None:
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

    Raises:
        BaseModelError: The model is incomplete, or has no adapter.
        TaskError: A task is unknown.
    """
    import torch

    from espnet_hra.espnet.building import build
    from espnet_hra.espnet.models import BASE_FORMAT, find_model, read_config

    found = find_model(model, pretrained_model)
    built, trained = build(found, pretrained_model)
    about = replace(about, results=_own(about.results, built, trained))
    encoder = built.encoder
    _load_tasks(found, encoder, tasks)
    state = {
        key: tensor.detach().clone()
        for key, tensor in built.state_dict().items()
        if not key.startswith("encoder.adapter.heads.")
    }
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        large = [k for k, v in state.items() if not torch.isfinite(v).all()]
        if large:
            raise BaseModelError(f"{large[0]} has values that 16 bits cannot hold")
    torch.save(state, folder / "model.pth")
    _write_meta(folder, found.model_file.stat().st_mtime)

    config = _portable(read_config(found.config_file), folder)
    config["encoder_conf"] = {**config["encoder_conf"], "tasks": []}
    config["encoder"] += ENCODER_HINT
    packed = built
    if half:  # another base: what it is called shows when it is opened
        config["base_fingerprint"] = None
        config["encoder_conf"]["backbone_fingerprint"] = None
        _write_yaml(folder / "config.yaml", config)
        packed, trained = build(find_model(str(folder)))
        config["base_fingerprint"] = trained.base_fingerprint
        config["encoder_conf"]["backbone_fingerprint"] = trained.base_fingerprint[
            "encoder"
        ]
    _write_yaml(folder / "config.yaml", config)
    identity = packed.encoder.identity()
    files = _write_tasks(found, encoder, identity, tasks, folder, about, not half)
    _write_manifest(folder, BASE_FORMAT, identity, about.base_tag, files)
    _write_card(folder, _base_card(about, packed, files, half))


def _load_tasks(found: Any, encoder: Any, tasks: Sequence[str]) -> None:
    """Load those tasks that are files; refuse unknown ones."""
    for name in {*found.store.names, *found.store.removed}.intersection(encoder.tasks):
        encoder.remove_task(name)
    known = sorted({*encoder.tasks, *found.store.names})
    for name in tasks:
        if name not in known:
            raise TaskError(f"unknown task {name!r}; known tasks: {listing(known)}")
        if name not in encoder.adapter.heads:
            encoder.load_task(found.store.path(name))


def _portable(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A configuration without this machine's paths; files it needs are copied."""
    for keys in _FILES:
        place = config
        for key in keys[:-1]:
            place = place.get(key) or {}
        value = place.get(keys[-1])
        if isinstance(value, str):
            source = Path(value)
            if not source.is_file():
                raise BaseModelError(f"{keys[-1]}: {value} is needed and not there")
            (folder / "files").mkdir(exist_ok=True)
            shutil.copyfile(source, folder / "files" / source.name)
            place[keys[-1]] = f"files/{source.name}"
    for key in _LOCAL_LISTS:
        if key in config:
            config[key] = []
    for key, value in config.items():
        local = isinstance(value, str) and os.path.isabs(value)
        if key in _LOCAL_VALUES or key.startswith("wandb_") or local:
            config[key] = None
    return config


def _write_meta(folder: Path, timestamp: float) -> None:
    import torch
    from espnet2 import __version__ as espnet_version

    # Every name under files and yaml_files becomes an argument of ESPnet's
    # Speech2Text, which refuses unknown ones: nothing may be added here.
    meta = {
        "files": {"asr_model_file": "model.pth"},
        "yaml_files": {"asr_train_config": "config.yaml"},
        "timestamp": timestamp,
        "python": sys.version,
        "torch": str(torch.__version__),
        "espnet": espnet_version,
        "espnet_hra": __version__,
    }
    _write_yaml(folder / "meta.yaml", meta)


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
    from espnet_hra.espnet.building import build
    from espnet_hra.espnet.models import TASK_FORMAT, find_model

    found = find_model(model, pretrained_model)
    built, trained = build(found, pretrained_model)
    about = replace(about, results=_own(about.results, built, trained))
    encoder = built.encoder
    _load_tasks(found, encoder, tasks)
    identity = encoder.identity()
    files = _write_tasks(found, encoder, identity, tasks, folder, about, False)
    _write_manifest(folder, TASK_FORMAT, identity, about.base_tag, files)
    _write_card(folder, _task_card(about, encoder, files))


def _write_tasks(
    found: Any,
    encoder: Any,
    identity: Mapping[str, Any],
    tasks: Sequence[str],
    folder: Path,
    about: About,
    exact: bool,
) -> dict[str, taskfile.TaskFile]:
    """Write the files of tasks; `exact`: those that exist are copied as they are."""
    files: dict[str, taskfile.TaskFile] = {}
    changed = datetime.datetime.fromtimestamp(
        found.model_file.stat().st_mtime, datetime.UTC
    )
    for name in tasks:
        path = folder / "tasks" / f"{name}{taskfile.SUFFIX}"
        path.parent.mkdir(exist_ok=True)
        if exact and name in found.store:
            shutil.copyfile(found.store.path(name), path)
        else:
            info = {
                "date": changed.date().isoformat(),
                "license": about.license,
                "languages": about.languages or None,
                "data": about.data,
                "scores": _scores(about.results, name) or None,
                **encoder.task_info(name),
            }
            if about.base_tag:
                info["base_tag"] = about.base_tag
            tensors = encoder.adapter.heads.tensors(name)
            taskfile.save(path, name, tensors, identity, info)
        files[name] = taskfile.read(path)
    return files


def _scores(results: Sequence[Mapping[str, str]], name: str) -> list[dict[str, Any]]:
    return [
        {
            "split": row["split"],
            "utterances": int(row["utterances"]),
            "cer": float(row["cer"]),
            "wer": float(row["wer"]),
        }
        for row in results
        if row["task"] == name and row["method"] != "none"
    ]


def _write_manifest(
    folder: Path,
    form: str,
    identity: Mapping[str, Any],
    tag: str | None,
    files: Mapping[str, taskfile.TaskFile],
) -> None:
    from espnet_hra.espnet.models import MANIFEST

    manifest = {
        "format": form,
        "base": {"tag": tag, **identity},
        "tasks": {name: f"tasks/{name}{taskfile.SUFFIX}" for name in files},
        "espnet_hra": __version__,
    }
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    text = yaml.dump(dict(content), Dumper=Dumper, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------- model cards


def read_results(path: Path) -> list[dict[str, str]]:
    """Rows of a ``results.tsv``, by column.

    Raises:
        BaseModelError: It is not there, or no such file.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise BaseModelError(f"{path}: cannot be read: {e}") from e
    columns = ("method", "task", "split", "seed", "utterances", "cer", "wer")
    columns += ("shared_params", "task_params")
    if any(row.get(column) is None for row in rows for column in columns):
        raise BaseModelError(f"{path}: expected the columns {', '.join(columns)}")
    return rows


def _own(
    rows: Sequence[dict[str, str]], model: Any, config: argparse.Namespace
) -> list[dict[str, str]]:
    """Rows that belong to a model: the frozen backbone's, and of its own size and seed.

    A ``results.tsv`` has many methods and seeds, with names that their users chose.
    """
    from espnet_hra.espnet import params

    counts = params.count(model)
    own = (str(counts["shared"]), str(counts["one_task"]), str(config.seed))
    return [
        row
        for row in rows
        if row["method"] == "none"
        or row["method"].split("_")[0] == counts["adapter"]
        and (row["shared_params"], row["task_params"], row["seed"]) == own
    ]


def _front_matter(about: About, tag: str, **more: Any) -> str:
    metadata: dict[str, Any] = {
        "library_name": "espnet",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["espnet", "audio", "automatic-speech-recognition", tag],
    }
    if about.languages:
        metadata["language"] = about.languages
    if about.license:
        metadata["license"] = about.license
    metadata.update(more)
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n"


def _model_index(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results in the form of the hub; none, no entry."""
    results = [
        {
            "task": {
                "type": "automatic-speech-recognition",
                "name": "Automatic Speech Recognition",
            },
            "dataset": {
                "name": str(row["task"]),
                "type": str(row["task"]),
                "split": str(row["split"]),
            },
            "metrics": [
                {
                    "type": m,
                    "value": float(row[m]),
                    "name": f"{row['split']} {m.upper()}",
                }
                for m in ("cer", "wer")
            ],
        }
        for row in rows
    ]
    return {"model-index": [{"name": name, "results": results}]} if results else {}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| task | split | utterances | CER (%) | WER (%) |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['task']} | {r['split']} | {r['utterances']} | {r['cer']} | {r['wer']} |"
        for r in rows
    ]
    return "\n".join(lines)


_ABOUT = """\
A frozen speech recogniser with *hierarchical recurrent adapters*
([arXiv 2403.19709](https://arxiv.org/abs/2403.19709)): one small recurrent controller
runs over the depth of the encoder and is shared by all tasks; each task (a speaker, an
accent, a language, a domain) adds one head in a file of its own. (PEFT's "HRA",
Householder reflection adaptation, is another method.)
"""

_ABOUT_OTHERS = """\
A frozen speech recogniser with adapters of the kind `{}`, made with espnet-hra: each
task (a speaker, an accent, a language, a domain) is a file of its own.
"""


def _kind(encoder: Any) -> tuple[str, str, str]:
    """Title, tag and description of the method; espnet-hra has rivals of HRA too."""
    kind = encoder.adapter.config["adapter"]
    if kind == "hra":
        return TITLE, TAG, _ABOUT
    return f"Adapters of the kind {kind}", kind, _ABOUT_OTHERS.format(kind)


_ERROR = """\
If ESPnet says `--encoder must be one of ...: --encoder hra_...`, this package was not
imported: `pip install espnet-hra`, and `import espnet_hra` before the model is opened.
"""


def _base_card(
    about: About, model: Any, files: Mapping[str, taskfile.TaskFile], half: bool
) -> str:
    from espnet_hra.espnet import params

    counts, encoder = params.count(model), model.encoder
    title, tag, text = _kind(encoder)
    frozen = [row for row in about.results if row["method"] == "none"]
    adapted = [row for row in about.results if row["method"] != "none"]
    more: dict[str, Any] = {"base_model": about.base_tag} if about.base_tag else {}
    more.update(_model_index(about.name, frozen))
    example = next(iter(files), "NAME")
    parts = [
        _front_matter(about, tag, **more),
        f"# {title}: the base {about.name}\n",
        text,
        "This is the base: backbone, controller, tokens and configuration. "
        + (f"Tasks inside: {', '.join(files)}." if files else "No tasks are inside.")
        + "\n",
        "## Use\n",
        f"""\
```bash
pip install espnet-hra
```
```python
import espnet_hra

speech2text = espnet_hra.Speech2Text.from_pretrained("{about.where}")
speech2text.set_task(None)                                         # the plain backbone
speech2text.set_task("{example}")           # a task inside, or the path of a task file
text, *_ = speech2text(waveform)[0]
```
ESPnet's own class opens it too, and begins with the plain backbone:
```python
import espnet_hra                                               # registers the encoder
from espnet2.bin.asr_inference import Speech2Text

speech2text = Speech2Text.from_pretrained("{about.where}")
speech2text.asr_model.encoder.load_task("{example}.safetensors")
speech2text.asr_model.encoder.set_task("{example}")
```
{_ERROR}""",
        "## What is in it\n",
        f"- backbone: {counts['backbone']:,} parameters, "
        f"{'16' if half else '32'} bits each on disk"
        + (" (rounded: tasks of the unrounded base do not fit)" if half else ""),
        f"- controller: {counts['shared']:,} parameters; one task: "
        f"{counts['one_task']:,}",
        f"- adapter: `{json.dumps(counts['config'], sort_keys=True)}`",
        *_fingerprints(encoder),
        "",
    ]
    if about.data:
        parts += ["## Training data\n", about.data, ""]
    if frozen:
        parts += ["## Results of the frozen backbone\n", _table(frozen), ""]
    if adapted:
        parts += ["## Results of its tasks\n", _table(adapted), ""]
    return "\n".join(parts)


def _task_card(
    about: About, encoder: Any, files: Mapping[str, taskfile.TaskFile]
) -> str:
    rows = [
        {"task": name, **score}
        for name, file in files.items()
        for score in file.info.get("scores", [])
    ]
    said = [file.info for file in files.values()]
    licences = sorted({info["license"] for info in said if "license" in info})
    languages = sorted({code for info in said for code in info.get("languages", [])})
    about = About(
        name=about.name,
        license=about.license or (licences[0] if len(licences) == 1 else None),
        languages=about.languages or languages,
        where=about.where,
    )
    title, kind, text = _kind(encoder)
    base = next(info["base_tag"] for info in said)
    more: dict[str, Any] = {"base_model": base, "base_model_relation": "adapter"}
    more.update(_model_index(about.name, rows))
    first = next(iter(files))
    several = len(files) > 1
    # A pack of one task stands for the task; one of several opens its base itself.
    call = (
        f'"{about.where}", task="{first}"'
        if several
        else f'"{base}", task="{about.where}"'
    )
    parts = [
        _front_matter(about, kind, **more),
        f"# {title}: the task{'s' if several else ''} {', '.join(files)}\n",
        text,
        f"This is {'some tasks' if several else 'one task'} for the base `{base}`: "
        f"{encoder.adapter.heads.size:,} parameters each. Another base, even one that "
        "differs by a bit, refuses them.\n",
        "## Use\n",
        f"""\
```bash
pip install espnet-hra
espnet-hra tasks import {about.where} --model FOLDER    # keeps it beside a base there
```
```python
import espnet_hra

speech2text = espnet_hra.Speech2Text.from_pretrained({call})
text, *_ = speech2text(waveform)[0]
```
{_ERROR}""",
        "## What it needs\n",
        f"- base: `{base}`",
        *_fingerprints(encoder),
        "",
    ]
    described = [(n, f.info["data"]) for n, f in files.items() if "data" in f.info]
    if described:
        parts += ["## Training data\n", *(f"- {n}: {d}" for n, d in described), ""]
    if rows:
        parts += ["## Results\n", _table(rows), ""]
    return "\n".join(parts)


def _fingerprints(encoder: Any) -> list[str]:
    return [
        f"- fingerprint of the {part}: `{getattr(encoder, f'{part}_fingerprint')}`"
        for part in ("backbone", "controller")
    ]


def _write_card(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text.rstrip("\n") + "\n", encoding="utf-8")


# ----------------------------------------------------------------------------- upload


def upload(pack: str, repo: str, private: bool = False) -> str:
    """Put a pack on the hub, or what ``HF_ENDPOINT`` says is the hub.

    Args:
        pack: Folder or zip.
        repo: Repository, ``owner/name``; it is made if it does not exist.
        private: Whether a new one is private.

    Returns:
        The address of the commit.

    Raises:
        BaseModelError: This is no pack, or the hub refuses it.
    """
    from espnet_hra.espnet.models import MANIFEST, read_manifest

    path = Path(pack).expanduser()
    with tempfile.TemporaryDirectory() as temporary:
        folder = path
        if path.is_file():
            folder = Path(temporary) / "pack"
            archive.extract(path, folder)
        if not folder.is_dir() or read_manifest(folder) is None:
            raise BaseModelError(
                f"{pack}: no pack of espnet-hra ({MANIFEST} is missing)"
            )
        return _upload(folder, repo, private)


def _upload(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi

    try:
        api = HfApi(library_name="espnet-hra", library_version=__version__)
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload by espnet-hra pack"
        )
    except Exception as e:
        raise BaseModelError(
            f"{repo}: the hub did not take the pack ({type(e).__name__}: {e}); log in "
            "with `hf auth login` or HF_TOKEN, and see that the name is owner/name"
        ) from e
    return str(commit.commit_url)


# ------------------------------------------------------------------------ command line


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra pack",
        description="Make a base pack (backbone, controller, tokens, configuration) or "
        "with --task a task pack, with a model card; with --upload, put it on the hub.",
    )
    parser.add_argument(
        "--model", help="Experiment folder of an adaptation, or a base pack"
    )
    parser.add_argument(
        "--out",
        required=True,
        help="The pack: a zip, or a folder. Without --model, a pack that exists",
    )
    parser.add_argument("--task", help="Make a task pack: of a task, 'a b c', or all")
    parser.add_argument(
        "--tasks",
        default="none",
        help="Tasks that go along in a base pack: none, all, or 'a b' (default: none)",
    )
    parser.add_argument(
        "--half",
        choices=("true", "false"),
        default="false",
        help="Store a base pack's weights with 16 bits; it is then another base, which "
        "tasks of the unrounded one do not fit (default: false)",
    )
    parser.add_argument(
        "--base_tag",
        help="Tag of the base on the hub or in the model zoo; needed for task packs",
    )
    parser.add_argument("--name", help="Name in the card's title (default: of --out)")
    parser.add_argument(
        "--results", help="results.tsv (default: beside the model or one folder above)"
    )
    parser.add_argument(
        "--pretrained_model",
        help="Where the frozen base is, if not where the saved configuration says",
    )
    parser.add_argument("--upload", metavar="REPO", help="owner/name on the hub")
    parser.add_argument(
        "--private",
        choices=("true", "false"),
        default="false",
        help="Whether a new repository is private (default: false)",
    )
    add_info(parser, "what base or task were trained on, for the card")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Make a pack, and upload it if that is asked for.

    Raises:
        UserError: What was asked for is not possible.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.model is None and args.upload is None:
        parser.error("give --model to make a pack, or --upload for one that exists")
    if args.task and args.tasks != "none":
        parser.error("--task makes a task pack, --tasks are tasks in a base pack")
    if args.task and not args.base_tag:
        parser.error("--task needs --base_tag, by which others find the base")
    if args.model is not None:
        _make(args)
    if args.upload is not None:
        print(upload(args.out, args.upload, args.private == "true"))


def _make(args: argparse.Namespace) -> None:
    out = Path(args.out).expanduser()
    zipped = out.suffix == ".zip"
    if out.exists() and (out.is_file() != zipped or not zipped and any(out.iterdir())):
        raise BaseModelError(f"--out {out}: this is there already; remove it first")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=out.absolute().parent, prefix=f".{out.name}."
    ) as temporary:
        folder = Path(temporary) / "pack"
        folder.mkdir()
        _fill(args, folder, out.stem if zipped else out.name)
        if zipped:
            archive.write_zip(folder, out)
        else:
            if out.exists():
                out.rmdir()
            os.rename(folder, out)
    if not args.license:
        print("espnet-hra pack: no --license; others may not use it", file=sys.stderr)
    print(out)


def _fill(args: argparse.Namespace, folder: Path, name: str) -> None:
    """Make the pack in a folder."""
    from espnet_hra.espnet.models import checkpoint_tasks, find_model

    found = find_model(args.model, args.pretrained_model)
    info = info_of(args)
    about = About(
        name=args.name or name,
        license=info["license"],
        languages=info["languages"] or [],
        data=info["data"],
        base_tag=args.base_tag,
        results=_results(args, found.model_file),
        where=args.upload or Path(args.out).name,
    )
    names = args.task or args.tasks
    tasks = _split(names)
    if names == "all":
        tasks = sorted({*checkpoint_tasks(found), *found.store.names})
    if args.task:
        task_pack(args.model, folder, about, tasks, args.pretrained_model)
        return
    if names == "none":
        tasks = []
    half = args.half == "true"
    base_pack(args.model, folder, about, tasks, half, args.pretrained_model)


def _split(names: str) -> list[str]:
    return list(dict.fromkeys(re.split(r"[\s,]+", names.strip())))


def _results(args: argparse.Namespace, model_file: Path) -> list[dict[str, str]]:
    """Rows of results.tsv; by default where the recipe puts it."""
    if args.results:
        return read_results(Path(args.results))
    folder = model_file.absolute().parent
    for place in (folder, folder.parent):
        if (place / "results.tsv").is_file():
            return read_results(place / "results.tsv")
    return []
