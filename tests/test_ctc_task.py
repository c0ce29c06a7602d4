"""`ctc: task`: every task has its own CTC projection, and may learn new characters."""

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import BASE_CONFIG, make_base
from espnet2.asr.ctc import CTC
from small_encoders import (
    CLASSES,
    DIM,
    WIDTH,
    as_if_trained,
    batch,
    conf_of,
    gradients,
    loss_of,
    randomise_statistics,
    same_bits,
)
from test_training import ADAPTATION, load, train, waves

from espnet_hra import TaskError
from espnet_hra.encoder.adapted import wrap_encoder
from espnet_hra.errors import BaseModelError, ConfigError
from espnet_hra.espnet import ctc as projection
from espnet_hra.espnet import params

V = 7
ADAPTERS = {
    "hra": {"controller_size": 6},
    "residual": {"rank": 2},
    "lora": {"rank": 2},
    "bitfit": {},
    "full": {},
    "none": {},
}
NAMES = ["a", "b", "a", "c"]


class Model(torch.nn.Module):
    """Encoder and CTC, as much of ESPnet's model as matters here."""

    def __init__(self, encoder, ctc):
        super().__init__()
        self.encoder, self.ctc = encoder, ctc


def model_of(adapter, kind="conformer", changes=(), **conf):
    if adapter == "lora":
        pytest.importorskip("peft")
    changes = dict(changes)
    torch.manual_seed(1)
    stock = CLASSES[kind](DIM, **conf_of(kind, **changes))
    randomise_statistics(stock)
    conf = {**ADAPTERS[adapter], "ctc": "task", "vocab_size": V, **conf}
    encoder = wrap_encoder(CLASSES[kind])(
        DIM,
        adapter=adapter,
        adapter_conf=conf,
        tasks=["a", "b", "c"],
        **conf_of(kind, **changes),
    )
    encoder.load_state_dict(stock.state_dict(), strict=False)
    torch.manual_seed(2)
    model = Model(encoder, CTC(V, WIDTH).requires_grad_(False)).eval()
    projection.attach(model)
    return model


def logits(model, xs, lens, choice):
    with model.encoder.use_task(choice):
        return model.ctc.log_softmax(model.encoder(xs, lens)[0])


everywhere = pytest.mark.parametrize("adapter", ADAPTERS)


# ------------------------------------------------------------------------- the layer


@everywhere
def test_a_new_task_is_the_backbone_bit_for_bit(adapter):
    model = model_of(adapter)
    xs, lens = batch(4)
    plain = torch.nn.Linear(WIDTH, V)
    plain.load_state_dict(model.ctc.ctc_lo.state_dict())
    with model.encoder.use_task(None):
        expected = plain(model.encoder(xs, lens)[0]).log_softmax(-1)
    for choice in (None, "a"):
        assert torch.equal(logits(model, xs, lens, choice), expected)
    model.encoder.set_task(NAMES)
    output = model.encoder(xs, lens)[0]
    assert torch.equal(model.ctc.log_softmax(output), plain(output).log_softmax(-1))
    as_if_trained(model.encoder)
    assert torch.equal(logits(model, xs, lens, None), expected)
    assert not torch.allclose(logits(model, xs, lens, "a"), expected)


