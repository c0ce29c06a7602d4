"""Kaldi-style folders: reading, checking and converting what is in them."""
