"""Export a model with the head as an input: one graph (ONNX, torch) for all tasks."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.errors import ConfigError, one_line


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="espnet-hra export", description=__doc__)
    parser.add_argument(
        "model", help="Experiment folder of an adaptation, or folder, zip or tag"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="NAME.onnx for ONNX, NAME.pt2 for torch; NAME.json and NAME.tokens.txt "
        "appear beside it",
    )
    parser.add_argument(
        "--tasks",
        type=Path,
        metavar="DIR",
        help="Write the heads as task files into this folder as well",
    )
    parser.add_argument(
        "--task", nargs="+", metavar="NAME", help="Only these (default: all tasks)"
    )
    parser.add_argument(
        "--pretrained_model",
        help="Where the frozen base is, if not where the saved configuration says",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the graph, its description, the tokens, and heads if they are asked for.

    Args:
        argv: The options.

    Returns:
        The exit status.

    Raises:
        UserError: The model or a task is not there, or cannot be exported.
    """
    args = get_parser().parse_args(argv)
    if args.task and args.tasks is None:
        raise ConfigError("--task says whose heads --tasks DIR gets; give --tasks too")

    from espnet_hra.data.requirements import requirements_from_config
    from espnet_hra.espnet import exporting
    from espnet_hra.espnet.inference import Speech2Text

    exporting.check_path(args.out)
    opened = Speech2Text.from_pretrained(
        args.model, pretrained_model=args.pretrained_model
    )
    if not isinstance(opened, Speech2Text):
        raise ConfigError(
            f"{args.model}: this model is of the ESPnet task {opened._kind().name}; "
            "those of asr can be exported"
        )
    model = opened.asr_model
    encoder = exporting.exporting.check(model.encoder)
    names = args.task or (encoder.tasks if args.tasks else ())
    for name in names:
        encoder.adapter.heads.vector(name)  # an unknown task is refused now
    rate = requirements_from_config(opened.train_args).sample_rate
    exporting.write(args.out, model, model.token_list, rate)
    print(f"{args.out}: the graph; beside it its description and tokens")
    for name in names:
        args.tasks.mkdir(parents=True, exist_ok=True)
        encoder.save_task(name, args.tasks / f"{name}.safetensors")
    if names:
        print(f"{args.tasks}: {len(names)} tasks")
    return 0


if __name__ == "__main__":
    with one_line("export"):
        sys.exit(main())
