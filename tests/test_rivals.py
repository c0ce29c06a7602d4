"""The rivals of HRA through ESPnet: trained, decoded, continued with a new task."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from small_encoders import METHOD_CONFS
from test_training import train, waves

import espnet_hra
from espnet_hra import TaskError
from espnet_hra.errors import BaseModelError, ConfigError

LEARNING = [name for name in METHOD_CONFS if name not in ("hra", "none")]


def adaptation(adapter, **adapter_conf):
    conf = {**METHOD_CONFS[adapter], **adapter_conf}
    return {"adapter": adapter, "adapter_conf": conf, "tasks": ["female", "male"]}


@pytest.fixture(scope="module", params=LEARNING)
def experiment(request, an4, base, tmp_path_factory) -> Path:
    """A short training of both tasks through ESPnet."""
    if request.param in ("lora", "road"):
        pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp(request.param) / "exp"
    conf = adaptation(request.param, ctc="frozen")
    more = {}
    if request.param == "prompt":  # its gates, which begin at zero, come first to learn
        more = {"optim_conf": {"lr": 0.2, "weight_decay": 0.01}}
    return train(an4, base, folder, max_epoch=5, encoder_conf=conf, **more)


def test_training_learns_and_writes_adapters_only(experiment):
    states = torch.load(experiment / "checkpoint.pth", weights_only=True)
    stats = states["reporter"]["stats"]
    losses = [stats[epoch]["train"]["loss"] for epoch in (1, 5)]
    assert losses[1] < 0.97 * losses[0]
    state = torch.load(experiment / "valid.loss.ave.pth", weights_only=True)
    heads = ["encoder.adapter.heads.female", "encoder.adapter.heads.male"]
    assert list(state) == heads and not torch.equal(*state.values())
    counts = json.loads((experiment / "params.json").read_text())
    assert counts["trainable"] == 2 * counts["formula"]["per_task"]
    assert counts["trainable"] == sum(v.numel() for v in state.values())


def test_a_trained_experiment_decodes(experiment, an4, tmp_path):
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(experiment), ctc_greedy=True
    )
    encoder = speech2text.asr_model.encoder
    wave = waves(an4)[0]
    trained = torch.load(experiment / "valid.loss.ave.pth", weights_only=True)
    found = {}
    for task in ("female", "male"):
        vector = encoder.adapter.heads.vector(task)
        assert torch.equal(vector, trained[f"encoder.adapter.heads.{task}"])
        encoder.save_task(task, tmp_path / task)
        speech2text.set_task(task)
        found[task] = speech2text(wave)[0][0]
    other = espnet_hra.Speech2Text.from_pretrained(str(experiment), ctc_greedy=True)
    for task in ("female", "male"):
        other.asr_model.encoder.remove_task(task)
    for task, text in found.items():
        other.asr_model.encoder.load_task(tmp_path / task)
        other.set_task(task)
        assert other(wave)[0][0] == text
    speech2text.set_task(["male", "female"])
    assert [r[0][0] for r in speech2text([wave, wave])] == [
        found["male"],
        found["female"],
    ]


def test_a_new_task_is_trained_beside_others(experiment, an4, base, tmp_path):
    adapter = yaml.safe_load((experiment / "config.yaml").read_text())["encoder_conf"][
        "adapter"
    ]
    data = dict(an4)
    for part in ("train", "dev"):
        data[part] = tmp_path / part
        data[part].mkdir()
        for name in ("wav.scp", "text"):
            (data[part] / name).write_text((an4[part] / name).read_text())
        lines = (an4[part] / "text").read_text().splitlines()
        text = "".join(f"{line.split()[0]} new\n" for line in lines)
        (data[part] / "utt2task").write_text(text)
    conf = adaptation(adapter, regime="new_task", ctc="frozen")
    conf["tasks"] = ["female", "male", "new"]
    start = ("--init_adapter", str(experiment / "valid.loss.ave.pth"))
    output = train(data, base, tmp_path / "exp", *start, max_epoch=1, encoder_conf=conf)
    before = torch.load(experiment / "valid.loss.ave.pth", weights_only=True)
    after = torch.load(output / "valid.loss.ave.pth", weights_only=True)
    assert set(after) - set(before) == {"encoder.adapter.heads.new"}
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_an_initial_adapter_of_another_kind_is_refused(an4, base, tmp_path):
    torch.save({"encoder.adapter.controller.W": torch.ones(2)}, tmp_path / "hra.pth")
    torch.save({"encoder.after_norm.weight": torch.ones(2)}, tmp_path / "base.pth")
    for name in ("hra", "base"):
        start = ("--init_adapter", str(tmp_path / f"{name}.pth"))
        with pytest.raises(BaseModelError, match="not an adapter of this conf"):
            conf = adaptation("residual")
            train(an4, base, tmp_path / "exp", *start, encoder_conf=conf)


def test_no_adapter_cannot_be_trained_and_decodes_as_the_base(an4, base, tmp_path):
    with pytest.raises(ConfigError, match="nothing to train"):
        train(an4, base, tmp_path / "exp", encoder_conf=adaptation("none"))
    config = yaml.safe_load((base / "config.yaml").read_text())
    plain = espnet_hra.Speech2Text.from_pretrained(str(base), ctc_greedy=True)
    config["encoder"] = "hra_conformer"
    config["encoder_conf"].update(adaptation("none"))
    config["pretrained_model"] = str(base)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    speech2text = espnet_hra.Speech2Text(tmp_path / "config.yaml", ctc_greedy=True)
    wave = waves(an4)[0]
    for task in ("female", "male", None):
        speech2text.set_task(task)
        assert speech2text(wave)[0][0] == plain(wave)[0][0]
    with pytest.raises(TaskError, match="unknown task 'robot'"):
        speech2text.set_task("robot")
