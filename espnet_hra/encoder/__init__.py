"""A method on an ESPnet encoder: one pass, its tasks, and how it learns."""
