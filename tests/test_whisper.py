"""ESPnet's Whisper, adapted: no weights are fetched, tasks have languages."""

import pickle
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import make_base
from test_training import train, waves

import espnet_hra
from espnet_hra.errors import BaseModelError, ConfigError, NoRoomError
from espnet_hra.espnet import whisper_decoding as decoding
from espnet_hra.espnet.whisper import without_weights
from espnet_hra.tasks import file as taskfile
from espnet_hra.whisper import tokens
from espnet_hra.whisper.sizes import NAMED, Sizes, sizes_of, written

whisper = pytest.importorskip("whisper")

#: A Whisper of two layers; its vocabulary is the real one.
TOY = Sizes(80, 1500, 32, 2, 2, 51865, 448, 32, 2, 2)

STOCK = {
    "input_size": 1,
    "frontend": None,
    "specaug": None,
    "normalize": None,
    "token_type": "whisper_multilingual",
    "bpemodel": "whisper_multilingual",
    "encoder": "whisper",
    "encoder_conf": {"whisper_model": written(TOY)},
    "decoder": "whisper",
    "decoder_conf": {"whisper_model": written(TOY)},
    "preprocessor_conf": {"whisper_language": "fr", "whisper_task": "transcribe"},
    "model_conf": {
        "ctc_weight": 0.0,
        "lsm_weight": 0.1,
        "sym_sos": "<|startoftranscript|>",
        "sym_eos": "<|endoftext|>",
    },
}


