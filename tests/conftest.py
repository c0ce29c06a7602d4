"""What the tests share: real AN4 utterances, and a small frozen base."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from compatibility import (  # noqa: F401
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
)

ROOT = Path(__file__).resolve().parent.parent

BASE_CONFIG = {
    "token_type": "char",
    "frontend_conf": {"fs": 16000},
    "specaug": None,
    "normalize": "utterance_mvn",
    "encoder": "conformer",
    "encoder_conf": {
        "output_size": 32,
        "attention_heads": 2,
        "linear_units": 48,
        "num_blocks": 3,
        "dropout_rate": 0.1,
        "input_layer": "conv2d",
        "rel_pos_type": "latest",
        "cnn_module_kernel": 7,
    },
    "model_conf": {"ctc_weight": 1.0},
}


#: How many threads there are before any test has changed it.
THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads_as_at_first():
    """Each test begins with as many threads as the first; a sum's bits depend on it.

    The transducer's loss, for one, changes the number for all that comes after it.
    """
    torch.set_num_threads(THREADS)
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def an4(tmp_path_factory) -> dict[str, Path]:
    """Kaldi-style folders `train`, `dev`, `test` with real speech, and `tokens`."""
    folder = tmp_path_factory.mktemp("an4")
    subprocess.run(
        [
            sys.executable,
            ROOT / "local" / "mini_an4.py",
            "--datadir",
            folder / "data",
            "--downloads",
            folder / "downloads",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=folder,
    )
    (train,) = folder.glob("data/**/train")
    text = (train / "text").read_text(encoding="utf-8")
    letters = sorted({c for line in text.splitlines() for c in line.split(None, 1)[1]})
    letters = [letter for letter in letters if letter != " "]
    tokens = folder / "tokens.txt"
    tokens.write_text(
        "\n".join(["<blank>", "<unk>", "<space>", *letters, "<sos/eos>"]) + "\n",
        encoding="utf-8",
    )
    # The paths in wav.scp may be relative to where the data was prepared.
    for scp in folder.glob("data/**/wav.scp"):
        lines = [line.split(None, 1) for line in scp.read_text().splitlines()]
        scp.write_text(
            "".join(f"{key} {os.path.join(folder, path)}\n" for key, path in lines)
        )
    return {
        **{name: train.parent / name for name in ("train", "dev", "test")},
        "tokens": tokens,
    }


def make_base(folder: Path, tokens: Path, config: dict[str, object]) -> Path:
    """Experiment folder of a small ESPnet model, as `asr_train` leaves it.

    Its weights are random (what a backbone knows does not matter to the tests that use
    it), its BatchNorm statistics are not the initial ones.
    """
    from espnet2.tasks.asr import ASRTask

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "given.yaml").write_text(yaml.safe_dump(config))
    args = ASRTask.get_parser().parse_args(
        ["--config", str(folder / "given.yaml"), "--token_list", str(tokens)]
        + ["--output_dir", str(folder)]
    )
    torch.manual_seed(0)
    model = ASRTask.build_model(args)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), folder / "valid.loss.best.pth")
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory, an4) -> Path:
    """A small base, see :func:`make_base`."""
    return make_base(tmp_path_factory.mktemp("base"), an4["tokens"], BASE_CONFIG)
