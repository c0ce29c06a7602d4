"""What a model's tasks do while it reads: the measuring of `espnet-hra diagnose`."""

import argparse
import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.encoder.watching import ENCODER, Step, layer_outputs, watching
from espnet_hra.errors import BaseModelError
from espnet_hra.espnet.classifying import Labels
from espnet_hra.espnet.model import DATA_NAME
from espnet_hra.espnet.task import espnet_task
from espnet_hra.report.diagnosis import GATE_END, Diagnosis, Gain, Layer
from espnet_hra.report.scoring import count_errors

#: A unit of a gated controller is active above this share of the usual activity: its
#: state never is exactly zero again.
_QUIET = 1e-4


@dataclass(frozen=True)
class Heard:
    """An utterance.

    Attributes:
        wave: Samples at the model's rate, (samples,).
        tasks: The tasks that read it.
        text: What was said, if it is known.
    """

    wave: np.ndarray
    tasks: Sequence[str]
    text: str | None = None


def diagnose(
    speech2text: Any,
    utterances: Iterable[Heard],
    gradients: bool = True,
    decode: bool = True,
) -> Diagnosis:
    """Let a model read, and look at what its tasks do.

    Args:
        speech2text: An :class:`espnet_hra.Speech2Text` of an adapted model. Nobody else
            uses it meanwhile.
        utterances: What is read, once without a task and once with each of its tasks.
        gradients: Whether the loss of utterances with texts is followed back through
            the layers.
        decode: Whether texts are found, and a decoder looked at; else the encoder alone
            reads, which is a good deal faster, and `gradients` must be False.

    Raises:
        BaseModelError: The model has no adapter.
        TaskError: A task is unknown.
    """
    encoder = speech2text.model.encoder
    if not isinstance(encoder, AdaptedEncoder):
        raise BaseModelError("this model has no adapter: there is nothing to look at")
    controller = str(encoder.adapter.config.get("controller", ""))
    found = Diagnosis(controller=controller)
    for heard in utterances:
        _read(speech2text, encoder, heard, found, decode)
        if gradients and heard.text:
            for name in heard.tasks:
                labels = encoder.labels_of(name)
                if labels and heard.text not in labels:
                    continue
                with _readable(speech2text.model):
                    _follow_back(speech2text, heard, name, found.tasks[name])
    return found


def _read(
    speech2text: Any,
    encoder: AdaptedEncoder,
    heard: Heard,
    found: Diagnosis,
    decode: bool,
) -> None:
    """Read an utterance, and add what was seen."""

    def text_of(task: str | None) -> str:
        if decode:
            text: str = speech2text.text_of(speech2text(heard.wave, task=task))
            return text
        wave = torch.as_tensor(heard.wave, dtype=getattr(torch, speech2text.dtype))
        batch = (wave[None], torch.tensor([len(wave)]))
        with torch.no_grad(), encoder.use_task(task):
            speech2text.model.encode(*(one.to(speech2text.device) for one in batch))
        return ""

    plain: list[torch.Tensor] = []
    with encoder.use_task(None), layer_outputs(encoder, lambda i, x: plain.append(x)):
        before = text_of(None)
    for name in heard.tasks:
        layers = found.tasks.setdefault(name, {})
        streams = iter(plain)
        last: dict[str, Step] = {}

        def tell(
            step: Step,
            layers: dict[tuple[str, int], Layer] = layers,
            streams: Iterator[torch.Tensor] = streams,
            last: dict[str, Step] = last,
        ) -> None:
            layer = layers.setdefault((step.part, step.layer), Layer())
            other = next(streams, None) if step.part == ENCODER else None
            _add(layer, step, other, last.get(step.part), found.controller)
            last[step.part] = step

        with torch.no_grad(), watching(encoder, tell):
            after = text_of(name)
        found.utterances[name] = found.utterances.get(name, 0) + 1
        if not decode or heard.text is None:
            continue
        labels = encoder.labels_of(name)
        if labels:  # the base tells none: there is no rate without the task
            if heard.text in labels:
                found.labels.setdefault(name, []).append(after == heard.text)
        else:
            gain = found.gains.setdefault(name, Gain())
            gain.before.append(count_errors([(heard.text, before)]))
            gain.after.append(count_errors([(heard.text, after)]))


