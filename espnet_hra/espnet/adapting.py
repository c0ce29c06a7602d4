"""What makes an ESPnet task one for adapted models: a frozen base and an adapter.

Everything that the ESPnet task can do, its counterpart can. :class:`Adapting` adds the
encoders ``hra_...``, ``--pretrained_model`` and the options below, and the data stream
``utt2task``. It registers when it is imported, so that spawned workers find it as well.
The counterparts themselves are in :mod:`espnet_hra.espnet.task`.
"""

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from espnet2.tasks.abs_task import AbsTask
from espnet2.utils.types import str2bool, str_or_none

from espnet_hra.data.checks import add_skip_bad
from espnet_hra.encoder import attention_decoder, rates
from espnet_hra.encoder.adapted import OWN_KEYS, AdaptedEncoder
from espnet_hra.errors import BaseModelError, ConfigError
from espnet_hra.espnet import (
    classifying,
    ctc,
    params,
    prompts,
    registry,
    resuming,
    starting,
    voices,
    whisper_frontend,
    whisper_training,
)
from espnet_hra.espnet.base import open_base, read_config, token_hash
from espnet_hra.espnet.checking import (
    check_data,
    check_options,
    config_kept,
    messages,
    settle_new_tokens,
)
from espnet_hra.espnet.kinds import Kind, check_kind
from espnet_hra.espnet.model import (
    ADAPTER_PREFIX,
    DATA_NAME,
    LANGUAGE_NAME,
    TaskNames,
    freeze_base,
    task_aware,
)
from espnet_hra.espnet.seam import standing_in
from espnet_hra.espnet.trainer import AdapterTrainer
from espnet_hra.espnet.whisper import check_memory, without_weights
from espnet_hra.files import atomic
from espnet_hra.files.checkpoint import beginning, differences, read_state
from espnet_hra.names import PREFIX, adapted_encoder
from espnet_hra.tasks.config import labels_by_task, read_records

registry.register()

logger = logging.getLogger(__name__)

AUTOCAST = ("none", "bfloat16", "auto")


