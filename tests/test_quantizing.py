"""Decoding with a quantised base: adapters stay exact, results are close."""

import numpy as np
import pytest
import torch
from adaptations import make_adaptation, waves
from conftest import BASE_CONFIG, make_base

import espnet_hra
from espnet_hra import cli
from espnet_hra.errors import ConfigError, TaskError

TASKS = ("female", "male")

#: Methods whose tasks work on rounded weights.
ABLE = {
    "hra": ("hra", {}),
    "hra_ligru": ("hra", {"controller": "ligru", "head": "ffn", "head_size": 8}),
    "hra_ctc": ("hra", {"ctc": "task"}),
    "hra_decoder": ("hra", {"decoder": True}),
    "hra_shared": ("hra", {"decoder": True, "shared_rank": 2}),
    "residual": ("residual", {"rank": 2}),
    "lora": ("lora", {"rank": 2, "alpha": 3}),
    "shared": ("lora", {"rank": 2, "alpha": 3, "shared_rank": 2}),
    "parallel": ("residual", {"rank": 2, "placement": "parallel"}),
    "lily": ("lily", {"rank": 2}),
    "road": ("road", {"group_size": 4}),
    "prompt": ("prompt", {"prompt_size": 1}),
    "hra_prompt": ("hra", {"prompt_size": 3, "decoder": True}),
    "one": ("hra", {"one_for_all": True}),
    "none": ("none", {}),
}
#: And those whose tasks change the weights themselves.
UNABLE = {
    "bitfit": ("bitfit", {}),
    "full": ("full", {}),
    "dora": ("lora", {"rank": 2, "alpha": 3, "dora": True}),
}


@pytest.fixture(scope="module")
def base(an4, tmp_path_factory):
    config = {
        **BASE_CONFIG,
        "decoder": "transformer",
        "decoder_conf": {"attention_heads": 2, "linear_units": 32, "num_blocks": 1},
        "model_conf": {"ctc_weight": 0.5},
    }
    return make_base(tmp_path_factory.mktemp("hybrid"), an4["tokens"], config)


@pytest.fixture(scope="module")
def models(base, tmp_path_factory):
    """Adaptations by the names above, made when they are asked for."""
    folder, made = tmp_path_factory.mktemp("quantised"), {}

    def get(label: str):
        if label not in made:
            adapter, conf = {**ABLE, **UNABLE}[label]
            if adapter in ("lora", "road"):
                pytest.importorskip("peft")
            made[label] = make_adaptation(folder / label, base, TASKS, adapter, **conf)
        return str(made[label])

    return get


@pytest.fixture(scope="module")
def wave(an4):
    return next(iter(waves(an4["test"]).values()))


def opened(model: str, quantize: bool = True, **kwargs):
    return espnet_hra.Speech2Text.from_pretrained(
        model, quantize_asr_model=quantize, **kwargs
    )


def scores(speech2text, wave, task) -> torch.Tensor:
    """Logarithms of CTC's probabilities, (1, frames, tokens)."""
    with torch.no_grad(), speech2text.asr_model.encoder.use_task(task):
        encoded, _ = speech2text._encode([torch.as_tensor(wave)])
        return speech2text.asr_model.ctc.log_softmax(encoded)


def quantised(module: torch.nn.Module) -> list[str]:
    found = module.named_modules()
    return [name for name, m in found if "quantized" in type(m).__module__]


@pytest.mark.shows(
    encoder="conformer", objective="CTC", entrance="--quantize_asr_model"
)
@pytest.mark.parametrize("label", ABLE)
def test_the_adapter_stays_exact_and_results_are_close(label, models, wave):
    exact = opened(models(label), quantize=False)
    rounded = opened(models(label))
    encoder = rounded.asr_model.encoder
    assert len(quantised(encoder)) >= 30
    assert not quantised(encoder.adapter)
    wanted = exact.asr_model.encoder.adapter.state_dict()
    found = encoder.adapter.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    plain = scores(exact, wave, None)
    for task in (None, *TASKS):
        near, far = scores(rounded, wave, task), scores(exact, wave, task)
        error = (near - far).norm() / far.norm()
        assert 0 < error < 0.02
        if task is not None and label != "none":
            assert (near - plain).norm() / plain.norm() > 4 * error


@pytest.mark.parametrize("label", UNABLE)
def test_methods_that_change_weights_are_refused(label, models):
    adapter = UNABLE[label][0]
    with pytest.raises(
        ConfigError, match=f"adapter: {adapter}.* change the base's own"
    ):
        opened(models(label))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"device": "cuda"}, "device cuda: torch computes .* on the CPU"),
        ({"dtype": "float64"}, "dtype float64: torch computes .* in float32: leave"),
        ({"quantize_modules": ["LSTM"]}, "nothing of this model was quantised"),
    ],
)
def test_what_torch_cannot_quantise_is_refused(kwargs, message, models):
    with pytest.raises(ConfigError, match=message):
        opened(models("hra"), **kwargs)


def test_a_quantised_model_takes_and_gives_task_files(models, base, wave, tmp_path):
    exact = opened(models("hra"), quantize=False)
    rounded = opened(models("hra"))
    encoder = exact.asr_model.encoder
    encoder.save_task("male", tmp_path / "male.safetensors")
    wanted = scores(rounded, wave, "male")
    rounded.load_task(tmp_path / "male.safetensors", replace=True)
    assert torch.equal(scores(rounded, wave, "male"), wanted)
    rounded.asr_model.encoder.save_task("female", tmp_path / "female.safetensors")
    encoder.load_task(tmp_path / "female.safetensors", replace=True)
    # Tasks beside the model, which are fetched when they are used:
    folder = make_adaptation(tmp_path / "exp", base, ())
    other = opened(str(folder), quantize=False).asr_model.encoder
    other.add_task("new")
    (folder / "tasks").mkdir()
    other.save_task("new", folder / "tasks" / "new.safetensors")
    with_store = opened(str(folder))
    assert with_store.tasks == ("new",)
    with_store.set_task("new")
    assert torch.equal(
        scores(with_store, wave, "new"), scores(with_store, wave, None)
    )  # a new task is the backbone
    with torch.no_grad():
        next(encoder.encoders.parameters()).add_(1)
    encoder.save_task("male", tmp_path / "male.safetensors")
    with pytest.raises(TaskError, match="was trained on another backbone"):
        rounded.load_task(tmp_path / "male.safetensors", replace=True)


@pytest.mark.parametrize("greedy", ["true", "false"])
def test_decode_with_a_quantised_model(greedy, models, an4, wave, tmp_path):
    model, data = models("hra"), an4["test"]
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["decode", "--model_tag", model, "--quantize_asr_model", "true"]
            + ["--ctc_greedy", greedy, "--beam_size", "2", "--maxlenratio", "-5"]
            + ["--output_dir", str(tmp_path), "--task", "male", "--num_workers", "0"]
            + ["--data_path_and_name_and_type", f"{data / 'wav.scp'},speech,sound"]
        )
    assert not ended.value.code
    lines = (tmp_path / "1best_recog" / "token").read_text().splitlines()
    said = {key: tokens for key, *tokens in map(str.split, lines)}
    assert list(said) == list(waves(data))
    speech2text = opened(
        model,
        task="male",
        ctc_greedy=greedy == "true",
        beam_size=2,
        maxlenratio=-5.0,
    )
    assert said[next(iter(said))] == speech2text(np.asarray(wave))[0][1]
