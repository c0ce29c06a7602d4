"""ESPnet3: its stages, on its own recipe mini_an4, with an adapted model."""

import copy
import functools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import espnet3
import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import ROOT
from egs3.mini_an4.esp2_asr.dataset.builder import MiniAn4Builder
from espnet2.torch_utils.initialize import initialize
from espnet2.train.collate_fn import CommonCollateFn
from espnet2.train.preprocessor import CommonPreprocessor
from espnet3.publication.inference_model import InferenceModel
from espnet3.systems.base import training
from espnet3.systems.base.inference import infer
from espnet3.utils.config_utils import load_and_merge_config
from espnet3.utils.publication_utils import pack_model
from espnet3.utils.task_utils import get_espnet_model, save_espnet_config
from omegaconf import OmegaConf
from test_training import equal, load

import espnet_hra
from espnet_hra.adapt.single import _command
from espnet_hra.bin import asr_inference
from espnet_hra.errors import BaseModelError, ConfigError, TaskError
from espnet_hra.espnet.base import fingerprints, open_base
from espnet_hra.espnet.model import decode_names
from espnet_hra.espnet.models import find_model
from espnet_hra.task import HRATask, Preprocessor, SetTask

TASK = "espnet_hra.task.HRATask"
STOCK = "espnet3.systems.esp2_asr.task.ASRTask"
CONF = ROOT / "conf" / "espnet3"
SECTION = {
    "encoder_conf": {
        "adapter": "hra",
        "adapter_conf": {"controller_size": 16},
        "tasks": ["female", "male"],
    }
}

#: ESPnet3's recipe wants this program, which converts NIST SPHERE files.
SPH2PIPE = """#!{python}
import io, sys, soundfile
samples, rate = soundfile.read(sys.argv[-1], dtype="int16")
wav = io.BytesIO()
soundfile.write(wav, samples, rate, format="WAV")
sys.stdout.buffer.write(wav.getvalue())
"""


