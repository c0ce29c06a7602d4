"""What ESPnet3's configurations name: the ESPnet task, and what reads tasks' names."""

from espnet_hra.espnet.espnet3 import HRATask, Preprocessor, SetTask

__all__ = ["HRATask", "Preprocessor", "SetTask"]
