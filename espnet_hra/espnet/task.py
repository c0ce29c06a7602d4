"""ESPnet's ASR task for adapted models: `espnet2.tasks.asr.ASRTask` plus a frozen base.

Everything that ASRTask can do, this one can. What it adds: the encoders ``hra_...``,
``--pretrained_model`` and the options below, and the data stream ``utt2task``. It
registers when it is imported, so that spawned workers find it as well.
"""

import argparse
import collections
import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
)

import torch
import yaml
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.safe_torch_load import safe_torch_load
from espnet2.utils.types import str2bool, str_or_none

from espnet_hra.data import checks as validate
from espnet_hra.encoder.adapted import OWN_KEYS, PREFIX, AdaptedEncoder, read_tasks
from espnet_hra.errors import BaseModelError, ConfigError, DataError
from espnet_hra.espnet import ctc as projection
from espnet_hra.espnet import params, registry
from espnet_hra.espnet.base import load_base, open_base
from espnet_hra.espnet.model import (
    ADAPTER_PREFIX,
    DATA_NAME,
    TaskNames,
    freeze_base,
    make_task_aware,
)
from espnet_hra.espnet.trainer import AdapterTrainer
from espnet_hra.names import listing

registry.register()

logger = logging.getLogger(__name__)

AUTOCAST = ("none", "bfloat16", "auto")