def dataset_of_the_docs() -> str:
    """The module of a dataset with tasks that the docs tell users to write."""
    page = (ROOT / "docs" / "espnet3.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]


def copy_recipe(root: Path) -> Path:
    """A copy of ESPnet3's recipe with our configurations, as the docs say."""
    program = root / "bin" / "sph2pipe"
    program.parent.mkdir()
    program.write_text(SPH2PIPE.format(python=sys.executable))
    program.chmod(0o755)
    folder = root / "egs3" / "mini_an4" / "esp2_asr"
    source = Path(espnet3.__file__).parents[1] / "egs3" / "mini_an4" / "esp2_asr"
    shutil.copytree(
        source, folder, ignore=shutil.ignore_patterns("__pycache__", "data", "exp")
    )
    for file in CONF.glob("*.yaml"):
        shutil.copy(file, folder / "conf")
    (folder / "dataset" / "__init__.py").write_text(dataset_of_the_docs())
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A copy of ESPnet3's recipe with its data prepared."""
    folder = copy_recipe(tmp_path_factory.mktemp("espnet3"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path_of(folder))
        builder = MiniAn4Builder()
        builder.prepare_source(recipe_dir=folder)
        builder.build(recipe_dir=folder)
    return folder


def path_of(recipe: Path) -> str:
    return f"{recipe.parents[2] / 'bin'}:{os.environ['PATH']}"


def run(recipe: Path, *stages: str, **configs: str) -> str:
    """``python run.py --stages ...`` in a recipe, as users say it; its output."""
    words = [w for k, v in configs.items() for w in (f"--{k}_config", f"conf/{v}.yaml")]
    environment = {
        **os.environ,
        "PATH": path_of(recipe),
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [sys.executable, "run.py", "--stages", *stages, *words],
        cwd=recipe,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def configured(recipe: Path, exp: Path, name: str = "training", **changes: object):
    """A configuration that is shipped, for the recipe's link to the small base."""
    config = load_and_merge_config(
        recipe / "conf" / f"{name}_hra.yaml",
        config_name=f"{name}.yaml",
        default_package="egs3.TEMPLATE.esp2_asr",
        resolve=False,
    )
    config.recipe_dir, config.exp_dir = str(recipe), str(exp)
    config = OmegaConf.merge(config, changes)
    if name == "training":
        config.stats_dir = str(recipe / "exp" / "stats_hra")
        config.model.pretrained_model = str(recipe / "exp" / "base")
        config.trainer.accelerator = "cpu"
    if "parallel" in config:  # starting other processes takes half a minute
        config.parallel.options = {"processes": False, "dashboard_address": None}
    return config


@pytest.fixture(scope="module")
def trained(recipe, base) -> Path:
    """An experiment of ESPnet3's stages collect_stats and train, both tasks.

    In `seen/after.pth` are all tensors of the model when it was trained.
    """
    exp = recipe / "exp" / "joint"
    exp.mkdir(parents=True)
    (recipe / "exp" / "base").symlink_to(base)
    training.collect_stats(configured(recipe, exp))
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        build = training._build_trainer
        patch.setattr(
            training, "_build_trainer", lambda c: seen.append(build(c)) or seen[0]
        )
        training.train(configured(recipe, exp))
    model = seen[0].model.model
    whole = dict(model.named_parameters()) | dict(model.named_buffers())
    (exp / "seen").mkdir()
    torch.save(whole, exp / "seen" / "after.pth")
    return exp


@pytest.fixture
def section(base) -> dict:
    """The section `model` of a configuration."""
    return copy.deepcopy({"pretrained_model": str(base), **SECTION})


@pytest.fixture
def model(section):
    return get_espnet_model(TASK, section)


@pytest.fixture(scope="module")
def speech(recipe) -> list[np.ndarray]:
    files = sorted((recipe / "data" / "wav").rglob("*.wav"))
    return [soundfile.read(file, dtype="float32")[0] for file in files]


# ------------------------------------------------------------ the model and its base


def test_a_model_is_on_its_base_and_only_the_adapter_learns(model, base):
    whole = dict(model.named_parameters()) | dict(model.named_buffers())
    source = load(base / "valid.loss.best.pth")
    assert all(torch.equal(whole[key], source[key]) for key in source)
    learning = {k for k, p in model.named_parameters() if p.requires_grad}
    assert learning == {k for k in whole if k.startswith("encoder.adapter.")}
    assert model.encoder.tasks == ("female", "male")


def test_keys_of_the_configuration_win(section):
    section["model_conf"] = {"ctc_weight": 1.0, "ignore_id": -7}
    assert get_espnet_model(TASK, section).ignore_id == -7


def test_what_lightning_saves_is_the_adapter_and_is_enough_to_go_on(model, section):
    state = model.state_dict()
    assert all(key.startswith("encoder.adapter.") for key in state)
    with torch.no_grad():
        for tensor in state.values():
            tensor.add_(0.5)
    saved = copy.deepcopy(state)
    again = get_espnet_model(TASK, section)
    assert not equal(again.state_dict(), saved)
    again.load_state_dict(saved, strict=True)
    assert equal(again.state_dict(), saved)
    del saved["encoder.adapter.heads.male"]
    with pytest.raises(RuntimeError, match="no head for male"):
        again.load_state_dict(saved, strict=True)
    assert pickle.loads(pickle.dumps(model)).state_dict().keys() == state.keys()


def test_an_earlier_adapter_is_where_a_training_starts(model, section, tmp_path):
    section["encoder_conf"]["adapter_conf"]["regime"] = "new_task"
    with pytest.raises(BaseModelError, match="give --init_adapter"):
        get_espnet_model(TASK, section)
    with torch.no_grad():
        model.encoder.adapter.heads.vector("male").fill_(0.25)
    state = model.state_dict()
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    section["init_adapter"] = str(tmp_path / "last.ckpt")
    assert equal(get_espnet_model(TASK, section).state_dict(), state)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"pretrained_model": None}, BaseModelError, "encoder: rnn"),
        ({"pretrained_model": "/gone/base"}, BaseModelError, "no such file or folder"),
        ({"encoder": "conformer"}, BaseModelError, "write encoder: hra_conformer"),
        ({"base_fingerprint": {"ctc": "sha256:0"}}, BaseModelError, "not the base"),
    ],
)
def test_refused_models(section, change, error, message):
    if change == {"pretrained_model": None}:
        change, message = {**change, "encoder": "hra_conformer"}, "pretrained_model ZIP"
        section["token_list"] = ["<blank>", "<unk>", "<sos/eos>"]
    with pytest.raises(error, match=message):
        get_espnet_model(TASK, {**section, **change})


