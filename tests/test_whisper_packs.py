"""Packs of a Whisper: by its name, or whole; opened anywhere, and checked."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from adaptations import TASKS, make_adaptation
from test_whisper_weights import TOY, openai

import espnet_hra
from espnet_hra.commands import pack
from espnet_hra.errors import BaseModelError
from espnet_hra.espnet.base import open_base
from espnet_hra.files import archive
from espnet_hra.packs import left_out
from espnet_hra.whisper import formats, sources
from espnet_hra.whisper.sizes import NAMED

whisper = pytest.importorskip("whisper")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A small Whisper as OpenAI's file."""
    torch.manual_seed(0)
    dims = whisper.ModelDimensions(**vars(TOY))
    made = whisper.Whisper(dims)
    torch.nn.init.normal_(made.decoder.positional_embedding)
    return openai(tmp_path_factory.mktemp("weights"), made.state_dict())


class Source:
    """Stands for where OpenAI's models are had: gives a file, and counts."""

    def __init__(self, file: Path):
        self.file: Path | None = file
        self.asked = 0

    def __call__(self, name: str):
        self.asked += 1
        if self.file is None:
            raise BaseModelError("there is no network")
        return formats.read(self.file)


@pytest.fixture(scope="module")
def source(weights, tmp_path_factory):
    """The small Whisper is called tiny here, and this is where its weights are had."""
    with pytest.MonkeyPatch.context() as patch:
        made = Source(weights)
        made.__name__ = "_openai"
        patch.setattr(sources, "_openai", made)
        patch.setitem(NAMED, "tiny", TOY)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield made


