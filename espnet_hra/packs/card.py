"""Model cards: what people read about a pack on the hub."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from espnet_hra.errors import BaseModelError
from espnet_hra.espnet import params
from espnet_hra.espnet.kinds import Kind
from espnet_hra.files.tables import TableError, markdown, read_table
from espnet_hra.report.results import FROZEN, TSV, Row
from espnet_hra.tasks import file as taskfile

#: The hub's tag of these models; never bare "hra": PEFT has another method of that name
TAG = "hierarchical-recurrent-adapter"
TITLE = "Hierarchical recurrent adapters"


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
    results: list[Row] = field(default_factory=list)
    where: str = "PACK"


def read_results(given: str | None, model_file: Path) -> list[Row]:
    """The rows of a ``results.tsv``.

    Args:
        given: Its path; None for where the recipe puts it: beside the model, or one
            folder above. There, it may be missing.
        model_file: The model.

    Raises:
        BaseModelError: It is not there, or no such file.
    """
    folder = model_file.absolute().parent
    places = [Path(given)] if given else [folder / TSV, folder.parent / TSV]
    for place in places:
        if place.is_file():
            try:
                return read_table(place, Row)
            except TableError as e:
                raise BaseModelError(str(e)) from e
    if given:
        raise BaseModelError(f"{given}: cannot be read: there is no such file")
    return []


def own_rows(rows: Sequence[Row], model: Any, config: argparse.Namespace) -> list[Row]:
    """Rows that belong to a model: the frozen backbone's, and of its own size and seed.

    A ``results.tsv`` has many methods and seeds, with names that their users chose.
    """
    counts = params.count(model)
    own = (counts["shared"], counts["one_task"], config.seed)
    return [
        row
        for row in rows
        if row.method == FROZEN
        or row.method.split("_")[0] == counts["adapter"]
        and (row.shared_params, row.task_params, row.seed) == own
    ]


def scores_of(results: Sequence[Row], name: str) -> list[dict[str, Any]]:
    """What a task's file says of its error rates."""
    return [
        {
            "split": row.split,
            "utterances": row.utterances,
            "cer": row.cer,
            "wer": row.wer,
        }
        for row in results
        if row.task == name and row.method != FROZEN
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
    names = ("task", "split", "utterances", "cer", "wer")
    cells = [[str(row[name]) for name in names] for row in rows]
    return markdown([["task", "split", "utterances", "CER (%)", "WER (%)"], *cells])


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


def base_card(
    about: About,
    model: Any,
    espnet: Kind,
    files: Mapping[str, taskfile.TaskFile],
    half: bool,
    reference: str | None = None,
) -> str:
    """The card of a base pack, whose model is of some ESPnet task.

    Args:
        about: What people say about it.
        model: The model.
        espnet: Its ESPnet task.
        files: The tasks inside.
        half: Whether weights have 16 bits.
        reference: The name of the backbone, if it is left out.
    """
    counts, encoder = params.count(model), model.encoder
    title, tag, text = _kind(encoder)
    rows = [(row.method == FROZEN, vars(row)) for row in about.results]
    frozen = [row for is_frozen, row in rows if is_frozen]
    adapted = [row for is_frozen, row in rows if not is_frozen]
    more: dict[str, Any] = {"base_model": about.base_tag} if about.base_tag else {}
    more.update(_model_index(about.name, frozen))
    example = next(iter(files), "NAME")
    parts = [
        _front_matter(about, tag, **more),
        f"# {title}: the base {about.name}\n",
        text,
        (
            "This is the base: backbone, controller, tokens and configuration. "
            if reference is None
            else "This is the base: controller, tokens and configuration. Its backbone "
            f"is `{reference}`, which is found or fetched, and verified, when it is "
            "opened. "
        )
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
""",
        _stock_use(about, espnet, example)
        if reference is None
        else "ESPnet's own class needs a pack with all weights (`espnet-hra pack "
        "--whole true`).\n",
        _ERROR,
        "## What is in it\n",
        f"- backbone: {counts['backbone']:,} parameters, "
        + (
            f"{'16' if half else '32'} bits each on disk"
            if reference is None
            else f"not in it: `{reference}`"
        )
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
    return "\n".join(parts).rstrip("\n") + "\n"


def _stock_use(about: About, espnet: Kind, example: str) -> str:
    """How ESPnet's own class opens a pack."""
    module, opens = espnet.stock.split(":")
    return f"""\
ESPnet's own class opens it too, and begins with the plain backbone:
```python
import espnet_hra                                               # registers the encoder
from {module} import {opens}

speech2text = {opens}.from_pretrained("{about.where}")
speech2text.{espnet.attribute}_model.encoder.load_task("{example}.safetensors")
speech2text.{espnet.attribute}_model.encoder.set_task("{example}")
```
"""


def task_card(
    about: About, encoder: Any, files: Mapping[str, taskfile.TaskFile]
) -> str:
    """The card of a task pack."""
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
    return "\n".join(parts).rstrip("\n") + "\n"


def _fingerprints(encoder: Any) -> list[str]:
    return [
        f"- fingerprint of the {part}: `{getattr(encoder, f'{part}_fingerprint')}`"
        for part in ("backbone", "controller")
    ]
