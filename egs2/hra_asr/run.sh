#!/usr/bin/env bash
# Adapt a frozen speech recogniser to many tasks: the five voices of debian_voices.
#   ./run.sh                          # data to RESULTS.md
#   ./run.sh --corpus mini_an4        # the same in a minute or two, on seven utterances
#   ./run.sh --help
# Works from any folder. Options after these win; see hra.sh for their meaning.
set -euo pipefail

# What RESULTS.md calls the command that made it.
export RECIPE_COMMAND=./run.sh
if [ $# -gt 0 ]; then
    RECIPE_COMMAND+=$(printf ' %q' "$@")
fi

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/hra.sh" \
    --corpus debian_voices \
    --seed 1 \
    "$@"
