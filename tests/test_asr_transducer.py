"""Models of the ESPnet task asr_transducer, adapted: offline and chunk by chunk."""

import math
import pickle
import shutil
import sys
import types
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from adaptations import waves
from espnet2.asr.transducer.rnnt_multi_blank.rnnt_multi_blank import RNNTLossNumba
from espnet2.asr_transducer.encoder.encoder import Encoder
from espnet2.bin import asr_transducer_inference
from espnet_tasks import adaptation, decoded, make_base, make_data, moved_away, streams

import espnet_hra
from espnet_hra import cli
from espnet_hra.bin.python import translate
from espnet_hra.commands import transcribe
from espnet_hra.data.requirements import requirements_from_config
from espnet_hra.errors import BaseModelError, ConfigError, TaskError
from espnet_hra.espnet.base import open_base
from espnet_hra.espnet.inference_transducer import TransducerSpeech2Text
from espnet_hra.espnet.kinds import KINDS
from espnet_hra.espnet.task import espnet_task
from espnet_hra.espnet.transducer import settle_loss

NAME = "asr_transducer"
ADAPTER = "encoder.adapter."
TASKS = ["female", "male"]
MODEL = "valid.loss.best.pth"
#: ESPnet's usual search has no end where no blank wins, as with these weights.
SEARCH = {"search_type": "tsd", "max_sym_exp": 2}
OPTIONS = {"beam_size": 2, "beam_search_config": SEARCH}


def command(*words: object) -> None:
    """Run a sub-command of `espnet-hra`, which must end well."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert not ended.value.code, ended.value.code


def load(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def data(an4, tmp_path_factory) -> dict[str, Path]:
    return make_data(an4, tmp_path_factory.mktemp("texts") / "data")


@pytest.fixture(scope="module")
def base(data, tmp_path_factory) -> Path:
    """A stock experiment folder, as ESPnet's own program leaves it.

    That program wants warprnnt_pytorch, which is built by hand; ESPnet has the same
    loss for numba.
    """
    package = types.ModuleType("warprnnt_pytorch")
    package.RNNTLoss = RNNTLossNumba
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "warprnnt_pytorch", package)
        return make_base(NAME, data, tmp_path_factory.mktemp(NAME) / "recipe")


@pytest.fixture(scope="module")
def model(base, data, tmp_path_factory) -> Path:
    """An adaptation of it, by `espnet-hra train`, whose tasks differ audibly."""
    output = tmp_path_factory.mktemp(NAME) / "exp"
    command("train", *adaptation(NAME, data, base, output))
    state = load(output / MODEL)
    generator = torch.Generator().manual_seed(2)
    for tensor in state.values():
        tensor += 0.5 * torch.randn(tensor.shape, generator=generator)
    torch.save(state, (output / MODEL).resolve())
    return output


def opened(model: Path, **kwargs):
    return espnet_hra.Speech2Text.from_pretrained(str(model), **{**OPTIONS, **kwargs})


def said(hypotheses) -> list[tuple[list[int], float]]:
    return [(list(h.yseq), float(h.score)) for h in hypotheses]


@pytest.fixture(scope="module")
def recordings(data) -> list[np.ndarray]:
    return list(waves(data["test"]).values())[:2]


def chunks(speech2text, wave: np.ndarray) -> list[list[tuple[list[int], float]]]:
    """What a stream has said after each chunk, as ESPnet's loop feeds it."""
    size = speech2text.audio_processor.decoding_samples
    steps = len(wave) // size
    return [
        said(speech2text.streaming_decode(wave[i * size :][:size], is_final=i == steps))
        for i in range(steps + 1)
    ]


