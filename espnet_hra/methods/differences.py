"""Tasks that have some of the encoder's own parameters for themselves.

What a task holds is the *difference* to the backbone's parameters. So zero is the
backbone bit for bit, whichever base is loaded after the task was added; and weight
decay draws towards the backbone, not towards zero.
"""

import functools
from collections.abc import Mapping

import torch

from espnet_hra.methods.base import Adapter, Backbone, count_weights
from espnet_hra.methods.substitution import Change
from espnet_hra.tasks.layout import Tensors


class Differences(Adapter):
    """Differences to parameters that are found by their paths in the encoder.

    Args:
        name: Of the method.
        backbone: The encoder.
        parameters: Those that each task has for itself, by path.
    """

    mixes = False
    quantizes = False

    def __init__(
        self, name: str, backbone: Backbone, parameters: Mapping[str, torch.Tensor]
    ):
        config = {"adapter": name, "width": backbone.width}
        config["layers"] = len(backbone.layers)
        super().__init__(config, {path: p.shape for path, p in parameters.items()})

    def changes(self, tensors: Tensors) -> Mapping[str, Change]:
        return {path: functools.partial(torch.add, t) for path, t in tensors.items()}

    def count(self) -> tuple[int, int]:
        return 0, count_weights(self.bank.layout.sections[0].shapes.values())

    def own_macs(self) -> int:
        return 0  # other parameters, not more of them


class BitFit(Differences):
    """BitFit: the biases of all layers, one set for each task.

    These are the parameters called ``bias`` below the list of layers: of linear
    modules, convolutions and norms.

    Args:
        backbone: The encoder.
    """

    def __init__(self, backbone: Backbone):
        biases = {
            f"{path}.{name}": p
            for path, layer in backbone.named.items()
            for name, p in layer.named_parameters()
            if name.rpartition(".")[2] == "bias"
        }
        super().__init__("bitfit", backbone, biases)


class FullFineTuning(Differences):
    """Full fine-tuning: a whole encoder for each task.

    The statistics of BatchNorm are no parameters and stay the backbone's, and so does
    the layer that feeds an intermediate CTC back, which is the model's. Unless a
    configuration says ``ctc: frozen``, each task of a model has its own CTC projection
    as well.

    Args:
        backbone: The encoder.
    """

    default_ctc = "task"

    def __init__(self, backbone: Backbone):
        super().__init__("full", backbone, dict(backbone.module.named_parameters()))


class NoAdapter(Differences):
    """No adapter: the plain backbone under every task's name, to compare with.

    Args:
        backbone: The encoder.
    """

    mixes = True
    quantizes = True

    def __init__(self, backbone: Backbone):
        super().__init__("none", backbone, {})
