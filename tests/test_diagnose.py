"""`espnet-hra diagnose`: what tasks do inside a model is measured as it is defined."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from adaptations import make_adaptation, texts, waves
from small_encoders import as_if_trained

import espnet_hra
from espnet_hra.commands import diagnose as command
from espnet_hra.encoder.watching import watching
from espnet_hra.errors import ConfigError, DataError, TaskError
from espnet_hra.espnet.diagnosing import Heard, diagnose
from espnet_hra.methods.equations import CONTROLLERS, LiGRU
from espnet_hra.report import diagnosis, faults
from espnet_hra.report.diagnosis import Diagnosis, Gain, Layer
from espnet_hra.report.scoring import count_errors


@pytest.fixture(scope="module")
def model(base, tmp_path_factory) -> Path:
    return make_adaptation(tmp_path_factory.mktemp("adapted") / "exp", base)


def opened(model):
    return espnet_hra.Speech2Text.from_pretrained(str(model), ctc_greedy="auto")


@pytest.fixture
def speech2text(model):
    return opened(model)


@pytest.fixture(scope="module")
def speech(an4):
    return list(waves(an4["test"]).values())


def look(speech2text, speech, tasks=("female",), **kwargs) -> Diagnosis:
    return diagnose(speech2text, [Heard(w, tasks) for w in speech], **kwargs)


def column(found, what, task="female"):
    return [getattr(found.tasks[task][place], what) for place in found.places]


# ------------------------------------------------------------------- what is measured


def test_a_new_task_changes_nothing_and_that_is_said(speech2text, speech):
    speech2text.asr_model.encoder.add_task("new")
    found = look(speech2text, speech, ["new"])
    assert column(found, "change", "new") == column(found, "drift", "new") == [0.0] * 3
    (line,) = [w for w in diagnosis.warnings(found) if "were the tasks trained" in w]
    assert line.startswith("encoder: no layer is changed by more than 0.1 %")


def test_a_change_is_what_the_head_writes_to_the_stream(speech2text, speech):
    """A head of a bias alone writes the same vector after each layer."""
    heads = speech2text.asr_model.encoder.adapter.heads
    with torch.no_grad():
        heads.vector("female").zero_()
        heads.tensors("female")["v"].fill_(0.5)
    streams = []
    encoder = speech2text.asr_model.encoder
    with watching(encoder, lambda step: streams.append(step)):
        speech2text(speech[0], task="female")
    found = look(speech2text, speech[:1])
    for step, measured in zip(streams, column(found, "change"), strict=True):
        assert torch.allclose(step.y - step.x, torch.tensor(0.5), atol=1e-5)
        numbers = step.x.numel()
        expected = math.sqrt(0.25 * numbers) / float(step.x.norm())
        assert measured == pytest.approx(expected, rel=1e-4)
    # At the first layer nothing has changed before.
    assert column(found, "drift")[0] == pytest.approx(column(found, "change")[0])


def test_dead_and_saturated_units_are_found(speech2text, speech):
    controller = speech2text.asr_model.encoder.adapter.controller
    with torch.no_grad():
        controller.W[:5] = 0.0
        controller.u[:5] = 0.0
        controller.b[:2], controller.b[2:5] = -1.0, 1.0
    found = look(speech2text, speech, ("female", "it.carlo"))
    count, dead, saturated = found.units()
    assert count == 16
    assert dead[:5].tolist() == [True] * 2 + [False] * 3
    assert saturated[:5].tolist() == [False] * 2 + [True] * 3
    assert f"{dead.sum()} dead" in diagnosis.for_terminal(found)
    with torch.no_grad():
        controller.W[:], controller.u[:], controller.b[:] = 0.0, 0.0, -1.0
    found = look(speech2text, speech)
    assert any("16 of 16 units are dead" in w for w in diagnosis.warnings(found))


def quick(speech2text, speech, tasks=("female", "it.carlo")):
    """What the recipe looks for after a training: the encoder reads, nothing more."""
    found = look(speech2text, speech, tasks, gradients=False, decode=False)
    assert not found.gains
    return {one.task: one.why for one in faults.faults(found)}


def test_a_quick_look_measures_the_encoder_as_the_long_one_does(speech2text, speech):
    short = look(speech2text, speech, gradients=False, decode=False)
    for what in ("change", "drift", "kept", "memory", "activity"):
        expected = column(look(speech2text, speech, gradients=False), what)
        assert column(short, what) == pytest.approx(expected, nan_ok=True)
    assert quick(speech2text, speech) == {}


@pytest.mark.parametrize(
    "bias, what",
    [(-1.0, "units are dead (never active"), (1.0, "units are saturated (always acti")],
)
def test_a_controller_that_does_not_work_is_a_fault(bias, what, speech2text, speech):
    controller = speech2text.asr_model.encoder.adapter.controller
    with torch.no_grad():
        controller.W[:], controller.u[:], controller.b[:] = 0.0, 0.0, bias
    found = quick(speech2text, speech)
    assert set(found) == {"female", "it.carlo"}
    assert all(f"16 of the controller's 16 {what}" in why for why in found.values())
    with torch.no_grad():
        controller.b[:3] = -bias  # three of sixteen work
    assert quick(speech2text, speech) == {}


def test_a_task_alone_may_be_at_fault(speech2text, speech):
    heads = speech2text.asr_model.encoder.adapter.heads
    with torch.no_grad():
        heads.vector("female").zero_()
    found = quick(speech2text, speech)
    assert list(found) == ["female"] and "changes nothing" in found["female"]
    with torch.no_grad():
        heads.vector("female").fill_(1e38)
    found = quick(speech2text, speech)
    assert list(found) == ["female"] and "inf, nan" in found["female"]


def test_faults_are_a_table(model, an4, tmp_path, capsys):
    path = tmp_path / "faults.tsv"
    assert run(model, an4["test"], "--tasks", "female", "--faults", path) == 0
    assert path.read_text() == "task\twhy\n"
    assert "0 of 1 tasks have an adapter at fault" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--faults measures too little"):
        run(model, an4["test"], "--faults", path, "--json", tmp_path / "x.json")


def test_kept_is_how_far_a_layer_leaves_the_stream_as_it_was(speech2text, speech):
    encoder = speech2text.asr_model.encoder
    steps = []
    with watching(encoder, lambda step: steps.append(step)):
        speech2text(speech[0], task="female")
    kept = column(look(speech2text, speech[:1]), "kept")
    assert math.isnan(kept[0]) and len(kept) == len(steps)
    for before, step, measured in zip(steps[:-1], steps[1:], kept[1:], strict=True):
        vectors = before.y.flatten(), step.x.flatten()
        expected = torch.nn.functional.cosine_similarity(*vectors, dim=0)
        assert measured == pytest.approx(float(expected), abs=1e-5)
        assert -1 < measured < 1
    found = json.loads(json.dumps(diagnosis.as_data(look(speech2text, speech[:1]))))
    layers = found["tasks"]["female"]["layers"]
    assert layers[0]["kept"] is None
    assert [one["kept"] for one in layers[1:]] == pytest.approx(kept[1:])


def test_memory_is_what_the_state_owes_to_layer_one(speech2text, speech):
    """With W = 0 and b = u = 1, h_l is l, and l - 1 without layer 1."""
    controller = speech2text.asr_model.encoder.adapter.controller
    with torch.no_grad():
        controller.W[:], controller.u[:], controller.b[:] = 0.0, 1.0, 1.0
    memory = column(look(speech2text, speech), "memory")
    assert math.isnan(memory[0])
    assert memory[1:] == pytest.approx([1 / 2, 1 / 3])
    with torch.no_grad():
        controller.u[:] = 0.0
    found = look(speech2text, speech)
    assert column(found, "memory")[1:] == [0.0, 0.0]
    assert any("hardly used" in warning for warning in diagnosis.warnings(found))


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_gate_is_the_one_of_the_equations(name):
    torch.manual_seed(0)
    controller = CONTROLLERS[name](6, 4)
    x, h = torch.randn(2, 3, 6), torch.rand(2, 3, 4)
    gate = controller.gate(x, h, 0)
    if not isinstance(controller, LiGRU):
        assert gate is None
        return
    assert controller.gate(x, None, 0) is None
    # h_l = z h_{l-1} + (1 - z) a, and a is what comes of it with z = 0.
    with torch.no_grad():
        new = controller(x, h, 0)
        controller.b[:4] = -1e4
        candidate = controller(x, h, 0)
    assert torch.allclose(new, gate * h + (1 - gate) * candidate, atol=1e-6)


def test_a_gate_at_its_end_is_saturated(base, speech, tmp_path):
    model = make_adaptation(tmp_path / "exp", base, controller="ligru")
    speech2text = opened(model)
    controller = speech2text.asr_model.encoder.adapter.controller
    with torch.no_grad():
        controller.b[:3] = -1e4  # nothing is kept
    found = look(speech2text, speech)
    _, _, saturated = found.units()
    assert found.controller == "ligru" and saturated[:3].all()


def test_a_method_that_changes_weights_drifts_and_adds_nothing(base, speech, tmp_path):
    pytest.importorskip("peft")
    model = make_adaptation(tmp_path / "exp", base, adapter="lora", rank=2)
    found = look(opened(model), speech)
    assert column(found, "change") == [0.0] * 3
    assert all(drift > 0 for drift in column(found, "drift"))
    assert found.units()[0] == 0 and found.controller == ""


def test_who_is_watched_reads_as_ever(speech2text, an4):
    recordings = waves(an4["test"])
    encoder = speech2text.asr_model.encoder
    before = texts(speech2text, recordings, "female")
    with watching(encoder, lambda step: None):
        assert texts(speech2text, recordings, "female") == before
    assert "begin" not in vars(encoder.adapter)
    assert texts(speech2text, recordings, "female") == before


def test_gradients_are_those_of_the_training(speech2text, an4, tmp_path):
    """Of a loss that is scaled, they are scaled; nothing of them stays behind."""
    wave, text = next(iter(waves(an4["train"]).values())), "HELP"
    heard = [Heard(wave, ("female",), text)]
    model = speech2text.asr_model
    first = column(diagnose(speech2text, heard), "gradient")
    assert len(first) == 3 and all(value > 0 for value in first)
    assert all(p.grad is None for p in model.parameters())
    forward = type(model).forward

    def scaled(self, **batch):
        loss, *rest = forward(self, **batch)
        return (3 * loss, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "forward", scaled)
        second = column(diagnose(speech2text, heard), "gradient")
    assert second == pytest.approx([3 * value for value in first], rel=1e-4)
    without = diagnose(speech2text, heard, gradients=False)
    assert all(math.isnan(value) for value in column(without, "gradient"))
    assert "gradient" not in diagnosis.rows(without)[0]


# ----------------------------------------------------------------------------- gains


def errors(*pairs):
    return [count_errors([pair]) for pair in pairs]


def test_a_task_that_brings_nothing_is_named():
    good = errors(*[("one two", "one two")] * 8)
    bad = errors(*[("one two", "one")] * 8)
    mixed = [*bad[:5], *good[:3]]
    found = Diagnosis({n: {("encoder", 0): Layer(1, 1.0, 0.1)} for n in "abc"})
    found.gains = {"a": Gain(bad, good), "b": Gain(good, bad), "c": Gain(mixed, mixed)}
    lines = diagnosis.warnings(found)
    assert len(lines) == 2
    assert "task 'b' brings nothing here: CER +57.1" in lines[0]
    assert "task 'c' brings nothing here: CER +0.0" in lines[1]
    before, after, change = found.gains["a"].rates()
    assert (before.value, after.value) == (pytest.approx(400 / 7), 0.0)
    assert change.low == change.high == pytest.approx(-400 / 7)


def test_a_task_of_labels_is_judged_by_its_labels(base, speech, tmp_path):
    lang = {"name": "lang", "head": "classify", "labels": ["en", "fr", "it"]}
    path = make_adaptation(tmp_path / "exp", base, ["female", lang])
    speech2text = opened(path)
    as_if_trained(speech2text.asr_model.encoder)
    tasks = ["female", "lang"]
    told = [speech2text(wave, task="lang")[0][0] for wave in speech]
    other = next(label for label in lang["labels"] if label != told[1])
    heard = [Heard(speech[0], tasks, told[0]), Heard(speech[1], tasks, other)]
    found = diagnose(speech2text, heard)
    assert found.labels == {"lang": [True, False]} and list(found.gains) == ["female"]
    head, female, line = diagnosis.task_rows(found)
    assert (head[-1], female[-1], line[-1]) == ("wrong labels", "", "1 of 2")
    assert diagnosis.as_data(found)["tasks"]["lang"]["labels"] == {
        "told": 2,
        "wrong": 1,
    }
    assert all(value > 0 for value in column(found, "gradient", "lang"))
    # Of what is none of its labels, it cannot be said whether it was told rightly.
    found = diagnose(speech2text, [Heard(speech[0], ["lang"], "a sentence")])
    assert not found.labels and not found.gains
    assert "gradient" not in diagnosis.rows(found)[0]


def test_one_utterance_has_no_interval():
    _, after, change = diagnosis.paired(
        errors(("one two", "one")), errors(("one two", "one two"))
    )
    assert after.text() == "0.0" and change.text("+") == "-50.0"


# --------------------------------------------------------------------------- command


def run(model, *args) -> int:
    return command.main([str(model), *map(str, args)])


def test_the_command_prints_tables_and_writes_files(model, an4, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    data = Path(shutil.copytree(an4["test"], tmp_path / "data"))
    text = (data / "utt2task").read_text().replace(" male", " it.carlo")
    (data / "utt2task").write_text(text)
    files = ["--out", tmp_path / "p.png", "--json", tmp_path / "d.json"]
    assert run(model, data, *files) == 0
    shown = capsys.readouterr().out
    assert "encoder 3" in shown and "controller indrnn: 16 units" in shown
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "d.json").read_text())
    assert {n: t["utterances"] for n, t in found["tasks"].items()} == {
        "female": 1,
        "it.carlo": 1,
    }
    layers = found["tasks"]["female"]["layers"]
    assert [one["layer"] for one in layers] == [1, 2, 3]
    assert all(one["gradient"] > 0 for one in layers)
    assert "difference" in found["tasks"]["female"]["cer"]
    # Audio files are read by all tasks, and have no texts.
    file = (data / "wav.scp").read_text().split()[1]
    assert run(model, file, "--tasks", "female", "--json", tmp_path / "e.json") == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert list(found["tasks"]) == ["female"] and "cer" not in found["tasks"]["female"]


def test_what_cannot_be_looked_at_is_refused(model, an4, base, tmp_path):
    file = (an4["test"] / "wav.scp").read_text().split()[1]
    with pytest.raises(TaskError, match="unknown task 'x'; known tasks: female"):
        run(model, file, "--tasks", "x")
    with pytest.raises(TaskError, match="has no tasks"):
        run(base, file)
    with pytest.raises(ConfigError, match="--out p.txt: pictures end with .png"):
        run(model, file, "--out", "p.txt")
    with pytest.raises(ConfigError, match="--limit 0"):
        run(model, file, "--limit", 0)
    with pytest.raises(DataError, match="neither a recording nor a Kaldi-style folder"):
        run(model, tmp_path)
    data = Path(shutil.copytree(an4["test"], tmp_path / "data"))
    (data / "utt2task").write_text(
        (data / "utt2task").read_text().replace("female", "x").replace(" male", " x")
    )
    with pytest.raises(DataError, match="no utterance of the tasks female, it.carlo"):
        run(model, data)
    click = tmp_path / "click.wav"
    import soundfile

    soundfile.write(click, np.zeros(100), 16000)
    with pytest.raises(DataError, match="click.wav: too short for this model"):
        run(model, click)