@pytest.fixture(scope="module")
def no_network(request):
    """No source of weights can be reached, and none is asked."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args, **kwargs):
            raise AssertionError("weights were fetched")

        patch.setattr("urllib.request.urlopen", refuse)
        yield


@pytest.fixture(scope="module")
def stock(tmp_path_factory, no_network):
    """Experiment folder of a stock ESPnet training on Whisper."""
    folder = tmp_path_factory.mktemp("stock")
    listed = folder / "tokens.txt"
    listed.write_text("".join(f"{token}\n" for token in tokens.token_list(TOY)))
    with without_weights(STOCK):
        return make_base(folder / "exp", listed, STOCK)


@pytest.fixture(scope="module")
def adapted(an4, stock, tmp_path_factory):
    """An adaptation of it to two tasks."""
    exp = tmp_path_factory.mktemp("adapted") / "exp"
    return train(an4, stock, exp, max_epoch=2, optim_conf={"lr": 0.05})


@pytest.mark.shows(encoder="whisper", objective="attention", entrance="train")
def test_an_adaptation_trains_the_adapter_and_keeps_the_base(adapted, stock):
    state = torch.load(adapted / "valid.loss.best.pth", weights_only=True)
    assert all(key.startswith("encoder.adapter.") for key in state)
    assert all(state[f"encoder.adapter.heads.{t}"].any() for t in ("female", "male"))
    saved = yaml.safe_load((adapted / "config.yaml").read_text())
    assert saved["encoder"] == "hra_whisper"
    assert set(saved["base_fingerprint"]) == {"encoder", "decoder"}


@pytest.mark.shows(encoder="whisper", objective="attention", entrance="Speech2Text")
def test_greedy_decoding_without_a_task_is_that_of_the_base(adapted, stock, an4):
    wave = np.asarray(waves(an4)[0])
    plain = espnet_hra.Speech2Text.from_pretrained(str(stock))
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(adapted))
    speech2text.set_task(None)
    assert speech2text(wave)[0][2] == plain(wave)[0][2]
    speech2text.set_task("male")
    assert speech2text(wave)[0][2] != plain(wave)[0][2]


def test_a_task_whose_numbers_are_spelled_has_no_digits(an4, stock, tmp_path):
    """The other task of the batch may write what it likes."""
    exp = train(
        *(an4, stock, tmp_path / "exp"), max_epoch=1, spelled_numbers='["male"]'
    )
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(exp))
    vocabulary = speech2text.converter.tokenizer.tokenizer
    digits = ["4", "Ġ4", "Ġ2019", "Â²", "Ġ50"]
    masks = speech2text.whisper._without_of(["male", "female", "male"])
    numbers = vocabulary.convert_tokens_to_ids(digits)
    assert masks[0, numbers].all() and masks[2, numbers].all()
    assert not masks[1, numbers].any()
    words = vocabulary.convert_tokens_to_ids(["Ġfour", "ĠIV", "一", "Ġ!"])
    assert not masks[:, words].any()
    wave = np.asarray(waves(an4)[0])
    # Digits alone would be read if nothing forbade them.
    bias = torch.zeros(51865)
    bias[vocabulary.convert_tokens_to_ids(["4"])] = 1e4
    step = decoding.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "step", lambda *a: step(*a) + bias)
        assert not any(map(str.isdigit, speech2text(wave, task="male")[0][0]))
        assert "4" in speech2text(wave, task="female")[0][0]


def test_one_batch_of_several_tasks_reads_as_one_after_the_other(adapted, an4):
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(adapted))
    recordings = [np.asarray(wave) for wave in waves(an4)[:2]]
    assert len({len(wave) for wave in recordings}) > 1
    names = ["male", "female"]
    together = speech2text(recordings, task=names)
    for wave, name, nbest in zip(recordings, names, together):
        alone = speech2text(wave, task=name)[0]
        assert nbest[0][2] == alone[2]
        assert nbest[0][3].score == pytest.approx(alone[3].score, rel=1e-4)


@pytest.mark.parametrize("beam", [1, 2])
def test_a_batch_that_memory_does_not_hold_is_halved(beam, adapted, an4, monkeypatch):
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(adapted), beam_size=beam)
    recordings = [np.asarray(wave) for wave in waves(an4)[:3]]
    length = min(map(len, recordings))
    recordings = [wave[:length] for wave in recordings]  # padding changes Whisper's
    names = ["male", "female", "male"]
    expected = [nbest[0][2] for nbest in speech2text(recordings, task=names)]
    encode, most = speech2text.encode_each, 1

    def limited(batch):
        if len(batch) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return encode(batch)

    monkeypatch.setattr(speech2text, "encode_each", limited)
    found = speech2text(recordings, task=names)
    assert [nbest[0][2] for nbest in found] == expected
    most = 0
    with pytest.raises(NoRoomError, match=f"of {length:,} samples does not fit"):
        speech2text(recordings, task=names)


def test_greedy_decoding_with_kept_keys_is_espnets_search_with_a_beam_of_one(
    stock, an4
):
    wave = np.asarray(waves(an4)[0])
    plain = espnet_hra.Speech2Text.from_pretrained(str(stock), beam_size=1)
    (text, words, ids, hypothesis), *_ = plain(wave)[0:1]
    memory, _ = plain._encode([torch.as_tensor(wave)])
    prefix = list(hypothesis.yseq[:4].tolist())
    assert plain.converter.tokenizer.tokenizer.convert_ids_to_tokens(prefix) == [
        "<|startoftranscript|>",
        "<|fr|>",
        "<|transcribe|>",
        "<|notimestamps|>",
    ]
    decoder, forbidden = plain.asr_model.decoder, plain._whisper._without
    for token in ids:
        with torch.no_grad():
            scores, _ = decoder.forward_one_step(torch.tensor([prefix]), None, memory)
        assert int(scores[0].masked_fill(forbidden, -torch.inf).argmax()) == token
        prefix.append(token)


@pytest.fixture(scope="module", params=["hra", "lora"])
def both_adapted(request, an4, stock, tmp_path_factory):
    """An adaptation of encoder and decoder, by a method that mixes tasks or one not."""
    exp = tmp_path_factory.mktemp("both") / "exp"
    own = {"matrices": "all", "decoder": True}
    if request.param == "hra":
        own = {"controller_size": 8, "decoder": True}
    conf = {
        "adapter": request.param,
        "adapter_conf": own,
        "tasks": ["female", "male"],
    }
    return train(
        an4, stock, exp, max_epoch=2, optim_conf={"lr": 0.1}, encoder_conf=conf
    )


def test_greedy_decoding_reads_with_the_tasks_decoder(both_adapted, an4):
    """With kept keys, what ESPnet's decoder says without, under the same task."""
    wave = np.asarray(waves(an4)[0])
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(both_adapted), task="male", beam_size=1
    )
    ids, hypothesis = speech2text(wave)[0][2:]
    prefix = hypothesis.yseq[:4].tolist()
    model, forbidden = speech2text.asr_model, speech2text._whisper._without
    differs = False
    with torch.no_grad():
        memory, _ = speech2text._encode([torch.as_tensor(wave)])
        for token in ids:
            given = torch.tensor([prefix]), None, memory
            scores, _ = model.decoder.forward_one_step(*given)
            assert int(scores[0].masked_fill(forbidden, -torch.inf).argmax()) == token
            with model.encoder.use_task(None):
                plain, _ = model.decoder.forward_one_step(*given)
            differs = differs or not torch.allclose(plain, scores, atol=1e-4)
            prefix.append(token)
    assert ids and differs


