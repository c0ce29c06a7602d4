"""What every method does on every encoder: one matrix.

What one method alone does is in test_methods.py, what all of HRA's variants compute in
test_reference.py.
"""

import copy
import inspect
import io
import pickle

import pytest
import torch
from espnet2.asr.ctc import CTC
from small_encoders import (
    CLASSES,
    DIM,
    KINDS,
    METHOD_CONFS,
    WIDTH,
    CheckpointingEncoder,
    adapt,
    adapted_encoder,
    as_if_trained,
    batch,
    conf_of,
    gradients,
    gradients_of,
    leaves,
    loss_of,
    parallel,
    plain,
    same_bits,
    same_gradients,
    stock_encoder,
    whole,
)
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from toy_method import Shift

from espnet_hra import TaskError
from espnet_hra.espnet import params
from espnet_hra.methods import METHODS

#: Variants of HRA that differ in what they keep and compute.
VARIANTS = {
    "hra-ffn": {"head": "ffn"},
    "hra-rnn": {"controller": "rnn"},
    "hra-ligru-ffn": {"controller": "ligru", "head": "ffn"},
    "hra-none": {"controller": "none"},
    "hra-gated": {"controller": "gated"},
    "hra-prompt": {"prompt_size": 3},
    "hra-low-rank": {"head": "low_rank"},
    "hra-shared-head": {"shared_head": True, "output_scale": "layer"},
    "hra-shared-heads": {"shared_head": "layer"},
    "hra-shared-rank": {"shared_rank": 3},
    "hra-shared-rank-prompt": {"shared_rank": 2, "prompt_size": 3},
    "lora-all-dora": {"adapter": "lora", "matrices": "all", "dora": True},
    "lora-shared": {"adapter": "lora", "shared_rank": 3},
    "residual-parallel": {"adapter": "residual", "placement": "parallel"},
    "hra-layers": {"layer_bias": True, "output_scale": "channel"},
}
METHOD_NAMES = (*METHOD_CONFS, "toy")
SPECIMENS = {name: {"adapter": name} for name in METHOD_NAMES} | {
    name: {"adapter": "hra", **METHOD_CONFS.get(conf.get("adapter"), {}), **conf}
    for name, conf in VARIANTS.items()
}
MATRIX = [(method, kind) for method in METHOD_NAMES for kind in KINDS]
MATRIX += [(variant, "conformer") for variant in VARIANTS]
NAMES = ["a", "b", "a", "c"]

matrix = pytest.mark.parametrize("method, kind", MATRIX, ids="-".join)
methods = pytest.mark.parametrize("method", SPECIMENS)
learning = pytest.mark.parametrize("method", [m for m in SPECIMENS if m != "none"])


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    """The one line that adds a method."""
    monkeypatch.setitem(METHODS, "toy", Shift)


def made(method, kind="conformer", tasks=("a", "b", "c"), **kwargs):
    """A small encoder whose tasks are new."""
    return adapted_encoder(kind, tasks, **{**SPECIMENS[method], **kwargs})


def trained(method, kind="conformer", tasks=("a", "b", "c"), **kwargs):
    """One whose tasks differ clearly."""
    return as_if_trained(made(method, kind, tasks, **kwargs), scale=0.1)


def output_of(encoder, choice, size=3):
    with encoder.use_task(choice):
        return encoder(*batch(size))


def freeze_statistics(stock):
    """As they are in an adapted encoder."""
    for module in stock.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


def rows_of(names=NAMES):
    return {n: [i for i, m in enumerate(names) if m == n] for n in dict.fromkeys(names)}


def by_itself(encoder, task, rows, xs, lens, **arguments):
    """What these rows of a batch give without the other tasks' rows.

    A method that serves all tasks in one pass sees the padding of the whole batch; the
    others see that of the task's own rows.
    """
    with encoder.use_task(task):
        if encoder.adapter.mixes:
            whole = leaves(encoder(xs, lens, **arguments))
            return [o[rows] if hasattr(o, "shape") else o for o in whole]
        end = xs.size(1) - int(lens.max() - lens[rows].max())
        if "masks" in arguments:
            arguments["masks"] = arguments["masks"][rows, :end]
        return leaves(encoder(xs[rows, :end], lens[rows], **arguments))


