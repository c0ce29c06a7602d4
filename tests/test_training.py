"""Training and decoding through ESPnet, on real speech."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet_hra.errors import BaseModelError, DataError, TaskError
from espnet_hra.espnet import voices

ADAPTATION = {
    "encoder_conf": {
        "adapter": "hra",
        "adapter_conf": {"controller_size": 16},
        "tasks": ["female", "male"],
    },
    "optim": "adamw",
    "optim_conf": {"lr": 0.01, "weight_decay": 0.01},
    "batch_type": "unsorted",
    "batch_size": 3,
    "num_workers": 0,
    "max_epoch": 4,
    "keep_nbest_models": 3,
    "best_model_criterion": [["valid", "loss", "min"]],
    "use_tensorboard": False,
    "use_matplotlib": False,
    "check_data": False,
    "seed": 1,
}


def streams(folder: Path, part: str) -> list[str]:
    """Options that name a Kaldi-style folder as data of a training."""
    cmd = [f"--{part}_shape_file", str(folder / "text")]
    for file, name, kind in (
        ("wav.scp", "speech", "sound"),
        ("text", "text", "text"),
        ("utt2task", "utt2task", "text"),
    ):
        cmd += [f"--{part}_data_path_and_name_and_type"]
        cmd += [f"{folder / file},{name},{kind}"]
    return cmd


def options(
    an4: dict[str, Path], base: Path, output: Path, *more: str, **changes: object
) -> list[str]:
    """Command line of a training on AN4."""
    output.mkdir(parents=True, exist_ok=True)
    config = output.parent / f"{output.name}.yaml"
    config.write_text(yaml.safe_dump({**ADAPTATION, **changes}))
    cmd = ["--config", str(config), "--output_dir", str(output)]
    cmd += ["--pretrained_model", str(base)] if base else []
    cmd += streams(an4["train"], "train") + streams(an4["dev"], "valid")
    return [*cmd, *more]


def train(*args, **kwargs) -> Path:
    from espnet_hra.bin import asr_train

    cmd = options(*args, **kwargs)
    asr_train.main(cmd)
    return Path(cmd[cmd.index("--output_dir") + 1])


def load(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def joint(an4, base, tmp_path_factory) -> Path:
    """A joint training of both tasks; mixed batches, validation and averaging."""
    return train(an4, base, tmp_path_factory.mktemp("joint") / "exp")


@pytest.fixture
def seen(monkeypatch) -> dict[str, torch.nn.Module]:
    """The model that a training has trained, under `model`."""
    from espnet_hra.espnet.trainer import AdapterTrainer

    box: dict[str, torch.nn.Module] = {}
    run = AdapterTrainer.run.__func__

    def spy(cls, model, **kwargs):
        box["before"] = {k: v.clone() for k, v in model.state_dict().items()}
        run(cls, model, **kwargs)
        box["model"] = model

    monkeypatch.setattr(AdapterTrainer, "run", classmethod(spy))
    return box


# ---------------------------------------------------------------------- training


def test_a_controller_s_own_rate_reaches_the_optimizer(an4, base, tmp_path, seen):
    conf = {**ADAPTATION["encoder_conf"]}
    conf["adapter_conf"] = {**conf["adapter_conf"], "shared_rate": 1e-4}
    train(an4, base, tmp_path / "exp", max_epoch=2, encoder_conf=conf)
    after = seen["model"].state_dict()
    moved = {
        key.removeprefix("encoder.adapter."): (after[key] - before).abs().max()
        for key, before in seen["before"].items()
        if key.startswith("encoder.adapter.")
    }
    # AdamW's first steps are as long as its rate, 0.01.
    assert moved["heads.female"] > 1e-3
    assert 1e-7 < moved["controller.W"] < 1e-5


@pytest.mark.shows(encoder="conformer", objective="CTC", entrance="train")
def test_training_moves_the_adapter_and_nothing_else(an4, base, tmp_path, seen):
    train(an4, base, tmp_path / "exp", max_epoch=2)
    after = seen["model"].state_dict()
    source = load(base / "valid.loss.best.pth")
    moved = {k for k in after if not torch.equal(after[k], seen["before"][k])}
    assert moved == {k for k in after if k.startswith("encoder.adapter.")}
    assert all(torch.equal(after[k], source[k]) for k in source)


def test_checkpoints_hold_the_adapter_only(joint):
    files = [*joint.glob("*epoch.pth"), joint / "valid.loss.ave.pth"]
    assert len(files) > 2
    for path in files:
        assert all(key.startswith("encoder.adapter.") for key in load(path))
    states = torch.load(joint / "checkpoint.pth", weights_only=True)
    assert all(key.startswith("encoder.adapter.") for key in states["model"])


def test_how_each_task_sounds_is_noted_beside_the_checkpoint(joint):
    found = voices.read(joint)
    assert found.keys() == {"female", "male"}
    assert all(voice.windows > 100 for voice in found.values())


def test_training_opens_with_the_table_of_parameters(an4, base, tmp_path, caplog):
    caplog.set_level("INFO")
    output = train(an4, base, tmp_path / "exp", max_epoch=1)
    counts = json.loads((output / "params.json").read_text())
    controller, head = 32 * 16 + 2 * 16 + 2 * 32, 16 * 32 + 32
    assert counts["shared"] == controller
    assert counts["per_task"] == {"female": head, "male": head}
    assert counts["trainable"] == controller + 2 * head
    source = load(base / "valid.loss.best.pth")
    buffers = ("running_", "num_batches", "melmat")
    assert counts["backbone"] == sum(
        v.numel() for k, v in source.items() if not any(b in k for b in buffers)
    )
    assert "backbone (frozen)" in caplog.text
    assert "trainable share of the model" in caplog.text


def test_saved_configuration_names_the_base_and_its_fingerprints(joint, base):
    config = yaml.safe_load((joint / "config.yaml").read_text())
    assert config["pretrained_model"] == str(base.resolve())
    assert set(config["base_fingerprint"]) >= {"encoder", "ctc"}
    assert config["encoder"] == "hra_conformer"
    assert config["encoder_conf"]["output_size"] == 32  # the base's
    assert config["encoder_conf"]["tasks"] == ["female", "male"]
    assert isinstance(config["token_list"], list)


def test_tasks_of_a_file_are_inlined(an4, base, tmp_path):
    (tmp_path / "tasks").write_text("male\nfemale\n")
    conf = {**ADAPTATION["encoder_conf"], "tasks": str(tmp_path / "tasks")}
    output = train(an4, base, tmp_path / "exp", max_epoch=1, encoder_conf=conf)
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["encoder_conf"]["tasks"] == ["male", "female"]


def test_the_same_seed_gives_the_same_parameters(an4, base, joint, tmp_path):
    """In a process of its own as well: nothing depends on what ran before."""
    cmd = options(an4, base, tmp_path / "exp")
    code = (
        "import sys; from espnet_hra.bin import asr_train; asr_train.main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *cmd],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    files = sorted(p.name for p in joint.glob("*.pth") if p.name != "checkpoint.pth")
    assert files and files == sorted(
        p.name for p in (tmp_path / "exp").glob("*.pth") if p.name != "checkpoint.pth"
    )
    for name in files:
        assert equal(load(tmp_path / "exp" / name), load(joint / name)), name
    other = train(an4, base, tmp_path / "other", seed=2)
    assert not equal(load(other / files[0]), load(joint / files[0]))


def test_resumed_training_equals_an_uninterrupted_one(an4, base, joint, tmp_path):
    output = train(an4, base, tmp_path / "exp", max_epoch=2)
    # What a kill right after writing checkpoint.pth leaves behind.
    (output / "2epoch.pth").unlink()
    for link in output.glob("*.pth"):
        if link.is_symlink():
            link.unlink()
    train(an4, base, tmp_path / "exp", "--resume", "true", max_epoch=4)
    final, expected = (
        torch.load(folder / "checkpoint.pth", weights_only=True)
        for folder in (output, joint)
    )
    assert equal(final["model"], expected["model"])
    losses = [
        {e: stats["train"]["loss"] for e, stats in states["reporter"]["stats"].items()}
        for states in (final, expected)
    ]
    assert losses[0] == losses[1]
    assert equal(
        load(output / "valid.loss.ave.pth"), load(joint / "valid.loss.ave.pth")
    )


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    from espnet_hra.espnet.trainer import save as atomic_save

    path = tmp_path / "checkpoint.pth"
    atomic_save({"a": torch.ones(1)}, path)

    class Unpicklable:
        def __reduce__(self):
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        atomic_save({"a": Unpicklable()}, path)
    assert torch.load(path, weights_only=True) == {"a": torch.ones(1)}
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_task_leaves_controller_and_other_tasks_bit_identical(
    an4, base, joint, tmp_path
):
    before = load(joint / "valid.loss.ave.pth")
    data = dict(an4)
    for part in ("train", "dev"):
        data[part] = tmp_path / part
        data[part].mkdir()
        for name in ("wav.scp", "text"):
            (data[part] / name).write_text((an4[part] / name).read_text())
        lines = (an4[part] / "text").read_text().splitlines()
        (data[part] / "utt2task").write_text(
            "".join(f"{line.split()[0]} new\n" for line in lines)
        )
    conf = {
        "adapter": "hra",
        "adapter_conf": {"controller_size": 16, "regime": "new_task"},
        "tasks": ["female", "male", "new"],
    }
    output = train(
        data,
        base,
        tmp_path / "exp",
        "--init_adapter",
        str(joint / "valid.loss.ave.pth"),
        encoder_conf=conf,
    )
    for name in ("4epoch.pth", "valid.loss.ave_3best.pth"):
        after = load(output / name)
        assert set(after) - set(before) == {"encoder.adapter.heads.new"}
        assert all(torch.equal(after[key], before[key]) for key in before)
        assert after["encoder.adapter.heads.new"].abs().sum() > 0


def test_a_new_task_needs_a_trained_controller(an4, base, tmp_path):
    conf = {**ADAPTATION["encoder_conf"]}
    conf["adapter_conf"] = {"controller_size": 16, "regime": "new_task"}
    with pytest.raises(BaseModelError, match="--init_adapter"):
        train(an4, base, tmp_path / "exp", encoder_conf=conf)


def test_an_initial_adapter_of_another_size_is_refused(an4, base, joint, tmp_path):
    conf = {**ADAPTATION["encoder_conf"], "adapter_conf": {"controller_size": 8}}
    start = str(joint / "valid.loss.ave.pth")
    with pytest.raises(BaseModelError, match="not an adapter of this configuration"):
        cmd = ("--init_adapter", start)
        train(an4, base, tmp_path / "exp", *cmd, encoder_conf=conf)


def test_bfloat16_autocast_trains_close_to_float32(an4, base, tmp_path, seen):
    losses = {}
    for autocast in ("none", "bfloat16"):
        output = train(
            an4, base, tmp_path / autocast, "--autocast", autocast, max_epoch=2
        )
        states = torch.load(output / "checkpoint.pth", weights_only=True)
        losses[autocast] = states["reporter"]["stats"][2]["train"]["loss"]
        assert all(v.dtype == torch.float32 for v in states["model"].values())
    assert losses["bfloat16"] == pytest.approx(losses["none"], rel=0.02)
    assert losses["bfloat16"] != losses["none"]


def test_attention_is_plotted_under_autocast(an4, base, tmp_path):
    output = train(
        an4, base, tmp_path / "exp", "--autocast", "bfloat16", "--num_att_plot", "1",
        max_epoch=1, use_matplotlib=True,
    )  # fmt: skip
    assert list((output / "att_ws").rglob("*.png"))


def test_validation_counts_no_errors_in_the_padding(loud, an4):
    import espnet_hra

    model = espnet_hra.Speech2Text.from_pretrained(str(loud), task="male").asr_model
    long, short = sorted(waves(an4), key=len)[-1], sorted(waves(an4), key=len)[0]
    speech = torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True)
    lengths = torch.tensor([len(short), len(long)])
    text = torch.tensor([[3, 4, 5], [5, 4, 3]])
    with torch.no_grad():
        encoded, frames = model.encode(speech, lengths)
        size = torch.tensor([3, 3])
        _, cer = model._calc_ctc_loss(encoded, frames, text, size)
        encoded[0, frames[0] :] = 100 * torch.randn_like(encoded[0, frames[0] :])
        _, noisy = model._calc_ctc_loss(encoded, frames, text, size)
    assert cer is not None and noisy == cer


def test_espnets_initialisation_leaves_heads_at_zero(an4, base, tmp_path, seen):
    train(an4, base, tmp_path / "exp", "--init", "xavier_uniform", max_epoch=1)
    heads = {k: v for k, v in seen["before"].items() if ".heads." in k}
    assert len(heads) == 2 and not any(v.any() for v in heads.values())


@pytest.mark.shows(
    encoder="conformer",
    objective="intermediate CTC, self-conditioned",
    entrance="train",
)
def test_conditioning_of_intermediate_ctc_is_frozen(an4, tmp_path, seen):
    from conftest import BASE_CONFIG, make_base

    config = {**BASE_CONFIG, "model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.3}}
    config["encoder_conf"] = {
        **BASE_CONFIG["encoder_conf"],
        "interctc_layer_idx": [1],
        "interctc_use_conditioning": True,
    }
    base = make_base(tmp_path / "base", an4["tokens"], config)
    train(an4, base, tmp_path / "exp", max_epoch=1)
    after = seen["model"].state_dict()
    moved = {k for k in after if not torch.equal(after[k], seen["before"][k])}
    assert "encoder.conditioning_layer.weight" in after
    assert moved and all(key.startswith("encoder.adapter.") for key in moved)


@pytest.mark.slow
def test_two_gloo_processes_equal_one_with_the_doubled_batch(an4, base, tmp_path):
    # Utterances of one length: a Conformer's convolutions see the padding, which is
    # another in a batch of four than in two batches of two.
    data = dict(an4, train=tmp_path / "train")
    data["train"].mkdir()
    wave = waves(an4)[0].numpy()
    text = (an4["train"] / "text").read_text().splitlines()[0].split(None, 1)[1]
    lists = {"wav.scp": "", "text": "", "utt2task": ""}
    for i, task in enumerate(("female", "male", "female", "male")):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, np.roll(wave, 1600 * i), 16000)
        for name, value in zip(lists, (path, text, task)):
            lists[name] += f"utt{i} {value}\n"
    for name, lines in lists.items():
        (data["train"] / name).write_text(lines)
    source = yaml.safe_load((base / "config.yaml").read_text())["encoder_conf"]
    conf = {**source, **ADAPTATION["encoder_conf"]}
    for key in ("dropout_rate", "positional_dropout_rate", "attention_dropout_rate"):
        conf[key] = 0.0
    common = dict(encoder_conf=conf, max_epoch=3, batch_size=4, specaug=None)
    # Adam would blow up rounding errors where a gradient is all but zero.
    common.update(optim="sgd", optim_conf={"lr": 0.1})
    one = options(data, base, tmp_path / "one", **common)
    two = options(data, base, tmp_path / "two", **common)
    two += ["--dist_backend", "gloo", "--multiprocessing_distributed", "false"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    module = ["-m", "espnet_hra.bin.asr_train"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launched = subprocess.run(
        [sys.executable, *launch, *module, *two],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    from espnet_hra.bin import asr_train

    asr_train.main(one)
    a, b = (load(tmp_path / name / "3epoch.pth") for name in ("one", "two"))
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------ what is refused


def test_an_adapter_without_a_base_is_refused(an4, base, tmp_path):
    source = yaml.safe_load((base / "config.yaml").read_text())
    conf = {**source["encoder_conf"], **ADAPTATION["encoder_conf"]}
    cmd = ("--token_list", str(an4["tokens"]), "--encoder", "hra_conformer")
    with pytest.raises(BaseModelError, match="needs the trained model"):
        train(an4, None, tmp_path / "exp", *cmd, encoder_conf=conf)
    part = (*cmd, "--init_param", f"{base}/valid.loss.best.pth:encoder:encoder")
    with pytest.raises(BaseModelError, match="a part of one would leave the rest"):
        train(an4, None, tmp_path / "exp", *part, encoder_conf=conf)


def test_init_param_of_a_whole_model_is_a_base(an4, base, tmp_path, seen):
    source = yaml.safe_load((base / "config.yaml").read_text())
    keys = ("frontend_conf", "normalize", "model_conf", "token_type")
    model = {key: source[key] for key in keys}
    conf = {**source["encoder_conf"], **ADAPTATION["encoder_conf"]}
    file = str(base / "valid.loss.best.pth")
    cmd = ("--token_list", str(an4["tokens"]), "--encoder", "hra_conformer")
    cmd += ("--init_param", file)
    output = train(
        an4, None, tmp_path / "exp", *cmd, encoder_conf=conf, max_epoch=1, **model
    )
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["pretrained_model"] == file
    assert equal(
        {k: v for k, v in seen["before"].items() if "adapter" not in k}, load(file)
    )


def test_a_base_that_does_not_fit_is_refused(an4, base, tmp_path):
    conf = {**ADAPTATION["encoder_conf"], "linear_units": 64}
    with pytest.raises(BaseModelError, match="shapes differ"):
        train(an4, base, tmp_path / "exp", encoder_conf=conf)
    conf = {**ADAPTATION["encoder_conf"], "num_blocks": 4}
    with pytest.raises(BaseModelError, match="keys are missing"):
        train(an4, base, tmp_path / "exp", encoder_conf=conf)
    with pytest.raises(BaseModelError, match="no such file or folder"):
        train(an4, tmp_path / "nowhere", tmp_path / "exp")


def test_pretrained_model_for_a_plain_encoder_is_refused(an4, base, tmp_path):
    with pytest.raises(BaseModelError, match="write encoder: hra_conformer"):
        cmd = ("--encoder", "conformer")
        train(an4, base, tmp_path / "exp", *cmd, encoder_conf={})


def test_an_adapter_that_is_not_built_is_refused_with_those_that_are(
    an4, base, tmp_path
):
    conf = {**ADAPTATION["encoder_conf"], "adapter": "houlsby"}
    with pytest.raises(ValueError, match="'houlsby' is not available; built are: hra"):
        train(an4, base, tmp_path / "exp", encoder_conf=conf)


def damaged(an4: dict[str, Path], folder: Path) -> dict[str, Path]:
    """AN4 with one silent recording and one unknown task in its training data."""
    folder.mkdir()
    for name in ("wav.scp", "text", "utt2task"):
        (folder / name).write_text((an4["train"] / name).read_text())
    lines = (folder / "wav.scp").read_text().splitlines()
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    lines[0] = f"{lines[0].split()[0]} {folder / 'silent.wav'}"
    (folder / "wav.scp").write_text("\n".join(lines) + "\n")
    lines = (folder / "utt2task").read_text().splitlines()
    lines[1] = f"{lines[1].split()[0]} robot"
    (folder / "utt2task").write_text("\n".join(lines) + "\n")
    return dict(an4, train=folder)


def test_bad_data_are_all_reported_before_training(an4, base, tmp_path):
    data = damaged(an4, tmp_path / "data")
    with pytest.raises(DataError) as error:
        train(data, base, tmp_path / "exp", "--check_data", "true")
    bad = [line.split()[0] for line in (tmp_path / "data/text").open()][:2]
    assert all(name in str(error.value) for name in bad)
    assert "silent" in str(error.value) and "robot" in str(error.value)
    assert "--skip_bad true" in str(error.value)
    assert not list((tmp_path / "exp").glob("*.pth"))


def test_bad_data_are_left_out_and_counted_if_asked(an4, base, tmp_path, caplog):
    data = damaged(an4, tmp_path / "data")
    cmd = ("--check_data", "true", "--skip_bad", "true")
    output = train(data, base, tmp_path / "exp", *cmd, max_epoch=1)
    assert (output / "1epoch.pth").exists()
    kept = (output / "checked" / "train" / "wav.scp").read_text().splitlines()
    everything = (data["train"] / "wav.scp").read_text().splitlines()
    assert len(kept) == len(everything) - 2
    assert "Left out" in caplog.text


def test_several_tasks_without_utt2task_are_refused(an4, base, tmp_path):
    cmd = options(an4, base, tmp_path / "exp", "--check_data", "true")
    at = [i for i, word in enumerate(cmd) if word.endswith(",utt2task,text")]
    cmd = [w for i, w in enumerate(cmd) if i not in at and i + 1 not in at]
    from espnet_hra.bin import asr_train

    with pytest.raises(DataError, match="there are several tasks"):
        asr_train.main(cmd)


# ---------------------------------------------------------------------- decoding


@pytest.fixture(scope="module")
def loud(joint, tmp_path_factory) -> Path:
    """The joint adaptation with heads made larger, so that tasks differ clearly."""
    folder = tmp_path_factory.mktemp("loud")
    (folder / "config.yaml").write_text((joint / "config.yaml").read_text())
    torch.manual_seed(0)
    state = load(joint / "4epoch.pth")
    for key in state:
        if ".heads." in key:
            state[key] = state[key] + 0.3 * torch.randn_like(state[key])
    torch.save(state, folder / "valid.loss.best.pth")
    return folder


def waves(an4: dict[str, Path], part: str = "train") -> list[torch.Tensor]:
    lines = (an4[part] / "wav.scp").read_text().splitlines()
    paths = [line.split(None, 1)[1] for line in lines]
    return [torch.from_numpy(soundfile.read(p, dtype="float32")[0]) for p in paths]


@pytest.mark.parametrize("greedy", [True, False])
def test_in_mixed_batches_every_utterance_keeps_its_task(loud, an4, greedy):
    import espnet_hra

    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(loud), ctc_greedy=greedy, beam_size=3, ctc_weight=1.0, batch_size=4
    )
    assert speech2text.tasks == ("female", "male")
    wave = waves(an4)[0]
    found = {}
    for task in ("female", "male"):
        speech2text.set_task(task)
        found[task] = speech2text(wave)[0][0]
    assert found["female"] != found["male"]
    # The same recording in several lengths, so that sorting would reorder the batch.
    batch = [wave, wave.repeat(2), wave, wave.repeat(3), wave]
    tasks = ["male", "female", "female", "male", "male"]
    alone = []
    for one, task in zip(batch, tasks):
        speech2text.set_task([task] * 2)
        padded = speech2text.batch_decode([one, wave.repeat(3)])  # padded alike
        alone.append(padded[0][0][0])
    speech2text.set_task(tasks)
    together = [result[0][0] for result in speech2text.batch_decode(batch)]
    assert together == alone


def test_a_batch_that_runs_out_of_memory_is_halved_with_its_tasks(
    loud, an4, monkeypatch
):
    import espnet_hra

    speech2text = espnet_hra.Speech2Text.from_pretrained(str(loud), ctc_greedy=True)
    wave = waves(an4)[0]
    tasks = ["male", "female", "female", "male", "male"]
    speech2text.set_task(tasks)
    expected = [r[0][0] for r in speech2text.batch_decode([wave] * 5)]
    encode = speech2text._encode

    def limited(batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(batch)

    monkeypatch.setattr(speech2text, "_encode", limited)
    assert [r[0][0] for r in speech2text.batch_decode([wave] * 5)] == expected


def decode(loud: Path, folder: Path, output: Path, *more: str) -> dict[str, str]:
    from espnet_hra.bin import asr_inference

    cmd = ["--asr_train_config", str(loud / "config.yaml")]
    cmd += ["--asr_model_file", str(loud / "valid.loss.best.pth")]
    cmd += ["--output_dir", str(output), "--num_workers", "0"]
    cmd += ["--data_path_and_name_and_type", f"{folder / 'wav.scp'},speech,sound"]
    asr_inference.main([*cmd, *more])
    lines = (output / "1best_recog" / "text").read_text().splitlines()
    return dict((line.split(None, 1) + [""])[:2] for line in lines)


@pytest.mark.shows(encoder="conformer", objective="CTC", entrance="decode")
def test_decoding_takes_each_utterances_task_from_utt2task(loud, an4, tmp_path):
    import espnet_hra

    stream = ("--data_path_and_name_and_type", f"{an4['train']}/utt2task,utt2task,text")
    batch = decode(
        loud, an4["train"], tmp_path / "a", "--ctc_greedy", "true", "--batch_size", "4",
        *stream,
    )  # fmt: skip
    single = decode(loud, an4["train"], tmp_path / "b", "--ctc_greedy", "true", *stream)
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(loud), ctc_greedy=True)
    tasks = dict(line.split() for line in (an4["train"] / "utt2task").open())
    for (name, task), wave in zip(tasks.items(), waves(an4)):
        speech2text.set_task(task)
        assert single[name].strip() == speech2text(wave)[0][0].strip()
    assert batch.keys() == single.keys()


def test_decoding_with_one_task_for_all(loud, an4, tmp_path):
    found = {}
    for task in ("female", "male"):
        found[task] = decode(
            loud, an4["test"], tmp_path / task, "--ctc_greedy", "true", "--task", task
        )
    assert found["female"] != found["male"]
    with pytest.raises(TaskError, match="unknown task 'robot'; known tasks: female, m"):
        decode(loud, an4["test"], tmp_path / "c", "--task", "robot")
    with pytest.raises(TaskError, match="no task was chosen"):
        decode(loud, an4["test"], tmp_path / "d", "--ctc_greedy", "true")


def test_decoding_without_a_task_is_what_the_base_decodes(loud, base, an4, tmp_path):
    import espnet_hra

    words = ("--ctc_greedy", "true", "--without_task", "true")
    found = decode(loud, an4["test"], tmp_path / "a", *words)
    other = decode(loud, an4["test"], tmp_path / "b", *words[:2], "--task", "male")
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(base), ctc_greedy=True)
    expected = [speech2text(wave)[0][0].strip() for wave in waves(an4, "test")]
    assert [text.strip() for text in found.values()] == expected != other
    with pytest.raises(TaskError, match="--task male and --without_task"):
        decode(loud, an4["test"], tmp_path / "c", *words, "--task", "male")


def test_greedy_decoding_equals_collapsing_by_hand(loud, an4):
    import espnet_hra

    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(loud), ctc_greedy=True, task="male"
    )
    wave = waves(an4)[0]
    text, tokens, ids, _ = speech2text(wave)[0]
    with torch.no_grad():
        encoded, _ = speech2text.asr_model.encode(
            wave[None], torch.tensor([wave.numel()])
        )
        frames = speech2text.asr_model.ctc.argmax(encoded)[0].tolist()
    expected = [
        symbol
        for i, symbol in enumerate(frames)
        if symbol != 0 and (i == 0 or frames[i - 1] != symbol)
    ]
    assert ids == expected
    assert "".join(tokens).replace("<space>", " ") == text


def test_stock_inference_refuses_an_adapters_checkpoint(loud):
    from espnet2.bin.asr_inference import Speech2Text

    with pytest.raises(RuntimeError, match="espnet-hra decode"):
        Speech2Text(str(loud / "config.yaml"), str(loud / "valid.loss.best.pth"))


@pytest.mark.slow
def test_without_this_package_espnets_error_names_the_encoder(loud):
    script = (
        "import sys; from espnet2.bin.asr_inference import Speech2Text; "
        "folder = sys.argv[1]; "
        "Speech2Text(f'{folder}/config.yaml', f'{folder}/valid.loss.best.pth')"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(loud)], capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "--encoder hra_conformer" in run.stderr.strip().splitlines()[-1]


def test_a_model_built_elsewhere_on_another_backbone_does_not_run(loud):
    from espnet2.tasks.asr import ASRTask

    model, _ = ASRTask.build_model_from_file(str(loud / "config.yaml"))
    model.encoder.set_task("male")
    with pytest.raises(RuntimeError, match="expected fingerprint sha256:"):
        model.encoder(torch.randn(1, 50, 80), torch.tensor([50]))


@pytest.mark.parametrize("change", ["missing", "surplus"])
def test_loading_is_strict(loud, tmp_path, change):
    import espnet_hra

    state = load(loud / "valid.loss.best.pth")
    if change == "missing":
        del state["encoder.adapter.heads.male"]
    else:
        state["encoder.adapter.heads.third"] = state["encoder.adapter.heads.male"]
    torch.save(state, tmp_path / "changed.pth")
    with pytest.raises(BaseModelError, match=f"1 keys are {change}|1 {change}"):
        espnet_hra.Speech2Text(loud / "config.yaml", tmp_path / "changed.pth")


def test_a_missing_or_other_base_is_refused(loud, base, tmp_path):
    import espnet_hra

    files = (loud / "config.yaml", loud / "valid.loss.best.pth")
    with pytest.raises(BaseModelError, match="no such file|neither a file"):
        espnet_hra.Speech2Text(*files, pretrained_model=str(tmp_path / "gone/base"))
    state = load(base / "valid.loss.best.pth")
    state["ctc.ctc_lo.bias"][0] += 1e-6
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(BaseModelError, match="ctc: expected sha256:.* found sha256:"):
        espnet_hra.Speech2Text(*files, pretrained_model=str(tmp_path / "other.pth"))
    with pytest.raises(BaseModelError, match="no checkpoint was given"):
        espnet_hra.Speech2Text(files[0])


def test_task_files_travel_between_models_on_one_base(joint, loud, an4, tmp_path):
    import espnet_hra

    source = espnet_hra.Speech2Text.from_pretrained(str(loud), ctc_greedy=True)
    source.asr_model.encoder.save_task("male", tmp_path / "male.safetensors")
    other = espnet_hra.Speech2Text.from_pretrained(str(loud), ctc_greedy=True)
    other.asr_model.encoder.remove_task("male")
    other.asr_model.encoder.load_task(tmp_path / "male.safetensors")
    for model in (source, other):
        model.set_task("male")
    wave = waves(an4)[0]
    assert source(wave)[0][0] == other(wave)[0][0]


@pytest.mark.shows(encoder="conformer", objective="CTC", entrance="transcribe")
def test_transcribing_files_of_any_format_and_rate(loud, an4, tmp_path, capsys):
    from espnet_hra.commands import transcribe

    wave = waves(an4)[0].numpy()
    soundfile.write(tmp_path / "a.flac", wave, 16000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([wave, wave], 1), 16000)
    soundfile.write(tmp_path / "fast.wav", np.repeat(wave, 3), 48000)
    soundfile.write(tmp_path / "short.wav", wave[:400], 16000)
    (tmp_path / "text.wav").write_text("no audio")
    names = ("a.flac", "stereo.wav", "fast.wav", "short.wav", "text.wav", "gone.wav")
    files = [str(tmp_path / name) for name in names]
    status = transcribe.main([*files, "--model", str(loud), "--task", "male"])
    printed = capsys.readouterr()
    texts = dict(line.split("\t") for line in printed.out.splitlines())
    assert status == 1
    assert list(texts) == files[:4]
    assert texts[files[0]] and texts[files[3]] == ""
    assert all(name in printed.err for name in ("text.wav", "gone.wav"))
    assert transcribe.main([files[0], "--model", str(loud), "--task", "male"]) == 0
    alone = capsys.readouterr().out.strip()
    assert transcribe.main([files[1], "--model", str(loud), "--task", "male"]) == 0
    assert capsys.readouterr().out.strip() == alone


def test_each_utterance_of_a_list_keeps_the_task_that_utt2task_names(loud, an4):
    import espnet_hra
    from espnet_hra.espnet.model import encode_name

    speech2text = espnet_hra.Speech2Text.from_pretrained(str(loud), ctc_greedy=True)
    wave = waves(an4)[0]
    alone = {task: speech2text(wave, task=task)[0][0] for task in ("female", "male")}
    assert alone["female"] != alone["male"]
    names = ["male", "female", "male"]
    arrays = [encode_name(name) for name in names]
    found = speech2text([wave] * 3, utt2task=arrays)
    assert [one[0][0] for one in found] == [alone[name] for name in names]
    with pytest.raises(TaskError, match="by task or by utt2task, once"):
        speech2text([wave], utt2task=arrays[:1], task="male")
    with pytest.raises(TaskError, match="3.*1"):
        speech2text([wave], utt2task=arrays)
    assert speech2text(wave, utt2task="male")[0][0] == alone["male"]
    with pytest.raises(TaskError, match="no task as a data loader gives it"):
        speech2text(wave, utt2task=3)


# -------------------------------------------------------------- readers that agree


@pytest.mark.parametrize("key", ["module", "state_dict", "model"])
def test_an_initial_adapter_is_unwrapped_as_any_checkpoint_is(
    key, joint, an4, base, tmp_path
):
    state = load(joint / "valid.loss.best.pth")
    torch.save({key: state, "epoch": 3}, tmp_path / "wrapped.pth")
    conf = {
        **ADAPTATION["encoder_conf"],
        "adapter_conf": {"controller_size": 16, "regime": "new_task"},
    }
    start = ("--init_adapter", str(tmp_path / "wrapped.pth"))
    output = train(an4, base, tmp_path / "exp", *start, max_epoch=1, encoder_conf=conf)
    after = load(output / "valid.loss.best.pth")
    shared = [key for key in state if ".controller." in key]
    assert shared and all(torch.equal(after[key], state[key]) for key in shared)


def test_a_module_whose_keys_hold_the_adapters_name_is_not_the_adapter():
    """Keys are matched where they begin, not wherever the name stands in them."""
    from espnet_hra.espnet.base import components
    from espnet_hra.espnet.trainer import adapter_only_state

    model = torch.nn.ModuleDict(
        {
            "encoder": torch.nn.ModuleDict({"adapter": torch.nn.Linear(1, 1)}),
            "decoder": torch.nn.ModuleDict(
                {"encoder": torch.nn.ModuleDict({"adapter": torch.nn.Linear(1, 1)})}
            ),
        }
    )
    with adapter_only_state(model):
        kept = list(model.state_dict())
    assert kept == ["encoder.adapter.weight", "encoder.adapter.bias"]
    parts = components(model)
    assert list(parts) == ["decoder"]
    assert [key for key, _ in parts["decoder"]] == [
        "encoder.adapter.weight",
        "encoder.adapter.bias",
    ]


def test_a_whole_model_survives_torch_save(loud, an4, tmp_path):
    import espnet_hra

    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(loud), ctc_greedy=True, task="male"
    )
    wave = waves(an4)[0]
    expected = speech2text(wave)[0][0]
    torch.save(speech2text.asr_model, tmp_path / "model.pth")
    model = torch.load(tmp_path / "model.pth", weights_only=False)
    other = espnet_hra.Speech2Text(
        ready=(model, speech2text.asr_train_args), ctc_greedy=True, task="male"
    )
    assert other(wave)[0][0] == expected


@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_base_may_be_a_checkpoint_of_lightning(named, base, an4, tmp_path):
    folder = tmp_path / "lightning"
    folder.mkdir()
    state = {f"model.{k}": v for k, v in load(base / "valid.loss.best.pth").items()}
    saved = {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.5"}
    torch.save(saved, folder / "last.ckpt")
    (folder / "config.yaml").write_text((base / "config.yaml").read_text())
    given = folder if named == "folder" else folder / "last.ckpt"
    output = train(an4, given, tmp_path / "exp", max_epoch=1)
    expected = train(an4, base, tmp_path / "plain", max_epoch=1)
    found = [load(exp / "valid.loss.best.pth") for exp in (output, expected)]
    assert equal(*found)
