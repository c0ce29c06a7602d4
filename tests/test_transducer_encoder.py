"""The encoder of the ESPnet task asr_transducer with an adapter: whole, in chunks."""

import copy
import pickle

import pytest
import torch
from espnet2.asr_transducer.encoder import encoder as stock_module
from espnet2.asr_transducer.encoder.blocks.conv_input import ConvInput
from espnet2.asr_transducer.encoder.encoder import Encoder
from espnet2.tasks import asr_transducer
from small_encoders import (
    DIM,
    METHOD_CONFS,
    RANK,
    adapt,
    as_if_trained,
    batch,
    gradients,
    loss_of,
    randomise_statistics,
    same_bits,
)

import espnet_hra
from espnet_hra.encoder.adapted import AdaptedEncoder, wrap_encoder
from espnet_hra.errors import ConfigError, TaskError

HIDDEN, CHUNK, LEFT = 16, 4, 2
SHOWN = {"encoder": "encoder of asr_transducer", "entrance": "in Python"}


def xformer(kind: str, n: int = 3, hidden: int = HIDDEN) -> dict:
    return {
        "block_type": kind,
        "hidden_size": hidden,
        "linear_size": 24,
        "heads": 2,
        "conv_mod_kernel_size": 3,
        "dropout_rate": 0.1,
        "num_blocks": n,
    }


def conv(size: int, **more) -> dict:
    return {"block_type": "conv1d", "output_size": size, "kernel_size": 3, **more}


BODIES = {
    "conformer": [xformer("conformer")],
    "branchformer": [xformer("branchformer")],
    "ebranchformer": [xformer("ebranchformer")],
    "conv1d first": [conv(24), conv(HIDDEN), xformer("conformer")],
    "conv1d between": [
        xformer("branchformer", 1, 8),
        xformer("ebranchformer", 1, 8),
        conv(HIDDEN),
        xformer("conformer", 1),
        conv(HIDDEN, batch_norm=True),
        xformer("ebranchformer", 2),
    ],
}


def conf_of(body: str, chunks: bool = False, **main) -> dict:
    return {
        "body_conf": copy.deepcopy(BODIES[body]),
        "input_conf": {"conv_size": 8},
        "main_conf": {
            "dynamic_chunk_training": chunks,
            "short_chunk_size": CHUNK,
            "num_left_chunks": LEFT,
            **main,
        },
    }


def stock(body: str, chunks: bool = False) -> Encoder:
    torch.manual_seed(1)
    encoder = Encoder(DIM, **conf_of(body, chunks))
    randomise_statistics(encoder)
    return encoder.eval()


def adapted(body: str, tasks=(), chunks: bool = False, **keys) -> AdaptedEncoder:
    if keys.get("adapter") == "lora":
        keys = {"rank": RANK, "matrices": "all", **keys}
    return adapt(stock(body, chunks), conf_of(body, chunks), tasks, **keys)


def trained(body: str, chunks: bool = False, **keys) -> AdaptedEncoder:
    return as_if_trained(adapted(body, ("a", "b"), chunks, **keys), scale=0.1)


def streamed(encoder, xs: torch.Tensor, left: int = CHUNK * LEFT) -> torch.Tensor:
    """What an encoder says of (1, frames, d), given chunk after chunk.

    A chunk of `CHUNK` frames after subsampling by 4 sees one more on either side, as
    ESPnet's OnlineAudioProcessor cuts them.
    """
    encoder.reset_cache(left, xs.device)
    seen, outputs = torch.tensor([[0]]), []
    size, hop = 4 * (CHUNK + 2) + 3, 4 * CHUNK
    for start in range(0, xs.size(1) - size + 1, hop):
        chunk = xs[:, start : start + size]
        lengths = torch.tensor([size])
        outputs.append(encoder.chunk_forward(chunk, lengths, seen, left_context=left))
        seen = seen + outputs[-1].size(1)
    return torch.cat(outputs, 1)


def at_once(encoder, xs: torch.Tensor, monkeypatch) -> torch.Tensor:
    """The same in one pass, whose attention sees chunks, as in training."""
    with monkeypatch.context() as patch:
        embed = ConvInput.forward
        trimmed = lambda *given: [one[:, 1:-1] for one in embed(*given)]  # noqa: E731
        patch.setattr(ConvInput, "forward", trimmed)
        size = torch.tensor([CHUNK - 1])
        patch.setattr(stock_module.torch, "randint", lambda *_: size)
        return encoder(xs, torch.tensor([xs.size(1)]))[0]


STREAM = torch.randn(
    1, 4 * (5 * CHUNK + 2) + 3, DIM, generator=torch.Generator().manual_seed(5)
)


#: Methods for encoders that hear an utterance block by block.
IN_BLOCKS = [name for name in METHOD_CONFS if name != "prompt"]


@pytest.mark.shows(**SHOWN)
@pytest.mark.parametrize("body", BODIES)
def test_without_a_task_and_with_a_new_one_it_is_espnets_own(body):
    plain, ours = stock(body), adapted(body, ("new",))
    for task in (None, "new"):
        ours.set_task(task)
        assert same_bits(ours(*batch()), plain(*batch()))
    keys = {k for k in ours.state_dict() if not k.startswith("adapter.")}
    assert keys == plain.state_dict().keys()


