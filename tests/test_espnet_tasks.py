"""Models of the ESPnet tasks s2t, s2t_ctc, st and slu, adapted."""

import contextlib
import math
from importlib import import_module
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from adaptations import waves
from espnet_tasks import (
    OTHERS,
    adaptation,
    decoded,
    decoding,
    make_base,
    make_data,
    streams,
)

import espnet_hra
from espnet_hra import cli
from espnet_hra.errors import BaseModelError, ConfigError, TaskError
from espnet_hra.espnet.base import open_base
from espnet_hra.espnet.kinds import KINDS
from espnet_hra.espnet.model import encode_name

ADAPTER = "encoder.adapter."
TASKS = ["female", "male"]
MODEL = "valid.loss.best.pth"
OPTIONS = {"beam_size": 2, "maxlenratio": -8.0, "lm_weight": 0.0}


def command(*words: str) -> None:
    """Run a sub-command of `espnet-hra`, which must end well."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    assert not ended.value.code, ended.value.code


def named(where: str) -> type:
    """The class "module:class"."""
    module, _, found = where.partition(":")
    return getattr(import_module(module), found)


def load(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def make_loud(model: Path) -> None:
    """Change an adapter so much that its tasks say different things."""
    state = load(model / MODEL)
    generator = torch.Generator().manual_seed(2)
    for tensor in state.values():
        tensor += 0.5 * torch.randn(tensor.shape, generator=generator)
    path = (model / MODEL).resolve()
    torch.save(state, path)


@contextlib.contextmanager
def moved_away(folder: Path):
    """A block in which a folder is gone."""
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(folder)


@pytest.fixture(scope="session")
def data(an4, tmp_path_factory) -> dict[str, Path]:
    return make_data(an4, tmp_path_factory.mktemp("texts") / "data")


@pytest.fixture(scope="session")
def bases(data, tmp_path_factory):
    """Bases by ESPnet task, made when they are asked for."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "recipe"
            made[name] = make_base(name, data, folder)
        return made[name]

    return get


