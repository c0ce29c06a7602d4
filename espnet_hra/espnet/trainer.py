"""ESPnet's Trainer with checkpoints that hold the adapter only and never tear.

ESPnet writes, averages and removes checkpoints inline in ``Trainer.run``. Nothing of
it is copied here; ``run`` is called within three changes that last as long as it:

* the model's ``state_dict`` holds the adapter only, and loading forgives the rest;
* ``torch.save`` writes to a temporary file first, so that a kill leaves the old file;
* averages leave tensors alone that are the same in all checkpoints.

Of a model that is trained whole but for a Whisper that it hears with, that Whisper is
left out (:mod:`espnet_hra.espnet.whisper_frontend`).
"""

import contextlib
import functools
import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from espnet2.train import trainer as espnet_trainer
from espnet2.train.reporter import Reporter
from torch.utils.hooks import RemovableHandle

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.encoder.stepping import used_only
from espnet_hra.errors import ConfigError
from espnet_hra.espnet import whisper_frontend
from espnet_hra.espnet.model import ADAPTER_PREFIX
from espnet_hra.espnet.seam import standing_in
from espnet_hra.files import atomic
from espnet_hra.files.checkpoint import read_state, read_training

_save = torch.save
_average = espnet_trainer.average_nbest_models


class AdapterTrainer(espnet_trainer.Trainer):
    """Trainer for adapted models; other models train as with ESPnet's own."""

    @classmethod
    def run(cls, model: torch.nn.Module, **kwargs: Any) -> None:
        """See ESPnet's ``Trainer.run``."""
        options = kwargs["trainer_options"]
        with contextlib.ExitStack() as stack:
            stack.enter_context(standing_in(torch, save=save))
            if isinstance(model.encoder, AdaptedEncoder):
                stack.enter_context(adapter_only_state(model))
                stack.enter_context(
                    standing_in(
                        espnet_trainer, average_nbest_models=average_nbest_adapters
                    )
                )
            elif whisper_frontend.is_frozen(model):
                stack.enter_context(_saving(model, whisper_frontend.is_own))
            if options.resume:
                repair(Path(options.output_dir), options.best_model_criterion)
            super().run(model=model, **kwargs)
        trained = getattr(model, "trained", None)
        if trained is not None and not kwargs["distributed_option"].dist_rank:
            trained(model)

    @classmethod
    def train_one_epoch(cls, **kwargs: Any) -> bool:
        """As ESPnet's, without looking at tasks that a step did not use."""
        with used_only(kwargs["optimizers"]):
            stopped = super().train_one_epoch(**kwargs)
        losses = [one.value for one in kwargs["reporter"].stats["loss"]]
        check_finite(losses, kwargs["reporter"].get_epoch())
        return stopped

    @classmethod
    def plot_attention(cls, model: Any, **kwargs: Any) -> None:
        """As ESPnet's, in full precision: NumPy and its plots know no bfloat16."""
        with model.full_precision():
            super().plot_attention(model=model, **kwargs)


