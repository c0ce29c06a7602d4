"""`espnet-hra params`: what an adapter costs, from a configuration alone."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.errors import ConfigError
from espnet_hra.files.config import read_yaml


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra params",
        description="Table of trainable, shared and per-task parameters, and of "
        "multiply-accumulates, of a training configuration (yours, or a saved one).",
    )
    parser.add_argument("config", help="ESPnet configuration (.yaml), e.g. config.yaml")
    parser.add_argument("--pretrained_model", help="The frozen base, if not in it")
    parser.add_argument("--token_list", help="Token list, if not in it")
    parser.add_argument("--json", action="store_true", help="Print JSON, not a table")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table; `--help` lists the options."""
    args = get_parser().parse_args(argv)
    config = read_yaml(args.config, ConfigError)
    if config.get("base_fingerprint"):  # a saved one: its paths are from elsewhere
        from espnet_hra.espnet.base import read_config

        config = read_config(Path(args.config), args.pretrained_model)
    for name in ("pretrained_model", "token_list"):
        if getattr(args, name) is not None:
            config[name] = getattr(args, name)

    from espnet_hra.espnet import params
    from espnet_hra.espnet.task import task_for

    counts = params.count(task_for(config, args.config).build_untrained(config))
    print(json.dumps(counts, indent=2) if args.json else params.table(counts))
