"""The sub-commands of `espnet-hra`, one file each."""
