"""`espnet-hra align`: the program of the ESPnet task that the model is of."""

from collections.abc import Sequence
from importlib import import_module

from espnet_hra.bin.decode import espnet_task
from espnet_hra.espnet.kinds import alignable


def main(cmd: Sequence[str] | None = None) -> None:
    """Align; `--help` lists the options for models of asr.

    Raises:
        BaseModelError: There is no such model, or its ESPnet task cannot be aligned.
        ConfigError: The package ctc-segmentation is not installed.
    """
    import_module("espnet_hra.espnet.alignment")  # the package, before any model
    kind = alignable(espnet_task(cmd), "the model of these options")
    import_module(f"espnet_hra.bin.{kind.name}_align").main(cmd)