def check_finite(losses: Sequence[float], epoch: int) -> None:
    """Refuse to go on where nothing is learned any more.

    ESPnet leaves out updates without finite gradients, in one line of its log each, and
    a training of nothing else ends as if it were one.

    Raises:
        ConfigError: The latest quarter of an epoch's losses are no numbers.
    """
    latest = losses[-max(1, len(losses) // 4) :]
    if latest and not any(map(math.isfinite, latest)):
        first = next(i for i, loss in enumerate(losses, 1) if not math.isfinite(loss))
        raise ConfigError(
            f"the training loss is not a number from batch {first} of epoch {epoch} "
            "on, and nothing is learned: take a lower rate (optim_conf: lr), or clip "
            "gradients (grad_clip); if it is so from the first batch on, see whether "
            "the base decodes (stage 9), and validate the data"
        )


def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
    """``torch.save`` that replaces a file in one step, or leaves it as it was."""
    if not isinstance(f, str | os.PathLike):
        return _save(obj, f, *args, **kwargs)
    with atomic.replacing(f) as file:
        _save(obj, file, *args, **kwargs)


@contextlib.contextmanager
def adapter_only_state(model: torch.nn.Module) -> Iterator[None]:
    """Within this block ``model.state_dict()`` holds the adapter only.

    ``load_state_dict`` stays strict about the adapter and does not miss the base,
    which was loaded and verified when the model was built.
    """
    with _saving(model, _is_adapters):
        yield


@contextlib.contextmanager
def _saving(model: torch.nn.Module, wanted: Callable[[str], bool]) -> Iterator[None]:
    """Within this block ``model.state_dict()`` holds what is wanted, by its name."""
    hooks = _keep(model, wanted)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def keep_adapter_only(model: torch.nn.Module) -> list[RemovableHandle]:
    """From now on ``model.state_dict()`` is as in :func:`adapter_only_state`.

    Returns:
        What ends it.
    """
    return _keep(model, _is_adapters)


def _keep(
    model: torch.nn.Module, wanted: Callable[[str], bool]
) -> list[RemovableHandle]:
    # Functions of the module, so that a model that has them can be pickled.
    return [
        model.register_state_dict_post_hook(functools.partial(_trim, wanted)),
        model.register_load_state_dict_post_hook(functools.partial(_forgive, wanted)),
    ]


def _is_adapters(key: str) -> bool:
    return key.startswith(ADAPTER_PREFIX)


def _trim(
    wanted: Callable[[str], bool],
    module: Any,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
) -> None:
    for key in list(state):
        if key.startswith(prefix) and not wanted(key.removeprefix(prefix)):
            del state[key]


def _forgive(wanted: Callable[[str], bool], module: Any, incompatible: Any) -> None:
    incompatible.missing_keys[:] = filter(wanted, incompatible.missing_keys)


def average_nbest_adapters(
    output_dir: Path,
    reporter: Reporter,
    best_model_criterion: Sequence[Sequence[str]],
    nbest: Collection[int] | int,
    suffix: Any = None,
    **kwargs: Any,
) -> None:
    """ESPnet's averaging, except that what no epoch has changed stays bit-identical.

    The sum of n equal numbers divided by n is not always that number; a controller
    that was frozen, or the head of another task, would move.
    """
    _average(
        output_dir=output_dir,
        reporter=reporter,
        best_model_criterion=best_model_criterion,
        nbest=nbest,
        suffix=suffix,
        **kwargs,
    )
    for phase, key, mode in best_model_criterion:
        if not reporter.has(phase, key):
            continue
        epochs = reporter.sort_epochs(phase, key, mode)
        for n in [nbest] if isinstance(nbest, int) else nbest:
            stem = f"{phase}.{key}.ave_{n}best."
            path = output_dir / f"{stem}{suffix + '.' if suffix else ''}pth"
            if n > 1 and path.is_file():
                members = [read_state(output_dir / f"{e}epoch.pth") for e in epochs[:n]]
                save(_keep_identical(path, members), path)


def _keep_identical(
    path: Path, members: Sequence[dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    average = read_state(path)
    first, *others = members
    for key in average:
        if all(torch.equal(first[key], other[key]) for other in others):
            average[key] = first[key]
    return average


def repair(output_dir: Path, criteria: Sequence[Sequence[str]]) -> None:
    """Bring back what a kill right after writing ``checkpoint.pth`` has prevented.

    ESPnet writes the checkpoint first, then the epoch's model and the links to the
    best; it does not look back when it resumes. Files that were half written go.

    Args:
        output_dir: The experiment.
        criteria: ESPnet's ``best_model_criterion``.
    """
    checkpoint = output_dir / "checkpoint.pth"
    if output_dir.is_dir():
        for path in atomic.sweep(output_dir):
            logging.info(f"{path.name} was half written before the stop: removed")
    if not checkpoint.exists():
        return
    states = read_training(checkpoint)
    reporter = Reporter()
    reporter.load_state_dict(states["reporter"])
    epoch = reporter.get_epoch()
    model = output_dir / f"{epoch}epoch.pth"
    if not model.exists():
        logging.info(f"{model.name} was not written before the stop; writing it now")
        save(states["model"], model)
    links = {"latest.pth": epoch}
    for phase, key, mode in criteria:
        if reporter.has(phase, key):
            links[f"{phase}.{key}.best.pth"] = reporter.get_best_epoch(phase, key, mode)
    for name, best in links.items():
        link, target = output_dir / name, f"{best}epoch.pth"
        if not (link.is_symlink() and os.readlink(link) == target):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
