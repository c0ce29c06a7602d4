"""Quantised decoding (`--quantize_asr_model true`): the adapter stays what it is."""

import numpy as np
import pytest
import torch
from adaptations import TASKS, make_adaptation
from small_encoders import METHOD_CONFS

import espnet_hra


@pytest.fixture(scope="module", params=[m for m in METHOD_CONFS if m != "none"])
def exp(request, base, tmp_path_factory):
    if request.param == "lora":
        pytest.importorskip("peft")
    conf = {} if request.param == "hra" else METHOD_CONFS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "exp"
    return make_adaptation(folder, base, adapter=request.param, **conf)


def test_a_quantized_model_is_close_and_its_tasks_stay_floats(exp):
    options = {"ctc_greedy": True}
    plain = espnet_hra.Speech2Text.from_pretrained(str(exp), **options)
    quantized = espnet_hra.Speech2Text.from_pretrained(
        str(exp), quantize_asr_model=True, **options
    )
    layers = quantized.asr_model.encoder.encoders
    assert any("quantized" in type(m).__module__ for m in layers.modules())
    heads = quantized.asr_model.encoder.adapter.heads
    for name in TASKS:
        own = plain.asr_model.encoder.adapter.heads.vector(name)
        assert heads.vector(name).dtype == torch.float32
        assert torch.equal(heads.vector(name), own)
    wave = torch.from_numpy(np.random.default_rng(1).standard_normal(16000)).float()
    lengths = torch.tensor([16000])
    found = {}
    for task in (*TASKS, None):
        with torch.no_grad():
            pair = []
            for model in (plain.asr_model, quantized.asr_model):
                with model.encoder.use_task(task):
                    pair.append(model.encode(wave[None].clone(), lengths)[0])
        found[task] = pair[1]
        assert (pair[0] - pair[1]).norm() < 0.2 * pair[0].norm(), task
    for task in TASKS:  # a task is still a task
        assert not torch.allclose(found[task], found[None], atol=1e-2)
    assert quantized(wave.numpy(), task=TASKS[0])[0][0] is not None
