"""The rivals of HRA, behind the same key: residual, lora, bitfit, full and none."""

import copy
import pickle
import threading
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from espnet2.asr.ctc import CTC
from small_encoders import (
    CLASSES,
    DIM,
    KINDS,
    LAYERS,
    WIDTH,
    as_if_trained,
    batch,
    conf_of,
    gradients,
    leaves,
    loss_of,
    randomise_statistics,
    same_bits,
)
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint

from espnet_hra import TaskError
from espnet_hra.encoder.adapted import wrap_encoder
from espnet_hra.errors import BaseModelError, ConfigError
from espnet_hra.espnet import params

RANK = 2
CONFS = {
    "residual": {"rank": RANK},
    "lora": {"rank": RANK, "alpha": 3, "matrices": ["linear_q", "linear_v"]},
    "bitfit": {},
    "full": {},
    "none": {},
}
ONE_AT_A_TIME = ("lora", "bitfit", "full")
LEARNING = ("residual", *ONE_AT_A_TIME)
NAMES = ["a", "b", "a", "c"]


@pytest.fixture(autouse=True)
def _peft(request):
    """PEFT is an extra: without it, the tests that need it are skipped."""
    if "lora" in str(getattr(request.node, "callspec", "")) + request.node.name:
        pytest.importorskip("peft")


def stock_of(kind, drop=0.0, **changes):
    """ESPnet's own encoder."""
    torch.manual_seed(1)
    stock = CLASSES[kind](DIM, **conf_of(kind, drop, **changes))
    randomise_statistics(stock)
    return stock.eval()


def on(stock, kind, adapter, tasks=("a", "b", "c"), drop=0.0, changes=(), **conf):
    """The adapted counterpart of a stock encoder."""
    torch.manual_seed(7)
    encoder = wrap_encoder(type(stock))(
        DIM,
        adapter=adapter,
        adapter_conf={**CONFS[adapter], "backbone_dropout": drop > 0, **conf},
        tasks=tasks,
        **conf_of(kind, drop, **dict(changes)),
    )
    result = encoder.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    return encoder.eval()


def trained(kind, adapter, drop=0.0, changes=(), **kwargs):
    """An adapted encoder whose tasks differ clearly."""
    stock = stock_of(kind, drop, **dict(changes))
    encoder = on(stock, kind, adapter, drop=drop, changes=changes, **kwargs)
    return as_if_trained(encoder, scale=0.1)


def rows_of(names=NAMES):
    return {n: [i for i, m in enumerate(names) if m == n] for n in dict.fromkeys(names)}


def alone(encoder, task, rows, xs, lens, **arguments):
    """What these rows give as a batch of their own."""
    end = xs.size(1) - int(lens.max() - lens[rows].max())
    with encoder.use_task(task):
        return encoder(xs[rows, :end], lens[rows], **arguments)


def padded_like(part, whole):
    missing = [(0, n - m) for n, m in zip(whole.shape[1:], part.shape[1:])]
    return torch.nn.functional.pad(part, [n for pair in missing[::-1] for n in pair])


both = pytest.mark.parametrize("adapter", CONFS)
learning = pytest.mark.parametrize("adapter", LEARNING)
kinds = pytest.mark.parametrize("kind", KINDS)
two_kinds = pytest.mark.parametrize("kind", ["conformer", "branchformer"])


# ------------------------------------------------------------------- the backbone


@kinds
@both
def test_no_task_and_a_new_task_are_the_stock_encoder_bit_for_bit(kind, adapter):
    stock = stock_of(kind, drop=0.2)
    encoder = on(stock, kind, adapter, drop=0.2)
    xs, lens = batch(4)
    for training in (False, True):
        stock.train(training)
        encoder.train(training)
        for module in stock.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()  # frozen in the adapted encoder
        torch.manual_seed(5)
        expected = stock(xs, lens)
        for choice in (None, "a"):
            encoder.set_task(choice)
            torch.manual_seed(5)
            assert same_bits(encoder(xs, lens), expected), choice
    stock.eval()
    encoder.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        expected = stock(xs, lens)
        for choice in (None, "a"):
            with encoder.use_task(choice):
                assert same_bits(encoder(xs, lens), expected), choice
    as_if_trained(encoder)
    with encoder.use_task(None):
        assert same_bits(encoder(xs, lens), stock(xs, lens))
    with encoder.use_task("a"):
        assert same_bits(encoder(xs, lens), stock(xs, lens)) == (adapter == "none")


