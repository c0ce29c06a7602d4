"""A task's file as an input of an exported graph."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from espnet_hra.errors import TaskError
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.layout import Layout

#: Version of the description beside a graph.
FORMAT = "espnet-hra-export-1"
#: Name of the graph's input.
HEAD = "head"

PathLike = str | os.PathLike[str]


def head_inputs(
    tasks: PathLike | None | Sequence[PathLike | None], description: PathLike
) -> dict[str, np.ndarray]:
    """The input ``head`` of an exported graph.

    Args:
        tasks: File of the task (of ``save_task``, ``espnet-hra tasks export`` or
            ``espnet-hra export --tasks``), or one for each utterance of a batch; None
            for the plain backbone.
        description: The ``.json`` beside the graph.

    Returns:
        ``{"head": array}``, of shape (utterances, size), to be given to the graph with
        its other inputs.

    Examples:
        >>> head = head_inputs(["fr.safetensors", None], "model.json")
        >>> session.run(None, {"speech": waves, "speech_lengths": lengths, **head})

    Raises:
        TaskError: A file is damaged or was made for another model, or the graph cannot
            serve these together.
    """
    record = _description(description)
    layout = Layout()
    layout.extend(record["layout"])
    one = tasks is None or isinstance(tasks, str | os.PathLike)
    listed: list[PathLike | None] = [tasks] if one else list(tasks)  # type: ignore[list-item, arg-type]
    rows = {path: _row(path, layout, record, description) for path in set(listed)}
    if record["inputs"][2]["shape"][0] == 1 and len(set(listed)) == 1:
        listed = listed[:1]
    elif record["inputs"][2]["shape"][0] == 1:
        raise TaskError(
            f"{description}: {record['made_for']['config'].get('adapter')} serves one "
            f"task at a time, and {len(set(listed))} were given: run one batch for each"
        )
    return {HEAD: np.stack([rows[path] for path in listed])}


def _description(path: PathLike) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError) as e:
        raise TaskError(f"{path}: cannot be read: {e}") from e
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise TaskError(
            f"{path}: expected the format {FORMAT!r}, found {found!r}: give the .json "
            "that `espnet-hra export` wrote"
        )
    return record


def _row(
    path: PathLike | None, layout: Layout, record: dict[str, Any], description: PathLike
) -> np.ndarray:
    if path is None:
        if not record["zeros_are_the_backbone"]:
            raise TaskError(
                f"{description}: this adapter has a head that all tasks share, which "
                "the graph always adds: it has no plain backbone, give a task"
            )
        return np.zeros(layout.size, np.float32)
    file = taskfile.load(path, layout.shapes, record["made_for"])
    return layout.flatten(file.tensors, torch.empty(0)).numpy()
