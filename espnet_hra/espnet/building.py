"""From what was found to a model: of an experiment folder or of a pack."""

import argparse
from typing import Any

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.errors import BaseModelError
from espnet_hra.espnet.kinds import adaptable
from espnet_hra.espnet.models import Found
from espnet_hra.espnet.task import espnet_task


def build(found: Found, base: str | None = None) -> tuple[Any, argparse.Namespace]:
    """The model that was found, and its configuration.

    Args:
        found: From :func:`espnet_hra.espnet.models.find_model`.
        base: Where the frozen base is, if not where the configuration says.

    Raises:
        BaseModelError: It is incomplete, or has no adapter.
    """
    builder = espnet_task(adaptable(found.espnet_task, found.source).name)
    model, args = builder.build_model_from_file(
        found.config_file, found.model_file, base=base
    )
    if not isinstance(model.encoder, AdaptedEncoder):
        raise BaseModelError(
            f"{found.source}: this model has no adapter (encoder: {args.encoder}) and "
            "no tasks; give an adaptation of it"
        )
    return model.eval(), args