@pytest.mark.slow
@pytest.mark.parametrize("beam", [1, 2])
def test_tasks_of_a_batch_keep_their_decoders(both_adapted, an4, beam):
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(both_adapted), beam_size=beam, maxlenratio=-5.0
    )
    first, second = (np.asarray(wave) for wave in waves(an4)[:2])
    recordings = [first, second[:9000], first[:7000]]
    names = ["male", "female", "female"]
    together = speech2text(recordings, task=names)
    for wave, name, nbest in zip(recordings, names, together):
        alone = speech2text(wave, task=name)[0]
        assert nbest[0][2] == alone[2]
        assert float(nbest[0][3].score) == pytest.approx(
            float(alone[3].score), rel=1e-4
        )


def test_a_batch_of_which_only_some_languages_are_known(both_adapted, an4):
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(both_adapted))
    speech2text._whisper._usual = None  # as a base that was trained on all languages
    recordings = [torch.as_tensor(np.asarray(wave)) for wave in waves(an4)[:2]]
    with speech2text.asr_model.encoder.use_task(["male", "female"]):
        (first,), (second,) = speech2text._whisper.read(recordings, ["de", ""])
    vocabulary = speech2text._whisper._vocabulary
    told, heard = vocabulary.convert_ids_to_tokens(
        [int(nbest[3].yseq[1]) for nbest in (first, second)]
    )
    assert told == "<|de|>"
    assert heard.strip("<|>") in tokens.codes(TOY.num_languages)


@pytest.mark.slow
def test_the_languages_that_a_whisper_hears(both_adapted, stock, an4):
    recordings = [np.asarray(wave) for wave in waves(an4)[:2]]
    plain = espnet_hra.Speech2Text.from_pretrained(str(stock))
    heard = plain.hear_languages(recordings)
    assert heard == [plain.hear_languages([wave])[0] for wave in recordings]
    memory, _ = plain._encode([torch.as_tensor(recordings[0])])
    vocabulary = plain._whisper._vocabulary
    codes = tokens.codes(TOY.num_languages)
    start = vocabulary.convert_tokens_to_ids(["<|startoftranscript|>"])
    with torch.no_grad():
        scores, _ = plain.asr_model.decoder.forward_one_step(
            torch.tensor([start]), None, memory
        )
    numbers = vocabulary.convert_tokens_to_ids([f"<|{code}|>" for code in codes])
    assert heard[0] == codes[int(scores[0, numbers].argmax())]
    # A task knows one language; what is heard is heard without it.
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(both_adapted), task="male")
    with_task = speech2text.hear_languages(recordings)
    speech2text.set_task(None)
    assert with_task == speech2text.hear_languages(recordings)


def test_beam_search_has_the_language_of_the_task(adapted, an4):
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(adapted), beam_size=2, maxlenratio=-3.0, task="male", language="german"
    )
    (_, _, ids, hypothesis), *_ = speech2text(np.asarray(waves(an4)[0]))
    start = speech2text.converter.tokenizer.tokenizer.convert_ids_to_tokens(
        hypothesis.yseq[:2].tolist()
    )
    assert start == ["<|startoftranscript|>", "<|de|>"]


