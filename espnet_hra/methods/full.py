"""Full fine-tuning: every task has all of the encoder's parameters for itself.

The statistics of BatchNorm are no parameters and stay the backbone's, and so does the
layer that feeds an intermediate CTC back, which is the model's. Unless a configuration
says ``ctc: frozen``, each task of a model has its own CTC projection as well. How the
parameters are kept, see :class:`~espnet_hra.methods.base.Differences`.
"""

from espnet_hra.methods.base import Backbone, Differences


class FullFineTuning(Differences):
    """A whole encoder for each task.

    Args:
        backbone: The encoder.
    """

    default_ctc = "task"

    def __init__(self, backbone: Backbone):
        super().__init__("full", backbone, dict(backbone.named_parameters()))
