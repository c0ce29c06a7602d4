"""`espnet-hra adapt`: many new tasks, each with a training of its own, over Dask.

Most tests let Dask's worker be a thread of this process, which saves its start; those
about dying workers have processes.
"""

import csv
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from adaptations import make_adaptation, texts, waves

import espnet_hra
from espnet_hra import cli
from espnet_hra.adapt import cluster, main, plan
from espnet_hra.errors import BaseModelError, ConfigError, DataError, TaskError
from espnet_hra.tasks import file as taskfile

TRAINING = {
    "encoder_conf": {"adapter": "hra", "adapter_conf": {"controller_size": 16}},
    "optim": "adamw",
    "optim_conf": {"lr": 0.01},
    "batch_type": "unsorted",
    "batch_size": 2,
    "max_epoch": 2,
    "keep_nbest_models": 2,
    "best_model_criterion": [["valid", "loss", "min"]],
    "seed": 1,
}

CHECKPOINT = "valid.cer_ctc.best.pth"


@pytest.fixture(scope="module")
def joint(base, tmp_path_factory) -> Path:
    """An earlier joint adaptation, whose controller is used; not to be changed."""
    folder = tmp_path_factory.mktemp("joint") / "exp"
    return make_adaptation(folder, base, ("female", "male"))


def make_data(an4: dict[str, Path], folder: Path, tasks: dict[str, slice]) -> Path:
    """Data of new tasks: each has some of AN4's utterances, under names of its own."""
    for part in ("train", "dev"):
        (folder / part).mkdir(parents=True)
        lists: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2task": []}
        for task, some in tasks.items():
            for name in ("wav.scp", "text"):
                for line in (an4[part] / name).read_text().splitlines()[some]:
                    lists[name].append(f"{task}-{line}\n")
            for line in (an4[part] / "text").read_text().splitlines()[some]:
                lists["utt2task"].append(f"{task}-{line.split()[0]} {task}\n")
        for name, lines in lists.items():
            (folder / part / name).write_text("".join(sorted(lines)))
    return folder


def break_task(data: Path, task: str) -> None:
    """Let one recording of a task be missing."""
    path = data / "train" / "wav.scp"
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"{task}-"))
    lines[first] = f"{lines[first].split()[0]} /nowhere/{task}.flac"
    path.write_text("\n".join(lines) + "\n")


def command(base: Path, joint: Path, data: Path, out: Path, **changes) -> list[str]:
    """The options that all tests share."""
    config = out.parent / f"{out.name}.yaml"
    config.write_text(yaml.safe_dump({**TRAINING, **changes}))
    argv = ["--config", config, "--pretrained_model", base]
    argv += ["--init_adapter", joint / CHECKPOINT, "--data", data, "--out", out]
    return [str(arg) for arg in argv]


@pytest.fixture(scope="module")
def threads(tmp_path_factory) -> list[str]:
    """Options for a worker within this process."""
    path = tmp_path_factory.mktemp("parallel") / "parallel.yaml"
    block = {"env": "local", "n_workers": 1, "options": {"processes": False}}
    path.write_text(yaml.safe_dump({"parallel": block}))
    return ["--parallel", str(path)]


@pytest.fixture(scope="module")
def data(an4, tmp_path_factory) -> Path:
    """Three tasks, of which one cannot be read."""
    tasks = {"a": slice(0, 3), "b.2": slice(2, 5), "broken": slice(1, 3)}
    folder = make_data(an4, tmp_path_factory.mktemp("data") / "data", tasks)
    break_task(folder, "broken")
    return folder


@pytest.fixture(scope="module")
def first(base, joint, data, threads, tmp_path_factory) -> Path:
    """A run over all three; not to be changed."""
    out = tmp_path_factory.mktemp("first") / "out"
    assert main([*command(base, joint, data, out), *threads]) == 1
    return out


@pytest.fixture
def out(first, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(first, tmp_path / "out"))


def table(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "tasks.tsv", encoding="utf-8", newline="") as file:
        return {row["task"]: row for row in csv.DictReader(file, delimiter="\t")}


def head(out: Path, name: str) -> dict[str, torch.Tensor]:
    return taskfile.read(out / "tasks" / f"{name}.safetensors").tensors


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------- the result


