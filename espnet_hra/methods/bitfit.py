"""BitFit: every bias of the encoder's layers is the task's own.

These are the parameters called ``bias`` below ``.encoders``: of linear modules,
convolutions and norms. How they are kept, see
:class:`~espnet_hra.methods.base.Differences`.
"""

from espnet_hra.methods.base import Backbone, Differences


class BitFit(Differences):
    """The biases of all layers, one set for each task.

    Args:
        backbone: The encoder.
    """

    def __init__(self, backbone: Backbone):
        biases = {
            f"encoders.{name}": p
            for name, p in backbone.encoders.named_parameters()
            if name.rpartition(".")[2] == "bias"
        }
        super().__init__("bitfit", backbone, biases)
