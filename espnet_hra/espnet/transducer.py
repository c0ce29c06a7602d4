"""The ESPnet task ``asr_transducer``, made like the others: its encoder has a name.

ESPnet's has one class of encoders and no option ``encoder``. Here it has one: ESPnet's
own is called ``asr_transducer``, its adapted counterpart ``hra_asr_transducer``.
"""

import argparse
import logging
from typing import Any

import torch
from espnet2.tasks.asr_transducer import ASRTransducerTask

from espnet_hra.encoder.adapted import OWN_KEYS
from espnet_hra.espnet.kinds import KINDS
from espnet_hra.names import PREFIX, adapted_encoder, plain_encoder

logger = logging.getLogger(__name__)

NAME = KINDS["asr_transducer"].encoder


class TransducerTask(ASRTransducerTask):
    """ESPnet's, with an option ``encoder``."""

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """ESPnet's options and the name of the encoder."""
        super().add_task_arguments(parser)
        parser.add_argument(
            "--encoder",
            type=plain_encoder,
            default=NAME,
            choices=(NAME, adapted_encoder(NAME)),
            help="With an adapter or without. ESPnet has no such option; it need not "
            "be given where encoder_conf has adapter, adapter_conf or tasks",
        )

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> torch.nn.Module:
        """As ESPnet, whose module tells encoders apart by the keys of an adapter."""
        if args.encoder.startswith(PREFIX):
            args.encoder_conf.setdefault("adapter", "hra")
        return super().build_model(args)


def settle_encoder(args: argparse.Namespace) -> argparse.Namespace:
    """Write down that the encoder is an adapted one, if it is configured as one."""
    if any(key in args.encoder_conf for key in OWN_KEYS):
        args.encoder = adapted_encoder(args.encoder)
    return args


def settle_loss(model: Any) -> None:
    """Give a model ESPnet's other transducer loss where a package is missing.

    ESPnet asks for warprnnt_pytorch, which is built by hand, and ends the program
    without it. It has the same loss for numba, which is always there.
    """
    if model.use_k2_pruned_loss or model.criterion_transducer is not None:
        return
    try:
        import warprnnt_pytorch  # noqa: F401
    except ImportError:
        from espnet2.asr.transducer.rnnt_multi_blank import rnnt_multi_blank

        logger.info(
            "warprnnt_pytorch is not installed: the loss is computed by ESPnet's own "
            "implementation (numba)"
        )
        model.criterion_transducer = rnnt_multi_blank.RNNTLossNumba(
            reduction="mean", fastemit_lambda=model.fastemit_lambda
        )
