"""What would go wrong in silence, or end with somebody else's traceback."""

import argparse
import io
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import BASE_CONFIG, make_base
from published import COMMON, PUBLISHED
from small_encoders import DIM, WIDTH, adapted_encoder, batch, loss_of
from test_training import ADAPTATION, options, streams, train, waves

import espnet_hra
from espnet_hra import cli
from espnet_hra.bin.python import translate
from espnet_hra.data.audio import AudioError, Conversion, convert, read_audio
from espnet_hra.data.checks import check
from espnet_hra.data.requirements import Requirements
from espnet_hra.errors import BaseModelError, ConfigError, DataError
from espnet_hra.espnet.base import open_base
from espnet_hra.espnet.inputs import as_wave, check_greedy, out_of_memory
from espnet_hra.espnet.kinds import KINDS
from espnet_hra.espnet.resuming import Earlier
from espnet_hra.espnet.trainer import check_finite


@pytest.fixture(scope="module")
def model(an4, base, tmp_path_factory):
    """A short adaptation."""
    return train(an4, base, tmp_path_factory.mktemp("model") / "exp", max_epoch=1)


# ------------------------------------------------------------- who trains what


@pytest.mark.parametrize("more", [[], ["--init_param"]], ids=["alone", "init_param"])
def test_espnets_own_training_of_an_adapted_encoder_is_refused(
    more, an4, base, tmp_path
):
    """It would train on a random base, or train decoder and CTC as well."""
    from espnet2.bin import asr_train

    config = yaml.safe_load((base / "config.yaml").read_text())
    kept = ("token_list", "token_type", "frontend_conf", "normalize", "model_conf")
    given = {key: config[key] for key in kept} | {
        "encoder": "hra_conformer",
        "encoder_conf": {
            **BASE_CONFIG["encoder_conf"],
            "adapter_conf": {"controller_size": 8},
            "tasks": ["female"],
        },
        **{k: v for k, v in ADAPTATION.items() if k not in ("encoder_conf",)},
    }
    given.pop("check_data")
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(given))
    if more:
        more = [*more, str(base / "valid.loss.best.pth")]
    plain = [
        word
        for part, name in (("train", "train"), ("valid", "dev"))
        for word in streams(an4[name], part)
        if "utt2task" not in word
    ]
    plain = [w for i, w in enumerate(plain) if not _dangling(plain, i)]
    command = ["--config", str(tmp_path / "train.yaml"), *plain, *more]
    with pytest.raises(RuntimeError, match="ASRTask trains this.*espnet-hra train"):
        asr_train.main([*command, "--output_dir", str(tmp_path / "exp")])


def _dangling(words, i):
    """Whether a word is an option without a value."""
    return words[i].startswith("--") and (
        i + 1 == len(words) or words[i + 1].startswith("--")
    )


@pytest.mark.parametrize(
    "words, expected",
    [
        ("-m espnet2.bin.asr_train --help", "-m espnet_hra.bin.asr_train --help"),
        ("-u -m espnet2.bin.asr_inference", "-u -m espnet_hra.bin.asr_inference"),
        ("-m espnet2.bin.pack -m espnet2.bin.asr_train", None),
        ("script.py -m espnet2.bin.asr_train", None),
        ("-c print() -m espnet2.bin.asr_train", None),
        ("-m", None),
    ],
)
def test_the_python_for_asr_sh_knows_which_programs_are_ours(words, expected):
    assert translate(words.split()) == (expected or words).split()


@pytest.mark.slow
@pytest.mark.shows(encoder="conformer", objective="CTC", entrance="asr.sh")
def test_asr_sh_trains_with_its_own_command(an4, base, tmp_path):
    """As ESPnet's recipes issue it: the base as --init_param, all keys in a file."""
    config = yaml.safe_load((base / "config.yaml").read_text())
    kept = ("frontend_conf", "normalize", "model_conf")
    given = {key: config[key] for key in kept} | {
        **ADAPTATION,
        "max_epoch": 1,
        "encoder": "hra_conformer",
        "encoder_conf": {**BASE_CONFIG["encoder_conf"], **ADAPTATION["encoder_conf"]},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(given))
    command = [sys.executable, "-m", "espnet_hra.bin.python", "-m"]
    command += ["espnet2.bin.asr_train", "--config", tmp_path / "train.yaml"]
    command += ["--token_type", "char", "--token_list", an4["tokens"]]
    command += ["--init_param", base / "valid.loss.best.pth", "--resume", "true"]
    command += ["--ignore_init_mismatch", "false", "--use_preprocessor", "true"]
    command += streams(an4["train"], "train") + streams(an4["dev"], "valid")
    command += ["--output_dir", tmp_path / "exp"]
    subprocess.run(list(map(str, command)), check=True, cwd=tmp_path)
    state = torch.load(tmp_path / "exp" / "latest.pth", weights_only=True)
    assert state and all(key.startswith("encoder.adapter.") for key in state)


