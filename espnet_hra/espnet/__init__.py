"""The way into ESPnet: its registries, training, models and decoding."""
