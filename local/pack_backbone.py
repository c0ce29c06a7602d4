#!/usr/bin/env python3
"""Pack a trained backbone: half precision, no paths of the machine that trained it.

The pack is ESPnet's (`espnet2.bin.pack asr`), with a README beside the model. Models
compute in full precision whatever their file holds.
"""

import argparse
import contextlib
import tempfile
from pathlib import Path

import torch
from espnet2.main_funcs.pack_funcs import pack

from espnet_hra.files.checkpoint import read_state
from espnet_hra.files.config import read_yaml, write_yaml

#: Keys of a training's configuration that say where something was, or what happened.
LOCAL = (
    "config",
    "output_dir",
    "init_param",
    "dry_run",
    "resume",
    "wandb_",
    "train_data_path",
    "valid_data_path",
    "train_shape_file",
    "valid_shape_file",
    "dist_",
    "local_rank",
    "ngpu",
    "pretrain",
    "base_fingerprint",
)


def main() -> None:
    """Write the pack."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="config.yaml of the training")
    parser.add_argument("--model", required=True, help="checkpoint (.pth)")
    parser.add_argument("--readme", help="a text to put in")
    parser.add_argument("--out", required=True, help="the pack (.zip)")
    args = parser.parse_args()
    config = read_yaml(args.config)
    config = {k: v for k, v in config.items() if not k.startswith(LOCAL)}
    # Augmentation was the training's: an adaptation chooses its own.
    for key in [k for k in config.get("preprocessor_conf", {}) if "data_aug" in k]:
        del config["preprocessor_conf"][key]
    state = {
        key: tensor.half() if tensor.is_floating_point() else tensor
        for key, tensor in read_state(Path(args.model)).items()
    }
    out = Path(args.out).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    readme = Path(args.readme).read_bytes() if args.readme else None
    # A pack keeps the paths that it is given.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("backbone").mkdir()
        torch.save(state, "backbone/model.pth")
        write_yaml(Path("backbone/config.yaml"), config)
        if readme is not None:
            Path("README.md").write_bytes(readme)
        pack(
            files={"asr_model_file": "backbone/model.pth"},
            yaml_files={"asr_train_config": "backbone/config.yaml"},
            outpath=str(out),
            option=["README.md"] if readme is not None else [],
        )
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