@pytest.mark.parametrize("key", ["shared_rate"])
def test_rates_that_its_optimizers_do_not_know_are_refused(section, key):
    section["encoder_conf"]["adapter_conf"][key] = 0.5
    with pytest.raises(ConfigError, match=f"{key} .*ESPnet3 makes its own"):
        get_espnet_model(TASK, section)


def test_new_tokens_are_written_out(section):
    section["encoder_conf"]["adapter_conf"] |= {"ctc": "task", "new_tokens": "auto"}
    with pytest.raises(ConfigError, match=r"write the tokens themselves"):
        get_espnet_model(TASK, section)
    section["encoder_conf"]["adapter_conf"]["new_tokens"] = ["é"]
    model = get_espnet_model(TASK, section)
    assert model.token_list[-2] == "é"
    prepared = Preprocessor(train=True, model=section)("u", {"text": "é"})
    assert prepared["text"].tolist() == [len(model.token_list) - 2]


def test_other_tokens_than_the_bases_are_refused(section, an4):
    tokens = an4["tokens"].read_text().split()
    section["token_list"] = tokens  # the same ones
    get_espnet_model(TASK, section)
    section["token_list"] = [*tokens[:3], *reversed(tokens[3:-1]), tokens[-1]]
    with pytest.raises(ConfigError, match=r"token_list has (\d+) tokens, the base \1"):
        get_espnet_model(TASK, section)


def test_a_base_is_not_initialised_anew(model, base):
    with pytest.raises(ConfigError, match="trainer: init.*take it out"):
        initialize(model, "xavier_uniform")


def test_a_model_without_adapter_is_trained_and_saved_whole(base, tmp_path):
    config = yaml.safe_load((base / "config.yaml").read_text())
    kept = ("token_list", "encoder", "encoder_conf", "model_conf")
    section = {key: config[key] for key in kept}
    model = get_espnet_model(TASK, section)
    assert all(p.requires_grad for p in model.parameters())
    assert "encoder.encoders.0.norm_mha.weight" in model.state_dict()
    save_espnet_config(TASK, {"task": TASK, "model": section}, str(tmp_path))
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["encoder"] == "conformer" and saved["base_fingerprint"] is None


def test_espnet3s_own_task_does_not_train_an_adapted_encoder(section, base):
    config = yaml.safe_load((base / "config.yaml").read_text())
    config["encoder"] = "hra_conformer"
    config["encoder_conf"] |= section["encoder_conf"]
    kept = ("token_list", "encoder", "encoder_conf", "model_conf", "normalize")
    model = get_espnet_model(STOCK, {key: config[key] for key in kept})
    model.encoder.set_task("male")
    with pytest.raises(RuntimeError, match=f"ASRTask trains .*task: {TASK}"):
        model(
            speech=torch.randn(1, 16000),
            speech_lengths=torch.tensor([16000]),
            text=torch.tensor([[3, 4]]),
            text_lengths=torch.tensor([2]),
        )


# --------------------------------------------------------------- data and its tasks


def batch_of(section, speech, names):
    """What a data loader of ESPnet3 makes of these utterances."""
    preprocess = Preprocessor(train=True, model=section)
    fields = [
        {"speech": wave, "text": "YES", **({"utt2task": name} if name else {})}
        for wave, name in zip(speech, names)
    ]
    prepared = [(str(i), preprocess(str(i), item)) for i, item in enumerate(fields)]
    return CommonCollateFn(int_pad_value=-1)(prepared)[1]


def test_names_of_tasks_are_in_the_batch(section, speech):
    batch = batch_of(section, speech, ["female", "male"])
    names = decode_names(batch["utt2task"], batch["utt2task_lengths"])
    assert names == ["female", "male"]


def test_a_batch_trains_the_heads_of_its_tasks(model, section, speech):
    heads = model.encoder.adapter.heads

    def gradients(names):
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch_of(section, speech, names))[0].backward()
        return {name: heads.vector(name).grad for name in heads.own}

    for names in (["female"] * 2, ["male"] * 2, ["male", "female"]):
        found = gradients(names)
        assert {k for k, grad in found.items() if grad is not None} == set(names)
        assert all(grad.abs().sum() > 0 for grad in found.values() if grad is not None)