def test_espnets_own_decoding_of_a_base_goes_on_to_work(an4, base):
    from espnet2.tasks.asr import ASRTask

    config = yaml.safe_load((base / "config.yaml").read_text())
    config["encoder"] = "hra_conformer"
    config["encoder_conf"]["adapter_conf"] = {"controller_size": 8}
    built = ASRTask.build_model(argparse.Namespace(**config)).eval()
    with torch.no_grad():
        built.encoder(*batch_of(built))
    built.train()
    with pytest.raises(RuntimeError, match="knows nothing of a frozen base"):
        built.encoder(*batch_of(built))


def batch_of(model):
    xs, lens = batch()
    width = model.encoder.embed.conv[0].in_channels
    assert width == 1
    return torch.nn.functional.pad(xs, (0, 80 - DIM)), lens


def test_a_layer_that_comes_later_belongs_to_the_frozen_backbone():
    """ESPnet's models add the one that feeds an intermediate CTC back."""
    changes = {"interctc_layer_idx": [1], "interctc_use_conditioning": True}
    encoder = adapted_encoder("conformer", ["a"], changes=changes).train()
    encoder.conditioning_layer = torch.nn.Linear(7, WIDTH)
    learning = [n for n, p in encoder.named_parameters() if p.requires_grad]
    assert learning and all(name.startswith("adapter.") for name in learning)
    from espnet2.asr.ctc import CTC

    output = encoder(*batch(), ctc=CTC(7, WIDTH).requires_grad_(False))[0]
    loss_of(output[0]).backward()
    assert encoder.conditioning_layer.weight.grad is None


def test_espnets_own_adapter_is_refused_beside_ours(an4, base, tmp_path):
    with pytest.raises(ConfigError, match="use_adapter.*encoder_conf: {adapter: lora}"):
        train(an4, base, tmp_path / "exp", "--use_adapter", "true")
    assert not (tmp_path / "exp" / "config.yaml").exists()


@pytest.mark.parametrize(
    "key, name",
    [
        ("deliberationencoder", "slu"),
        ("promptencoder", "s2t_ctc"),
        ("extra_asr_decoder", "st"),
        ("src_token_list", "mt"),
        ("joint_network_conf", "asr_transducer"),
        ("asr_encoder", "enh_s2t"),
        ("generator", "uasr"),
        ("num_classes", "hubert"),
        ("lm", "lm"),
    ],
)
def test_a_base_of_another_espnet_task_is_refused_by_name(key, name, base, tmp_path):
    config = yaml.safe_load((base / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, key: None}))
    (tmp_path / "valid.loss.best.pth").write_bytes(b"")
    advice = f"train it with `espnet-hra train`.*bin.{name}_train"
    if name not in KINDS:
        advice = "cannot be adapted; models of asr, s2t, s2t_ctc, st, slu, asr_t.* can"
    message = f"of the ESPnet task {name}, which .*{advice}"
    with pytest.raises(BaseModelError, match=message):
        open_base(str(tmp_path)).model_config()


def test_a_gpu_that_is_not_there_is_refused(an4, base, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="--ngpu 1: torch sees no GPU"):
        train(an4, base, tmp_path / "exp", "--ngpu", "1")


# ------------------------------------------------------------------ what is learned


@pytest.mark.parametrize(
    "losses, first",
    [([1.0, 2.0, math.nan, math.nan], 3), ([math.inf] * 5, 1), ([math.nan], 1)],
)
def test_a_loss_that_is_not_a_number_ends_the_training(losses, first):
    with pytest.raises(ConfigError, match=f"from batch {first} of epoch 2 on.*lr"):
        check_finite(losses, 2)


@pytest.mark.parametrize("losses", [[], [1.0], [math.nan, 1.0], [math.inf, 2.0, 1.0]])
def test_one_batch_without_a_loss_does_not(losses):
    check_finite(losses, 1)