class HRATask(ASRTask):
    """Speech recognition with a frozen base and an adapter."""

    trainer = AdapterTrainer

    #: Where the base is, if not where the saved configuration says.
    base_override: str | None = None

    # ------------------------------------------------------------------- options

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """ASRTask's options and those of adaptation."""
        super().add_task_arguments(parser)
        group = parser.add_argument_group("Adaptation related")
        group.add_argument(
            "--pretrained_model",
            type=str_or_none,
            default=None,
            help="The frozen base: an ESPnet pack (zip), an experiment folder, a "
            "checkpoint (.pth) or a tag of the model zoo. Its frontend, normalisation, "
            "tokens, encoder and CTC come along",
        )
        group.add_argument(
            "--base_fingerprint",
            type=json.loads,
            default=None,
            help="Fingerprints that the base must have (JSON, by component). Written "
            "to the saved configuration and verified whenever it is used",
        )
        group.add_argument(
            "--init_adapter",
            type=str_or_none,
            default=None,
            help="Start from the controller and tasks in the checkpoint of an earlier "
            "adaptation. HRA needs it for adapter_conf.regime=new_task",
        )
        group.add_argument(
            "--autocast",
            type=str,
            default="none",
            choices=AUTOCAST,
            help="Automatic mixed precision within the model's forward while training, "
            "on CPUs as well (unlike --use_amp); auto: bfloat16 where the processor "
            "computes in it",
        )
        group.add_argument(
            "--check_data",
            type=str2bool,
            default=True,
            help="Check all audio, transcripts and tasks before training",
        )
        group.add_argument(
            "--skip_bad",
            type=str2bool,
            default=False,
            help="Leave out and count utterances that fail the check, instead of "
            "stopping with the report",
        )

    @classmethod
    def parse(cls, cmd: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse options; the base's configuration supplies the model's defaults.

        Explicit keys, on the command line or in ``--config``, win over the base's;
        ``encoder_conf`` is merged key by key.
        """
        args = cls.get_parser().parse_args(cmd)
        if args.pretrained_model is None:
            return args
        parser = cls.get_parser()
        default_encoder = parser.get_default("encoder")
        inherited = open_base(args.pretrained_model).model_config()
        parser.set_defaults(**inherited)
        parser.set_defaults(encoder=default_encoder, encoder_conf={})
        args = parser.parse_args(cmd)
        if args.encoder == default_encoder and "encoder" in inherited:
            args.encoder = _adapted(inherited["encoder"])
        args.encoder_conf = {
            **_backbone_conf(inherited.get("encoder_conf")),
            **args.encoder_conf,
        }
        return args

    @classmethod
    def main(
        cls,
        args: argparse.Namespace | None = None,
        cmd: Sequence[str] | None = None,
    ) -> None:
        """Train. Options as of ``espnet2.bin.asr_train`` and those above."""
        args = cls.parse(cmd) if args is None else args
        if not (args.collect_stats or args.dry_run or args.print_config):
            if args.encoder.startswith(PREFIX):
                _base_source(args)  # to hear of a missing one before audio is read
                _settle_new_tokens(args)
            if args.check_data:
                with _messages(args.log_level):
                    _check_data(args)
        super().main(args=args)

    # ---------------------------------------------------------------------- data

    @classmethod
    def optional_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> tuple[str, ...]:
        """ASRTask's, and the task of each utterance."""
        return (*super().optional_data_names(train, inference), DATA_NAME)

    @classmethod
    def build_preprocess_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> Callable[[str, dict[str, Any]], dict[str, Any]] | None:
        """ASRTask's, and task names as arrays."""
        return TaskNames(super().build_preprocess_fn(args, train))

    # --------------------------------------------------------------------- model

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> torch.nn.Module:
        """Build the model, load its base, verify it and freeze it.

        Raises:
            BaseModelError: There is no base, or it is not the one of the saved
                configuration.
            TaskError: A task name is not valid.
        """
        adapted = (args.encoder or "").startswith(PREFIX)
        if not adapted and getattr(args, "pretrained_model", None) is not None:
            raise BaseModelError(
                f"--pretrained_model is the frozen base of an adapted encoder, and "
                f"this configuration has encoder: {args.encoder}; write "
                f"encoder: {PREFIX}{args.encoder}, or use --init_param to train it all"
            )
        if adapted and "tasks" in args.encoder_conf:
            # Inlined, as ESPnet does with the token list, to keep a pack whole.
            args.encoder_conf["tasks"] = list(read_tasks(args.encoder_conf["tasks"]))
        if not adapted:
            model = super().build_model(args)
            make_task_aware(model)
            return model
        needs_base = not getattr(args, "collect_stats", False)
        if needs_base:
            source = cls.base_override or _base_source(args)
        # The base is built, loaded and verified with the tokens that it has.
        args.token_list, new_tokens = projection.settle(args)
        model = super().build_model(args)
        make_task_aware(model)
        if needs_base:
            freeze_base(model)
            cls._load_base(args, model, source, len(new_tokens))
        if new_tokens:
            projection.extend(model, args.token_list, new_tokens)
            args.token_list = list(model.token_list)
        projection.attach(model)
        return model

    @classmethod
    def _load_base(
        cls,
        args: argparse.Namespace,
        model: torch.nn.Module,
        source: str,
        new_tokens: int = 0,
    ) -> None:
        """Load the base whole and write its fingerprints to the configuration."""
        expected = getattr(args, "base_fingerprint", None)
        args.base_fingerprint = load_base(
            model, open_base(source), expected, new_tokens
        )
        local = Path(source).expanduser()
        args.pretrained_model = str(local.resolve()) if local.exists() else source
        args.encoder_conf["backbone_fingerprint"] = args.base_fingerprint["encoder"]
        model.encoder.expected_fingerprint = args.base_fingerprint["encoder"]
        model.encoder.verify_backbone()

    @classmethod
    def load_initial_adapter(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> None:
        """Start from the controller and tasks that ``--init_adapter`` names.

        Raises:
            BaseModelError: They are of another configuration, or none are given where
                the controller is frozen.
        """
        _load_initial_adapter(args, model)

    @classmethod
    def build_untrained(cls, config: Mapping[str, Any]) -> torch.nn.Module:
        """The model of a configuration as training sees it, without its weights.

        Args:
            config: Of a training to be, or as a training has saved it.

        Raises:
            BaseModelError: The configuration's encoder is not an adapted one.
        """
        args = cls.get_parser().parse_args(["--output_dir", "unused"])
        inherited: dict[str, Any] = {}
        if config.get("pretrained_model") and not config.get("base_fingerprint"):
            inherited = open_base(config["pretrained_model"]).model_config()
            inherited["encoder"] = _adapted(inherited.get("encoder", args.encoder))
        conf = {
            **_backbone_conf(inherited.pop("encoder_conf", None)),
            **(config.get("encoder_conf") or {}),
        }
        vars(args).update({**inherited, **config, "encoder_conf": conf, "init": None})
        if not args.encoder.startswith(PREFIX):
            raise BaseModelError(
                f"encoder: {args.encoder} has no adapter; write {PREFIX}{args.encoder}"
            )
        args.token_list, new_tokens = projection.settle(args)
        model = super().build_model(args)
        freeze_base(model)
        if new_tokens:
            projection.extend(model, args.token_list, new_tokens)
        projection.attach(model)
        return model

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """As ASRTask; the last step before training prepares the model for it."""
        model.autocast_dtype = autocast_dtype(args.autocast, args.ngpu > 0)
        if isinstance(model.encoder, AdaptedEncoder) and not args.collect_stats:
            cls.load_initial_adapter(args, model)
            _report_parameters(args, model)
            if not any(p.numel() for p in model.parameters() if p.requires_grad):
                raise ConfigError(
                    f"adapter: {args.encoder_conf.get('adapter', 'hra')} with "
                    f"{len(model.encoder.tasks)} tasks has no parameters: there is "
                    "nothing to train"
                )
            # A mixed batch uses some heads only.
            args.unused_parameters = True
        return super().build_optimizers(args, model)

    @classmethod
    def build_model_from_file(
        cls,
        config_file: Path | str | None = None,
        model_file: Path | str | None = None,
        device: str = "cpu",
    ) -> tuple[torch.nn.Module, argparse.Namespace]:
        """Build a trained model for inference. Unlike ESPnet's, loading is strict.

        Args:
            config_file: Saved configuration; by default beside `model_file`.
            model_file: Checkpoint: of the adapter, or of a whole model without one. An
                ``adapter: none`` needs none.
            device: Where to put the model.

        Raises:
            BaseModelError: Keys are missing or surplus, or the base is missing or not
                the one that the adapter was trained on.
        """
        if config_file is None and model_file is not None:
            config_file = Path(model_file).parent / "config.yaml"
        config: dict[str, Any] = {}
        if config_file is not None:
            config = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))
        args = argparse.Namespace(**config)
        args.init = None  # the checkpoint replaces whatever it would give
        if model_file is None:
            if (config.get("encoder_conf") or {}).get("adapter") == "none":
                return cls.build_model(args).to(device), args  # has no checkpoints
            raise BaseModelError(
                f"{config_file}: no checkpoint was given; without it the adapter would "
                "not change anything. Give the file, e.g. valid.cer_ctc.ave.pth"
            )
        model = cls.build_model(args)
        state = safe_torch_load(str(model_file), map_location="cpu")
        if isinstance(state.get("model"), dict):  # checkpoint.pth, made for resuming
            state = state["model"]
        prefix = ""
        if isinstance(model.encoder, AdaptedEncoder):
            prefix = ADAPTER_PREFIX
        own = {key for key in model.state_dict() if key.startswith(prefix)}
        missing, surplus = sorted(own - state.keys()), sorted(state.keys() - own)
        if missing or surplus:
            raise BaseModelError(
                f"{model_file} does not fit {config_file}: {len(missing)} keys are "
                f"missing {missing[:3]}, {len(surplus)} surplus {surplus[:3]}"
            )
        model.load_state_dict(state, strict=not prefix)
        return model.to(device), args


