"""A training of Whisper is quicker than ESPnet's, and learns the same."""

import copy
import pickle

import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.label_smoothing_loss import (
    LabelSmoothingLoss,
)

from espnet_hra.espnet.whisper_training import PlainLoss, quicken

whisper = pytest.importorskip("whisper")


@pytest.mark.parametrize("by_length", [False, True])
def test_the_loss_is_espnets(by_length):
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 50, (3, 7), generator=generator)
    target[1, 4:] = -1
    found = []
    for loss in (LabelSmoothingLoss(50, -1, 0.0, by_length), PlainLoss(-1, by_length)):
        generator.manual_seed(2)
        logits = torch.randn(3, 7, 50, generator=generator, requires_grad=True)
        value = loss(logits, target)
        value.backward()
        found.append((value.detach(), logits.grad))
    torch.testing.assert_close(*found)


class Model(torch.nn.Module):
    """What :func:`quicken` looks at."""

    is_encoder_whisper = True

    def __init__(self, smoothing=0.0):
        super().__init__()
        torch.manual_seed(3)
        self.block = whisper.model.ResidualAttentionBlock(16, 2, cross_attention=True)
        self.criterion_att = LabelSmoothingLoss(50, -1, smoothing)

    def forward(self, x, memory):
        mask = torch.full((8, 8), -torch.inf).triu(1)
        return self.block(x, memory, mask=mask)


def test_attention_is_whispers():
    model = Model()
    quick = copy.deepcopy(model)
    quicken(quick, on_cpu=True)
    own = quick.block.attn.__dict__["qkv_attention"]
    assert "qkv_attention" in quick.block.cross_attn.__dict__
    assert "qkv_attention" not in model.block.attn.__dict__
    quick = pickle.loads(pickle.dumps(quick))  # as a model for another process
    assert own.func is quick.block.attn.qkv_attention.func
    found = []
    for one in (model, quick):
        generator = torch.Generator().manual_seed(4)
        x, memory = (
            torch.randn(2, n, 16, generator=generator, requires_grad=True)
            for n in (5, 9)
        )
        y = one(x, memory)
        y.square().sum().backward()
        found.append((y.detach(), x.grad, memory.grad))
    torch.testing.assert_close(*found)
    assert list(quick.state_dict()) == list(model.state_dict())


def test_what_is_left_as_it_is():
    smoothed = Model(smoothing=0.1)
    quicken(smoothed, on_cpu=False)
    assert isinstance(smoothed.criterion_att, LabelSmoothingLoss)
    assert "qkv_attention" not in smoothed.block.attn.__dict__
    other = Model()
    other.is_encoder_whisper = False
    quicken(other, on_cpu=True)
    assert isinstance(other.criterion_att, LabelSmoothingLoss)
    assert "qkv_attention" not in other.block.attn.__dict__
