"""What is looked at before a training begins: its data, and tokens that are new."""

import argparse
import collections
import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from espnet_hra.data import checks
from espnet_hra.data.lists import read_entries, read_list, write_lists, write_subset
from espnet_hra.data.rates import check_openable
from espnet_hra.data.requirements import requirements_from_config
from espnet_hra.errors import ConfigError, DataError
from espnet_hra.espnet import ctc
from espnet_hra.espnet.model import DATA_NAME
from espnet_hra.files import atomic
from espnet_hra.names import listing

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def messages(level: int | str) -> Iterator[None]:
    """Show this package's messages before ESPnet sets up logging, without doing it."""
    log, handler = logging.getLogger("espnet_hra"), logging.StreamHandler()
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def check_options(args: argparse.Namespace) -> None:
    """Complete and refuse options before anything is read.

    Raises:
        ConfigError: They would train something else than they say.
    """
    for key in ("optim_conf", "scheduler_conf"):
        setattr(args, key, _numbers(getattr(args, key, None)))
    if getattr(args, "use_adapter", False):
        raise ConfigError(
            "use_adapter: true is ESPnet's own LoRA, whose weights a checkpoint of an "
            "adapter does not hold: take it out, and choose the adapter by "
            "encoder_conf: {adapter: lora}"
        )
    if args.ngpu > 0 and not torch.cuda.is_available():
        raise ConfigError(
            f"--ngpu {args.ngpu}: torch sees no GPU here; --ngpu 0 trains on the CPU"
        )


def _numbers(value: Any) -> Any:
    """Numbers that YAML reads as words: 1e-3, for which it wants 1.0e-3."""
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(one) for one in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+e[-+]?\d+", value, re.I):
        return float(value)
    return value


@contextlib.contextmanager
def config_kept(folder: Path) -> Iterator[None]:
    """A block whose failure leaves the configuration of a finished training there.

    ESPnet writes ``config.yaml`` before it looks whether it can go on from what is in
    the folder. The file must go on to belong to the checkpoints beside it.
    """
    files = {name: folder / name for name in ("config.yaml", "checkpoint.pth")}
    before = {name: _stat(path) for name, path in files.items()}
    kept = files["config.yaml"].read_bytes() if before["config.yaml"] else b""
    try:
        yield
    except BaseException:
        same = _stat(files["checkpoint.pth"]) == before["checkpoint.pth"]
        changed = _stat(files["config.yaml"]) != before["config.yaml"]
        if kept and before["checkpoint.pth"] and same and changed:
            atomic.write(files["config.yaml"], kept)
        raise


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def check_data(args: argparse.Namespace) -> None:
    """Check the data of training and validation; see :mod:`espnet_hra.data.checks`.

    Raises:
        DataError: With all problems of both in one report, unless they shall be
            skipped; then the arguments name lists without them.
    """
    try:
        requirements = requirements_from_config(args)
    except (ValueError, OSError) as e:
        raise DataError(f"the configuration cannot be used: {e}") from e
    reports = {}
    for part in ("train", "valid"):
        for path, _, form in getattr(args, f"{part}_data_path_and_name_and_type"):
            if form == "sound":  # their rates are in the report below
                check_openable(path)
        lists = _lists(args, part)
        if "speech" not in lists or args.multi_task_dataset:
            continue  # features, or data in a form of their own
        if DATA_NAME not in lists and len(requirements.tasks or ()) > 1:
            raise DataError(
                f"there are several tasks ({listing(requirements.tasks or ())}) and "
                "nothing says which utterance has which: add "
                f"--{part}_data_path_and_name_and_"
                f"type PATH/{DATA_NAME},{DATA_NAME},text"
            )
        reports[part] = checks.check(
            lists["speech"],
            lists.get("text"),
            lists.get(DATA_NAME),
            requirements=requirements,
        )
    bad = {part: report for part, report in reports.items() if not report.ok}
    if not bad:
        return
    text = "\n".join(f"{part} data: {report}" for part, report in bad.items())
    if not args.skip_bad:
        raise DataError(
            f"{text}\nCorrect them, or leave these utterances out with --skip_bad true"
        )
    logger.warning(f"{text}\nLeft out, because of --skip_bad true")
    for part, report in bad.items():
        if not report.good:
            raise DataError(f"{text}\nNo utterance of the {part} data is left")
        _restrict(args, part, report.good)


