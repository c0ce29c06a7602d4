"""What all workers need, imported once for all of a machine."""

import espnet_hra.adapt.training
import espnet_hra.adapt.worker  # noqa: F401
