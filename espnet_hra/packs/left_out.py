"""Which packs hold no base: those of a Whisper that everyone can have by name."""

import argparse
from dataclasses import dataclass

from espnet_hra.espnet.base import is_kept, open_base
from espnet_hra.espnet.whisper import NAME
from espnet_hra.whisper.folder import PREFIX, is_public
from espnet_hra.whisper.sizes import NAMED, sizes_of

#: Fingerprints of OpenAI's models, as far as they are known here, by component. They
#: are those of ESPnet's encoder and decoder with the weights in float32.
FINGERPRINTS: dict[str, dict[str, str]] = {
    "base": {
        "encoder": "sha256:"
        "9c324b5ece7eb3ac094921d3e796392356d5dcd2b4db0fd8975ce07dec28fa78",
        "decoder": "sha256:"
        "359f06114712fd51e38dbf04dc21cbf3a4d48d8aa739807d4220927b19bc4a5f",
    },
    "tiny.en": {
        "encoder": "sha256:"
        "98b475eaaa1ff9d3b46d21c3d68d7387fb79d62006b5cadd74d8aaa60d3d81f1",
        "decoder": "sha256:"
        "94ab17c14a19b3205a5e344cc515209c3ddea45bf0f597bb0c761d2b43058a1e",
    },
}


@dataclass(frozen=True)
class Choice:
    """Whether a pack holds its base.

    Attributes:
        name: The name of the base that is left out, e.g. ``whisper:base``; None if the
            pack is whole.
        why: Why a Whisper is in the pack; empty if the base is left out or no Whisper.
    """

    name: str | None = None
    why: str = ""


def choose(args: argparse.Namespace, whole: bool, half: bool) -> Choice:
    """Whether a pack holds the base of a model.

    Args:
        args: The model's configuration, once its base has been loaded.
        whole: Whether it is wanted in any case.
        half: Whether weights are to be stored with 16 bits, which makes them others.
    """
    if getattr(args, "decoder", None) != NAME or not str(args.encoder).endswith(NAME):
        return Choice()
    if whole:
        return Choice(why="as --whole says")
    if half:
        return Choice(why="because --half makes it another base")
    name = public_name(args)
    if name is None:
        return Choice(why="because it is none of OpenAI's models that are known here")
    return Choice(name)


def public_name(args: argparse.Namespace) -> str | None:
    """The name by which everyone can have the Whisper of a model; None for others.

    Args:
        args: As above. If it names a path, the weights decide, not where they were.
    """
    prints = args.base_fingerprint or {}
    if set(prints) != {"encoder", "decoder"}:
        return None
    if args.pretrained_model and is_public(args.pretrained_model):
        return str(args.pretrained_model)  # and it was verified when it was loaded
    for name, known in FINGERPRINTS.items():
        if known == prints:
            return PREFIX + name
    sizes = sizes_of(str(args.encoder_conf.get("whisper_model")))
    for name, others in NAMED.items():
        # Only what is here is looked at: to pack must not fetch anything.
        if others == sizes and is_kept(name):
            if open_base(PREFIX + name).fingerprints() == prints:
                return PREFIX + name
    return None
