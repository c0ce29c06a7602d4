"""What each method alone does: its equations, its parameters, its configuration."""

import sys

import pytest
import torch
import yaml
from conftest import ROOT
from small_encoders import (
    CLASSES,
    CONTROLLERS,
    DIM,
    HEADS,
    LAYERS,
    METHOD_CONFS,
    RANK,
    WIDTH,
    C,
    F,
    adapted_encoder,
    as_if_trained,
    batch,
    conf_of,
    gradients,
    loss_of,
    same_bits,
    stock_encoder,
)

from espnet_hra.encoder.adapted import wrap_encoder
from espnet_hra.errors import ConfigError

two_kinds = pytest.mark.parametrize("kind", ["conformer", "branchformer"])
RIVALS = [name for name in METHOD_CONFS if name != "hra"]


def trained(kind, adapter, **conf):
    """A small encoder with tasks a, b and c that differ clearly."""
    encoder = adapted_encoder(kind, ["a", "b", "c"], adapter=adapter, **conf)
    return as_if_trained(encoder, scale=0.1)


# ---------------------------------------------------------------- what is computed


@two_kinds
def test_residual_adapters_follow_their_equation(kind):
    stock = stock_encoder(kind)
    encoder = trained(kind, "residual")
    p = encoder.adapter.heads.tensors("b")
    assert {k: tuple(v.shape) for k, v in p.items()} == {
        "norm.weight": (LAYERS, WIDTH),
        "norm.bias": (LAYERS, WIDTH),
        "D": (LAYERS, RANK, WIDTH),
        "d": (LAYERS, RANK),
        "U": (LAYERS, WIDTH, RANK),
        "u": (LAYERS, WIDTH),
    }

    def after(index):
        def hook(module, inputs, output):
            pair = isinstance(output[0], tuple)
            x = output[0][0] if pair else output[0]
            mean, variance = x.mean(-1, keepdim=True), x.var(-1, False, keepdim=True)
            z = (x - mean) / (variance + 1e-5).sqrt()
            z = z * p["norm.weight"][index] + p["norm.bias"][index]
            z = (z @ p["D"][index].T + p["d"][index]).clamp(min=0)
            y = x + z @ p["U"][index].T + p["u"][index]
            return ((y, output[0][1]) if pair else y, *output[1:])

        return hook

    for index, layer in enumerate(stock.encoders):
        layer.register_forward_hook(after(index))
    xs, lens = batch(4)
    with encoder.use_task("b"):
        found = encoder(xs, lens)[0]
    torch.testing.assert_close(found, stock(xs, lens)[0], rtol=1e-5, atol=1e-5)
    encoder.set_task(["a", "b", "b", "c"])
    mixed = encoder(xs, lens)[0]
    torch.testing.assert_close(mixed[1:3], found[1:3], rtol=1e-5, atol=1e-5)


@two_kinds
@pytest.mark.parametrize(
    "matrices, kin",
    [
        (["linear_q", "linear_v"], {}),
        (["linear_out"], {}),
        (["linear_q"], {"rslora": True}),
        (["linear_q", "linear_out"], {"dora": True}),
        ("all", {}),
    ],
)
def test_lora_and_kin_are_what_peft_computes(kind, matrices, kin):
    import peft

    encoder = trained(kind, "lora", matrices=matrices, **kin)
    stock = stock_encoder(kind)
    inner = stock.encoders
    linear = [n for n, m in inner.named_modules() if type(m) is torch.nn.Linear]
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=3,
        lora_dropout=0.0,
        target_modules=linear if matrices == "all" else matrices,
        **{f"use_{key}": value for key, value in kin.items()},
    )
    if matrices == "all":
        stock.encoders = peft.inject_adapter_in_model(config, inner)
        injected = stock
    else:
        injected = peft.inject_adapter_in_model(config, stock)
    tensors = encoder.adapter.heads.tensors("b")
    state = injected.state_dict()
    taken = 0
    for name in state:
        if ".lora_" in name:
            path, _, rest = name.partition(".lora_")
            tensor = tensors[f"{path}.{rest[0]}"]
            state[name] = tensor + (state[name] if rest[0] == "m" else 0.0)
            taken += 1
    many = len(linear) if matrices == "all" else LAYERS * len(matrices)
    assert taken == len(tensors) == (3 if kin.get("dora") else 2) * many
    injected.load_state_dict(state)
    xs, lens = batch(4)
    with encoder.use_task("b"):
        assert same_bits(encoder(xs, lens), injected(xs, lens))


