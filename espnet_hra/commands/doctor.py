"""`espnet-hra doctor`: is this adaptation whole, and does it do anything?"""

import argparse
import importlib.metadata
import math
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from espnet_hra.errors import UserError, one_line
from espnet_hra.version import __version__

#: A change that is smaller than this comes of rounding.
_NOTHING = 1e-6

#: Most tasks that are decoded with, where nobody names one.
_MOST = 20


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra doctor",
        description="Check an adaptation: the environment, the frozen base, its "
        "fingerprints, the tasks, and a decoding with each task and without. One line "
        "each, ok or FAIL; a task that changes nothing (a head of zeros, one that was "
        "never trained) fails.",
        epilog="The exit status is 1 if something fails.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="Experiment folder of an adaptation, or folder, zip or tag of a model",
    )
    parser.add_argument(
        "--task", help=f"Only this one (default: all; of many, {_MOST} are decoded)"
    )
    parser.add_argument(
        "--wav", metavar="FILE", help="A recording to decode (default: noise)"
    )
    parser.add_argument(
        "--pretrained_model",
        help="Where the frozen base is, if not where the saved configuration says",
    )
    return parser


class Report:
    """The lines that are printed, and how many of them failed."""

    def __init__(self) -> None:
        self.failed = 0

    def ok(self, what: str, said: str) -> None:
        """Something is as it should be."""
        print(f"ok    {what}: {said}", flush=True)

    def fail(self, what: str, said: object) -> None:
        """Something is not."""
        self.failed += 1
        print(f"FAIL  {what}: {' '.join(str(said).split())}", flush=True)

    def check[Result](self, what: str, work: Callable[[], Result]) -> Result | None:
        """Do something; None, with a line that fails, if it raises."""
        try:
            return work()
        except UserError as e:
            self.fail(what, e)
        except Exception as e:  # of ESPnet and torch, whatever they raise
            self.fail(what, f"{type(e).__name__}: {e}")
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report.

    Returns:
        The exit status: 1 if something fails.
    """
    args = get_parser().parse_args(argv)
    report = Report()
    _environment(report)
    speech2text = _model(args, report)
    if speech2text is not None:
        names = _tasks(args, report, speech2text)
        wave = report.check("recording", lambda: _wave(args.wav, speech2text))
        if wave is not None:
            _decode(report, speech2text, names, wave)
    if report.failed:
        print(f"{report.failed} of these failed", file=sys.stderr)
    return int(report.failed > 0)


# ---------------------------------------------------------------------- environment


def _environment(report: Report) -> None:
    wrong = list(_unmet())
    if wrong:
        report.fail(
            "environment", f"{'; '.join(wrong)}: pip install --upgrade espnet-hra"
        )
        return
    versions = [f"Python {platform.python_version()}", f"espnet-hra {__version__}"]
    versions += [f"{n} {importlib.metadata.version(n)}" for n in ("espnet", "torch")]
    report.ok("environment", ", ".join(versions))


def _unmet() -> Iterator[str]:
    """Requirements of this package that are not fulfilled, in words."""
    from packaging.requirements import Requirement

    try:
        metadata = importlib.metadata.metadata("espnet-hra")
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path
        return
    python = metadata.get("Requires-Python")
    if python and not Requirement(f"python{python}").specifier.contains(
        platform.python_version(), prereleases=True
    ):
        yield f"Python {platform.python_version()}, and it needs {python}"
    for line in metadata.get_all("Requires-Dist") or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue  # of an extra: whoever needs it says so
        try:
            found = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{needed.name} is not installed"
            continue
        if not needed.specifier.contains(found, prereleases=True):
            yield f"{needed.name} {found}, and it needs {needed.specifier}"


# ---------------------------------------------------------------------------- model


def _model(args: argparse.Namespace, report: Report) -> Any:
    """The model, opened as for decoding; None if something is wrong with it."""
    from espnet_hra.espnet.models import checkpoint_tasks, find_model

    found = report.check("model", lambda: find_model(args.model, args.pretrained_model))
    if found is None or report.check("model", lambda: checkpoint_tasks(found)) is None:
        return None
    report.ok("model", f"{found.model_file}")

    from espnet_hra.espnet.fingerprints import fingerprints
    from espnet_hra.espnet.inference import Speech2Text

    # All that is loaded is loaded strictly, and its fingerprints are verified.
    speech2text = report.check(
        "base and checkpoint",
        lambda: Speech2Text.from_pretrained(
            args.model, ctc_greedy="auto", pretrained_model=args.pretrained_model
        ),
    )
    if speech2text is None:
        return None
    encoder = speech2text.model.encoder
    if report.check("base", lambda: encoder.verify_backbone() or True) is None:
        return None
    config = speech2text.train_args
    named = args.pretrained_model or getattr(config, "pretrained_model", None)
    report.ok("base", str(named or "in the checkpoint"))
    expected = getattr(config, "base_fingerprint", None) or {}
    prints = fingerprints(speech2text.model)
    wrong = [part for part, value in expected.items() if prints.get(part) != value]
    if wrong:
        report.fail("fingerprints", f"others than were trained on: {', '.join(wrong)}")
    elif expected:
        report.ok("fingerprints", f"{', '.join(expected)}: those of the training")
    else:
        report.ok("fingerprints", "the configuration names none")
    return speech2text


# ---------------------------------------------------------------------------- tasks


def _tasks(args: argparse.Namespace, report: Report, speech2text: Any) -> list[str]:
    """The tasks to decode with: those that are whole."""
    from espnet_hra.names import listing
    from espnet_hra.tasks import file as taskfile

    encoder, store = speech2text.model.encoder, speech2text.store
    names = [args.task] if args.task else list(speech2text.tasks)
    if not names:
        report.fail("tasks", "there are none: train one, or import one")
    fine = []
    for name in names:

        def whole(name: str = name) -> bool:
            if name not in encoder.adapter.heads and not Path(name).exists():
                known = listing(speech2text.tasks)
                raise UserError(f"there is no such task; known tasks: {known}")
            speech2text.set_task(name)
            if store is None or store.version(name) is None:
                tensors = encoder.adapter.heads.tensors(encoder.chosen_task)
                taskfile.pack(encoder.chosen_task, tensors, encoder.identity())
            return True

        if report.check(f"task {name}", whole):
            fine.append(name)
    if fine:
        report.ok("tasks", f"{len(fine)} of {len(names)} whole, and made for this base")
    return fine


def _wave(path: str | None, speech2text: Any) -> Any:
    """The recording, or noise whose loudness changes as that of speech."""
    import numpy as np

    from espnet_hra.data.audio import AudioError, read_audio, resample
    from espnet_hra.data.requirements import requirements_from_config

    rate = requirements_from_config(speech2text.train_args).sample_rate
    if path is not None:
        try:
            return resample(*read_audio(path), rate)
        except AudioError as e:
            raise UserError(str(e)) from e
    seconds = np.arange(2 * rate) / rate
    noise = np.random.default_rng(0).normal(0, 0.1, len(seconds))
    return (noise * np.sin(2 * np.pi * 2 * seconds) ** 2).astype(np.float32)


# -------------------------------------------------------------------------- decoding


def _decode(report: Report, speech2text: Any, names: Sequence[str], wave: Any) -> None:
    """Decode without a task, and with each."""

    def plain() -> Any:
        speech2text.set_task(None)
        return speech2text.measured(wave)

    without = report.check("decoding without a task", plain)
    if without is None:
        return
    report.ok("decoding without a task", repr(without.text))
    for name in names[:_MOST]:

        def with_task(name: str = name) -> Any:
            speech2text.set_task(name)
            return speech2text.measured(wave)

        found = report.check(f"decoding with {name}", with_task)
        if found is None:
            continue
        what = f"decoding with {name}"
        said = f"effect {found.effect:.4f}, {found.checksum}, {found.text!r}"
        if math.isnan(found.effect):
            report.fail(what, "the encoder's output is not finite: train it again")
        elif found.effect > _NOTHING or _score(found) != _score(without):
            report.ok(what, said)
        else:
            report.fail(
                what,
                "the task changes nothing: its head is as it began, or of zeros; train "
                "it, or load the file that it was trained to",
            )
    if len(names) > _MOST:
        report.ok("decoding", f"{len(names) - _MOST} further tasks were not decoded")


def _score(found: Any) -> Any:
    """Text and score: a task may work in the decoder or in a CTC of its own alone."""
    nbest = found.nbest[0] if isinstance(found.nbest, tuple) else found.nbest
    score = getattr(nbest[0][-1], "score", None)
    return found.text, None if score is None else float(score)


if __name__ == "__main__":
    with one_line("doctor"):
        sys.exit(main())