@pytest.mark.slow
@pytest.mark.shows(encoder="whisper", objective="attention", entrance="pack")
def test_a_pack_is_whole_without_the_experiments(adapted, stock, an4, tmp_path):
    from espnet_hra.commands import pack

    path = tmp_path / "base.zip"
    pack.main(["--model", str(adapted), "--out", str(path), "--tasks", "all"])
    wave = np.asarray(waves(an4)[0])
    expected = espnet_hra.Speech2Text.from_pretrained(str(adapted), task="male")(wave)
    away = tmp_path / "away"
    stock.rename(away)
    try:
        opened = espnet_hra.Speech2Text.from_pretrained(str(path), task="male")
        assert opened(wave)[0][2] == expected[0][2]
        with pytest.raises(BaseModelError, match="--pretrained_model"):
            espnet_hra.Speech2Text.from_pretrained(str(adapted))
    finally:
        away.rename(stock)


# ------------------------------------------------------------------ words and prompts


@pytest.fixture(scope="module")
def vocabulary():
    return tokens.Vocabulary(multilingual=True)


def test_every_text_comes_back_from_its_tokens(vocabulary):
    for text in (
        " Hello, wörld!",
        "привет  мир",
        "日本語 'n' naïve",
        "",
        "\ttab\nline",
    ):
        words = vocabulary.tokenize(text)
        assert vocabulary.convert_tokens_to_string(words) == text
        ids = vocabulary.convert_tokens_to_ids(words)
        assert vocabulary.convert_ids_to_tokens(ids) == words
        assert ids == whisper.tokenizer.get_tokenizer(True).encode(text)


def test_tokens_have_the_numbers_of_espnets_experiments(vocabulary):
    """Timestamps come last, behind what an experiment has added; ESPnet adds both."""
    known = tokens.token_list(TOY)
    assert len(known) == len(set(known)) == 51865
    for token, number in (
        ("<|endoftext|>", 50257),
        ("<|startoftranscript|>", 50258),
        ("<|fr|>", 50265),
        ("<|notimestamps|>", 50363),
        ("<|0.00|>", 50364),
        ("<|30.00|>", 51864),
    ):
        assert known[number] == token
    added = tokens.Vocabulary(multilingual=True)
    added.add_tokens(["<mine>"])
    added.add_special_tokens({"extra_special_tokens": ["<|0.00|>"]})
    assert added.convert_tokens_to_ids(["<mine>", "<|0.00|>"]) == [50364, 50365]
    assert added.tokenize("a<mine>b") == ["a", "<mine>", "b"]
    again = pickle.loads(pickle.dumps(added))
    assert again.convert_tokens_to_ids("<mine>") == 50364


def test_english_whispers_have_their_own_vocabulary():
    known = tokens.token_list(NAMED["tiny.en"])
    assert len(known) == len(set(known)) == 51864
    assert known[50256] == "<|endoftext|>" and known[50257] == "<|startoftranscript|>"
    assert tokens.prompt(tokens.Vocabulary(False), None) == (50257, 50362)


def test_languages_are_codes_regions_or_names():
    assert tokens.code_of("fr-CA") == tokens.code_of("French") == "fr"
    with pytest.raises(
        ConfigError, match="'klingon': Whisper has no token.*en, zh, de"
    ):
        tokens.code_of("klingon")
    assert tokens.code_of("yue", 100) == "yue"
    with pytest.raises(ConfigError, match="no token for it"):
        tokens.code_of("yue")  # before large-v3


def test_a_loop_is_cut_to_its_phrase():
    assert decoding.repeated([1, 2, 3] * 4) == 9
    assert decoding.repeated([9, *[5] * 12]) == 11
    assert decoding.repeated([5] * 4) == 0  # "no no no no" may have been said
    assert decoding.repeated([1, 2, 3, 4] * 3) == 0
    assert decoding.repeated([]) == 0


def test_long_recordings_are_cut_where_it_is_quiet():
    rate = 16_000
    wave = torch.ones(50 * rate)
    wave[27 * rate : 28 * rate] = 0
    first, second = decoding.windows(wave, 30 * rate, rate)
    assert 27 * rate <= len(first) <= 28 * rate
    assert torch.equal(torch.cat([first, second]), wave)
    (whole,) = decoding.windows(wave[: 30 * rate], 30 * rate, rate)
    assert len(whole) == 30 * rate


