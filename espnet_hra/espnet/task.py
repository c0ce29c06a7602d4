"""The ESPnet tasks for adapted models: one for each whose models can be adapted."""

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from espnet2.tasks.asr import ASRTask
from espnet2.tasks.s2t import S2TTask
from espnet2.tasks.s2t_ctc import S2TTask as S2TCTCTask
from espnet2.tasks.slu import SLUTask
from espnet2.tasks.st import STTask

from espnet_hra.espnet import voices
from espnet_hra.espnet.adapting import Adapting
from espnet_hra.espnet.base import open_base
from espnet_hra.espnet.kinds import KINDS, adaptable, espnet_task_of
from espnet_hra.espnet.transducer import TransducerTask, settle_encoder, settle_loss


class HRATask(Adapting, ASRTask):
    """Speech recognition with a frozen base and an adapter."""

    kind = KINDS["asr"]

    @classmethod
    def begin_training(cls, args: argparse.Namespace, model: Any) -> None:
        """As everywhere; in the end, what tells the tasks' speech apart is measured."""
        super().begin_training(args, model)
        model.trained = functools.partial(voices.note, args)


class S2THRATask(Adapting, S2TTask):
    """Speech to text in the manner of Whisper and OWSM, adapted."""

    kind = KINDS["s2t"]


class S2TCTCHRATask(Adapting, S2TCTCTask):
    """The same with an encoder alone, in the manner of OWSM-CTC, adapted."""

    kind = KINDS["s2t_ctc"]


class STHRATask(Adapting, STTask):
    """Speech translation with a frozen base and an adapter."""

    kind = KINDS["st"]


class SLUHRATask(Adapting, SLUTask):
    """Understanding of speech with a frozen base and an adapter."""

    kind = KINDS["slu"]


class ASRTransducerHRATask(Adapting, TransducerTask):
    """Recognition by the transducers of ``asr_transducer``, adapted."""

    kind = KINDS["asr_transducer"]

    @classmethod
    def parse(cls, cmd: Sequence[str] | None = None) -> argparse.Namespace:
        """As everywhere; keys of an adapter ask for one."""
        return settle_encoder(super().parse(cmd))

    @classmethod
    def begin_training(cls, args: argparse.Namespace, model: Any) -> None:
        """As everywhere, and see to the loss."""
        settle_loss(model)
        super().begin_training(args, model)


_CLASSES: dict[str, type[Adapting]] = {
    one.kind.name: one
    for one in (
        HRATask,
        S2THRATask,
        S2TCTCHRATask,
        STHRATask,
        SLUHRATask,
        ASRTransducerHRATask,
    )
}


def espnet_task(name: str) -> type[Adapting]:
    """The counterpart of the ESPnet task of a name, see :data:`KINDS`."""
    return _CLASSES[name]


def task_for(config: Mapping[str, Any], source: str) -> type[Adapting]:
    """The ESPnet task that builds the model of a configuration.

    Args:
        config: Of a training to be, whose base decides, or as a training has saved it.
        source: How messages name the model.

    Raises:
        BaseModelError: It is of an ESPnet task whose models cannot be adapted.
    """
    name = espnet_task_of(config)
    if config.get("pretrained_model") and not config.get("base_fingerprint"):
        source = str(config["pretrained_model"])
        name = open_base(source).espnet_task
    return espnet_task(adaptable(name, source).name)
