"""A model as one graph for all tasks: ``torch.export`` and ONNX, heads as an input.

The graph takes waveforms (or features, where ESPnet's frontend is another than its
usual one), their lengths, and for each utterance the vector of its task. It returns
what the encoder does, and the log-probabilities of the CTC if there is one.
"""

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from espnet2.asr.frontend.default import DefaultFrontend

from espnet_hra.encoder import exporting
from espnet_hra.errors import ConfigError
from espnet_hra.espnet.seam import standing_in
from espnet_hra.files import atomic
from espnet_hra.tasks.head_input import FORMAT, HEAD
from espnet_hra.version import __version__

#: What tasks may share beside their heads, by its key.
_SHARED = {"shared_head", "shared_rank"}

#: What the exporter of each kind of file imports.
_NEEDS = {".onnx": ("onnx", "onnxscript"), ".pt2": ()}

#: Modules that mask what is padding.
_MASKING = (
    "espnet2.layers.stft",
    "espnet2.layers.log_mel",
    "espnet2.layers.utterance_mvn",
    "espnet2.layers.global_mvn",
)


class _Masks:
    """Stands for ESPnet's ``make_pad_mask``, whose size is a value: the largest length.

    In a graph sizes are sizes: here that of the features, which the graph notes.
    """

    frames: Any = None

    def __call__(
        self,
        lengths: torch.Tensor,
        xs: torch.Tensor | None = None,
        length_dim: int = -1,
        maxlen: Any = None,
    ) -> torch.Tensor:
        if xs is None:
            size = self.frames if maxlen is None else maxlen
            return torch.arange(size, device=lengths.device) >= lengths.unsqueeze(1)
        axis = length_dim % xs.dim()
        positions = torch.arange(xs.size(axis), device=xs.device)
        mask = positions >= lengths.unsqueeze(1)
        return mask.view(
            mask.size(0),
            *(mask.size(1) if i == axis else 1 for i in range(1, xs.dim())),
        )


