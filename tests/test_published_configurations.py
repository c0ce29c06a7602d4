"""Configurations that ESPnet's recipes publish: a prefix before the encoder is all."""

import numpy as np
import pytest
import torch
import yaml
from conftest import make_base
from published import COMMON, PUBLISHED, RECURRENT, objective_of
from small_encoders import same_bits
from test_objectives import _transducer_loss  # noqa: F401

from espnet_hra.errors import BaseModelError
from espnet_hra.espnet.base import check_adaptable, open_base
from espnet_hra.espnet.model import encode_name

TASKS = ["it.carlo", "fr_june"]
TOKENS = ["<blank>", "<unk>", "<space>", *"ABCDEFG", "<sos/eos>"]


@pytest.fixture
def base(tmp_path):
    """Makes the stock model of a kind, as ESPnet builds it."""

    def make(kind):
        tokens = tmp_path / "tokens.txt"
        tokens.write_text("".join(f"{token}\n" for token in TOKENS))
        config = {**COMMON, **kind}
        if config["normalize"] == "global_mvn":
            stats = tmp_path / "stats.npz"
            features = np.random.default_rng(0).normal(size=(50, 80))
            sums = {"sum": features.sum(0), "sum_square": (features**2).sum(0)}
            np.savez(stats, count=50, **sums)
            config["normalize_conf"] = {"stats_file": str(stats)}
        return make_base(tmp_path / "base", tokens, config)

    return make


def adapted(base, folder, adapter):
    """The same configuration with the prefix, an adapter and tasks; and the base."""
    from espnet_hra.espnet.task import HRATask

    config = yaml.safe_load((base / "given.yaml").read_text())
    config["encoder"] = f"hra_{config['encoder']}"
    config["encoder_conf"] |= {"adapter": adapter, "tasks": TASKS}
    folder.mkdir()
    (folder / "given.yaml").write_text(yaml.safe_dump(config))
    words = ["--config", str(folder / "given.yaml"), "--output_dir", str(folder)]
    args = HRATask.parse([*words, "--pretrained_model", str(base)])
    torch.manual_seed(0)
    return HRATask.build_model(args)


def batch(model):
    """Three utterances with texts and tasks."""
    generator = torch.Generator().manual_seed(0)
    names = [encode_name(name) for name in ("fr_june", "it.carlo", "fr_june")]
    length = max(map(len, names))
    lengths = torch.tensor([len(name) for name in names])
    padded = torch.stack(
        [torch.from_numpy(np.pad(name, (0, length - len(name)))) for name in names]
    )
    made = {
        "speech": 0.1 * torch.randn(3, 24000, generator=generator),
        "speech_lengths": torch.tensor([24000, 22000, 20000]),
        "text": torch.randint(3, 10, (3, 4), generator=generator),
        "text_lengths": torch.tensor([4, 3, 4]),
        "utt2task": padded,
        "utt2task_lengths": lengths,
    }
    if hasattr(model, "num_ref"):
        made |= {"text_spk2": made["text"].flip(1)}
        made |= {"text_spk2_lengths": made["text_lengths"]}
    made["text"][1, 3] = -1
    return made


SHOWING = [
    pytest.param(
        name,
        marks=pytest.mark.shows(
            encoder=kind["encoder"], objective=objective_of(kind), entrance="in Python"
        ),
    )
    for name, kind in PUBLISHED.items()
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWING)
def test_a_published_configuration_is_adapted(name, base, tmp_path):
    from espnet2.tasks.asr import ASRTask

    folder = base(PUBLISHED[name])
    check_adaptable(open_base(folder))
    model = adapted(folder, tmp_path / "exp", "hra")
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning and all(n.startswith("encoder.adapter.") for n in learning)

    # Without a task it is the stock model, and so is a task that has learned nothing.
    stock, _ = ASRTask.build_model_from_file(
        folder / "config.yaml", folder / "valid.loss.best.pth"
    )
    given = batch(model)
    heard = given["speech"], given["speech_lengths"]
    model.eval(), stock.eval()
    stock.requires_grad_(False)  # torch has other kernels where gradients are needed
    with torch.no_grad():
        expected = stock.encode(*heard)[0]
        for choice in (None, "fr_june"):
            with model.encoder.use_task(choice):
                found = model.encode(*heard)[0]
            assert same_bits(found, expected), choice

    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():  # heads begin at zero, before which no controller learns
        for parameter in model.encoder.adapter.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.train()
    # Where layers are dropped at random, not every pass has any left.
    torch.manual_seed(1)
    for _ in range(3):
        # ESPnet counts a language token in the lengths that it was given.
        loss = model(**{name: tensor.clone() for name, tensor in given.items()})[0]
        assert loss.isfinite().all()
        loss.sum().backward()
    moved = {
        n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert moved and moved <= learning
    for task in ("it/carlo", "fr_june"):
        assert any(n.startswith(f"encoder.adapter.heads.{task}") for n in moved), moved
    after = model.state_dict()  # statistics have not moved either
    changed = {k for k in before if not same_bits(after[k], before[k])}
    if name == "conformer-s4_decoder":  # it fits itself to longer texts, decoding too
        changed = {k for k in changed if not k.endswith(("kernel.C", "kernel.L"))}
    assert all(k.startswith("encoder.adapter.") for k in changed), changed


@pytest.mark.shows(
    encoder=("rnn", "vgg_rnn"),
    entrance="train",
    objective=("CTC", "recurrent decoder", "transducer"),
    because="recurrent",
)
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_encoder_is_refused_with_the_reason(name, base, tmp_path):
    folder = base(RECURRENT[name])
    message = "recurrent over time.*no list of layers.*conformer, transformer"
    with pytest.raises(BaseModelError, match=message):
        check_adaptable(open_base(folder))
    with pytest.raises(ValueError, match=message):
        adapted(folder, tmp_path / "exp", "hra")