@pytest.mark.parametrize("kin", [{}, {"rslora": True}])
def test_a_shared_change_and_the_task_s_are_two_of_peft_s(kin):
    """As PEFT computes with two adapters that are active at once."""
    import peft

    more = 3
    encoder = trained("conformer", "lora", shared_rank=more, **kin)
    scale = 3 / (RANK**0.5 if kin else RANK)
    stock = stock_encoder("conformer")
    for name, rank in (("shared", more), ("task", RANK)):
        config = peft.LoraConfig(
            r=rank, lora_alpha=scale * rank, target_modules=["linear_q", "linear_v"]
        )
        peft.inject_adapter_in_model(config, stock, adapter_name=name)
    adapter = encoder.adapter
    values = {
        "shared": adapter.shared.tensors("all"),
        "task": adapter.heads.tensors("b"),
    }
    state, taken = stock.state_dict(), 0
    for key in state:
        if ".lora_" in key:
            path, _, rest = key.partition(".lora_")
            letter, which, _ = rest.split(".")
            state[key] = values[which][f"{path}.{letter}"]
            taken += 1
    assert taken == sum(map(len, values.values()))
    stock.load_state_dict(state)
    for module in stock.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_adapter(["shared", "task"])
    xs, lens = batch(4)
    with encoder.use_task("b"):
        found = encoder(xs, lens)[0]
    torch.testing.assert_close(found, stock(xs, lens)[0], rtol=1e-5, atol=1e-5)
    both = LAYERS * 2 * 2 * WIDTH
    assert adapter.formula() == {"shared": both * more, "per_task": both * RANK}
    assert adapter.macs() == both * (more + RANK)


def test_bottlenecks_beside_the_feed_forward_follow_their_equation():
    stock = stock_encoder("conformer")
    encoder = trained("conformer", "residual", placement="parallel")
    p = encoder.adapter.heads.tensors("b")
    assert set(p) == {"D", "d", "U", "u"}

    def beside(index):
        def hook(module, inputs, output):
            z = (inputs[0] @ p["D"][index].T + p["d"][index]).clamp(min=0)
            return output + z @ p["U"][index].T + p["u"][index]

        return hook

    for index, layer in enumerate(stock.encoders):
        layer.feed_forward.register_forward_hook(beside(index))
    xs, lens = batch(4)
    with encoder.use_task("b"):
        found = encoder(xs, lens)[0]
    torch.testing.assert_close(found, stock(xs, lens)[0], rtol=1e-5, atol=1e-5)
    d, r = WIDTH, RANK
    assert encoder.adapter.formula()["per_task"] == LAYERS * (2 * d * r + r + d)