@both
def test_a_mixed_batch_of_new_tasks_is_the_stock_encoder(adapter):
    stock = stock_of("conformer")
    encoder = on(stock, "conformer", adapter)
    xs, lens = batch(4)
    encoder.set_task(NAMES)
    mixed = encoder(xs, lens)
    if adapter in ONE_AT_A_TIME:  # each task's rows, with their own padding
        for rows in rows_of().values():
            end = int(lens[rows].max())
            part = stock(xs[rows, :end], lens[rows])
            for found, expected in zip(mixed[:2], part[:2]):
                assert torch.equal(found[rows], padded_like(expected, found))
    else:
        assert same_bits(mixed, stock(xs, lens))


# ------------------------------------------------------------------ mixed batches


@kinds
@learning
def test_a_mixed_batch_equals_task_by_task(kind, adapter):
    encoder = trained(kind, adapter).train()
    xs, lens = batch(4)
    encoder.set_task(NAMES)
    mixed, frames, _ = encoder(xs, lens)
    mask = torch.arange(mixed.size(1)) < frames[:, None]

    def loss(output, mask):
        return loss_of(output[mask]) * mask.sum()

    loss(mixed, mask).backward()
    found = gradients(encoder)
    encoder.zero_grad()
    for task, rows in rows_of().items():
        if adapter in ONE_AT_A_TIME:
            single, own_frames, _ = alone(encoder, task, rows, xs, lens)
        else:  # all in one pass, with the padding of the batch
            with encoder.use_task(task):
                single, own_frames = (o[rows] for o in encoder(xs, lens)[:2])
        assert torch.equal(frames[rows], own_frames)
        close = dict(rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mixed[rows, : single.size(1)], single, **close)
        loss(single, mask[rows, : single.size(1)]).backward()
    expected = gradients(encoder)
    assert set(found) == set(expected) == {f"adapter.heads.{n}" for n in "abc"}
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


INTER = {"interctc_layer_idx": [1, 2]}


@learning
@pytest.mark.parametrize(
    "kind, changes, arguments",
    [
        ("conformer", INTER, {}),
        ("conformer", {}, {"return_all_hs": True}),
        ("conformer", {**INTER, "interctc_use_conditioning": True}, {"ctc": 0.0}),
        ("conformer", {**INTER, "ctc_trim": True}, {"ctc": 50.0}),
        ("conformer", {"input_layer": "linear"}, {"masks": True}),
        ("transformer", INTER, {}),
        ("e_branchformer", {**INTER, "interctc_use_conditioning": True}, {"ctc": 0.0}),
        ("e_branchformer", {"gradient_checkpoint_layers": [0, 1, 2, 3]}, {}),
    ],
    ids=str,
)
def test_other_outputs_are_put_together_as_well(adapter, kind, changes, arguments):
    encoder = trained(kind, adapter, changes=changes)
    xs, lens = batch(4)
    if "ctc" in arguments:
        torch.manual_seed(2)
        ctc = CTC(7, WIDTH).requires_grad_(False)
        ctc.ctc_lo.bias[0] += arguments["ctc"]  # sure of a blank everywhere, or not
        arguments = {"ctc": ctc}
        encoder.conditioning_layer = torch.nn.Linear(7, WIDTH).requires_grad_(False)
    if "masks" in arguments:
        arguments = {"masks": torch.arange(xs.size(1)) >= lens[:, None] - 3}
    encoder.set_task(NAMES)
    mixed = leaves(encoder(xs_pad=xs, ilens=lens, **arguments))
    shapes = [getattr(o, "shape", o) for o in mixed]
    with encoder.use_task("a"):
        whole = leaves(encoder(xs, lens, **arguments))
    assert [getattr(o, "shape", o) for o in whole] == shapes
    for task, rows in rows_of().items():
        end = int(lens[rows].max())
        own = dict(arguments)
        if "masks" in own:
            own["masks"] = own["masks"][rows, :end]
        if adapter == "residual":  # sees the whole batch's padding
            with encoder.use_task(task):
                single = encoder(xs, lens, **arguments)
            single = [o[rows] if hasattr(o, "shape") else o for o in leaves(single)]
        else:
            single = leaves(alone(encoder, task, rows, xs, lens, **own))
        for found, expected in zip(mixed, single):
            if isinstance(expected, torch.Tensor):
                expected = padded_like(expected, found)
                torch.testing.assert_close(found[rows], expected, rtol=1e-5, atol=1e-5)
            else:
                assert found == expected


