"""`espnet-hra train`: the program of the ESPnet task that the base is a model of."""

import argparse
from collections.abc import Sequence
from importlib import import_module

from espnet_hra.errors import ConfigError
from espnet_hra.espnet.base import open_base
from espnet_hra.espnet.kinds import adaptable, espnet_task_of
from espnet_hra.files.config import read_yaml


def main(cmd: Sequence[str] | None = None) -> None:
    """Train; `--help` lists the options of models of asr.

    Raises:
        BaseModelError: There is no such base, or it cannot be adapted.
    """
    name = espnet_task(cmd)
    import_module(f"espnet_hra.bin.{name}_train").main(cmd)


def espnet_task(cmd: Sequence[str] | None) -> str:
    """The ESPnet task of a command line: its base's, or else its configuration's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--pretrained_model")
    parser.add_argument("--init_param", nargs="*")
    args, _ = parser.parse_known_args(cmd)
    config = read_yaml(args.config, ConfigError) if args.config else {}
    base = args.pretrained_model or config.get("pretrained_model")
    files = args.init_param or config.get("init_param") or []
    if base is None and len(files) == 1 and ":" not in files[0]:
        base = files[0]  # it is loaded as a base is
    if base is not None:
        return adaptable(open_base(base).espnet_task, base).name
    return adaptable(espnet_task_of(config), str(args.config)).name
