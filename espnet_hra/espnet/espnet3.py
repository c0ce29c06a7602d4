"""ESPnet3: what its configurations name, the ESPnet task above all.

ESPnet3 reads no options. It asks a task for its defaults, updates them with the section
``model`` of the training configuration, and has the model built. What it saves for
decoding, ``config.yaml``, comes about in the same way, before the model is built. So
the defaults do here what options and training do in ESPnet2: with the first update they
take over what the base brings along, with the last one the fingerprints of the base.
"""

import argparse
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
import yaml
from espnet2.tasks.asr import ASRTask
from espnet2.train.preprocessor import AbsPreprocessor
from omegaconf import OmegaConf

from espnet_hra.encoder import rates
from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.errors import ConfigError
from espnet_hra.espnet import adapting, ctc, task
from espnet_hra.espnet.base import open_base
from espnet_hra.espnet.model import DATA_NAME, TaskNames
from espnet_hra.espnet.paths import FILES
from espnet_hra.espnet.trainer import keep_adapter_only
from espnet_hra.names import PREFIX, check_task_name


class HRATask(task.HRATask):
    """The ESPnet task ``task: espnet_hra.task.HRATask`` of a training with ESPnet3.

    Lightning saves what the model's ``state_dict`` gives, which is the adapter only.
    """

    @classmethod
    def get_default_config(cls) -> dict[str, Any]:
        """Defaults, which ESPnet3 updates with a configuration."""
        return _Configuration(super().get_default_config())

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> torch.nn.Module:
        """Build the model for a training: on its base, frozen, checkpoints small.

        Raises:
            BaseModelError: There is no base, or another, or no earlier adapter where
                one is needed.
            ConfigError: There is nothing to train, or no text for ``new_tokens``.
        """
        own = (args.encoder_conf or {}).get("adapter_conf") or {}
        if own.get("new_tokens") == ctc.AUTO:
            raise ConfigError(
                f"adapter_conf: new_tokens: {ctc.AUTO} looks at the training text, "
                "which ESPnet3 does not show a model: write the tokens themselves, "
                "new_tokens: [é, ü]"
            )
        model: Any = super().build_model(args)
        if isinstance(model.encoder, AdaptedEncoder):
            if rates.differ(model.encoder.adapter):
                raise ConfigError(
                    "adapter_conf: shared_rate and loraplus_lr_ratio need an optimizer "
                    "that knows them, and ESPnet3 makes its own: leave them out, or "
                    "train with `espnet-hra train`"
                )
            gpu = torch.cuda.is_available()
            model.autocast_dtype = adapting.autocast_dtype(args.autocast, gpu)
            cls.begin_training(args, model)
            model.train()  # Lightning does not, and frozen statistics are told by it
            keep_adapter_only(model)
            # ESPnet's own way for a module to have a say when weights are made anew.
            model.espnet_initialization_fn = _refuse_initialization
        return model

    @classmethod
    def build_model_from_file(cls, *args: Any, **kwargs: Any) -> Any:
        """As of the ESPnet task for ESPnet2: a model that decodes is whole."""
        return task.HRATask.build_model_from_file(*args, **kwargs)


def _refuse_initialization() -> None:
    raise ConfigError(
        "trainer: init would fill the frozen base with random weights: take it out "
        "(model: init initialises an adapter)"
    )


class _Configuration(dict[str, Any]):
    """Defaults that ESPnet3 updates with what its user has written.

    The section ``model`` comes first. The whole configuration comes last, and only
    where ESPnet3 saves it.
    """

    def update(self, *given: Any, **more: Any) -> None:
        """As ``dict.update``, and with what comes along with the base.

        Raises:
            BaseModelError: There is no such base, or it does not fit.
            ConfigError: The tokens are others than the base's.
        """
        new = {k: v for part in (*given, more) for k, v in dict(part).items()}
        # ESPnet3 saves the preprocessor's arguments among the model's.
        if isinstance(new.get("model"), Mapping):
            del new["model"]
        new.pop("inner", None)
        if new.get("pretrained_model"):
            new = adapting.with_base(new)
            _check_tokens(new)
        super().update(new)
        if "task" in new and self["encoder"].startswith(PREFIX):
            self._describe_base()

    def _describe_base(self) -> None:
        """Write down what a saved configuration says of the base and the tokens."""
        args, source = argparse.Namespace(**self), self.get("pretrained_model")
        task.HRATask.build_model(args)
        super().update(vars(args))
        if source and os.path.exists(source):
            self["pretrained_model"] = os.path.abspath(source)  # a link stays one
        # Recipes are copied and packed, and what they hold is in the same place then:
        # read_config looks for it from the experiment's folder upwards.
        root = os.path.abspath(self.get("recipe_dir") or os.curdir)
        if not _below(self.get("exp_dir"), root):
            return  # they would not be looked for there
        for *keys, last in (*FILES, ("pretrained_model",)):
            place: dict[str, Any] = self
            for key in keys:
                place = place.get(key) or {}
            value = place.get(last)
            if _below(value, root) and os.path.exists(value):  # and is no tag
                place[last] = os.path.relpath(value, root)