@pytest.fixture
def elsewhere(source, tmp_path, monkeypatch):
    """Another machine: nothing is in its cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(source, "asked", 0)
    monkeypatch.setattr(source, "file", source.file)
    return source


def adapt(folder: Path, base: object) -> Path:
    return make_adaptation(folder, base, decoder=True)


@pytest.fixture(scope="module")
def model(source, tmp_path_factory) -> Path:
    return adapt(tmp_path_factory.mktemp("adapted") / "exp", "whisper:tiny")


def make_pack(model: object, out: Path, *more: str) -> Path:
    pack.main(["--model", str(model), "--out", str(out), "--tasks", "all", *more])
    return out


@pytest.fixture(scope="module")
def packed(model, tmp_path_factory) -> Path:
    return make_pack(model, tmp_path_factory.mktemp("pack") / "named.zip")


WAVE = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)


def said(model: object, task: str | None, **kwargs) -> list[int]:
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(model), language="en", **kwargs
    )
    speech2text.set_task(task)
    return speech2text(WAVE)[0][2]


def edited(packed: Path, folder: Path, **changes: object) -> Path:
    """A pack as a folder, whose configuration somebody has changed."""
    archive.extract(packed, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))
    return folder


# -------------------------------------------------------------------------- making


def test_by_default_a_pack_names_the_whisper_and_does_not_hold_it(packed, tmp_path):
    archive.extract(packed, tmp_path / "pack")
    state = torch.load(tmp_path / "pack" / "model.pth", weights_only=True)
    assert state and all(key.startswith("encoder.adapter.") for key in state)
    config = yaml.safe_load((tmp_path / "pack" / "config.yaml").read_text())
    assert config["pretrained_model"] == "whisper:tiny"
    assert set(config["base_fingerprint"]) == {"encoder", "decoder"}
    manifest = json.loads((tmp_path / "pack" / "hra_pack.json").read_text())
    assert manifest["base"]["reference"] == "whisper:tiny"
    assert config["base_fingerprint"]["encoder"] == manifest["base"]["backbone"]
    card = (tmp_path / "pack" / "README.md").read_text()
    assert "backbone is `whisper:tiny`" in card and "--whole true" in card


@pytest.mark.slow
def test_sizes_are_told(model, packed, tmp_path, capsys):
    parameters = 4 * (51865 + 1500 + 448) * 32 / 1e6  # most of this Whisper, in MB
    make_pack(model, tmp_path / "named")
    told = capsys.readouterr().err.splitlines()[0].split()
    small, large = float(told[2]), float(told[6].rstrip(":"))
    assert told[3:6] == ["MB", "instead", "of"] and "whisper:tiny" in told
    assert large - small == pytest.approx(parameters, rel=0.1)
    make_pack(model, tmp_path / "whole.zip", "--whole")
    assert f"of {large:.1f} are the Whisper" in capsys.readouterr().err
    whole = (tmp_path / "whole.zip").stat().st_size
    assert whole - packed.stat().st_size == pytest.approx(1e6 * parameters, rel=0.1)


@pytest.mark.slow
def test_a_whole_pack_needs_no_source(model, elsewhere, tmp_path):
    out = make_pack(model, tmp_path / "whole.zip", "--whole", "true")
    expected = said(model, "female")
    elsewhere.file, elsewhere.asked = None, 0
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    assert said(out, "female") == expected and elsewhere.asked == 0


@pytest.mark.slow
def test_half_precision_is_a_whole_pack(model, tmp_path, capsys):
    out = make_pack(model, tmp_path / "half.zip", "--half", "true")
    assert "in the pack because --half makes it another" in capsys.readouterr().err
    assert said(out, "female")


@pytest.mark.slow
def test_whole_is_not_of_task_packs(model, tmp_path):
    with pytest.raises(SystemExit):
        pack.main(
            ["--model", str(model), "--task", "female", "--base_tag", "x"]
            + ["--whole", "--out", str(tmp_path / "x")]
        )


@pytest.mark.slow
def test_weights_of_a_path_are_known_by_their_fingerprint(
    model, weights, source, tmp_path, monkeypatch, capsys
):
    """By what is known, or is in the cache; never by what would have to be fetched."""
    exp = adapt(tmp_path / "exp", f"whisper:{weights}")
    make_pack(exp, tmp_path / "cached")  # whisper:tiny is in the cache
    assert "whisper:tiny is named" in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(source, "asked", 0)
    make_pack(exp, tmp_path / "whole")
    assert "none of OpenAI's models that are known here" in capsys.readouterr().err
    assert (tmp_path / "whole" / "model.pth").stat().st_size > 6_000_000
    prints = yaml.safe_load((exp / "config.yaml").read_text())["base_fingerprint"]
    monkeypatch.setitem(left_out.FINGERPRINTS, "tiny", prints)
    make_pack(exp, tmp_path / "known")
    assert "whisper:tiny is named" in capsys.readouterr().err
    assert source.asked == 0
    assert said(tmp_path / "known", "female") == said(exp, "female")


# ------------------------------------------------------------------------- opening


@pytest.mark.slow
def test_it_opens_where_neither_experiment_nor_cache_is(
    model, packed, elsewhere, tmp_path
):
    expected = {task: said(model, task) for task in (*TASKS, None)}
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    elsewhere.asked = 0
    there = Path(shutil.copy(packed, tmp_path / "there.zip"))
    away = model.rename(tmp_path / "away")
    try:
        assert {task: said(there, task) for task in (*TASKS, None)} == expected
        assert elsewhere.asked == 1  # and is kept
    finally:
        away.rename(model)


@pytest.mark.slow
def test_commands_open_it(packed, an4, tmp_path, capsys):
    from espnet_hra.bin import asr_inference
    from espnet_hra.commands import tasks, transcribe

    wav = (an4["test"] / "wav.scp").read_text().split()[1]
    args = [wav, "--model", str(packed), "--task", "female", "--language", "en"]
    assert transcribe.main(args) == 0
    text = capsys.readouterr().out.strip()
    tasks.main(["list", "--model", str(packed)])
    assert set(TASKS) <= set(capsys.readouterr().out.split())
    scp = tmp_path / "wav.scp"
    scp.write_text(f"u {wav}\n")
    asr_inference.main(
        ["--model_tag", str(packed), "--task", "female", "--language", "en"]
        + ["--output_dir", str(tmp_path / "out"), "--ngpu", "0", "--beam_size", "1"]
        + ["--data_path_and_name_and_type", f"{scp},speech,sound"]
    )
    (line,) = (tmp_path / "out" / "1best_recog" / "text").read_text().splitlines()
    assert line.partition(" ")[2].strip() == text
    archive.extract(packed, tmp_path / "folder")
    out = tmp_path / "female.safetensors"
    tasks.main(
        ["export", "female", "--model", str(tmp_path / "folder"), "--out", str(out)]
    )
    other = make_pack(tmp_path / "folder", tmp_path / "again.zip")  # a pack of a pack
    assert said(other, str(out)) == said(packed, "female")


@pytest.mark.slow
def test_an_adaptation_of_it_stands_on_the_whisper(packed, source, tmp_path):
    exp = adapt(tmp_path / "exp", packed)
    config = yaml.safe_load((exp / "config.yaml").read_text())
    assert config["pretrained_model"] == "whisper:tiny"
    base = open_base(str(packed))
    base.verify()
    assert base.reference == "whisper:tiny"
    assert base.config_file == open_base("whisper:tiny").config_file


# ------------------------------------------------------------------------- refused


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_the_weights_one_line_says_what_to_do(packed, elsewhere, weights):
    elsewhere.file = None
    with pytest.raises(BaseModelError) as error:
        said(packed, "female")
    message = one_line(error)
    assert "whisper:tiny: no source has its weights here" in message
    assert "--pretrained_model whisper:PATH" in message and "--whole" in message
    with pytest.raises(BaseModelError, match="no source has its weights"):
        open_base(str(packed))
    found = said(packed, "female", pretrained_model=f"whisper:{weights}")
    assert found and elsewhere.file is None


@pytest.mark.slow
def test_other_weights_are_refused(packed, elsewhere, weights, tmp_path):
    content = torch.load(weights, weights_only=True)
    content["model_state_dict"]["decoder.ln.bias"] += 1
    torch.save(content, tmp_path / "other.pt")
    elsewhere.file = tmp_path / "other.pt"
    for opening in (
        lambda: said(packed, "female"),
        lambda: open_base(str(packed)).verify(),
        lambda: adapt(tmp_path / "exp", packed),
    ):
        with pytest.raises(BaseModelError) as error:
            opening()
        message = one_line(error)
        assert "decoder: expected sha256:" in message and "whisper:PATH" in message


@pytest.mark.slow
def test_a_pack_without_a_fingerprint_is_refused(packed, tmp_path):
    folder = edited(packed, tmp_path / "pack", base_fingerprint=None)
    for opening in (said, lambda folder, task: open_base(str(folder))):
        with pytest.raises(BaseModelError, match="no fingerprint of it"):
            opening(folder, "female")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["whisper:{}", "{}", "../exp", "~/exp", "whisper:../weights/toy.pt"]
)
def test_a_pack_names_no_place_of_this_machine(packed, model, tmp_path, name):
    given = name.format(model)
    folder = edited(packed, tmp_path / "pack", pretrained_model=given)
    with pytest.raises(BaseModelError, match="not in the pack: say with --pretrained"):
        said(folder, "female")
    with zipfile.ZipFile(tmp_path / "zip.zip", "w") as archive_file:
        for file in folder.rglob("*"):
            archive_file.write(file, file.relative_to(folder))
    with pytest.raises(BaseModelError, match="not in the pack: say with --pretrained"):
        said(tmp_path / "zip.zip", "female")
    # What the user says is the user's.
    assert said(folder, "female", pretrained_model="whisper:tiny")


@pytest.mark.slow
def test_a_pack_starts_from_no_checkpoint_of_this_machine(packed, model, tmp_path):
    """A base may also be named by init_param, in an experiment of one's own."""
    folder = edited(
        packed,
        tmp_path / "pack",
        pretrained_model=None,
        init_param=[str(next(model.glob("*.pth")))],
    )
    with pytest.raises(BaseModelError, match="needs the trained model"):
        said(folder, "female")
