"""The frozen base: an ESPnet model that adapters stand on.

A base is loaded whole (frontend, normalisation with its statistics, encoder, CTC,
decoder), named in the saved configuration, and verified by fingerprint whenever it is
loaded again.
"""

import dataclasses
import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from espnet_hra.errors import BaseModelError, ConfigError
from espnet_hra.espnet import reference, whisper_frontend
from espnet_hra.espnet.ctc import without_new
from espnet_hra.espnet.fingerprints import (
    check_fingerprints,
    components,
    fingerprints,
    of_state,
)
from espnet_hra.espnet.kinds import KINDS, check_kind, encoder_of, espnet_task_of
from espnet_hra.espnet.paths import can_lack, find_base, find_file, named_files, whole
from espnet_hra.files import archive
from espnet_hra.files.checkpoint import State, differences, read_state
from espnet_hra.files.config import read_yaml
from espnet_hra.names import (
    ENCODERS,
    adapted_encoder,
    known_encoders,
    plain_encoder,
)
from espnet_hra.whisper.folder import is_whisper, kept, open_folder
from espnet_hra.whisper.folder import whole_name as whole_whisper

#: Keys of an ESPnet configuration that describe the model and its tokens: these come
#: along with a base. Everything else (data, optimisation) is the adaptation's own.
MODEL_KEYS = (
    "token_list",
    "token_type",
    "bpemodel",
    "non_linguistic_symbols",
    "cleaner",
    "g2p",
    "input_size",
    "ctc_conf",
    "joint_net_conf",
    "joint_network_conf",
    "use_preprocessor",
    "preprocessor",
    "preprocessor_conf",
    "text_prefix",
    "speech_volume_normalize",
    "frontend",
    "frontend_conf",
    "normalize",
    "normalize_conf",
    "model",
    "model_conf",
    "preencoder",
    "preencoder_conf",
    "encoder",
    "encoder_conf",
    "postencoder",
    "postencoder_conf",
    "decoder",
    "decoder_conf",
    # of s2t_ctc
    "promptencoder",
    "promptencoder_conf",
    # of st
    "src_token_list",
    "src_token_type",
    "src_bpemodel",
    "src_g2p",
    "st_joint_net_conf",
    "ctc_sample_rate",
    "extra_asr_decoder",
    "extra_asr_decoder_conf",
    "extra_mt_decoder",
    "extra_mt_decoder_conf",
    "extra_mt_encoder",
    "extra_mt_encoder_conf",
    "hier_encoder",
    "hier_encoder_conf",
    "md_encoder",
    "md_encoder_conf",
    # of slu
    "transcript_token_list",
    "two_pass",
    "pre_postencoder_norm",
    "deliberationencoder",
    "deliberationencoder_conf",
    "postdecoder",
    "postdecoder_conf",
)