@learning
def test_tasks_of_a_batch_may_be_one_alone(adapter):
    encoder = trained("conformer", adapter)
    xs, lens = batch(3)
    with encoder.use_task(["b", "b", "b"]):
        listed = encoder(xs, lens)
    with encoder.use_task("b"):
        assert same_bits(listed, encoder(xs, lens))


# ---------------------------------------------------------------- what is computed


@two_kinds
def test_residual_adapters_follow_their_equation(kind):
    stock = stock_of(kind)
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
@pytest.mark.parametrize("matrices", [["linear_q", "linear_v"], ["linear_out"]])
def test_lora_is_what_peft_computes(kind, matrices):
    import peft

    encoder = trained(kind, "lora", matrices=matrices)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=3, lora_dropout=0.0, target_modules=matrices
    )
    injected = peft.inject_adapter_in_model(config, stock_of(kind))
    tensors = encoder.adapter.heads.tensors("b")
    state = injected.state_dict()
    taken = 0
    for name in state:
        if ".lora_" in name:
            path, _, rest = name.partition(".lora_")
            state[name] = tensors[f"{path}.{rest[0]}"]
            taken += 1
    assert taken == len(tensors) == 2 * LAYERS * len(matrices)
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
    plain = stock_of(kind)
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
    everything = {name for name, _ in stock_of(kind).named_parameters()}
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


# ----------------------------------------------------------------------- isolation


@two_kinds
@learning
def test_training_moves_the_chosen_task_and_nothing_else(kind, adapter):
    encoder = trained(kind, adapter, drop=0.1)
    xs, lens = batch(2)
    outputs = {}
    for choice in ("b", "c", None):
        with encoder.use_task(choice):
            outputs[choice] = encoder(xs, lens)
    before = copy.deepcopy(encoder.state_dict())
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.05, weight_decay=0.1)
    encoder.train()
    for _ in range(2):
        optimizer.zero_grad()
        with encoder.use_task("a"):
            loss_of(encoder(xs, lens)[0]).backward()
        assert set(gradients(encoder)) == {"adapter.heads.a"}
        optimizer.step()
    after = encoder.state_dict()
    assert {k for k in after if not torch.equal(after[k], before[k])} == {
        "adapter.heads.a"
    }
    encoder.eval()
    for choice, expected in outputs.items():
        with encoder.use_task(choice):
            assert same_bits(encoder(xs, lens), expected)


@learning
def test_every_part_of_a_task_learns(adapter):
    encoder = trained("conformer", adapter).train()
    with encoder.use_task("a"):
        loss_of(encoder(*batch())[0]).backward()
    heads = encoder.adapter.heads
    for name, gradient in heads.layout.split(heads.vector("a").grad).items():
        # What cannot matter: a bias before a softmax over time.
        if not name.endswith(("linear_k.bias", "channel_proj1.bias")):
            assert gradient.abs().sum() > 0, name


