"""The ESPnet task, as ESPnet3's configurations name it: ``espnet_hra.task.HRATask``."""

from espnet_hra.espnet.task import HRATask

__all__ = ["HRATask"]
