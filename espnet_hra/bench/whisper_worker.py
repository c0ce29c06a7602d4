"""One side of `espnet-hra bench whisper`: a process that decodes what it is told.

It reads its settings and then the numbers of utterances as lines of JSON, and answers
each with seconds and texts. Recordings are in memory before the clock runs.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

#: A language, a task, samples.
Item = tuple[str, str | None, np.ndarray]


def ours(settings: dict[str, Any]) -> Callable[[Sequence[Item]], list[str]]:
    """The adapted model: utterances of all tasks in one batch."""
    import torch

    from espnet_hra.espnet.inference import Speech2Text

    torch.set_num_threads(settings["threads"])
    speech2text: Any = Speech2Text.from_pretrained(settings["model"])

    def decode(items: Sequence[Item]) -> list[str]:
        texts = [""] * len(items)
        # Alike lengths together: what is padded is computed as well.
        order = sorted(range(len(items)), key=lambda i: len(items[i][2]))
        for start in range(0, len(order), settings["batch_size"]):
            part = order[start : start + settings["batch_size"]]
            tasks = [items[i][1] for i in part]
            with speech2text.model.encoder.use_task(tasks):
                found = speech2text.batch_decode([items[i][2] for i in part])
            for i, nbest in zip(part, found):
                texts[i] = nbest[0][0]
        return texts

    return decode


def faster_whisper(settings: dict[str, Any]) -> Callable[[Sequence[Item]], list[str]]:
    """faster-whisper, greedy, in float32, one utterance after the other."""
    from faster_whisper import WhisperModel

    model = WhisperModel(
        settings["faster_whisper"],
        device="cpu",
        compute_type="float32",
        cpu_threads=settings["threads"],
        local_files_only=True,
    )

    def decode(items: Sequence[Item]) -> list[str]:
        texts = []
        for language, _, wave in items:
            segments, _ = model.transcribe(
                wave,
                language=language or None,
                beam_size=1,
                best_of=1,
                temperature=0.0,
                condition_on_previous_text=False,
                without_timestamps=True,
            )
            texts.append("".join(segment.text for segment in segments))
        return texts

    return decode


SIDES = {"ours": ours, "faster-whisper": faster_whisper}


def main() -> None:
    """Serve until there is nothing more to read."""
    # Libraries print; answers go where they cannot be mixed up with that.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from espnet_hra.data.audio import read_audio

    settings = json.loads(sys.stdin.readline())
    decode = SIDES[settings["side"]](settings)
    items = [
        (language, task, read_audio(path)[0].astype(np.float32))
        for language, task, path in settings["items"]
    ]
    decode(items[:2])
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        chosen = [items[i] for i in json.loads(line)]
        start = time.perf_counter()
        texts = decode(chosen)
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, texts]), file=answers, flush=True)


if __name__ == "__main__":
    main()