@everywhere
def test_each_utterance_meets_its_own_projection(adapter):
    model = model_of(adapter)
    as_if_trained(model.encoder, scale=0.1)
    xs, lens = batch(4)
    lens[:] = xs.size(1)
    mixed = logits(model, xs, lens, NAMES)
    for task in "abc":
        rows = [i for i, name in enumerate(NAMES) if name == task]
        single = logits(model, xs[rows], lens[rows], task)
        torch.testing.assert_close(mixed[rows], single, rtol=1e-5, atol=1e-5)
        with model.encoder.use_task(task):
            output = model.encoder(xs[rows], lens[rows])[0]
            own = model.encoder.adapter.heads.tensors(task)
            weight = model.ctc.ctc_lo.weight + own["ctc.weight"]
            expected = output @ weight.T + model.ctc.ctc_lo.bias + own["ctc.bias"]
            close = dict(rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(single, expected.log_softmax(-1), **close)
            assert torch.equal(model.ctc.argmax(output), single.argmax(-1))
            probabilities = model.ctc.softmax(output)
            torch.testing.assert_close(probabilities, single.exp(), **close)


@everywhere
def test_the_projection_is_counted(adapter):
    model = model_of(adapter)
    counts, frozen = (params.count(m) for m in (model, model_of(adapter, ctc="frozen")))
    own = (WIDTH + 1) * V
    assert counts["one_task"] == frozen["one_task"] + own
    assert counts["formula"]["per_task"] == counts["one_task"]
    assert counts["trainable"] == frozen["trainable"] + 3 * own
    assert counts["backbone"] == frozen["backbone"]
    assert counts["adapter_macs"] == frozen["adapter_macs"] + WIDTH * V


@everywhere
def test_only_the_tasks_of_the_batch_learn(adapter):
    model = model_of(adapter).train()
    as_if_trained(model.encoder, scale=0.1)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    xs, lens = batch(2)
    with model.encoder.use_task(["a", "c"]):
        output = model.encoder(xs, lens)[0]
        loss_of(model.ctc.log_softmax(output)).backward()
    learned = {name for name in gradients(model) if ".heads." in name}
    assert learned == {"encoder.adapter.heads.a", "encoder.adapter.heads.c"}
    heads = model.encoder.adapter.heads
    gradient = heads.layout.split(heads.vector("a").grad)
    assert all(gradient[f"ctc.{part}"].abs().sum() > 0 for part in ("weight", "bias"))
    optimizer.step()
    after = model.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert {key for key in moved if "controller" not in key} == learned


@everywhere
def test_a_saved_task_brings_its_projection(adapter, tmp_path):
    model = model_of(adapter)
    as_if_trained(model.encoder)
    xs, lens = batch()
    expected = logits(model, xs, lens, "b")
    model.encoder.save_task("b", tmp_path / "b.safetensors")
    model.encoder.remove_task("b")
    model.encoder.load_task(tmp_path / "b.safetensors")
    assert torch.equal(logits(model, xs, lens, "b"), expected)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(copied, xs, lens, "b"), expected)
        assert copied.ctc.ctc_lo._encoder[0] is copied.encoder
    frozen = model_of(adapter, ctc="frozen").encoder
    with pytest.raises(TaskError, match="was made for .*adapter"):
        frozen.load_task(tmp_path / "b.safetensors", replace=True)


@everywhere
@pytest.mark.parametrize("kind", ["conformer", "transformer", "e_branchformer"])
def test_an_intermediate_ctc_is_the_tasks_as_well(adapter, kind):
    changes = {"interctc_layer_idx": [1], "interctc_use_conditioning": True}
    model = model_of(adapter, kind, changes)
    encoder = as_if_trained(model.encoder, scale=0.1)
    torch.manual_seed(3)
    encoder.conditioning_layer = torch.nn.Linear(V, WIDTH).requires_grad_(False)
    xs, lens = batch(4)
    lens[:] = xs.size(1)
    with encoder.use_task(NAMES):
        (mixed, [(_, inter)]), *_ = encoder(xs, lens, ctc=model.ctc)
    for task in "abc":
        rows = [i for i, name in enumerate(NAMES) if name == task]
        # Another than its own would be heard: the CTC is fed back.
        with encoder.use_task(task):
            (single, [(_, early)]), *_ = encoder(xs[rows], lens[rows], ctc=model.ctc)
        close = dict(rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed[rows], single, **close)
        torch.testing.assert_close(inter[rows], early, **close)
        assert model.ctc.ctc_lo.weight.requires_grad is False
    vector = encoder.adapter.heads.vector("a")
    with encoder.use_task("a"):
        loss_of(encoder(xs, lens, ctc=model.ctc)[0][0]).backward()
    assert encoder.adapter.heads.layout.split(vector.grad)["ctc.weight"].abs().sum() > 0


