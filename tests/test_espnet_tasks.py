"""Models of the ESPnet tasks s2t, s2t_ctc, st and slu, adapted."""

import math
import pickle
import shutil
import zipfile
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from adaptations import waves
from espnet2.asr.encoder.e_branchformer_ctc_encoder import EBranchformerCTCEncoder
from espnet2.bin import s2t_align
from espnet_tasks import (
    OTHERS,
    adaptation,
    decoded,
    decoding,
    make_base,
    make_data,
    moved_away,
    streams,
)
from small_encoders import (
    DIM,
    METHOD_CONFS,
    WIDTH,
    adapt,
    as_if_trained,
    conf_of,
    randomise_statistics,
)

import espnet_hra
from espnet_hra import cli
from espnet_hra.bin.python import translate
from espnet_hra.data.requirements import requirements_from_config
from espnet_hra.errors import BaseModelError, ConfigError, NoRoomError, TaskError
from espnet_hra.espnet.base import open_base
from espnet_hra.espnet.kinds import KINDS
from espnet_hra.espnet.model import encode_name
from espnet_hra.espnet.task import espnet_task

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


@pytest.mark.shows(objective="{name}", entrance="train")
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


def test_classes_and_models_reach_other_processes(name, models):
    """DDP and data loaders are started anew, and get what they need pickled."""
    task = espnet_task(name)
    assert pickle.loads(pickle.dumps(task.main_worker)) == task.main_worker
    model = opened(models(name)).model
    copied = pickle.loads(pickle.dumps(model))
    assert type(copied) is type(model)
    assert copied.encoder.tasks == tuple(TASKS)


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


@pytest.mark.shows(
    encoder="e_branchformer_ctc", objective="s2t_ctc", entrance="in Python"
)
@pytest.mark.parametrize("adapter", METHOD_CONFS)
def test_prompts_go_with_their_utterances(adapter):
    """Methods that serve one task at a time take OWSM-CTC's batches apart."""
    torch.manual_seed(1)
    conf = {**conf_of("e_branchformer"), "input_layer": "conv2d"}
    stock = EBranchformerCTCEncoder(DIM, **conf)
    randomise_statistics(stock)
    encoder = as_if_trained(adapt(stock, conf, ("a", "b"), adapter=adapter), scale=0.1)
    encoder.adapter.requires_grad_(False)
    xs, lens = torch.randn(3, 48, DIM), torch.tensor([48, 48, 48])
    prompts = {
        "prefix_embeds": torch.randn(3, 2, WIDTH),
        "memory": torch.randn(3, 5, WIDTH),
        "memory_mask": torch.ones(3, 1, 5, dtype=torch.bool),
    }
    names = ["b", "a", "b"]
    with encoder.use_task(names):
        mixed, frames, _ = encoder(xs, lens, **prompts)
    for i, name in enumerate(names):
        one = {key: value[i : i + 1] for key, value in prompts.items()}
        with encoder.use_task(name):
            alone, n, _ = encoder(xs[i : i + 1], lens[i : i + 1], **one)
        assert n == frames[i]
        torch.testing.assert_close(mixed[i], alone[0], atol=1e-5, rtol=1e-4)


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


@pytest.mark.shows(objective="{name}", entrance="decode")
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


@pytest.mark.shows(objective=("s2t", "s2t_ctc", "st", "slu"), entrance="Speech2Text")
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


def test_what_does_not_fit_into_memory_is_told(name, models, data, monkeypatch):
    speech2text = opened(models(name))
    short, *_ = waves(data["test"]).values()
    long = np.concatenate([short, short])
    decode = type(speech2text)._decode

    def limited(self, wave, *args, **kwargs):
        if len(wave) > len(short):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return decode(self, wave, *args, **kwargs)

    monkeypatch.setattr(type(speech2text), "_decode", limited)
    with pytest.raises(NoRoomError, match=f"of {len(long):,} samples") as refused:
        speech2text([short, long, short], task="male")
    assert (refused.value.index, refused.value.size) == (1, 3)
    with pytest.raises(NoRoomError, match=f"of {len(long):,} samples"):
        speech2text(long, task="male")
    assert said(speech2text(short, task="male"))


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


