"""ESPnet's training and decoding around a model that exists already."""

import argparse
from pathlib import Path
from typing import Any

import torch
from espnet2.train.reporter import Reporter

from espnet_hra.adapt import new_task
from espnet_hra.espnet.inference import Speech2Text
from espnet_hra.espnet.task import HRATask
from espnet_hra.espnet.trainer import AdapterTrainer


class _Trainer(AdapterTrainer):
    """Looks at the dev set before and after, and takes the head that is kept."""

    found: dict[str, Any]

    @classmethod
    def run(cls, model: torch.nn.Module, **kwargs: Any) -> None:
        """As ESPnet's."""
        exp = Path(kwargs["trainer_options"].output_dir)
        cls.found["before"] = cls._look(model, kwargs)
        super().run(model=model, **kwargs)
        (name,) = model.encoder.tasks
        new_task.take(model.encoder, name, exp)
        cls.found["after"] = cls._look(model, kwargs)
        cls.found["updates"] = _updates(exp, kwargs["trainer_options"].accum_grad)

    @classmethod
    def _look(cls, model: torch.nn.Module, kwargs: dict[str, Any]) -> dict[str, float]:
        """What ESPnet's validation says of the model as it is."""
        reporter = Reporter()
        reporter.set_epoch(1)
        with reporter.observe("valid") as part:
            cls.validate_one_epoch(
                model=model,
                iterator=kwargs["valid_iter_factory"].build_iter(1),
                reporter=part,
                options=kwargs["trainer_options"],
                distributed_option=kwargs["distributed_option"],
            )
        found = reporter.stats[1]["valid"]
        return {key: float(found[key]) for key in ("loss",) if key in found}


def one_head(model: torch.nn.Module) -> tuple[type, dict[str, Any]]:
    """An ESPnet task that trains the head of a model that is there already.

    Args:
        model: With base, controller and one task.

    Returns:
        The task class, whose ``main_worker`` trains; and what is found on the way:
        ``before`` and ``after`` (statistics on the dev set), ``updates``.
    """
    found: dict[str, Any] = {}

    class OneHead(HRATask):
        trainer = type("Trainer", (_Trainer,), {"found": found})

        @classmethod
        def build_model(cls, args: argparse.Namespace) -> torch.nn.Module:
            return model

        @classmethod
        def load_initial_adapter(
            cls, args: argparse.Namespace, model: torch.nn.Module
        ) -> None:
            pass  # the controller is in place

    return OneHead, found


def decoder_of(model: torch.nn.Module, args: argparse.Namespace) -> Speech2Text:
    """Greedy decoding with a model that is there already."""
    return Speech2Text(
        ready=(model, args),
        ctc_greedy=True,
        ctc_weight=1.0,
        device="cuda" if args.ngpu > 0 else "cpu",
        dtype=args.train_dtype,
    )


def _updates(exp: Path, accum_grad: int) -> int:
    """Updates of a training, interrupted or not."""
    states = torch.load(exp / "checkpoint.pth", map_location="cpu", weights_only=True)
    reporter = Reporter()
    reporter.load_state_dict(states["reporter"])
    batches = reporter.stats[reporter.get_epoch()]["train"]["total_count"]
    return batches // accum_grad
