#!/usr/bin/env bash
# Print the path of a Python 3.12 or 3.13 that works, or say how to get one.
#   local/find_python.sh
# Looked for in this order: $PYTHON, the PATH, the folder of pyenv's versions.
set -euo pipefail

# A name on the PATH may be a shim that only complains: execute it to know.
works() {
    "$1" -c '
import sys
import ensurepip, venv
sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 </dev/null
}

found() {
    # Tools such as pyenv choose the version by folder: print the real file.
    "$1" -c 'import sys; print(sys.executable)'
    exit 0
}

if [ -n "${PYTHON:-}" ]; then
    if works "${PYTHON}"; then
        found "${PYTHON}"
    fi
    echo "PYTHON=${PYTHON} is no Python 3.12 or 3.13 with the module venv" >&2
    exit 1
fi

versions=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions
for candidate in python3.12 python3.13 python3 python \
    "${versions}"/3.12*/bin/python3 "${versions}"/3.13*/bin/python3; do
    if works "${candidate}"; then
        found "${candidate}"
    fi
done

echo "No Python 3.12 or 3.13 found: install one (Debian, Ubuntu: apt-get install" \
    "python3 python3-venv; elsewhere: pyenv install 3.12, or conda create -n py312" \
    "python=3.12) and name it with PYTHON=/path/to/python3" >&2
exit 1