def test_a_broken_task_does_not_stop_the_others(first):
    rows = table(first)
    assert list(rows) == ["a", "b.2", "broken"]
    for name in ("a", "b.2"):
        row = rows[name]
        assert row["status"] == "done" and row["utterances"] == "3"
        assert float(row["minutes"]) > 0 and float(row["seconds"]) > 0
        assert row["updates"] == "2"  # two epochs of one batch
        assert float(row["loss"]) < float(row["loss_before"])
        assert float(row["cer"]) >= 0 and float(row["cer_before"]) >= 0
        assert Path(row["file"]) == first / "tasks" / f"{name}.safetensors"
        assert "2epoch" in (first / "adapt" / name / "train.log").read_text()
        assert any(tensor.any() for tensor in head(first, name).values())
    row = rows["broken"]
    assert row["status"] == "failed" and row["file"] == ""
    assert "missing audio" in row["note"] and "/nowhere/broken.flac" in row["note"]
    assert "/nowhere/broken.flac" in (first / "adapt/broken/train.log").read_text()
    assert not (first / "tasks" / "broken.safetensors").exists()


@pytest.mark.shows(encoder="conformer", objective="CTC", entrance="adapt")
def test_the_folder_is_a_model_with_the_tasks(first, joint, an4, capsys):
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(first), task="b.2", ctc_greedy=True, ctc_weight=1.0
    )
    assert set(speech2text.tasks) == {"female", "male", "a", "b.2"}
    recordings = waves(an4["test"])
    said = {task: texts(speech2text, recordings, task) for task in ("a", "b.2", None)}
    assert said["a"] != said["b.2"] != said[None]
    # What came along is what it was.
    before = espnet_hra.Speech2Text.from_pretrained(
        str(joint), ctc_greedy=True, ctc_weight=1.0
    )
    for task in ("female", "male", None):
        assert texts(speech2text, recordings, task) == texts(before, recordings, task)
    with pytest.raises(SystemExit):
        cli.main(["tasks", "list", "--model", str(first)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["a", "b.2", "female", "male"]
    with pytest.raises(SystemExit) as end:
        cli.main(["tasks", "verify", "--model", str(first)])
    assert end.value.code == 0


def test_controller_and_other_tasks_are_bit_identical(
    base, joint, data, threads, out, first
):
    kept = {p.name: p.read_bytes() for p in (out / "tasks").glob("*.safetensors")}
    controller = (joint / CHECKPOINT).read_bytes()
    weights = (base / "valid.loss.best.pth").read_bytes()
    again = [*command(base, joint, data, out), *threads, "--tasks", "b.2"]
    (out / "tasks" / "b.2.safetensors").unlink()
    assert main(again) == 0
    for name, content in kept.items():
        assert (out / "tasks" / name).read_bytes() == content
    assert (joint / CHECKPOINT).read_bytes() == controller
    assert (base / "valid.loss.best.pth").read_bytes() == weights
    before = torch.load(joint / CHECKPOINT, weights_only=True)
    assert equal(torch.load(out / "latest.pth", weights_only=True), before)


@pytest.mark.parametrize("kind", ["linear", "ffn"])
def test_a_head_is_that_of_a_training_of_its_own(
    base, joint, an4, data, threads, first, tmp_path, kind
):
    """Beside others, alone, or with `espnet-hra train`: the same bits."""
    from espnet_hra.bin import asr_train

    changes, out = {}, first
    if kind == "ffn":  # its first matrix begins at random
        own = {"controller_size": 16, "head": "ffn", "head_size": 8}
        changes = {"encoder_conf": {"adapter": "hra", "adapter_conf": own}}
        joint = make_adaptation(tmp_path / "joint", base, ("female",), **own)
        out = tmp_path / "out"
        together = command(base, joint, data, out, **changes)
        assert main([*together, *threads]) == 1
    alone = command(base, joint, data, tmp_path / "alone", **changes)
    assert main([*alone, *threads, "--tasks", "b.2"]) == 0
    assert equal(head(tmp_path / "alone", "b.2"), head(out, "b.2"))

    config = {**TRAINING, **changes, "num_workers": 0, "use_tensorboard": False}
    own = {**config["encoder_conf"]["adapter_conf"], "regime": "new_task"}
    config["encoder_conf"] = {
        **config["encoder_conf"], "adapter_conf": own, "tasks": ["b.2"]
    }  # fmt: skip
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    cmd = ["--config", tmp_path / "train.yaml", "--pretrained_model", base]
    cmd += ["--init_adapter", joint / CHECKPOINT, "--output_dir", tmp_path / "exp"]
    cmd += ["--use_matplotlib", "false"]
    for part, source in (("train", "train"), ("valid", "dev")):
        lists = tmp_path / "lists" / source
        lists.mkdir(parents=True)
        for name, stream in (("wav.scp", "speech,sound"), ("text", "text,text")):
            lines = (data / source / name).read_text().splitlines(True)
            own_lines = [line for line in lines if line.startswith("b.2-")]
            (lists / name).write_text("".join(own_lines))
            cmd += [f"--{part}_data_path_and_name_and_type", f"{lists / name},{stream}"]
        cmd += [f"--{part}_shape_file", lists / "text"]
    asr_train.main([str(arg) for arg in cmd])
    trained = torch.load(tmp_path / "exp" / "valid.loss.ave.pth", weights_only=True)
    opened = espnet_hra.Speech2Text.from_pretrained(str(out), task="b.2")
    vector = opened.asr_model.encoder.adapter.heads.vector("b.2")
    assert torch.equal(trained["encoder.adapter.heads.b/2"], vector)


# ------------------------------------------------------------------------- going on


def test_the_same_command_does_what_failed_and_nothing_twice(
    base, joint, an4, data, threads, out, tmp_path, capsys
):
    files = {name: out / "tasks" / f"{name}.safetensors" for name in ("a", "b.2")}
    before = {name: path.stat().st_mtime_ns for name, path in files.items()}
    repaired = Path(shutil.copytree(data, tmp_path / "data"))
    wav = repaired / "train" / "wav.scp"
    good = (an4["train"] / "wav.scp").read_text().splitlines()[1].split()[1]
    wav.write_text(wav.read_text().replace("/nowhere/broken.flac", good))
    capsys.readouterr()
    assert main([*command(base, joint, repaired, out), *threads]) == 0
    said = capsys.readouterr().out
    assert "3 tasks: 2 done before, 1 to do" in said
    assert "[3 of 3 done] broken done" in said
    assert {name: path.stat().st_mtime_ns for name, path in files.items()} == before
    rows = table(out)
    assert {row["status"] for row in rows.values()} == {"done"}
    assert rows["a"]["note"] == "from an earlier run" and rows["a"]["updates"] == "2"
    # With nothing to do, no worker is asked for.
    (tmp_path / "slurm.yaml").write_text("env: slurm\nn_workers: 2\n")
    elsewhere = ["--parallel", str(tmp_path / "slurm.yaml")]
    assert main([*command(base, joint, repaired, out), *elsewhere]) == 0


def test_another_configuration_or_a_damaged_file_is_done_anew(
    base, joint, data, threads, out, capsys
):
    path = out / "tasks" / "a.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    argv = [*command(base, joint, data, out), *threads, "--tasks", "a"]
    assert main(argv) == 0
    assert path.read_bytes() == whole
    assert main([*argv, "--seed", "2"]) == 0
    assert path.read_bytes() != whole
    assert "1 tasks: 0 done before, 1 to do" in capsys.readouterr().out


def test_what_a_head_depends_on_is_in_its_key(data, tmp_path, an4):
    data = Path(shutil.copytree(data, tmp_path / "data"))
    wav = tmp_path / "wave.flac"
    source = (an4["train"] / "wav.scp").read_text().split()[1]
    shutil.copyfile(source, wav)
    scp = data / "train" / "wav.scp"
    scp.write_text(scp.read_text().replace(source, str(wav)))
    options = {"optim_conf": {"lr": 0.1}, "encoder_conf": {"tasks": []}}
    identity = {"backbone": "sha256:1", "controller": "sha256:2"}

    def key(options=options, identity=identity):
        parts, warnings = plan.read_data(data)
        assert not warnings
        config = plan.config_key(options, identity)
        return plan.make_job("a", parts, config).key

    one = key()
    assert key() == one
    paths = {"output_dir": "elsewhere", "num_workers": 3, "log_level": "DEBUG"}
    assert key({**options, **paths, "encoder_conf": {"tasks": ["x"]}}) == one
    assert key({**options, "optim_conf": {"lr": 0.2}}) != one
    assert key(identity={**identity, "controller": "sha256:3"}) != one
    os.utime(wav, ns=(1, 1))
    touched = key()
    assert touched != one
    text = data / "dev" / "text"
    text.write_text(
        text.read_text().replace("b.2-fbbh-cen8 march", "b.2-fbbh-cen8 may")
    )
    assert key() == touched  # another task's
    text.write_text(text.read_text().replace("a-fbbh-cen8 march", "a-fbbh-cen8 may"))
    assert key() != touched


def test_tasks_made_otherwise_are_not_replaced(
    base, joint, an4, threads, first, tmp_path
):
    """Neither a file from elsewhere nor a task of the controller's checkpoint."""
    out = Path(shutil.copytree(joint, tmp_path / "exp"))
    (out / "tasks").mkdir()
    file = taskfile.read(first / "tasks" / "a.safetensors")
    identity = {key: file.record[key] for key in ("config", "backbone", "controller")}
    other = taskfile.pack("a", file.tensors, identity)
    (out / "tasks" / "a.safetensors").write_bytes(other)
    data = make_data(an4, tmp_path / "data", {"a": slice(0, 2), "male": slice(3, 5)})
    argv = command(base, out, data, out)
    del argv[argv.index("--out") :]  # its default is the controller's folder
    assert main([*argv, *threads]) == 1
    assert (out / "tasks" / "a.safetensors").read_bytes() == other
    assert not (out / "tasks" / "male.safetensors").exists()
    notes = {name: row["note"] for name, row in table(out).items()}
    assert "was not made by this command" in notes["a"]
    assert "exists already in the checkpoint" in notes["male"]
    assert main([*argv, *threads, "--replace", "--tasks", "a"]) == 0
    assert (out / "tasks" / "a.safetensors").read_bytes() != other
    names = {p.name for p in out.iterdir()} - {p.name for p in joint.iterdir()}
    assert names == {"adapt", "tasks", "tasks.tsv"}


# ------------------------------------------------------------------ workers that die


class Killer(threading.Thread):
    """Kills the workers that train a task, each as soon as it has done an epoch."""

    def __init__(self, out: Path, task: str, times: int):
        super().__init__(daemon=True)
        self.folder, self.times, self.killed = out / "adapt" / task, times, 0
        self.over = threading.Event()

    def __enter__(self) -> "Killer":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        seen = 0
        while self.killed < self.times and not self.over.wait(0.01):
            try:
                pid = int((self.folder / ".lock").read_text().split()[1])
                epochs = (self.folder / "train.log").read_text().count("epoch started")
            except (OSError, IndexError):
                continue
            if epochs > seen + 1 and pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
                self.killed, seen = self.killed + 1, epochs


@pytest.mark.slow
def test_a_task_goes_on_when_its_worker_is_killed(
    base, joint, data, threads, tmp_path, capsys
):
    """And one that always kills its worker fails, while the others are done."""
    changes = {"max_epoch": 8}
    out = tmp_path / "out"
    argv = command(base, joint, data, out, **changes)
    argv += ["--tasks", "a", "b.2", "--nj", "1", "--retries", "1"]
    with Killer(out, "a", 1) as once, Killer(out, "b.2", 2) as always:
        assert main(argv) == 1
    assert once.killed == 1 and always.killed == 2
    rows = table(out)
    assert rows["a"]["status"] == "done" and rows["a"]["updates"] == "8"
    assert rows["b.2"]["status"] == "failed"
    assert "2 workers died of it" in rows["b.2"]["note"]
    assert "was resumed using" in (out / "adapt/a/train.log").read_text()
    # It has the bits of a training that was not interrupted.
    whole = command(base, joint, data, tmp_path / "whole", **changes)
    assert main([*whole, *threads, "--tasks", "a"]) == 0
    assert equal(head(out, "a"), head(tmp_path / "whole", "a"))
    # What has failed is gone on with as well.
    assert main([*argv[:-1], "2"]) == 0
    assert {row["status"] for row in table(out).values()} == {"done"}


@pytest.mark.slow
def test_ctrl_c_leaves_what_the_same_command_goes_on_from(
    base, joint, an4, tmp_path, threads
):
    tasks = {f"t{i}": slice(i % 3, i % 3 + 2) for i in range(4)}
    data = make_data(an4, tmp_path / "data", tasks)
    out = tmp_path / "out"
    argv = command(base, joint, data, out, max_epoch=12)
    run = subprocess.Popen(
        [sys.executable, "-m", "espnet_hra.cli", "adapt", *argv, "--nj", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    said = []
    for line in run.stdout:
        said.append(line)
        if line.startswith("[1 of 4 done"):
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    assert run.wait() == 130, "".join(said)
    assert "espnet-hra adapt: interrupted\n" in said
    assert "Traceback" not in "".join(said)
    status = [row["status"] for row in table(out).values()]
    assert set(status) == {"done", "left"}
    assert main([*argv, *threads]) == 0
    rows = table(out)
    assert {row["status"] for row in rows.values()} == {"done"}
    before = [row for row in rows.values() if row["note"] == "from an earlier run"]
    assert len(before) == status.count("done")
    assert {row["updates"] for row in rows.values()} == {"12"}


# --------------------------------------------------------------------------- clusters


def test_the_block_parallel_is_espnet3s(tmp_path):
    path = tmp_path / "training.yaml"
    block = {"env": "slurm", "n_workers": 3, "options": {"queue": "cpu"}}
    for content in (block, {"parallel": block}, {"parallel": block, "seed": 1}):
        path.write_text(yaml.safe_dump(content))
        assert cluster.read(str(path), None) == block
    assert cluster.read(str(path), 7)["n_workers"] == 7
    path.write_text("env: local\n")
    assert cluster.read(str(path), None)["n_workers"] == 1  # as for ESPnet3
    assert cluster.read(None, 4) == {"env": "local", "n_workers": 4, "options": {}}
    assert cluster.read(None, None)["n_workers"] == cluster.processors()


def test_a_block_that_is_none_is_refused(tmp_path):
    path = tmp_path / "training.yaml"
    for content, found in (
        ({"env": "slurm", "workers": 3}, "found workers"),
        ({"env": "slurm", "options": "cpu"}, "found options"),
        ({"parallel": [1]}, "found"),
    ):
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError, match=found):
            cluster.read(str(path), None)
    with pytest.raises(ConfigError, match="there is no such file"):
        cluster.read(str(tmp_path / "none.yaml"), None)


def test_workers_that_cannot_be_started_are_one_line():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ConfigError, match="env: moon: the workers cannot be started"):
        with cluster.client({"env": "moon", "n_workers": 1, "options": {}}):
            pass
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_batch_system(base, joint, data, first, tmp_path, monkeypatch):
    """Slurm as dask_jobqueue knows it; jobs run at once, and here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, lines in (
        (
            "sbatch",
            'job=$(mktemp --tmpdir="${0%/*}")\ncat "$1" >"$job"\n'
            'setsid bash "$job" >>"$0.log" 2>&1 &\necho "Submitted batch job $!"',
        ),
        ("scancel", 'kill -- -"$1"'),
    ):
        (folder / name).write_text(f"#!/bin/bash\n{lines}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    options = {"cores": 1, "processes": 1, "memory": "3GB", "walltime": "00:20:00"}
    prologue = ["export OMP_NUM_THREADS=1"]
    block = {"env": "slurm", "n_workers": 1, "options": options}
    options.update(job_script_prologue=prologue, interface="lo")
    path = tmp_path / "slurm.yaml"
    path.write_text(yaml.safe_dump({"parallel": block}))
    out = tmp_path / "out"
    argv = [*command(base, joint, data, out), "--parallel", str(path)]
    assert main(argv) == 1
    assert table(out)["a"]["status"] == table(out)["b.2"]["status"] == "done"
    # Here there may be more threads than there, and sums differ in their last bits.
    torch.testing.assert_close(head(out, "a"), head(first, "a"), rtol=1e-2, atol=1e-4)


# ------------------------------------------------------------------- what is refused


def test_what_cannot_be_done_for_any_task_is_one_line(
    base, joint, data, first, tmp_path
):
    good = command(base, joint, data, tmp_path / "out")

    def changed(option, value):
        argv = list(good)
        argv[argv.index(option) + 1] = str(value)
        return argv

    for argv, error, message in (
        ([*good, "--output_dir", "x"], ConfigError, "--output_dir is not possible"),
        ([*good, "--tasks", "a", "z"], TaskError, "has the task z; tasks of the data"),
        (changed("--data", tmp_path), DataError, "utt2task: cannot be read"),
        (changed("--init_adapter", "x.pth"), BaseModelError, "there is no such file"),
        (changed("--pretrained_model", "/x"), BaseModelError, "no such file or folder"),
        (changed("--out", base), BaseModelError, "this is the folder of a model"),
        ([*good, "--ngpu", "2"], ConfigError, "a task trains on one GPU"),
    ):
        with pytest.raises(error, match=message) as caught:
            main(argv)
        assert "\n" not in str(caught.value)
    other = {"adapter": "hra", "adapter_conf": {"controller_size": 8}}
    argv = command(base, joint, data, tmp_path / "out", encoder_conf=other)
    with pytest.raises(BaseModelError, match="not an adapter of this configuration"):
        main(argv)
    with pytest.raises(SystemExit, match="2"):
        main([*good, "--nj", "0"])


def test_one_command_at_a_time_works_on_a_folder(base, joint, data, tmp_path):
    out = tmp_path / "out"
    (out / "adapt").mkdir(parents=True)
    with open(out / "adapt" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TaskError, match="another `espnet-hra adapt` is at work"):
            main(command(base, joint, data, out))


def test_a_training_that_changes_nothing_has_failed(
    base, joint, data, threads, tmp_path
):
    out = tmp_path / "out"
    argv = command(base, joint, data, out, optim="sgd", optim_conf={"lr": 0.0})
    assert main([*argv, *threads, "--tasks", "a"]) == 1
    assert "has changed nothing" in table(out)["a"]["note"]
    assert not list(out.glob("tasks/*.safetensors"))


def test_a_training_that_diverges_fails_and_the_others_are_kept(
    base, joint, data, threads, tmp_path
):
    out = tmp_path / "out"
    argv = [*command(base, joint, data, out), *threads, "--tasks", "a"]
    assert main(argv) == 0
    before = (out / "tasks" / "a.safetensors").read_bytes()
    wild = command(base, joint, data, out, optim_conf={"lr": 1e4})
    assert main([*wild, *threads, "--tasks", "b.2"]) == 1
    row = table(out)["b.2"]
    assert row["status"] == "failed"
    assert "take a lower rate (optim_conf: lr)" in row["note"], row["note"]
    assert {path.name for path in out.glob("tasks/*.safetensors")} == {"a.safetensors"}
    assert (out / "tasks" / "a.safetensors").read_bytes() == before


def test_utterances_without_a_task_are_said(data, tmp_path):
    data = Path(shutil.copytree(data, tmp_path / "data"))
    path = data / "train" / "utt2task"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].split()[0], *lines[1:]]) + "\n")
    parts, warnings = plan.read_data(data)
    assert warnings == [
        f"{data / 'train'}: 1 utterances are left out, as utt2task does not name their "
        f"task: {lines[0].split()[0]}"
    ]
    assert len(parts["train"]["a"]["wav.scp"]) == 2
    assert len(parts["dev"]["a"]["wav.scp"]) == 3


def test_help_says_what_scales_otherwise(capsys):
    with pytest.raises(SystemExit):
        cli.main(["adapt", "--help"])
    assert "torchrun --nproc_per_node" in " ".join(capsys.readouterr().out.split())


def test_without_dask_the_command_that_installs_it_is_named(
    base, joint, data, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "distributed", None)
    argv = command(base, joint, data, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"pip install 'espnet-hra\[adapt\]'"):
        main(argv)
    assert not (tmp_path / "out").exists()


def test_one_task_is_trained_without_dask():
    code = (
        "import sys; sys.modules['distributed'] = None\n"
        "import espnet_hra.adapt.single, espnet_hra.adapt.worker"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_it_writes_has_the_rights_that_the_umask_gives(
    base, joint, data, threads, tmp_path
):
    out = tmp_path / "out"
    argv = [*command(base, joint, data, out), *threads, "--tasks", "a", "broken"]
    before = os.umask(0o077)
    try:
        assert main(argv) == 1
    finally:
        os.umask(before)
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert {"config.yaml", "latest.pth", "tasks.tsv", "adapt/a/train.log"} <= names
    assert {"tasks/a.safetensors", "adapt/a/result.json", "adapt/model.json"} <= names
    assert not [p for p in (out, *out.rglob("*")) if p.stat().st_mode & 0o077]
