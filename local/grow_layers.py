#!/usr/bin/env python3
"""Begin a deeper Conformer with the weights of a shallower one.

CTC training of a deep encoder that starts at random stays for hours where it emits
little but blanks; two layers leave that state within minutes. So a backbone is trained
in steps: a few layers first, then more on top of them. New layers add nothing at first
(the last matrix of each of their branches is zero), so that the deeper model starts as
the function that the shallower one has learned.
"""

import argparse
import sys
from pathlib import Path

import torch
from espnet2.tasks.asr import ASRTask

from espnet_hra.errors import UserError
from espnet_hra.files.checkpoint import read_state

#: The last linear maps of a Conformer layer's branches.
LAST = ("feed_forward.w_2", "feed_forward_macaron.w_2", "self_attn.linear_out")
LAST += ("conv_module.pointwise_conv2",)


def grow(
    old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The state of a deeper model that computes what a shallower one does.

    Args:
        old: State of the trained model.
        new: State of an untrained one that has more layers, and else the same.

    Returns:
        The new model's state with the old one's weights.

    Raises:
        ValueError: The models differ in more than the number of layers.
    """
    depth = 1 + max(_layer(key) for key in old)
    top = max(_layer(key) for key in new)
    state = dict(new)
    for key, tensor in old.items():
        if key not in new or new[key].shape != tensor.shape:
            raise ValueError(f"{key} of the smaller model has no place in the larger")
        state[key] = tensor
    for key in new.keys() - old.keys():
        if _layer(key) < depth:
            raise ValueError(f"{key} of the larger model is not in the smaller")
        if key.rpartition(".")[0].endswith(LAST):
            state[key] = torch.zeros_like(new[key])
    # A layer ends with a norm, and a norm of a norm is the norm itself as long as scale
    # and shift come last.
    for name, neutral in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
        norms = [f"encoder.encoders.{i}.norm_final.{name}" for i in range(top + 1)]
        for key in norms[depth - 1 :]:
            state[key] = neutral(new[key])
        state[norms[-1]] = old[norms[depth - 1]]
    return state


def _layer(key: str) -> int:
    """The number of a tensor's layer; -1 outside of the layers."""
    parts = key.split(".")
    return int(parts[2]) if parts[:2] == ["encoder", "encoders"] else -1


def main() -> None:
    """Write the checkpoint that the training of a deeper model starts from."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="All other options are those of the deeper model's asr_train.",
    )
    parser.add_argument("--model", required=True, help="the shallower model's .pth")
    parser.add_argument("--out", required=True, help="for --init_param")
    args, options = parser.parse_known_args()
    config = ASRTask.get_parser().parse_args([*options, "--output_dir", "unused"])
    torch.manual_seed(config.seed)
    try:
        deeper = ASRTask.build_model(config).state_dict()
        state = grow(read_state(Path(args.model)), deeper)
    except (UserError, ValueError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {args.model}: {error}")
    torch.save(state, args.out)


if __name__ == "__main__":
    main()