#: Which file of an experiment folder is its model, best first.
_CHECKPOINTS = (
    r"valid\.acc\.ave\.pth",
    r"valid\.acc\.best\.pth",
    r"valid\.cer_ctc\.ave\.pth",
    r"valid\.cer_ctc\.best\.pth",
    r"valid\.cer\.ave\.pth",
    r"valid\.cer\.best\.pth",
    r"valid\.loss\.ave\.pth",
    r"valid\.loss\.best\.pth",
    r"valid\..*\.ave\.pth",
    r".*\.ave_\d+best\.pth",
    r"valid\..*\.best\.pth",
    r"latest\.pth",
    r"last\.ckpt",
    r".*\.ckpt",
)


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """An opened base.

    Attributes:
        source: How it was named.
        model_file: Its checkpoint.
        config_file: Its training configuration; None for a bare checkpoint.
        reference: How a pack names it that does not hold it.
        expected: Fingerprints that it must have, by component, as the pack says.
    """

    source: str
    model_file: Path
    config_file: Path | None
    reference: str | None = None
    expected: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def espnet_task(self) -> str:
        """The ESPnet task that it is a model of, see :mod:`espnet_hra.espnet.kinds`."""
        if self.config_file is None:
            return "asr"
        return espnet_task_of(read_yaml(self.config_file, BaseModelError))

    def model_config(self, espnet_task: str = "asr") -> dict[str, Any]:
        """The part of its configuration that comes along, see :data:`MODEL_KEYS`.

        Args:
            espnet_task: The ESPnet task that it must be a model of.

        Raises:
            BaseModelError: It cannot be read, is not that of a model that turns speech
                into text, or of another ESPnet task.
        """
        if self.config_file is None:
            return {}
        config = read_config(self.config_file)
        check_kind(espnet_task, config, self.source)
        lacking = [k for k in ("encoder", "token_list") if not config.get(k)]
        if lacking:
            raise BaseModelError(
                f"{self.source}: not a model for speech recognition (its configuration "
                f"has no {' and no '.join(lacking)}); only those can be adapted"
            )
        return {key: config[key] for key in MODEL_KEYS if key in config}

    def state_dict(self) -> State:
        """Its weights, in full precision: packs may be stored in half of it.

        Raises:
            BaseModelError: The file is no checkpoint, or the weights of a Whisper that
                it hears with cannot be had.
        """
        state = read_state(self.model_file)
        if self.config_file is not None:
            config = read_yaml(self.config_file, BaseModelError)
            state = whisper_frontend.complete(config, state)
        return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}

    def verify(self) -> None:
        """Check that it is the one that its pack names, if it is from one.

        Raises:
            BaseModelError: It is another.
        """
        if self.expected:
            self.check(self.fingerprints(), self.expected)

    def check(self, found: dict[str, str], expected: dict[str, str]) -> None:
        """Refuse it if fingerprints differ, in words that say what to do."""
        whisper = self.reference or (self.source if is_whisper(self.source) else None)
        source = f"{self.source} ({self.reference})" if self.reference else self.source
        remedy = "" if whisper is None else reference.REMEDY
        check_fingerprints(source, found, expected, remedy)

    def fingerprints(self) -> dict[str, str]:
        """Those of its file, by component. Errors as of the above."""
        return of_state(self.state_dict())


def open_base(source: str | Path, cache: str | None = None) -> BaseModel:
    """Find what adapters stand on.

    Of a pack that names a Whisper instead of holding it, that is the Whisper. Arguments
    and errors as of :func:`open_files`.
    """
    base = open_files(source, cache)
    named = reference.named_by(base.config_file)
    if named is None:
        return base
    name, expected = named
    try:
        whisper = open_files(name)
    except BaseModelError as e:
        raise BaseModelError(f"{source}: {e}") from e
    return dataclasses.replace(
        whisper, source=base.source, reference=name, expected=expected
    )


def open_files(source: str | Path, cache: str | None = None) -> BaseModel:
    """Find the checkpoint and configuration of a model.

    Args:
        source: A checkpoint (``.pth``, or Lightning's ``.ckpt``), an experiment folder
            or unpacked pack, a zip of ``espnet2.bin.pack``, a tag of the model zoo or
            the Hugging Face hub, or a Whisper: ``whisper:NAME`` or ``whisper:PATH``.
        cache: Folder for unpacked and downloaded packs; None for the model zoo's own.
            Whispers are large and kept once, in the project's own.

    Raises:
        BaseModelError: There is no such base, or it is incomplete.
    """
    source = str(source)
    if is_whisper(source):
        return _from_folder(source, open_folder(source, _cache(None)))
    path = Path(source).expanduser()
    if path.suffix in (".pth", ".ckpt") and path.is_file():
        config = path.parent / "config.yaml"
        return BaseModel(source, path, config if config.is_file() else None)
    if path.is_dir():
        return _from_folder(source, path)
    if path.is_file():
        return _from_folder(source, _unpack(path, cache))
    if os.sep in source and not re.fullmatch(r"[\w.-]+/[\w.@-]+", source):
        raise BaseModelError(
            f"{source}: no such file or folder; a base is an ESPnet pack (.zip), an "
            "experiment folder, a checkpoint (.pth), or a tag of the model zoo"
        )
    found = _download(source, cache)
    if isinstance(found, Path):
        return _from_folder(source, found)
    return _from_pack(source, found)


def is_kept(name: str) -> bool:
    """Whether one of OpenAI's Whispers is here already, by its name among them."""
    return kept(name, _cache(None))