def test_lily_shares_matrices_as_peft_does_and_mixes_them_for_each_frame():
    import peft

    names = ["linear_q", "linear_v", "w_1"]
    encoder = trained("conformer", "lily", matrices=names, scaling=0.5)
    stock = stock_encoder("conformer")
    config = peft.LilyConfig(
        r=RANK, stride_A=2, num_B=3, scaling=0.5, target_modules=names
    )
    peft.inject_adapter_in_model(config, stock)
    tensors = encoder.adapter.heads.tensors("b")
    # w_1 is in both feed-forward modules of a layer: PEFT shares them by their last
    # name, we by the whole, so that only queries and values are compared with it.
    taken = set()
    for path, module in stock.named_modules():
        if not isinstance(module, peft.tuners.lily.layer.LilyLayer):
            continue
        index, _, name = path.removeprefix("encoders.").partition(".")
        if name.endswith("w_1"):
            module.scaling["default"] = 0.0
            continue
        name = f"{name}.{WIDTH}x{WIDTH}"
        for key, own in (
            ("lily_A", f"{name}.A{int(index) // 2}"),
            ("lily_B", f"{name}.B"),
            ("lily_router", f"{path}.router"),
        ):
            value = tensors[own]
            if key == "lily_B":  # PEFT: (experts r, outputs)
                value = value.transpose(1, 2).reshape(-1, WIDTH)
            getattr(module, key)["default"].weight.data = value.clone()
            taken.add(own)
    for name, tensor in tensors.items():
        if ".w_1." in name and name.endswith(".B"):
            tensor.zero_()  # a view of the task
    assert taken == {name for name in tensors if ".w_1." not in name}
    assert len([name for name in taken if ".A" in name]) == 2 * 2
    xs = batch(1)[0][:, :7]  # a single frame, which PEFT's mean is
    lens = torch.tensor([7])
    with encoder.use_task("b"):
        found, frames, _ = encoder(xs, lens)
    assert frames.tolist() == [1]
    expected = stock(xs, lens)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, stock_encoder("conformer")(xs, lens)[0])


def test_lily_s_equation_for_many_frames():
    from espnet_hra.methods.lily import _Mixed

    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 7)
    a, b, router = torch.randn(2, 5), torch.randn(3, 7, 2), torch.randn(3, 2)
    x = torch.randn(2, 4, 5)
    found = _Mixed(linear, [a, b, router], 0.5)(x)
    for i in range(2):
        for t in range(4):
            inner = a @ x[i, t]
            p = (router @ inner).softmax(0)
            change = sum(p[e] * (b[e] @ inner) for e in range(3))
            expected = linear(x[i, t]) + 0.5 * change
            torch.testing.assert_close(found[i, t], expected)


@two_kinds
def test_rotations_are_what_peft_computes(kind):
    import peft

    names = ["linear_q", "linear_out"]
    encoder = trained(kind, "road", matrices=names)
    config = peft.RoadConfig(variant="road_1", group_size=4, target_modules=names)
    injected = peft.inject_adapter_in_model(config, stock_encoder(kind))
    tensors = encoder.adapter.heads.tensors("b")
    state, taken = injected.state_dict(), 0
    for key in state:
        path, _, rest = key.partition(".road_")
        if rest:
            angle = rest.startswith("theta")
            own = tensors[f"{path}.{'theta' if angle else 'scale'}"]
            state[key] = own if angle else 1.0 + own
            taken += 1
    assert taken == len(tensors) == 2 * 2 * LAYERS
    injected.load_state_dict(state)
    xs, lens = batch(4)
    with encoder.use_task("b"):
        assert same_bits(encoder(xs, lens), injected(xs, lens))


def test_lora_drops_out_in_training_only():
    encoder = trained("conformer", "lora")
    dropping = trained("conformer", "lora", dropout=0.5)
    xs, lens = batch()
    for training in (False, True):
        encoder.train(training)
        dropping.train(training)
        with encoder.use_task("a"), dropping.use_task("a"):
            same = same_bits(encoder(xs, lens), dropping(xs, lens))
        assert same != training


def plain_with(encoder, task, kind):
    """ESPnet's encoder whose weights are the backbone's plus the task's differences."""
    plain = stock_encoder(kind)
    state = plain.state_dict()
    for name, difference in encoder.adapter.heads.tensors(task).items():
        state[name] = state[name] + difference
    plain.load_state_dict(state)
    return plain