def test_several_tasks_and_no_names_is_an_error(model, section, speech):
    with pytest.raises(TaskError, match="female, male"):
        model(**batch_of(section, speech, [None, None]))


def test_a_dataset_may_have_one_task():
    sample = {"text": "YES"}
    assert SetTask("male")(sample) == {"text": "YES", "utt2task": "male"}
    assert sample == {"text": "YES"}
    with pytest.raises(TaskError, match="'../x'"):
        SetTask("../x")


@pytest.mark.parametrize("wanted", [True, False])
def test_a_preprocessor_within_knows_whether_it_is_for_training(section, wanted):
    inner = functools.partial(CommonPreprocessor, token_type=None)
    preprocess = Preprocessor(train=wanted, model=section, inner=inner)
    assert preprocess.preprocess.preprocess.train is wanted
    given = {"speech": np.zeros(9, np.float32), "utt2task": "male"}
    made = preprocess("u", given)
    assert decode_names(torch.tensor(made["utt2task"])[None], torch.tensor([4])) == [
        "male"
    ]
    assert given["utt2task"] == "male"


def test_options_of_the_preprocessor_are_espnets(section):
    made = Preprocessor(train=True, model=section, speech_volume_normalize=0.5)
    wave = made("u", {"speech": np.ones(9, np.float32)})["speech"]
    assert wave.tolist() == [0.5] * 9
    with pytest.raises(ConfigError, match="volume: no option"):
        Preprocessor(train=True, model=section, volume=0.5)
    with pytest.raises(ConfigError, match="write _partial_: true"):
        built = CommonPreprocessor(train=True)
        Preprocessor(train=True, model=section, inner=built)
    with pytest.raises(TaskError, match="'fe/male'"):
        made("u", {"speech": np.ones(9, np.float32), "utt2task": "fe/male"})


# ------------------------------------------------------------------------- training


def test_the_saved_configuration_says_all_that_decoding_needs(trained, base, an4):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    model, _ = HRATask.build_model_from_file(
        trained / "config.yaml", trained / "last.ckpt"
    )
    assert config["base_fingerprint"] == fingerprints(model)
    assert config["base_fingerprint"].keys() >= {"encoder", "ctc"}
    assert config["encoder"] == "hra_conformer"
    assert config["token_list"] == an4["tokens"].read_text().split()
    assert config["token_type"] == "char"
    assert config["model"] == "espnet"
    assert config["task"] == TASK


def test_another_base_in_its_place_is_refused(trained, base, tmp_path):
    shutil.copytree(base, tmp_path / "other")
    state = load(base / "valid.loss.best.pth")
    state["ctc.ctc_lo.bias"][3] += 1
    torch.save(state, tmp_path / "other" / "valid.loss.best.pth")
    with pytest.raises(BaseModelError, match="not the base .* ctc: expected sha256:"):
        espnet_hra.Speech2Text.from_pretrained(
            str(trained), pretrained_model=str(tmp_path / "other")
        )


def test_a_base_in_the_recipe_is_named_by_its_place(trained, recipe, base, tmp_path):
    saved = yaml.safe_load((trained / "config.yaml").read_text())
    assert saved["pretrained_model"] == "exp/base"
    # It is found from another folder, and in a copy.
    shutil.copytree(trained, tmp_path / "exp" / "joint")
    shutil.copytree(base, tmp_path / "exp" / "base")
    found = find_model(str(tmp_path / "exp" / "joint")).read_config()
    assert found["pretrained_model"] == str(tmp_path / "exp" / "base")
    # One outside, or seen from an experiment outside, keeps its whole path.
    config = configured(recipe, tmp_path / "elsewhere")
    save_espnet_config(TASK, config, str(tmp_path / "elsewhere"))
    saved = yaml.safe_load((tmp_path / "elsewhere" / "config.yaml").read_text())
    assert saved["pretrained_model"] == str(recipe / "exp" / "base")