def autocast_dtype(choice: str, gpu: bool) -> torch.dtype | None:
    """The type that ``--autocast`` means here; None for full precision.

    Processors without instructions for bfloat16 emulate it, which takes longer than
    full precision.
    """
    if choice == "auto":
        if gpu:
            able = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            found = torch.cpu.get_capabilities()
            able = any(found.get(key) for key in ("avx512_bf16", "amx_bf16", "bf16"))
        choice = "bfloat16" if able else "none"
        logger.info(f"--autocast auto: {choice}")
    return torch.bfloat16 if choice == "bfloat16" else None


def _adapted(encoder: str) -> str:
    """The adapted counterpart of an encoder's name."""
    return PREFIX + encoder.removeprefix(PREFIX)


def _backbone_conf(encoder_conf: dict[str, Any] | None) -> dict[str, Any]:
    """A base's `encoder_conf`; one that is adapted itself is taken for its backbone."""
    conf = dict(encoder_conf or {})
    for key in OWN_KEYS:
        conf.pop(key, None)
    return conf


@contextlib.contextmanager
def _messages(level: int | str) -> Iterator[None]:
    """Show this package's messages before ESPnet sets up logging, without doing it."""
    log, handler = logging.getLogger("espnet_hra"), logging.StreamHandler()
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def _check_data(args: argparse.Namespace) -> None:
    """Check the data of training and validation; see :mod:`espnet_hra.data.checks`.

    Raises:
        DataError: With all problems of both in one report, unless they shall be
            skipped; then the arguments name lists without them.
    """
    try:
        requirements = validate.requirements_from_config(args)
    except (ValueError, OSError) as e:
        raise DataError(f"the configuration cannot be used: {e}") from e
    reports = {}
    for part in ("train", "valid"):
        lists = _lists(args, part)
        if "speech" not in lists or args.multi_task_dataset:
            continue  # features, or data in a form of their own
        if DATA_NAME not in lists and len(requirements.tasks or ()) > 1:
            raise DataError(
                f"there are several tasks ({listing(requirements.tasks)}) and nothing "
                f"says which utterance has which: add --{part}_data_path_and_name_and_"
                f"type PATH/{DATA_NAME},{DATA_NAME},text"
            )
        reports[part] = validate.check(
            lists["speech"],
            lists.get("text"),
            lists.get(DATA_NAME),
            requirements=requirements,
        )
    bad = {part: report for part, report in reports.items() if not report.ok}
    if not bad:
        return
    text = "\n".join(f"{part} data: {report}" for part, report in bad.items())
    if not args.skip_bad:
        raise DataError(
            f"{text}\nCorrect them, or leave these utterances out with --skip_bad true"
        )
    logger.warning(f"{text}\nLeft out, because of --skip_bad true")
    for part, report in bad.items():
        if not report.good:
            raise DataError(f"{text}\nNo utterance of the {part} data is left")
        _restrict(args, part, report.good)