def padded_like(part, whole):
    missing = [(0, n - m) for n, m in zip(whole.shape[1:], part.shape[1:])]
    return torch.nn.functional.pad(part, [n for pair in missing[::-1] for n in pair])


def heads(*names):
    return {f"adapter.heads.{name}" for name in names}


def test_every_method_is_tried():
    assert set(METHODS) == set(METHOD_NAMES)


# -------------------------------------------------------------------- the backbone


@matrix
def test_no_task_and_a_new_task_are_the_stock_encoder_bit_for_bit(method, kind):
    stock = stock_encoder(kind, dropout=0.2)
    encoder = made(method, kind, dropout=0.2)
    xs, lens = batch(4)
    new = (None, "a", NAMES) if encoder.adapter.mixes else (None, "a")
    for training in (False, True):
        encoder.train(training)
        freeze_statistics(stock.train(training))
        torch.manual_seed(5)
        expected = stock(xs, lens)
        for choice in new:
            torch.manual_seed(5)
            with encoder.use_task(choice):
                assert same_bits(encoder(xs, lens), expected), (training, choice)
    stock.eval(), encoder.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        expected = stock(xs, lens)
        for choice in new:
            with encoder.use_task(choice):
                assert same_bits(encoder(xs, lens), expected), ("autocast", choice)
    as_if_trained(encoder)
    expected = stock(xs, lens)
    with encoder.use_task(None):
        assert same_bits(encoder(xs, lens), expected)
    with encoder.use_task("a"):
        assert same_bits(encoder(xs, lens), expected) == (method == "none")


@matrix
def test_keys_are_the_wrapped_encoders_and_additions_lie_under_adapter(method, kind):
    encoder, stock = made(method, kind), stock_encoder(kind, seed=11)
    keys = list(encoder.state_dict())
    assert [k for k in keys if not k.startswith("adapter.")] == list(stock.state_dict())
    assert heads("a", "b", "c") <= set(keys)
    result = encoder.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith("adapter.") for key in result.missing_keys)
    with encoder.use_task("b"):
        assert same_bits(encoder(*batch()), stock(*batch()))


# ----------------------------------------------------------------- mixed batches


@matrix
def test_a_mixed_batch_equals_task_by_task(method, kind):
    encoder = trained(method, kind).train()
    xs, lens = batch(4)
    with encoder.use_task(NAMES):
        mixed, frames, _ = encoder(xs, lens)
    mask = torch.arange(mixed.size(1)) < frames[:, None]

    def loss(output, mask):
        return loss_of(output[mask]) * mask.sum()

    singles = {t: by_itself(encoder, t, r, xs, lens) for t, r in rows_of().items()}
    for task, rows in rows_of().items():
        single, own_frames = singles[task][:2]
        assert torch.equal(frames[rows], own_frames)
        shown = mixed[rows, : single.size(1)]
        torch.testing.assert_close(shown, single, rtol=1e-5, atol=1e-5)
    if method == "none":
        return
    loss(mixed, mask).backward()
    found = gradients(encoder)
    encoder.zero_grad()
    for task, rows in rows_of().items():
        single = singles[task][0]
        loss(single, mask[rows, : single.size(1)]).backward()
    assert {n for n in found if ".heads." in n} == heads("a", "b", "c")
    same_gradients(found, gradients(encoder), 1e-4)


INTER = {"interctc_layer_idx": [1, 2]}
OTHER_OUTPUTS = [
    ("conformer", INTER, {}),
    ("conformer", {}, {"return_all_hs": True}),
    ("conformer", {**INTER, "interctc_use_conditioning": True}, {"ctc": 0.0}),
    ("conformer", {**INTER, "ctc_trim": True}, {"ctc": 50.0}),
    ("conformer", {"input_layer": "linear"}, {"masks": True}),
    ("transformer", INTER, {}),
    ("e_branchformer", {**INTER, "interctc_use_conditioning": True}, {"ctc": 0.0}),
    ("e_branchformer", {"gradient_checkpoint_layers": [0, 1, 2, 3]}, {}),
]


