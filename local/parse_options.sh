# Options of a script: declared with a default and a description, then parsed.
# To be sourced; used like this:
#   option stage 1 "the first stage"
#   parse_options "$@"
#   echo "${stage}"
# Accepts "--name value" and "--name=value"; the last one wins, and "-" in a name
# stands for "_". --help prints all options with the values they have by then.

option_names=()
option_texts=()

# option NAME DEFAULT TEXT: declare an option and set its variable.
option() {
    option_names+=("$1")
    option_texts+=("$3")
    printf -v "$1" '%s' "$2"
}

# is_option NAME: whether it was declared.
is_option() {
    local name
    for name in "${option_names[@]}"; do
        if [ "${name}" = "$1" ]; then
            return 0
        fi
    done
    return 1
}

# usage_error MESSAGE...: for mistakes on the command line.
usage_error() {
    echo "${0##*/}: $* (--help lists the options)" >&2
    exit 2
}

# print_options: one option after the other, with its present value.
print_options() {
    local i name
    for i in "${!option_names[@]}"; do
        name=${option_names[i]}
        printf '  --%-18s %s%s\n' "${name}" "${option_texts[i]}" \
            "${!name:+ (default: ${!name})}"
    done
}

# parse_options ARGUMENT...: set the variables. The script says what it is for in
# ${usage}.
parse_options() {
    local name help=false
    while [ $# -gt 0 ]; do
        case "$1" in
            --help | -h) help=true; shift; continue ;;
            --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
            --?*) ;;
            *) usage_error "unexpected argument '$1'" ;;
        esac
        name=${1#--}
        name=${name//-/_}
        if ! is_option "${name}"; then
            usage_error "unknown option '$1'"
        fi
        if [ $# -lt 2 ]; then
            usage_error "option '$1' needs a value"
        fi
        printf -v "${name}" '%s' "$2"
        shift 2
    done
    if "${help}"; then
        printf '%s\n\nOptions:\n' "${usage}"
        print_options
        exit 0
    fi
}

# check_number NAME..., check_boolean NAME...: refuse other values of these options.
check_number() {
    local name
    for name in "$@"; do
        if [[ ! ${!name} =~ ^[0-9]+$ ]]; then
            usage_error "--${name} must be a whole number, not '${!name}'"
        fi
        # Without leading zeros, which mean octal numbers to the shell.
        printf -v "${name}" '%d' "$((10#${!name}))"
    done
}

check_boolean() {
    local name
    for name in "$@"; do
        case "${!name}" in
            true | false) ;;
            *) usage_error "--${name} must be true or false, not '${!name}'" ;;
        esac
    done
}
