"""`espnet-hra tasks`, the tasks beside a model, and `Speech2Text` with them."""

import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adaptations import TASKS, make_adaptation, texts, waves

import espnet_hra
from espnet_hra import TaskError, cli
from espnet_hra.errors import BaseModelError, DataError
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.store import TaskStore
from espnet_hra.tasks.voice import Voice


@pytest.fixture(scope="module")
def original(an4, base, tmp_path_factory) -> Path:
    """An adaptation with two tasks in its checkpoint; not to be changed."""
    return make_adaptation(tmp_path_factory.mktemp("adapted") / "exp", base)


@pytest.fixture
def model(original, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(original, tmp_path / "exp"))


@pytest.fixture
def recordings(an4):
    return waves(an4["test"])


def run(*argv: object) -> int:
    """Run `espnet-hra tasks`; the exit status."""
    with pytest.raises(SystemExit) as end:
        cli.main(["tasks", *map(str, argv)])
    return end.value.code


def opened(model, **kwargs):
    return espnet_hra.Speech2Text.from_pretrained(
        str(model), ctc_greedy=True, ctc_weight=1.0, **kwargs
    )


def listed(model, capsys):
    capsys.readouterr()
    assert run("list", "--model", model, "--json") == 0
    return {row["task"]: row for row in json.loads(capsys.readouterr().out)}


def exported(model, name, out) -> bytes:
    assert run("export", name, "--model", model, "--out", out) == 0
    return Path(out).read_bytes()


def with_another(model: Path, name: str, folder: Path, seed: int = 9) -> Path:
    """A task file that fits the model, with values of its own."""
    encoder = opened(model).asr_model.encoder
    if name in encoder.tasks:
        encoder.remove_task(name)
    encoder.add_task(name)
    torch.manual_seed(seed)
    with torch.no_grad():
        encoder.adapter.heads.vector(name).normal_(0, 0.3)
    path = folder / f"{name}.safetensors"
    encoder.save_task(name, path, info={"license": "cc0-1.0"})
    return path


# -------------------------------------------------------------------- on the disk


def test_tasks_of_the_checkpoint_are_listed(model, capsys):
    assert {k: v["where"] for k, v in listed(model, capsys).items()} == dict.fromkeys(
        TASKS, "checkpoint"
    )
    assert run("list", "--model", model) == 0
    assert "female\tcheckpoint" in capsys.readouterr().out


def test_export_and_import_give_the_same_transcripts(
    model, original, tmp_path, recordings, capsys
):
    file = tmp_path / "female.safetensors"
    content = exported(model, "female", file)
    assert exported(model, "female", tmp_path / "again") == content
    tensors = opened(model).asr_model.encoder.adapter.heads.tensors("female")
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    assert len(content) <= size + 4096
    assert run("remove", "female", "--model", model) == 0
    assert "female" not in listed(model, capsys)
    assert opened(model).tasks == ("it.carlo",)
    assert run("import", file, "--model", model) == 0
    assert listed(model, capsys)["female"]["where"] == "file"
    assert (model / "tasks" / "female.safetensors").read_bytes() == content
    now, before = opened(model), opened(original)
    for task in (*TASKS, None):
        assert texts(now, recordings, task) == texts(before, recordings, task)
    # and what is exported again is the file that was imported
    assert exported(model, "female", tmp_path / "third") == content


def test_the_checkpoint_is_never_written_to(model, tmp_path):
    checkpoint = model / "valid.cer_ctc.best.pth"
    before = checkpoint.read_bytes()
    file = with_another(model, "female", tmp_path)
    assert run("import", file, "--model", model, "--replace") == 0
    assert run("remove", "female", "it.carlo", "--model", model) == 0
    assert checkpoint.read_bytes() == before
    assert opened(model).tasks == ()


def test_a_file_goes_before_the_checkpoint(model, tmp_path, recordings):
    file = with_another(model, "female", tmp_path)
    before = texts(opened(model), recordings, "female")
    with pytest.raises(SystemExit, match="exists already.*--replace"):
        cli.main(["tasks", "import", str(file), "--model", str(model)])
    assert texts(opened(model), recordings, "female") == before
    assert run("import", file, "--model", model, "--replace") == 0
    assert texts(opened(model), recordings, "female") != before
    assert run("remove", "female", "--model", model) == 0
    assert "female" not in opened(model).tasks  # nor does the old one come back


def test_a_new_task_changes_no_other(model, tmp_path, recordings):
    for i in range(3):
        file = with_another(model, f"t{i}", tmp_path, i)
        assert run("import", file, "--model", model) == 0
    names = [*TASKS, "t0", "t1", "t2"]
    before = {n: exported(model, n, tmp_path / n) for n in names}
    said = {n: texts(opened(model), recordings, n) for n in names}
    file = with_another(model, "sixth", tmp_path)
    assert run("import", file, "--model", model) == 0
    assert {n: exported(model, n, tmp_path / n) for n in names} == before
    assert {n: texts(opened(model), recordings, n) for n in names} == said


