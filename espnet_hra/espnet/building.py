"""From files to a model: ESPnet's task for checkpoints of adapters and base packs."""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch

from espnet_hra.encoder.adapted import PREFIX, AdaptedEncoder
from espnet_hra.errors import BaseModelError
from espnet_hra.espnet.model import ADAPTER_PREFIX
from espnet_hra.espnet.models import Found, read_config, read_state
from espnet_hra.espnet.task import HRATask
from espnet_hra.files import archive


class ModelLoader(HRATask):
    """Builds all kinds of models; ``base_override`` goes before what they name."""

    @classmethod
    def build_model_from_file(
        cls,
        config_file: Path | str | None = None,
        model_file: Path | str | None = None,
        device: str = "cpu",
    ) -> tuple[torch.nn.Module, argparse.Namespace]:
        """As of :class:`~espnet_hra.espnet.task.HRATask`; a base pack is its own base.

        Raises:
            BaseModelError: Keys are missing or surplus, or the base is missing or not
                the one that the adapter was trained on.
        """
        state: dict[str, torch.Tensor] = {}
        if model_file is not None:
            config_file = Path(config_file or Path(model_file).parent / "config.yaml")
            archive.check_checkpoint(Path(model_file))
            config = read_config(config_file)
            if config.get("encoder", "").startswith(PREFIX):
                state = read_state(Path(model_file))
        if not any(not key.startswith(ADAPTER_PREFIX) for key in state):
            model, args = super().build_model_from_file(config_file, model_file, device)
        else:
            model, args = cls._build_whole(config, Path(str(model_file)), state)
            model.to(device)
        if isinstance(model.encoder, AdaptedEncoder):
            base = dict(getattr(args, "base_fingerprint", None) or {})
            base.pop("encoder", None)
            model.encoder.surroundings = {
                "base": base,
                "tokens": token_hash(args.token_list),
            }
        return model, args

    @classmethod
    def _build_whole(
        cls, config: dict[str, Any], model_file: Path, state: dict[str, torch.Tensor]
    ) -> tuple[torch.nn.Module, argparse.Namespace]:
        args = argparse.Namespace(**config)
        args.init = None  # the checkpoint replaces whatever it would give
        # A class of its own: other threads may be loading other models.
        whole = type(cls.__name__, (cls,), {})
        whole.base_override = cls.base_override or str(model_file)
        model = whole.build_model(args)
        adapter = {k: v for k, v in state.items() if k.startswith(ADAPTER_PREFIX)}
        own = {k for k in model.state_dict() if k.startswith(ADAPTER_PREFIX)}
        missing, surplus = sorted(own - adapter.keys()), sorted(adapter.keys() - own)
        if missing or surplus:
            raise BaseModelError(
                f"{model_file} does not fit its configuration: {len(missing)} keys are "
                f"missing {missing[:3]}, {len(surplus)} surplus {surplus[:3]}"
            )
        model.load_state_dict(adapter, strict=False)
        return model, args


def build(found: Found, base: str | None = None) -> tuple[Any, argparse.Namespace]:
    """The model that was found, and its configuration.

    Args:
        found: From :func:`find_model`.
        base: Where the frozen base is, if not where the configuration says.

    Raises:
        BaseModelError: It is incomplete, or has no adapter.
    """
    loader = type("ModelLoader", (ModelLoader,), {"base_override": base})
    model, args = loader.build_model_from_file(found.config_file, found.model_file)
    if not isinstance(model.encoder, AdaptedEncoder):
        raise BaseModelError(
            f"{found.source}: this model has no adapter (encoder: {args.encoder}) and "
            "no tasks; give an adaptation of it"
        )
    return model.eval(), args


def token_hash(tokens: list[str]) -> str:
    """Hash of a token list, one token a line."""
    text = "\n".join(tokens).encode("utf-8")
    return f"sha256:{hashlib.sha256(text).hexdigest()}"
