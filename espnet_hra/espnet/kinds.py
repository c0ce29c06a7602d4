"""The ESPnet tasks whose models can be adapted, as data.

Nothing here imports ESPnet: commands look up which ESPnet task a model is of before
they pay for the import.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from espnet_hra.errors import BaseModelError


@dataclasses.dataclass(frozen=True)
class Kind:
    """An ESPnet task whose models can be adapted.

    Attributes:
        name: What ESPnet calls it: the module in ``espnet2.tasks``.
        task: Its class in that module.
        adapted: Its adapted counterpart in :mod:`espnet_hra.espnet.task`.
        model: What ``espnet2.tasks.<name>`` makes its models of: a registry, or the
            name of their one class.
        prefix: Begins the names of its options: ``<prefix>_train_config``.
        attribute: Begins the names of what an opened model has: ``<attribute>_model``,
            ``<attribute>_train_args``.
        train: ESPnet's program that trains it, in ``espnet2.bin``.
        inference: ESPnet's program that decodes it, in ``espnet2.bin``.
        opened_by: Names of the classes that this program opens a model with.
        stock: ESPnet's class that opens its models: "module:class".
        opens: Our class that does: "module:class".
        align: ESPnet's program that aligns texts with it, in ``espnet2.bin``; empty if
            there is none.
        aligns: Our class that does: "module:class".
        encoder: What the one encoder of its models is called here; empty where ESPnet
            has a registry of them, and names.
        speech_alone: Whether ESPnet's decoding loop takes no other stream than speech.
    """

    name: str
    adapted: str
    task: str
    prefix: str
    attribute: str
    train: str
    inference: str
    stock: str
    opens: str
    model: str = "model_choices"
    opened_by: tuple[str, ...] = ("Speech2Text",)
    align: str = ""
    aligns: str = ""
    encoder: str = ""
    speech_alone: bool = False

    @property
    def module(self) -> str:
        """The module of ESPnet's class."""
        return f"espnet2.tasks.{self.name}"

    @property
    def files(self) -> tuple[str, str]:
        """Options (and keys of a pack) for configuration and checkpoint."""
        return f"{self.prefix}_train_config", f"{self.prefix}_model_file"


_TABLE = (
    Kind(
        name="asr",
        task="ASRTask",
        adapted="HRATask",
        prefix="asr",
        attribute="asr",
        train="asr_train",
        inference="asr_inference",
        stock="espnet2.bin.asr_inference:Speech2Text",
        opens="espnet_hra.espnet.inference:Speech2Text",
        align="asr_align",
        aligns="espnet_hra.espnet.alignment:CTCSegmentation",
    ),
    Kind(
        name="s2t",
        task="S2TTask",
        adapted="S2THRATask",
        prefix="s2t",
        attribute="s2t",
        train="s2t_train",
        inference="s2t_inference",
        stock="espnet2.bin.s2t_inference:Speech2Text",
        opens="espnet_hra.espnet.inference_others:S2TSpeech2Text",
    ),
    Kind(
        name="s2t_ctc",
        task="S2TTask",
        adapted="S2TCTCHRATask",
        prefix="s2t",
        attribute="s2t",
        train="s2t_train_ctc",
        inference="s2t_inference_ctc",
        opened_by=("Speech2Text", "Speech2TextGreedySearch"),
        stock="espnet2.bin.s2t_inference:Speech2Text",
        opens="espnet_hra.espnet.inference_others:S2TSpeech2Text",
        align="s2t_align",
        aligns="espnet_hra.espnet.alignment:S2TCTCSegmentation",
    ),
    Kind(
        name="st",
        task="STTask",
        adapted="STHRATask",
        prefix="st",
        attribute="st",
        model="ESPnetSTModel",
        train="st_train",
        inference="st_inference",
        stock="espnet2.bin.st_inference:Speech2Text",
        opens="espnet_hra.espnet.inference_others:STSpeech2Text",
    ),
    Kind(
        name="slu",
        task="SLUTask",
        adapted="SLUHRATask",
        prefix="slu",
        attribute="asr",
        train="slu_train",
        inference="slu_inference",
        opened_by=("Speech2Understand",),
        stock="espnet2.bin.slu_inference:Speech2Understand",
        opens="espnet_hra.espnet.inference_others:Speech2Understand",
    ),
    Kind(
        name="asr_transducer",
        task="ASRTransducerTask",
        adapted="ASRTransducerHRATask",
        prefix="asr",
        attribute="asr",
        model="ESPnetASRTransducerModel",
        train="asr_transducer_train",
        inference="asr_transducer_inference",
        stock="espnet2.bin.asr_transducer_inference:Speech2Text",
        opens="espnet_hra.espnet.inference_transducer:TransducerSpeech2Text",
        encoder="asr_transducer",
        speech_alone=True,
    ),
)

#: The ESPnet tasks whose models can be adapted, by name.
KINDS = {kind.name: kind for kind in _TABLE}

#: Keys that configurations of one ESPnet task alone have, once those above are not
#: there.
_TELLTALE = {
    "promptencoder": "s2t_ctc",
    "deliberationencoder": "slu",
    "joint_network_conf": "asr_transducer",
    "asr_encoder": "enh_s2t",
    "synthesizer": "s2st",
    "extra_asr_decoder": "st",
    "src_token_list": "mt",
    "generator": "uasr",
    "num_classes": "hubert",
    "lm": "lm",
}


def espnet_task_of(config: Mapping[str, Any]) -> str:
    """The ESPnet task of a saved configuration, by the keys that it alone has."""
    for key, name in _TELLTALE.items():
        if key in config:
            return name
    return "s2t" if config.get("preprocessor") == "s2t" else "asr"


def encoder_of(config: Mapping[str, Any]) -> str | None:
    """How a configuration, read from a file, names its encoder; None if it does not."""
    kind = KINDS.get(espnet_task_of(config))
    return config.get("encoder") or (kind.encoder if kind else None) or None


def adaptable(name: str, source: str) -> Kind:
    """The ESPnet task of a name.

    Args:
        name: The name.
        source: How messages name the model.

    Raises:
        BaseModelError: Its models cannot be adapted.
    """
    if name not in KINDS:
        raise BaseModelError(
            f"{source}: this model is of the ESPnet task {name}, which cannot be "
            f"adapted; models of {', '.join(KINDS)} can"
        )
    return KINDS[name]


def alignable(name: str, source: str) -> Kind:
    """As :func:`adaptable`, of models that texts can be aligned with.

    Args:
        name: The name.
        source: How messages name the model.

    Raises:
        BaseModelError: They cannot.
    """
    kind = adaptable(name, source)
    if not kind.align:
        able = [other.name for other in KINDS.values() if other.align]
        raise BaseModelError(
            f"{source}: this model is of the ESPnet task {name}, for which ESPnet has "
            f"no alignment; texts are aligned with models of {', '.join(able)}"
        )
    return kind


def check_kind(asked: str, config: Mapping[str, Any], source: str) -> None:
    """Refuse a model of another ESPnet task than the one that shall build it.

    Args:
        asked: The ESPnet task.
        config: The model's configuration.
        source: How messages name the model.

    Raises:
        BaseModelError: It is of another.
    """
    found = adaptable(espnet_task_of(config), source).name
    if found != asked:
        raise BaseModelError(
            f"{source}: this model is of the ESPnet task {found}, which would become "
            f"another model as one of {asked}; train it with `espnet-hra train` "
            f"(python -m espnet_hra.bin.{found}_train), open it with "
            "espnet_hra.Speech2Text.from_pretrained"
        )
