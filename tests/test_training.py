"""Training and decoding through ESPnet, on real speech."""

import logging
from pathlib import Path
from typing import Dict, List

import pytest
import torch
import yaml

ADAPTATION = {
    "encoder_conf": {
        "adapter": "hra",
        "adapter_conf": {"controller_size": 16},
        "tasks": ["female", "male"],
    },
    "optim": "adamw",
    "optim_conf": {"lr": 0.01, "weight_decay": 0.01},
    "batch_type": "unsorted",
    "batch_size": 3,
    "num_workers": 0,
    "max_epoch": 4,
    "keep_nbest_models": 3,
    "best_model_criterion": [["valid", "loss", "min"]],
    "use_tensorboard": False,
    "use_matplotlib": False,
    "seed": 1,
}


def options(
    an4: Dict[str, Path], base: Path, output: Path, **changes: object
) -> List[str]:
    """Command line of a training on AN4."""
    output.mkdir(parents=True, exist_ok=True)
    config = output.parent / f"{output.name}.yaml"
    config.write_text(yaml.safe_dump({**ADAPTATION, **changes}))
    cmd = ["--config", str(config), "--output_dir", str(output)]
    cmd += ["--pretrained_model", str(base)]
    for part, folder in (("train", an4["train"]), ("valid", an4["dev"])):
        for file, name, kind in (
            ("wav.scp", "speech", "sound"),
            ("text", "text", "text"),
            ("utt2task", "utt2task", "text"),
        ):
            cmd += [f"--{part}_data_path_and_name_and_type"]
            cmd += [f"{folder / file},{name},{kind}"]
        cmd += [f"--{part}_shape_file", str(folder / "text")]
    return cmd


@pytest.fixture(scope="module")
def trained(an4, base, tmp_path_factory) -> Path:
    """A joint training of both tasks."""
    from espnet_hra.bin import asr_train

    output = tmp_path_factory.mktemp("joint") / "exp"
    asr_train.main(options(an4, base, output))
    return output


def load(path: Path) -> Dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def test_checkpoints_hold_the_adapter_only(trained):
    for path in trained.glob("*epoch.pth"):
        assert load(path)
        assert all(key.startswith("encoder.adapter.") for key in load(path))
    assert all(
        key.startswith("encoder.adapter.") for key in load(trained / "valid.loss.ave.pth")
    )
