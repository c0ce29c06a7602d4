"""Small bases of other ESPnet tasks than asr, as ESPnet's own programs train them."""

import contextlib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import sentencepiece
import yaml

from espnet_hra.espnet.kinds import KINDS, Kind

#: The ESPnet tasks of these tests.
OTHERS = tuple(name for name in KINDS if name not in ("asr", "asr_transducer"))

#: Tags of s2t; a window is five seconds, its times are whole ones.
_TAGS = ("<na>", "<nolang>", "<eng>", "<asr>", "<st_eng>", "<notimestamps>")
_TIMES = ("<0.00>", "<1.00>", "<2.00>", "<3.00>", "<4.00>", "<5.00>")
_WINDOW = {"fs": 16000, "speech_length": 5, "speech_init_silence": 0}

_ENCODER = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 24,
    "num_blocks": 3,
    "dropout_rate": 0.1,
    "input_layer": "conv2d",
}
_CONFORMER = {**_ENCODER, "cnn_module_kernel": 3, "rel_pos_type": "latest"}
_DECODER = {"attention_heads": 2, "linear_units": 24, "num_blocks": 1}

_COMMON: dict[str, Any] = {
    "frontend_conf": {"fs": 16000, "n_fft": 512, "hop_length": 160},
    "specaug": None,
    "normalize": "global_mvn",
    "optim": "adam",
    "optim_conf": {"lr": 0.01},
    "batch_type": "unsorted",
    "batch_size": 3,
    "num_workers": 0,
    "max_epoch": 1,
    "keep_nbest_models": 1,
    "best_model_criterion": [["valid", "loss", "min"]],
    "use_tensorboard": False,
    "use_matplotlib": False,
    "seed": 1,
}
_BASES: dict[str, dict[str, Any]] = {
    "asr": {
        "encoder": "conformer",
        "encoder_conf": _CONFORMER,
        "decoder": "transformer",
        "decoder_conf": _DECODER,
        "model_conf": {"ctc_weight": 0.5},
        "token_type": "bpe",
    },
    "s2t": {
        "encoder": "transformer",
        "encoder_conf": _ENCODER,
        "decoder": "transformer",
        "decoder_conf": _DECODER,
        "model_conf": {"ctc_weight": 0.3},
        "preprocessor_conf": {
            **_WINDOW,
            "speech_resolution": 1,
            "notime_symbol": "<notimestamps>",
            "first_time_symbol": "<0.00>",
            "last_time_symbol": "<5.00>",
        },
    },
    "s2t_ctc": {
        "encoder": "e_branchformer_ctc",
        "encoder_conf": {
            **_ENCODER,
            "use_ffn": True,
            "cgmlp_linear_units": 24,
            "cgmlp_conv_kernel": 3,
            "interctc_layer_idx": [1, 2],
            "interctc_use_conditioning": True,
            "use_cross_attention": [True, False, True],
        },
        "promptencoder": "transformer",
        "promptencoder_conf": {
            "output_size": 8,
            "attention_heads": 2,
            "linear_units": 16,
            "num_blocks": 1,
        },
        "model": "espnet_ctc",
        "model_conf": {
            "interctc_weight": 0.5,
            "ctc_asr_only": [True, False, False],
        },
        "preprocessor": "s2t_ctc",
        "preprocessor_conf": _WINDOW,
    },
    "st": {
        "encoder": "conformer",
        "encoder_conf": _CONFORMER,
        "decoder": "transformer",
        "decoder_conf": _DECODER,
        "extra_asr_decoder": "transformer",
        "extra_asr_decoder_conf": _DECODER,
        "model_conf": {"asr_weight": 0.3, "mtlalpha": 0.5, "st_mtlalpha": 0.3},
        "src_token_type": "char",
        "token_type": "bpe",
    },
    "slu": {
        "encoder": "conformer",
        "encoder_conf": _CONFORMER,
        "decoder": "transformer",
        "decoder_conf": _DECODER,
        "model_conf": {"ctc_weight": 0.5},
        "token_type": "word",
    },
    "asr_transducer": {
        "encoder_conf": {
            "input_conf": {"vgg_like": False, "conv_size": 8},
            "main_conf": {
                "dynamic_chunk_training": True,
                "short_chunk_threshold": 1.0,
                "short_chunk_size": 4,
                "num_left_chunks": 4,
            },
            "body_conf": [
                {
                    "block_type": "conformer",
                    "hidden_size": 16,
                    "linear_size": 24,
                    "heads": 2,
                    "conv_mod_kernel_size": 3,
                    "num_blocks": 3,
                }
            ],
        },
        "decoder": "rnn",
        "decoder_conf": {"embed_size": 8, "hidden_size": 8},
        "joint_network_conf": {"joint_space_size": 8},
        "model_conf": {"auxiliary_ctc_weight": 0.3},
        "token_type": "bpe",
    },
}


