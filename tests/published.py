"""Kinds of configurations that recipes of ESPnet publish, shrunk in their sizes only.

The keys are those that ``egs2/*/asr1/conf`` documents. A row says what it has beside
:data:`COMMON`; sizes (width, layers, units, hidden states) are small everywhere.
"""

from typing import Any

COMMON: dict[str, Any] = {
    "token_type": "char",
    "frontend": "default",
    "frontend_conf": {"fs": "16k", "n_fft": 512, "win_length": 400, "hop_length": 160},
    "specaug": None,
    "normalize": "utterance_mvn",
}

_SIZE = {"output_size": 16, "attention_heads": 2, "num_blocks": 3}
_DROP = {
    "dropout_rate": 0.1,
    "positional_dropout_rate": 0.1,
    "attention_dropout_rate": 0.1,
}
_DECODER = {"attention_heads": 2, "linear_units": 24, "num_blocks": 1}
_FFN = {**_SIZE, **_DROP, "linear_units": 24}

_TRANSFORMER = {**_FFN, "input_layer": "conv2d", "normalize_before": True}
_CONFORMER = {
    **_FFN,
    "input_layer": "conv2d",
    "macaron_style": True,
    "rel_pos_type": "latest",
    "pos_enc_layer_type": "rel_pos",
    "selfattention_layer_type": "rel_selfattn",
    "activation_type": "swish",
    "use_cnn_module": True,
    "cnn_module_kernel": 31,
}
_OLD = {**_CONFORMER, "rel_pos_type": "legacy", "cnn_module_kernel": 15}
_CGMLP: dict[str, Any] = {"cgmlp_linear_units": 24, "cgmlp_conv_kernel": 31}
_CGMLP |= {"use_linear_after_conv": False, "gate_activation": "identity"}
_BRANCHFORMER = {
    **_SIZE,
    **_DROP,
    **_CGMLP,
    "use_attn": True,
    "attention_layer_type": "rel_selfattn",
    "pos_enc_layer_type": "rel_pos",
    "rel_pos_type": "latest",
    "use_cgmlp": True,
    "merge_method": "concat",
    "input_layer": "conv2d",
}
_E_BRANCHFORMER = {
    **_FFN,
    **_CGMLP,
    "attention_layer_type": "rel_selfattn",
    "pos_enc_layer_type": "rel_pos",
    "rel_pos_type": "latest",
    "input_layer": "conv2d",
    "layer_drop_rate": 0.0,
    "positionwise_layer_type": "linear",
    "use_ffn": True,
    "macaron_ffn": True,
    "merge_conv_kernel": 31,
}
_BLOCKS = {
    **_FFN,
    "input_layer": "conv2d",
    "normalize_before": True,
    "block_size": 40,
    "hop_size": 16,
    "look_ahead": 16,
    "init_average": True,
    "ctx_pos_enc": True,
}
_MULTICONV = {
    **_FFN,
    "input_layer": "conv2d",
    "rel_pos_type": "latest",
    "macaron_style": True,
    "cgmlp_linear_units": 24,
    "multicgmlp_type": "sum",
    "multicgmlp_kernel_sizes": "7,15,23,31",
    "multicgmlp_merge_conv_kernel": 31,
    "use_linear_after_conv": False,
    "gate_activation": "identity",
}