@pytest.mark.parametrize("adapter", ["hra", "lora"])
def test_checkpoints_and_autocast(adapter):
    from torch.utils.checkpoint import checkpoint

    changes = {"interctc_layer_idx": [1], "interctc_use_conditioning": True}
    model = model_of(adapter, "conformer", changes).train()
    encoder = as_if_trained(model.encoder, scale=0.1)
    encoder.conditioning_layer = torch.nn.Linear(V, WIDTH).requires_grad_(False)
    xs, lens = batch(2)

    def forward(x):
        return encoder(x, lens, ctc=model.ctc)[0][0]

    found = []
    for run in (forward, lambda x: checkpoint(forward, x, use_reentrant=False)):
        encoder.zero_grad()
        encoder.set_task("c")
        with encoder.use_task(["b", "a"]):
            loss = loss_of(run(xs))
        loss.backward()  # after the block: the task in force is another by now
        found.append(gradients(encoder))
    assert set(found[0]) == set(found[1]) and "adapter.heads.c" not in found[0]
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    for choice in ("a", ["a", "b"]):
        with encoder.use_task(choice):
            exact = model.ctc.softmax(forward(xs))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rough = model.ctc.softmax(forward(xs))
        torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)


def test_the_size_of_the_vocabulary_must_be_known():
    with pytest.raises(ConfigError, match="vocab_size"):
        model_of("hra", vocab_size=None)
    with pytest.raises(ConfigError, match="vocab_size: 0 must be"):
        model_of("hra", vocab_size=0)


def test_an_encoder_without_its_ctc_does_not_run_a_task():
    model = model_of("hra")
    alone = model_of("hra").encoder
    alone.adapter.ctc.attached = False
    xs, lens = batch()
    with alone.use_task(None):
        alone(xs, lens)
    with alone.use_task("a"), pytest.raises(RuntimeError, match="espnet.ctc.attach"):
        alone(xs, lens)
    with model.encoder.use_task("a"):
        model.encoder(xs, lens)


def test_a_model_without_ctc_is_refused():
    with pytest.raises(ConfigError, match="has no CTC"):
        projection.attach(SimpleNamespace(encoder=model_of("hra").encoder, ctc=None))


# -------------------------------------------------------------- training and decoding


def adaptation(adapter, **conf):
    conf = {**ADAPTERS[adapter], "ctc": "task", **conf}
    return {"adapter": adapter, "adapter_conf": conf, "tasks": ["female", "male"]}


