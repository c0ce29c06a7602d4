"""The command `espnet-hra`: a table of its sub-commands.

Each is a module with a function ``main(argv)``, which is imported only when it is
asked for: torch and ESPnet take seconds.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from espnet_hra.errors import one_line

#: Name: (module of this package, what the command does).
COMMANDS = {
    "validate": ("commands.validate", "check data before training, all in one report"),
    "format": ("commands.format", "write any Kaldi-style data as plain files"),
    "train": ("bin.train", "train an adapter on a frozen base (ESPnet's options)"),
    "adapt": ("adapt", "train thousands of new tasks, spread over workers (Dask)"),
    "decode": ("bin.decode", "decode data with tasks (ESPnet's options)"),
    "score": ("commands.score", "error rates of each task: RESULTS.md, results.tsv"),
    "report": ("commands.report", "RESULTS.md and pictures, anew from results.tsv"),
    "transcribe": ("commands.transcribe", "write down what is said in audio files"),
    "doctor": ("commands.doctor", "check a model: is it whole, do its tasks work"),
    "serve": ("serve", "answer requests over HTTP, as OpenAI's interface does"),
    "align": ("bin.align", "find when each line of a text was said (CTC segmentation)"),
    "params": ("commands.params", "table of trainable and per-task parameters"),
    "tasks": ("commands.tasks", "list, add, remove, export, import, verify tasks"),
    "export": ("commands.export", "one ONNX or torch graph that serves all tasks"),
    "diagnose": ("commands.diagnose", "what tasks do inside a model, layer by layer"),
    "demo": ("demo", "a page in the browser: hear, compare and teach tasks"),
    "pack": ("commands.pack", "make a pack of a model or of tasks, and upload it"),
    "bench": ("bench", "compare adapters: quality, speed"),
    "recipe": ("commands.recipe", "copy the recipe, into an ESPnet checkout for one"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a sub-command; errors of use end with one line and exit status 1 or 2."""
    commands = "\n".join(f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="espnet-hra",
        usage="espnet-hra COMMAND [OPTION ...]",
        description="Hierarchical recurrent adapters for ESPnet.",
        epilog=f"commands:\n{commands}\n\nespnet-hra COMMAND --help lists its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="below")
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv[:1])
    with one_line(f"espnet-hra {args.command}"):
        module, _ = COMMANDS[args.command]
        sys.exit(import_module(f"espnet_hra.{module}").main(argv[1:]))


if __name__ == "__main__":
    main()