@pytest.mark.parametrize("method", ["hra", "residual", "lora", "full"])
@pytest.mark.parametrize("kind, changes, arguments", OTHER_OUTPUTS, ids=str)
def test_other_outputs_are_put_together_as_well(method, kind, changes, arguments):
    encoder = trained(method, kind, changes=changes)
    xs, lens = batch(4)
    if "ctc" in arguments:
        torch.manual_seed(2)
        ctc = CTC(7, WIDTH).requires_grad_(False)
        ctc.ctc_lo.bias[0] += arguments["ctc"]  # sure of a blank everywhere, or not
        arguments = {"ctc": ctc}
        encoder.conditioning_layer = torch.nn.Linear(7, WIDTH).requires_grad_(False)
    if "masks" in arguments:
        arguments = {"masks": torch.arange(xs.size(1)) >= lens[:, None] - 3}
    with encoder.use_task(NAMES):
        mixed = leaves(encoder(xs_pad=xs, ilens=lens, **arguments))
    with encoder.use_task("a"):
        whole = leaves(encoder(xs, lens, **arguments))
    assert [getattr(o, "shape", o) for o in whole] == [
        getattr(o, "shape", o) for o in mixed
    ]
    for task, rows in rows_of().items():
        single = by_itself(encoder, task, rows, xs, lens, **arguments)
        for found, expected in zip(mixed, single):
            if isinstance(expected, torch.Tensor):
                expected = padded_like(expected, found)
                torch.testing.assert_close(found[rows], expected, rtol=1e-5, atol=1e-5)
            else:
                assert found == expected


class Biased(CLASSES["conformer"]):
    """A Conformer that takes a matrix, the same for all utterances of a batch."""

    def forward(self, xs_pad, ilens, matrix=None):
        if matrix is not None:
            xs_pad = xs_pad + matrix.mean()
        return super().forward(xs_pad, ilens)


@pytest.mark.parametrize("method", ["hra", "lora"])
def test_a_matrix_that_happens_to_be_as_large_as_the_batch_stays_whole(method):
    conf = conf_of("conformer")
    torch.manual_seed(1)
    encoder = adapt(Biased(DIM, **conf), conf, ["a", "b", "c"], **SPECIMENS[method])
    as_if_trained(encoder, scale=0.1)
    xs, lens = batch(4)
    lens[:] = xs.size(1)
    with encoder.use_task(NAMES):
        found = encoder(xs, lens, matrix=torch.arange(4 * 48.0).view(4, 48))[0]
        expected = encoder(xs, lens, matrix=torch.full((2, 7), 95.5))[0]
    torch.testing.assert_close(found, expected)


@methods
def test_a_list_of_one_task_is_that_task(method):
    encoder = trained(method)
    assert same_bits(output_of(encoder, ["b", "b", "b"]), output_of(encoder, "b"))


# ----------------------------------------------------------------------- isolation


@matrix
def test_training_moves_the_chosen_task_and_what_is_shared_only(method, kind):
    encoder = trained(method, kind, dropout=0.1)
    before = copy.deepcopy(encoder.state_dict())
    shared = {f"adapter.{name}" for name in encoder.adapter.shared_parameters()}
    outside = [p for n, p in encoder.named_parameters() if not n.startswith("adapter.")]
    assert not any(p.requires_grad for p in outside)
    xs, lens = batch(2)
    encoder.train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        with encoder.use_task("a"):
            loss = loss_of(encoder(xs, lens)[0])
        assert loss.requires_grad == (method != "none")
        if method == "none":
            return
        loss.backward()
        assert set(gradients(encoder)) == heads("a") | shared
        optimizer.step()
    after = encoder.state_dict()
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    assert moved == heads("a") | shared


@matrix
def test_a_new_task_changes_no_other_by_a_bit(method, kind):
    encoder = trained(method, kind, ["old", "other"])
    before = copy.deepcopy(encoder.state_dict())
    outputs = {c: output_of(encoder, c) for c in ("old", "other", None)}
    encoder.add_task("new")
    encoder.adapter.regime = "new_task"
    encoder.train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.05, weight_decay=0.1)
    if method != "none":
        loss_of(output_of(encoder, "new")[0]).backward()
        optimizer.step()
        assert encoder.adapter.heads.vector("new").abs().sum() > 0
    encoder.eval()
    after = encoder.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    for choice, expected in outputs.items():
        assert same_bits(output_of(encoder, choice), expected)
    encoder.adapter.regime = "joint"
    shared = encoder.adapter.shared_parameters().values()
    assert all(p.requires_grad for p in shared)