@pytest.fixture(scope="module", params=["hra", "full", "none"])
def experiment(request, an4, base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "exp"
    conf = adaptation(request.param)
    if request.param == "full":
        del conf["adapter_conf"]["ctc"]  # what full does by itself
    return train(an4, base, folder, max_epoch=5, encoder_conf=conf)


def tokens_of(an4) -> int:
    return len(an4["tokens"].read_text().splitlines())


def test_training_learns_and_keeps_the_base(experiment, an4, base):
    config = yaml.safe_load((experiment / "config.yaml").read_text())
    conf = config["encoder_conf"]["adapter_conf"]
    assert conf["ctc"] == "task" and conf["vocab_size"] == tokens_of(an4)
    stats = torch.load(experiment / "checkpoint.pth", weights_only=True)["reporter"]
    losses = [stats["stats"][epoch]["train"]["loss"] for epoch in (1, 5)]
    assert losses[1] < losses[0]
    state = load(experiment / "valid.loss.ave.pth")
    assert all(key.startswith("encoder.adapter.") for key in state)
    own = 33 * tokens_of(an4)
    assert state["encoder.adapter.heads.male"][-own:].abs().sum() > 0


@pytest.fixture
def loud(experiment, tmp_path) -> Path:
    """Tasks that differ by their CTC projections only, and clearly."""
    (tmp_path / "config.yaml").write_text((experiment / "config.yaml").read_text())
    config = yaml.safe_load((experiment / "config.yaml").read_text())
    own = 33 * config["encoder_conf"]["adapter_conf"]["vocab_size"]
    state = load(experiment / "valid.loss.ave.pth")
    torch.manual_seed(0)
    female, male = (f"encoder.adapter.heads.{n}" for n in ("female", "male"))
    state[male][:-own] = state[female][:-own]
    for key in (female, male):
        state[key][-own:] += 0.5 * torch.randn(own)
        state[key][-own // 33] -= 3.0  # the blank's bias
    torch.save(state, tmp_path / "valid.loss.best.pth")
    return tmp_path


@pytest.mark.parametrize("search", ["greedy", "batch", "single"])
def test_every_search_uses_the_projection_of_the_task(loud, an4, search, monkeypatch):
    import espnet_hra

    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(loud), ctc_greedy=search == "greedy", beam_size=3, ctc_weight=1.0
    )
    if search == "single":
        monkeypatch.setattr(speech2text, "_can_batch_decode", lambda: False)
    wave = waves(an4)[0]
    found: dict[str, str] = {}
    for task in ("female", "male"):
        speech2text.set_task(task)
        found[task] = speech2text(wave)[0][0]
        assert speech2text.batch_decode([wave, wave])[1][0][0] == found[task]
    assert found["female"] != found["male"]
    tasks = ["male", "female", "female", "male"]
    speech2text.set_task(tasks)
    results = [r[0][0] for r in speech2text.batch_decode([wave] * 4)]
    assert results == [found[task] for task in tasks]
    speech2text.set_task(None)
    base = load(
        Path(yaml.safe_load((loud / "config.yaml").read_text())["pretrained_model"])
        / "valid.loss.best.pth"
    )
    model = speech2text.asr_model
    with torch.no_grad():
        encoded, _ = model.encode(wave[None], torch.tensor([len(wave)]))
        expected = torch.nn.functional.linear(
            encoded, base["ctc.ctc_lo.weight"], base["ctc.ctc_lo.bias"]
        )
        assert torch.equal(model.ctc.argmax(encoded), expected.argmax(-1))


def test_tasks_travel_with_their_projection(loud, an4, tmp_path):
    import espnet_hra

    source, other = (
        espnet_hra.Speech2Text.from_pretrained(str(loud), ctc_greedy=True)
        for _ in range(2)
    )
    source.asr_model.encoder.save_task("male", tmp_path / "male.safetensors")
    other.asr_model.encoder.remove_task("male")
    other.asr_model.encoder.load_task(tmp_path / "male.safetensors")
    for model in (source, other):
        model.set_task("male")
    wave = waves(an4)[0]
    assert source(wave)[0][0] == other(wave)[0][0]


def test_a_new_task_starts_where_the_base_is(an4, base, tmp_path):
    """The loss of an untrained task, over the model, is that of the base."""
    from espnet2.tasks.asr import ASRTask

    from espnet_hra.espnet.task import HRATask

    stock, _ = ASRTask.build_model_from_file(
        base / "config.yaml", base / "valid.loss.best.pth"
    )
    config = yaml.safe_load((base / "config.yaml").read_text())
    config["encoder"] = "hra_conformer"
    config["encoder_conf"].update(adaptation("hra"))
    config.update(pretrained_model=str(base), autocast="none")
    from argparse import Namespace

    model = HRATask.build_model(Namespace(**config))
    wave = waves(an4)[0]
    speech, lengths = wave[None], torch.tensor([len(wave)])
    text = (torch.tensor([[3, 4, 5]]), torch.tensor([3]))
    stock.eval(), model.eval()
    expected = stock(speech, lengths, *text)[0]
    for task in (None, "female", "male"):
        with model.encoder.use_task(task):
            assert torch.equal(model(speech, lengths, *text)[0], expected)


# ---------------------------------------------------------------------- new characters

UMLAUTS = ["ä", "ö"]


def with_umlauts(an4, folder: Path) -> dict[str, Path]:
    """AN4 whose letter a is written ä, and o is written ö."""
    data = dict(an4)
    for part in ("train", "dev"):
        data[part] = folder / part
        data[part].mkdir(parents=True)
        for name in ("wav.scp", "utt2task"):
            (data[part] / name).write_text((an4[part] / name).read_text())
        lines = [
            line.split(None, 1) for line in (an4[part] / "text").open(encoding="utf-8")
        ]
        text = "".join(
            f"{utt} {words.replace('a', 'ä').replace('o', 'ö')}" for utt, words in lines
        )
        (data[part] / "text").write_text(text, encoding="utf-8")
    return data


@pytest.fixture(scope="module")
def extended(an4, base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("umlauts")
    return train(
        with_umlauts(an4, folder / "data"),
        base,
        folder / "exp",
        "--check_data",
        "true",
        max_epoch=40,
        encoder_conf=adaptation("full", new_tokens="auto"),
        optim_conf={"lr": 0.02, "weight_decay": 0.0},
    )


def test_the_saved_configuration_has_the_new_tokens(extended, an4, base):
    config = yaml.safe_load((extended / "config.yaml").read_text())
    tokens = an4["tokens"].read_text().splitlines()
    assert config["token_list"] == [*tokens[:-1], *UMLAUTS, "<sos/eos>"]
    conf = config["encoder_conf"]["adapter_conf"]
    assert conf["new_tokens"] == UMLAUTS
    assert conf["vocab_size"] == len(tokens) + 2
    original = yaml.safe_load((base / "config.yaml").read_text())
    assert original["token_list"] == tokens


def test_new_characters_are_learned_and_the_backbone_has_none(extended, an4):
    import espnet_hra

    speech2text = espnet_hra.Speech2Text.from_pretrained(str(extended), ctc_greedy=True)
    model, wave = speech2text.asr_model, waves(an4)[2]
    new, old = (
        [model.token_list.index(letter) for letter in letters]
        for letters in (UMLAUTS, "ao")
    )

    def best(choice):
        """The highest log-probability of each token in any frame."""
        with torch.no_grad(), model.encoder.use_task(choice):
            encoded, _ = model.encode(wave[None], torch.tensor([len(wave)]))
            return model.ctc.log_softmax(encoded)[0].amax(0)

    assert (best(None)[new] < -projection.MARGIN).all()
    for task in ("female", "male"):
        found = best(task)
        assert found[new].min() > -15 and (found[new] > found[old]).all()
    # Decoded, they are letters like any other.
    model.encoder.adapter.heads.tensors("male")["ctc.bias"][new[1]] += 50
    assert set(speech2text(wave, task="male")[0][0]) == {"ö"}
    with model.encoder.use_task(None):
        assert not set(UMLAUTS) & set(speech2text(wave)[0][0])
    beam = espnet_hra.Speech2Text.from_pretrained(
        str(extended), beam_size=2, ctc_weight=1.0, task="female"
    )
    assert isinstance(beam(wave)[0][0], str)


def test_the_base_is_verified_as_it_was(extended, base, tmp_path):
    import espnet_hra

    files = (extended / "config.yaml", extended / "valid.loss.ave.pth")
    model = espnet_hra.Speech2Text(*files).asr_model
    original = load(base / "valid.loss.best.pth")
    weight, bias = model.ctc.ctc_lo.weight, model.ctc.ctc_lo.bias
    for new, old in ((weight, "weight"), (bias, "bias")):
        old = original[f"ctc.ctc_lo.{old}"]
        assert torch.equal(new[:-3], old[:-1]) and torch.equal(new[-1], old[-1])
    assert model.sos == model.eos == model.vocab_size - 1 == len(weight) - 1
    original["ctc.ctc_lo.bias"][0] += 1e-6
    torch.save(original, tmp_path / "other.pth")
    with pytest.raises(BaseModelError, match="ctc: expected sha256:"):
        espnet_hra.Speech2Text(*files, pretrained_model=str(tmp_path / "other.pth"))
    # A whole model with the new rows in it is the same base.
    state = {k: v for k, v in model.state_dict().items() if ".adapter." not in k}
    torch.save(state, tmp_path / "whole.pth")
    espnet_hra.Speech2Text(*files, pretrained_model=str(tmp_path / "whole.pth"))


def test_a_new_token_cannot_win_whatever_the_input():
    torch.manual_seed(0)
    model = SimpleNamespace(
        ctc=CTC(V, WIDTH), sos=V - 1, eos=V - 1, vocab_size=V, error_calculator=None
    )
    torch.nn.init.normal_(model.ctc.ctc_lo.weight, mean=3.0, std=20.0)
    torch.nn.init.normal_(model.ctc.ctc_lo.bias, mean=-200.0)
    x = 10 * torch.randn(4, 100, WIDTH)
    before = model.ctc.ctc_lo(x)
    projection.extend(model, [*"abcdef", "<sos/eos>"], ["x", "y"])
    after = model.ctc.ctc_lo(x)
    new, old = after[..., V - 1 : V + 1], after[..., [*range(V - 1), V + 1]]
    torch.testing.assert_close(old, before, rtol=1e-4, atol=1e-3)
    assert (new.amax(-1) <= old.amax(-1) - projection.MARGIN + 1e-2).all()
    assert model.token_list == [*"abcdef", "x", "y", "<sos/eos>"]
    assert (model.sos, model.eos, model.vocab_size) == (V + 1, V + 1, V + 2)


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"new_tokens": ["a"]}, "known to the base: a"),
        ({"new_tokens": ["Ä", "Ä"]}, "named twice: Ä"),
        ({"new_tokens": "Ä"}, "must be a list of tokens, or auto"),
        ({"new_tokens": ["Ä"], "ctc": "frozen"}, "add ctc: task"),
    ],
)
def test_impossible_new_tokens_are_refused(an4, base, tmp_path, conf, message):
    with pytest.raises(ConfigError, match=message):
        conf = adaptation("hra", **conf)
        train(an4, base, tmp_path / "exp", encoder_conf=conf)