class Graph(torch.nn.Module):
    """What is exported: a module whose only inputs are tensors.

    The model is no submodule of it. torch.export hands out stand-ins for submodules,
    of which there are no shallow copies, and a pass of an adapted encoder runs on such
    a copy. So its weights become constants of the graph.

    Args:
        model: ESPnet's model, for inference.

    Attributes:
        takes: ``speech`` or ``feats``.

    Raises:
        ConfigError: It cannot become a graph.
    """

    def __init__(self, model: Any):
        super().__init__()
        encoder = exporting.check(model.encoder)
        for part in ("preencoder", "postencoder"):
            if getattr(model, part, None) is not None:
                raise ConfigError(
                    f"a model with a {part} cannot be exported; take one without"
                )
        frontend = model.frontend
        usual = type(frontend) is DefaultFrontend and frontend.stft is not None
        self.takes = "speech" if usual else "feats"
        self._model, self._encoder = (model,), (encoder,)
        self.masks = _Masks()

    def forward(
        self, xs: torch.Tensor, lengths: torch.Tensor, head: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Encode a batch.

        Args:
            xs: Samples, (b, samples), or features, (b, frames, d).
            lengths: Their lengths, (b).
            head: The vector of a task for each utterance, (b, size); (1, size) of a
                method that serves one task at a time.

        Returns:
            Output of the encoder (b, t, width), its lengths (b) and, with a CTC, its
            log-probabilities (b, t, tokens).
        """
        (model,), (encoder,) = self._model, self._encoder
        xs = xs.clone()  # ESPnet writes to features, which here are the caller's
        if self.takes == "speech":
            # One channel: the frontend's enhancement has nothing to do.
            spectrum, lengths = model.frontend.stft(xs, lengths)
            power = spectrum[..., 0] ** 2 + spectrum[..., 1] ** 2
            xs, _ = model.frontend.logmel(power, lengths)
        if model.normalize is not None:
            xs, lengths = model.normalize(xs, lengths)
        self.masks.frames = xs.size(1)
        encoded, lengths = exporting.encode(encoder, xs, lengths, head)
        if model.ctc is None:
            return encoded, lengths
        # Not by the CTC's own module, which may ask which tasks are in force.
        logits = torch.nn.functional.linear(
            encoded, model.ctc.ctc_lo.weight, model.ctc.ctc_lo.bias
        )
        own = exporting.own_logits(encoder, encoded, head)
        if own is not None:
            logits = logits + own
        return encoded, lengths, logits.log_softmax(dim=-1)

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """A block in which the graph is made."""
        own = self._encoder[0].backbone_class.__module__
        with contextlib.ExitStack() as stack:
            for name in (*_MASKING, own):
                module = import_module(name)
                stack.enter_context(standing_in(module, make_pad_mask=self.masks))
            yield


def export(model: Any, sample: int = 16000) -> torch.export.ExportedProgram:
    """The graph of a model, by ``torch.export``.

    Args:
        model: ESPnet's model with an adapted encoder.
        sample: Number of samples of the batch that it is traced with.

    Returns:
        A program for any number of utterances of any length. Its inputs are those of
        :meth:`Graph.forward`.

    Raises:
        ConfigError: The model cannot be exported.
    """
    graph = Graph(model).eval()
    inputs = _example(graph, model, sample)
    dynamic = torch.export.Dim.DYNAMIC
    shapes: Any = [{0: dynamic, 1: dynamic}, {0: dynamic}, {0: dynamic}]
    if not model.encoder.adapter.mixes:
        shapes[2] = None
    training = model.training
    learns = [p for p in model.parameters() if p.requires_grad]
    try:
        model.eval()
        for p in learns:  # what is exported does not learn
            p.requires_grad_(False)
        with torch.no_grad(), graph.traced():
            return torch.export.export(
                graph, inputs, dynamic_shapes=tuple(shapes), strict=False
            )
    finally:
        for p in learns:
            p.requires_grad_(True)
        model.train(training)


def _example(graph: Graph, model: Any, sample: int) -> tuple[torch.Tensor, ...]:
    """A batch to trace with."""
    b = 3  # no size that a graph could take for a special one
    like = model.encoder.like()
    if graph.takes == "speech":
        xs = torch.randn(b, sample)
    else:
        xs = torch.randn(b, sample // 128, _features(model))
    lengths = torch.tensor([xs.size(1) - 7 * i for i in range(b)])
    rows = b if model.encoder.adapter.mixes else 1
    head = torch.randn(rows, model.encoder.adapter.heads.size)
    return xs.to(like), lengths.to(like.device), head.to(like)


def _features(model: Any) -> int:
    """Dimension of the features that the encoder is given."""
    if model.frontend is not None:
        return model.frontend.output_size()
    raise ConfigError(
        "this model takes features and has no frontend that says how many a frame has; "
        "export takes models with a frontend"
    )


def write(path: Path, model: Any, tokens: list[str], rate: int) -> dict[str, Any]:
    """Write a model's graph, and beside it its description and tokens.

    Args:
        path: ``NAME.onnx``, or ``NAME.pt2`` for torch. Beside it appear ``NAME.json``,
            see :func:`describe`, and ``NAME.tokens.txt``.
        model: ESPnet's model with an adapted encoder.
        tokens: Its token list.
        rate: Its sampling rate, in Hz.

    Returns:
        The description.

    Raises:
        ConfigError: The model cannot be exported, a package is missing, or `path` has
            another ending.
    """
    check_path(path)
    program = export(model)
    record = describe(model, rate)
    names = [one["name"] for one in record["inputs"]]
    outputs = [one["name"] for one in record["outputs"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt2":
        torch.export.save(program, path)
    else:
        onnx = torch.onnx.export(
            program, dynamo=True, input_names=names, output_names=outputs, verbose=False
        )
        assert onnx is not None, "torch.onnx.export(dynamo=True) returns a program"
        onnx.save(path)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    atomic.write(path.with_suffix(".json"), text.encode())
    listed = "".join(f"{token}\n" for token in tokens)
    atomic.write(path.with_suffix(".tokens.txt"), listed.encode())
    return record


def check_path(path: Path) -> None:
    """Refuse a file of another kind, or whose exporter is not installed.

    Raises:
        ConfigError: It is so.
    """
    if path.suffix not in _NEEDS:
        raise ConfigError(
            f"{path}: what is exported is called NAME.onnx (ONNX) or NAME.pt2 "
            "(torch.export)"
        )
    missing = [
        name
        for name in _NEEDS[path.suffix]
        if sys.modules.get(name, ...) is None or importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(
            f"{path}: ONNX needs {', '.join(missing)}, not installed: pip install "
            "'espnet-hra[export]'; NAME.pt2 needs nothing more"
        )


def describe(model: Any, rate: int) -> dict[str, Any]:
    """What a program that runs the graph must know, as JSON.

    Args:
        model: ESPnet's model with an adapted encoder.
        rate: Its sampling rate, in Hz.
    """
    encoder = model.encoder
    adapter, takes = encoder.adapter, Graph(model).takes
    xs: list[str | int]
    xs = ["batch", "samples"] if takes == "speech" else ["batch", "frames"]
    if takes == "feats":
        xs.append(_features(model))
    rows = "batch" if adapter.mixes else 1
    outputs = [
        {"name": "encoded", "shape": ["batch", "time", adapter.width]},
        {"name": "encoded_lengths", "shape": ["batch"]},
    ]
    if model.ctc is not None:
        size = model.ctc.ctc_lo.out_features
        outputs.append({"name": "log_probs", "shape": ["batch", "time", size]})
    return {
        "format": FORMAT,
        "version": __version__,
        "inputs": [
            {"name": takes, "shape": xs, "type": "float32"},
            {"name": f"{takes}_lengths", "shape": ["batch"], "type": "int64"},
            {"name": HEAD, "shape": [rows, adapter.heads.size], "type": "float32"},
        ],
        "outputs": outputs,
        "sample_rate": rate,
        "blank": model.blank_id,
        "layout": {k: list(s) for k, s in adapter.heads.layout.shapes.items()},
        # With what all tasks share beside a head, zeros are that alone.
        "zeros_are_the_backbone": not adapter.config.keys() & _SHARED,
        "made_for": encoder.identity(),
    }
