"""Whatever ESPnet's encoders can do, the adapted ones can do as well."""

import copy

import pytest
import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.encoder.contextual_block_conformer_encoder import (
    ContextualBlockConformerEncoder,
)
from espnet2.asr.encoder.contextual_block_transformer_encoder import (
    ContextualBlockTransformerEncoder,
)
from espnet2.asr.encoder.multiconvformer_encoder import MultiConvConformerEncoder
from espnet2.asr.encoder.rnn_encoder import RNNEncoder
from small_encoders import (
    CLASSES,
    DIM,
    WIDTH,
    adapt,
    adapted_encoder,
    as_if_trained,
    batch,
    conf_of,
    leaves,
    loss_of,
    randomise_statistics,
    same_bits,
)

from espnet_hra.encoder.adapted import wrap_encoder

VOCABULARY = 7
ABS = {"selfattention_layer_type": "selfattn", "rel_pos_type": "latest"}
LATEST = {"rel_pos_type": "latest"}
LEGACY = {"rel_pos_type": "legacy"}
SUBSAMPLING = ("conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8")

# Name: (encoder, what is changed in its configuration, arguments of forward).
CASES = {
    **{f"{kind}": ("conformer", {"input_layer": kind}, {}) for kind in SUBSAMPLING},
    **{
        f"{kind}-{name}": ("conformer", {"input_layer": kind, **pos}, {})
        for kind in ("linear", "embed", None)
        for name, pos in (
            ("rel_pos", LATEST),
            ("legacy", LEGACY),
            ("abs_pos", {**ABS, "pos_enc_layer_type": "abs_pos"}),
        )
    },
    **{
        f"{pos}-selfattn": ("conformer", {**ABS, "pos_enc_layer_type": pos}, {})
        for pos in ("abs_pos", "scaled_abs_pos", "conv")
    },
    "legacy_rel_pos": ("conformer", LEGACY, {}),
    "rel_pos-selfattn": ("conformer", {**ABS, "pos_enc_layer_type": "rel_pos"}, {}),
    "zero_triu": ("conformer", {**LATEST, "zero_triu": True}, {}),
    "legacy-zero_triu": ("conformer", {**LEGACY, "zero_triu": True}, {}),
    "qk_norm": (
        "conformer",
        {**ABS, "pos_enc_layer_type": "abs_pos", "qk_norm": True},
        {},
    ),
    "use_sdpa": ("conformer", {**LATEST, "use_sdpa": True}, {}),
    "use_sdpa-selfattn": (
        "conformer",
        {**ABS, "pos_enc_layer_type": "abs_pos", "use_sdpa": True},
        {},
    ),
    **{
        f"positionwise-{kind}": ("conformer", {"positionwise_layer_type": kind}, {})
        for kind in ("linear", "conv1d", "conv1d-linear")
    },
    "no_macaron": ("conformer", {"macaron_style": False}, {}),
    "concat_after": ("conformer", {"concat_after": True}, {}),
    "normalize_after": ("conformer", {"normalize_before": False}, {}),
    "no_cnn_module": ("conformer", {"use_cnn_module": False}, {}),
    "relu": ("conformer", {"activation_type": "relu"}, {}),
    "one_layer": ("conformer", {"num_blocks": 1}, {}),
    "stochastic_depth": ("conformer", {"stochastic_depth_rate": 0.4}, {}),
    "stochastic_depths": (
        "conformer",
        {"stochastic_depth_rate": [0.0, 0.9, 0.5], **LEGACY},
        {},
    ),
    "layer_drop": ("conformer", {"layer_drop_rate": 0.4}, {}),
    "return_all_hs": ("conformer", {}, {"return_all_hs": True}),
    "return_all_hs-abs_pos": (
        "conformer",
        {**ABS, "pos_enc_layer_type": "abs_pos"},
        {"return_all_hs": True},
    ),
    "masks": ("conformer", {"input_layer": "linear"}, {"masks": True}),
    "interctc": ("conformer", {"interctc_layer_idx": [1, 2]}, {}),
    "interctc-abs_pos": (
        "conformer",
        {"interctc_layer_idx": [2], **ABS, "pos_enc_layer_type": "abs_pos"},
        {"ctc": True},
    ),
    **{
        f"interctc-conditioning-{name}": (
            "conformer",
            {"interctc_layer_idx": [1, 2], "interctc_use_conditioning": True, **pos},
            {"ctc": True},
        )
        for name, pos in (
            ("rel_pos", LATEST),
            ("legacy", LEGACY),
            ("abs_pos", {**ABS, "pos_enc_layer_type": "abs_pos"}),
        )
    },
    **{
        f"ctc_trim-{name}": (
            "conformer",
            {"interctc_layer_idx": [1, 2], "ctc_trim": True, **pos},
            {"ctc": "blanks"},
        )
        for name, pos in (
            ("rel_pos", LATEST),
            ("legacy", LEGACY),
            ("abs_pos", {**ABS, "pos_enc_layer_type": "abs_pos"}),
        )
    },
    "ctc_trim-nothing": (
        "conformer",
        {"interctc_layer_idx": [1], "ctc_trim": True},
        {"ctc": True},
    ),
    "transformer-linear": ("transformer", {"input_layer": "linear"}, {}),
    "transformer-None": ("transformer", {"input_layer": None}, {}),
    "transformer-layer_drop": ("transformer", {"layer_drop_rate": 0.4}, {}),
    "transformer-interctc": (
        "transformer",
        {"interctc_layer_idx": [1], "interctc_use_conditioning": True},
        {"ctc": True},
    ),
    "transformer-return_all_hs": ("transformer", {}, {"return_all_hs": True}),
    "branchformer-learned_ave": ("branchformer", {"merge_method": "learned_ave"}, {}),
    "branchformer-stochastic_depth": (
        "branchformer",
        {"stochastic_depth_rate": 0.4},
        {},
    ),
    "branchformer-fast_selfattn": (
        "branchformer",
        {"attention_layer_type": "fast_selfattn", "pos_enc_layer_type": "abs_pos"},
        {},
    ),
    "e_branchformer-layer_drop": ("e_branchformer", {"layer_drop_rate": 0.4}, {}),
    "e_branchformer-max_layer": ("e_branchformer", {}, {"max_layer": 2}),
    "e_branchformer-interctc": (
        "e_branchformer",
        {"interctc_layer_idx": [1, 2], "interctc_use_conditioning": True},
        {"ctc": True},
    ),
    "e_branchformer-checkpointed": (
        "e_branchformer",
        {"gradient_checkpoint_layers": [0, 1, 3]},
        {},
    ),
}