@learning
def test_threads_with_different_tasks_do_not_meet(adapter):
    encoder = trained("conformer", adapter)
    xs, lens = batch()
    choices = ("a", None, ("b", "a", "c"))
    expected, failures = {}, []
    with torch.no_grad():
        for choice in choices:
            with encoder.use_task(choice):
                expected[choice] = encoder(xs, lens)

    def work(choice):
        with torch.no_grad(), encoder.use_task(choice):
            for _ in range(10):
                if not same_bits(encoder(xs, lens), expected[choice]):
                    failures.append(choice)

    threads = [threading.Thread(target=work, args=(choice,)) for choice in choices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---------------------------------------------------------------------- parameters


@kinds
@both
def test_parameter_counts_are_those_of_the_arithmetic(kind, adapter):
    d, r = WIDTH, RANK
    stock = stock_of(kind)
    sizes = {name: p.numel() for name, p in stock.named_parameters()}
    one = {
        "residual": LAYERS * (2 * d * r + r + d + 2 * d),
        "lora": LAYERS * 2 * 2 * d * r,
        "bitfit": sum(
            n
            for name, n in sizes.items()
            if name.startswith("encoders.") and name.endswith(".bias")
        ),
        "full": sum(sizes.values()),
        "none": 0,
    }[adapter]
    for tasks in ((), ("a",), ("a", "b", "c")):
        encoder = on(stock, kind, adapter, tasks)
        counts = params.count(torch.nn.ModuleDict({"encoder": encoder}))
        assert counts["formula"] == {"shared": 0, "per_task": one}
        assert counts["shared"] == 0 and counts["one_task"] == one
        assert counts["per_task"] == dict.fromkeys(tasks, one)
        assert counts["backbone"] == sum(sizes.values())
        assert counts["trainable"] == len(tasks) * one
        macs = {"residual": LAYERS * 2 * d * r, "lora": one}.get(adapter, 0)
        assert counts["adapter_macs"] == macs
    text = params.table(counts)
    assert "controller" not in text and "head" not in text
    assert "one task" in text and "all 3 tasks" in text and f'"{adapter}"' in text


def test_the_costs_of_a_real_conformer():
    """12 layers of width 256 and rank 8, on the meta device."""
    conf = conf_of("conformer", output_size=256, num_blocks=12, attention_heads=4)
    with torch.device("meta"):
        encoder = wrap_encoder(CLASSES["conformer"])(
            DIM, adapter="residual", adapter_conf={"rank": 8}, tasks=["a"], **conf
        )
    assert encoder.adapter.formula()["per_task"] == 12 * (4096 + 8 + 256 + 512)


@both
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


# ------------------------------------------------------------- tasks, files, copies


@both
def test_tasks_are_saved_removed_loaded_and_added(adapter, tmp_path):
    encoder = trained("conformer", adapter, tasks=["a", "it.carlo"])
    xs, lens = batch()

    def output(task):
        with encoder.use_task(task):
            return encoder(xs, lens)

    expected, other = output("it.carlo"), output("a")
    encoder.save_task("it.carlo", tmp_path / "task.safetensors")
    encoder.remove_task("it.carlo")
    encoder.remove_task("a")
    assert encoder.tasks == () and same_bits(encoder(xs, lens), output(None))
    assert encoder.load_task(tmp_path / "task.safetensors") == "it.carlo"
    assert same_bits(output("it.carlo"), expected)
    with pytest.raises(TaskError, match="exists"):
        encoder.load_task(tmp_path / "task.safetensors")
    encoder.add_task("a")
    assert same_bits(output("a"), output(None))
    assert same_bits(output("it.carlo"), expected)
    assert same_bits(other, output("a")) == (adapter == "none")

    # On the same backbone only, and for the same adapter only.
    elsewhere = on(stock_of("conformer"), "conformer", adapter, tasks=[])
    assert elsewhere.load_task(tmp_path / "task.safetensors") == "it.carlo"
    elsewhere.remove_task("it.carlo")
    with torch.no_grad():
        elsewhere.after_norm.weight.add_(1e-3)
    with pytest.raises(TaskError, match="another backbone"):
        elsewhere.load_task(tmp_path / "task.safetensors")
    for rival in CONFS:
        if rival not in (adapter, "lora"):
            with pytest.raises(TaskError, match="was made for .*adapter"):
                on(stock_of("conformer"), "conformer", rival, tasks=[]).load_task(
                    tmp_path / "task.safetensors"
                )


@both
def test_new_tasks_have_the_type_of_the_encoder(adapter):
    encoder = on(stock_of("conformer"), "conformer", adapter, tasks=[]).double()
    encoder.add_task("a")
    assert encoder.adapter.heads.vector("a").dtype == torch.float64
    xs, lens = batch()
    assert encoder(xs.double(), lens)[0].dtype == torch.float64


@both
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder))],
    ids=["deepcopy", "pickle"],
)
def test_copies_have_tasks_of_their_own(adapter, copied):
    encoder = trained("conformer", adapter)
    xs, lens = batch()
    encoder.set_task("a")
    expected = encoder(xs, lens)
    other = copied(encoder)
    assert other.tasks == encoder.tasks and same_bits(other(xs, lens), expected)
    as_if_trained(other, seed=8)
    assert same_bits(encoder(xs, lens), expected)
    assert same_bits(other(xs, lens), expected) == (adapter == "none")