def test_a_training_that_has_gone_wrong_is_not_done(an4, base, tmp_path):
    state = torch.load(base / "valid.loss.best.pth", weights_only=True)
    state["ctc.ctc_lo.bias"].fill_(math.nan)
    broken = tmp_path / "base"
    broken.mkdir()
    torch.save(state, broken / "valid.loss.best.pth")
    (broken / "config.yaml").write_text((base / "config.yaml").read_text())
    with pytest.raises(ConfigError, match="the training loss is not a number"):
        train(an4, broken, tmp_path / "exp")
    assert not (tmp_path / "exp" / "checkpoint.pth").exists()


def test_a_rate_that_yaml_reads_as_a_word_is_a_number(an4, base, tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({**ADAPTATION, "max_epoch": 1}))
    path.write_text(path.read_text().replace("lr: 0.01", "lr: 1e-2"))
    assert isinstance(yaml.safe_load(path.read_text())["optim_conf"]["lr"], str)
    words = options(an4, base, tmp_path / "exp")
    words[words.index("--config") + 1] = str(path)
    from espnet_hra.bin import asr_train

    asr_train.main(words)
    saved = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())
    assert saved["optim_conf"]["lr"] == 0.01


def test_a_refused_resume_leaves_everything_as_it_was(model, an4, base, tmp_path):
    def state() -> dict[str, tuple[int, bytes]]:
        return {
            str(p.relative_to(model)): (p.stat().st_mtime_ns, p.read_bytes())
            for p in model.rglob("*")
            if p.is_file()
        }

    before = state()
    conf = {**ADAPTATION["encoder_conf"], "adapter_conf": {"controller_size": 24}}
    with pytest.raises(ConfigError, match="another configuration .*shapes differ") as e:
        train(an4, base, model, "--resume", "true", encoder_conf=conf, max_epoch=2)
    assert "--resume false" in str(e.value) and "\n" not in str(e.value)
    assert state() == before
    earlier = Earlier.read(model)
    assert earlier is not None
    with pytest.raises(ConfigError, match="optimizer has groups of .* and this one of"):
        earlier.check_optimizers([torch.optim.SGD([torch.zeros(1)])])
    checkpoint = model / "checkpoint.pth"
    whole, times = checkpoint.read_bytes(), checkpoint.stat()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    before = state()
    with pytest.raises(BaseModelError, match="checkpoint.pth"):
        train(an4, base, model, "--resume", "true", max_epoch=2)
    assert state() == before
    checkpoint.write_bytes(whole)
    os.utime(checkpoint, ns=(times.st_atime_ns, times.st_mtime_ns))
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(model), ctc_greedy=True)
    assert speech2text(waves(an4)[0], task="male")


# --------------------------------------------------------------------- what is heard


def test_channels_are_refused_by_their_shape(model, an4):
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(model), ctc_greedy=True, task="male"
    )
    wave = np.asarray(waves(an4)[0])
    expected = speech2text(wave)[0][0]
    for fine in (wave[:, None], wave[None], wave.tolist()):
        assert speech2text(np.asarray(fine))[0][0] == expected
    for several in (np.stack([wave] * 2), np.stack([wave] * 2, axis=1)):
        for given in (several, [several, wave], torch.from_numpy(several)):
            with pytest.raises(DataError, match=r"\(2, |, 2\).*one channel"):
                speech2text(given)
    speech2text.ctc_greedy = False
    with pytest.raises(DataError, match="one channel"):
        speech2text(np.stack([wave] * 2))
    assert as_wave(np.zeros((1, 0))).shape == (0,)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_decoding_refuses_recordings_of_another_rate(rate, model, an4, tmp_path):
    path = tmp_path / "one.wav"
    soundfile.write(path, np.asarray(waves(an4)[0]), rate)
    (tmp_path / "wav.scp").write_text(f"utt {path}\n")
    words = ["--asr_train_config", str(model / "config.yaml"), "--task", "male"]
    words += ["--asr_model_file", str(model / "valid.loss.best.pth")]
    words += ["--output_dir", str(tmp_path / "out"), "--ctc_greedy", "true"]
    words += ["--data_path_and_name_and_type", f"{tmp_path / 'wav.scp'},speech,sound"]
    with pytest.raises(SystemExit, match=f"utt has {rate:,} Hz, and the model wants"):
        cli.main(["decode", *words])
    assert not (tmp_path / "out" / "1best_recog").exists()


