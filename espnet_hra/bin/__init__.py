"""Programs with the options of ESPnet's programs of the same name."""