def stock(base: Path, **kwargs):
    """ESPnet's own class on a base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base.parent)
        files = (base / "config.yaml", base / MODEL)
        return asr_transducer_inference.Speech2Text(*files, **{**OPTIONS, **kwargs})


def decode(program, folder: Path, data: Path, output: Path, *more: object) -> dict:
    """What a decoding program writes, by utterance."""
    output.mkdir()
    search = write_search(output)
    program(
        [
            *("--config", str(search)),
            *("--asr_train_config", str(folder / "config.yaml")),
            *("--asr_model_file", str(folder / MODEL), "--output_dir", str(output)),
            *("--num_workers", "0", "--beam_size", "2"),
            *("--data_path_and_name_and_type", f"{data / 'wav.scp'},speech,sound"),
            *map(str, more),
        ]
    )
    found = decoded(output)
    scores = (output / "1best_recog" / "score").read_text().splitlines()
    return {
        key: (found[key], score) for key, score in (line.split() for line in scores)
    }


def write_search(folder: Path) -> Path:
    """A configuration of decoding: ESPnet takes the search from nowhere else."""
    path = folder / "decode.yaml"
    path.write_text(yaml.safe_dump({"beam_search_config": SEARCH}))
    return path


def ours(cmd: list[str]) -> None:
    command("decode", *cmd)


STREAMING = ("--streaming", "true", "--decoding_window", "320")
WAYS = {"whole": (), "chunks": STREAMING}
SHOWN = {
    "encoder": "encoder of asr_transducer",
    "objective": "transducer of asr_transducer",
}


# ------------------------------------------------------------------------- training


@pytest.mark.shows(**SHOWN, entrance="train")
def test_the_adapter_learns_and_the_base_stays(model, base):
    state = load(model / "latest.pth")
    assert all(key.startswith(ADAPTER) for key in state)
    found = opened(model)
    assert type(found) is TransducerSpeech2Text
    source = load(base / MODEL)
    state = found.model.state_dict()
    kept = {k: v for k, v in state.items() if not k.startswith(ADAPTER)}
    assert kept.keys() == source.keys()
    assert all(torch.equal(kept[key], source[key]) for key in source)


def test_the_saved_configuration_names_encoder_and_base(model, base):
    config = yaml.safe_load((model / "config.yaml").read_text())
    assert config["encoder"] == "hra_asr_transducer"
    assert config["encoder_conf"]["body_conf"][0]["block_type"] == "conformer"
    assert config["pretrained_model"] == str(base.resolve())
    parts = {"encoder", "normalize", "decoder", "joint_network", "ctc_lin"}
    assert parts <= set(config["base_fingerprint"])
    assert "encoder" not in yaml.safe_load((base / "config.yaml").read_text())


@pytest.mark.parametrize("adapter", ["hra", "lora", "bitfit"])
def test_every_task_of_the_batches_learns_under_autocast(adapter, base, data, tmp_path):
    output = tmp_path / "exp"
    conf = {"adapter": adapter, "tasks": TASKS}
    more = ("--autocast", "bfloat16", "--max_epoch", "1")
    cmd = adaptation(NAME, data, base, output, *more, encoder_conf=conf)
    import_module("espnet_hra.bin.asr_transducer_train").main(cmd)
    states = torch.load(output / "checkpoint.pth", weights_only=True)
    assert math.isfinite(states["reporter"]["stats"][1]["train"]["loss"])
    state = states["model"]
    heads = [v for k, v in state.items() if k.startswith(f"{ADAPTER}heads.")]
    assert len(heads) == 2
    assert all(v.abs().sum() > 0 and v.dtype == torch.float32 for v in heads)


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"adapter_conf": {"ctc": "task"}}, "ctc: 'task': .* decode without a CTC"),
        ({"adapter_conf": {"new_tokens": ["X"]}}, "new_tokens: .* without a CTC"),
        ({"adapter_conf": {"decoder": True}}, "decoder: true: .* keeps no list of lay"),
    ],
)
def test_what_a_transducer_cannot_learn_is_refused(conf, message, base, data, tmp_path):
    conf = {"adapter": "hra", "tasks": TASKS, **conf}
    cmd = adaptation(NAME, data, base, tmp_path / "exp", encoder_conf=conf)
    with pytest.raises(SystemExit, match=message):
        cli.main(["train", *cmd])


def test_espnets_own_training_is_refused(base, data, tmp_path):
    output = tmp_path / "exp"
    adaptation(NAME, data, base, output)
    given = yaml.safe_load((output / "given.yaml").read_text())
    config = open_base(str(base)).model_config(NAME)
    conf = {**config["encoder_conf"], **given["encoder_conf"]}
    merged = {**given, **config, "encoder_conf": conf}
    del merged["encoder"]
    (output / "given.yaml").write_text(yaml.safe_dump(merged))
    cmd = ["--config", str(output / "given.yaml"), "--output_dir", str(output)]
    cmd += streams(KINDS[NAME], data, tasks=False)
    with pytest.raises(RuntimeError, match="trains this model, and knows nothing"):
        import_module("espnet2.bin.asr_transducer_train").main(cmd)
    # Without a base ours refuses it too: keys of an adapter ask for one.
    with pytest.raises(SystemExit, match="hra_asr_transducer needs the trained model"):
        cli.main(["train", *cmd])


def test_the_program_of_another_espnet_task_is_refused(base, data, tmp_path):
    from espnet_hra.bin import asr_train

    cmd = adaptation(NAME, data, base, tmp_path / "exp")
    with pytest.raises(BaseModelError, match="task asr_transducer, .* as one of asr;"):
        asr_train.main(cmd)


def test_the_loss_is_espnets_own_where_a_package_is_missing(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", None)
    built = stock(base).asr_model
    settle_loss(built)
    assert isinstance(built.criterion_transducer, RNNTLossNumba)
    built.criterion_transducer = None
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", types.ModuleType("it"))
    settle_loss(built)  # ESPnet takes it then
    assert built.criterion_transducer is None


def test_classes_and_models_reach_other_processes(model):
    """DDP and data loaders are started anew, and get what they need pickled."""
    task = espnet_task(NAME)
    assert pickle.loads(pickle.dumps(task.main_worker)) == task.main_worker
    built = opened(model).model
    copied = pickle.loads(pickle.dumps(built))
    assert type(copied) is type(built)
    assert copied.encoder.tasks == tuple(TASKS)


# ------------------------------------------------------------------------- decoding


@pytest.mark.shows(**SHOWN, entrance="Speech2Text")
def test_without_a_task_it_is_espnets_own(model, base, recordings):
    plain, found = stock(base), opened(model)
    expected = [said(plain(wave)) for wave in recordings]
    found.set_task(None)
    assert [said(found(wave)) for wave in recordings] == expected
    for task in TASKS:
        assert [said(found(wave, task=task)) for wave in recordings] != expected


@pytest.mark.shows(**SHOWN, entrance="streaming")
def test_a_stream_without_a_task_is_espnets_own(model, base, recordings):
    keys = {"streaming": True, "decoding_window": 320}
    plain, found = stock(base, **keys), opened(model, **keys)
    expected = [chunks(plain, wave) for wave in recordings]
    assert all(len(one) > 2 for one in expected)
    found.set_task(None)
    assert [chunks(found, wave) for wave in recordings] == expected
    streams_of = {None: expected}
    for task in TASKS:
        found.set_task(task)
        streams_of[task] = [chunks(found, wave) for wave in recordings]
        assert streams_of[task] == [chunks(found, wave) for wave in recordings]
    assert len({repr(one) for one in streams_of.values()}) == 3


def test_a_stream_keeps_the_task_that_it_began_with(model, recordings):
    found = opened(model, streaming=True, decoding_window=320, task="male")
    wave = recordings[0]
    expected = chunks(found, wave)
    half = found.audio_processor.decoding_samples
    found.streaming_decode(wave[:half])
    found.set_task("female")
    steps = len(wave) // half
    rest = [
        said(found.streaming_decode(wave[i * half :][:half], is_final=i == steps))
        for i in range(1, steps + 1)
    ]
    assert rest == expected[1:]
    assert chunks(found, wave) != expected  # the next stream is female


def test_a_stream_asks_for_a_task_and_for_streaming(model, recordings):
    with pytest.raises(TaskError, match="no task was chosen .* female, male"):
        opened(model, streaming=True).streaming_decode(recordings[0][:9000])
    with pytest.raises(ConfigError, match="opened for whole utterances; .*=True"):
        opened(model, task="male").streaming_decode(recordings[0][:9000])


@pytest.mark.parametrize("way", WAYS)
def test_the_program_without_a_task_is_espnets_own(way, model, base, data, tmp_path):
    folder, more = data["test"], WAYS[way]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base.parent)
        program = asr_transducer_inference.main
        expected = decode(program, base, folder, tmp_path / "stock", *more)
    off = ("--without_task", "true")
    assert decode(ours, model, folder, tmp_path / "off", *more, *off) == expected
    on = decode(ours, model, folder, tmp_path / "on", *more, "--task", "male")
    assert on != expected


@pytest.mark.shows(**SHOWN, entrance="decode")
@pytest.mark.parametrize("way", WAYS)
def test_each_utterance_has_its_task(way, model, data, tmp_path):
    folder, more = data["train"], WAYS[way]
    stream = ("--data_path_and_name_and_type", f"{folder / 'utt2task'},utt2task,text")
    mixed = decode(ours, model, folder, tmp_path / "mixed", *more, *stream)
    tasks = dict(line.split() for line in (folder / "utt2task").open())
    assert set(tasks.values()) == set(TASKS)
    alone = {
        task: decode(ours, model, folder, tmp_path / task, *more, "--task", task)
        for task in TASKS
    }
    assert mixed == {key: alone[task][key] for key, task in tasks.items()}
    assert alone["female"] != alone["male"]


def test_streaming_false_is_no_streaming(model, data, tmp_path):
    """For ESPnet's program any word is true."""
    folder, task = data["test"], ("--task", "male")
    more = ("--streaming", "false")
    found = decode(ours, model, folder, tmp_path / "false", *task, *more)
    assert found == decode(ours, model, folder, tmp_path / "without", *task)
    assert found != decode(ours, model, folder, tmp_path / "on", *task, *STREAMING)