@pytest.fixture
def archive(an4, tmp_path):
    """AN4's training data in archives, as asr.sh has them with --audio_format wav.ark.

    Their rate is another: 8,000 Hz.
    """
    folder = tmp_path / "arks"
    folder.mkdir()
    for name in ("text", "utt2task"):
        (folder / name).write_text((an4["train"] / name).read_text())
    ids = [line.split()[0] for line in (an4["train"] / "wav.scp").open()]
    entries = []
    with open(folder / "data.ark", "wb") as ark:
        for key, wave in zip(ids, waves(an4)):
            ark.write(f"{key} ".encode())
            entries.append(f"{key} {folder / 'data.ark'}:{ark.tell()}\n")
            held = io.BytesIO()
            soundfile.write(held, np.asarray(wave), 8000, format="WAV")
            ark.write(held.getvalue())
    (folder / "wav.scp").write_text("".join(entries))
    return folder


def test_training_checks_recordings_in_archives(an4, base, archive, tmp_path):
    words = options({**an4, "train": archive}, base, tmp_path / "exp", check_data=True)
    words = [word.replace("speech,sound", "speech,kaldi_ark") for word in words]
    words = [w.replace("kaldi_ark", "sound") if "dev" in w else w for w in words]
    from espnet_hra.bin import asr_train

    with pytest.raises(DataError, match="(?s)train data.*sample rate.*8000 Hz"):
        asr_train.main(words)


def archived(wave, rate: int, folder):
    """A list with one recording, `utt`, in an archive."""
    soundfile.write(folder / "a.wav", np.asarray(wave), rate)
    (folder / "a.ark").write_bytes(b"utt " + (folder / "a.wav").read_bytes())
    (folder / "wav.scp").write_text(f"utt {folder / 'a.ark'}:4\n")
    return folder / "wav.scp"


@pytest.mark.parametrize(
    "rate, form, message",
    [
        (16000, "kaldi_ark", None),
        (8000, "kaldi_ark", "utt has 8,000 Hz, and the model wants 16,000"),
        (16000, "sound", "utt is in an archive .*a.ark:4.*,speech,kaldi_ark"),
    ],
)
def test_recordings_of_archives_have_a_rate_too(
    rate, form, message, model, base, an4, tmp_path
):
    """ESPnet's loops look at none."""
    scp = archived(waves(an4)[0], rate, tmp_path)
    words = ["--asr_train_config", str(model / "config.yaml"), "--task", "male"]
    words += ["--asr_model_file", str(model / "valid.loss.best.pth")]
    words += ["--output_dir", str(tmp_path / "out"), "--ctc_greedy", "true"]
    words += ["--data_path_and_name_and_type", f"{scp},speech,{form}"]
    stream = ("--train_data_path_and_name_and_type", f"{scp},speech,{form}")
    exp = tmp_path / "exp"
    if message is None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["decode", *words, "--num_workers", "0"])
        assert not ended.value.code
        assert (tmp_path / "out" / "1best_recog" / "text").exists()
        return
    with pytest.raises(SystemExit, match=message):
        cli.main(["decode", *words, "--num_workers", "0"])
    assert not (tmp_path / "out" / "1best_recog").exists()
    if form == "sound":
        with pytest.raises(DataError, match=message):
            train(an4, base, exp, *stream, check_data=True)


def test_decoding_refuses_two_channels(model, an4, tmp_path):
    wave = np.asarray(waves(an4)[0])
    soundfile.write(tmp_path / "two.wav", np.stack([wave, wave], axis=1), 16000)
    (tmp_path / "wav.scp").write_text(f"utt {tmp_path / 'two.wav'}\n")
    words = ["--asr_train_config", str(model / "config.yaml"), "--task", "male"]
    words += ["--asr_model_file", str(model / "valid.loss.best.pth")]
    words += ["--output_dir", str(tmp_path / "out"), "--ctc_greedy", "true"]
    words += ["--data_path_and_name_and_type", f"{tmp_path / 'wav.scp'},speech,sound"]
    with pytest.raises(SystemExit, match="expected one channel"):
        cli.main(["decode", *words, "--num_workers", "0"])


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".aiff"])
def test_a_file_cut_short_is_no_shorter_recording(suffix, an4, tmp_path):
    path = tmp_path / f"cut{suffix}"
    soundfile.write(path, np.asarray(waves(an4)[0]), 16000)
    assert read_audio(path)[1] == 16000
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    with pytest.raises(AudioError, match="cut short|cannot read"):
        read_audio(path)
    with pytest.raises(AudioError):
        convert(Conversion(str(path), str(tmp_path / "target.flac")))
    assert not (tmp_path / "target.flac").exists()