class Adapting(AbsTask):
    """Mixin for ESPnet's tasks: their models with a frozen base and an adapter."""

    #: The ESPnet task that it is the counterpart of.
    kind: Kind

    trainer = AdapterTrainer

    #: Encoders that are built for training ask for it.
    freezes_base = True

    # ------------------------------------------------------------------- options

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """ESPnet's options and those of adaptation."""
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
        prompts.add_arguments(group)
        add_skip_bad(group)

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
        inherited = open_base(args.pretrained_model).model_config(cls.kind.name)
        parser.set_defaults(**inherited)
        parser.set_defaults(encoder=default_encoder, encoder_conf={})
        args = parser.parse_args(cmd)
        if args.encoder == default_encoder and "encoder" in inherited:
            args.encoder = adapted_encoder(inherited["encoder"])
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
        """Train. Options as of ESPnet's program and those above."""
        args = cls.parse(cmd) if args is None else args
        check_options(args)
        if not (args.collect_stats or args.dry_run or args.print_config):
            if args.encoder.startswith(PREFIX):
                prompts.check_languages(args)
                starting.base_source(
                    args
                )  # to hear of a missing one before audio is read
                settle_new_tokens(args)
            if args.check_data:
                with messages(args.log_level):
                    check_data(args)
        with config_kept(Path(args.output_dir)):
            super().main(args=args)

    # ---------------------------------------------------------------------- data

    @classmethod
    def optional_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> tuple[str, ...]:
        """ESPnet's, and the task of each utterance; in decoding, its language too."""
        own = (DATA_NAME, LANGUAGE_NAME) if inference else (DATA_NAME,)
        return (*super().optional_data_names(train, inference), *own)

    @classmethod
    def build_preprocess_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> Callable[[str, dict[str, Any]], dict[str, Any]] | None:
        """ESPnet's, task names as arrays, and what texts begin with."""
        with without_weights(vars(args)):
            own = super().build_preprocess_fn(args, train)
        prompted = prompts.prompting(TaskNames(own), vars(args))
        labels = labels_by_task(getattr(args, "encoder_conf", None))
        return classifying.Labels(prompted, labels) if labels else prompted

    # --------------------------------------------------------------------- model

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> torch.nn.Module:
        """Build the model, load its base, verify it and freeze it.

        Raises:
            BaseModelError: There is no base, or it is not the one of the saved
                configuration.
            TaskError: A task name is not valid.
        """
        check_memory(vars(args))
        adapted = (args.encoder or "").startswith(PREFIX)
        if not adapted and getattr(args, "pretrained_model", None) is not None:
            raise BaseModelError(
                f"--pretrained_model is the frozen base of an adapted encoder, and "
                f"this configuration has encoder: {args.encoder}; write "
                f"encoder: {PREFIX}{args.encoder}, or use --init_param to train it all"
            )
        if adapted and "tasks" in args.encoder_conf:
            # Inlined, as ESPnet does with the token list, to keep a pack whole.
            records = read_records(args.encoder_conf["tasks"])
            args.encoder_conf["tasks"] = [record.config() for record in records]
            classifying.check(cls.kind.name, records)
        if not adapted:
            return cls._build_task_aware(args)
        needs_base = not getattr(args, "collect_stats", False)
        source = starting.base_source(args) if needs_base else ""
        # The base is built, loaded and verified with the tokens that it has.
        args.token_list, new_tokens = ctc.settle(args)
        model = cls._build_task_aware(args)
        if needs_base:
            freeze_base(model)
            starting.load_named_base(args, model, source, len(new_tokens))
        if new_tokens:
            ctc.extend(model, args.token_list, new_tokens)
            args.token_list = list(model.token_list)
        ctc.attach(model)
        attention_decoder.attach(model)
        return model

    @classmethod
    def _build_task_aware(cls, args: argparse.Namespace) -> Any:
        """ESPnet's model, of the task-aware counterpart of its class."""
        holder = import_module(cls.kind.module)
        models = getattr(holder, cls.kind.model)
        aware = task_aware if isinstance(models, type) else _TaskAwareModels
        with (
            standing_in(holder, **{cls.kind.model: aware(models)}),
            without_weights(vars(args)),
        ):
            model = super().build_model(args)
        whisper_frontend.prepare(vars(args), model)
        return model

    @classmethod
    def load_initial_adapter(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> None:
        """Start from the controller and tasks that ``--init_adapter`` names.

        Raises:
            BaseModelError: They are of another configuration, or none are given where
                the controller is frozen.
        """
        starting.load_initial_adapter(args, model)

    @classmethod
    def args_of(cls, config: Mapping[str, Any]) -> argparse.Namespace:
        """The options that a configuration stands for, without a command line.

        Args:
            config: Of a training to be, or as a training has saved it.
        """
        args = cls.get_parser().parse_args(["--output_dir", "unused"])
        if config.get("pretrained_model") and not config.get("base_fingerprint"):
            config = with_base(config, cls.kind.name)
        vars(args).update({**config, "encoder_conf": config.get("encoder_conf") or {}})
        return args

    @classmethod
    def build_untrained(cls, config: Mapping[str, Any]) -> torch.nn.Module:
        """The model of a configuration as training sees it, without its weights.

        Args:
            config: Of a training to be, or as a training has saved it.

        Raises:
            BaseModelError: The configuration's encoder is not an adapted one.
        """
        args = cls.args_of(config)
        args.init = None
        if not args.encoder.startswith(PREFIX):
            raise BaseModelError(
                f"encoder: {args.encoder} has no adapter; write {PREFIX}{args.encoder}"
            )
        args.token_list, new_tokens = ctc.settle(args)
        with without_weights(vars(args)):
            model = super().build_model(args)
        whisper_frontend.prepare(vars(args), model)
        freeze_base(model)
        if new_tokens:
            ctc.extend(model, args.token_list, new_tokens)
        ctc.attach(model)
        attention_decoder.attach(model)
        return model

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: Any
    ) -> list[torch.optim.Optimizer]:
        """As ESPnet; the last step before training prepares the model for it.

        Raises:
            ConfigError: A training in the folder cannot be resumed.
        """
        model.autocast_dtype = autocast_dtype(args.autocast, args.ngpu > 0)
        whisper_training.quicken(model, on_cpu=args.ngpu == 0)
        if not isinstance(model.encoder, AdaptedEncoder):
            whisper_frontend.load(vars(args), model)
        earlier = None
        if args.resume and not args.collect_stats:
            # ESPnet would write its configuration over that of the earlier training,
            # and find out afterwards.
            earlier = resuming.Earlier.read(Path(args.output_dir))
            if earlier is not None:
                earlier.check_model(model)
        if isinstance(model.encoder, AdaptedEncoder) and not args.collect_stats:
            cls.begin_training(args, model)
            # A mixed batch uses some heads only.
            args.unused_parameters = True
        optimizers = super().build_optimizers(args, model)
        if isinstance(model.encoder, AdaptedEncoder):
            for optimizer in optimizers:
                rates.apply(optimizer, model.encoder)
        if earlier is not None:
            earlier.check_optimizers(optimizers)
        return optimizers

    @classmethod
    def begin_training(cls, args: argparse.Namespace, model: Any) -> None:
        """Start from an earlier adapter, if one is named, and say what will be trained.

        Raises:
            BaseModelError: See :meth:`load_initial_adapter`.
            ConfigError: There is nothing to train.
        """
        cls.load_initial_adapter(args, model)
        _report_parameters(args, model)
        if not any(p.numel() for p in model.parameters() if p.requires_grad):
            raise ConfigError(
                f"adapter: {args.encoder_conf.get('adapter', 'hra')} with "
                f"{len(model.encoder.tasks)} tasks has no parameters: there is "
                "nothing to train"
            )

    @classmethod
    def build_model_from_file(
        cls,
        config_file: Path | str | None = None,
        model_file: Path | str | None = None,
        device: str = "cpu",
        base: str | None = None,
    ) -> tuple[Any, argparse.Namespace]:
        """Build a trained model for inference. Unlike ESPnet's, loading is strict.

        Args:
            config_file: Saved configuration; by default beside `model_file`.
            model_file: Checkpoint: of an adapter, of a base pack (which is its own
                base), or of a model without an adapter. An ``adapter: none`` needs
                none.
            device: Where to put the model.
            base: Where the frozen base is, if not where the configuration says.

        Raises:
            BaseModelError: Keys are missing or surplus, or the base is missing or not
                the one that the adapter was trained on.
        """
        if config_file is None and model_file is not None:
            config_file = Path(model_file).parent / "config.yaml"
        config: dict[str, Any] = {}
        if config_file is not None:
            config = read_config(Path(config_file), base)
            check_kind(cls.kind.name, config, str(config_file))
        args = argparse.Namespace(**config)
        args.init = None  # the checkpoint replaces whatever it would give
        args.pretrained_model = base or config.get("pretrained_model")
        if model_file is None:
            if (config.get("encoder_conf") or {}).get("adapter") == "none":
                model = cls.build_model(args)  # has no checkpoints
                return _with_surroundings(model, args).to(device), args
            raise BaseModelError(
                f"{config_file}: no checkpoint was given; without it the adapter would "
                "not change anything. Give the file, e.g. valid.cer_ctc.ave.pth"
            )
        state = read_state(Path(model_file))
        prefix = ""
        if str(config.get("encoder")).startswith(PREFIX):
            prefix = ADAPTER_PREFIX
            if len(beginning(state, prefix)) < len(state) and base is None:
                args.pretrained_model = str(model_file)
        else:
            state = whisper_frontend.complete(config, state)
        model = cls.build_model(args)
        own = {k: v for k, v in model.state_dict().items() if k.startswith(prefix)}
        found = {k: v for k, v in state.items() if k.startswith(prefix)}
        problems = differences(own, found)
        if problems:
            raise BaseModelError(f"{model_file} does not fit {config_file}: {problems}")
        model.load_state_dict(found, strict=not prefix)
        if prefix:
            voices.attach(model, Path(model_file).parent)
        return _with_surroundings(model, args).to(device), args


