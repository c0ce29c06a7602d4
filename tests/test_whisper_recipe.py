"""The recipe on a Whisper: languages of tasks, decoded texts, a whole run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from test_recipe import recipe, run, stages_that_ran  # noqa: F401
from test_whisper_weights import openai

whisper = pytest.importorskip("whisper")

ROOT = Path(__file__).resolve().parent.parent


def local(script: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "local" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def languages(folder: Path, *more: object) -> subprocess.CompletedProcess:
    return local(
        "languages.py",
        *("--utt2task", folder / "utt2task", "--eval", folder / "eval"),
        *("--out", folder / "languages.json", *more),
    )


@pytest.fixture
def data(tmp_path) -> Path:
    (tmp_path / "eval").mkdir()
    (tmp_path / "utt2task").write_text("a-1 a\na-2 a\nb-1 b\n")
    (tmp_path / "eval" / "utt2task").write_text("b-9 b\na-9 a\n")
    return tmp_path


def test_the_language_of_a_task_is_that_of_its_utterances(data):
    (data / "utt2lang").write_text("a-1 fr\nb-1 ru\n")
    lists = ["--utt2lang", data / "gone", data / "utt2lang"]
    done = languages(data, *lists)
    assert done.returncode == 0, done.stderr
    assert json.loads((data / "languages.json").read_text()) == {"a": "fr", "b": "ru"}
    assert (data / "eval" / "utt2lang").read_text() == "b-9 ru\na-9 fr\n"
    assert languages(data, "--lang", "it").returncode == 0
    assert json.loads((data / "languages.json").read_text()) == {"a": "it", "b": "it"}


@pytest.mark.parametrize(
    "texts, tasks",
    [(("one two", "three"), ["a", "b"]), (("one 2", "three"), []), (("x²", "y"), [])],
)
def test_numbers_are_spelled_where_no_transcript_has_a_digit(data, texts, tasks):
    (data / "text").write_text("".join(f"a-{i} {t}\n" for i, t in enumerate(texts)))
    done = local(
        *("spelled_numbers.py", "--text", data / "text"),
        *("--utt2task", data / "utt2task"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == tasks


def test_no_language_or_several_are_refused_in_one_line(data):
    (data / "utt2lang").write_text("a-1 fr\na-2 en\n")
    done = languages(data, "--utt2lang", data / "utt2lang")
    assert done.returncode and "language of b: write utt2lang" in done.stderr
    assert "--lang CODE" in done.stderr and done.stderr.count("\n") == 1
    (data / "utt2lang").write_text("a-1 fr\na-2 en\nb-1 en\n")
    done = languages(data, "--utt2lang", data / "utt2lang")
    assert "the task a has several languages (en, fr)" in done.stderr


def test_a_language_that_whisper_lacks_is_refused_in_one_line(data):
    (data / "utt2lang").write_text("a-1 fr\nb-1 tlh\n")
    for options in (("--utt2lang", data / "utt2lang"), ("--lang", "tlh")):
        done = languages(data, *options)
        assert done.returncode and done.stderr.count("\n") == 1
        assert "language 'tlh': Whisper has no token for it; it knows" in done.stderr
        assert not (data / "languages.json").exists()
    assert languages(data, "--lang", "yue").returncode == 0  # which large-v3 knows


def test_what_is_heard_is_kept_and_told_languages_win(data, monkeypatch):
    sys.path.insert(0, str(ROOT / "local"))
    import languages as module

    listener = module.Listener(Path("c"), Path("m"), data, data / "heard.json")
    asked = []

    def hear(tasks):
        asked.append(list(tasks))
        return dict.fromkeys(tasks, "de")

    monkeypatch.setattr(listener, "_hear", hear)
    tasks = {"a-1": "a", "b-1": "b"}
    for _ in range(2):
        found = module.languages_of(tasks, {"a-1": "fr"}, "", listener)
        assert found == {"a": "fr", "b": "de"}
    assert asked == [["b"]]
    os.utime(data / "heard.json", (0, 0))  # older than the tasks
    module.languages_of(tasks, {"a-1": "fr"}, "", listener)
    assert asked == [["b"], ["b"]]


def test_decoded_texts_lose_what_the_transcripts_do_not_have(tmp_path):
    (tmp_path / "like").write_text("u that's all\nv été\n")
    (tmp_path / "text").write_text("u Press 1, That’s ALL!\nv \nw Été...\n")
    done = local("fold_decoded.py", "--like", tmp_path / "like", tmp_path / "text")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "text").read_text() == "u press 1 that's all\nv\nw été\n"


def test_variants_for_whisper_are_those_of_its_folder(tmp_path):
    options = ["--pretrained_model", "whisper:base", "--python", sys.executable]
    options += ["--expdir", tmp_path]
    done = run(*options, "--variant", "hra_ffn_c1024")  # of the models with a CTC
    assert done.returncode
    assert "neither conf/whisper/train_hra_ffn_c1024.yaml nor a variant" in done.stderr
    assert "full_one" in done.stderr  # what there is


def test_the_configuration_for_whisper_is_one_that_its_encoder_takes():
    from espnet_hra.encoder.adapted import wrap_encoder
    from espnet_hra.espnet.whisper import WhisperEncoder
    from espnet_hra.whisper.sizes import Sizes, written

    config = yaml.safe_load((ROOT / "conf" / "whisper" / "train_hra.yaml").read_text())
    # test_whisper.py has the decoder's part.
    assert config["encoder_conf"]["adapter_conf"].pop("decoder") is True
    sizes = Sizes(80, 1500, 32, 2, 2, 51865, 448, 32, 2, 2)
    encoder = wrap_encoder(WhisperEncoder)(
        input_size=1,
        whisper_model=written(sizes),
        tasks=["a"],
        **config["encoder_conf"],
    )
    wave = torch.randn(2, 16_000, requires_grad=True)
    out, frames, _ = encoder.train()(wave, torch.tensor([16_000, 8_000]))
    assert out.shape == (2, 100, 32)  # with a second of silence
    assert frames.tolist() == [50, 25]
    out.square().mean().backward()
    assert encoder.adapter.heads.vector("a").grad.any()


def test_a_frozen_whisper_hears_windows_of_the_length_that_is_asked_for(tmp_path):
    from espnet_hra.encoder.adapted import wrap_encoder
    from espnet_hra.espnet.whisper import WhisperEncoder
    from espnet_hra.whisper.sizes import Sizes, written

    name = written(Sizes(80, 1500, 32, 2, 2, 51865, 448, 32, 2, 2))
    base = {"whisper_model": name, "do_pad_trim": True}
    config = {"encoder": "whisper", "encoder_conf": base, "bpemodel": "b"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**config, "bpemodel": "a"}))
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"bpemodel": "b"}))
    paths = [tmp_path / "base.yaml", tmp_path / "keys.yaml"]
    options = ["--config", *paths, "--out", tmp_path / "frozen.yaml"]
    assert local("frozen_whisper.py", *options, "--seconds", "30").returncode == 0
    assert yaml.safe_load((tmp_path / "frozen.yaml").read_text()) == config
    assert local("frozen_whisper.py", *options, "--seconds", "3").returncode == 0
    conf = yaml.safe_load((tmp_path / "frozen.yaml").read_text())["encoder_conf"]
    encoder = wrap_encoder(WhisperEncoder)(input_size=1, **conf)
    for seconds, frames in ((1, 150), (2.5, 175)):  # of 20 ms; a second more, or 3
        wave = torch.randn(1, int(16_000 * seconds))
        out, lengths, _ = encoder(wave, torch.tensor([wave.size(1)]))
        assert out.size(1) == frames and lengths.tolist() == [50 * seconds]


def toy() -> torch.nn.Module:
    """A Whisper of a few numbers, which hears noise."""
    from test_whisper_weights import TOY, dataclasses

    torch.manual_seed(0)
    model = whisper.Whisper(whisper.ModelDimensions(**dataclasses.asdict(TOY)))
    torch.nn.init.normal_(model.decoder.positional_embedding)
    return model


@pytest.mark.shows(encoder="whisper", objective="attention", entrance="recipe")
@pytest.mark.slow
def test_a_whole_run(tmp_path, recipe):  # noqa: F811
    path = openai(tmp_path, toy().state_dict())
    options = ["--python", sys.executable, "--corpus", "mini_an4"]
    options += ["--pretrained_model", f"whisper:{path}", "--expdir", tmp_path / "exp"]
    options += ["--asr_args", "--max_epoch 1 --num_iters_per_epoch 2"]
    env = {"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = run(*options, script=recipe / "run.sh", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {9, 11, 12, 13} <= set(stages_that_ran(done))
    (exp,) = (tmp_path / "exp" / "mini_an4").glob("asr_*")
    saved = yaml.safe_load((exp / "config.yaml").read_text())
    # Nobody tells the languages: they are what this Whisper of noise hears.
    heard = json.loads((exp.parent / "dump" / "heard_languages.json").read_text())
    assert saved["languages"] == heard and set(heard) == {"female", "male"}
    assert done.stdout.count("nobody tells its language; Whisper hears") == 2
    assert re.search(r"\n +before  .*\n +after  ", done.stdout)
    assert "## Examples" in (exp.parent / "RESULTS.md").read_text()
    rows = (exp.parent / "results.tsv").read_text().splitlines()
    assert {tuple(row.split("\t")[:3]) for row in rows if row[:4] == "none"} == {
        ("none", task, "test") for task in heard
    }
    assert saved["pretrained_model"] == f"whisper:{path}"
    assert saved["text_prefix"] == " "
    speeds = [1.0, "speed_perturb"]
    assert saved["preprocessor_conf"] == {
        **saved["preprocessor_conf"],
        "fs": 16_000,
        "data_aug_prob": 1.0,
        "data_aug_effects": [[*speeds, {"factor": f}] for f in (0.9, 1.0, 1.1)],
    }
    again = run(*options, script=recipe / "run.sh", env=env)
    assert again.returncode == 0 and not stages_that_ran(again)
    # At its own speed is another training, and nothing else changes.
    options += ["--speed_perturb_factors", "none"]
    other = run(*options, script=recipe / "run.sh", env=env)
    assert other.returncode == 0 and {11, 12} <= set(stages_that_ran(other))
    saved = yaml.safe_load((exp / "config.yaml").read_text())
    assert "data_aug_effects" not in saved["preprocessor_conf"]


@pytest.mark.slow
@pytest.mark.parametrize("seconds, code", [([2, 28], 0), ([28], 1)])
def test_speech_that_is_too_long_when_slow_is_left_out(tmp_path, recipe, seconds, code):  # noqa: F811
    path = openai(tmp_path, toy().state_dict())
    lengths = {"train": seconds, "dev": [1], "test": [1.5]}
    for split, folder in ((s, tmp_path / "voices" / s) for s in lengths):
        folder.mkdir(parents=True)
        names = [f"a-{split}{i}" for i in range(len(lengths[split]))]
        for name, length in zip(names, lengths[split]):
            noise = torch.randn(int(16_000 * length)).numpy() / 10
            soundfile.write(folder / f"{name}.wav", noise, 16_000)
        for file, value in (
            ("wav.scp", f"{folder}/{{}}.wav"),
            ("text", f"to {split} {{}}"),
            ("utt2spk", "a"),
            ("utt2lang", "en"),
        ):
            lines = [f"{name} {value.format(name)}\n" for name in names]
            (folder / file).write_text("".join(lines))
    done = run(
        *("--python", sys.executable, "--corpus", tmp_path / "voices"),
        *("--pretrained_model", f"whisper:{path}", "--expdir", tmp_path / "exp"),
        *("--asr_args", "--max_epoch 1 --num_iters_per_epoch 1"),
        *("--skip_stages", "9", "--stop_stage", "11"),
        script=recipe / "run.sh",
        env={"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "more at 0.9 of their speed (--speed_perturb_factors none): 1" in done.stdout
    if code:
        said = done.stdout + done.stderr
        assert "nothing is left to train on: give --speed_perturb_factors none" in said


@pytest.mark.slow
def test_a_comparison_on_whisper(tmp_path, recipe, capsys):  # noqa: F811
    """The plan's parts, on a toy: judged by tokens, variants of its folder, resumed."""
    from espnet_hra.bench import quality

    pytest.importorskip("peft")
    path = openai(tmp_path, toy().state_dict())
    conf = recipe / "conf" / "whisper"
    for file in conf.glob("train_*.yaml"):
        config = yaml.safe_load(file.read_text())
        config.update(max_epoch=1, num_iters_per_epoch=2)
        file.write_text(yaml.safe_dump(config))
    plan = {
        "corpus": "mini_an4",
        "pretrained_model": f"whisper:{path}",
        "expdir": "exp_toy",
        "options": ["--speed_perturb_factors", "0.8 1.2"],
        "few_tasks": 1,
        "rates": {"lora": [0.001, 0.002]},
        "lengths": {"full_one": [1, 2]},
        "runs": {"lora_shared_r1_x2": [1]},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    words = ["--recipe", str(recipe), "--plan", str(tmp_path / "plan.yaml")]
    assert quality.main([*words, "--", "--lang", "en"]) == 0
    said = capsys.readouterr().out
    assert "error of tokens on dev" in said
    work = recipe / "exp_toy" / "mini_an4"
    page = (work / "RESULTS.md").read_text()
    assert "rate: error of tokens" in page and "## Lengths" in page
    assert "What is open" in page  # two rates have no inside
    trained = yaml.safe_load(next(work.glob("asr_lora_*/config.yaml")).read_text())
    effects = trained["preprocessor_conf"]["data_aug_effects"]
    assert [effect[2] for effect in effects] == [{"factor": 0.8}, {"factor": 1.2}]
    rows = (work / "results.tsv").read_text()
    assert "\nlora_shared_r1_x2\t" in rows
    assert quality.main([*words, "--list", "--", "--lang", "en"]) == 0
    assert "5 runs, 5 of them done" in capsys.readouterr().out
