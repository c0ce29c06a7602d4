# Stages that are done once: to be sourced by a recipe's main script.
#
# A stage has a key, a digest of the options and of the contents of the files that
# matter to it. When it has succeeded, the key is written to ${done_dir}/stageN, one
# line for each variant (seed, method ...), which is named by a tag. With the same key
# the stage is skipped afterwards, as long as its outputs are what it wrote: they are
# recorded with size, time and checksum in ${done_dir}/outputs, see outputs.py.
#
# Expects: ${done_dir}, ${log_dir}, ${times}, ${work}, ${prepare_python}.

# What was run: stage, title and seconds with tabs between; and what need not be.
stages_run=()
stages_done=()

log() {
    echo "$(date '+%H:%M:%S') $*"
}

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# is_full LOG: whether the disk is, as far as a log and the disk itself tell.
is_full() {
    grep -Eqs 'No space left on device|Disk quota exceeded' "$1" ||
        [ "$(df -Pk "${log_dir}" | awk 'NR == 2 { print $4 }')" -lt 100 ]
}

# fail_for_space FILE: stop, because a file could not be written.
fail_for_space() {
    fail "cannot write $1 ($(df -Pk "$(dirname -- "$1")" |
        awk 'NR == 2 { printf "%d", $4 / 1024 }') MB are free there): make room, then" \
        "run the same command again; it goes on from here"
}