def test_models_that_would_not_know_new_tokens_are_refused(an4, tmp_path):
    decoder = {
        **BASE_CONFIG,
        "model_conf": {"ctc_weight": 0.5},
        "decoder": "transformer",
        "decoder_conf": {"attention_heads": 2, "linear_units": 16, "num_blocks": 1},
    }
    feedback = {
        **BASE_CONFIG,
        "model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.3},
        "encoder_conf": {
            **BASE_CONFIG["encoder_conf"],
            "interctc_layer_idx": [1],
            "interctc_use_conditioning": True,
        },
    }
    for name, config, message in (
        ("decoder", decoder, "has a decoder"),
        ("feedback", feedback, "feeds its intermediate CTC back"),
    ):
        base = make_base(tmp_path / name, an4["tokens"], config)
        conf = adaptation("hra", new_tokens=UMLAUTS)
        with pytest.raises(ConfigError, match=message):
            train(an4, base, tmp_path / "exp", encoder_conf=conf)
        # Without new tokens, both can be adapted.
        conf = adaptation("hra")
        train(an4, base, tmp_path / name / "exp", max_epoch=1, encoder_conf=conf)


def test_unknown_characters_are_reported_with_the_remedy(an4, base, tmp_path):
    from espnet_hra.errors import DataError

    data = with_umlauts(an4, tmp_path / "data")
    with pytest.raises(DataError, match="ctc: task, new_tokens: auto"):
        train(
            data,
            base,
            tmp_path / "exp",
            "--check_data",
            "true",
            encoder_conf=ADAPTATION["encoder_conf"],
        )


def test_task_files_of_other_tokens_are_refused(tmp_path):
    one = model_of("hra", new_tokens=["x"]).encoder
    other = model_of("hra", new_tokens=["y"]).encoder
    one.save_task("a", tmp_path / "a")
    with pytest.raises(TaskError, match="was made for .*adapter"):
        other.load_task(tmp_path / "a", replace=True)
    assert same_bits(one.adapter.heads.vector("a"), other.adapter.heads.vector("a"))