@both
def test_state_dict_round_trip(adapter):
    encoder = trained("conformer", adapter)
    keys = [key for key in encoder.state_dict() if key.startswith("adapter.")]
    assert keys == [f"adapter.heads.{name}" for name in "abc"]
    other = on(stock_of("conformer"), "conformer", adapter)
    other.load_state_dict(encoder.state_dict(), strict=True)
    for choice in ("a", "c", None):
        with encoder.use_task(choice), other.use_task(choice):
            assert same_bits(encoder(*batch()), other(*batch()))


# ------------------------------------------------- activation checkpointing, autocast


def gradients_of(encoder, forward, within):
    encoder.zero_grad()
    encoder.set_task("a")
    xs, lens = batch(2)
    torch.manual_seed(4)
    with encoder.use_task(["b", "a"]):
        loss = loss_of(forward(encoder, xs, lens))
        if within:
            loss.backward()
    if not within:
        loss.backward()
    return gradients(encoder)


def plain(encoder, xs, lens):
    return encoder(xs, lens)[0]


def whole(encoder, xs, lens):
    return checkpoint(lambda x: encoder(x, lens)[0], xs, use_reentrant=False)


@pytest.mark.parametrize("within", [True, False], ids=["within", "after"])
@learning
def test_activation_checkpoints_change_nothing(adapter, within):
    encoder = trained("conformer", adapter, drop=0.1).train()
    expected = gradients_of(encoder, plain, within)
    assert set(expected) == {"adapter.heads.a", "adapter.heads.b"}
    found = gradients_of(encoder, whole, within)
    for index, layer in enumerate(encoder.encoders):
        encoder.encoders[index] = checkpoint_wrapper(
            layer, checkpoint_impl=CheckpointImpl.NO_REENTRANT
        )
    by_layer = gradients_of(encoder, plain, within)
    for name, gradient in expected.items():
        for other in (found, by_layer):
            assert (other[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


class CheckpointingEncoder(CLASSES["conformer"]):
    """A Conformer that checkpoints each of its layers itself."""

    def forward(self, xs_pad, ilens):
        masks = torch.ones(xs_pad.size(0), 1, xs_pad.size(1), dtype=torch.bool)
        xs, masks = self.embed(xs_pad, masks)
        for layer in self.encoders:
            xs, masks = checkpoint(layer, xs, masks, use_reentrant=self.reentrant)
        return self.after_norm(xs[0]), masks.sum(-1), None


@learning
def test_an_encoder_that_checkpoints_its_layers_itself(adapter):
    encoder = trained("conformer", adapter, drop=0.1).train()
    torch.manual_seed(1)
    stock = CheckpointingEncoder(DIM, **conf_of("conformer", 0.1))
    own = on(stock, "conformer", adapter, drop=0.1).train()
    own.load_state_dict(encoder.state_dict())
    xs, _ = batch(2)
    lens = torch.full((2,), xs.size(1))
    found = []
    for one in (encoder, own):
        one.reentrant = False
        found.append(gradients_of(one, lambda e, xs, _: e(xs, lens)[0], False))
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    own.reentrant = True
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        gradients_of(own, plain, False)


@pytest.mark.parametrize("adapter", ONE_AT_A_TIME)
def test_reentrant_checkpoints_of_single_layers_are_refused(adapter):
    encoder = trained("conformer", adapter).train()
    for index, layer in enumerate(encoder.encoders):
        encoder.encoders[index] = checkpoint_wrapper(
            layer, checkpoint_impl=CheckpointImpl.REENTRANT
        )
    with encoder.use_task("a"):
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            encoder(*batch())
        with torch.no_grad():
            encoder(*batch())


@pytest.mark.parametrize("names", ["a", ["b", "a"]], ids=["one", "mixed"])
@learning
def test_bfloat16_autocast_is_close_to_float32(adapter, names):
    encoder = trained("conformer", adapter).train()
    encoder.set_task(names)
    xs, lens = batch(2)
    exact = encoder(xs, lens)[0]
    loss_of(exact).backward()
    expected = gradients(encoder)
    encoder.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(xs, lens)[0]
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)
    loss_of(rough).backward()
    found = gradients(encoder)
    assert set(found) == set(expected)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        cosine = torch.cosine_similarity(gradient, expected[name], dim=0)
        assert cosine > 0.95, name


# -------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "adapter, conf, message",
    [
        ("residual", {"rank": 0}, "rank: 0 must be a whole number"),
        ("residual", {"alpha": 1}, "'alpha' is no key of the adapter 'residual'.*rank"),
        ("lora", {"rank": 1.5}, "rank: 1.5"),
        ("lora", {"alpha": 0}, "alpha: 0 must be above 0"),
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
    ],
)
def test_impossible_configurations_are_refused(adapter, conf, message):
    with pytest.raises(ConfigError, match=message):
        on(stock_of("conformer"), "conformer", adapter, **conf)