@pytest.mark.parametrize("name", ["s2t", "s2t_ctc"])
def test_long_recordings_are_decoded_with_the_task_that_was_set(name, models, data):
    speech2text = opened(models(name), ctc_weight=0.3)
    speech2text.lang_sym = "<eng>"
    wave = np.concatenate(list(waves(data["test"]).values()) * 2)[: 5 * 16000]
    with pytest.raises(TaskError, match="no task was chosen"):
        speech2text.decode_long(wave)
    found = set()
    for task in (None, *TASKS):
        speech2text.set_task(task)
        probs = speech2text.ctc_log_probs(wave) if name == "s2t_ctc" else None
        said_then = speech2text.decode_long(wave)
        found.add(repr(said_then) if probs is None else repr(probs[:40].tolist()))
    assert len(found) > 1


@pytest.mark.shows(
    encoder="e_branchformer_ctc", objective="s2t_ctc", entrance="--quantize_asr_model"
)
def test_a_quantized_model_decodes_with_its_tasks(models, data):
    speech2text = opened(models("s2t_ctc"), quantize_s2t_model=True)
    exact = opened(models("s2t_ctc"))
    wave = next(iter(waves(data["test"]).values()))
    scores = set()
    for task in TASKS:
        score = float(speech2text(wave, task=task)[0][-1].score)
        assert score == pytest.approx(
            float(exact(wave, task=task)[0][-1].score), rel=0.1
        )
        scores.add(round(score, 3))
    assert len(scores) == 2


@pytest.mark.shows(objective="s2t_ctc", entrance="align")
def test_texts_are_aligned_as_by_espnet_and_with_tasks(
    bases, models, data, tmp_path, capsys, monkeypatch
):
    """With models of s2t_ctc, whose windows are five seconds here."""
    base, model = bases("s2t_ctc"), models("s2t_ctc")
    sounds = waves(data["train"])
    lines = dict(line.split(None, 1) for line in (data["train"] / "src_text").open())
    wave = np.concatenate(list(sounds.values())[:2])
    text = [f"{name} {lines[name].strip()}" for name in list(sounds)[:2]]
    own = type("Own", (s2t_align.CTCSegmentation,), {})
    with monkeypatch.context() as patch:  # ESPnet takes paths as they are written
        patch.chdir(base.parent)
        stock = own(base / "config.yaml", base / MODEL, context_len_in_secs=1.0)
        plain = str(stock(wave, text))
    aligner = espnet_hra.CTCSegmentation.from_pretrained(
        str(model), context_len_in_secs=1.0
    )
    aligner.set_task(None)
    assert str(aligner(wave, text)) == plain
    found = {task: str(aligner(wave, text, task=task)) for task in TASKS}
    assert len({*found.values(), plain}) == 3
    aligner.lang_sym = "<xyz>"
    with pytest.raises(ConfigError, match="<xyz> is no tag of this model; it has <eng"):
        aligner(wave, text, task="male")
    soundfile.write(tmp_path / "rec.wav", wave, 16000, subtype="FLOAT")
    (tmp_path / "text").write_text("\n".join(text))
    aligner.lang_sym = "<eng>"
    wanted = str(aligner(wave, text, 16000, "rec", task="male"))
    capsys.readouterr()
    command(
        *("align", "--audio", str(tmp_path / "rec.wav")),
        *("--text", str(tmp_path / "text"), "--task", "male"),
        *("--s2t_train_config", str(model / "config.yaml")),
        *("--s2t_model_file", str(model / MODEL), "--context_len_in_secs", "1"),
    )
    assert capsys.readouterr().out == wanted


@pytest.mark.shows(objective="{name}", entrance="transcribe")
@pytest.mark.parametrize("greedy", ["true", "false"])
def test_transcribe_writes_the_words_alone(
    name, greedy, models, data, tmp_path, capsys
):
    path = tmp_path / "a.wav"
    wave = next(iter(waves(data["test"]).values()))[:16000]
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    words = ["--ctc_greedy", greedy, "--beam_size", "2", "--task", "male"]
    capsys.readouterr()
    command("transcribe", str(path), "--model", str(models(name)), *words)
    text = capsys.readouterr().out.strip()
    found = espnet_hra.Speech2Text.from_pretrained(
        str(models(name)), task="male", ctc_greedy=greedy == "true", beam_size=2
    )
    if name == "s2t_ctc":
        found.lang_sym = "<nolang>"
    assert text == found.text_of(found.batch_decode([wave])[0]).strip()
    assert "<" not in text