@pytest.mark.shows(encoder="conformer", objective="CTC", entrance="transcribe")
def test_a_file_shorter_than_a_window_is_an_empty_text(model, an4, tmp_path, capsys):
    soundfile.write(tmp_path / "short.wav", np.full(100, 0.1), 16000)
    soundfile.write(tmp_path / "long.wav", np.asarray(waves(an4)[0]), 16000)
    files = [str(tmp_path / name) for name in ("short.wav", "long.wav", "short.wav")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["transcribe", *files, "--model", str(model), "--task", "male"])
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == files
    assert lines[0].endswith("\t") and lines[2].endswith("\t")


# -------------------------------------------------------------------- raw errors


def test_greedy_decoding_of_a_model_without_ctc_is_refused(an4, tmp_path):
    config = {
        **BASE_CONFIG,
        "model_conf": {"ctc_weight": 0.0},
        "decoder": "transformer",
        "decoder_conf": {"num_blocks": 1, "linear_units": 16, "attention_heads": 2},
    }
    folder = make_base(tmp_path / "attention", an4["tokens"], config)
    with pytest.raises(ConfigError, match="has no CTC .*beam search"):
        espnet_hra.Speech2Text.from_pretrained(str(folder), ctc_greedy=True)


def test_greedy_decoding_of_several_speakers_is_refused(tmp_path):
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("<blank>\n<unk>\nA\nB\n<sos/eos>\n")
    config = {**COMMON, **PUBLISHED["two_speakers"]}
    folder = make_base(tmp_path / "two", tokens, config)
    with pytest.raises(ConfigError, match="several speakers at once .PIT.*beam search"):
        espnet_hra.Speech2Text.from_pretrained(str(folder), ctc_greedy=True)


@pytest.mark.parametrize("count", ["num_ref", "num_inf"])
def test_greedy_decoding_of_several_speakers_at_once_is_refused(count, base):
    """A model of PIT writes several texts, and greedy CTC would give one for all."""
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(base), ctc_greedy=True)
    model = speech2text.asr_model
    check_greedy(model)
    setattr(model, count, 2)
    with pytest.raises(ConfigError, match="several speakers at once .PIT.*beam search"):
        check_greedy(model)


@pytest.mark.parametrize(
    "seconds, warned", [((59, 60), 0), ((61, 30), 1), ((61, 600), 2)]
)
def test_long_utterances_are_told_before_memory_runs_out(
    seconds, warned, tmp_path, caplog
):
    noise = np.random.default_rng(0).normal(0, 0.1, 601 * 1000)
    for i, length in enumerate(seconds):
        soundfile.write(tmp_path / f"u{i}.wav", noise[: length * 1000], 1000)
    lines = [f"u{i} {tmp_path / f'u{i}.wav'}\n" for i in range(len(seconds))]
    (tmp_path / "wav.scp").write_text("".join(lines))
    requirements = Requirements(sample_rate=1000)
    assert check(tmp_path / "wav.scp", requirements=requirements, jobs=1).ok
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(told) == bool(warned)
    if warned == 1:
        assert "1 utterance longer than 60 s, the longest u0 with 61 s" in told[0]
    if warned == 2:
        assert "2 utterances longer than 60 s, the longest u1 with 600 s" in told[0]


def test_memory_that_runs_out_on_a_processor_is_known():
    assert out_of_memory(
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't "
            "allocate memory: you tried to allocate 400000000000 bytes."
        )
    )
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("size mismatch"))


def test_an_utterance_that_does_not_fit_is_named_by_its_length(model, an4, monkeypatch):
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(model), ctc_greedy=True, task="male"
    )
    wave = np.asarray(waves(an4)[0])

    def full(batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(speech2text, "_encode", full)
    with pytest.raises(DataError, match=f"of {len(wave):,} samples does not fit"):
        speech2text([wave, wave])


def test_a_base_that_is_gone_is_named_with_the_remedy(model, base, tmp_path):
    moved = tmp_path / "exp"
    moved.mkdir()
    for name in ("valid.loss.best.pth", "config.yaml"):
        (moved / name).write_bytes((model / name).read_bytes())
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["pretrained_model"] = "/nowhere/base"
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(BaseModelError, match="(?s)/nowhere/base: no such.*--pretr"):
        espnet_hra.Speech2Text.from_pretrained(str(moved))
    found = espnet_hra.Speech2Text.from_pretrained(
        str(moved), pretrained_model=str(base), ctc_greedy=True
    )
    assert set(found.tasks) == {"female", "male"}