@contextlib.contextmanager
def moved_away(folder: Path) -> Iterator[Path]:
    """A block in which a folder is somewhere else."""
    elsewhere = folder.parent / "somewhere" / folder.name
    elsewhere.parent.mkdir(exist_ok=True)
    folder.rename(elsewhere)
    try:
        yield elsewhere
    finally:
        elsewhere.rename(folder)


def make_data(an4: dict[str, Path], folder: Path) -> dict[str, Path]:
    """AN4 with the lists that the other ESPnet tasks want.

    ``text`` as of s2t, ``text_ctc``, ``text_prev``; ``src_text`` and ``translation``
    (the words in reverse) for st; ``intent`` for slu.
    """
    for part in ("train", "dev", "test"):
        (folder / part).mkdir(parents=True)
        for name in ("wav.scp", "utt2task", "text"):
            lines = (an4[part] / name).read_text()
            target = "src_text" if name == "text" else name
            (folder / part / target).write_text(lines)
        made: dict[str, list[str]] = {}
        for line in lines.splitlines():
            key, words = line.split(None, 1)
            for name, text in (
                ("text", f"<eng><asr><0.00> {words}<1.00>"),
                ("text_ctc", words),
                ("text_prev", "<na>"),
                ("translation", " ".join(reversed(words.split()))),
                ("intent", f"SPELL {words.split()[0]}"),
            ):
                made.setdefault(name, []).append(f"{key} {text}\n")
        for name, texts in made.items():
            (folder / part / name).write_text("".join(texts))
    return {part: folder / part for part in ("train", "dev", "test")}


def _tokens(kind: Kind, data: dict[str, Path], folder: Path) -> dict[str, Any]:
    """The token lists of a base, and its BPE model, in a folder."""
    words = [line.split(None, 1)[1] for line in (data["train"] / "src_text").open()]
    s2t = kind.prefix == "s2t"
    (folder / "words").write_text("".join(words))
    sentencepiece.SentencePieceTrainer.Train(
        input=str(folder / "words"),
        model_prefix=str(folder / "bpe"),
        vocab_size=80 if s2t else 60,
        hard_vocab_limit=False,
        user_defined_symbols=[*_TAGS, *_TIMES] if s2t else [],
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "bpe.model"))
    learned = [pieces.id_to_piece(i) for i in range(3, len(pieces))]
    edges = ["<sos>", "<eos>", "<sop>"] if s2t else ["<sos/eos>"]
    lists = {"bpe": ["<blank>", "<unk>", *learned, *edges]}
    letters = sorted(set("".join(words)) - {" ", "\n"})
    lists["char"] = ["<blank>", "<unk>", "<space>", *letters, "<sos/eos>"]
    found = sorted({word for line in words for word in line.split()})
    lists["word"] = ["<blank>", "<unk>", "SPELL", *found, "<sos/eos>"]
    for name, tokens in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(tokens) + "\n")
    given: dict[str, Any] = {"token_list": "word.txt"}
    if kind.name != "slu":
        given = {"token_list": "bpe.txt", "bpemodel": "bpe.model"}
    if kind.name == "st":
        given["src_token_list"] = "char.txt"
    return given