def _settle_new_tokens(args: argparse.Namespace) -> None:
    """Replace ``new_tokens: auto`` by tokens, and add new tokens to the token list.

    Raises:
        ConfigError: They cannot be learned.
        DataError: The training text cannot be read.
    """
    own = args.encoder_conf.get("adapter_conf") or {}
    if not own.get("new_tokens"):
        return
    if own["new_tokens"] == projection.AUTO:
        found = _unknown_tokens(args)
        logger.info(f"New tokens, from the training text: {found or 'none'}")
        args.encoder_conf["adapter_conf"] = {**own, "new_tokens": list(found)}
    tokens, new = projection.settle(args)
    args.token_list = projection.with_new(tokens, new)


def _unknown_tokens(args: argparse.Namespace) -> dict[str, int]:
    """How often the training text has which characters that the base lacks."""
    if args.token_type != "char":
        raise ConfigError(
            f"adapter_conf: new_tokens: {projection.AUTO} takes characters from the "
            f"text, and this model's tokens are of another type ({args.token_type})"
        )
    counts: collections.Counter = collections.Counter()
    try:
        tokenizer = validate.requirements_from_config(args).tokenizer
        path = _lists(args, "train").get("text")
        if path is not None and tokenizer is not None:
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                counts.update(tokenizer("".join(line.split(maxsplit=1)[1:])))
    except (ValueError, OSError) as e:
        raise DataError(f"the training text cannot be read: {e}") from e
    known = set(projection.read_tokens(args.token_list))
    return {token: counts[token] for token in sorted(counts) if token not in known}


def _lists(args: argparse.Namespace, part: str) -> dict[str, str]:
    """The lists of a part's data streams, by name."""
    return {
        name: path
        for path, name, kind in getattr(args, f"{part}_data_path_and_name_and_type")
        if (name, kind) in (("speech", "sound"), ("text", "text"), (DATA_NAME, "text"))
    }