_CTC = {"model_conf": {"ctc_weight": 1.0}}
_HYBRID = {
    "decoder": "transformer",
    "decoder_conf": _DECODER,
    "model_conf": {
        "ctc_weight": 0.3,
        "lsm_weight": 0.1,
        "length_normalized_loss": False,
    },
}
_ATTENTION = {**_HYBRID, "model_conf": {"ctc_weight": 0.0, "lsm_weight": 0.1}}
_RNN_DECODER = {
    "decoder": "rnn",
    "decoder_conf": {"hidden_size": 16, "num_layers": 1},
    "model_conf": {"ctc_weight": 0.5},
}
_TRANSDUCER = {
    "decoder": "transducer",
    "decoder_conf": {
        "rnn_type": "lstm",
        "num_layers": 1,
        "hidden_size": 16,
        "dropout": 0.1,
        "dropout_embed": 0.2,
    },
    "joint_net_conf": {"joint_space_size": 16},
    "model_conf": {"ctc_weight": 0.3, "report_cer": False, "report_wer": False},
}
_SPECAUG = {
    "specaug": "specaug",
    "specaug_conf": {
        "apply_time_warp": True,
        "time_warp_window": 5,
        "time_warp_mode": "bicubic",
        "apply_freq_mask": True,
        "freq_mask_width_range": [0, 27],
        "num_freq_mask": 2,
        "apply_time_mask": True,
        "time_mask_width_ratio_range": [0.0, 0.05],
        "num_time_mask": 5,
    },
}
_OLD_SPECAUG = {
    "specaug": "specaug",
    "specaug_conf": {
        "apply_time_warp": True,
        "apply_freq_mask": True,
        "freq_mask_width_range": [0, 30],
        "num_freq_mask": 2,
        "apply_time_mask": True,
        "time_mask_width_range": [0, 40],
        "num_time_mask": 2,
    },
}
_WINDOWS = {
    "frontend": "sliding_window",
    "frontend_conf": {"fs": 16000, "hop_length": 128, "win_length": 400},
    "preencoder": "sinc",
    "preencoder_conf": {"fs": 16000},
    "normalize": None,
}