@pytest.mark.shows(encoder="conformer", objective="CTC", entrance="ESPnet3")
def test_training_moves_the_adapter_only(trained, base):
    found = open_base(str(trained))
    assert found.model_file.name == "valid.loss.ave_3best.pth"
    files = [*trained.glob("*.ckpt"), *trained.glob("*.pth")]
    assert len(files) >= 6
    for file in files:
        state = load(file)
        state = state.get("state_dict", state)
        assert all(key.startswith("encoder.adapter.") for key in state), file
    source, after = (
        load(base / "valid.loss.best.pth"),
        load(trained / "seen" / "after.pth"),
    )
    # BatchNorm statistics are among them.
    assert all(torch.equal(after[key], source[key]) for key in source)
    for name in ("female", "male"):
        assert after[f"encoder.adapter.heads.{name}"].abs().sum() > 0


def test_training_goes_on_from_a_checkpoint(trained, recipe, tmp_path):
    fit = {"ckpt_path": str(trained / "last.ckpt")}
    longer = {"max_epochs": 5}
    training.train(configured(recipe, tmp_path / "exp", fit=fit, trainer=longer))
    assert load(tmp_path / "exp" / "last.ckpt")["epoch"] == 4


def test_the_average_of_most_checkpoints_is_the_model(base, tmp_path):
    for name in ("ave_1best", "ave_2best", "ave_10best"):
        shutil.copy(base / "valid.loss.best.pth", tmp_path / f"valid.loss.{name}.pth")
    shutil.copy(base / "config.yaml", tmp_path)
    assert open_base(str(tmp_path)).model_file.name == "valid.loss.ave_10best.pth"
    for file in tmp_path.glob("*.pth"):
        file.unlink()
    for name in ("epoch0_step1_valid.loss", "last", "step7"):
        shutil.copy(base / "valid.loss.best.pth", tmp_path / f"{name}.ckpt")
    assert open_base(str(tmp_path)).model_file.name == "last.ckpt"


# ------------------------------------------------------------------------- decoding


def scores(results):
    return [float(result[0][3].score) for result in results]


@pytest.mark.parametrize("file", ["last.ckpt", "valid.loss.ave_3best.pth"])
def test_checkpoints_open_and_names_are_given_as_they_are(trained, speech, file):
    speech2text = espnet_hra.Speech2Text(
        trained / "config.yaml", trained / file, ctc_greedy=True
    )
    waves = speech[:2]
    names = ["female", "male"]
    mixed = scores(speech2text(waves, utt2task=names))
    assert mixed == scores(speech2text(waves, task=names))
    assert mixed != scores(speech2text(waves, task=names[::-1]))
    alone = scores([speech2text(waves[0], utt2task="female")])
    speech2text.set_task("female")
    assert scores([speech2text(waves[0])]) == alone
    assert scores([speech2text(waves[0], utt2task="male")]) != alone
    with pytest.raises(TaskError, match="unknown task 'child'.*female, male"):
        speech2text(waves[0], utt2task="child")


GREEDY = {"ctc_greedy": True, "ctc_weight": 1.0}


@pytest.mark.parametrize("chosen", [None, "female", "male"])
def test_infer_decodes_with_each_utterances_task_or_one(
    chosen, trained, recipe, tmp_path
):
    config = configured(
        recipe, trained, "inference", model=GREEDY, inference_dir=str(tmp_path)
    )
    if chosen is not None:
        config.model.task, config.input_key = chosen, "speech"
        del config.contract.inputs.utt2task
    infer(config)
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(trained), **GREEDY)
    lines = (recipe / "data" / "manifest" / "test.tsv").read_text().splitlines()
    items = [line.split("\t")[:2] for line in lines]
    waves = [soundfile.read(file, dtype="float32")[0] for _, file in items]
    tasks = [chosen or {"f": "female", "m": "male"}[name[0]] for name, _ in items]
    texts = [result[0][0] for result in speech2text(waves, task=tasks)]
    written = (tmp_path / "test" / "text.scp").read_text().splitlines()
    assert [line.partition(" ")[2] for line in written] == texts
    assert chosen or set(tasks) == {"female", "male"}


