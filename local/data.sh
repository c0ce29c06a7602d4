#!/usr/bin/env bash
# Prepare a corpus; run it from the recipe's folder.
#   local/data.sh [--corpus debian_voices] [--part tasks|backbone]
#                 [--datadir data] [--downloads downloads] [more options]
# Options other than --corpus go to local/<corpus>.py, which has --help.
set -euo pipefail

corpus=debian_voices
options=()
while [ $# -gt 0 ]; do
    case "$1" in
        --corpus) corpus=${2:?"--corpus needs a name"}; shift 2 ;;
        *) options+=("$1"); shift ;;
    esac
done

if [[ ! ${corpus} =~ ^[a-z0-9_]+$ ]] || [ ! -f "local/${corpus}.py" ]; then
    echo "data.sh: no local/${corpus}.py prepares a corpus '${corpus}'" >&2
    exit 2
fi
exec "${PYTHON:-python3}" "local/${corpus}.py" "${options[@]}"