def _of(
    encoder: str, conf: dict[str, Any], *parts: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    """A configuration: an encoder with changed keys, an objective, other parts."""
    made: dict[str, Any] = {"encoder": encoder, "encoder_conf": {**conf, **changes}}
    for part in parts:
        made |= part
    return made


def _conformer(*parts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return _of("conformer", _CONFORMER, *(parts or (_HYBRID,)), **changes)


def _transformer(*parts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return _of("transformer", _TRANSFORMER, *(parts or (_HYBRID,)), **changes)


def _e_branchformer(*parts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return _of("e_branchformer", _E_BRANCHFORMER, *(parts or (_HYBRID,)), **changes)


def _branchformer(*parts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return _of("branchformer", _BRANCHFORMER, *(parts or (_HYBRID,)), **changes)


def _decoder(name: str, **conf: Any) -> dict[str, Any]:
    return {**_HYBRID, "decoder": name, "decoder_conf": conf}


_DYNAMIC = {**_DECODER, "conv_wshare": 4, "conv_kernel_length": [11]}
_INTERCTC = {"interctc_layer_idx": [1, 2], "interctc_use_conditioning": True}
_S4 = {
    "input_layer": "embed",
    "dropinp": 0.0,
    "dropout": 0.1,
    "prenorm": True,
    "n_layers": 1,
    "layer": [
        {"_name_": "s4", "postact": "glu", "n_ssm": 1, "measure": "legs", "d_state": 8},
        {"_name_": "ff", "expand": 2, "activation": "gelu", "dropout": 0.1},
    ],
    "residual": "residual",
    "norm": "layer",
}

#: The kinds, by name.
PUBLISHED: dict[str, dict[str, Any]] = {
    # ------------------------------------------------------------------ transformer
    "transformer": _transformer(),
    "transformer-ctc": _transformer(_CTC),
    "transformer-attention": _transformer(_ATTENTION),
    "transformer-specaug": _transformer(_HYBRID, _SPECAUG),
    "transformer-old_specaug": _transformer(_HYBRID, _OLD_SPECAUG),
    "transformer-rnn_decoder": _transformer(_RNN_DECODER),
    "transformer-transducer": _transformer(_TRANSDUCER),
    "transformer-conv2d2": _transformer(input_layer="conv2d2"),
    "transformer-conv2d6": _transformer(input_layer="conv2d6"),
    "transformer-conv2d8": _transformer(input_layer="conv2d8"),
    "transformer-linear": _transformer(input_layer="linear"),
    "transformer-conv1d_ffn": _transformer(
        positionwise_layer_type="conv1d", positionwise_conv_kernel_size=3
    ),
    "transformer-normalize_after": _transformer(normalize_before=False),
    "transformer-concat_after": _transformer(concat_after=True),
    "transformer-interctc": _transformer(
        _CTC, {"model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.5}}, **_INTERCTC
    ),
    "transformer-layer_drop": _transformer(layer_drop_rate=0.1),
    "transformer-sinc": _transformer(_HYBRID, _WINDOWS, input_layer="linear"),
    "transformer-wordless": _transformer(_HYBRID, {"token_type": "word"}),
    "transformer-ctc_builtin2": _transformer(
        _HYBRID, {"ctc_conf": {"ctc_type": "builtin2"}}
    ),
    "transformer-ctc_zero_infinity": _transformer(
        _HYBRID, {"ctc_conf": {"zero_infinity": True, "dropout_rate": 0.1}}
    ),
    # -------------------------------------------------------------------- conformer
    "conformer": _conformer(),
    "conformer-legacy": _of("conformer", _OLD, _HYBRID),
    "conformer-ctc": _conformer(_CTC),
    "conformer-attention": _conformer(_ATTENTION),
    "conformer-rnn_decoder": _conformer(_RNN_DECODER),
    "conformer-transducer": _conformer(_TRANSDUCER),
    "conformer-mask_ctc": _conformer(
        {
            "model": "maskctc",
            "decoder": "mlm",
            "decoder_conf": _DECODER,
            "model_conf": {"ctc_weight": 0.3},
        }
    ),
    "conformer-interctc": _conformer(
        {"model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.5}},
        interctc_layer_idx=[1, 2],
    ),
    "conformer-self_conditioned": _conformer(
        {"model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.5}}, **_INTERCTC
    ),
    "conformer-self_conditioned_hybrid": _conformer(
        {
            **_HYBRID,
            "model_conf": {"ctc_weight": 0.3, "interctc_weight": 0.3},
        },
        **_INTERCTC,
    ),
    "conformer-specaug": _conformer(_HYBRID, _SPECAUG),
    "conformer-kernel7": _conformer(cnn_module_kernel=7),
    "conformer-no_macaron": _conformer(macaron_style=False),
    "conformer-no_cnn": _conformer(use_cnn_module=False),
    "conformer-conv2d1": _conformer(input_layer="conv2d1"),
    "conformer-conv2d2": _conformer(input_layer="conv2d2"),
    "conformer-conv2d6": _conformer(input_layer="conv2d6"),
    "conformer-conv2d8": _conformer(input_layer="conv2d8"),
    "conformer-abs_pos": _conformer(
        pos_enc_layer_type="abs_pos", selfattention_layer_type="selfattn"
    ),
    "conformer-layer_drop": _conformer(layer_drop_rate=0.1),
    "conformer-stochastic_depth": _conformer(stochastic_depth_rate=0.1),
    "conformer-stochastic_depths": _conformer(stochastic_depth_rate=[0.0, 0.1, 0.2]),
    "conformer-conv1d_ffn": _conformer(
        positionwise_layer_type="conv1d", positionwise_conv_kernel_size=3
    ),
    "conformer-hamming": _conformer(
        _HYBRID, {"frontend_conf": {"n_fft": 400, "window": "hamming", "n_mels": 40}}
    ),
    "conformer-8k": _conformer(
        _HYBRID, {"frontend_conf": {"fs": "8k", "n_fft": 256, "hop_length": 80}}
    ),
    "conformer-global_mvn": _conformer(_HYBRID, {"normalize": "global_mvn"}),
    "conformer-unnormalised": _conformer(_HYBRID, {"normalize": None}),
    "conformer-sinc": _conformer(_HYBRID, _WINDOWS, input_layer="conv2d"),
    "conformer-linear_preencoder": _conformer(
        _HYBRID,
        {
            "preencoder": "linear",
            "preencoder_conf": {"input_size": 80, "output_size": 40},
        },
    ),
    "conformer-wav2vec_cnn": _conformer(
        _HYBRID,
        {
            "frontend": "wav2vec_cnn",
            "frontend_conf": {
                "norm_mode": "layer_norm",
                "conv_mode": "standard",
                "bias": True,
                "shapes": [[16, 10, 5], [16, 3, 2], [16, 3, 2], [16, 2, 2]],
            },
        },
        input_layer="conv2d2",
    ),
    "conformer-fused_frontends": _conformer(
        _HYBRID,
        {
            "frontend": "fused",
            "frontend_conf": {
                "frontends": [
                    {"frontend_type": "default", "n_mels": 40, "n_fft": 400},
                    {"frontend_type": "default", "n_mels": 80, "n_fft": 512},
                ],
                "align_method": "linear_projection",
                "proj_dim": 20,
                "fs": 16000,
            },
        },
    ),
    "conformer-length_adaptor": _conformer(
        _HYBRID,
        {
            "postencoder": "length_adaptor",
            "postencoder_conf": {"length_adaptor_n_layers": 1},
        },
    ),
    "conformer-lightweight_conv": _conformer(_decoder("lightweight_conv", **_DYNAMIC)),
    "conformer-lightweight_conv2d": _conformer(
        _decoder("lightweight_conv2d", **_DYNAMIC)
    ),
    "conformer-dynamic_conv": _conformer(_decoder("dynamic_conv", **_DYNAMIC)),
    "conformer-dynamic_conv2d": _conformer(_decoder("dynamic_conv2d", **_DYNAMIC)),
    "conformer-layer_drop_decoder": _conformer(
        _decoder("transformer", **_DECODER, layer_drop_rate=0.2)
    ),
    "conformer-s4_decoder": _conformer(_decoder("s4", **_S4)),
    "conformer-language_token": _conformer(
        {**_HYBRID, "model_conf": {"ctc_weight": 0.3, "lang_token_id": 3}}
    ),
    "conformer-ctc_trim": _conformer(
        {"model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.5}},
        interctc_layer_idx=[1],
        ctc_trim=True,
    ),
    "conformer-sdpa": _conformer(use_sdpa=True),
    # ----------------------------------------------------- branchformer and relatives
    "branchformer": _branchformer(),
    "branchformer-ctc": _branchformer(_CTC),
    "branchformer-transducer": _branchformer(_TRANSDUCER),
    "branchformer-learned_ave": _branchformer(
        merge_method="learned_ave", attn_branch_drop_rate=0.1
    ),
    "branchformer-fixed_ave": _branchformer(
        merge_method="fixed_ave", cgmlp_weight=0.5, attn_branch_drop_rate=0.0
    ),
    "branchformer-fastformer": _branchformer(
        attention_layer_type="fast_selfattn", pos_enc_layer_type="abs_pos"
    ),
    "branchformer-linear_after_conv": _branchformer(use_linear_after_conv=True),
    "branchformer-stochastic_depth": _branchformer(stochastic_depth_rate=0.1),
    "branchformer-cgmlp_only": _branchformer(use_attn=False),
    "branchformer-attention_only": _branchformer(use_cgmlp=False),
    "e_branchformer": _e_branchformer(),
    "e_branchformer-ctc": _e_branchformer(_CTC),
    "e_branchformer-transducer": _e_branchformer(_TRANSDUCER),
    "e_branchformer-attention": _e_branchformer(_ATTENTION),
    "e_branchformer-rnn_decoder": _e_branchformer(_RNN_DECODER),
    "e_branchformer-selu": _e_branchformer(ffn_activation_type="selu"),
    "e_branchformer-relu": _e_branchformer(ffn_activation_type="relu"),
    "e_branchformer-gate_relu": _e_branchformer(gate_activation="relu"),
    "e_branchformer-no_ffn": _e_branchformer(use_ffn=False, macaron_ffn=False),
    "e_branchformer-layer_drop": _e_branchformer(layer_drop_rate=0.1),
    "e_branchformer-conv2d1": _e_branchformer(input_layer="conv2d1"),
    "e_branchformer-conv2d6": _e_branchformer(input_layer="conv2d6"),
    "e_branchformer-legacy": _e_branchformer(rel_pos_type="legacy"),
    "e_branchformer-merge_kernel": _e_branchformer(merge_conv_kernel=3),
    "e_branchformer-self_conditioned": _e_branchformer(
        {"model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.5}}, **_INTERCTC
    ),
    "e_branchformer-checkpointed": _e_branchformer(gradient_checkpoint_layers=[0, 1]),
    "multiconv-sum": _of("multiconv_conformer", _MULTICONV, _HYBRID),
    "multiconv-weighted_sum": _of(
        "multiconv_conformer", _MULTICONV, _HYBRID, multicgmlp_type="weighted_sum"
    ),
    "multiconv-concat": _of(
        "multiconv_conformer", _MULTICONV, _HYBRID, multicgmlp_type="concat"
    ),
    "multiconv-concat_fusion": _of(
        "multiconv_conformer", _MULTICONV, _CTC, multicgmlp_type="concat_fusion"
    ),
    # --------------------------------------------------------------------- streaming
    "streaming_conformer": _of(
        "contextual_block_conformer",
        {**_BLOCKS, "macaron_style": True, "cnn_module_kernel": 15},
        _HYBRID,
    ),
    "streaming_conformer-transducer": _of(
        "contextual_block_conformer",
        {**_BLOCKS, "macaron_style": True, "cnn_module_kernel": 15},
        _TRANSDUCER,
    ),
    "streaming_conformer-ctc": _of(
        "contextual_block_conformer",
        {**_BLOCKS, "macaron_style": False, "cnn_module_kernel": 7},
        _CTC,
    ),
    "streaming_transformer": _of("contextual_block_transformer", _BLOCKS, _HYBRID),
    "streaming_transformer-ctc": _of(
        "contextual_block_transformer", _BLOCKS, _CTC, input_layer="conv2d6"
    ),
    # ------------------------------------------------------------------ multi-speaker
    "two_speakers": _of(
        "transformer_multispkr",
        {**_TRANSFORMER, "num_blocks": 2, "num_blocks_sd": 2, "num_inf": 2},
        _HYBRID,
        {
            "model": "pit_espnet",
            "ctc_conf": {"reduce": False},
            "model_conf": {"ctc_weight": 0.2, "num_inf": 2, "num_ref": 2},
            "preprocessor": "multi",
            "preprocessor_conf": {"text_name": ["text", "text_spk2"]},
        },
    ),
    # ------------------------------------------------------------------ from the wave
    "torchaudio_hubert": _of(
        "torchaudiohubert",
        {
            "extractor_conv_layer_config": [
                [16, 10, 5],
                [16, 3, 2],
                [16, 3, 2],
                [16, 2, 2],
            ],
            "encoder_embed_dim": 16,
            "encoder_ff_interm_features": 24,
            "encoder_pos_conv_kernel": 8,
            "encoder_pos_conv_groups": 2,
            "encoder_num_layers": 3,
            "encoder_num_heads": 2,
            "num_classes": 5,
            "final_dim": 8,
            "finetuning": True,
        },
        _CTC,
        {"frontend": None, "frontend_conf": {}, "input_size": 1, "normalize": None},
    ),
    "beats": _of(
        "beats",
        {
            "beats_config": {
                "encoder_layers": 3,
                "encoder_embed_dim": 16,
                "embed_dim": 16,
                "encoder_ffn_embed_dim": 24,
                "encoder_attention_heads": 2,
                "deep_norm": True,
                "conv_pos": 8,
                "conv_pos_groups": 2,
                "relative_position_embedding": True,
                "num_buckets": 32,
                "max_distance": 64,
                "gru_rel_pos": True,
            }
        },
        _HYBRID,
        {"frontend": None, "frontend_conf": {}, "input_size": 1, "normalize": None},
    ),
}

#: Kinds that no adapter over depth is for.
RECURRENT: dict[str, dict[str, Any]] = {
    "rnn": _of("rnn", {"rnn_type": "lstm", "num_layers": 1}, _RNN_DECODER),
    "rnn-gru": _of("rnn", {"rnn_type": "gru", "bidirectional": False}, _CTC),
    "rnn-transducer": _of("rnn", {"hidden_size": 16, "num_layers": 1}, _TRANSDUCER),
    "vgg_rnn": _of("vgg_rnn", {"hidden_size": 16, "num_layers": 1}, _RNN_DECODER),
    "vgg_rnn-gru": _of("vgg_rnn", {"rnn_type": "gru", "num_layers": 1}, _HYBRID),
}


def objective_of(kind: dict[str, Any]) -> str:
    """What docs/compatibility.md calls the objective of a kind."""
    named = {
        "maskctc": "Mask-CTC",
        "pit_espnet": "several speakers (PIT)",
        "transducer": "transducer",
        "rnn": "recurrent decoder",
    }
    for key in ("model", "decoder"):
        if kind.get(key) in named:
            return named[kind[key]]
    if kind["model_conf"].get("interctc_weight"):
        return "intermediate CTC, self-conditioned"
    weight = kind["model_conf"]["ctc_weight"]
    return {0.0: "attention", 1.0: "CTC"}.get(weight, "CTC and attention")
