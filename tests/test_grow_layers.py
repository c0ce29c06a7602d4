"""A backbone that grows: a deeper model that starts as the shallower one."""

import importlib.util
from pathlib import Path

import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

PATH = Path(__file__).resolve().parent.parent / "local" / "grow_layers.py"
SPEC = importlib.util.spec_from_file_location("grow_layers", PATH)
grow_layers = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(grow_layers)


class Model(torch.nn.Module):
    """As much of ESPnet's model as has layers."""

    def __init__(self, num_blocks: int, width: int = 16):
        super().__init__()
        self.encoder = ConformerEncoder(
            input_size=20,
            output_size=width,
            attention_heads=2,
            linear_units=24,
            num_blocks=num_blocks,
            macaron_style=True,
            use_cnn_module=True,
            cnn_module_kernel=7,
            rel_pos_type="latest",
            pos_enc_layer_type="rel_pos",
            selfattention_layer_type="rel_selfattn",
        )
        for p in self.parameters():  # norms as trained ones are
            torch.nn.init.uniform_(p, -0.3, 0.3)


def output(model, x):
    with torch.no_grad():
        return model.eval().encoder(x, torch.tensor([x.size(1)] * len(x)))[0]


def test_new_layers_change_nothing_and_learn():
    torch.manual_seed(0)
    old, new = Model(2), Model(5)
    x = torch.randn(2, 60, 20)
    expected = output(old, x)
    new.load_state_dict(grow_layers.grow(old.state_dict(), new.state_dict()))
    # not exactly: a norm adds 1e-12 to the variance
    torch.testing.assert_close(output(new, x), expected, rtol=1e-4, atol=1e-5)
    new.train().encoder(x, torch.tensor([60, 60]))[0].square().sum().backward()
    for layer in new.encoder.encoders[2:]:
        assert layer.feed_forward.w_2.weight.grad.abs().sum() > 0
        assert layer.self_attn.linear_out.weight.grad.abs().sum() > 0


def test_models_that_differ_otherwise_are_refused():
    with pytest.raises(ValueError, match="no place in the larger"):
        grow_layers.grow(Model(2, width=8).state_dict(), Model(3).state_dict())
    with pytest.raises(ValueError, match="no place in the larger"):
        grow_layers.grow(Model(3).state_dict(), Model(2).state_dict())