@two_kinds
@pytest.mark.parametrize("adapter", ["bitfit", "full"])
def test_a_task_is_a_plain_encoder_with_other_weights(kind, adapter):
    encoder = trained(kind, adapter)
    xs, lens = batch(4)
    names = set(encoder.adapter.heads.layout.shapes)
    everything = {name for name, _ in stock_encoder(kind).named_parameters()}
    if adapter == "full":
        assert names == everything
    else:
        layers = {name for name in everything if name.startswith("encoders.")}
        assert names == {name for name in layers if name.endswith(".bias")}
    for task in "ab":
        with encoder.use_task(task):
            found = encoder(xs, lens)
        assert same_bits(found, plain_with(encoder, task, kind)(xs, lens))


@pytest.mark.parametrize("adapter", ["bitfit", "full"])
def test_gradients_are_those_of_the_plain_encoder(adapter):
    encoder = trained("conformer", adapter)
    plain = plain_with(encoder, "a", "conformer")
    xs, lens = batch()
    with encoder.use_task("a"):
        loss_of(encoder(xs, lens)[0]).backward()
    loss_of(plain(xs, lens)[0]).backward()
    heads = encoder.adapter.heads
    found = heads.layout.split(heads.vector("a").grad)
    expected = gradients(plain)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------- parameters


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_the_costs_of_a_hierarchical_recurrent_adapter(controller, head):
    d, c, f = WIDTH, C, F
    shared = {
        "indrnn": d * c + 2 * c,
        "rnn": d * c + c * c + c,
        "ligru": 2 * (d * c + c * c + c),
        "none": d * c + c,
        "gated": 2 * (d * c + c),
    }[controller] + 2 * d
    one = {
        "linear": c * d + d,
        "ffn": c * f + f + f * d + d,
        "low_rank": f * (c + d) + d,
    }[head]
    encoder = adapted_encoder("conformer", ["a"], controller=controller, head=head)
    assert encoder.adapter.formula() == {"shared": shared, "per_task": one}


