"""The command `espnet-hra` and its sub-commands."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from espnet_hra.errors import ConfigError, one_line


def _train(argv: list[str]) -> None:
    from espnet_hra.bin import asr_train

    asr_train.main(argv)


def _decode(argv: list[str]) -> None:
    from espnet_hra.bin import asr_inference

    asr_inference.main(argv)


def _transcribe(argv: list[str]) -> int:
    from espnet_hra.commands import transcribe

    return transcribe.main(argv)


def _params(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="espnet-hra params",
        description="Table of trainable, shared and per-task parameters, and of "
        "multiply-accumulates, of a training configuration (yours, or a saved one).",
    )
    parser.add_argument("config", help="ESPnet configuration (.yaml), e.g. config.yaml")
    parser.add_argument("--pretrained_model", help="The frozen base, if not in it")
    parser.add_argument("--token_list", help="Token list, if not in it")
    parser.add_argument("--json", action="store_true", help="Print JSON, not a table")
    args = parser.parse_args(argv)
    config = _read_config(args.config)
    for name in ("pretrained_model", "token_list"):
        if getattr(args, name) is not None:
            config[name] = getattr(args, name)

    from espnet_hra.espnet import params
    from espnet_hra.espnet.task import HRATask

    counts = params.count(HRATask.build_untrained(config))
    print(json.dumps(counts, indent=2) if args.json else params.table(counts))


def _tasks(argv: list[str]) -> int:
    from espnet_hra.commands import tasks as tasks_cli

    return tasks_cli.main(argv)


def _validate(argv: list[str]) -> int:
    from espnet_hra.commands import validate

    parser = argparse.ArgumentParser(prog="espnet-hra validate")
    validate.add_arguments(parser)
    return validate.run(parser.parse_args(argv))


def _pack(argv: list[str]) -> None:
    from espnet_hra.packs import build as pack

    pack.main(argv)


def _adapt(argv: list[str]) -> int:
    from espnet_hra import adapt

    return adapt.main(argv)


def _report(argv: list[str]) -> int:
    from espnet_hra.report import page as report

    return report.main(argv)


def _bench(argv: list[str]) -> int:
    from espnet_hra import bench

    return bench.main(argv)


def _recipe(argv: list[str]) -> int:
    from espnet_hra.commands import recipe

    return recipe.main(argv)


def _read_config(path: str) -> dict[str, Any]:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"{path}: not a readable configuration: {e}") from e
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: not an ESPnet configuration (keys and values)")
    return config


_COMMANDS: dict[str, tuple[Callable[[list[str]], int | None], str]] = {
    "train": (_train, "train an adapter on a frozen base (ESPnet's options)"),
    "adapt": (_adapt, "train thousands of new tasks, spread over workers (Dask)"),
    "decode": (_decode, "decode data with tasks (ESPnet's options)"),
    "transcribe": (_transcribe, "write down what is said in audio files"),
    "params": (_params, "table of trainable and per-task parameters"),
    "tasks": (_tasks, "list, add, remove, export, import and verify tasks"),
    "validate": (_validate, "check the audio, texts and tasks of data folders"),
    "pack": (_pack, "make a pack of a model or of tasks, and upload it"),
    "report": (_report, "RESULTS.md and pictures, made anew from results.tsv"),
    "bench": (_bench, "compare adapters: quality, speed"),
    "recipe": (_recipe, "copy the recipe, into an ESPnet checkout for instance"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a sub-command; errors of use end with one line and exit status 1 or 2."""
    commands = "\n".join(f"  {name:<12}{text}" for name, (_, text) in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="espnet-hra",
        usage="espnet-hra COMMAND [OPTION ...]",
        description="Hierarchical recurrent adapters for ESPnet.",
        epilog=f"commands:\n{commands}\n\nespnet-hra COMMAND --help lists its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="below")
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv[:1])

    with one_line(f"espnet-hra {args.command}"):
        sys.exit(_COMMANDS[args.command][0](argv[1:]))


if __name__ == "__main__":
    main()