def whole_name(source: str) -> str:
    """A base's name that is the same from every folder: paths become whole."""
    if is_whisper(source):
        return whole_whisper(source)
    local = Path(source).expanduser()
    return str(whole(local)) if local.exists() else source


def check_adaptable(base: BaseModel) -> None:
    """Refuse a base that no adapter can stand on, before anything is computed with it.

    Raises:
        BaseModelError: It is not a model for speech recognition.
        ConfigError: Its encoder cannot be wrapped.
    """
    config = base.model_config()
    name = config.get("encoder")
    if name is None or name in ENCODERS:
        return
    # Others show what they are only when they are built.
    from espnet2.tasks.asr import encoder_choices

    from espnet_hra.encoder.adapted import OWN_KEYS

    conf = {
        k: v for k, v in (config.get("encoder_conf") or {}).items() if k not in OWN_KEYS
    }
    try:
        built = encoder_choices.get_class(adapted_encoder(name))
        built(input_size=config.get("input_size") or 80, **conf)
    except ConfigError as e:
        raise BaseModelError(f"{base.source}: encoder: {name}: {e}") from e
    except Exception as e:
        raise BaseModelError(
            f"{base.source}: its encoder {name} cannot be built as an adapted one "
            f"({type(e).__name__}: {e}); {known_encoders()} can"
        ) from e


def _from_folder(source: str, folder: Path) -> BaseModel:
    meta = folder / "meta.yaml"
    if meta.is_file():
        names = archive.pack_files(source, read_yaml(meta, BaseModelError))
        files = {key: str(folder / name) for key, name in names.items()}
        return _from_pack(source, files)
    config = folder / "config.yaml"
    found = sorted(p for p in folder.glob("*.pth") if p.name != "checkpoint.pth")
    found += sorted(folder.glob("*.ckpt"))
    # ESPnet3 leaves averages of the first epochs there: that of most is the last.
    found.sort(key=_averaged, reverse=True)
    for pattern in _CHECKPOINTS:
        for file in found:
            if re.fullmatch(pattern, file.name) and config.is_file():
                return BaseModel(source, file, config)
    if len(found) == 1 and config.is_file():  # 20epoch.pth, of an unpacked pack
        return BaseModel(source, found[0], config)
    raise BaseModelError(
        f"{source}: no ESPnet model in this folder; expected meta.yaml, or config.yaml "
        "beside a checkpoint such as valid.acc.ave.pth"
    )


def _averaged(checkpoint: Path) -> int:
    """How many checkpoints a file says that it is the average of; 0 for others."""
    found = re.search(r"\.ave_(\d+)best\.pth$", checkpoint.name)
    return int(found[1]) if found else 0


def _from_pack(source: str, files: dict[str, Any]) -> BaseModel:
    known = [kind.files for kind in KINDS.values()]
    pair = next((pair for pair in known if set(pair) <= set(files)), None)
    if pair is None:
        raise BaseModelError(
            f"{source}: this pack has no {known[0][0]} (nor one of another ESPnet task "
            f"that can be adapted: {', '.join(KINDS)}), and its {known[0][1]}"
        )
    config, model = files[pair[0]], files[pair[1]]
    for file in (config, model):
        if not Path(file).is_file():
            raise BaseModelError(f"{source}: the pack names {file}, which is missing")
    return BaseModel(source, Path(model), Path(config))


def _downloader(cache: str | None):
    from espnet_model_zoo.downloader import ModelDownloader

    return ModelDownloader(cache) if cache else ModelDownloader()


def _unpack(path: Path, cache: str | None) -> Path:
    """Unpack a local zip; the cache goes by content, because the zoo's goes by path."""
    try:
        is_zip = zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of several disks
        is_zip = False
    if not is_zip:
        raise BaseModelError(
            f"{path}: neither a zip nor a checkpoint (.pth); a base is an ESPnet pack, "
            "an experiment folder, a checkpoint, or a tag of the model zoo"
        )
    return archive.unpack(path, _cache(cache))


def _cache(given: str | None) -> Path:
    return Path(given) if given else archive.cache()