def _restrict(args: argparse.Namespace, part: str, keep: Sequence[str]) -> None:
    """Make the arguments name copies of the lists that have some utterances only."""
    folder = Path(args.output_dir) / "checked" / part
    lists = _lists(args, part)
    sources = {_KALDI_NAMES[name]: path for name, path in lists.items()}
    validate.write_lists(sources, folder, keep)
    setattr(
        args,
        f"{part}_data_path_and_name_and_type",
        [
            (str(folder / _KALDI_NAMES[name]) if name in lists else path, name, kind)
            for path, name, kind in getattr(args, f"{part}_data_path_and_name_and_type")
        ],
    )
    kept, shapes = set(keep), []
    for path in getattr(args, f"{part}_shape_file"):
        shapes.append(str(folder / f"shape.{len(shapes)}"))
        with open(path, encoding="utf-8") as file:
            lines = [line for line in file if line.split(maxsplit=1)[:1]]
        Path(shapes[-1]).write_text(
            "".join(line for line in lines if line.split(maxsplit=1)[0] in kept),
            encoding="utf-8",
        )
    setattr(args, f"{part}_shape_file", shapes)


_KALDI_NAMES = {"speech": "wav.scp", "text": "text", DATA_NAME: DATA_NAME}


def _base_source(args: argparse.Namespace) -> str:
    """How the configuration names its base."""
    if getattr(args, "pretrained_model", None) is not None:
        return args.pretrained_model
    files = list(getattr(args, "init_param", None) or [])
    if len(files) == 1 and ":" not in files[0]:
        # It is loaded as a base is: whole, verified and named.
        args.pretrained_model, args.init_param = files[0], []
        return files[0]
    raise BaseModelError(
        f"encoder: {args.encoder} needs the trained model that it adapts, and a part "
        "of one would leave the rest random: give --pretrained_model ZIP|DIR|TAG|FILE"
        + (f" instead of --init_param {' '.join(files)}" if files else "")
    )


def _load_initial_adapter(args: argparse.Namespace, model: torch.nn.Module) -> None:
    """Start from an earlier adapter's controller and tasks."""
    adapter = model.encoder.adapter
    if args.init_adapter is None:
        if adapter.regime == "new_task":
            raise BaseModelError(
                "regime: new_task freezes the controller, which would be random: give "
                "--init_adapter the checkpoint of a joint training"
            )
        return
    state = {
        key.removeprefix(ADAPTER_PREFIX): tensor
        for key, tensor in safe_torch_load(
            args.init_adapter, map_location="cpu"
        ).items()
        if key.startswith(ADAPTER_PREFIX)
    }
    own = adapter.state_dict()
    shared = {k for k in own.keys() | state if not k.startswith("heads.")}
    missing, surplus = sorted(shared - state.keys()), sorted(shared - own.keys())
    other = [k for k in own.keys() & state if own[k].shape != state[k].shape]
    if missing or surplus or other or not state:
        raise BaseModelError(
            f"--init_adapter {args.init_adapter}: not an adapter of this configuration "
            f"(missing: {missing or 'none'}; surplus: {surplus or 'none'}; of another "
            f"shape: {other or 'none'}; tasks in the file: {listing(_tasks_of(state))})"
        )
    taken = {key: state[key] for key in own.keys() & state}
    adapter.load_state_dict(taken, strict=False)
    logger.info(f"Started from {args.init_adapter}: {', '.join(sorted(taken))}")


def _tasks_of(state: Mapping[str, Any]) -> list[str]:
    """Names of the tasks in an adapter's state."""
    heads = sorted(key for key in state if key.startswith("heads."))
    return [key.removeprefix("heads.").replace("/", ".") for key in heads]


def _report_parameters(args: argparse.Namespace, model: torch.nn.Module) -> None:
    """Log the table of parameters and keep it beside the configuration."""
    counts = params.count(model)
    logger.info(params.table(counts))
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(counts, indent=2) + "\n"
        (folder / "params.json").write_text(text, encoding="utf-8")
