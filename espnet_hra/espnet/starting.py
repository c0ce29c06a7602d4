"""What a training starts from: its frozen base, and maybe an earlier adapter."""

import argparse
import logging
from pathlib import Path

import torch

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.errors import BaseModelError
from espnet_hra.espnet import reference
from espnet_hra.espnet.base import load_base, open_base, whole_name
from espnet_hra.espnet.model import ADAPTER_PREFIX
from espnet_hra.files.checkpoint import beginning, differences, read_state
from espnet_hra.names import from_key, listing
from espnet_hra.whisper.folder import is_whisper

logger = logging.getLogger(__name__)


def base_source(args: argparse.Namespace) -> str:
    """How a configuration names its base.

    Raises:
        BaseModelError: It names none, or only parts of one.
    """
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


def load_named_base(
    args: argparse.Namespace, model: torch.nn.Module, source: str, new_tokens: int = 0
) -> None:
    """Load a base whole, and write its name and fingerprints to the configuration.

    Args:
        args: The configuration.
        model: Model whose encoder has an adapter.
        source: How the base is named.
        new_tokens: How many tokens the model will be given besides the base's.

    Raises:
        BaseModelError: There is no such base, it does not fit, or it is not the one
            whose fingerprints the configuration has.
    """
    assert isinstance(model.encoder, AdaptedEncoder), "asked for adapted models only"
    expected = getattr(args, "base_fingerprint", None)
    try:
        base = open_base(source)
    except BaseModelError as e:
        if not expected:
            raise
        remedy = (
            "where it is now can be said with --pretrained_model (in Python, "
            "pretrained_model=)"
        )
        if is_whisper(source):
            remedy = reference.REMEDY
        raise BaseModelError(f"{e}. It is the base of a saved model: {remedy}") from e
    found = load_base(model, base, expected, new_tokens)
    args.pretrained_model = base.reference or whole_name(source)
    args.base_fingerprint = found
    args.encoder_conf["backbone_fingerprint"] = found["encoder"]
    model.encoder.verify_backbone(found["encoder"])


def load_initial_adapter(args: argparse.Namespace, model: torch.nn.Module) -> None:
    """Start from the controller and tasks that ``--init_adapter`` names.

    Raises:
        BaseModelError: They are of another configuration, or none are given where the
            controller is frozen.
    """
    assert isinstance(model.encoder, AdaptedEncoder), "asked for adapted models only"
    adapter = model.encoder.adapter
    if args.init_adapter is None:
        if adapter.regime == "new_task":
            raise BaseModelError(
                "regime: new_task freezes the controller, which would be random: give "
                "--init_adapter the checkpoint of a joint training"
            )
        return
    state = beginning(read_state(Path(args.init_adapter)), ADAPTER_PREFIX)
    own = adapter.state_dict()
    heads = {key for key in own.keys() | state if key.startswith("heads.")}
    # Of the tasks, those are taken that both have; what tasks share must be the same.
    apart = heads - (own.keys() & state)
    problems = differences(
        {k: v for k, v in own.items() if k not in apart},
        {k: v for k, v in state.items() if k not in apart},
    )
    if problems or not state:
        tasks = sorted(from_key(k.removeprefix("heads.")) for k in heads & state.keys())
        raise BaseModelError(
            f"--init_adapter {args.init_adapter}: not an adapter of this configuration "
            f"({problems or 'there is none in it'}; tasks in the file: "
            f"{listing(tasks)})"
        )
    taken = {key: state[key] for key in own.keys() & state}
    adapter.load_state_dict(taken, strict=False)
    logger.info(f"Started from {args.init_adapter}: {', '.join(sorted(taken))}")
