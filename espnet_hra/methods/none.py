"""No adapter: the plain backbone under every task's name, to compare with."""

from espnet_hra.methods.base import Backbone, Differences


class NoAdapter(Differences):
    """Tasks that own nothing.

    Args:
        backbone: The encoder.
    """

    mixes = True

    def __init__(self, backbone: Backbone):
        super().__init__("none", backbone, {})
