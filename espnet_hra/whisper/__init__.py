"""Whisper's weights: their sizes, the files they come in, and where to get them.

From a name such as ``whisper:base`` to a folder that every reader of bases opens, see
:mod:`espnet_hra.whisper.folder`. What runs in ESPnet is elsewhere, in
:mod:`espnet_hra.espnet.whisper`.
"""
