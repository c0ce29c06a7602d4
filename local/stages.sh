# Stages that are done once: to be sourced by a recipe's main script.
#
# A stage has a key, a digest of the options and of the contents of the files that
# matter to it. When it has succeeded, the key is written to ${done_dir}/stageN, one
# line for each variant (seed, method ...), which is named by a tag. With the same key
# and its outputs in place the stage is skipped afterwards.
#
# Expects: ${done_dir}, ${log_dir}, ${times}.

log() {
    echo "$(date '+%H:%M:%S') $*"
}

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# digest ITEM...: a checksum of words, and of the contents of what is given as @PATH.
digest() {
    local item path
    for item in "$@"; do
        case "${item}" in
            @*)
                path=${item#@}
                if [ -d "${path}" ]; then
                    # Names inside the folder, so that it may be moved.
                    (cd "${path}" && find -L . -type f -print0 | sort -z |
                        xargs -0 sha256sum)
                elif [ -f "${path}" ]; then
                    sha256sum <"${path}"
                else
                    echo "missing ${path}"
                fi
                ;;
            *) printf '%q\n' "${item}" ;;
        esac
    done | sha256sum | cut -d ' ' -f 1
}

# audio_digest WAV_SCP: changes when one of the files that are listed does.
audio_digest() {
    # A file that is missing shows as a message, which is as good as a time.
    cut -d ' ' -f 2- "$1" | tr '\n' '\0' |
        { xargs -0 stat -L -c '%s %Y' 2>&1 || true; } | sha256sum | cut -d ' ' -f 1
}

# replace_line FILE KEY [LINE]: put LINE (nothing) in the place of the line that begins
# with KEY and a tab, in one step.
replace_line() {
    local partial=$1.$$.part
    {
        if [ -f "$1" ]; then
            KEY=$2 awk -F '\t' '$1 != ENVIRON["KEY"]' "$1"
        fi
        if [ $# -gt 2 ]; then
            printf '%s\n' "$3"
        fi
    } | LC_ALL=C sort -V >"${partial}"
    mv -f "${partial}" "$1"
}

# is_done STAGE TAG KEY OUTPUT...: whether the stage need not run.
is_done() {
    local mark=${done_dir}/stage$1 line=$2$'\t'$3 output
    if ! grep -Fqx -- "${line}" "${mark}" 2>/dev/null; then
        return 1
    fi
    for output in "${@:4}"; do
        if [ ! -e "${output}" ]; then
            return 1
        fi
    done
}

# own_folder FOLDER KEY: make a folder of results for this key. A folder of another key
# is moved aside; one of the same key is kept, and its training resumed.
own_folder() {
    local aside
    if [ -e "$1" ] && [ "$(cat "$1/.key" 2>/dev/null)" != "$2" ]; then
        aside=$1.old-$(date '+%Y%m%d-%H%M%S')
        echo "$1 is of other options or data: moved to ${aside}"
        mv "$1" "${aside}"
    fi
    mkdir -p "$1"
    printf '%s\n' "$2" >"$1/.key"
}

# announce COMMAND...: write a command to the log, and run it.
announce() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    "$@"
}

# field NAME TEXT: the value of NAME in ", name=value, name=value" of ESPnet's log.
field() {
    if [[ ", $2" =~ ", $1="([^,]*) ]]; then
        printf '%s' "${BASH_REMATCH[1]}"
    fi
}

# follow LOG MODE: copy standard input to a log file and show it (all), or what it says
# about the progress of training and decoding (progress).
follow() {
    local line last=${SECONDS} decoded=0 table=false cer estimate=
    while IFS= read -r line || [ -n "${line}" ]; do
        printf '%s\n' "${line}" >&3
        if [ "$2" = all ]; then
            if [ "${line:0:2}" != "+ " ]; then
                printf '    %s\n' "${line}"
            fi
            continue
        fi
        if "${table}" && [ "${line:0:2}" = "  " ]; then
            printf '    %s\n' "${line}"
            continue
        fi
        table=false
        case "${line}" in
            *"INFO: Parameters"*)
                table=true
                printf '    %s\n' "${line#*INFO: }"
                ;;
            *": moved to "*)
                printf '    %s\n' "${line}"
                ;;
            *"epoch started. Estimated time to finish: "*)
                estimate="; left: ${line##*finish: }"
                ;;
            *"epoch results: [train] "*"[valid] "*)
                cer=$(field cer_ctc "${line#*\[valid\] }")
                printf '    epoch %s: train loss %s, valid loss %s%s%s\n' \
                    "$(sed 's/.* \([0-9]*\)epoch results: .*/\1/' <<<"${line}")" \
                    "$(field loss "${line#*\[train\] }")" \
                    "$(field loss "${line#*\[valid\] }")" \
                    "${cer:+, valid CER ${cer}}" "${estimate}"
                last=${SECONDS}
                ;;
            *)
                case "${line}" in
                    *"best hypo: "*) decoded=$((decoded + 1)) ;;
                esac
                if [ $((SECONDS - last)) -ge 20 ] && [[ ${line} == *"INFO: "* ]]; then
                    last=${SECONDS}
                    if [ "${decoded}" -gt 0 ]; then
                        printf '    %d utterances decoded\n' "${decoded}"
                    else
                        printf '    ... %.80s\n' "${line#*INFO: }"
                    fi
                fi
                ;;
        esac
    done 3>"$1"
}

# run_stage STAGE TITLE TAG KEY MODE FUNCTION OUTPUT...: run a stage if it is not done.
# Call it plainly, not after "if" or "&&": the shell would go on after errors in it.
run_stage() {
    local stage=$1 title=$2 tag=$3 key=$4 mode=$5 body=$6 start status seconds
    local file=${log_dir}/stage${stage}.log heading=$2
    if [ "${tag}" != - ]; then
        heading="${title} (${tag})"
    fi
    if is_done "${stage}" "${tag}" "${key}" "${@:7}"; then
        log "Stage ${stage}: ${heading}: done before with the same options and data"
        return
    fi
    log "Stage ${stage}: ${heading}"
    # From here on the outputs may be in the making.
    replace_line "${done_dir}/stage${stage}" "${tag}"
    start=$(date '+%s')
    set +e
    (
        set -euo pipefail
        "${body}"
    ) 2>&1 </dev/null | follow "${file}" "${mode}"
    status=${PIPESTATUS[0]}
    set -e
    seconds=$(($(date '+%s') - start))
    if [ "${status}" -ne 0 ]; then
        echo "Stage ${stage}, ${heading}, failed after ${seconds} s, with status" \
            "${status}. The end of its log:" >&2
        tail -n 20 "${file}" | sed 's/^/    /' >&2
        echo "The whole log: ${file}" >&2
        exit "${status}"
    fi
    replace_line "${done_dir}/stage${stage}" "${tag}" "${tag}"$'\t'"${key}"
    replace_line "${times}" "${stage} ${tag}" \
        "${stage} ${tag}"$'\t'"${title}"$'\t'"${seconds}"
    log "Stage ${stage}: done in ${seconds} s"
}