@pytest.mark.parametrize("body", BODIES)
def test_chunk_after_chunk_as_well(body):
    plain, ours = stock(body, True), adapted(body, ("new",), True)
    expected = streamed(plain, STREAM)
    for task in (None, "new"):
        ours.set_task(task)
        assert torch.equal(streamed(ours, STREAM), expected)


@pytest.mark.shows(encoder="encoder of asr_transducer", entrance="streaming")
@pytest.mark.parametrize("adapter", IN_BLOCKS)
@pytest.mark.parametrize("body", BODIES)
def test_in_chunks_it_is_what_it_is_at_once(body, adapter, monkeypatch):
    ours = trained(body, True, adapter=adapter)
    plain = stock(body, True)
    usual = at_once(plain, STREAM, monkeypatch)
    torch.testing.assert_close(streamed(plain, STREAM), usual, atol=1e-5, rtol=1e-5)
    for task in ("a", "b"):
        ours.set_task(task)
        found = at_once(ours, STREAM, monkeypatch)
        torch.testing.assert_close(streamed(ours, STREAM), found, atol=1e-5, rtol=1e-5)
        assert adapter == "none" or not torch.allclose(found, usual, atol=1e-3)


@pytest.mark.parametrize("adapter", IN_BLOCKS)
@pytest.mark.parametrize("body", ["conformer", "conv1d between"])
def test_a_mixed_batch_is_what_its_utterances_are_alone(body, adapter):
    ours = trained(body, adapter=adapter)
    xs, lens = batch()
    names = ["b", "a", "b"]
    with ours.use_task(names):
        mixed, frames = ours(xs, lens)
    for i, name in enumerate(names):
        with ours.use_task(name):
            alone, n = ours(xs[i : i + 1, : lens[i]], lens[i : i + 1])
        assert n == frames[i]
        torch.testing.assert_close(mixed[i, :n], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunks", [False, True])
def test_only_the_adapter_and_the_tasks_of_the_batch_learn(chunks):
    ours = trained("conv1d between", chunks).train()
    statistics = {k: v.clone() for k, v in ours.named_buffers()}
    with ours.use_task("a"):
        loss_of(ours(*batch())[0]).backward()
    found = gradients(ours)
    assert all(name.startswith("adapter.") for name in found)
    heads = {name for name in found if "heads." in name}
    assert heads == {"adapter.heads.a"}
    assert all(torch.equal(v, statistics[k]) for k, v in ours.named_buffers())


def test_the_controller_begins_anew_after_a_convolution():
    """Its frames are others. Blocks before it are narrower and left alone."""
    ours = trained("conv1d between")
    assert ours.adapter.num_layers == 3
    starts = []
    step = ours.adapter.step

    def noted(index, read, x, h, *heads):
        starts.append((index, h is None))
        return step(index, read, x, h, *heads)

    ours.adapter.step = noted
    with ours.use_task("a"):
        ours(*batch())
    assert starts == [(0, True), (1, True), (2, False)]


def test_blocks_may_be_dropped_in_training():
    conf = conf_of("conformer", blockdrop_rate=0.9)
    ours = as_if_trained(adapt(stock("conformer"), conf, ("a",))).train()
    torch.manual_seed(3)
    loss_of(ours(*batch())[0]).backward()
    assert gradients(ours)


def test_paths_of_matrices_are_those_of_the_encoder():
    ours = adapted("conv1d between", ("a",), adapter="lora", matrices=["linear_q"])
    paths = {name[: -len(".A")] for name in ours.adapter.heads.layout.shapes}
    paths = {path for path in paths if not path.endswith(".")}
    expected = {f"encoders.blocks.{i}.self_att.linear_q" for i in (3, 5, 6)}
    assert expected == {path for path in paths if path in expected} == paths


def test_bodies_of_convolutions_alone_are_refused():
    cls = wrap_encoder(Encoder)
    with pytest.raises(ConfigError, match="body_conf: none of these blocks .*output"):
        cls(DIM, body_conf=[conv(HIDDEN), conv(HIDDEN)])


def test_copies_and_pickles_compute_the_same():
    ours = trained("conformer")
    ours.set_task("b")
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert same_bits(other(*batch()), ours(*batch()))


def test_a_stream_asks_for_a_task():
    ours = trained("conformer", True)
    with pytest.raises(TaskError, match="no task was chosen"):
        streamed(ours, STREAM)


def test_espnets_module_builds_either():
    """It has no registry: keys of an adapter decide."""
    espnet_hra.register()
    espnet_hra.register()  # twice is once
    conf = conf_of("conformer")
    assert type(asr_transducer.Encoder(DIM, **conf)) is Encoder
    ours = asr_transducer.Encoder(DIM, adapter="hra", tasks=["a"], **conf)
    assert isinstance(ours, wrap_encoder(Encoder))
    assert ours.tasks == ("a",)


def test_sizes_of_one_encoder_do_not_reach_another():
    """ESPnet keeps what it works out in a default argument."""
    for hidden in (8, 16):
        body = [xformer("conformer", 1, hidden)]
        ours = asr_transducer.Encoder(DIM, adapter="hra", tasks=["a"], body_conf=body)
        assert ours.embed.conv[0].out_channels == hidden