def test_a_list_may_mix_tasks(model, recordings):
    found = opened(model)
    names = ["male", "female"]
    alone = [said(found(w, task=n)) for w, n in zip(recordings, names)]
    assert [said(one) for one in found(recordings, task=names)] == alone
    found.set_task(names)
    assert [said(one) for one in found.batch_decode(recordings)] == alone
    results = opened(model, return_decoded_hyp=True)(recordings, task=names)
    texts = [found.text_of(one) for one in found(recordings, task=names)]
    assert [one[0][0] for one in results] == texts
    assert [found.text_of(one) for one in results] == texts


@pytest.mark.shows(**SHOWN, entrance="transcribe")
def test_transcribe_writes_the_words(model, recordings, tmp_path, capsys):
    path = tmp_path / "a.wav"
    soundfile.write(path, recordings[0], 16000, subtype="FLOAT")
    capsys.readouterr()
    words = ("--model", model, "--task", "male", "--beam_size", 2)
    command("transcribe", path, *words)
    text = capsys.readouterr().out.strip()
    found = opened(model, task="male", beam_search_config=None)
    assert text == found.text_of(found(recordings[0])).strip()
    assert transcribe._decode(found, [recordings[0][:400], recordings[0]]) == ["", text]
    with pytest.raises(SystemExit, match="ctc_greedy: .*without a CTC; leave it out"):
        cli.main(["transcribe", str(path), *map(str, words), "--ctc_greedy", "true"])


