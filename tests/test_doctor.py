"""Proof that an adapter is at work: `doctor`, and what transcripts say of it."""

import re
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from adaptations import make_adaptation, waves
from conftest import BASE_CONFIG, make_base
from small_encoders import adapted_encoder, as_if_trained, batch, parallel

import espnet_hra
from espnet_hra import TaskError, cli
from espnet_hra.encoder import effect
from espnet_hra.tasks import file as taskfile

CHECKPOINT = "valid.cer_ctc.best.pth"


@pytest.fixture(scope="module")
def original(base, tmp_path_factory) -> Path:
    """An adaptation with two tasks; not to be changed."""
    return make_adaptation(tmp_path_factory.mktemp("adapted") / "exp", base)


@pytest.fixture
def model(original, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(original, tmp_path / "exp"))


def doctor(capsys, *argv: object) -> tuple[int, list[str]]:
    """Exit status and lines of a report."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", *map(str, argv)])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok    ", "FAIL  ")) for line in lines), lines
    assert bool(end.value.code) == any(line.startswith("FAIL") for line in lines)
    return end.value.code, lines


def failures(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("FAIL")]


def change_head(model: Path, name: str, change) -> None:
    """Change or remove (None) the head of a task in the checkpoint."""
    state = torch.load(model / CHECKPOINT, weights_only=True)
    key = f"encoder.adapter.heads.{name.replace('.', '/')}"
    if change is None:
        del state[key]
    else:
        state[key] = change(state[key])
    torch.save(state, model / CHECKPOINT)


# ---------------------------------------------------------------------- the report


def test_a_model_that_works(model, an4, capsys):
    recording = next(iter(waves(an4["test"]).values()))
    path = model / "it's one.wav"
    soundfile.write(path, recording, 16000)
    status, lines = doctor(capsys, model, "--wav", path)
    assert status == 0 and not failures(lines)
    text = "\n".join(lines)
    for part in ("environment: Python", "base", "fingerprints", "tasks: 2 of"):
        assert f"ok    {part}" in text
    for task in ("female", "it.carlo"):
        assert re.search(
            f"ok    decoding with {task}: effect [0-9.]+, values sha", text
        )
    assert re.search("fingerprints: .*encoder.*: those of the training", text)
    assert "decoding without a task" in text


def test_a_head_of_zeros_changes_nothing_and_fails(model, capsys):
    change_head(model, "it.carlo", torch.zeros_like)
    status, lines = doctor(capsys, model)
    assert status == 1
    (line,) = failures(lines)
    assert "decoding with it.carlo: the task changes nothing" in line
    status, lines = doctor(capsys, model, "--task", "female")
    assert status == 0 and not any("it.carlo" in line for line in lines)


def test_a_head_that_is_not_in_the_checkpoint_fails(model, capsys):
    change_head(model, "it.carlo", None)
    status, lines = doctor(capsys, model)
    assert status == 1
    (line,) = failures(lines)
    assert CHECKPOINT in line and "keys are missing" in line and "it/carlo" in line


def test_values_that_are_no_numbers_fail(model, capsys):
    change_head(model, "female", lambda head: head.fill_(torch.nan))
    status, lines = doctor(capsys, model)
    (line,) = failures(lines)
    assert "task female: " in line and "NaN" in line


def test_another_base_fails(model, an4, tmp_path, capsys):
    conf = {**BASE_CONFIG, "encoder_conf": {**BASE_CONFIG["encoder_conf"]}}
    other = make_base(tmp_path / "other", an4["tokens"], conf)
    state = torch.load(other / "valid.loss.best.pth", weights_only=True)
    state["ctc.ctc_lo.bias"] += 1
    torch.save(state, other / "valid.loss.best.pth")
    status, lines = doctor(capsys, model, "--pretrained_model", other)
    assert status == 1
    (line,) = failures(lines)
    assert "not the base that the adapter was trained on; ctc: expected" in line


@pytest.mark.parametrize("damage", ["a flipped bit", "half of it", "another task's"])
def test_a_damaged_task_file_fails_and_the_others_are_checked(damage, model, capsys):
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(model), ctc_greedy=True)
    (model / "tasks").mkdir()
    path = model / "tasks" / "female.safetensors"
    speech2text.asr_model.encoder.save_task("it.carlo", path)
    content = bytearray(path.read_bytes())
    if damage == "a flipped bit":
        content[-9] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage[0] == "h" else content)
    status, lines = doctor(capsys, model)
    assert status == 1
    (line,) = failures(lines)
    assert line.startswith("FAIL  task female: ")
    assert any("decoding with it.carlo: effect" in line for line in lines)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nowhere"], "FAIL  model: nowhere"),
        (["MODEL", "--task", "gone"], "FAIL  task gone: there is no such task; known"),
        (["MODEL", "--wav", "gone.wav"], "FAIL  recording: "),
        (["BASE"], "FAIL  model: "),
    ],
)
def test_what_is_not_there_fails(argv, message, model, base, capsys):
    argv = [{"MODEL": model, "BASE": base}.get(word, word) for word in argv]
    status, lines = doctor(capsys, *argv)
    assert status == 1 and any(line.startswith(message) for line in failures(lines))


def test_a_checkpoint_that_is_damaged_fails(model, capsys):
    path = model / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-300])
    status, lines = doctor(capsys, model)
    assert status == 1 and CHECKPOINT in failures(lines)[0]


def test_a_base_that_moved_is_named_with_the_remedy(model, capsys):
    config = yaml.safe_load((model / "config.yaml").read_text())
    config["pretrained_model"] = "/nowhere/base"
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    status, lines = doctor(capsys, model)
    (line,) = failures(lines)
    assert "/nowhere/base" in line and "--pretrained_model" in line


# ------------------------------------------------------------------------- the effect


@pytest.mark.parametrize("adapter", ["hra", "residual", "lora", "bitfit", "road"])
def test_the_effect_is_the_relative_change_of_the_output(adapter):
    encoder = as_if_trained(adapted_encoder("conformer", ["a", "b"], adapter=adapter))
    xs, lengths = batch(3)
    names = ["a", "b", "a"]
    with torch.no_grad():
        encoder.set_task(None)
        plain, frames, _ = encoder(xs, lengths)
        with encoder.use_task(names), effect.watch() as moved:
            y = encoder(xs, lengths)[0]
        with encoder.use_task(names):
            assert torch.equal(encoder(xs, lengths)[0], y)  # watching changes nothing
    assert [one.task for one in moved] == names
    for i, one in enumerate(moved):
        own = slice(int(frames[i]))
        expected = (y[i, own] - plain[i, own]).norm() / plain[i, own].norm()
        assert effect.effect([one]) == pytest.approx(float(expected), rel=1e-4)


def test_a_new_task_has_no_effect_and_the_backbone_none_either():
    encoder = as_if_trained(adapted_encoder("transformer", ["a"]))
    encoder.add_task("new")
    for task in ("new", None):
        with torch.no_grad(), encoder.use_task(task), effect.watch() as moved:
            encoder(*batch(2))
        assert [effect.effect([one]) for one in moved] == [0.0, 0.0]
        assert [one.task for one in moved] == [task, task]


def test_threads_watch_their_own_passes_only():
    encoder = as_if_trained(adapted_encoder("transformer", ["a", "b"]))

    def serve(name: str) -> None:
        for size in (1, 2, 3):
            with torch.no_grad(), encoder.use_task(name), effect.watch() as moved:
                encoder(*batch(size))
            assert [one.task for one in moved] == [name] * size

    parallel(serve, ["a", "b"] * 3)


def test_nothing_is_measured_where_nobody_watches():
    encoder = as_if_trained(adapted_encoder("transformer", ["a"]))
    passes = []
    encoder.encoders[0].register_forward_pre_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        encoder(*batch(1))
        assert len(passes) == 1
        with effect.watch():
            encoder(*batch(1))
    assert len(passes) == 3


# -------------------------------------------------------------------- a transcript


def test_a_transcript_says_what_its_task_had_to_do_with_it(model, an4, tmp_path):
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(model), ctc_greedy=True)
    wave = next(iter(waves(an4["test"]).values()))
    found = speech2text.measured(wave, task="it.carlo")
    assert found.task == "it.carlo" and found.effect > 0.01
    assert found.text == speech2text(wave, task="it.carlo")[0][0]
    assert found.checksum.startswith("values sha256:")

    encoder = speech2text.asr_model.encoder
    (model / "tasks").mkdir()
    path = model / "tasks" / "it.carlo.safetensors"
    encoder.save_task("it.carlo", path)  # the file of a folder, from now on
    checksum = taskfile.read(path).checksum
    assert speech2text.measured(wave, task="it.carlo").checksum == checksum

    other = tmp_path / "female.safetensors"
    encoder.save_task("female", other)
    encoder.load_task(other, replace=True)
    checksum = taskfile.read(other).checksum
    speech2text.set_task("female")
    assert speech2text.measured(wave).checksum == checksum
    with torch.no_grad():
        encoder.adapter.heads.vector("female").add_(0.1)  # trained since
    assert speech2text.measured(wave).checksum.startswith("values sha256:")

    speech2text.set_task(None)
    found = speech2text.measured(wave)
    assert (found.task, found.checksum, found.effect) == (None, None, 0.0)
    with pytest.raises(TaskError, match="unknown task 'gone'"):
        speech2text.measured(wave, task="gone")


def test_transcribe_says_it_on_standard_error(model, an4, tmp_path, capsys):
    files = []
    for name, wave in waves(an4["test"]).items():
        files.append(str(tmp_path / f"{name}.wav"))
        soundfile.write(files[-1], wave, 16000)
    command = ["transcribe", *files, "--model", str(model), "--task", "female"]
    outputs = []
    for more in ([], ["--verbose"]):
        with pytest.raises(SystemExit) as end:
            cli.main([*command, *more])
        assert not end.value.code
        outputs.append(capsys.readouterr())
    assert outputs[0].out == outputs[1].out
    said = [line for line in outputs[1].err.splitlines() if "effect" in line]
    assert len(said) == len(files)
    for line in said:
        assert line.startswith("espnet-hra transcribe: task female, values sha256:")
        assert float(line.rsplit(" ", 1)[1]) > 0.01
    assert "effect" not in outputs[0].err