@two_kinds
@pytest.mark.parametrize("adapter", RIVALS)
def test_the_costs_of_rivals(kind, adapter):
    d, r = WIDTH, RANK
    sizes = {name: p.numel() for name, p in stock_encoder(kind).named_parameters()}
    layers = {name: n for name, n in sizes.items() if name.startswith("encoders.")}
    linear = [
        (name, tuple(module.weight.shape))
        for name, module in stock_encoder(kind).encoders[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    experts, groups = 3, 2  # of lily: groups of two of the three layers
    rotated = sum(o for _, (o, _) in linear if o % 4 == 0) * LAYERS
    one, macs = {
        "lily": (
            sum(
                groups * r * i + experts * r * o + LAYERS * experts * r
                for _, (o, i) in linear
            ),
            LAYERS * sum(r * i + experts * r + experts * r * o for _, (o, i) in linear),
        ),
        "road": (rotated, 2 * rotated),
        "prompt": (3 * d + LAYERS, LAYERS * (2 * 3 * d + 2 * d * d)),
        "residual": (LAYERS * (2 * d * r + r + d + 2 * d), LAYERS * 2 * d * r),
        "lora": (LAYERS * 2 * 2 * d * r, LAYERS * 2 * 2 * d * r),
        "bitfit": (sum(n for name, n in layers.items() if name.endswith(".bias")), 0),
        "full": (sum(sizes.values()), 0),
        "none": (0, 0),
    }[adapter]
    adapter = adapted_encoder(kind, ["a"], adapter=adapter).adapter
    assert adapter.formula() == {"shared": 0, "per_task": one}
    assert adapter.macs() == macs


def test_the_costs_of_a_real_conformer():
    """12 layers of width 256 and rank 8, on the meta device."""
    conf = conf_of("conformer", output_size=256, num_blocks=12, attention_heads=4)
    with torch.device("meta"):
        encoder = wrap_encoder(CLASSES["conformer"])(
            DIM, adapter="residual", adapter_conf={"rank": 8}, tasks=["a"], **conf
        )
    assert encoder.adapter.formula()["per_task"] == 12 * (4096 + 8 + 256 + 512)


@pytest.mark.parametrize("adapter", RIVALS)
def test_nothing_is_shared(adapter):
    encoder = trained("conformer", adapter)
    assert encoder.adapter.shared_parameters() == {}
    fingerprint = encoder.controller_fingerprint
    as_if_trained(encoder, seed=4)
    assert encoder.controller_fingerprint == fingerprint
    encoder.adapter.regime = "new_task"  # changes nothing: there is nothing to freeze
    assert encoder.adapter.regime == "joint"
    with encoder.use_task("a"):
        output = encoder(*batch())[0]
    assert output.requires_grad == (adapter != "none")


# -------------------------------------------------------------------------- refusals

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "adapter, conf, message",
    [
        ("residual", {"rank": 0}, "rank: 0 must be a whole number"),
        ("residual", {"alpha": 1}, "'alpha' is no key of the adapter 'residual'.*rank"),
        ("lora", {"rank": 1.5}, "rank: 1.5"),
        ("lora", {"dora": "yes"}, "dora: 'yes'"),
        ("lora", {"rslora": 1.5}, "rslora: 1.5"),
        ("lora", {"alpha": 0}, "alpha: 0 must be above 0"),
        ("lora", {"shared_rank": -1}, "shared_rank: -1 must be a whole number"),
        ("lora", {"shared_rank": 2, "dora": True}, "shared_rank goes with .*dora out"),
        ("residual", {"placement": "before"}, "placement: 'before'.*after, parallel"),
        ("lily", {"stride": 0}, "stride: 0 must be a whole number"),
        ("lily", {"experts": 1.5}, "experts: 1.5"),
        ("lily", {"scaling": 0}, "scaling: 0 must be above 0"),
        ("lily", {"matrices": ["query"]}, "'query' is no linear module"),
        ("prompt", {"prompt_size": 0}, "prompt_size: 0 must be a whole number"),
        ("hra", {"shared_rank": -1}, "shared_rank: -1 must be a whole number, 0 or"),
        ("hra", {"shared_rank": True}, "shared_rank: True must be a whole number"),
        ("hra", {"prompt_size": -1}, "prompt_size: -1 must be a whole number, 0 or"),
        ("road", {"group_size": 3}, "group_size: 3 must be even"),
        ("road", {"group_size": 64}, "has .* outputs, which are no groups of 64"),
        (
            "road",
            {"group_size": 16, "matrices": ["w_1"]},
            "w_1 has 24 outputs, which are no groups of 16",
        ),
        ("lora", {"dropout": 1}, "dropout: 1 must be"),
        ("lora", {"matrices": []}, "matrices: .* is no list"),
        ("lora", {"matrices": "linear_q"}, "matrices: 'linear_q' is no list"),
        (
            "lora",
            {"matrices": ["linear_q", "query"]},
            "'query' is no linear module .*possible are: self_attn.linear_q, .*w_1",
        ),
        ("lora", {"matrices": ["r_q"]}, "'r_q' is no linear module"),
        ("bitfit", {"rank": 1}, "'rank' is no key of the adapter 'bitfit'"),
        ("full", {"regime": "some"}, "regime: 'some'"),
        ("none", {"ctc": "shared"}, "ctc: 'shared'.*frozen, task"),
        ("hra", {"controller": "lstm"}, "controller: 'lstm'.*built are: indrnn, rnn"),
        ("hra", {"controller": ["indrnn"]}, r"controller: \['indrnn'\] is not"),
        ("hra", {"controller": {"indrnn": 1}}, "controller: {'indrnn': 1} is not"),
        ("hra", {"head": "conv"}, "head: 'conv'.*built are: linear, ffn"),
        ("hra", {"head": None}, "head: None"),
        ("hra", {"input_norm": "batch_norm"}, "input_norm: 'batch_norm'"),
        ("hra", {"layer_bias": "own"}, "layer_bias: 'own'"),
        ("hra", {"output_scale": "task"}, "output_scale: 'task'"),
        ("hra", {"reads": "both"}, "reads: 'both'"),
        ("hra", {"backbone_dropout": 0.1}, "backbone_dropout: 0.1"),
        ("hra", {"controller_size": 0}, "controller_size: 0 must be a whole number"),
        ("hra", {"controller_size": 2.5}, "controller_size: 2.5"),
        ("hra", {"controller_size": [8]}, r"controller_size: \[8\]"),
        ("hra", {"head_size": -1}, "head_size: -1"),
        ("hra", {"recurrent_init": NAN}, "recurrent_init: nan must be a number"),
        ("hra", {"recurrent_init": INF}, "recurrent_init: inf"),
        ("hra", {"recurrent_init": "1"}, "recurrent_init: '1'"),
        ("hra", {"recurrent_init": True}, "recurrent_init: True"),
        ("hra", {"recurrent_init": [1.0]}, r"recurrent_init: \[1.0\]"),
        ("hra", {"controler_size": 4}, "'controler_size' is no key of the adapter"),
        ("hra", {"regime": ["joint"]}, r"regime: \['joint'\]"),
        ("hra", {"ctc": ["task"]}, r"ctc: \['task'\]"),
        ("lora", {"alpha": NAN}, "alpha: nan must be above 0"),
        ("lora", {"alpha": [3]}, r"alpha: \[3\]"),
        ("lora", {"dropout": NAN}, "dropout: nan must be"),
        ("lora", {"matrices": [3]}, "matrices: 3 is no linear module"),
        ("residual", {"rank": [8]}, r"rank: \[8\]"),
        ("residual", {"rank": True}, "rank: True"),
        ("adapterfusion", {}, "'adapterfusion' is not available; built are: hra, res"),
        ("HRA", {}, "'HRA' is not available"),
        ("", {}, "'' is not available"),
        (["hra"], {}, r"\['hra'\] is not available; built are: hra, "),
        (None, {}, "None is not available"),
    ],
)
def test_impossible_configurations_are_refused(adapter, conf, message):
    if adapter in ("lora", "road"):
        pytest.importorskip("peft")
    with pytest.raises(ConfigError, match=message):
        wrap_encoder(CLASSES["conformer"])(
            DIM,
            adapter=adapter,
            adapter_conf=conf,
            tasks=["a"],
            **conf_of("conformer"),
        )


@pytest.mark.parametrize("conf", [["rank"], "rank", 3], ids=repr)
def test_an_adapter_conf_that_is_no_mapping_is_refused(conf):
    with pytest.raises(ConfigError, match="must be keys and values"):
        wrap_encoder(CLASSES["conformer"])(
            DIM, adapter_conf=conf, **conf_of("conformer")
        )


def test_lora_without_peft_is_refused_with_the_command_that_installs_it(monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setitem(sys.modules, "peft", None)
    for adapter in ("lora", "road"):
        with pytest.raises(ConfigError, match=r"pip install 'espnet-hra\[lora\]'"):
            adapted_encoder("conformer", adapter=adapter)


def test_layers_without_a_feed_forward_module_have_nothing_beside_it():
    with pytest.raises(ConfigError, match="layer 0 of the encoder has none; .*cgmlp"):
        adapted_encoder("branchformer", adapter="residual", placement="parallel")


@pytest.mark.parametrize("adapter", [a for a in RIVALS if a != "none"])
def test_the_configurations_that_come_along(adapter):
    config = yaml.safe_load((ROOT / "conf" / f"train_{adapter}.yaml").read_text())
    own = yaml.safe_load((ROOT / "conf" / "train_hra.yaml").read_text())
    assert config.keys() == own.keys()
    assert config["encoder_conf"]["adapter"] == adapter
    rate = config["optim_conf"]["lr"]
    assert rate == max(config["scheduler_conf"]["warmup_lr_list"])
    same = set(own) - {"encoder_conf", "optim_conf", "scheduler_conf"}
    assert all(config[key] == own[key] for key in same)
    conf = dict(config["encoder_conf"].get("adapter_conf", {}), ctc="frozen")
    adapted_encoder("conformer", ["a"], adapter=adapter, **conf)
