"""Experiment folders as ESPnet's own recipes leave them, adapted somewhere else.

A recipe trains where it is: its configuration names the token model and the statistics
by paths relative to the recipe's folder. An adaptation runs elsewhere, is packed, and
must not need the recipe any more. Other ESPnet tasks are in test_espnet_tasks.py,
Whispers in test_whisper.py.
"""

import contextlib
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile
import soxr
import yaml
from adaptations import waves
from espnet_tasks import moved_away
from test_training import ADAPTATION, streams

import espnet_hra
from espnet_hra import cli
from espnet_hra.errors import BaseModelError
from espnet_hra.espnet.base import open_base

_BLOCKS = {
    **{"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 2},
    **{"dropout_rate": 0.0, "input_layer": "conv2d", "cnn_module_kernel": 3},
}
_CONFORMER = {
    "encoder": "conformer",
    "encoder_conf": {**_BLOCKS, "rel_pos_type": "latest"},
}
_STREAMING = {
    "encoder": "contextual_block_conformer",
    "encoder_conf": {**_BLOCKS, "block_size": 8, "hop_size": 4, "look_ahead": 2}
    | {"macaron_style": True},
}

#: What differs between the recipes: sampling rate and encoder.
RECIPES = {
    "16k": (16000, _CONFORMER),
    "8k": (8000, _CONFORMER),
    "blockwise": (16000, _STREAMING),
}

SPM, STATS = "data/token_list/bpe_unigram50", "exp/asr_stats_raw_en_bpe50"
EXP = "exp/asr_train_raw_en_bpe50"


@contextlib.contextmanager
def within(folder: Path):
    """Work in a folder for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def command(*argv: object) -> None:
    """Run `espnet-hra`."""
    try:
        cli.main(list(map(str, argv)))
    except SystemExit as ended:
        assert not ended.code, ended.code


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """Caches of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def speech(an4, tmp_path_factory):
    """AN4 at a rate: the folders train, dev and test."""
    made: dict[int, dict[str, Path]] = {16000: an4}

    def get(rate: int) -> dict[str, Path]:
        if rate not in made:
            made[rate] = resampled(an4, tmp_path_factory.mktemp(str(rate)), rate)
        return made[rate]

    return get


def resampled(an4: dict[str, Path], folder: Path, rate: int) -> dict[str, Path]:
    for part in ("train", "dev", "test"):
        shutil.copytree(an4[part], folder / part)
        lines = []
        for name, wave in waves(an4[part]).items():
            path = folder / part / f"{name}.wav"
            soundfile.write(path, soxr.resample(wave, 16000, rate), rate)
            lines.append(f"{name} {path}\n")
        (folder / part / "wav.scp").write_text("".join(lines))
    return {part: folder / part for part in ("train", "dev", "test")}


def train_recipe(kind: str, data: dict[str, Path], folder: Path) -> Path:
    """A recipe's folder in which ESPnet's programs have trained a hybrid model."""
    from espnet2.bin import aggregate_stats_dirs, asr_train

    rate, encoder = RECIPES[kind]
    (folder / SPM).mkdir(parents=True)
    words = [line.split(None, 1)[1] for line in (data["train"] / "text").open()]
    (folder / SPM / "train.txt").write_text("".join(words))
    sentencepiece.SentencePieceTrainer.Train(
        input=str(folder / SPM / "train.txt"),
        model_prefix=str(folder / SPM / "bpe"),
        vocab_size=50,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(str(folder / SPM / "bpe.model"))
    learned = [pieces.id_to_piece(i) for i in range(3, len(pieces))]
    tokens = ["<blank>", "<unk>", *learned, "<sos/eos>"]
    (folder / SPM / "tokens.txt").write_text("\n".join(tokens) + "\n")
    config = {
        **encoder,
        "decoder": "transformer",
        "decoder_conf": {"attention_heads": 2, "linear_units": 24, "num_blocks": 1},
        "model_conf": {"ctc_weight": 0.3},
        "specaug": None,
        **{"optim": "adam", "optim_conf": {"lr": 0.01}, "max_epoch": 2, "seed": 1},
        **{"batch_type": "unsorted", "batch_size": 3, "num_workers": 0},
        **{"keep_nbest_models": 1, "best_model_criterion": [["valid", "acc", "max"]]},
        **{"use_tensorboard": False, "use_matplotlib": False},
    }
    (folder / "conf").mkdir()
    (folder / "conf" / "train.yaml").write_text(yaml.safe_dump(config))
    words = [w for part in ("train", "valid") for w in _plain(data, part)]
    words += ["--config", "conf/train.yaml", "--use_preprocessor", "true"]
    words += ["--token_type", "bpe", "--bpemodel", f"{SPM}/bpe.model"]
    words += ["--token_list", f"{SPM}/tokens.txt", "--frontend_conf", f"fs={rate}"]
    with within(folder):
        stats = ["--normalize", "none", "--collect_stats", "true"]
        asr_train.main([*words, *stats, "--output_dir", STATS])
        aggregate_stats_dirs.main(
            ["--input_dir", STATS, "--output_dir", STATS, "--log_level", "ERROR"]
        )
        npz = f"stats_file={STATS}/train/feats_stats.npz"
        more = ["--normalize", "global_mvn", "--normalize_conf", npz]
        asr_train.main([*words, *more, "--output_dir", EXP])
    return folder


def _plain(data: dict[str, Path], part: str) -> list[str]:
    """A data folder's options without the stream of tasks, which ESPnet lacks."""
    words = streams(data["dev" if part == "valid" else "train"], part)
    return words[:-2]  # utt2task is the last of them


@pytest.fixture(scope="module")
def recipes(speech, tmp_path_factory):
    """The recipe's folder of each kind; trained when it is first asked for."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            top = tmp_path_factory.mktemp(kind)
            data = speech(RECIPES[kind][0])
            made[kind] = train_recipe(kind, data, top / "egs2" / "asr1")
        return made[kind]

    return get


@pytest.fixture(scope="module")
def models(speech, recipes, tmp_path_factory):
    """The adaptation of each kind, made in another folder than its base."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            work = tmp_path_factory.mktemp("work") / "mine"
            work.mkdir()
            given = {**ADAPTATION, "max_epoch": 2, "optim_conf": {"lr": 0.1}}
            (work / "train.yaml").write_text(yaml.safe_dump(given))
            data = speech(RECIPES[kind][0])
            base = os.path.relpath(recipes(kind) / EXP, work)
            with within(work):
                command(
                    *("train", "--config", "train.yaml", "--output_dir", "exp/hra"),
                    *("--pretrained_model", base),
                    *streams(data["train"], "train"),
                    *streams(data["dev"], "valid"),
                )
            made[kind] = work / "exp" / "hra"
        return made[kind]

    return get


OPTIONS = {"beam_size": 2, "maxlenratio": -6, "nbest": 1}


def opened(model: object, **kwargs):
    return espnet_hra.Speech2Text.from_pretrained(str(model), **{**OPTIONS, **kwargs})


def said(speech2text, recordings) -> list[tuple]:
    """Text, token numbers and score of each recording."""
    results = [speech2text(wave)[0] for wave in recordings]
    return [(text, ids, float(h.score)) for text, _, ids, h in results]


@pytest.fixture(scope="module")
def recordings(speech):
    """Two test recordings of a kind."""

    def get(kind: str) -> list[np.ndarray]:
        return list(waves(speech(RECIPES[kind][0])["test"]).values())[:2]

    return get


# --------------------------------------------------------------- what comes of a folder


@pytest.mark.shows(encoder="{kind}", objective="CTC and attention", entrance="train")
@pytest.mark.parametrize("kind", RECIPES)
def test_the_configuration_is_the_bases_with_whole_paths(kind, models, recipes):
    config = yaml.safe_load((models(kind) / "config.yaml").read_text())
    recipe = recipes(kind).resolve()
    assert config["encoder"] == f"hra_{RECIPES[kind][1]['encoder']}"
    assert Path(config["bpemodel"]) == recipe / SPM / "bpe.model"
    stats = recipe / STATS / "train" / "feats_stats.npz"
    assert Path(config["normalize_conf"]["stats_file"]) == stats
    assert config["pretrained_model"] == str(recipe / EXP)
    assert str(config["frontend_conf"]["fs"]) == str(RECIPES[kind][0])


@pytest.mark.shows(
    encoder="{kind}", objective="CTC and attention", entrance="Speech2Text"
)
@pytest.mark.parametrize("kind", RECIPES)
def test_without_a_task_it_is_espnets_own(kind, models, recipes, recordings):
    from espnet2.bin.asr_inference import Speech2Text

    base = recipes(kind)
    with within(base):
        stock = Speech2Text(f"{EXP}/config.yaml", f"{EXP}/valid.acc.ave.pth", **OPTIONS)
        expected = said(stock, recordings(kind))
    ours = opened(models(kind))
    ours.set_task(None)
    assert said(ours, recordings(kind)) == expected
    ours.set_task("male")
    assert said(ours, recordings(kind)) != expected


def chunks(speech2text, wave, size=3000) -> list:
    """What a stream has said after each chunk: texts, token numbers and scores."""
    starts = range(0, len(wave), size)
    results = [
        speech2text(wave[i : i + size], is_final=i == starts[-1]) for i in starts
    ]
    return [[(r[0], r[2], float(r[3].score)) for r in found] for found in results]


@pytest.mark.shows(
    encoder="contextual_block_conformer",
    objective="CTC and attention",
    entrance="streaming",
)
def test_a_stream_without_a_task_is_espnets_own(models, recipes, recordings):
    from espnet2.bin.asr_inference_streaming import Speech2TextStreaming

    options = {"beam_size": 2}
    waves_of = recordings("blockwise")
    with within(recipes("blockwise")):
        files = (f"{EXP}/config.yaml", f"{EXP}/valid.acc.ave.pth")
        stock = Speech2TextStreaming(*files, **options)
        expected = [chunks(stock, wave) for wave in waves_of]
    ours = espnet_hra.Speech2TextStreaming.from_pretrained(
        str(models("blockwise")), **options
    )
    ours.set_task(None)
    assert [chunks(ours, wave) for wave in waves_of] == expected
    ours.set_task("male")
    assert [chunks(ours, wave) for wave in waves_of] != expected


def decode(named: list[object], data: Path, output: Path, *more: object) -> dict:
    """What `espnet-hra decode` writes for a folder, by utterance."""
    command(
        *("decode", *named, "--output_dir", output, "--num_workers", 0),
        *("--beam_size", 2, "--maxlenratio", -6),
        *("--data_path_and_name_and_type", f"{data / 'wav.scp'},speech,sound"),
        *more,
    )
    lines = (output / "1best_recog" / "token_int").read_text().splitlines()
    return {key: [*map(int, ids)] for key, *ids in (line.split() for line in lines)}


def files_of(model: Path) -> list[object]:
    names = ("--asr_train_config", model / "config.yaml", "--asr_model_file")
    return [*names, model / "valid.loss.ave.pth"]


@pytest.mark.shows(
    encoder="{kind}", objective="CTC and attention", entrance=("decode", "pack")
)
@pytest.mark.parametrize("kind", RECIPES)
def test_a_pack_needs_neither_recipe_nor_experiment(
    kind, models, recipes, recordings, speech, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model, data = models(kind), speech(RECIPES[kind][0])["test"]
    speech2text = opened(model)
    before = {}
    for task in ("female", "male", None):
        speech2text.set_task(task)
        before[task] = said(speech2text, recordings(kind))
    decoded = decode(files_of(model), data, tmp_path / "here", "--task", "male")
    assert [ids for _, ids, _ in before["male"]] == list(decoded.values())[:2]
    words = ("--tasks", "all", "--license", "cc0-1.0", "--out", "pack.zip")
    command("pack", "--model", model, *words)
    with moved_away(recipes(kind)), moved_away(model):
        packed = opened("pack.zip")
        assert packed.tasks == ("female", "male")
        for task, expected in before.items():
            packed.set_task(task)
            assert said(packed, recordings(kind)) == expected
        named = ["--model_tag", "pack.zip", "--task", "male"]
        assert decode(named, data, tmp_path / "there") == decoded
        if kind == "blockwise":
            wave = recordings(kind)[0]
            stream = espnet_hra.Speech2TextStreaming.from_pretrained(
                "pack.zip", beam_size=2, task="male"
            )
            assert chunks(stream, wave)[-1]


@pytest.mark.shows(
    encoder="{kind}", objective="CTC and attention", entrance="tasks add"
)
@pytest.mark.parametrize("kind", [pytest.param("16k", marks=pytest.mark.slow), "8k"])
def test_a_task_is_added_when_the_base_has_moved(
    kind, models, recipes, recordings, speech, tmp_path
):
    model = Path(shutil.copytree(models(kind), tmp_path / "model"))
    data = speech(RECIPES[kind][0])["train"]
    options = ("--model", model, "--max_epoch", 1)
    with moved_away(recipes(kind)) as recipe:
        base = ("--pretrained_model", recipe / EXP)
        command("tasks", "add", "new", data, *options, *base)
        with pytest.raises(SystemExit, match="where the base is now"):
            cli.main(["tasks", "add", "more", str(data), *map(str, options)])
        command("tasks", "list", "--model", model)
        command("params", model / "config.yaml", *base)
        speech2text = opened(model, task="new", pretrained_model=str(recipe / EXP))
        assert said(speech2text, recordings(kind))
        words = ("--tasks", "new", "--license", "cc0-1.0", "--out", tmp_path / "p.zip")
        command("pack", "--model", model, *base, *words)
    with moved_away(recipes(kind)):
        assert opened(tmp_path / "p.zip").tasks == ("new",)


def test_a_task_is_added_to_an_unpacked_pack(models, recipes, speech, tmp_path):
    model, data = models("16k"), speech(16000)["train"]
    pack = tmp_path / "pack"
    words = ("--tasks", "male", "--license", "cc0-1.0", "--out", pack)
    command("pack", "--model", model, *words)
    with moved_away(recipes("16k")), moved_away(model):
        pack = pack.rename(tmp_path / "elsewhere")
        command("tasks", "add", "new", data, "--model", pack, "--max_epoch", 1)
        assert opened(pack).tasks == ("male", "new")


# ------------------------------------------------------------------ the rate of a base


@pytest.mark.shows(
    encoder="conformer", objective="CTC and attention", entrance="transcribe"
)
def test_a_base_of_8_khz_takes_8_khz(models, speech, tmp_path, capsys):
    model = models("8k")
    wide, narrow = speech(16000), speech(8000)
    with pytest.raises(SystemExit, match="has 16,000 Hz, and the model wants 8,000"):
        cli.main(
            ["decode", *map(str, files_of(model)), "--output_dir", str(tmp_path)]
            + ["--task", "male", "--data_path_and_name_and_type"]
            + [f"{wide['test'] / 'wav.scp'},speech,sound"]
        )
    with pytest.raises(SystemExit, match="(?s)16000 Hz.*8000 Hz|8000 Hz.*16000 Hz"):
        cli.main(["tasks", "add", "x", str(wide["train"]), "--model", str(model)])
    capsys.readouterr()
    files = [
        line.split(None, 1)[1].strip()
        for data in (wide, narrow)
        for line in (data["test"] / "wav.scp").open()
    ]
    words = ("--task", "male", "--ctc_greedy", "false", "--beam_size", 2)
    command("transcribe", *files, "--model", model, *words)
    texts = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    half = len(texts) // 2
    assert any(texts) and texts[:half] == texts[half:]


# --------------------------------------------------- the ways to name one and the same


@pytest.fixture(scope="module")
def zipped(recipes, tmp_path_factory) -> Path:
    """The recipe's model as its stage 14 packs it."""
    from espnet2.bin import pack as espnet_pack

    path = tmp_path_factory.mktemp("stock") / "stock.zip"
    with within(recipes("16k")):
        espnet_pack.main(
            ["asr", "--asr_train_config", f"{EXP}/config.yaml"]
            + ["--asr_model_file", f"{EXP}/valid.acc.ave.pth"]
            + ["--option", f"{SPM}/bpe.model", "--outpath", str(path)]
            + ["--option", f"{STATS}/train/feats_stats.npz"]
        )
    return path


def as_folder(recipe: Path, zipped: Path, folder: Path) -> Path:
    return recipe / EXP


def as_relative_folder(recipe: Path, zipped: Path, folder: Path) -> Path:
    return Path(os.path.relpath(recipe / EXP))


def as_checkpoint(recipe: Path, zipped: Path, folder: Path) -> Path:
    return recipe / EXP / "valid.acc.ave.pth"


def as_zip(recipe: Path, zipped: Path, folder: Path) -> Path:
    return zipped


def as_unpacked_zip(recipe: Path, zipped: Path, folder: Path) -> Path:
    with zipfile.ZipFile(zipped) as opened_zip:
        opened_zip.extractall(folder / "unpacked")
    return folder / "unpacked"


def as_folder_of_unpacked_zip(recipe: Path, zipped: Path, folder: Path) -> Path:
    return as_unpacked_zip(recipe, zipped, folder) / EXP


def as_folder_of_linked_exp(recipe: Path, zipped: Path, folder: Path) -> Path:
    """A recipe whose `exp` is a link to a larger disk."""
    copy = Path(shutil.copytree(recipe, folder / "copy"))
    (folder / "disk").mkdir()
    linked = copy / "exp" / Path(EXP).name
    linked.rename(folder / "disk" / "model")
    linked.symlink_to(folder / "disk" / "model")
    return linked


def as_linked_checkpoint(recipe: Path, zipped: Path, folder: Path) -> Path:
    """A checkpoint that is a link, its configuration beside the link."""
    copy = Path(shutil.copytree(recipe, folder / "copy"))
    file = copy / EXP / "valid.acc.ave.pth"
    (folder / "disk").mkdir()
    shutil.move(file.resolve(), folder / "disk" / "m.pth")
    file.unlink(missing_ok=True)
    file.symlink_to(folder / "disk" / "m.pth")
    return file


@pytest.mark.parametrize(
    "naming",
    [
        as_zip,
        as_folder_of_linked_exp,
        *(
            pytest.param(naming, marks=pytest.mark.slow)
            for naming in (
                as_folder,
                as_relative_folder,
                as_checkpoint,
                as_unpacked_zip,
                as_folder_of_unpacked_zip,
                as_linked_checkpoint,
            )
        ),
    ],
)
def test_a_base_is_the_same_however_it_is_named(
    naming, models, recipes, zipped, speech, recordings, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    name = str(naming(recipes("16k"), zipped, tmp_path))
    counted = []
    for model in (str(recipes("16k") / EXP), name):
        capsys.readouterr()
        command("params", write_adaptation(tmp_path, model))
        counted.append(capsys.readouterr().out)
    assert counted[0] == counted[1]
    data = speech(16000)
    command(
        *("train", "--config", write_adaptation(tmp_path), "--output_dir", "exp"),
        *("--pretrained_model", name, "--max_epoch", 1),
        *streams(data["train"], "train"),
        *streams(data["dev"], "valid"),
    )
    saved = yaml.safe_load(Path("exp/config.yaml").read_text())
    usual = yaml.safe_load((models("16k") / "config.yaml").read_text())
    assert saved["base_fingerprint"] == usual["base_fingerprint"]
    monkeypatch.chdir("/")
    ours, other = opened(tmp_path / "exp"), opened(models("16k"))
    ours.set_task(None)
    other.set_task(None)
    assert said(ours, recordings("16k")) == said(other, recordings("16k"))
    # What is made of the adaptation finds the base and its files as well.
    options = ("--model", tmp_path / "exp", "--max_epoch", 1)
    command("tasks", "add", "new", data["train"], *options)
    assert opened(tmp_path / "exp").tasks == ("female", "male", "new")


def write_adaptation(folder: Path, base: str | None = None) -> Path:
    given = dict(ADAPTATION)
    if base is not None:
        given["pretrained_model"] = base
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def test_a_token_model_that_is_gone_is_named(zipped, tmp_path):
    folder = as_unpacked_zip(Path(), zipped, tmp_path)
    (folder / SPM / "bpe.model").unlink()
    with pytest.raises(BaseModelError, match=f"names {SPM}/bpe.model, which is"):
        open_base(folder).model_config()


@pytest.mark.parametrize(
    "token_type, packed, taken",
    [("bpe", False, True), ("char", True, True), ("char", False, False)],
)
def test_a_list_of_symbols_that_is_gone(token_type, packed, taken, zipped, tmp_path):
    """ESPnet's recipes do not pack it, and only tokenizers that cut words need it."""
    folder = as_unpacked_zip(Path(), zipped, tmp_path)
    file = folder / EXP / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config |= {"non_linguistic_symbols": "data/nlsyms.txt", "token_type": token_type}
    file.write_text(yaml.safe_dump(config))
    if not packed:
        (folder / "meta.yaml").unlink()
    read = open_base(folder / EXP).model_config
    if taken:
        assert read()["non_linguistic_symbols"] is None
    else:
        with pytest.raises(BaseModelError, match="names data/nlsyms.txt, which is"):
            read()