def streams(kind: Kind, data: dict[str, Path], tasks: bool) -> list[str]:
    """Options that name training and validation data."""
    texts = {
        "asr": "src_text",
        "asr_transducer": "src_text",
        "s2t": "text",
        "s2t_ctc": "text",
        "st": "translation",
        "slu": "intent",
    }
    names = {"wav.scp": ("speech", "sound"), texts[kind.name]: ("text", "text")}
    if kind.prefix == "s2t":
        names |= {"text_ctc": ("text_ctc", "text"), "text_prev": ("text_prev", "text")}
    if kind.name == "st":
        names["src_text"] = ("src_text", "text")
    if tasks:
        names["utt2task"] = ("utt2task", "text")
    cmd = []
    for part, folder in (("train", data["train"]), ("valid", data["dev"])):
        cmd += [f"--{part}_shape_file", str(folder / "wav.scp")]
        for file, (name, form) in names.items():
            option = f"--{part}_data_path_and_name_and_type"
            cmd += [option, f"{folder / file},{name},{form}"]
    return cmd


def make_base(name: str, data: dict[str, Path], folder: Path) -> Path:
    """Train a base with ESPnet's own program, with paths relative to a recipe's folder.

    Args:
        name: The ESPnet task.
        data: From :func:`make_data`.
        folder: The recipe's folder, where it is run.

    Returns:
        The experiment folder.
    """
    import pytest

    kind = KINDS[name]
    folder.mkdir(parents=True)
    config = {**_COMMON, **_BASES[name], **_tokens(kind, data, folder)}
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    program = import_module(f"espnet2.bin.{kind.train}")
    cmd = ["--config", "train.yaml", *streams(kind, data, tasks=False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stats = ["--normalize", "none", "--collect_stats", "true"]
        program.main([*cmd, *stats, "--output_dir", "stats"])
        from espnet2.bin import aggregate_stats_dirs

        aggregate_stats_dirs.main(
            ["--input_dir", "stats", "--output_dir", "stats", "--log_level", "ERROR"]
        )
        more = ["--normalize_conf", "stats_file=stats/train/feats_stats.npz"]
        program.main([*cmd, *more, "--output_dir", "exp"])
    return folder / "exp"


def adaptation(
    name: str,
    data: dict[str, Path],
    base: Path,
    output: Path,
    *more: str,
    **changes: Any,
) -> list[str]:
    """Command line of an adaptation to the tasks female and male."""
    config = {
        **{key: _COMMON[key] for key in _COMMON if "conf" not in key and key[0] != "n"},
        "optim_conf": {"lr": 0.05},
        "num_workers": 0,
        "encoder_conf": {
            "adapter": "hra",
            "adapter_conf": {"controller_size": 8},
            "tasks": ["female", "male"],
        },
        "max_epoch": 2,
        **changes,
    }
    output.mkdir(parents=True)
    (output / "given.yaml").write_text(yaml.safe_dump(config))
    cmd = ["--config", str(output / "given.yaml"), "--output_dir", str(output)]
    cmd += ["--pretrained_model", str(base)]
    return [*cmd, *streams(KINDS[name], data, tasks=True), *more]


def decoded(output: Path) -> dict[str, str]:
    """What ESPnet's loop has written, by utterance."""
    lines = (output / "1best_recog" / "token_int").read_text().splitlines()
    return {key: ids for key, *ids in (line.split() for line in lines)}


def decoding(
    name: str, model: Path, data: Path, output: Path, more: Sequence[str] = ()
) -> list[str]:
    """Command line of ESPnet's loop over a folder of data."""
    config, checkpoint = KINDS[name].files
    cmd = [f"--{config}", str(model / "config.yaml")]
    cmd += [f"--{checkpoint}", str(model / "valid.loss.best.pth")]
    cmd += ["--output_dir", str(output), "--num_workers", "0", "--beam_size", "2"]
    cmd += ["--maxlenratio", "-8"]
    cmd += ["--data_path_and_name_and_type", f"{data / 'wav.scp'},speech,sound"]
    if name == "s2t_ctc":
        cmd += ["--lang_sym", "eng"]
    return [*cmd, *more]