def test_what_does_not_fit_is_not_imported(model, base, tmp_path, capsys):
    other = make_adaptation(tmp_path / "other", base, controller_size=8)
    exported(other, "female", tmp_path / "female.safetensors")
    good = with_another(model, "good", tmp_path)
    for bad in (tmp_path / "female.safetensors", tmp_path / "none", model):
        with pytest.raises(SystemExit, match=Path(bad).name):
            cli.main(
                ["tasks", "import", str(good), str(bad), "--model", str(model)]
                + ["--replace"]
            )
    assert set(listed(model, capsys)) == set(TASKS)  # not even the good one


def test_unknown_tasks_are_errors_that_list_the_known(model):
    for command in (["remove", "x"], ["export", "x"]):
        with pytest.raises(SystemExit, match="unknown task 'x'; known tasks: female"):
            cli.main(["tasks", *command, "--model", str(model)])


def test_verify_finds_damage_and_strangers(model, tmp_path, capsys):
    for name in ("a", "b", "c"):
        assert run("import", with_another(model, name, tmp_path), "--model", model) == 0
    assert run("verify", "--model", model) == 0
    folder = model / "tasks"
    content = bytearray((folder / "a.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "a.safetensors").write_bytes(content)
    shutil.copyfile(folder / "b.safetensors", folder / "c.safetensors")
    capsys.readouterr()
    assert run("verify", "--model", model) == 1
    lines = dict(
        line.split("\t", 1) for line in capsys.readouterr().out.splitlines() if line
    )
    assert lines["b"] == lines["female"] == "fine"
    assert "checksum" in lines["a"]
    assert "expected the task 'c', found 'b'" in lines["c"]
    assert run("verify", folder / "a.safetensors") == 1
    assert run("verify", folder / "b.safetensors") == 0


def _put(folder: str, content: bytes, names: list) -> None:
    store = TaskStore(folder)
    for name in names:
        try:
            store.put(content, name)
        except TaskError:
            pass
        if name.startswith("mine"):
            store.remove(name)


def test_two_processes_at_once(tmp_path):
    """Both add the same tasks and their own; nothing is lost, torn or left over."""
    content = bytes(range(256)) * 200
    shared = [f"t{i}" for i in range(40)]
    context = multiprocessing.get_context("fork")
    jobs = [
        context.Process(
            target=_put,
            args=(
                str(tmp_path),
                content,
                [*shared, *(f"mine{k}{i}" for i in range(9))],
            ),
        )
        for k in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    assert TaskStore(tmp_path).names == tuple(sorted(shared))
    names = {p.name for p in tmp_path.iterdir()} - {".lock"}
    assert names == {f"{n}.safetensors" for n in shared}
    assert all((tmp_path / n).read_bytes() == content for n in names)


def test_two_removals_at_once_are_both_remembered(tmp_path):
    context = multiprocessing.get_context("fork")
    jobs = [
        context.Process(target=TaskStore(tmp_path).remove, args=(f"t{i}", True))
        for i in range(8)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert TaskStore(tmp_path).removed == {f"t{i}" for i in range(8)}


# ------------------------------------------------------------------------ Speech2Text


def test_stored_tasks_are_loaded_when_they_are_chosen(model, tmp_path, recordings):
    file = with_another(model, "new", tmp_path)
    assert run("import", file, "--model", model) == 0
    speech2text = opened(model)
    assert speech2text.tasks == (*TASKS, "new")
    assert speech2text.asr_model.encoder.loaded_tasks == TASKS
    wave = next(iter(recordings.values()))
    with pytest.raises(TaskError, match="female, it.carlo, new"):
        speech2text(wave)
    with pytest.raises(TaskError, match="female, it.carlo, new"):
        speech2text.batch_decode([wave])
    speech2text.set_task("new")
    assert speech2text.asr_model.encoder.loaded_tasks == (*TASKS, "new")
    with pytest.raises(TaskError, match="'x'.*female, it.carlo, new"):
        speech2text.set_task("x")
    one = opened(model, task="new")
    assert texts(one, recordings, "new") == texts(speech2text, recordings, "new")


def test_a_task_may_be_named_by_its_file(model, tmp_path, recordings):
    file = with_another(model, "new", tmp_path)
    by_path = opened(model, task=str(file))
    assert by_path.asr_model.encoder.chosen_task == "new"
    by_path.set_task("female")
    by_path.set_task(str(file))  # it is loaded once
    assert run("import", file, "--model", model) == 0
    by_name = opened(model, task="new")
    assert texts(by_path, recordings, "new") == texts(by_name, recordings, "new")


def test_a_single_stored_task_is_chosen_by_itself(model, tmp_path, recordings):
    file = with_another(model, "new", tmp_path)
    assert run("import", file, "--model", model) == 0
    assert run("remove", *TASKS, "--model", model) == 0
    speech2text = opened(model)
    wave = next(iter(recordings.values()))
    said = speech2text(wave)[0][0]
    assert speech2text.asr_model.encoder.chosen_task == "new"
    speech2text.set_task("new")
    assert speech2text(wave)[0][0] == said


@pytest.mark.parametrize("ctc_greedy", [True, False])
def test_a_list_of_waveforms_with_one_task_each(
    model, tmp_path, recordings, ctc_greedy
):
    file = with_another(model, "new", tmp_path)
    assert run("import", file, "--model", model) == 0
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(model), ctc_greedy=ctc_greedy, ctc_weight=1.0, beam_size=2
    )
    recordings = [*recordings.values()] * 2
    tasks = [
        ("female", "new", "it.carlo", "new")[i % 4] for i in range(len(recordings))
    ]
    together = speech2text(recordings, task=tasks)
    alone = [speech2text(w, task=t)[0] for w, t in zip(recordings, tasks)]
    assert [nbest[0][0] for nbest in together] == [best[0] for best in alone]
    speech2text.set_task(tasks)
    again = speech2text(recordings)
    assert [nbest[0][0] for nbest in again] == [best[0] for best in alone]
    with pytest.raises(TaskError, match="1 tasks"):
        speech2text(recordings, task=["female"])


def test_a_swapped_file_in_the_folder_is_refused(model, tmp_path):
    for name in ("a", "b"):
        assert run("import", with_another(model, name, tmp_path), "--model", model) == 0
    folder = model / "tasks"
    shutil.copyfile(folder / "a.safetensors", folder / "b.safetensors")
    with pytest.raises(TaskError, match="expected the task 'b', found 'a'"):
        opened(model, task="b")


def test_changes_of_the_folder_count_while_a_model_is_open(model, tmp_path, recordings):
    speech2text = opened(model, max_loaded_tasks=1)
    before = texts(speech2text, recordings, "female")
    file = with_another(model, "female", tmp_path)
    assert run("import", file, "--model", model, "--replace") == 0
    after = texts(speech2text, recordings, "female")
    assert after == texts(opened(model), recordings, "female") != before
    assert run("import", with_another(model, "b", tmp_path), "--model", model) == 0
    assert texts(speech2text, recordings, "b") == texts(opened(model), recordings, "b")
    assert speech2text.asr_model.encoder.loaded_tasks == (*TASKS, "b")
    assert run("remove", "female", "b", "--model", model) == 0
    assert speech2text.tasks == ("it.carlo",)
    for gone in ("female", "b"):
        with pytest.raises(TaskError, match=f"unknown task '{gone}'.*it.carlo"):
            speech2text.set_task(gone)


@pytest.mark.parametrize("ctc_greedy", [True, False])
def test_a_request_ends_with_the_head_it_began_with(
    base, tmp_path, recordings, ctc_greedy
):
    """The encoder and the CTC use a task one after the other."""
    model = make_adaptation(tmp_path / "exp", base, ctc="task")
    speech2text = opened(model)
    encoder = speech2text.asr_model.encoder
    encoder.save_task("female", tmp_path / "first")
    with torch.no_grad():
        encoder.adapter.heads.vector("female").mul_(-1.0)
    encoder.save_task("female", tmp_path / "second")
    (model / "tasks").mkdir()
    stored = model / "tasks" / "female.safetensors"
    shutil.copyfile(tmp_path / "first", stored)
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(model), ctc_greedy=ctc_greedy, ctc_weight=1.0, beam_size=2
    )
    encoder = speech2text.asr_model.encoder
    before = texts(speech2text, recordings, "female")
    speech2text.set_task("female")

    def disturb(*ignored):
        shutil.copyfile(tmp_path / "second", stored)
        speech2text.set_task("it.carlo")

    hook = encoder.encoders[-1].register_forward_hook(disturb)
    wave = next(iter(recordings.values()))
    text, *_, hypothesis = speech2text(wave)[0]
    assert f"{text} {float(hypothesis.score):.6f}" == before[0]
    hook.remove()
    assert encoder.chosen_task == "it.carlo"
    assert texts(speech2text, recordings, "female")[0] != before[0]


def test_a_task_of_another_vocabulary_or_base_is_refused(model, tmp_path):
    """The same encoder, but another CTC or token list around it."""
    file = with_another(model, "new", tmp_path)
    for change in ({"tokens": "sha256:" + "1" * 64}, {"base": {"ctc": "sha256:2"}}):
        speech2text = opened(model)
        encoder = speech2text.asr_model.encoder
        encoder.surroundings = {**encoder.surroundings, **change}
        with pytest.raises(TaskError, match="expected fingerprint"):
            speech2text.set_task(str(file))


def test_what_is_said_about_a_task_stays_with_it(model, tmp_path, capsys):
    file = with_another(model, "new", tmp_path)
    info = {"scores": [{"split": "test", "utterances": 3, "cer": 4.5, "wer": 9.0}]}
    encoder = opened(model, task=str(file)).asr_model.encoder
    encoder.save_task("new", file, info=info)
    encoder.load_task(file, replace=True)
    encoder.save_task("new", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    with torch.no_grad():
        encoder.adapter.heads.vector("new").add_(0.1)
    encoder.save_task("new", tmp_path / "trained")
    said = taskfile.read(tmp_path / "trained").info
    assert said["license"] == "cc0-1.0" and "scores" not in said
    assert run("import", file, "--model", model) == 0
    row = listed(model, capsys)["new"]
    assert row["license"] == "cc0-1.0" and row["scores"] == info["scores"]
    record = taskfile.describe(file)
    assert {"format", "task", "config", "backbone", "controller", "base"} < set(record)
    assert {"tokens", "license", "scores", "date", "versions"} < set(record)


# --------------------------------------------------------------------------- training


def kaldi(an4, folder: Path) -> Path:
    """A Kaldi-style folder with audio by whole paths."""
    folder.mkdir()
    for name in ("wav.scp", "text"):
        shutil.copyfile(an4["train"] / name, folder / name)
    return folder


@pytest.mark.shows(encoder="conformer", objective="CTC", entrance="tasks add")
def test_a_task_is_added_in_one_command(
    model, an4, tmp_path, recordings, capsys, monkeypatch
):
    before = {n: exported(model, n, tmp_path / n) for n in TASKS}
    said = {n: texts(opened(model), recordings, n) for n in TASKS}
    data = kaldi(an4, tmp_path / "voice")
    code = run(
        *("add", "new", data, "--model", model, "--max_epoch", 3),
        *("--license", "cc-by-4.0", "--language", "en"),
    )
    assert code == 0
    row = listed(model, capsys)["new"]
    assert row["license"] == "cc-by-4.0" and row["languages"] == ["en"]
    assert row["data"].startswith("voice (") and row["scores"][0]["split"] == "dev"
    # How it sounds is in the file, for whoever reads files, and not in the list.
    record = taskfile.describe(model / "tasks" / "new.safetensors")
    assert Voice.read(record["voice"]).windows > 100 and "voice" not in row
    assert opened(model).tasks == (*TASKS, "new")
    assert {n: exported(model, n, tmp_path / n) for n in TASKS} == before
    assert {n: texts(opened(model), recordings, n) for n in TASKS} == said
    new = texts(opened(model), recordings, "new")
    assert new != texts(opened(model), recordings, None)  # it has learned something
    assert run("verify", "new", "--model", model) == 0
    assert not [p for p in (model / "tasks").iterdir() if p.name.startswith(".new")]
    with pytest.raises(SystemExit, match="'new' exists already"):
        cli.main(["tasks", "add", "new", str(data), "--model", str(model)])


def test_data_that_cannot_be_used_is_refused_before_training(model, an4, tmp_path):
    from espnet_hra.commands import tasks as tasks_cli

    data = kaldi(an4, tmp_path / "voice")
    command = ["add", "new", str(data), "--model", str(model)]
    lines = (data / "text").read_text().splitlines()
    (data / "text").write_text("\n".join([*lines[:-1], lines[-1] + " ÄÖ"]) + "\n")
    with pytest.raises(DataError, match="--skip_bad"):
        tasks_cli.main(command)
    (data / "text").unlink()
    with pytest.raises(DataError, match="there is no such file"):
        tasks_cli.main(command)
    with pytest.raises(TaskError, match="not a task name"):
        tasks_cli.main(["add", "a/b", str(data), "--model", str(model)])
    assert not (model / "tasks").exists()


def test_a_zip_is_no_place_for_tasks(model, tmp_path):
    from espnet_hra.commands import tasks as tasks_cli

    (tmp_path / "base.zip").write_bytes(b"")
    with pytest.raises(BaseModelError, match="into a folder first"):
        tasks_cli.main(["remove", "a", "--model", str(tmp_path / "base.zip")])


def test_list_needs_no_espnet_task(model):
    """It answers quickly."""
    code = (
        "import sys\nfrom espnet_hra import cli\n"
        "try: cli.main(sys.argv[1:])\nexcept SystemExit as e: assert not e.code, e\n"
        "assert 'espnet2.tasks.asr' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code, "tasks", "list", "--model", str(model)], check=True
    )