@pytest.mark.shows(**SHOWN, entrance="--quantize_asr_model")
def test_a_quantized_model_decodes_with_its_tasks(model, recordings):
    exact, found = opened(model), opened(model, quantize_asr_model=True)
    scores = set()
    for task in TASKS:
        score = said(found(recordings[0], task=task))[0][1]
        assert score == pytest.approx(said(exact(recordings[0], task=task))[0][1], 0.1)
        scores.add(round(score, 3))
    assert len(scores) == 2


# ----------------------------------------------------------------- what goes around


def test_a_base_opens_without_tasks(base, recordings):
    found = opened(base)
    assert type(found) is TransducerSpeech2Text
    assert found.tasks == ()
    assert said(found(recordings[0])) == said(stock(base)(recordings[0]))
    with pytest.raises(TaskError, match="has no adapter"):
        found.set_task("male")
    with pytest.raises(SystemExit, match="no adapter .encoder: asr_transducer. and no"):
        cli.main(["tasks", "list", "--model", str(base)])


@pytest.mark.parametrize("part", ["decoder", "joint_network", "encoder"])
def test_another_base_and_a_cut_checkpoint_are_refused(part, model, base, tmp_path):
    other, cut = tmp_path / "base", tmp_path / "cut"
    shutil.copytree(base, other)
    state = load(other / MODEL)
    key = next(key for key in state if key.startswith(f"{part}."))
    state[key] = state[key] + 1e-3
    for path in other.glob("valid.*.pth"):  # whichever is taken
        torch.save(state, path)
    message = f"not the base that the adapter was trained on; {part}: expected"
    with pytest.raises(BaseModelError, match=message):
        opened(model, pretrained_model=str(other))
    shutil.copytree(model, cut)
    state = load(cut / MODEL)
    del state[f"{ADAPTER}heads.male"]
    for path in cut.glob("valid.*.pth"):
        torch.save(state, path)
    with pytest.raises(BaseModelError, match="does not fit .*heads.male"):
        opened(cut)


