"""A small adaptation on disk, as `espnet-hra train` leaves it, without the training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml

TASKS = ("female", "it.carlo")


def make_adaptation(
    folder: Path,
    base: Path,
    tasks: Sequence[str] = TASKS,
    adapter: str = "hra",
    **adapter_conf: object,
) -> Path:
    """Experiment folder of an adaptation whose tasks differ audibly."""
    from espnet_hra.espnet.task import HRATask

    folder.mkdir(parents=True)
    if adapter == "hra":
        adapter_conf = {"controller_size": 16, **adapter_conf}
    given = {
        "encoder_conf": {
            "adapter": adapter,
            "adapter_conf": adapter_conf,
            "tasks": list(tasks),
        },
        "optim": "adamw",
        "optim_conf": {"lr": 0.01},
        "batch_type": "unsorted",
        "batch_size": 3,
        "num_workers": 0,
        "max_epoch": 2,
        "keep_nbest_models": 1,
        "best_model_criterion": [["valid", "cer_ctc", "min"]],
        "seed": 1,
    }
    (folder / "given.yaml").write_text(yaml.safe_dump(given))
    args = HRATask.parse(
        ["--config", str(folder / "given.yaml"), "--pretrained_model", str(base)]
        + ["--output_dir", str(folder)]
    )
    model = HRATask.build_model(args)
    torch.manual_seed(4)
    with torch.no_grad():
        for p in model.encoder.adapter.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    state = model.state_dict()
    state = {k: v for k, v in state.items() if k.startswith("encoder.adapter.")}
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(state, folder / "valid.cer_ctc.best.pth")
    return folder


def waves(folder: Path) -> dict[str, np.ndarray]:
    """The recordings of a Kaldi-style folder."""
    lines = (folder / "wav.scp").read_text().splitlines()
    pairs = [line.split(maxsplit=1) for line in lines]
    return {name: soundfile.read(path, dtype="float32")[0] for name, path in pairs}


def texts(speech2text, recordings: dict[str, np.ndarray], task: object) -> list[str]:
    """What a task makes of recordings: text and score, to tell tasks apart."""
    speech2text.set_task(task)
    results = [speech2text(wave)[0] for wave in recordings.values()]
    return [f"{text} {float(hypothesis.score):.6f}" for text, *_, hypothesis in results]