# ---------------------------------------------------------------------- training


def prompts_of(config, text, task=None):
    """Token numbers that the decoder is trained on."""
    from espnet_hra.espnet.task import HRATask

    args = HRATask.get_parser().parse_args(["--output_dir", "unused"])
    vars(args).update({**STOCK, "token_list": tokens.token_list(TOY), **config})
    data = {"text": text, **({"utt2task": task} if task else {})}
    made = HRATask.build_preprocess_fn(args, train=True)("u", data)
    vocabulary = tokens.Vocabulary(True)
    vocabulary.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(1501)])
    return vocabulary.convert_ids_to_tokens(made["text"].tolist())


def test_the_prompt_has_the_language_of_the_task():
    languages = {"a": "Russian", "b": "it"}
    unknown = {"preprocessor_conf": {"whisper_language": None}, "text_prefix": " "}
    config = {**unknown, "languages": languages}
    rest = ["<|transcribe|>", "<|notimestamps|>", "Ġhello"]
    assert prompts_of(config, "hello", "a") == ["<|ru|>", *rest]
    assert prompts_of(config, "hello", "b") == ["<|it|>", *rest]
    assert prompts_of({**unknown, "languages": {"a": "ru"}}, "hello")[0] == "<|ru|>"
    # An experiment of ESPnet's goes on as it was trained.
    assert prompts_of({}, "hello", "a") == ["<|fr|>", *rest[:2], "he", "llo"]


def test_a_task_without_a_language_is_told(an4, stock, tmp_path):
    unknown = {"whisper_language": None}
    message = 'told the language of female.*--languages \'{"female": "fr"}\''
    with pytest.raises(ConfigError, match=message):
        train(
            an4,
            stock,
            tmp_path / "exp",
            preprocessor_conf=unknown,
            languages={"male": "en"},
        )


def test_languages_are_refused_where_no_model_is_told_one(an4, base, tmp_path):
    with pytest.raises(ConfigError, match="only a multilingual Whisper.*leave lang"):
        train(an4, base, tmp_path / "exp", languages={"male": "en"})
    with pytest.raises(ConfigError, match="only Whisper and models of"):
        espnet_hra.Speech2Text.from_pretrained(str(base), language="en")


# ------------------------------------------------------------------- the encoder


def encoder_of(**conf):
    from espnet_hra.espnet.whisper import WhisperEncoder

    torch.manual_seed(0)
    return WhisperEncoder(whisper_model=written(TOY), **conf).eval()


def test_silence_follows_the_longest_of_a_batch_and_counts_for_none():
    wave = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([8000, 6000])
    with torch.no_grad():
        padded, frames, _ = encoder_of(pad_seconds=0.5)(wave, lengths)
        by_hand = torch.nn.functional.pad(wave, (0, 8000))
        expected, _, _ = encoder_of()(by_hand, lengths)
    assert torch.equal(padded, expected)
    assert frames.tolist() == [25, 19]


def test_a_large_v3_has_its_own_number_of_mel_bands():
    sizes = Sizes(128, 1500, 32, 2, 1, 51866, 448, 32, 2, 1)
    assert sizes_of(written(sizes)) == sizes
    from espnet_hra.espnet.whisper import WhisperEncoder

    encoder = WhisperEncoder(whisper_model=written(sizes))
    assert encoder(torch.randn(1, 4000), torch.tensor([4000]))[0].size(-1) == 32


def test_sizes_that_are_none_are_refused():
    with pytest.raises(
        BaseModelError, match="no such Whisper; known are tiny, tiny.en"
    ):
        sizes_of("huge")
    with pytest.raises(BaseModelError, match="not the sizes of a Whisper"):
        sizes_of("n_mels=80,n_audio_ctx=1500")


def test_without_openai_whisper_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "whisper", None)
    with pytest.raises(BaseModelError, match=r"pip install 'espnet-hra\[whisper\]'"):
        encoder_of()


# ------------------------------------------------------------------------- commands


