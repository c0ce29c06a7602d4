"""`espnet-hra demo`: its options, and how the page is started."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.errors import ConfigError, DataError
from espnet_hra.files.config import read_yaml

#: The only address at which the page can be opened: that of this machine for itself.
ADDRESS = "127.0.0.1"


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra demo",
        description="A page in the browser of this machine: hear what the base and its "
        "tasks make of a recording, teach a new task by reading sentences aloud, and "
        "look inside. Nothing leaves the machine.",
        epilog="What the page does: docs/demo.md",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="Experiment folder of an adaptation (or its zip or tag, to listen only)",
    )
    parser.add_argument(
        "--sentences",
        metavar="FILE",
        help="Text file with the sentences to read, one a line (default: thirty "
        "English ones)",
    )
    parser.add_argument(
        "--recordings",
        metavar="DIR",
        help="Keep recordings here, as data for `tasks add` (default: thrown away when "
        "the page ends)",
    )
    parser.add_argument("--port", type=int, help="(default: the first free from 7860)")
    parser.add_argument(
        "--open", action="store_true", help="Open the page in the browser"
    )
    parser.add_argument(
        "--pretrained_model",
        help="Where the frozen base is, if not where the saved configuration says",
    )
    parser.add_argument("--device", default="cpu", help="To listen (default: cpu)")
    group = parser.add_argument_group("How tasks are taught, as of `tasks add`")
    group.add_argument("--config", help="YAML with training options (the model's)")
    group.add_argument("--max_epoch", type=int, help="Epochs (default: the model's)")
    group.add_argument("--seed", type=int, help="(default: the model's)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Open the model, and serve the page until it is interrupted.

    Raises:
        UserError: Options or the model cannot be used.
    """
    args = get_parser().parse_args(argv)
    # Gradio reads these when it is imported. It would count its users otherwise.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # An orderly end, so that recordings and a training at work go with the page.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="espnet_hra.demo.") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        return _serve(args, Path(folder))


def _serve(args: argparse.Namespace, work: Path) -> int:
    from espnet_hra.demo import sentences

    try:
        import gradio  # noqa: F401
    except ImportError as e:
        raise ConfigError(
            f"the page needs Gradio, which cannot be imported ({e}): "
            "pip install 'espnet-hra[demo]'"
        ) from e
    config = read_yaml(Path(args.config), ConfigError) if args.config else {}
    read: Sequence[str] = sentences.DEFAULT
    if args.sentences is not None:
        read = sentences.read_sentences(args.sentences)
    kept = None
    if args.recordings is not None:
        kept = Path(args.recordings).expanduser()
        try:
            kept.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise DataError(f"--recordings {kept}: cannot be made: {e}") from e
    print(f"Opening {args.model}", file=sys.stderr)

    from espnet_hra.demo.listening import Ears
    from espnet_hra.demo.page import Page
    from espnet_hra.demo.teaching import Settings

    ears = Ears.open(args.model, args.pretrained_model, args.device)
    updates = config.get(
        "num_iters_per_epoch",
        getattr(ears.speech2text.train_args, "num_iters_per_epoch", None),
    )
    settings = Settings(
        args.model,
        args.pretrained_model,
        args.config,
        args.max_epoch,
        args.seed,
        updates,
    )
    page = Page(ears, settings, read, work, kept, english=args.sentences is None)
    try:
        page.serve(ADDRESS, args.port, args.open)
    except OSError as e:
        raise ConfigError(
            f"--port {args.port or '7860 to 7959'}: cannot be used: {e}"
        ) from e
    return 0
