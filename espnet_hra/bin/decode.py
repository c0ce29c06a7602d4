"""`espnet-hra decode`: the program of the ESPnet task that the model is of."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from espnet_hra.errors import BaseModelError, ConfigError
from espnet_hra.espnet.kinds import KINDS, adaptable, espnet_task_of
from espnet_hra.espnet.models import find_model
from espnet_hra.files.config import read_yaml


def main(cmd: Sequence[str] | None = None) -> None:
    """Decode; `--help` lists the options for models of asr.

    Raises:
        BaseModelError: There is no such model, or the options are those of another
            ESPnet task.
    """
    name = espnet_task(cmd)
    import_module(f"espnet_hra.bin.{name}_inference").main(cmd)


def espnet_task(cmd: Sequence[str] | None) -> str:
    """The ESPnet task of a command line: that of the model that it names."""
    pairs = sorted({kind.files for kind in KINDS.values()})
    names = ["model_tag", *(name for pair in pairs for name in pair)]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    for name in names:
        parser.add_argument(f"--{name}")
    args, _ = parser.parse_known_args(cmd)
    config = read_yaml(args.config, ConfigError) if args.config else {}
    given = {name: getattr(args, name) or config.get(name) for name in names}
    if given["model_tag"]:
        tag = given["model_tag"]
        return adaptable(find_model(tag).espnet_task, tag).name
    for pair in pairs:
        saved, model = (given[name] for name in pair)
        if not (saved or model):
            continue
        path = Path(saved or Path(str(model)).parent / "config.yaml")
        found = espnet_task_of(read_yaml(path, BaseModelError))
        kind = adaptable(found, str(path))
        if kind.files != pair:
            raise BaseModelError(
                f"--{pair[0]} {path}: this model is of the ESPnet task {kind.name}: "
                f"give --{kind.files[0]} and --{kind.files[1]}"
            )
        return kind.name
    return "asr"