def test_languages_are_tags_of_the_model(models, data, tmp_path):
    speech2text = opened(models("s2t"), task="male")
    wave = next(iter(waves(data["test"]).values()))
    speech2text.set_language("st_eng")
    assert speech2text.lang_sym == "<st_eng>"
    message = "<fra> is no tag of this model; it has .*<eng>.* and others"
    with pytest.raises(ConfigError, match=message):
        speech2text.set_language("fra")
    with pytest.raises(ConfigError, match=message):
        speech2text(wave, lang_sym="<fra>")
    with pytest.raises(ConfigError, match=message):
        speech2text.batch_decode([wave], lang_sym="<fra>")
    with pytest.raises(
        ConfigError, match="only Whisper and models of the ESPnet tasks s2t and"
    ):
        opened(models("slu")).set_language("fra")


def test_a_translation_without_a_ctc_is_not_decoded_greedily(bases, data, tmp_path):
    config = open_base(str(bases("st"))).model_config("st")
    config |= {"specaug": None, "init": None}
    config["model_conf"] = {**config["model_conf"], "st_mtlalpha": 0.0}
    model = import_module("espnet2.tasks.st").STTask.build_model(Namespace(**config))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), tmp_path / MODEL)
    with pytest.raises(ConfigError, match="has no CTC"):
        opened(tmp_path, ctc_greedy=True)


# ------------------------------------------------------------- which class, which way


def test_the_general_entrance_gives_the_right_class(name, models, bases):
    found = opened(models(name))
    assert type(found) is named(KINDS[name].opens)
    assert isinstance(found, named(KINDS[name].stock))
    assert found.tasks == tuple(TASKS)


def test_a_base_opens_without_tasks(name, bases, data):
    found = opened(bases(name))
    assert type(found) is named(KINDS[name].opens)
    assert found.tasks == ()
    with pytest.raises(TaskError, match="has no adapter"):
        found.set_task("male")
    with pytest.raises(TaskError, match="has no adapter"):
        found(next(iter(waves(data["test"]).values())), task="male")


@pytest.mark.parametrize(
    "name, part",
    [
        ("s2t", "decoder"),
        ("s2t_ctc", "prompt_encoder"),
        ("st", "extra_asr_decoder"),
        ("slu", "ctc"),
    ],
)
def test_another_base_and_a_cut_checkpoint_are_refused(
    name, part, models, bases, tmp_path
):
    other, cut = tmp_path / "base", tmp_path / "cut"
    shutil.copytree(bases(name), other)
    state = load(other / MODEL)
    key = next(key for key in state if key.startswith(f"{part}."))
    state[key] = state[key] + 1e-3
    for path in other.glob("valid.*.pth"):  # whichever is taken
        torch.save(state, path)
    message = f"not the base that the adapter was trained on; {part}: expected"
    with pytest.raises(BaseModelError, match=message):
        opened(models(name), pretrained_model=str(other))
    shutil.copytree(models(name), cut)
    state = load(cut / MODEL)
    del state[f"{ADAPTER}heads.male"]
    for path in cut.glob("valid.*.pth"):
        torch.save(state, path)
    with pytest.raises(BaseModelError, match="does not fit .*heads.male"):
        opened(cut)


def test_the_class_of_another_espnet_task_refuses_it(name, models):
    config, model = models(name) / "config.yaml", models(name) / MODEL
    message = f"of the ESPnet task {name}, .*Speech2Text.from_pretrained"
    for cls in (espnet_hra.Speech2Text, espnet_hra.Speech2TextStreaming):
        with pytest.raises(BaseModelError, match=message):
            cls(asr_train_config=config, asr_model_file=model)


@pytest.mark.shows(objective="slu", entrance="tasks add", because="asr alone")
def test_a_task_of_another_espnet_task_is_not_added(models, data):
    words = ("tasks", "add", "new", str(data["train"]), "--model", str(models("slu")))
    with pytest.raises(SystemExit, match="of the ESPnet task slu, which would become"):
        cli.main(list(words))


def test_a_task_travels_as_a_file(name, models, data, tmp_path):
    path = tmp_path / "male.safetensors"
    words = ("--model", str(models(name)), "--out", str(path))
    command("tasks", "export", "male", *words)
    wave = next(iter(waves(data["test"]).values()))
    speech2text = opened(models(name), task="male")
    expected = said(speech2text(wave))
    speech2text.model.encoder.remove_task("male")
    speech2text.set_task(str(path))
    assert said(speech2text(wave)) == expected
    other = next(one for one in OTHERS if one != name)
    with pytest.raises(TaskError):
        opened(models(other)).load_task(path, replace=True)


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


