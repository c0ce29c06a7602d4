"""`espnet-hra tasks add` and `adapt` on a Whisper, which reads with its decoder."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import make_base
from test_training import train, waves
from test_whisper import STOCK, TOY

import espnet_hra
from espnet_hra.commands import tasks
from espnet_hra.errors import ConfigError, TaskError
from espnet_hra.espnet.whisper import without_weights
from espnet_hra.tasks import file as taskfile
from espnet_hra.whisper import tokens
from espnet_hra.whisper.sizes import Sizes, written

pytest.importorskip("whisper")

#: The same, with the vocabulary of those that know English alone.
ENGLISH = Sizes(80, 1500, 32, 2, 2, 51864, 448, 32, 2, 2)


def adaptation(folder: Path, an4, kind: str) -> Path:
    """An adaptation of encoder and decoder of a small Whisper that is told languages,
    as those of `whisper:NAME` are, or of one that knows English alone."""
    sizes = TOY if kind == "multilingual" else ENGLISH
    conf = {"whisper_model": written(sizes)}
    listed = folder / "tokens.txt"
    listed.write_text("".join(f"{token}\n" for token in tokens.token_list(sizes)))
    stock = {
        **STOCK,
        "token_type": f"whisper_{kind}",
        "bpemodel": f"whisper_{kind}",
        "encoder_conf": conf,
        "decoder_conf": conf,
        "preprocessor_conf": {
            "whisper_language": None,
            "whisper_task": "transcribe",
        },
    }
    with without_weights(stock):
        base = make_base(folder / "base", listed, stock)
    own = {"adapter": "hra", "tasks": ["female", "male"]}
    own["adapter_conf"] = {"controller_size": 8, "decoder": True}
    more = {}
    if kind == "multilingual":
        more["languages"] = {"female": "en", "male": "en"}
    return train(
        an4,
        base,
        folder / "exp",
        max_epoch=1,
        optim_conf={"lr": 0.05},
        keep_nbest_models=1,
        best_model_criterion=[["valid", "acc", "max"]],
        encoder_conf=own,
        **more,
    )


@pytest.fixture(scope="module", params=["multilingual", "en"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind, an4, tmp_path_factory) -> Path:
    return adaptation(tmp_path_factory.mktemp(kind), an4, kind)


@pytest.fixture
def data(an4, tmp_path) -> Path:
    """Three utterances to learn, one that is held out."""
    folder = tmp_path / "voice"
    for part, lines in (("train", slice(0, 3)), ("dev", slice(3, 4))):
        (folder / part).mkdir(parents=True)
        for name in ("wav.scp", "text"):
            kept = (an4["train"] / name).read_text().splitlines()[lines]
            (folder / part / name).write_text("\n".join(kept) + "\n")
    return folder


def add(model, data, *more) -> None:
    tasks.main(["add", "new", str(data), "--model", str(model), *map(str, more)])


@pytest.mark.shows(encoder="whisper", objective="attention", entrance="tasks add")
def test_a_task_is_added_to_a_whisper(kind, model, data, an4, tmp_path):
    out = tmp_path / "new.safetensors"
    if kind == "multilingual":
        with pytest.raises(ConfigError, match="'new'.*told its language.*--language"):
            add(model, data, "--out", out)
        with pytest.raises(ConfigError, match="one language of a task, not fr and it"):
            add(model, data, "--out", out, "--language", "fr it")
        with pytest.raises(ConfigError, match="no token for it"):
            add(model, data, "--out", out, "--language", "klingon")
    add(model, data, "--out", out, "--language", "French", "--seed", 3)
    assert not (model / "tasks").exists()
    record = taskfile.describe(out)
    assert record["languages"] == ["fr" if kind == "multilingual" else "French"]
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(model), task=str(out))
    heads = speech2text.asr_model.encoder.adapter.heads
    part = speech2text.asr_model.encoder.adapter.decoder.section
    learned = heads.vector("new")[part.start : part.start + part.size]
    assert learned.abs().sum() > 0  # the decoder was adapted as well
    # The score is what Speech2Text says of the utterance that was held out.
    (score,) = record["scores"]
    speech2text.set_language("fr" if kind == "multilingual" else None)
    text = speech2text(np.asarray(waves(an4)[3]))[0][0]
    from espnet_hra.report.scoring import count_errors

    reference = (data / "dev" / "text").read_text().split(maxsplit=1)[1]
    errors = count_errors([(reference, text)])
    assert score["cer"] == round(errors.cer, 2) and score["utterances"] == 1


@pytest.mark.slow
def test_a_file_elsewhere_is_the_one_beside_the_model(kind, model, data, tmp_path):
    """And the language of the task goes with it."""
    copy = Path(shutil.copytree(model, tmp_path / "exp", symlinks=True))
    out = tmp_path / "new.safetensors"
    add(copy, data, "--out", out, "--language", "en")
    with pytest.raises(TaskError, match="there is no folder"):
        add(copy, data, "--out", tmp_path / "none" / "new", "--language", "en")
    add(copy, data, "--language", "en")
    assert (copy / "tasks" / "new.safetensors").read_bytes() == out.read_bytes()
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(copy), task="new")
    hypothesis = speech2text(np.asarray(waves(an4_of(data))[0]))[0][3]
    vocabulary = speech2text.converter.tokenizer.tokenizer
    first = vocabulary.convert_ids_to_tokens(hypothesis.yseq[:2].tolist())
    wanted = "<|en|>" if kind == "multilingual" else "<|notimestamps|>"
    assert first == ["<|startoftranscript|>", wanted]


def an4_of(data: Path) -> dict[str, Path]:
    return {"train": data / "train"}


@pytest.mark.slow
@pytest.mark.shows(encoder="whisper", objective="attention", entrance="adapt")
def test_many_tasks_are_adapted_and_scored(kind, model, an4, tmp_path):
    pytest.importorskip("distributed")
    from espnet_hra import adapt

    saved = yaml.safe_load((model / "config.yaml").read_text())
    conf = {k: saved[k] for k in ("optim", "optim_conf", "batch_type", "batch_size")}
    conf["encoder_conf"] = {
        k: saved["encoder_conf"][k] for k in ("adapter", "adapter_conf")
    }
    conf.update(max_epoch=1, best_model_criterion=[["valid", "acc", "max"]])
    if kind == "multilingual":
        conf["languages"] = dict.fromkeys(("fash", "fbbh"), "en")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(conf))
    data = tmp_path / "data"
    for part in ("train", "dev"):
        (data / part).mkdir(parents=True)
        names = [
            line.split()[0]
            for line in (an4["train"] / "text").read_text().splitlines()
            if line.startswith(("fash", "fbbh"))
        ]
        for name in ("wav.scp", "text"):
            lines = (an4["train"] / name).read_text().splitlines()
            kept = [line for line in lines if line.split()[0] in names]
            (data / part / name).write_text("\n".join(kept) + "\n")
        (data / part / "utt2task").write_text(
            "".join(f"{name} {name[:4]}\n" for name in names)
        )
    adapt.main(
        ["--data", str(data), "--out", str(tmp_path / "out")]
        + ["--config", str(tmp_path / "config.yaml")]
        + ["--pretrained_model", saved["pretrained_model"]]
        + ["--init_adapter", str(model / "valid.acc.best.pth")]
    )
    for name in ("fash", "fbbh"):
        record = taskfile.describe(tmp_path / "out" / "tasks" / f"{name}.safetensors")
        assert record["scores"][0]["cer"] >= 0
        assert torch.isfinite(torch.tensor(record["scores"][0]["wer"]))