@pytest.fixture(scope="module")
def models(bases, data, tmp_path_factory):
    """Adaptations by ESPnet task, trained by `espnet-hra train`."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            output = tmp_path_factory.mktemp(name) / "exp"
            command("train", *adaptation(name, data, bases(name), output))
            make_loud(output)
            made[name] = output
        return made[name]

    return get


@pytest.fixture(params=OTHERS)
def name(request) -> str:
    return request.param


def opened(model: Path, **kwargs):
    found = espnet_hra.Speech2Text.from_pretrained(str(model), **{**OPTIONS, **kwargs})
    if getattr(found, "ctc_only", False):
        found.lang_sym = "<eng>"
    return found


def said(nbest) -> tuple[list[int], str]:
    """Tokens and score of the best hypothesis, to tell tasks apart."""
    return nbest[0][2], f"{float(nbest[0][-1].score):.4f}"


# ----------------------------------------------------------------------- training


def test_the_base_stays_as_it_is(name, models, bases):
    model, base = models(name), bases(name)
    assert all(key.startswith(ADAPTER) for key in load(model / "latest.pth"))
    built = opened(model).model
    source = load(base / MODEL)
    state = {k: v for k, v in built.state_dict().items() if not k.startswith(ADAPTER)}
    assert state.keys() == source.keys()
    assert all(torch.equal(state[key], source[key]) for key in source)
    assert type(built).__name__ == f"TaskAware{type(built).model_class.__name__}"


def test_the_saved_configuration_names_the_base(name, models, bases):
    config = yaml.safe_load((models(name) / "config.yaml").read_text())
    assert config["pretrained_model"] == str(bases(name).resolve())
    assert {"encoder", "normalize"} <= set(config["base_fingerprint"])
    assert config["encoder"].startswith("hra_")


def test_both_tasks_learn_under_autocast_too(name, bases, data, tmp_path):
    output = tmp_path / "exp"
    cmd = adaptation(name, data, bases(name), output, "--autocast", "bfloat16")
    import_module(f"espnet_hra.bin.{name}_train").main(cmd)
    states = torch.load(output / "checkpoint.pth", weights_only=True)
    assert math.isfinite(states["reporter"]["stats"][2]["train"]["loss"])
    state = states["model"]
    heads = {key: v for key, v in state.items() if key.startswith(f"{ADAPTER}heads.")}
    assert set(heads) == {f"{ADAPTER}heads.{task}" for task in TASKS}
    assert all(v.abs().sum() > 0 for v in heads.values())
    assert all(v.dtype == torch.float32 for v in state.values())


def test_espnets_own_training_is_refused(name, bases, data, tmp_path):
    output = tmp_path / "exp"
    cmd = adaptation(name, data, bases(name), output)
    cut = cmd.index("--pretrained_model")
    given = yaml.safe_load((output / "given.yaml").read_text())
    config = open_base(str(bases(name))).model_config(name)
    conf = {**config["encoder_conf"], **given["encoder_conf"]}
    merged = {**given, **config, "encoder_conf": conf}
    merged["encoder"] = f"hra_{config['encoder']}"
    (output / "given.yaml").write_text(yaml.safe_dump(merged))
    program = import_module(f"espnet2.bin.{KINDS[name].train}")
    with pytest.raises(RuntimeError, match="trains this model, and knows nothing"):
        program.main(cmd[:cut] + streams(KINDS[name], data, tasks=False))


def test_another_espnet_tasks_program_is_refused(bases, data, tmp_path):
    from espnet_hra.bin import asr_train, st_train

    message = "of the ESPnet task s2t_ctc, .* one of {}; train it with `espnet-hra tr"
    for program, word in ((asr_train, "asr"), (st_train, "st")):
        cmd = adaptation("s2t_ctc", data, bases("s2t_ctc"), tmp_path / word)
        with pytest.raises(BaseModelError, match=message.format(word)):
            program.main(cmd)


@pytest.mark.parametrize("adapter", ["hra", "residual", "bitfit"])
def test_utterances_without_a_text_leave_with_their_tasks(
    adapter, bases, data, tmp_path
):
    """OWSM-CTC leaves them out of a CTC loss; each task has a projection of its own."""
    parts = dict(data)
    for part in ("train", "dev"):
        parts[part] = tmp_path / part
        parts[part].mkdir()
        for path in data[part].iterdir():
            (parts[part] / path.name).write_text(path.read_text())
        lines = (data[part] / "text_ctc").read_text().splitlines()
        lines[0] = f"{lines[0].split()[0]} <na>"
        (parts[part] / "text_ctc").write_text("\n".join(lines) + "\n")
    conf = {
        "adapter": adapter,
        "adapter_conf": {"ctc": "task"},
        "tasks": TASKS,
    }
    cmd = adaptation(
        "s2t_ctc", parts, bases("s2t_ctc"), tmp_path / "exp", encoder_conf=conf
    )
    command("train", *cmd)
    model = opened(tmp_path / "exp").model.eval()
    assert model.encoder.adapter.ctc is not None


def test_translation_keeps_its_ctc(bases, data, tmp_path):
    conf = {"adapter": "hra", "adapter_conf": {"ctc": "task"}, "tasks": TASKS}
    cmd = adaptation("st", data, bases("st"), tmp_path / "exp", encoder_conf=conf)
    with pytest.raises(ConfigError, match="translation keep theirs frozen"):
        import_module("espnet_hra.bin.st_train").main(cmd)


# ----------------------------------------------------------------------- decoding


def test_without_a_task_it_is_espnets_own(name, models, bases, data, tmp_path):
    base, folder = bases(name), data["test"]
    stock = import_module(f"espnet2.bin.{KINDS[name].inference}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base.parent)
        stock.main(decoding(name, base, folder, tmp_path / "stock"))
    more = ["--without_task", "true"]
    command("decode", *decoding(name, models(name), folder, tmp_path / "off", more))
    for file in ("token_int", "score", "text"):
        paths = [tmp_path / k / "1best_recog" / file for k in ("stock", "off")]
        assert paths[0].read_text() == paths[1].read_text()
    more = ["--task", "male"]
    command("decode", *decoding(name, models(name), folder, tmp_path / "on", more))
    scores = [
        (tmp_path / k / "1best_recog" / "score").read_text() for k in ("off", "on")
    ]
    assert scores[0] != scores[1]


def test_each_utterance_has_its_task(name, models, data, tmp_path):
    stream = "--data_path_and_name_and_type"
    folder = data["train"]
    more = [stream, f"{folder / 'utt2task'},utt2task,text"]
    command("decode", *decoding(name, models(name), folder, tmp_path / "m", more))
    mixed = decoded(tmp_path / "m")
    tasks = dict(line.split() for line in (folder / "utt2task").open())
    assert set(tasks.values()) == {"female", "male"}
    alone = {}
    for task in TASKS:
        more = ["--task", task]
        output = tmp_path / task
        command("decode", *decoding(name, models(name), folder, output, more))
        alone[task] = decoded(output)
    assert mixed == {key: alone[task][key] for key, task in tasks.items()}
    assert alone["female"] != alone["male"]


@pytest.mark.parametrize("greedy", [False, True])
def test_a_list_may_mix_tasks(name, greedy, models, data):
    speech2text = opened(models(name), ctc_greedy=greedy)
    recordings = list(waves(data["test"]).values())[:2]
    names = ["male", "female"]
    single = [said(speech2text(w, task=n)) for w, n in zip(recordings, names)]
    assert [said(one) for one in speech2text(recordings, task=names)] == single
    other = [said(one) for one in speech2text(recordings, task=names[::-1])]
    assert all(a != b for a, b in zip(single, other)) or greedy
    codes = [torch.from_numpy(encode_name(n)) for n in names]
    batch = {
        "utt2task": torch.nn.utils.rnn.pad_sequence(codes, batch_first=True),
        "utt2task_lengths": torch.tensor([len(code) for code in codes]),
    }
    found = speech2text.batch_decode(recordings, **batch)
    expected = []
    for wave, n in zip(recordings, names):
        speech2text.set_task(n)
        expected += speech2text.batch_decode([wave])
    assert [said(one)[0] for one in found] == [said(one)[0] for one in expected]


def test_a_choice_is_asked_for(name, models, data):
    speech2text = opened(models(name))
    wave = next(iter(waves(data["test"]).values()))
    with pytest.raises(TaskError, match="no task was chosen .* female, male"):
        speech2text(wave)
    with pytest.raises(TaskError, match="unknown task 'robot'; known tasks: female, m"):
        speech2text(wave, task="robot")
    with pytest.raises(TaskError, match="2 tasks were chosen for a batch of 1"):
        speech2text([wave], task=["male", "female"])
    with pytest.raises(TaskError, match="by task or by utt2task"):
        speech2text(wave, utt2task=torch.from_numpy(encode_name("male")), task="male")


def test_transcribe_writes_the_words_alone(models, data, tmp_path, capsys):
    path = tmp_path / "a.wav"
    soundfile.write(path, next(iter(waves(data["test"]).values())), 16000)
    for name in OTHERS:
        words = ("--model", str(models(name)), "--task", "male")
        capsys.readouterr()
        command("transcribe", str(path), *words)
        text = capsys.readouterr().out.strip()
        found = opened(models(name), task="male", ctc_greedy=True)
        wave, _ = soundfile.read(path, dtype="float32")
        assert text == found.text_of(found.batch_decode([wave])[0]).strip()
        assert "<" not in text


# ------------------------------------------------------------- which class, which way


def test_the_general_entrance_gives_the_right_class(name, models, bases):
    found = opened(models(name))
    assert type(found) is named(KINDS[name].opens)
    assert isinstance(found, named(KINDS[name].stock))
    assert found.tasks == tuple(TASKS)


def test_the_class_of_another_espnet_task_refuses_it(name, models):
    config, model = models(name) / "config.yaml", models(name) / MODEL
    message = f"of the ESPnet task {name}, .*Speech2Text.from_pretrained"
    for cls in (espnet_hra.Speech2Text, espnet_hra.Speech2TextStreaming):
        with pytest.raises(BaseModelError, match=message):
            cls(asr_train_config=config, asr_model_file=model)


def test_options_of_another_espnet_task_are_named(models, data, tmp_path):
    cmd = decoding("st", models("st"), data["test"], tmp_path / "out")
    wrong = [word.replace("--st_", "--asr_") for word in cmd]
    with pytest.raises(
        SystemExit, match="task st: give --st_train_config and --st_mod"
    ):
        cli.main(["decode", *wrong])
    from espnet_hra.bin import s2t_inference

    cmd = decoding("s2t", models("s2t_ctc"), data["test"], tmp_path / "out")
    with pytest.raises(BaseModelError, match="task s2t_ctc, .* as one of s2t"):
        s2t_inference.main([*cmd, "--task", "male"])


def test_params_counts_any_model(name, models, capsys):
    cli_words = ("params", str(models(name) / "config.yaml"))
    capsys.readouterr()
    command(*cli_words)
    assert "all 2 tasks" in capsys.readouterr().out


# -------------------------------------------------------------------------- packs


def test_a_pack_needs_nothing_of_the_original(name, models, bases, data, tmp_path):
    recordings = list(waves(data["test"]).values())[:2]
    speech2text = opened(models(name))
    before = {
        task: [said(speech2text(wave)) for wave in recordings]
        for task in ("female", "male", None)
        if not speech2text.set_task(task)
    }
    pack = tmp_path / "pack.zip"
    words = ("--tasks", "all", "--license", "cc0-1.0")
    command("pack", "--model", str(models(name)), "--out", str(pack), *words)
    with moved_away(bases(name).parent), moved_away(models(name)):
        packed = opened(pack)
        assert packed.tasks == tuple(TASKS)
        for task, expected in before.items():
            packed.set_task(task)
            assert [said(packed(wave)) for wave in recordings] == expected
        stock = named(KINDS[name].stock).from_pretrained(str(pack), **OPTIONS)
        if name == "s2t_ctc":
            stock.lang_sym = "<eng>"
        assert [said(stock(torch.as_tensor(w))) for w in recordings] == before[None]
        command("decode", *decode_pack(name, pack, data["test"], tmp_path / "out"))
    assert len(decoded(tmp_path / "out")) == 2


def decode_pack(name: str, pack: Path, folder: Path, output: Path) -> list[str]:
    cmd = decoding(name, pack, folder, output, ["--task", "male"])
    return ["--model_tag", str(pack), *cmd[4:]]


def test_an_adaptation_without_its_base_says_what_to_do(models, bases, tmp_path):
    """Its token model and statistics are in the base's recipe as well."""
    folder, model = bases("st").parent, models("st")
    with moved_away(folder):
        with pytest.raises(BaseModelError, match="say with --pretrained_model"):
            opened(model)
        elsewhere = str(folder.with_name("elsewhere") / bases("st").name)
        assert opened(model, pretrained_model=elsewhere).tasks == tuple(TASKS)
        words = ("--pretrained_model", elsewhere, "--license", "cc0-1.0")
        pack = ("--out", str(tmp_path / "pack"))
        command("pack", "--model", str(model), *pack, *words)
    assert (tmp_path / "pack" / "files" / "bpe.model").is_file()