@pytest.mark.shows(objective="{name}", entrance="asr.sh")
def test_espnets_scripts_reach_our_programs(name):
    kind = KINDS[name]
    programs = [(kind.train, "train"), (kind.inference, "inference")]
    programs += [(kind.align, "align")] * bool(kind.align)
    for theirs, ours in programs:
        found = translate(["-m", f"espnet2.bin.{theirs}", "--ngpu", "0"])
        assert found == ["-m", f"espnet_hra.bin.{name}_{ours}", "--ngpu", "0"]
        assert callable(import_module(f"espnet2.bin.{theirs}").main)
        assert callable(import_module(found[1]).main)


def test_what_the_models_want_of_their_data(bases):
    def wants(name):
        return requirements_from_config(open_base(str(bases(name))).model_config(name))

    assert wants("slu").frames is not None and wants("slu").ctc
    assert wants("st").frames is not None and wants("st").ctc
    assert wants("s2t").frames is None  # whatever is given is padded to five seconds
    assert wants("s2t_ctc").frames is None
    assert set(wants("s2t").tokenizer("<eng><asr> GO")) >= {"<eng>", "<asr>"}
    attention = {"src_token_list": ["a"], "model_conf": {"asr_weight": 0.3}}
    assert not requirements_from_config(attention).ctc


def test_params_counts_any_model(name, models, capsys):
    cli_words = ("params", str(models(name) / "config.yaml"))
    capsys.readouterr()
    command(*cli_words)
    assert "all 2 tasks" in capsys.readouterr().out


# -------------------------------------------------------------------------- packs


@pytest.mark.shows(objective="{name}", entrance="pack")
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
        with zipfile.ZipFile(pack) as members:
            card = members.read("README.md").decode()
        module, _, cls = KINDS[name].stock.partition(":")
        assert f"from {module} import {cls}\n" in card
        assert f"speech2text.{KINDS[name].attribute}_model.encoder.load_task" in card
        if name == "s2t_ctc":
            stock.lang_sym = "<eng>"
        assert [said(stock(torch.as_tensor(w))) for w in recordings] == before[None]
        command("decode", *decode_pack(name, pack, data["test"], tmp_path / "out"))
    assert len(decoded(tmp_path / "out")) == 2


def decode_pack(name: str, pack: Path, folder: Path, output: Path) -> list[str]:
    cmd = decoding(name, pack, folder, output, ["--task", "male"])
    return ["--model_tag", str(pack), *cmd[4:]]


def test_files_of_one_name_stay_apart_in_a_pack(models, tmp_path):
    """A translation's recipe has a bpe.model for each language."""
    model = Path(shutil.copytree(models("st"), tmp_path / "model"))
    config = yaml.safe_load((model / "config.yaml").read_text())
    target = Path(config["bpemodel"])
    (tmp_path / "src_bpe").mkdir()
    source = tmp_path / "src_bpe" / target.name
    source.write_bytes(b"the source's")
    config["src_bpemodel"] = str(source)
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    words = ("--out", str(tmp_path / "pack"), "--license", "cc0-1.0")
    command("pack", "--model", str(model), *words)
    packed = yaml.safe_load((tmp_path / "pack" / "config.yaml").read_text())
    for key, expected in (("bpemodel", target), ("src_bpemodel", source)):
        inside = tmp_path / "pack" / packed[key]
        assert inside.read_bytes() == expected.read_bytes()


def test_an_adaptation_without_its_base_says_what_to_do(models, bases, tmp_path):
    """Its token model and statistics are in the base's recipe as well."""
    folder, model = bases("st").parent, models("st")
    with moved_away(folder) as there:
        with pytest.raises(BaseModelError, match="say with --pretrained_model"):
            opened(model)
        elsewhere = str(there / bases("st").name)
        assert opened(model, pretrained_model=elsewhere).tasks == tuple(TASKS)
        words = ("--pretrained_model", elsewhere, "--license", "cc0-1.0")
        pack = ("--out", str(tmp_path / "pack"))
        command("pack", "--model", str(model), *pack, *words)
    assert (tmp_path / "pack" / "files" / "bpe.model").is_file()
