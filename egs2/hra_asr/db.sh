# Where packages and archives with recordings are kept once they are fetched
# (debian_voices: 360 MB, and 900 MB unpacked).
HRA_DOWNLOADS=downloads