@learning
def test_every_part_of_a_task_learns(method):
    encoder = trained(method).train()
    loss_of(output_of(encoder, "a")[0]).backward()
    bank = encoder.adapter.heads
    for name, gradient in bank.layout.split(bank.vector("a").grad).items():
        # What cannot matter: a bias before a softmax over time.
        if not name.endswith(("linear_k.bias", "channel_proj1.bias")):
            assert gradient.abs().sum() > 0, name


@methods
def test_threads_with_different_tasks_do_not_meet(method):
    encoder = trained(method)
    with torch.no_grad():
        expected = {c: output_of(encoder, c) for c in ("a", None, ("b", "a", "c"))}

    def work(choice):
        with torch.no_grad():
            for _ in range(10):
                assert same_bits(output_of(encoder, choice), expected[choice])

    parallel(work, expected)


# ---------------------------------------------------------------------- parameters


@matrix
def test_parameters_are_as_many_as_the_arithmetic_says(method, kind):
    total = sum(p.numel() for p in stock_encoder(kind).parameters())
    for tasks in ((), ("a",), ("a", "b", "c")):
        encoder = made(method, kind, tasks)
        counts = params.count(torch.nn.ModuleDict({"encoder": encoder}))
        formula = counts["formula"]
        assert counts["backbone"] == total
        assert counts["shared"] == formula["shared"]
        assert counts["one_task"] == formula["per_task"] == encoder.adapter.heads.size
        assert counts["per_task"] == dict.fromkeys(tasks, formula["per_task"])
        added = formula["shared"] + len(tasks) * formula["per_task"]
        assert counts["trainable"] == added
        assert sum(p.numel() for p in encoder.parameters()) == total + added
    table = params.table(counts)
    assert "one task" in table and "all 3 tasks" in table
    assert f'"{SPECIMENS[method]["adapter"]}"' in table


# --------------------------------------------------------- files, copies, state_dict


@matrix
def test_a_task_is_saved_removed_and_loaded_bit_for_bit(method, kind, tmp_path):
    encoder, path = trained(method, kind, ["a", "it.carlo"]), tmp_path / "file"
    expected = output_of(encoder, "it.carlo")
    state = copy.deepcopy(encoder.state_dict())
    encoder.save_task("it.carlo", path)
    encoder.remove_task("it.carlo")
    assert encoder.tasks == ("a",)
    assert encoder.load_task(path) == "it.carlo"
    assert same_bits(output_of(encoder, "it.carlo"), expected)
    now = encoder.state_dict()
    assert list(now) == list(state) and all(torch.equal(now[k], state[k]) for k in now)
    with pytest.raises(TaskError, match="exists already.*replace=True"):
        encoder.load_task(path)
    # For this very backbone, and this configuration of this method.
    with torch.no_grad():
        encoder.after_norm.weight.add_(1e-3)
    with pytest.raises(TaskError, match="another backbone"):
        encoder.load_task(path, replace=True)


@methods
def test_a_task_of_another_method_is_refused(method, tmp_path):
    trained(method).save_task("a", tmp_path / "file")
    for other in set(METHOD_NAMES) - {SPECIMENS[method]["adapter"], "lora"}:
        with pytest.raises(TaskError, match="was made for .*adapter"):
            made(other, tasks=[]).load_task(tmp_path / "file")


def reread(encoder):
    """As users of ``torch.save(model)`` have it."""
    file = io.BytesIO()
    torch.save(encoder, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder)), reread],
    ids=["deepcopy", "pickle", "torch.save"],
)
@methods
def test_a_copy_has_tasks_of_its_own_and_all_that_is_said_of_them(
    method, copied, tmp_path
):
    encoder = trained(method)
    said = {"license": "cc-by-4.0", "data": "their voices", "languages": ["it"]}
    encoder.save_task("a", tmp_path / "a", info=said)
    encoder.load_task(tmp_path / "a", replace=True)
    expected = output_of(encoder, "a")
    other = copied(encoder)
    assert type(other) is type(encoder) and other.tasks == encoder.tasks
    assert same_bits(output_of(other, "a"), expected)
    assert said.items() <= other.task_info("a").items()
    other.save_task("a", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "a").read_bytes()
    other.add_task("new")
    as_if_trained(other, seed=8)
    assert encoder.tasks == ("a", "b", "c")
    assert same_bits(output_of(encoder, "a"), expected)
    assert same_bits(output_of(other, "a"), expected) == (method == "none")