def settle_new_tokens(args: argparse.Namespace) -> None:
    """Replace ``new_tokens: auto`` by tokens, and add new tokens to the token list.

    Raises:
        ConfigError: They cannot be learned.
        DataError: The training text cannot be read.
    """
    own = args.encoder_conf.get("adapter_conf") or {}
    if not own.get("new_tokens"):
        return
    if own["new_tokens"] == ctc.AUTO:
        found = _unknown_tokens(args)
        logger.info(f"New tokens, from the training text: {found or 'none'}")
        args.encoder_conf["adapter_conf"] = {**own, "new_tokens": list(found)}
    tokens, new = ctc.settle(args)
    args.token_list = ctc.with_new(tokens, new)


def _unknown_tokens(args: argparse.Namespace) -> dict[str, int]:
    """How often the training text has which characters that the base lacks."""
    if args.token_type != "char":
        raise ConfigError(
            f"adapter_conf: new_tokens: {ctc.AUTO} takes characters from the "
            f"text, and this model's tokens are of another type ({args.token_type})"
        )
    counts: collections.Counter = collections.Counter()
    try:
        tokenizer = requirements_from_config(args).tokenizer
        path = _lists(args, "train").get("text")
        if path is not None and tokenizer is not None:
            found = read_list(path)
            if not found.usable:
                raise ValueError(f"{path}: {found.problems[0].detail}")
            for text in found.entries.values():
                counts.update(tokenizer(text))
    except (ValueError, OSError) as e:
        raise DataError(f"the training text cannot be read: {e}") from e
    known = set(ctc.read_tokens(args.token_list))
    return {token: counts[token] for token in sorted(counts) if token not in known}


def _lists(args: argparse.Namespace, part: str) -> dict[str, str]:
    """The lists of a part's data streams, by name."""
    known = {("speech", "sound"), ("text", "text"), (DATA_NAME, "text")}
    # What a frontend (or an encoder of waveforms) reads from archives is recordings.
    if args.frontend is not None or args.input_size == 1:
        known.add(("speech", "kaldi_ark"))
    return {
        name: path
        for path, name, kind in getattr(args, f"{part}_data_path_and_name_and_type")
        if (name, kind) in known
    }


def _restrict(args: argparse.Namespace, part: str, keep: Sequence[str]) -> None:
    """Make the arguments name copies of the lists that have some utterances only."""
    folder = Path(args.output_dir) / "checked" / part
    lists = _lists(args, part)
    sources = {_KALDI_NAMES[name]: path for name, path in lists.items()}
    write_subset(sources, folder, keep)
    setattr(
        args,
        f"{part}_data_path_and_name_and_type",
        [
            (str(folder / _KALDI_NAMES[name]) if name in lists else path, name, kind)
            for path, name, kind in getattr(args, f"{part}_data_path_and_name_and_type")
        ],
    )
    kept = set(keep)
    shapes: dict[str, list[str]] = {}
    for path in getattr(args, f"{part}_shape_file"):
        shapes[f"shape.{len(shapes)}"] = [
            f"{utterance} {shape}".rstrip()
            for utterance, shape in read_entries(path).items()
            if utterance in kept
        ]
    write_lists(folder, shapes)
    setattr(args, f"{part}_shape_file", [str(folder / name) for name in shapes])


_KALDI_NAMES = {"speech": "wav.scp", "text": "text", DATA_NAME: DATA_NAME}
