"""Streaming: an utterance that arrives in chunks, with a task."""

import numpy as np
import pytest
import torch
from conftest import BASE_CONFIG, make_base
from test_training import train, waves

import espnet_hra
from espnet_hra import TaskError
from espnet_hra.errors import ConfigError, DataError

ENCODER = {
    **{"output_size": 32, "attention_heads": 2, "linear_units": 48, "num_blocks": 3},
    **{"block_size": 8, "hop_size": 4, "look_ahead": 2, "cnn_module_kernel": 3},
    **{"input_layer": "conv2d", "macaron_style": True},
}


@pytest.fixture(scope="module", params=[1.0, 0.3], ids=["ctc", "hybrid"])
def model(request, an4, tmp_path_factory):
    """A streaming base, adapted to two tasks."""
    config = {
        **BASE_CONFIG,
        "normalize": None,
        "encoder": "contextual_block_conformer",
        "encoder_conf": ENCODER,
        "model_conf": {"ctc_weight": request.param},
    }
    if request.param < 1:
        small = {"num_blocks": 1, "linear_units": 16, "attention_heads": 2}
        config |= {"decoder": "transformer", "decoder_conf": small}
    folder = tmp_path_factory.mktemp("streaming")
    base = make_base(folder / "base", an4["tokens"], config)
    exp = train(an4, base, folder / "exp", max_epoch=2)
    state = torch.load(exp / "valid.loss.best.pth", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for key, tensor in state.items():  # so that tasks say different things
        if ".heads." in key:
            state[key] = tensor + torch.randn(tensor.shape, generator=generator)
    torch.save(state, exp / "valid.loss.best.pth")
    return exp


def opened(model, **kwargs):
    return espnet_hra.Speech2TextStreaming.from_pretrained(
        str(model), beam_size=3, **kwargs
    )


def in_chunks(speech2text, wave, size=4000, between=lambda i: None):
    parts = [wave[i : i + size] for i in range(0, len(wave), size)]
    for i, part in enumerate(parts):
        results = speech2text(part, is_final=i == len(parts) - 1)
        between(i)
    return results[0][0]


@pytest.mark.shows(
    encoder="contextual_block_conformer",
    objective=("CTC", "CTC and attention"),
    entrance=("train", "streaming"),
)
def test_a_stream_says_what_the_whole_utterance_says_for_each_task(model, an4):
    speech2text = opened(model)
    assert set(speech2text.tasks) == {"female", "male"}
    wave = np.asarray(waves(an4)[0])
    said = {}
    for task in ("female", "male", None):
        speech2text.set_task(task)
        said[task] = in_chunks(speech2text, wave, len(wave))
        assert in_chunks(speech2text, wave, len(wave)) == said[task]
        assert isinstance(in_chunks(speech2text, wave), str)
    assert len(set(said.values())) > 1


def test_a_stream_keeps_the_task_that_it_began_with(model, an4):
    speech2text = opened(model, task="male")
    wave = np.asarray(waves(an4)[0])
    expected = in_chunks(speech2text, wave)

    def change(i):
        speech2text.set_task("female" if i % 2 else None)

    speech2text.set_task("male")
    assert in_chunks(speech2text, wave, between=change) == expected


def test_without_a_choice_among_several_a_stream_does_not_begin(model, an4):
    speech2text = opened(model)
    with pytest.raises(TaskError, match="female, male"):
        speech2text(np.asarray(waves(an4)[0]))
    with pytest.raises(TaskError, match="unknown task 'x'"):
        opened(model, task="x")
    speech2text.set_task("male")
    with pytest.raises(DataError, match="one channel"):
        speech2text(np.zeros((2, 4000)))


@pytest.mark.shows(encoder="conformer", entrance="streaming", because="not streaming")
def test_a_base_that_does_not_stream_is_refused(base, an4, tmp_path):
    exp = train(an4, base, tmp_path / "exp", max_epoch=1)
    with pytest.raises(ConfigError, match="not a streaming encoder.*contextual_block"):
        opened(exp)