#: Cases in which ESPnet's own encoder raises; the adapted one must do the same.
BROKEN_IN_ESPNET = {"rel_pos-selfattn", "ctc_trim-abs_pos"}


def make_ctc(kind):
    """A CTC layer as ESPnet's model has it; "blanks" is sure of a blank everywhere."""
    torch.manual_seed(2)
    ctc = CTC(VOCABULARY, WIDTH).requires_grad_(False)
    if kind == "blanks":
        ctc.ctc_lo.bias[0] += 50.0
    return ctc


def outcome(encoder, xs, lens, arguments, seed=5):
    """Output of forward, or the error it raises."""
    torch.manual_seed(seed)
    try:
        return encoder(xs, lens.clone(), **arguments)
    except (RuntimeError, TypeError, ValueError, UnboundLocalError) as e:
        return (type(e).__name__, str(e))


def freeze_batch_norm(module):
    for child in module.modules():
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
            child.eval()


@pytest.mark.shows(
    encoder=("conformer", "transformer", "branchformer", "e_branchformer"),
    entrance="in Python",
)
@pytest.mark.parametrize("name", CASES)
def test_the_adapted_encoder_does_what_the_original_does(name):
    kind, changes, arguments = CASES[name]
    conf = conf_of(kind, dropout=0.1, **{"input_layer": "conv2d", **changes})
    xs, lens = batch()
    dim = DIM
    if conf["input_layer"] == "embed":
        xs = (xs[:, :, 0] * 5).long() % dim
    elif conf["input_layer"] is None:
        xs, dim = xs[:, :, :WIDTH], WIDTH
    arguments = dict(arguments)
    if "ctc" in arguments:
        arguments["ctc"] = make_ctc(arguments["ctc"])
    if "masks" in arguments:
        arguments["masks"] = torch.arange(xs.size(1)) >= lens[:, None] - 3
    torch.manual_seed(1)
    try:
        stock = CLASSES[kind](dim, **conf)
    except AssertionError as e:
        assert name in BROKEN_IN_ESPNET
        with pytest.raises(type(e)):
            wrap_encoder(CLASSES[kind])(dim, **conf)
        return
    randomise_statistics(stock)
    encoder = adapt(stock, conf, ["a", "b"], dim, backbone_dropout=True)
    if conf.get("interctc_use_conditioning"):
        layer = torch.nn.Linear(VOCABULARY, WIDTH).requires_grad_(False)
        stock.conditioning_layer, encoder.conditioning_layer = layer, layer

    broken = False
    for training in (False, True):
        stock.train(training)
        encoder.train(training)
        freeze_batch_norm(stock)
        # Without gradients: torch has other attention kernels where they are needed.
        with torch.no_grad():
            expected = outcome(stock, xs, lens, arguments)
            broken = isinstance(expected[0], str)
            for choice in (None, "a", ["a", "b", "b"]):
                encoder.set_task(choice)
                found = outcome(encoder, xs, lens, arguments)
                assert same_bits(found, expected), choice
    assert broken == (name in BROKEN_IN_ESPNET)
    if broken:
        return

    as_if_trained(encoder)
    encoder.set_task(["a", "b", "b"])
    for training in (False, True):
        stock.train(training)
        encoder.train(training)
        freeze_batch_norm(stock)
        encoder.zero_grad()
        # Not every seed leaves a layer where layers are dropped at random.
        output = outcome(encoder, xs, lens, arguments)
        assert not isinstance(output[0], str), output
        expected = outcome(stock, xs, lens, arguments)
        output, expected = leaves(output), leaves(expected)
        assert [getattr(o, "shape", o) for o in output] == [
            getattr(o, "shape", o) for o in expected
        ]
        assert not same_bits(output[0], expected[0])
        floats = [o for o in output if getattr(o, "requires_grad", False)]
        sum(loss_of(o) for o in floats).backward()
        for part in ("heads.a", "heads.b", "controller.W", "controller.b"):
            gradient = encoder.adapter.get_parameter(part).grad
            assert gradient.isfinite().all() and gradient.abs().sum() > 0, part