@methods
def test_a_state_dict_holds_everything(method):
    encoder, other = trained(method), made(method)
    other.load_state_dict(encoder.state_dict(), strict=True)
    for choice in ("a", ["c", "a", "a"], None):
        assert same_bits(output_of(encoder, choice), output_of(other, choice))


@methods
def test_new_tasks_have_the_type_of_the_encoder(method):
    encoder = made(method, tasks=[]).double()
    encoder.add_task("a")
    assert encoder.adapter.heads.vector("a").dtype == torch.float64
    xs, lens = batch()
    assert encoder(xs.double(), lens)[0].dtype == torch.float64


# ----------------------------------------------- activation checkpoints and autocast


def wrap_layers(encoder, how=CheckpointImpl.NO_REENTRANT):
    for index, layer in enumerate(encoder.encoders):
        encoder.encoders[index] = checkpoint_wrapper(layer, checkpoint_impl=how)


@pytest.mark.parametrize("within", [True, False], ids=["within", "after"])
@learning
def test_activation_checkpoints_change_nothing(method, within):
    encoder = trained(method, dropout=0.1).train()
    expected = gradients_of(encoder, plain, within)
    assert {name for name in expected if ".heads." in name} == heads("a", "b")
    same_gradients(gradients_of(encoder, whole, within), expected)
    wrap_layers(encoder)
    same_gradients(gradients_of(encoder, plain, within), expected)


@learning
def test_an_encoder_that_checkpoints_its_layers_itself(method):
    encoder = trained(method, dropout=0.1).train()
    conf = conf_of("conformer", 0.1)
    own = adapt(
        CheckpointingEncoder(DIM, **conf),
        conf,
        ["a", "b", "c"],
        backbone_dropout=True,
        **SPECIMENS[method],
    ).train()
    own.load_state_dict(encoder.state_dict())
    xs, _ = batch(2)
    lens = torch.full((2,), xs.size(1))

    def forward(encoder, xs, _):
        return encoder(xs, lens)[0]

    def nested(encoder, xs, _):
        return whole(encoder, xs, lens)

    expected = gradients_of(encoder, forward)
    for within in (True, False):
        same_gradients(gradients_of(own, forward, within), expected)
        same_gradients(gradients_of(own, nested, within), expected)
    own.reentrant = True
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        gradients_of(own, forward)


@pytest.mark.parametrize("method", ["lora", "bitfit", "full"])
def test_reentrant_wrappers_around_layers_are_refused(method):
    encoder = trained(method).train()
    wrap_layers(encoder, CheckpointImpl.REENTRANT)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        output_of(encoder, "a")
    with torch.no_grad():
        output_of(encoder, "a")


@pytest.mark.parametrize("names", ["a", ["b", "a"]], ids=["one", "mixed"])
@learning
def test_bfloat16_autocast_is_close_to_float32(method, names):
    encoder = trained(method).train()
    xs, lens = batch(2)
    exact = gradients_of(encoder, plain, names=names)

    def rough(encoder, xs, lens):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return encoder(xs, lens)[0]

    with torch.no_grad(), encoder.use_task(names):
        found, expected = rough(encoder, xs, lens), plain(encoder, xs, lens)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    found = gradients_of(encoder, rough, names=names)
    assert set(found) == set(exact)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32 and gradient.isfinite().all()
        # Where a frame is close to the kink of a relu, rounding turns it on or off.
        flat = [g.flatten() for g in (gradient, exact[name])]
        assert torch.cosine_similarity(*flat, dim=0) > 0.95, name
        assert 0.8 < flat[0].norm() / flat[1].norm() < 1.25, name


# -------------------------------------------------------------------- a new method


def test_a_method_is_one_file_and_one_line():
    """The toy: all of the above, from one module that knows tensors only."""
    source = inspect.getsource(inspect.getmodule(Shift))
    imports = [line for line in source.splitlines() if " import " in line]
    assert len(source.splitlines()) < 50
    assert all("methods.base" in line or "layout" in line for line in imports)