class _TaskAwareModels:
    """ESPnet's registry of models, with the task-aware counterpart of each."""

    def __init__(self, choices: Any):
        self._choices = choices

    def get_class(self, name: str | None) -> type:
        """The class of a name, as of ESPnet's registry."""
        return task_aware(self._choices.get_class(name))


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


def with_base(config: Mapping[str, Any], espnet_task: str = "asr") -> dict[str, Any]:
    """A configuration with what comes along with the base that it names.

    Keys of the configuration win; ``encoder_conf`` is merged key by key.

    Args:
        config: A configuration with ``pretrained_model``.
        espnet_task: The ESPnet task that it is for.

    Raises:
        BaseModelError: There is no such base, or it is of another ESPnet task.
    """
    inherited = open_base(config["pretrained_model"]).model_config(espnet_task)
    if "encoder" in inherited:
        inherited["encoder"] = adapted_encoder(inherited["encoder"])
    conf = {
        **_backbone_conf(inherited.pop("encoder_conf", None)),
        **(config.get("encoder_conf") or {}),
    }
    return {**inherited, **config, "encoder_conf": conf}


def _backbone_conf(encoder_conf: dict[str, Any] | None) -> dict[str, Any]:
    """A base's `encoder_conf`; one that is adapted itself is taken for its backbone."""
    conf = dict(encoder_conf or {})
    for key in OWN_KEYS:
        conf.pop(key, None)
    return conf


def _with_surroundings(model: Any, args: argparse.Namespace) -> Any:
    """A model whose encoder knows what task files must agree with besides itself."""
    if isinstance(model.encoder, AdaptedEncoder):
        base = dict(getattr(args, "base_fingerprint", None) or {})
        base.pop("encoder", None)
        tokens = token_hash(args.token_list)
        model.encoder.surroundings = {"base": base, "tokens": tokens}
    return model


def _report_parameters(args: argparse.Namespace, model: torch.nn.Module) -> None:
    """Log the table of parameters and keep it beside the configuration."""
    counts = params.count(model)
    logger.info(params.table(counts))
    if args.output_dir is None:  # ESPnet3's
        return
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(counts, indent=2) + "\n"
        atomic.write(folder / "params.json", text)
