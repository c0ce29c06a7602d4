"""Whether a training can go on from what an earlier one has left."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.errors import ConfigError
from espnet_hra.espnet import whisper_frontend
from espnet_hra.espnet.model import ADAPTER_PREFIX
from espnet_hra.files.checkpoint import beginning, differences, read_training


@dataclass(frozen=True)
class Earlier:
    """A training that was stopped, or came to its end.

    Attributes:
        path: Its ``checkpoint.pth``.
        model: The tensors that it trains, by name.
        optimizers: For each optimizer, how many parameters each of its groups has.
    """

    path: Path
    model: dict[str, torch.Tensor]
    optimizers: list[list[int]]

    @classmethod
    def read(cls, folder: Path) -> "Earlier | None":
        """What is in an experiment folder; None if nothing was trained there yet.

        Raises:
            BaseModelError: The checkpoint is damaged.
        """
        path = folder / "checkpoint.pth"
        if not path.exists():
            return None
        states = read_training(path)
        groups = [
            [len(group["params"]) for group in state["param_groups"]]
            for state in states["optimizers"]
        ]
        return cls(path, states["model"], groups)

    def check_model(self, model: Any) -> None:
        """Refuse a model of other tensors.

        Raises:
            ConfigError: It is so.
        """
        needed, found = model.state_dict(), self.model
        if isinstance(model.encoder, AdaptedEncoder):
            # Checkpoints hold the adapter alone.
            needed = beginning(needed, ADAPTER_PREFIX)
            found = beginning(found, ADAPTER_PREFIX)
        elif whisper_frontend.is_frozen(model):
            needed = whisper_frontend.without(needed)
        if problems := differences(needed, found):
            raise self._refused(problems)

    def check_optimizers(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Refuse optimizers of other parameters.

        Raises:
            ConfigError: It is so.
        """
        groups = [
            [len(group["params"]) for group in optimizer.param_groups]
            for optimizer in optimizers
        ]
        if groups != self.optimizers:
            raise self._refused(
                f"its optimizer has groups of {self.optimizers} parameters, and this "
                f"one of {groups}"
            )

    def _refused(self, problems: str) -> ConfigError:
        return ConfigError(
            f"{self.path}: this training cannot be resumed, as it is one of another "
            f"configuration ({problems}): give the configuration of then (config.yaml "
            "there), another --output_dir, or --resume false to begin anew"
        )
