"""A base with tasks of random values: for time and equality as good as trained ones."""

import logging
from pathlib import Path
from typing import Any

import torch
import yaml

#: Standard deviation of a head's values: texts differ from task to task, and most are
#: still like the base's.
_SCALE = 0.03


def adapt_at_random(base: str, folder: Path, tasks: int) -> Path:
    """Write the experiment folder of an adaptation that nobody has trained.

    Args:
        base: As ``--pretrained_model`` of a training.
        folder: The folder to write.
        tasks: How many; they are called t000, t001 ...

    Returns:
        The folder.

    Raises:
        UserError: There is no such base.
    """
    from espnet_hra.espnet.task import HRATask

    folder.mkdir(parents=True)
    conf = {"adapter": "hra", "tasks": [f"t{i:03}" for i in range(tasks)]}
    given = folder / "given.yaml"
    given.write_text(yaml.safe_dump({"encoder_conf": conf}))
    args = HRATask.parse(
        ["--config", str(given), "--pretrained_model", base]
        + ["--output_dir", str(folder)]
    )
    model: Any = HRATask.build_model(args)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.encoder.adapter.heads.parameters():
            parameter.copy_(_SCALE * torch.randn(parameter.shape))
    state = {
        key: value
        for key, value in model.state_dict().items()
        if key.startswith("encoder.adapter.")
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(state, folder / "valid.cer_ctc.best.pth")
    logging.info(f"{tasks} tasks of random values in {folder}")
    return folder