def test_lora_without_peft_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'espnet-hra\[lora\]'"):
        on(stock_of("conformer"), "conformer", "lora")


@pytest.mark.parametrize("adapter", [a for a in CONFS if a != "none"])
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
    on(stock_of("conformer"), "conformer", adapter, **conf)


# ------------------------------------------------------------- training and decoding


def adaptation(adapter, **adapter_conf):
    conf = {**CONFS[adapter], **adapter_conf}
    return {"adapter": adapter, "adapter_conf": conf, "tasks": ["female", "male"]}


@pytest.fixture(scope="module", params=LEARNING)
def experiment(request, an4, base, tmp_path_factory) -> Path:
    """A short training of both tasks through ESPnet."""
    from test_training import train

    if request.param == "lora":
        pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp(request.param) / "exp"
    conf = adaptation(request.param, ctc="frozen")
    return train(an4, base, folder, max_epoch=5, encoder_conf=conf)


def test_training_learns_and_writes_adapters_only(experiment):
    import json

    states = torch.load(experiment / "checkpoint.pth", weights_only=True)
    stats = states["reporter"]["stats"]
    losses = [stats[epoch]["train"]["loss"] for epoch in (1, 5)]
    assert losses[1] < 0.97 * losses[0]
    state = torch.load(experiment / "valid.loss.ave.pth", weights_only=True)
    heads = ["encoder.adapter.heads.female", "encoder.adapter.heads.male"]
    assert list(state) == heads and not torch.equal(*state.values())
    counts = json.loads((experiment / "params.json").read_text())
    assert counts["trainable"] == 2 * counts["formula"]["per_task"]
    assert counts["trainable"] == sum(v.numel() for v in state.values())