def test_a_pack_has_its_base_and_opens_elsewhere(trained, recipe, speech, tmp_path):
    place = {
        "out_dir": str(tmp_path / "pack"),
        "include": [str(recipe / "exp" / "base"), str(recipe / "src")],
    }
    pack_model(
        configured(recipe, trained),
        configured(recipe, trained, "publication", pack_model=place),
        configured(recipe, trained, "inference", model=GREEDY),
    )
    pack = shutil.move(tmp_path / "pack", tmp_path / "moved")
    with pytest.raises(ValueError, match="trust_user_code=True"):
        InferenceModel.from_packed(pack)
    opened = InferenceModel.from_packed(pack, trust_user_code=True)
    base = opened.model.asr_train_args.pretrained_model
    assert base == str(tmp_path / "moved" / "exp" / "base")
    here = espnet_hra.Speech2Text.from_pretrained(str(trained), **GREEDY)
    # The bundle's own code is not run by ours.
    (tmp_path / "moved" / "src" / "__init__.py").write_text("raise SystemExit('ran')\n")
    ours = espnet_hra.Speech2Text.from_pretrained(str(pack), **GREEDY)
    for name in ("female", "male"):
        expected = here(speech[0], task=name)[0]
        sample = {"speech": speech[0], "utt2task": name}
        assert opened(sample)["text"] == expected[0]
        assert ours(speech[0], task=name)[0][3].score == expected[3].score


def test_decode_reads_a_lightning_checkpoint(trained, an4, tmp_path):
    words = ["--asr_train_config", str(trained / "config.yaml")]
    words += ["--asr_model_file", str(trained / "last.ckpt")]
    for file, name, kind in (
        ("wav.scp", "speech", "sound"),
        ("utt2task", "utt2task", "text"),
    ):
        path = f"{an4['test'] / file},{name},{kind}"
        words += ["--data_path_and_name_and_type", path]
    asr_inference.main([*words, "--ctc_greedy", "true", "--output_dir", str(tmp_path)])
    said = (tmp_path / "1best_recog" / "text").read_text().splitlines()
    assert len(said) == len((an4["test"] / "text").read_text().splitlines())


def test_a_new_task_of_its_model_needs_training_options(trained, tmp_path):
    found = find_model(str(trained))
    saved = found.read_config()
    with pytest.raises(ConfigError, match="trained with ESPnet3.*--config FILE"):
        _command("child", saved, found, tmp_path, {}, {}, None, 0)
    _command("child", saved, found, tmp_path, {"optim": "adamw"}, {}, None, 0)
    config = yaml.safe_load((tmp_path / "train.yaml").read_text())
    assert "best_model_criterion" not in config


# ---------------------------------------------------------------------- all of it


@pytest.mark.slow
def test_all_stages_of_a_recipe(tmp_path):
    """As the docs say it, with a base that ESPnet3 has trained itself."""
    recipe = copy_recipe(tmp_path)
    stock = "training_asr_transformer"
    run(recipe, "create_dataset", "train_tokenizer", "collect_stats", "train",
        training=stock)  # fmt: skip
    stages = ("collect_stats", "train", "infer", "measure", "pack_model")
    said = run(recipe, *stages, training="training_hra", inference="inference_hra",
               metrics="metrics", publication="publication_hra")  # fmt: skip
    assert "trainable share of the model" in said
    exp = recipe / "exp" / "training_hra"

    # measure
    errors = json.loads((exp / "inference_hra" / "metrics.json").read_text())
    for name in ("WER", "CER"):
        found = errors[f"espnet3.systems.esp2_asr.metrics.{name.lower()}.{name}"]
        assert found.keys() == {"valid", "test"}
        assert all(rates[name] >= 0 for rates in found.values())

    # The pack opens where nothing of the recipe is.
    pack = shutil.move(exp / "model_pack", tmp_path / "pack")
    texts = (exp / "inference_hra" / "test" / "text.scp").read_text().splitlines()
    manifest = (recipe / "data" / "manifest" / "test.tsv").read_text().splitlines()
    samples = [
        {"speech": soundfile.read(file, dtype="float32")[0], "utt2task": task}
        for name, file, _ in (line.split("\t") for line in manifest)
        for task in ["female" if name.startswith("f") else "male"]
    ]
    shutil.rmtree(recipe)
    opened = InferenceModel.from_packed(pack, trust_user_code=True)
    found = [one["text"] for one in opened.forward_batch(samples)]
    assert [line.partition(" ")[2] for line in texts] == found
