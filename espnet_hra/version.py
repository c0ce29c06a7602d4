"""The version of this package; the lowest module, so that all may name it."""

__version__ = "0.2.0"
