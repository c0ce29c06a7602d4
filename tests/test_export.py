"""One graph for all tasks: torch.export and ONNX equal eager, whatever the batch."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from adaptations import TASKS, make_adaptation
from conftest import ROOT
from small_encoders import METHOD_CONFS, adapted_encoder, as_if_trained, batch

import espnet_hra
from espnet_hra.commands import export as command
from espnet_hra.encoder import exporting as encoders
from espnet_hra.errors import ConfigError, TaskError
from espnet_hra.espnet import exporting
from espnet_hra.tasks.head_input import head_inputs

CHOICES = ["female", None, ["it.carlo", "female", "it.carlo"]]


def eager(model, speech, lengths, choice):
    """What ESPnet's model returns, with a task or one for each utterance."""
    with torch.no_grad(), model.encoder.use_task(choice):
        encoded, frames = model.encode(speech.clone(), lengths)
        return encoded, frames, model.ctc.log_softmax(encoded)


def speech(size: int, samples: int):
    generator = torch.Generator().manual_seed(size)
    waves = torch.randn(size, samples, generator=generator)
    return waves, torch.tensor([samples - 500 * i for i in range(size)])


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    """Model, folder with its ONNX graph and heads."""
    folder = tmp_path_factory.mktemp("export")
    exp = make_adaptation(folder / "exp", base)
    words = [str(exp), "--out", str(folder / "model.onnx")]
    assert command.main([*words, "--tasks", str(folder / "heads")]) == 0
    return espnet_hra.Speech2Text.from_pretrained(str(exp)).asr_model, folder


@pytest.fixture(scope="module")
def session(exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(exported[1] / "model.onnx"))


def heads_of(folder, choice, size):
    choice = choice if isinstance(choice, list) else [choice] * size
    files = [name and folder / "heads" / f"{name}.safetensors" for name in choice]
    return head_inputs(files, folder / "model.json")


def run(session, waves, lengths, head):
    given = {"speech": waves.numpy(), "speech_lengths": lengths.numpy(), **head}
    return session.run(None, given)