def test_a_layer_given_as_a_module_is_treated_as_espnet_treats_it():
    conf = conf_of("conformer", input_layer=torch.nn.Linear(DIM, WIDTH))
    errors = []
    for cls in (ConformerEncoder, wrap_encoder(ConformerEncoder)):
        with pytest.raises(Exception) as error:
            cls(DIM, **conf)
        errors.append(error.type)
    assert errors[0] is errors[1]


def test_forward_takes_keywords():
    encoder = as_if_trained(adapted_encoder("conformer", ["a"]))
    xs, lens = batch()
    assert same_bits(encoder(xs_pad=xs, ilens=lens), encoder(xs, lens))


def test_statistics_stay_frozen_in_an_encoder_on_which_train_was_never_called():
    conf = conf_of("conformer")
    encoder = wrap_encoder(ConformerEncoder)(
        DIM, adapter_conf={"controller_size": 4}, tasks=["a"], **conf
    )
    assert encoder.training
    before = copy.deepcopy(encoder.state_dict())
    encoder(*batch())
    after = encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_train_and_eval_reach_all_but_statistics_and_dropout(mode, dropout):
    encoder = torch.nn.ModuleDict(
        {"encoder": adapted_encoder("conformer", ["a"], backbone_dropout=dropout)}
    )
    kept = (torch.nn.modules.batchnorm._BatchNorm,)
    if not dropout:
        kept += (torch.nn.Dropout,)
    assert any(isinstance(module, kept[-1]) for module in encoder.modules())
    assert encoder.train(mode)["encoder"].training == mode
    for module in encoder.modules():
        assert module.training == (mode and not isinstance(module, kept))