# first_places RECIPE FOLDER...: where these folders were when the run began; a name that
# does not begin with a slash is one in RECIPE, or of a corpus that is known by it. Lists
# name files with whole paths, and so does the choice of the backbone; where a folder has
# moved since, stages 1, 3, 4 and 8 make them again, and digests go on to see the first
# places, so that nothing else is done again. Sets ${places}: a folder and its first place,
# one after the other, of those that moved; and ${first_work}, the first place of ${work}.
places=()
first_places() {
    local first=("$@") last=("$@") moved=false i now was
    if [ -s "${done_dir}/places" ]; then
        mapfile -t first <"${done_dir}/places"
        mapfile -t last <"${done_dir}/places.last"
        # From before so many were noted.
        first+=("${@:${#first[@]}+1}")
        last+=("${@:${#last[@]}+1}")
    fi
    for ((i = 1; i <= $#; i++)); do
        now=$(in_folder "$1" "${!i}")
        was=$(in_folder "${first[0]}" "${first[i - 1]}")
        # A corpus of another name is another one, and known by its name alone.
        if [[ ${!i} == "${work}" || (${!i} == /* && ${first[i - 1]} == /*) ]] &&
            [ "${now}" != "${was}" ]; then
            places=("${now}" "${was}" "${places[@]}")  # results may lie in the recipe
        fi
        if [ "${!i}" = "${work}" ]; then
            first_work=${first[i - 1]}
        fi
        if [ "${now}" != "$(in_folder "${last[0]}" "${last[i - 1]}")" ]; then
            moved=true
        fi
    done
    if "${moved}"; then
        echo "A folder has moved since the last run: lists are made again"
        rm -f "${done_dir}"/stage{1,3,4,8}
    fi
    put "${done_dir}/places" "${first[@]}"
    put "${done_dir}/places.last" "$@"
}

# in_folder FOLDER NAME: the whole path of a name.
in_folder() {
    case "$2" in
        /*) printf '%s' "$2" ;;
        *) printf '%s/%s' "$1" "$2" ;;
    esac
}

# as_at_first: standard input, with the first places of what has moved.
as_at_first() {
    local i
    if [ "${#places[@]}" -eq 0 ]; then
        cat
        return
    fi
    for ((i = 0; i < ${#places[@]}; i += 2)); do
        printf '%s\n' "${places[i]}/" "${places[i + 1]}/"
    done | awk 'NR == FNR { place[NR] = $0; n = NR; next }
        {
            for (i = 1; i < n; i += 2)
                if (at = index($0, " " place[i])) {
                    $0 = substr($0, 1, at) place[i + 1] \
                        substr($0, at + 1 + length(place[i]))
                    break
                }
            print
        }' - /dev/fd/3
} 3<&0

# put FILE LINE...: write lines to a file, in one step, unless it has them already. A
# full disk must not leave it empty: it would seem to be of other options or data.
put() {
    if [ "$(cat -- "$1" 2>/dev/null)" != "$(printf '%s\n' "${@:2}")" ]; then
        { printf '%s\n' "${@:2}" >"$1.part" && mv -f -- "$1.part" "$1"; } || {
            rm -f -- "$1.part"
            fail_for_space "$1"
        }
    fi
}

# digest ITEM...: a checksum of words, and of the contents of what is given as @PATH.
# Fails if one of its programs does, or is killed: results of another key are moved aside.
digest() {
    local item path
    for item in "$@"; do
        case "${item}" in
            @*)
                path=${item#@}
                if [ -d "${path}" ]; then
                    # Names inside the folder, so that it may be moved.
                    (cd "${path}" && find -L . -type f -print0 | sort -z |
                        xargs -0 sha256sum) || exit 1
                elif [ "${path##*/}" = wav.scp ] && [ -f "${path}" ]; then
                    as_at_first <"${path}" | sha256sum || exit 1
                elif [ -f "${path}" ]; then
                    sha256sum <"${path}" || exit 1
                else
                    if [[ ${path} == "${work}/"* ]]; then
                        path=${first_work:-${work}}/${path#"${work}/"}
                    fi
                    echo "missing ${path}" | as_at_first
                fi
                ;;
            *) printf '%q\n' "${item}" ;;
        esac
    done | sha256sum | cut -d ' ' -f 1 ||
        fail "cannot compute checksums: run the same command again; it goes on from here"
}

# audio_digest WAV_SCP: changes when one of the files that are listed does.
audio_digest() {
    # A file that is missing shows as a message, which is as good as a time.
    cut -d ' ' -f 2- "$1" | tr '\n' '\0' |
        { xargs -0 stat -L -c '%s %Y' -- 2>&1 || [ $? -eq 123 ]; } | sha256sum |
        cut -d ' ' -f 1
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
    } | LC_ALL=C sort -V >"${partial}" && sync "${partial}" || { rm -f "${partial}"; fail_for_space "$1"; }
    mv -f "${partial}" "$1"
}

# note_of STAGE TAG: the name of the note with the stage's outputs. What stage 13 writes
# belongs to all variants.
note_of() {
    local tag=$2
    if [ "$1" -eq 13 ]; then
        tag=all
    fi
    tag=${tag// /,}
    printf 'stage%s_%s' "$1" "${tag//[^A-Za-z0-9._,-]/_}"
}

# record_outputs STAGE TAG OUTPUT...: write down what the stage has left. Files, patterns
# in a folder (DIR/*), and the options of outputs.py.
record_outputs() {
    "${prepare_python}" local/outputs.py record --work "${work}" \
        --notes "${done_dir}/outputs/$(note_of "$1" "$2")" --files "${@:3}" ||
        fail_for_space "${done_dir}/outputs"
    if [ -n "${all_changed:-}" ]; then
        all_changed=$(NOTE=$(note_of "$1" "$2") awk -F '\t' '$1 != ENVIRON["NOTE"]' \
            <<<"${all_changed}")
    fi
}

# find_changed STAGE TAG: set ${changed} to the outputs of a stage that are not what it
# wrote, and ${changed_how} to what has become of each. Everything is looked at once.
find_changed() {
    local note name how path
    changed=()
    changed_how=()
    if [ -z "${all_changed+set}" ]; then
        all_changed=$("${prepare_python}" -I -S local/outputs.py check \
            --work "${work}" --notes "${done_dir}/outputs") ||
            fail "cannot compare what is in ${work} with ${done_dir}/outputs"
    fi
    note=$(note_of "$1" "$2")
    while IFS=$'\t' read -r name how path; do
        # Pages and pictures of results may be written anew by hand, or by a report.
        if [ "${name}" = "${note}" ] &&
            [[ ${how} != changed || ${name}${path} != stage13_*.@(md|png) ]]; then
            changed+=("${path}")
            changed_how+=("${how}")
        fi
    done <<<"${all_changed}"
}

# changed_words: the first of the changed outputs, for a message.
changed_words() {
    printf '%s (%s)' "${changed[0]}" "${changed_how[0]}"
    if [ "${#changed[@]}" -gt 1 ]; then
        printf ' and %d more' "$((${#changed[@]} - 1))"
    fi
}

# remove_changed STAGE TAG: outputs that are not what was written, so that what is made
# only where it is missing is made again. Also those of a stage that was stopped since.
remove_changed() {
    find_changed "$1" "$2"
    if [ "${#changed[@]}" -gt 0 ]; then
        rm -f -- "${changed[@]}"
    fi
}

# has_mark STAGE TAG [KEY]: whether the stage was done, with this key.
has_mark() {
    local mark=${done_dir}/stage$1
    if [ $# -gt 2 ]; then
        grep -Fqx -- "$2"$'\t'"$3" "${mark}" 2>/dev/null
    else
        TAG=$2 awk -F '\t' '$1 == ENVIRON["TAG"] { found = 1 } END { exit !found }' \
            "${mark}" 2>/dev/null
    fi
}

# is_done STAGE TAG KEY OUTPUT...: whether the stage need not run. Sets ${changed} as
# find_changed does.
is_done() {
    local output
    changed=()
    if ! has_mark "$1" "$2" "$3"; then
        return 1
    fi
    if [ -e "${done_dir}/outputs/$(note_of "$1" "$2")" ]; then
        find_changed "$1" "$2"
        [ "${#changed[@]}" -eq 0 ]
        return
    fi
    # From before outputs were recorded.
    for output in "${@:4}"; do
        case "${output}" in
            --*) break ;;
            *\**) output=${output%/*} ;;
        esac
        if [ ! -e "${output}" ]; then
            changed=("${output}")
            changed_how=("gone")
            return 1
        fi
    done
    record_outputs "$1" "$2" "${@:4}"
}

# keep_training STAGE TAG FOLDER [KEY]: stop where a finished training (of this key) is
# not what it wrote: it may have taken days, and nobody asked for another one.
keep_training() {
    if [ ! -d "$3" ] || ! has_mark "$1" "$2" "${@:4}"; then
        return
    fi
    find_changed "$1" "$2"
    if [ "${#changed[@]}" -gt 0 ]; then
        fail "$(changed_words): not what stage $1 has trained. Put it back from a copy;" \
            "or remove $3 and train again; or, to go on with what is there, remove" \
            "${done_dir}/outputs/$(note_of "$1" "$2")"
    fi
}

# name_aside PATH: a name that nothing has yet, for what is moved aside.
name_aside() {
    local name
    name=$1.old-$(date '+%Y%m%d-%H%M%S')
    while [ -e "${name}" ]; do # a clock may be set back
        name+=_
    done
    printf '%s' "${name}"
}

# own_folder FOLDER KEY: make a folder of results for this key. A folder of another key
# is moved aside; one of the same key is kept, and its training resumed.
own_folder() {
    local aside
    if [ -e "$1" ] && [ "$(cat "$1/.key" 2>/dev/null)" != "$2" ]; then
        aside=$(name_aside "$1")
        echo "$1 is of other options or data: moved to ${aside}"
        mv "$1" "${aside}"
    fi
    mkdir -p "$1"
    put "$1/.key" "$2"
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

# duration SECONDS: in words.
duration() {
    if [ "$1" -lt 100 ]; then
        echo "$1 s"
    elif [ "$1" -lt 6000 ]; then
        echo "$((($1 + 30) / 60)) min"
    else
        echo "$(($1 / 3600)) h $(($1 % 3600 / 60)) min"
    fi
}

# follow LOG MODE: copy standard input to a log file and show it (all), or what it says
# about the progress of training and decoding (progress): every epoch, and a line every
# 20 seconds. Reads ${updates_per_epoch}, which may be empty.
follow() {
    local line last=${SECONDS} decoded=0 table=false cer= epoch=0 epochs= start= total=
    local per_epoch=${updates_per_epoch:-} updates=0 left loss first=1
    while IFS= read -r line || [ -n "${line}" ]; do
        printf '%s\n' "${line}" 2>/dev/null >&3 || true  # the disk may be full
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
        loss=
        case "${line}" in
            *"INFO: Parameters"*)
                table=true
                printf '    %s\n' "${line#*INFO: }"
                continue
                ;;
            *": moved to "* | "train: left out"*)
                printf '    %s\n' "${line}"
                continue
                ;;
            *"INFO: [train] mini-batch sizes summary: N-batch="*)
                total=${line##*N-batch=}
                : "${per_epoch:=${total%%,*}}"
                ;;
            *"INFO: "*"epoch started"*)
                epoch=${line##*INFO: }
                epochs=${epoch#*/}
                epochs=${epochs%%epoch*}
                epoch=${epoch%%/*}
                if [ -z "${start}" ]; then
                    start=${SECONDS}
                    first=${epoch}
                fi
                ;;
            *"epoch:train:"*"batch: "*)
                updates=${line#*epoch:train:}
                updates=${updates%%batch: *}
                updates=${updates##*-}
                loss=$(field loss "${line#*batch: }")
                ;;
            *"epoch results: [train] "*"[valid] "*)
                cer=$(field cer_ctc "${line#*\[valid\] }")
                if [ -n "${cer}" ]; then
                    cer=$(awk -v cer="${cer}" 'BEGIN { printf "%.1f %%", 100 * cer }')
                fi
                printf '    epoch %s%s: train loss %s, valid loss %s%s%s\n' "${epoch}" \
                    "${epochs:+ of ${epochs}}" \
                    "$(field loss "${line#*\[train\] }")" \
                    "$(field loss "${line#*\[valid\] }")" \
                    "${cer:+, valid CER ${cer}}" \
                    "$(time_left "${start}" "$((epoch - first + 1))" 0 1 \
                        "$((epochs - epoch))")"
                last=${SECONDS}
                continue
                ;;
            *"best hypo: "*) decoded=$((decoded + 1)) ;;
        esac
        if [ $((SECONDS - last)) -lt 20 ] || [[ ${line} != *"INFO: "* ]]; then
            continue
        fi
        if [ -n "${loss}" ]; then
            left=
            if [ -n "${per_epoch}" ] && [ "${per_epoch}" -ge "${updates}" ]; then
                left=$(time_left "${start}" "$((epoch - first))" "${updates}" \
                    "${per_epoch}" "$((epochs - epoch))")
                total=" of $((epochs * per_epoch))"
                updates=$(((epoch - 1) * per_epoch + updates))
            else
                total=" of epoch"
            fi
            printf '    epoch %s of %s, update %s%s: loss %s%s%s\n' "${epoch}" \
                "${epochs}" "${updates}" "${total}" "${loss}" \
                "${cer:+, last valid CER ${cer}}" "${left}"
        elif [ "${decoded}" -gt 0 ]; then
            printf '    %d utterances decoded\n' "${decoded}"
        elif [ -n "${start}" ]; then
            continue  # a line with the loss will come
        else
            printf '    ... %.80s\n' "${line#*INFO: }"
        fi
        last=${SECONDS}
    done 3>"$1"
}

# time_left START DONE UPDATES PER_EPOCH MORE: how long training will go on that has done
# some epochs and updates since START, and has MORE epochs after this one to go.
time_left() {
    local progress=$(($2 * $4 + $3))
    if [ "${progress}" -gt 0 ]; then
        printf '; left: %s' \
            "$(duration $(((SECONDS - $1) * (($5 + ($3 > 0)) * $4 - $3) / progress)))"
    fi
}

# explain_failure LOG STAGE STATUS: what can be said of a stage that failed.
explain_failure() {
    if is_full "$1"; then
        echo "$2 failed: no room is left on the disk of ${log_dir}"
        echo "Make room, then run the same command again: it goes on from here"
    elif [ "$3" -eq 137 ]; then
        echo "$2 was killed, perhaps for want of memory: try smaller batches (batch_bins," \
            "batch_size) or --nj 1; the same command goes on from here"
    else
        echo "$2 failed with status $3. The end of its log:"
        # Commands are long, and a message that is one line says it all.
        if tail -n 1 "$1" |
            grep -Eq '^(error|backbone|asr_[a-z]*|espnet-hra[a-z ]*): '; then
            tail -n 1 "$1"
        elif grep -q '^Traceback' "$1"; then
            grep -v '^+ ' "$1" | tail -n 20
        else
            grep -v '^+ ' "$1" | tail -n 8
        fi | sed 's/^/    /'
    fi
    echo "The whole log: $1"
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
        stages_done+=("${stage}")
        log "Stage ${stage}: ${heading}: done before with the same options and data"
        return
    fi
    log "Stage ${stage}: ${heading}"
    if [ "${#changed[@]}" -gt 0 ]; then
        echo "    not what it wrote: $(changed_words); done again"
    fi
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
    seconds=$((seconds > 0 ? seconds : 0)) # a clock may be set back
    if [ "${status}" -ne 0 ]; then
        explain_failure "${file}" "Stage ${stage}, ${heading}," "${status}" >&2 || true
        exit "${status}"
    fi
    record_outputs "${stage}" "${tag}" "${@:7}"
    replace_line "${done_dir}/stage${stage}" "${tag}" "${tag}"$'\t'"${key}"
    replace_line "${times}" "${stage} ${tag}" \
        "${stage} ${tag}"$'\t'"${title}"$'\t'"${seconds}"
    stages_run+=("${stage}"$'\t'"${heading}"$'\t'"${seconds}")
    log "Stage ${stage}: done in ${seconds} s"
}

# print_times: a table of the stages that were run.
print_times() {
    if [ "${#stages_run[@]}" -gt 0 ]; then
        printf '\nstage  %-60s %8s\n' "" seconds
        printf '%s\n' "${stages_run[@]}" |
            awk -F '\t' '{ printf "%5s  %-60s %8s\n", $1, $2, $3 }'
        printf '%5s  %-60s %8s\n' all "with checks, and what lies between" "${SECONDS}"
    fi
    if [ "${#stages_done[@]}" -gt 0 ]; then
        echo "Done before: stages ${stages_done[*]}"
    fi
}
