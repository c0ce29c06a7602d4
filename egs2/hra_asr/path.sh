# Where programs are found; sourced with the recipe's folder as working directory.
MAIN_ROOT=$(cd ../.. && pwd)

if [ -z "${VIRTUAL_ENV:-}" ] && [ -x "${MAIN_ROOT}/.venv/bin/python" ]; then
    PATH=${MAIN_ROOT}/.venv/bin:${PATH}
elif [ -f "${MAIN_ROOT}/tools/activate_python.sh" ]; then
    # This folder is inside an ESPnet checkout.
    set +u
    . "${MAIN_ROOT}/tools/activate_python.sh"
    set -u
fi
if [ -d "${MAIN_ROOT}/espnet_hra" ]; then
    PYTHONPATH=${MAIN_ROOT}${PYTHONPATH:+:${PYTHONPATH}}
    export PYTHONPATH
fi
export PATH

# Lists are sorted by bytes, and texts are UTF-8 whatever the machine's language is.
export LC_ALL=C PYTHONUTF8=1 PYTHONIOENCODING=UTF-8 PYTHONUNBUFFERED=1
