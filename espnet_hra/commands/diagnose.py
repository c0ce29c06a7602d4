"""`espnet-hra diagnose`: what a model's tasks do inside it, layer by layer."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from espnet_hra.errors import ConfigError, DataError, TaskError
from espnet_hra.names import listing

#: Endings of pictures.
_PICTURES = (".png", ".svg", ".pdf")


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra diagnose",
        description="What a model's tasks do inside it while it reads: what each "
        "layer's adapter adds, which units of the controller are dead or saturated, "
        "how far it remembers, and which tasks bring nothing.",
        epilog="What the columns mean: docs/diagnose.md",
    )
    parser.add_argument("model", metavar="MODEL", help="as for `transcribe --model`")
    parser.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help="audio files, or a Kaldi-style folder with wav.scp and, if there are, "
        "utt2task (else all tasks read all) and text (for errors and gradients)",
    )
    parser.add_argument(
        "--tasks", nargs="+", metavar="NAME", help="tasks to look at (default: all)"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=20,
        help="most utterances that a task reads (default: 20)",
    )
    parser.add_argument("--out", help="picture to write (.png, .svg, .pdf)")
    parser.add_argument("--json", metavar="FILE", help="all numbers, as JSON")
    parser.add_argument(
        "--faults",
        metavar="FILE",
        help="only look for tasks whose adapter does not work (numbers that are none, "
        "a controller that is dead or saturated, no effect), and write them into this "
        "table; quick, as nothing is decoded",
    )
    parser.add_argument(
        "--pretrained_model",
        help="Where the frozen base is, if not where the saved configuration says",
    )
    parser.add_argument(
        "--language", help="Language of the speech, for a Whisper (default: the task's)"
    )
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables.

    Raises:
        UserError: Model, tasks or data cannot be used.
    """
    args = get_parser().parse_args(argv)
    out = None if args.out is None else Path(args.out)
    if out is not None and out.suffix.lower() not in _PICTURES:
        raise ConfigError(f"--out {out}: pictures end with {', '.join(_PICTURES)}")
    if args.faults is not None and (out is not None or args.json is not None):
        raise ConfigError("--faults measures too little for --out and --json")
    if args.limit < 1:
        raise ConfigError(f"--limit {args.limit}: at least one utterance is needed")
    paths = list(_recordings([Path(name) for name in args.data]))

    from espnet_hra.espnet.diagnosing import diagnose
    from espnet_hra.espnet.inference import Speech2Text
    from espnet_hra.files import atomic, tables
    from espnet_hra.report import diagnosis, diagnosis_picture, faults, pictures

    speech2text = Speech2Text.from_pretrained(
        args.model,
        ctc_greedy="auto",
        pretrained_model=args.pretrained_model,
        device=args.device,
    )
    speech2text.set_language(args.language)
    tasks = _tasks(speech2text.tasks, args.tasks, args.model)
    heard = _heard(paths, tasks, args.limit, speech2text.train_args)
    quick = args.faults is not None
    found = diagnose(speech2text, heard, gradients=not quick, decode=not quick)
    if not found.tasks:
        raise DataError(
            f"{' '.join(args.data)}: no utterance of the tasks {listing(tasks)}"
        )
    if quick:
        wrong = faults.faults(found)
        tables.write_table(args.faults, wrong, faults.Fault)
        for one in wrong:
            print(f"task {one.task}: {one.why}")
        print(f"{len(wrong)} of {len(found.tasks)} tasks have an adapter at fault")
        return 0
    print(diagnosis.for_terminal(found))
    if args.json is not None:
        text = json.dumps(diagnosis.as_data(found), indent=2) + "\n"
        atomic.write(args.json, text.encode())
    if out is not None:
        figure = diagnosis_picture.draw(found)
        atomic.write(out, pictures.encoded(figure, out.suffix.lower()[1:]))
    return 0


def _tasks(known: Sequence[str], asked: Sequence[str] | None, model: str) -> list[str]:
    if not known:
        raise TaskError(
            f"{model}: this model has no tasks: there is nothing to look at"
        )
    for name in asked or ():
        if name not in known:
            raise TaskError(f"unknown task {name!r}; known tasks: {listing(known)}")
    return list(asked or known)


#: A recording's place, its text and its task, where they are known.
_Recording = tuple[str, str | None, str | None]


def _recordings(paths: Sequence[Path]) -> Iterator[_Recording]:
    """What is to be read, in the given order."""
    from espnet_hra.data.intake import check_plain, settle
    from espnet_hra.data.lists import read_entries

    for path in paths:
        if path.is_file():
            yield str(path), None, None
            continue
        if not (path / "wav.scp").is_file():
            raise DataError(
                f"{path}: neither a recording nor a Kaldi-style folder with wav.scp"
            )
        check_plain(path / "wav.scp")
        lists: dict[str, dict[str, str]] = {
            name: read_entries(path / name) if (path / name).is_file() else {}
            for name in ("text", "utt2task")
        }
        for utterance, entry in read_entries(path / "wav.scp").items():
            text, task = (lists[name].get(utterance) for name in ("text", "utt2task"))
            yield settle(entry, path), text, task


def _heard(
    recordings: Sequence[_Recording], tasks: Sequence[str], limit: int, config: Any
) -> Iterator[Any]:
    """The recordings with the tasks that read each, with progress."""
    from espnet_hra.data.audio import read_audio, resample
    from espnet_hra.data.requirements import requirements_from_config
    from espnet_hra.espnet.diagnosing import Heard

    requirements = requirements_from_config(config)
    left = dict.fromkeys(tasks, limit)
    chosen = []
    for place, text, task in recordings:
        readers = [n for n in tasks if task in (None, n) and left[n] > 0]
        for name in readers:
            left[name] -= 1
        if readers:
            chosen.append((place, text, readers))
    for number, (place, text, readers) in enumerate(chosen, 1):
        wave = resample(*read_audio(place), requirements.sample_rate)
        if requirements.frames is not None and not requirements.frames(len(wave)):
            raise DataError(f"{place}: too short for this model")
        yield Heard(wave, readers, text)
        print(f"\r{number} of {len(chosen)} utterances", end="", file=sys.stderr)
    if chosen:
        print(file=sys.stderr)