@pytest.mark.slow
@pytest.mark.shows(encoder="conformer", objective="CTC", entrance="export")
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_onnx_is_eager(exported, session, choice):
    model, folder = exported
    sizes = [(3, 20000)] if isinstance(choice, list) else [(1, 8123), (5, 30011)]
    for size, samples in sizes:
        waves, lengths = speech(size, samples)
        found = run(session, waves, lengths, heads_of(folder, choice, size))
        for one, other in zip(found, eager(model, waves, lengths, choice)):
            np.testing.assert_allclose(one, other.numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_task_that_is_added_later_works_with_the_same_graph(exported, session):
    model, folder = exported
    model.encoder.add_task("later")
    with torch.no_grad():
        model.encoder.adapter.heads.vector("later").uniform_(-0.3, 0.3)
    model.encoder.save_task("later", folder / "heads" / "later.safetensors")
    waves, lengths = speech(2, 12000)
    found = run(session, waves, lengths, heads_of(folder, "later", 2))[2]
    expected = eager(model, waves, lengths, "later")[2].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert np.abs(found - eager(model, waves, lengths, None)[2].numpy()).max() > 0.1


@pytest.mark.slow
def test_the_files_beside_the_graph_and_heads_that_do_not_fit(exported, session):
    model, folder = exported
    record = json.loads((folder / "model.json").read_text())
    size = model.encoder.adapter.heads.size
    assert record["inputs"][2] == {
        "name": "head",
        "shape": ["batch", size],
        "type": "float32",
    }
    assert record["made_for"]["backbone"] == model.encoder.backbone_fingerprint
    lines = (folder / "model.tokens.txt").read_text().splitlines()
    assert lines == model.token_list
    assert {p.stem for p in (folder / "heads").iterdir()} >= set(TASKS)
    waves, lengths = speech(2, 12000)
    with pytest.raises(Exception, match="head"):
        run(session, waves, lengths, {"head": np.zeros((2, size + 1), np.float32)})
    other = as_if_trained(adapted_encoder("conformer", ["a"]))
    other.save_task("a", folder / "a.safetensors")
    with pytest.raises(TaskError, match="was made for another adapter"):
        head_inputs(folder / "a.safetensors", folder / "model.json")
    with pytest.raises(TaskError, match="cannot be read"):
        head_inputs(None, folder / "no.json")


@pytest.mark.slow
def test_the_example_of_the_page_runs(exported, session, monkeypatch, capsys):
    text = (ROOT / "docs" / "export.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(exported[1])
    exec(compile(code, "docs/export.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2


# ------------------------------------------------------------ every method and encoder


class Pass(torch.nn.Module):
    """A pass of an encoder alone, as a graph begins."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = (encoder.requires_grad_(False),)

    def forward(self, xs, lengths, heads):
        return encoders.encode(self.encoder[0], xs, lengths, heads)


CASES = [
    *({"adapter": "hra", "head": head} for head in ("linear", "ffn", "low_rank")),
    *({"adapter": "hra", "controller": c} for c in ("rnn", "ligru", "none", "gated")),
    {"adapter": "hra", "shared_head": True},
    {"adapter": "hra", "shared_head": "layer"},
    {"adapter": "hra", "shared_rank": 2},
    {"adapter": "hra", "prompt_size": 3},
    *(
        {"adapter": name}
        for name in ("residual", "lora", "lily", "road", "prompt", "bitfit")
    ),
    {"adapter": "residual", "placement": "parallel"},
    {"adapter": "lora", "shared_rank": 2},
]


@pytest.mark.parametrize("conf", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_heads_as_an_input_are_the_tasks(conf):
    encoder = as_if_trained(adapted_encoder("conformer", ["a", "b"], **conf))
    xs, lengths = batch(3)
    vectors = {name: encoder.adapter.heads.vector(name).detach() for name in "ab"}
    choices = [["a", "b", "a"]] if encoder.adapter.mixes else [["a"], ["b"]]
    for names in choices:
        heads = torch.stack([vectors[name] for name in names])
        with torch.no_grad(), encoder.use_task(names if len(names) > 1 else names[0]):
            expected = encoder(xs, lengths)
        with torch.no_grad():
            found = encoders.encode(encoder, xs, lengths, heads)
        torch.testing.assert_close(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    if not {"shared_head", "shared_rank"} & conf.keys():
        with torch.no_grad(), encoder.use_task(None):
            expected = encoder(xs, lengths)[0]
        zeros = encoders.encode(encoder, xs, lengths, torch.zeros_like(heads))[0]
        torch.testing.assert_close(zeros, expected)


@pytest.mark.slow
@pytest.mark.shows(encoder="{kind}", entrance="export")
@pytest.mark.parametrize("kind", ["transformer", "branchformer", "e_branchformer"])
def test_every_encoder_that_is_listed_can_be_exported(kind):
    encoder = as_if_trained(adapted_encoder(kind, ["a", "b"]))
    exported_equals_eager(encoder)


@pytest.mark.slow
@pytest.mark.parametrize("conf", [*CASES[1:2], *CASES[4:5], *CASES[-3:]], ids=str)
def test_every_method_can_be_exported(conf):
    exported_equals_eager(as_if_trained(adapted_encoder("conformer", ["a"], **conf)))


def exported_equals_eager(encoder):
    xs, lengths = batch(3)
    rows = 3 if encoder.adapter.mixes else 1
    vector = encoder.adapter.heads.vector("a").detach()
    dynamic = torch.export.Dim.DYNAMIC
    one = {0: dynamic} if rows > 1 else None
    masks = exporting._Masks()
    module = sys.modules[encoder.backbone_class.__module__]
    with exporting.standing_in(module, make_pad_mask=masks), torch.no_grad():
        graph = Pass(encoder)
        forward = graph.forward

        def noted(xs, lengths, heads):
            masks.frames = xs.size(1)
            return forward(xs, lengths, heads)

        graph.forward = noted
        program = torch.export.export(
            graph,
            (xs, lengths, vector.repeat(rows, 1)),
            dynamic_shapes=({0: dynamic, 1: dynamic}, {0: dynamic}, one),
            strict=False,
        )
    xs, lengths = batch(5, frames=71)
    heads = vector.repeat(5 if rows > 1 else 1, 1)
    with torch.no_grad(), encoder.use_task("a"):
        expected = encoder(xs, lengths)
    found = program.module()(xs, lengths, heads)
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(found[1], expected[1])


# -------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("adapter", ["full", "none"])
def test_methods_without_a_head_are_refused_by_name(adapter):
    encoder = adapted_encoder("conformer", ["a"], adapter=adapter)
    with pytest.raises(ConfigError, match=f"adapter: {adapter} cannot be exported"):
        encoders.check(encoder)
    assert adapter in METHOD_CONFS


def test_other_encoders_are_refused_by_name():
    from espnet2.asr.encoder.contextual_block_conformer_encoder import (
        ContextualBlockConformerEncoder,
    )

    from espnet_hra.encoder.adapted import wrap_encoder

    kind = wrap_encoder(ContextualBlockConformerEncoder)
    encoder = kind(
        20, adapter_conf={"controller_size": 4}, output_size=16, num_blocks=1
    )
    with pytest.raises(
        ConfigError, match="ContextualBlockConformerEncoder is not poss"
    ):
        encoders.check(encoder)
    with pytest.raises(ConfigError, match="this model has no adapter"):
        encoders.check(torch.nn.Linear(1, 1))


def test_what_is_missing_is_told_at_once(tmp_path, monkeypatch):
    out = ["exp", "--out", str(tmp_path / "model.txt")]
    with pytest.raises(ConfigError, match="NAME.onnx"):
        command.main(out)
    with pytest.raises(ConfigError, match="give --tasks too"):
        command.main([*out, "--task", "female"])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript.*espnet-hra\[export\]"):
        exporting.check_path(tmp_path / "model.onnx")
    exporting.check_path(tmp_path / "model.pt2")
    assert not os.listdir(tmp_path)
