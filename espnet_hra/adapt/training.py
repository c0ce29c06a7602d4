"""ESPnet's training and decoding around a model that exists already."""

import argparse
from pathlib import Path
from typing import Any

import torch
from espnet2.train.reporter import Reporter

from espnet_hra.adapt import new_task
from espnet_hra.espnet.inference import Speech2Text
from espnet_hra.espnet.seam import standing_in
from espnet_hra.espnet.task import HRATask
from espnet_hra.espnet.trainer import AdapterTrainer
from espnet_hra.files.checkpoint import read_training


class HeadTrainer:
    """ESPnet's trainer, with a look at the dev set before and after.

    Attributes:
        before: What ESPnet's validation said of the head as it began.
        after: The same of the head that is kept.
        updates: How many there were.
    """

    build_options = AdapterTrainer.build_options

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.updates = 0

    def run(self, model: Any, **kwargs: Any) -> None:
        """As ESPnet's ``Trainer.run``; then the model has the head that is kept."""
        options = kwargs["trainer_options"]
        exp = Path(options.output_dir)
        self.before = _look(model, kwargs)
        AdapterTrainer.run(model=model, **kwargs)
        (name,) = model.encoder.tasks
        new_task.take(model.encoder, name, exp)
        self.after = _look(model, kwargs)
        self.updates = _updates(exp, options.accum_grad)


def _look(model: torch.nn.Module, kwargs: dict[str, Any]) -> dict[str, float]:
    """What ESPnet's validation says of the model as it is."""
    reporter = Reporter()
    reporter.set_epoch(1)
    with reporter.observe("valid") as part:
        AdapterTrainer.validate_one_epoch(
            model=model,
            iterator=kwargs["valid_iter_factory"].build_iter(1),
            reporter=part,
            options=kwargs["trainer_options"],
            distributed_option=kwargs["distributed_option"],
        )
    found = reporter.stats[1]["valid"]
    return {key: float(found[key]) for key in ("loss",) if key in found}


def train_head(model: torch.nn.Module, args: argparse.Namespace) -> HeadTrainer:
    """Run ESPnet's training on a model that is there already.

    Args:
        model: With base, controller and one task.
        args: ESPnet's options.

    Returns:
        What was found on the way.
    """
    trainer = HeadTrainer()
    with standing_in(
        HRATask,
        build_model=lambda args: model,
        load_initial_adapter=lambda args, model: None,  # the controller is in place
        trainer=trainer,
    ):
        HRATask.main_worker(args)
    return trainer


def decoder_of(model: torch.nn.Module, args: argparse.Namespace) -> Speech2Text:
    """Greedy decoding with a model that is there already."""
    return Speech2Text(
        ready=(model, args),
        **new_task.reading(vars(args)),
        device="cuda" if args.ngpu > 0 else "cpu",
        dtype=args.train_dtype,
    )


def _updates(exp: Path, accum_grad: int) -> int:
    """Updates of a training, interrupted or not."""
    reporter = Reporter()
    reporter.load_state_dict(read_training(exp / "checkpoint.pth")["reporter"])
    batches = reporter.stats[reporter.get_epoch()]["train"]["total_count"]
    return batches // accum_grad