@pytest.mark.shows(**SHOWN, entrance="pack")
def test_a_pack_needs_nothing_of_the_original(model, base, data, recordings, tmp_path):
    found = opened(model)
    before = {}
    for task in (None, *TASKS):
        found.set_task(task)
        before[task] = [said(found(wave)) for wave in recordings]
    pack = tmp_path / "pack.zip"
    words = ("--tasks", "all", "--license", "cc0-1.0")
    command("pack", "--model", model, "--out", pack, *words)
    with moved_away(base.parent), moved_away(model):
        packed = opened(pack)
        assert packed.tasks == tuple(TASKS)
        for task, expected in before.items():
            packed.set_task(task)
            assert [said(packed(wave)) for wave in recordings] == expected
        plain = asr_transducer_inference.Speech2Text.from_pretrained(
            str(pack), **OPTIONS
        )
        assert [said(plain(wave)) for wave in recordings] == before[None]
        output = tmp_path / "out"
        options = ("--beam_size", "2", "--num_workers", "0", "--task", "male")
        options += ("--config", str(write_search(tmp_path)))
        stream = f"{data['test'] / 'wav.scp'},speech,sound"
        command(
            *("decode", "--model_tag", pack, "--output_dir", output, *options),
            *("--data_path_and_name_and_type", stream),
        )
    assert len(decoded(output)) == 2


def test_a_task_travels_as_a_file(model, recordings, tmp_path, capsys):
    path = tmp_path / "male.safetensors"
    command("tasks", "export", "male", "--model", model, "--out", path)
    found = opened(model, task="male")
    expected = said(found(recordings[0]))
    found.model.encoder.remove_task("male")
    found.set_task(str(path))
    assert said(found(recordings[0])) == expected
    capsys.readouterr()
    command("tasks", "list", "--model", model)
    listed = capsys.readouterr().out
    assert "female" in listed and "male" in listed
    command("params", model / "config.yaml")
    assert "all 2 tasks" in capsys.readouterr().out


@pytest.mark.shows(**SHOWN, entrance=("tasks add", "adapt"), because="asr alone")
def test_what_is_for_models_of_asr_says_so(model, base, data, tmp_path):
    told = "of the ESPnet task asr_transducer, which would become"
    folder = str(data["train"])
    with pytest.raises(SystemExit, match=told):
        cli.main(["tasks", "add", "new", folder, "--model", str(model)])
    words = ["--data", folder, "--out", str(tmp_path / "out")]
    words += ["--init_adapter", str(model / MODEL), "--pretrained_model", str(base)]
    with pytest.raises(SystemExit, match=told):
        cli.main(["adapt", *words])


@pytest.mark.shows(**SHOWN, entrance="export", because="asr alone")
def test_it_is_not_exported(model, tmp_path):
    with pytest.raises(SystemExit, match="task asr_transducer; those of asr can be ex"):
        cli.main(["export", str(model), "--out", str(tmp_path / "model.onnx")])


@pytest.mark.shows(**SHOWN, entrance="align", because="no CTC")
def test_texts_are_not_aligned_with_it(model, tmp_path):
    files = ["--asr_train_config", str(model / "config.yaml")]
    files += ["--asr_model_file", str(model / MODEL)]
    with pytest.raises(
        SystemExit, match="task asr_transducer, for which ESPnet has no"
    ):
        cli.main(["align", "--audio", "a.wav", "--text", "text", *files])


@pytest.mark.shows(objective=SHOWN["objective"], entrance="asr.sh")
def test_espnets_scripts_reach_our_programs():
    for word in ("train", "inference"):
        found = translate(["-m", f"espnet2.bin.asr_transducer_{word}", "--ngpu", "0"])
        assert found == ["-m", f"espnet_hra.bin.asr_transducer_{word}", "--ngpu", "0"]
        assert callable(import_module(found[1]).main)


@pytest.mark.parametrize("factor", [2, 4, 6])
def test_frames_are_counted_as_the_encoder_makes_them(factor, base):
    config = open_base(str(base)).model_config(NAME)
    config["encoder_conf"]["input_conf"] = {"subsampling_factor": factor}
    frames = requirements_from_config(config).frames
    encoder = Encoder(80, **config["encoder_conf"])
    for samples in (3000, 16000, 17777):
        n = samples // 160 + 1
        _, lengths = encoder(torch.randn(1, n, 80), torch.tensor([n]))
        assert frames(samples) == lengths.item()
    config["encoder_conf"]["input_conf"] = {"vgg_like": True}
    assert requirements_from_config(config).frames is None
    assert not requirements_from_config(config).ctc