def test_a_trained_experiment_decodes(experiment, an4, tmp_path):
    from test_training import waves

    import espnet_hra

    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(experiment), ctc_greedy=True
    )
    encoder = speech2text.asr_model.encoder
    wave = waves(an4)[0]
    trained = torch.load(experiment / "valid.loss.ave.pth", weights_only=True)
    found = {}
    for task in ("female", "male"):
        vector = encoder.adapter.heads.vector(task)
        assert torch.equal(vector, trained[f"encoder.adapter.heads.{task}"])
        encoder.save_task(task, tmp_path / task)
        speech2text.set_task(task)
        found[task] = speech2text(wave)[0][0]
    other = espnet_hra.Speech2Text.from_pretrained(str(experiment), ctc_greedy=True)
    for task in ("female", "male"):
        other.asr_model.encoder.remove_task(task)
    for task, text in found.items():
        other.asr_model.encoder.load_task(tmp_path / task)
        other.set_task(task)
        assert other(wave)[0][0] == text
    speech2text.set_task(["male", "female"])
    assert [r[0][0] for r in speech2text([wave, wave])] == [
        found["male"],
        found["female"],
    ]


def test_a_new_task_is_trained_beside_others(experiment, an4, base, tmp_path):
    from test_training import train

    adapter = yaml.safe_load((experiment / "config.yaml").read_text())["encoder_conf"][
        "adapter"
    ]
    data = dict(an4)
    for part in ("train", "dev"):
        data[part] = tmp_path / part
        data[part].mkdir()
        for name in ("wav.scp", "text"):
            (data[part] / name).write_text((an4[part] / name).read_text())
        lines = (an4[part] / "text").read_text().splitlines()
        text = "".join(f"{line.split()[0]} new\n" for line in lines)
        (data[part] / "utt2task").write_text(text)
    conf = adaptation(adapter, regime="new_task", ctc="frozen")
    conf["tasks"] = ["female", "male", "new"]
    start = ("--init_adapter", str(experiment / "valid.loss.ave.pth"))
    output = train(data, base, tmp_path / "exp", *start, max_epoch=1, encoder_conf=conf)
    before = torch.load(experiment / "valid.loss.ave.pth", weights_only=True)
    after = torch.load(output / "valid.loss.ave.pth", weights_only=True)
    assert set(after) - set(before) == {"encoder.adapter.heads.new"}
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_an_initial_adapter_of_another_kind_is_refused(an4, base, tmp_path):
    from test_training import train

    torch.save({"encoder.adapter.controller.W": torch.ones(2)}, tmp_path / "hra.pth")
    torch.save({"encoder.after_norm.weight": torch.ones(2)}, tmp_path / "base.pth")
    for name in ("hra", "base"):
        start = ("--init_adapter", str(tmp_path / f"{name}.pth"))
        with pytest.raises(BaseModelError, match="not an adapter of this conf"):
            conf = adaptation("residual")
            train(an4, base, tmp_path / "exp", *start, encoder_conf=conf)


def test_no_adapter_cannot_be_trained_and_decodes_as_the_base(an4, base, tmp_path):
    from test_training import train, waves

    import espnet_hra

    with pytest.raises(ConfigError, match="nothing to train"):
        train(an4, base, tmp_path / "exp", encoder_conf=adaptation("none"))
    config = yaml.safe_load((base / "config.yaml").read_text())
    plain = espnet_hra.Speech2Text.from_pretrained(str(base), ctc_greedy=True)
    config["encoder"] = "hra_conformer"
    config["encoder_conf"].update(adaptation("none"))
    config["pretrained_model"] = str(base)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    speech2text = espnet_hra.Speech2Text(tmp_path / "config.yaml", ctc_greedy=True)
    wave = waves(an4)[0]
    for task in ("female", "male", None):
        speech2text.set_task(task)
        assert speech2text(wave)[0][0] == plain(wave)[0][0]
    with pytest.raises(TaskError, match="unknown task 'robot'"):
        speech2text.set_task("robot")