# What ESPnet3 writes to a file is this class, which is a mapping like any other.
yaml.SafeDumper.add_representer(
    _Configuration, yaml.representer.SafeRepresenter.represent_dict
)


def _below(path: Any, root: str) -> TypeGuard[str]:
    return isinstance(path, str) and Path(os.path.abspath(path)).is_relative_to(root)


def _check_tokens(config: Mapping[str, Any]) -> None:
    """Refuse a token list that was made anew, of the same length by chance.

    Raises:
        ConfigError: It is another one than the base's.
    """
    base = open_base(config["pretrained_model"]).model_config()
    if not base:
        return
    theirs, _ = ctc.split_tokens(argparse.Namespace(**{"encoder_conf": {}, **base}))
    ours, _ = ctc.split_tokens(argparse.Namespace(**config))
    if ours != theirs:
        different = sum(a != b for a, b in zip(ours, theirs))
        raise ConfigError(
            f"model: token_list has {len(ours)} tokens, the base {len(theirs)}, and "
            f"{different} are others at the same place: leave token_list, token_type "
            "and bpemodel out, they come along with pretrained_model"
        )


class Preprocessor(AbsPreprocessor):
    """The preprocessor of ESPnet3's section ``dataset`` for adapted models.

    It does what ESPnet does with the data of the base: tokens, cleaning of texts and
    the rest are the base's. The task of an utterance, the field ``utt2task`` of the
    dataset, becomes an array that a batch can have.

    Args:
        train: Whether it is for training; ESPnet3 sees to it.
        model: The section ``model`` of the configuration, ``${model}``.
        inner: Another preprocessor in the place of ESPnet's, as
            ``{_target_: ..., _partial_: true, ...}``: it is given `train` as well.
        **conf: More options of ESPnet's preprocessing, such as `rir_scp`, `noise_scp`,
            `speech_volume_normalize` and `preprocessor_conf`.

    Raises:
        BaseModelError: There is no such base.
        ConfigError: An option is unknown, or `inner` is not a partial.
    """

    def __init__(
        self,
        train: bool,
        model: Mapping[str, Any],
        inner: Any = None,
        **conf: Any,
    ):
        super().__init__(train)
        if inner is not None and not isinstance(inner, functools.partial):
            raise ConfigError(
                f"preprocessor: inner: {type(inner).__name__} is built already, and "
                "cannot know whether it is for training: write _partial_: true below "
                "its _target_"
            )
        if inner is not None:
            self.preprocess = TaskNames(inner(train=train))
            return
        args = task.HRATask.args_of(_plain(model))
        unknown = sorted(conf.keys() - vars(args).keys())
        if unknown:
            raise ConfigError(
                f"preprocessor: {', '.join(unknown)}: no option of ESPnet's "
                "preprocessing; those of its preprocessor class (data_aug_effects ...) "
                "belong into preprocessor_conf"
            )
        vars(args).update({key: _plain(value) for key, value in conf.items()})
        tokens, new = ctc.settle(args)
        args.token_list = ctc.with_new(tokens, new)
        self.preprocess = TaskNames(ASRTask.build_preprocess_fn(args, train))

    def __call__(self, uid: str, data: dict[str, Any]) -> dict[str, Any]:
        """Arrays of one utterance.

        Args:
            uid: Its name.
            data: Its fields: `speech` (samples,), `text` and `utt2task`.

        Raises:
            TaskError: `utt2task` is no valid name.
        """
        if DATA_NAME in data:
            check_task_name(data[DATA_NAME])
        return self.preprocess(uid, dict(data))


def _plain(config: Any) -> Any:
    """A value without OmegaConf's types, which ESPnet2 does not know."""
    if OmegaConf.is_config(config):
        return OmegaConf.to_container(config, resolve=True)
    return config


class SetTask:
    """A transform of ESPnet3's datasets: all utterances of an entry have one task.

    Args:
        name: The task.

    Raises:
        TaskError: It is not a valid name.
    """

    def __init__(self, name: str):
        self.name = check_task_name(name)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an utterance, and its task."""
        return {**sample, DATA_NAME: self.name}