def decoded(exp, an4, folder, *more):
    """Texts of the test set by our program for decoding."""
    from espnet_hra.bin import asr_inference

    (model,) = exp.glob("valid.loss.best.pth")
    cmd = ["--asr_train_config", str(exp / "config.yaml"), "--asr_model_file"]
    cmd += [str(model), "--output_dir", str(folder), "--ngpu", "0", "--beam_size", "1"]
    cmd += ["--data_path_and_name_and_type", f"{an4['test']}/wav.scp,speech,sound"]
    asr_inference.main([*cmd, *more])
    lines = (folder / "1best_recog" / "token_int").read_text().splitlines()
    return dict(line.partition(" ")[::2] for line in lines)


@pytest.mark.shows(encoder="whisper", objective="attention", entrance="decode")
def test_decode_takes_tasks_and_languages_of_each_utterance(adapted, an4, tmp_path):
    names = dict(
        line.split() for line in (an4["test"] / "utt2task").read_text().splitlines()
    )
    (tmp_path / "utt2lang").write_text("".join(f"{u} {'en'}\n" for u in names))
    stream = "--data_path_and_name_and_type"
    found = decoded(
        adapted,
        an4,
        tmp_path / "mixed",
        *(stream, f"{an4['test']}/utt2task,utt2task,text"),
        *(stream, f"{tmp_path}/utt2lang,utt2lang,text"),
        *("--batch_size", "2"),
    )
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(adapted), language="en", beam_size=1
    )
    longest = max(map(len, waves(an4, "test")))
    for name, wave in zip(sorted(names), waves(an4, "test")):
        wave = np.pad(wave, (0, longest - len(wave)))  # as in the batch
        ids = speech2text(wave, task=names[name])[0][2]
        assert found[name] == " ".join(map(str, ids))


@pytest.mark.shows(encoder="whisper", objective="attention", entrance="transcribe")
def test_transcribe_reads_with_whisper_unless_told_otherwise(adapted, an4, capsys):
    from espnet_hra.commands import transcribe

    wav = (an4["test"] / "wav.scp").read_text().split()[1]
    args = [wav, "--model", str(adapted), "--task", "male"]
    assert transcribe.main([*args, "--language", "fr"]) == 0
    said = capsys.readouterr().out
    assert transcribe.main(args) == 0  # the base's own language is French
    assert capsys.readouterr().out == said
    with pytest.raises(ConfigError, match="this model has no CTC"):
        transcribe.main([*args, "--ctc_greedy", "true"])


def test_params_counts_the_decoder_as_frozen(adapted, stock, capsys):
    from espnet_hra.commands import params

    params.main([str(adapted / "config.yaml")])
    state = torch.load(stock / "valid.loss.best.pth", weights_only=True)
    buffers = ("encoder.encoders.positional_embedding",)
    frozen = sum(t.numel() for key, t in state.items() if key not in buffers)
    assert f"{frozen:,}    100.000 %" in capsys.readouterr().out


@pytest.mark.slow
def test_a_tasks_language_goes_with_its_file(an4, stock, tmp_path):
    """To another model that was not trained on it."""
    from espnet_hra.commands import tasks

    languages = {"female": "de", "male": "it"}
    exp = train(an4, stock, tmp_path / "exp", max_epoch=1, languages=languages, seed=2)
    out = tmp_path / "male.safetensors"
    tasks.main(["export", "male", "--model", str(exp), "--out", str(out)])
    assert taskfile.describe(out)["languages"] == ["it"]
    config = yaml.safe_load((exp / "config.yaml").read_text())
    config["languages"] = {}
    config["encoder_conf"]["tasks"].remove("male")
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    for path in exp.glob("*.pth"):
        if path.name != "checkpoint.pth":
            state = torch.load(path, weights_only=True)
            state.pop("encoder.adapter.heads.male", None)  # links lead to one file
            torch.save(state, path)
    tasks.main(["import", str(out), "--model", str(exp)])
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(exp), task="male")
    (_, _, _, hypothesis), *_ = speech2text(np.asarray(waves(an4)[0]))
    start = speech2text.converter.tokenizer.tokenizer.convert_ids_to_tokens(
        hypothesis.yseq[:2].tolist()
    )
    assert start == ["<|startoftranscript|>", "<|it|>"]
