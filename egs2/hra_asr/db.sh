# Where packages and archives with recordings are kept once they are fetched
# (debian_voices: 360 MB, and 900 MB unpacked).
HRA_DOWNLOADS=downloads

# Folders of corpora as they are distributed, for --corpus NAME; docs/corpora.md says
# where to get them. The environment's value counts if there is one.
SPEECHOCEAN762=${SPEECHOCEAN762:-}
L2ARCTIC=${L2ARCTIC:-}
TORGO=${TORGO:-}
AFRISPEECH200=${AFRISPEECH200:-}
# One language: the folder with clips/ and validated.tsv.
COMMONVOICE=${COMMONVOICE:-}
LIBRISPEECH=${LIBRISPEECH:-}