def test_without_dropout_of_the_backbone_training_sees_what_decoding_sees():
    encoder = as_if_trained(
        adapted_encoder("conformer", ["a"], dropout=0.5, backbone_dropout=False)
    )
    xs, lens = batch()
    expected = encoder.eval()(xs, lens)[0]
    assert torch.equal(encoder.train()(xs, lens)[0], expected)
    dropping = as_if_trained(adapted_encoder("conformer", ["a"], dropout=0.5))
    assert not torch.equal(dropping.train()(xs, lens)[0], expected)


@pytest.mark.shows(
    encoder=("rnn", "vgg_rnn"), entrance="in Python", because="recurrent"
)
def test_an_encoder_without_a_list_of_layers_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="RNNEncoder.*encoders.*conformer"):
        wrap_encoder(RNNEncoder)(DIM)


def test_too_short_utterances_are_refused_as_espnet_refuses_them():
    from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
        TooShortUttError,
    )

    encoder = adapted_encoder("conformer", ["a"])
    with pytest.raises(TooShortUttError):
        encoder(torch.zeros(1, 3, DIM), torch.tensor([3]))


@pytest.mark.shows(encoder="multiconv_conformer", entrance="in Python")
def test_multiconv_conformer_can_be_wrapped():
    conf = conf_of("transformer", dropout=0.0)
    conf |= {"cgmlp_linear_units": 24, "multicgmlp_kernel_sizes": "3,5"}
    conf |= {"multicgmlp_merge_conv_kernel": 3, "rel_pos_type": "latest"}
    torch.manual_seed(1)
    stock = MultiConvConformerEncoder(DIM, **conf).eval()
    encoder = adapt(stock, conf, ["a"])
    xs, lens = batch()
    assert same_bits(encoder(xs, lens), stock(xs, lens))
    loss_of(as_if_trained(encoder)(xs, lens)[0]).backward()
    assert encoder.adapter.heads.vector("a").grad.abs().sum() > 0


# ------------------------------------------------- lists of layers in other places


class Blocks(torch.nn.Module):
    """Layers as Whisper keeps them."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Linear(DIM, WIDTH)
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(WIDTH, 2, 24, 0.0, batch_first=True)
            for _ in range(3)
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


class WhisperLike(AbsEncoder):
    """An encoder of somebody else's, which this package has never heard of."""

    def __init__(self, input_size, **conf):
        super().__init__()
        self.encoders = Blocks()

    def output_size(self):
        return WIDTH

    def forward(self, xs_pad, ilens, prev_states=None):
        return self.encoders(xs_pad), ilens, None