def _download(tag: str, cache: str | None) -> Path | dict[str, Any]:
    """Fetch a model: the folder of a zip, which we unpack, or a repository's files."""
    try:
        downloader = _downloader(cache)
        if "huggingface.co" not in downloader.get_url(tag):
            file = Path(downloader.download(tag))
            if file.suffix == ".zip":
                return _unpack(file, cache)
        return downloader.download_and_unpack(tag)
    except BaseModelError:
        raise
    except Exception as e:
        raise BaseModelError(
            f"{tag}: neither a file or folder here nor a model that could be fetched "
            f"from the model zoo ({type(e).__name__}: {' '.join(str(e).split())}); "
            "check the name and the network, or give the model's zip or folder"
        ) from e


def load_base(
    model: torch.nn.Module,
    base: BaseModel,
    expected: dict[str, str] | None = None,
    new_tokens: int = 0,
) -> dict[str, str]:
    """Load a base whole into an adapted model, and verify it.

    Args:
        model: Model whose encoder has an adapter.
        base: The base.
        expected: Fingerprints that it must have, by component; None for a new run.
        new_tokens: How many tokens the model will be given that the base may have
            been given already, see :mod:`espnet_hra.espnet.ctc`.

    Returns:
        Its fingerprints.

    Raises:
        BaseModelError: Keys are missing or surplus, shapes differ, or the fingerprint
            is another.
    """
    state = {
        k: v
        for k, v in base.state_dict().items()
        if not k.startswith("encoder.adapter.")
    }
    state = without_new(state, getattr(model, "vocab_size", 0), new_tokens)
    needed = {
        f"{name}.{key}" if key else name: tensor
        for name, part in components(model).items()
        for key, tensor in part
    }
    problems = differences(needed, state)
    if problems:
        raise BaseModelError(
            f"{base.model_file} does not fit this configuration: {problems}. Take the "
            "base's own configuration: leave the model's keys out and give "
            "--pretrained_model the folder or pack"
        )
    model.load_state_dict(state, strict=False)  # strictness was checked above
    found = fingerprints(model)
    base.check(found, {**base.expected, **(expected or {})})
    logging.info(f"Loaded the base {base.model_file}, whole: {', '.join(found)}")
    return found


def read_config(config_file: Path, base: str | None = None) -> dict[str, Any]:
    """A saved configuration in which the files that it names have whole paths.

    ESPnet writes them as they were given where the training was started: in a recipe,
    ``data/token_list/...``. So they are looked for from the configuration's folder
    upwards, and last in the working directory; in a pack, within it.

    Args:
        config_file: The configuration.
        base: Where the model's base is now. It has the files that are nowhere else: an
            adaptation names them where its base was.

    Raises:
        BaseModelError: It is not readable, or a file that it names is gone.
    """
    config = read_yaml(config_file, BaseModelError)
    name = encoder_of(config)
    if isinstance(name, str):
        config["encoder"] = plain_encoder(name)
    config_file = whole(config_file)
    folders = [*config_file.parents, *config_file.resolve().parents]
    pack = reference.pack_of(config_file)
    if pack is None:
        find_base(config, folders)
    else:
        find_base(config, [pack])
        config = {**archive.resolve(config, pack), "init_param": []}
        if base is None:
            reference.check(config, pack)
    for place, key in named_files(config):
        found = find_file(place[key], (*folders, Path.cwd()))
        if found is None and base is not None:
            other = open_base(base).config_file
            own = {} if other is None else read_config(other)
            found = {name: there[name] for there, name in named_files(own)}.get(key)
        if found is None and can_lack(key, config, pack is not None):
            logging.warning(f"{config_file} names {place[key]}, which is not there")
        elif found is None:
            raise BaseModelError(
                f"{config_file} names {place[key]}, which is neither there nor in a "
                "folder above it: put the file back, give the model's pack (.zip), "
                "which has it inside, or say with --pretrained_model (in Python, "
                "pretrained_model=) where the base is now"
            )
        place[key] = found
    return config


def token_hash(tokens: Sequence[str]) -> str:
    """Hash of a token list, one token a line."""
    text = "\n".join(tokens).encode("utf-8")
    return f"sha256:{hashlib.sha256(text).hexdigest()}"
