#!/usr/bin/env python3
"""Write down what is said in audio files of any format and rate."""

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from espnet2.utils.types import str2bool

from espnet_hra.data.audio import AudioError, read_audio, resample
from espnet_hra.data.requirements import requirements_from_config
from espnet_hra.errors import NoRoomError, one_line


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="espnet-hra transcribe", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio")
    parser.add_argument(
        "--model",
        required=True,
        help="Experiment folder of an adaptation, or folder, zip or tag of a model",
    )
    parser.add_argument("--task", help="The task of all files")
    parser.add_argument(
        "--pretrained_model",
        help="Where the frozen base is, if not where the saved configuration says",
    )
    parser.add_argument(
        "--ctc_greedy",
        type=str2bool,
        help="The best CTC symbol of each frame; false: ESPnet's beam search "
        "(default: true, but for Whisper)",
    )
    parser.add_argument(
        "--language",
        help="Language of the speech, for models that are told: e.g. fr for Whisper "
        "(default: the task's, or else what it hears), fra for models of s2t",
    )
    parser.add_argument(
        "--beam_size", type=int, help="(default: 10; for Whisper 4; 1: no search)"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="(default: 8)")
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="Say of each file which task was used, the checksum of its file, and how "
        "far it moves the encoder's output (on standard error; takes longer)",
    )
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the text of one file, or name, tab and text for each of several.

    Args:
        argv: The options.

    Returns:
        The exit status: 1 if a file could not be read (the others are done all the
        same), else 0.

    Raises:
        UserError: The model or the task is not there.
    """
    args = get_parser().parse_args(argv)

    from espnet_hra.espnet.inference import Speech2Text

    speech2text = Speech2Text.from_pretrained(
        args.model,
        task=args.task,
        ctc_greedy="auto" if args.ctc_greedy is None else args.ctc_greedy,
        pretrained_model=args.pretrained_model,
        device=args.device,
        beam_size=args.beam_size or (10 if args.ctc_greedy is False else None),
    )
    speech2text.set_language(args.language)
    requirements = requirements_from_config(speech2text.train_args)
    rate, frames = requirements.sample_rate, requirements.frames
    failed = False
    for start in range(0, len(args.files), args.batch_size):
        batch: list[tuple[str, np.ndarray]] = []
        for name in args.files[start : start + args.batch_size]:
            try:
                batch.append((name, resample(*read_audio(name), rate)))
            except AudioError as e:
                _tell(str(e))
                failed = True
            except MemoryError:
                _tell(f"{name} does not fit into memory: cut it where nobody speaks")
                failed = True
        # Shorter than a window of the frontend: there is nothing to be heard in it.
        long = [w for _, w in batch if frames is None or frames(len(w)) > 0]
        decode = _measured if args.verbose else _decode
        texts = iter(decode(speech2text, long))
        for name, wave in batch:
            text: str | NoRoomError = ""
            if frames is None or frames(len(wave)) > 0:
                text = next(texts)
            if isinstance(text, NoRoomError):
                _tell(f"{name}: {text}")
                failed = True
                continue
            print(text if len(args.files) == 1 else f"{name}\t{text}", flush=True)
    return int(failed)


def _tell(message: str) -> None:
    print(f"espnet-hra transcribe: {message}", file=sys.stderr, flush=True)


def _measured(speech2text, waves: list[np.ndarray]) -> Iterator[str | NoRoomError]:
    """Texts one by one; what the task had to do with each is said before it."""
    from espnet2.asr_transducer import utils
    from espnet2.legacy.nets.pytorch_backend.transformer import subsampling

    for wave in waves:
        try:
            found = speech2text.measured(wave)
        except (subsampling.TooShortUttError, utils.TooShortUttError):
            yield ""
            continue
        except NoRoomError as e:
            yield e
            continue
        if found.task is None:
            said = "no task: the plain backbone"
        else:
            said = f"task {found.task}, {found.checksum}, effect {found.effect:.4f}"
        _tell(said)
        yield found.text


def _decode(speech2text, waves: list[np.ndarray]) -> list[str | NoRoomError]:
    """Texts of a batch; what is too short for the model is empty."""
    from espnet2.asr_transducer import utils
    from espnet2.legacy.nets.pytorch_backend.transformer import subsampling

    try:
        results = speech2text.batch_decode(waves) if waves else []
    except (subsampling.TooShortUttError, utils.TooShortUttError):
        if len(waves) == 1:
            return [""]
        return [text for wave in waves for text in _decode(speech2text, [wave])]
    except NoRoomError as e:
        if len(waves) == 1:
            return [e]
        return [text for wave in waves for text in _decode(speech2text, [wave])]
    return [speech2text.text_of(nbest) for nbest in results]


if __name__ == "__main__":
    with one_line("transcribe"):
        sys.exit(main())