BEATS = {
    **{"encoder_layers": 3, "encoder_embed_dim": WIDTH, "embed_dim": WIDTH},
    **{"encoder_ffn_embed_dim": 24, "encoder_attention_heads": 2, "deep_norm": True},
    **{"conv_pos": 8, "conv_pos_groups": 2, "relative_position_embedding": True},
    **{"num_buckets": 32, "max_distance": 64, "gru_rel_pos": True},
}
HUBERT = {
    "extractor_conv_layer_config": [[16, 10, 5], [16, 3, 2], [16, 3, 2], [16, 2, 2]],
    **{"encoder_embed_dim": WIDTH, "encoder_ff_interm_features": 24},
    **{"encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 2},
    **{"encoder_num_layers": 3, "encoder_num_heads": 2, "encoder_layer_drop": 0.0},
    **{"num_classes": 5, "final_dim": 8, "finetuning": True, "mask_prob": 0.0},
}


def elsewhere(name):
    """Class, configuration, input and the path of the layers."""
    wave = 0.1 * torch.randn(3, 8000, generator=torch.Generator().manual_seed(0))
    lens = torch.tensor([8000, 6400, 6400])
    if name == "beats":
        from espnet2.beats.encoder import BeatsEncoder

        return BeatsEncoder, {"beats_config": BEATS}, (wave, lens), "encoder.layers"
    if name == "torchaudiohubert":
        from espnet2.asr.encoder.hubert_encoder import TorchAudioHuBERTPretrainEncoder

        path = "hubert_pretrain_model.wav2vec2.encoder.transformer.layers"
        return TorchAudioHuBERTPretrainEncoder, HUBERT, (wave, lens), path
    xs, lens = batch()
    return WhisperLike, {}, (xs, torch.full_like(lens, xs.size(1))), "encoders.blocks"


@pytest.mark.shows(encoder="{name}", entrance="in Python")
@pytest.mark.parametrize("adapter", ["hra", "residual", "bitfit"])
@pytest.mark.parametrize("name", ["whisper-like", "beats", "torchaudiohubert"])
def test_layers_are_found_wherever_they_hang(name, adapter, tmp_path):
    cls, conf, (xs, lens), path = elsewhere(name)
    torch.manual_seed(1)
    stock = cls(DIM, **conf).eval().requires_grad_(False)
    encoder = adapt(stock, conf, ["a", "b"], adapter=adapter)
    assert encoder.layer_list.path == path
    with torch.no_grad():
        expected = stock(xs, lens)[0]
        for choice in (None, "a"):
            with encoder.use_task(choice):
                assert torch.equal(encoder(xs, lens)[0], expected), choice
    fingerprint = encoder.backbone_fingerprint
    as_if_trained(encoder.train(), scale=0.1)
    encoder.set_task("a")
    loss_of(encoder(xs, lens)[0]).backward()
    assert encoder.adapter.heads.vector("a").grad.abs().sum() > 0
    encoder.eval()
    with torch.no_grad():
        encoder.set_task(["b", "a", "a"])
        mixed = encoder(xs, lens)[0]
        with encoder.use_task("a"):  # these rows, with their own padding
            alone = encoder(xs[1:, : lens[1]], lens[1:])[0]
    found = mixed[1:, : alone.size(1)]
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    encoder.save_task("a", tmp_path / "a")
    again = adapt(stock, conf, [], adapter=adapter)
    if adapter != "hra":  # whose controller is another
        assert again.load_task(tmp_path / "a") == "a"
    assert again.backbone_fingerprint == fingerprint


def test_a_schedule_of_the_base_does_not_hold_the_adapter_back():
    """HuBERT may run without gradients for a while, and counts its updates."""
    cls, conf, batch_, _ = elsewhere("torchaudiohubert")
    conf = {**conf, "freeze_encoder_updates": 5}
    stock = cls(DIM, **conf).requires_grad_(False)
    encoder = adapt(stock, conf, ["a"])
    as_if_trained(encoder.train(), scale=0.1)
    for _ in range(2):
        loss_of(encoder(*batch_)[0]).backward()
    assert encoder.adapter.heads.vector("a").grad.any()
    assert int(encoder.global_step) == int(stock.global_step) == 0


# ----------------------------------------------------------------------- streaming

STREAMING = {
    "conformer": ContextualBlockConformerEncoder,
    "transformer": ContextualBlockTransformerEncoder,
}


def streaming(name, adapter="hra", **conf):
    """ESPnet's streaming encoder, and its adapted counterpart."""
    keys = {"block_size": 8, "hop_size": 4, "look_ahead": 2}
    keys |= conf_of("transformer", 0.1, **keys)
    if name == "conformer":
        keys |= {"cnn_module_kernel": 3, "macaron_style": True}
    torch.manual_seed(1)
    stock = STREAMING[name](DIM, **keys)
    randomise_statistics(stock)
    stock = stock.eval().requires_grad_(False)
    encoder = adapt(
        stock, keys, ["a", "b"], adapter=adapter, backbone_dropout=True, **conf
    )
    return stock, encoder


def in_chunks(encoder, xs, size):
    """One utterance as it arrives."""
    outputs, state = [], None
    for start in range(0, xs.size(1), size):
        chunk = xs[:, start : start + size]
        final = start + size >= xs.size(1)
        output, _, state = encoder(
            chunk,
            torch.tensor([chunk.size(1)]),
            state,
            is_final=final,
            infer_mode=True,
        )
        outputs.append(output)
    return torch.cat(outputs, dim=1)


def long_batch(size=2, frames=160):
    generator = torch.Generator().manual_seed(size)
    xs = torch.randn(size, frames, DIM, generator=generator)
    return xs, torch.tensor([frames, *([frames - 30] * (size - 1))])


@pytest.mark.shows(
    encoder="contextual_block_{name}", entrance=("in Python", "streaming")
)
@pytest.mark.parametrize("adapter", ["hra", "residual", "lora", "bitfit", "full"])
@pytest.mark.parametrize("name", STREAMING)
def test_a_streaming_encoder_with_the_adapter_off_is_espnets_bit_for_bit(name, adapter):
    stock, encoder = streaming(name, adapter)
    with torch.no_grad():
        for xs, lens in (long_batch(), long_batch(2, 30)):  # in blocks, and too short
            for training in (False, True):
                stock.train(training), encoder.train(training)
                freeze_batch_norm(stock)
                torch.manual_seed(5)
                expected = stock(xs, lens)
                for choice in (None, "a"):
                    torch.manual_seed(5)
                    with encoder.use_task(choice):
                        assert same_bits(encoder(xs, lens), expected), choice
        stock.eval(), encoder.eval()
        xs, _ = long_batch(1)
        for size in (24, 40, 160):
            expected = in_chunks(stock, xs, size)
            for choice in (None, "a"):
                with encoder.use_task(choice):
                    assert torch.equal(in_chunks(encoder, xs, size), expected), choice


@pytest.mark.shows(
    encoder="contextual_block_{name}", entrance=("in Python", "streaming")
)
@pytest.mark.parametrize("adapter", ["hra", "residual", "lora"])
@pytest.mark.parametrize("name", STREAMING)
def test_block_by_block_is_the_utterance_in_one_piece(name, adapter):
    stock, encoder = streaming(name, adapter)
    as_if_trained(encoder, scale=0.1)
    xs, lens = long_batch(1)
    with torch.no_grad():
        in_one_piece = stock(xs, lens)[0]
        plain = (in_chunks(stock, xs, 24) - in_one_piece).abs().max()
        encoder.set_task("a")
        whole = encoder(xs, lens)[0]
        assert not torch.allclose(whole, in_one_piece, atol=0.01)
        for size in (24, 40, 64):
            found = in_chunks(encoder, xs, size)
            assert found.shape == whole.shape
            assert (found - whole).abs().max() <= 10 * plain + 1e-6


@pytest.mark.parametrize("adapter", ["hra", "residual", "lora"])
@pytest.mark.parametrize("name", STREAMING)
def test_a_streaming_encoder_learns_with_mixed_batches(name, adapter):
    _, encoder = streaming(name, adapter)
    as_if_trained(encoder.train(), scale=0.1)
    encoder.eval()  # no dropout
    xs, lens = long_batch(3)
    lens[:] = xs.size(1)
    encoder.set_task(["a", "b", "a"])
    mixed = encoder(xs, lens)[0]
    for task, rows in (("a", [0, 2]), ("b", [1])):
        with encoder.use_task(task):
            alone = encoder(xs[rows], lens[rows])[0]
        torch.testing.assert_close(mixed[rows], alone, rtol=1e-4, atol=1e-5)
    loss_of(mixed).backward()
    for task in "ab":
        assert encoder.adapter.heads.vector(task).grad.abs().sum() > 0