def _add(
    layer: Layer,
    step: Step,
    plain: torch.Tensor | None,
    last: Step | None,
    controller: str,
) -> None:
    """Add a step to the sums of its layer."""
    x, y = step.x.float(), step.y.detach().float()
    layer.frames += x.numel() // x.size(-1)
    layer.stream2 += _squares(x)
    layer.change2 += _squares(y - x)
    if plain is not None and plain.shape == y.shape:
        layer.plain2 += _squares(plain)
        layer.drift2 += _squares(y - plain.float())
    if last is not None and last.layer == step.layer - 1 and last.y.shape == x.shape:
        given = last.y.detach().float()
        layer.along += float((x * given).sum(dtype=torch.float64))
        layer.across2 += _squares(x)
        layer.given2 += _squares(given)
    if step.state is None:
        return
    state = step.state.detach().float()
    if step.forgetful is not None:
        layer.state2 += _squares(state)
        layer.memory2 += _squares(state - step.forgetful.float())
    units = state.reshape(-1, state.size(-1))
    gated = controller == "ligru"
    least = _QUIET * float(units.square().mean().sqrt()) if gated else 0.0
    active = units > least
    stuck = active
    if gated:
        stuck = torch.ones_like(active)
        if step.gate is not None:
            gate = step.gate.reshape(active.shape)
            stuck = (gate < GATE_END) | (gate > 1 - GATE_END)
    layer.units(active.cpu().numpy(), stuck.cpu().numpy())


def _squares(x: torch.Tensor) -> float:
    return float(x.float().square().sum(dtype=torch.float64))


# --------------------------------------------------------------------------- gradients


@contextlib.contextmanager
def _readable(model: Any) -> Iterator[None]:
    """A block in which gradients are followed, and that leaves none behind."""
    learning = [p for p in model.parameters() if p.requires_grad]
    try:
        with torch.enable_grad():
            yield
    finally:
        for p in learning:
            p.grad = None


def _follow_back(
    speech2text: Any,
    heard: Heard,
    name: str,
    layers: dict[tuple[str, int], Layer],
) -> None:
    """Add the gradients of an utterance's loss."""
    model, encoder = speech2text.model, speech2text.model.encoder
    batch = _batch(speech2text, heard, name)
    steps: list[Step] = []

    def tell(step: Step) -> None:
        if step.y.requires_grad:
            step.y.retain_grad()
            steps.append(step)

    def begin(module: Any, args: Any, output: Any) -> None:
        while isinstance(output, tuple):
            output = output[0]
        if not output.requires_grad:  # tasks of a folder do not learn
            output.requires_grad_()

    first = next(encoder.layer_list.each(encoder))
    hook = first.register_forward_hook(begin)
    try:
        with encoder.use_task(name), watching(encoder, tell):
            loss = model(**batch)[0]
        loss.sum().backward()
    finally:
        hook.remove()
    for step in steps:
        if step.y.grad is not None:
            layer = layers.setdefault((step.part, step.layer), Layer())
            layer.gradient2 += _squares(step.y.grad)
            layer.numbers += step.y.numel()


def _batch(speech2text: Any, heard: Heard, name: str) -> dict[str, torch.Tensor]:
    """An utterance as the model's training would get it."""
    args: argparse.Namespace = copy.copy(speech2text.train_args)
    reader = getattr(speech2text, "_whisper", None)
    language = reader.language_of(name) if reader is not None else None
    if language is not None:
        args.languages = {**(getattr(args, "languages", None) or {}), name: language}
    builder, labels = espnet_task("asr"), speech2text.model.encoder.labels_of(name)
    preprocess: Any = builder.build_preprocess_fn(args, False)
    preprocess = Labels(preprocess, {name: labels} if labels else {})
    data = {"speech": heard.wave, "text": heard.text or "", DATA_NAME: name}
    made = preprocess("utterance", data)
    device = speech2text.device
    batch = {}
    for key in ("speech", "text"):
        value = torch.as_tensor(np.asarray(made[key]))[None].to(device)
        batch[key] = value
        batch[f"{key}_lengths"] = torch.tensor([value.size(1)], device=device)
    return batch
