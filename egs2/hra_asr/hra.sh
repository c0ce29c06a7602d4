#!/usr/bin/env bash
# From data to error rates of a frozen speech recogniser and its adaptation to tasks.
# To be called by run.sh. Stages and options are those of ESPnet's asr.sh wherever the
# meaning is the same.
set -euo pipefail

start_dir=${PWD}
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
. local/parse_options.sh
. local/stages.sh

usage='Usage: run.sh [--option value]...

Adapts a frozen ESPnet recogniser to several tasks (voices, languages, domains) and
writes the error rates per task to exp/CORPUS/RESULTS.md and results.tsv.

Stages: 1 data, 2 speed perturbation (done in 11), 3 format wav.scp, 4 validation,
5 token list, 6 statistics of the backbone, 7 training of the backbone, 8 choice of
the backbone, 9 decoding with the frozen backbone, 10 statistics, 11 adaptation,
12 decoding, 13 scoring, 14 packing, 15 upload to Hugging Face.
A stage that was done with the same options and data is not done again.'

option stage 1 "the first stage"
option stop_stage 15 "the last stage"
option skip_stages "" "stages to leave out, e.g. \"9 13\""
option skip_data_prep false "leave out stages 1 to 5"
option skip_train false "leave out stages 6 to 8, 10 and 11"
option skip_eval false "leave out stages 9, 12 and 13"
option skip_packing true "leave out stage 14"
option skip_upload_hf true "leave out stage 15"
option hf_repo "" "where stage 15 uploads to, e.g. user/name"
option ngpu 0 "the number of GPUs, 0 for the CPU"
option nj 2 "the number of processes that prepare data"
option allow_changed false "take Debian packages of other versions than ours"
option inference_nj 1 "the number of processes that decode"
option dumpdir "" "where data for models go (default: EXPDIR/CORPUS/dump)"
option expdir "" "where all else goes (default: exp in the recipe's folder)"
option python python3 "the Python with ESPnet"
option corpus debian_voices "debian_voices, mini_an4, a corpus of db.sh, or a folder"
option tasks "" "the tasks, e.g. \"fr_june it_carlo\" (default: all)"
option train_utterances "" "so many training utterances of each task, e.g. 3 (default: all)"
option classify "" "tasks that tell labels: \"lang spk\" those of utt2lang and utt2spk"
option clean_text "" "fit texts to the tokens: auto (default for your data) or none"
option method "" "hra, residual, lora, lily, road, prompt, bitfit, full, none (default: asr_config's, hra)"
option regime joint "joint (controller and heads), or new_task (heads only)"
option init_adapter "" "checkpoint of the joint training that new_task starts from"
option pretrained_model "" "the backbone: whisper:base (default), debian_voices, ESPnet pack, folder or tag"
option train_backbone "" "train the backbone here (default: only for mini_an4)"
option backbone_config "" "its training (default: conf/train_backbone.yaml)"
option asr_config "" "the adaptation (default: conf/train_METHOD.yaml)"
option variant "" "instead: one of variants.yaml, e.g. hra_long (Whisper: conf/whisper)"
option asr_args "" "more options for the adaptation, e.g. \"--max_epoch 5\""
option asr_tag "" "name of the adaptation's folder (default: made of the above)"
option inference_config "" "decoding (default: conf/decode_greedy.yaml, conf/whisper/decode_beam.yaml)"
option inference_args "" "more options for decoding"
option inference_model "" "the checkpoint to decode with (default: the best one)"
option speed_perturb_factors "" "speeds at which training hears speech, \"0.9 1.0 1.1\" (default: these for Whisper), or none"
option autocast auto "mixed precision in training: none, bfloat16, or auto"
option seed 1 "the seed of the adaptation"
option lang "" "for Whisper, the language of all data (default: utt2lang's, or what it hears)"
option frozen_seconds 10 "windows in which a frozen Whisper hears; 30, its own, take thrice the time"
option fs "" "the sampling rate in Hz (default: the backbone's)"
option run_pipes false "run the commands in a folder's wav.scp (if you trust them)"
option skip_bad false "leave out what the validation finds, instead of stopping"
parse_options "$@"

. ./path.sh
. ./cmd.sh
. ./db.sh

# ------------------------------------------------------------------ check the options

check_number stage stop_stage ngpu nj inference_nj seed frozen_seconds
check_boolean skip_data_prep skip_train skip_eval skip_packing skip_upload_hf skip_bad run_pipes \
    allow_changed
if [ -n "${train_utterances}" ] && [[ ! ${train_utterances} =~ ^[1-9][0-9]*$ ]]; then
    usage_error "--train_utterances must be a number from 1 on, not '${train_utterances}'"
fi
for number in ${skip_stages}; do
    if [[ ! ${number} =~ ^[0-9]+$ ]]; then
        usage_error "--skip_stages must be numbers, not '${number}'"
    fi
done

methods="hra residual lora lily road prompt bitfit full none"
if [ -n "${method}" ] && [[ " ${methods} " != *" ${method} "* ]]; then
    usage_error "there is no method '${method}'; there are: ${methods}"
fi
case "${regime}" in
    joint | new_task) ;;
    *) usage_error "--regime must be joint or new_task, not '${regime}'" ;;
esac
case "${autocast}" in
    none | bfloat16 | auto) ;;
    *) usage_error "--autocast must be none, bfloat16 or auto, not '${autocast}'" ;;
esac
case "${clean_text}" in
    "" | auto | none) ;;
    *) usage_error "--clean_text must be auto or none, not '${clean_text}'" ;;
esac
if ! "${skip_upload_hf}" && [ -z "${hf_repo}" ]; then
    usage_error "--skip_upload_hf false needs --hf_repo, e.g. --hf_repo user/name"
fi

# find_path PATH: where the caller means it: seen from there, else from the recipe.
find_path() {
    case "$1" in
        "" | /*) printf '%s' "$1" ;;
        *)
            if [ -e "${start_dir}/$1" ] || [ ! -e "$1" ]; then
                printf '%s' "${start_dir}/$1"
            else
                printf '%s' "$1"
            fi
            ;;
    esac
}

if [ "${start_dir}" = "${PWD}" ]; then
    # Short paths in logs where both are the same.
    find_path() { printf '%s' "$1"; }
fi

# check_file OPTION: the file that an option names, as found by find_path.
check_file() {
    local path
    path=$(find_path "${!1}")
    if [ ! -f "${path}" ]; then
        usage_error "--$1: there is no file '${!1}'"
    fi
    printf -v "$1" '%s' "${path}"
}

# Corpora that are read as they are distributed, from the folder in a variable of db.sh
# that is called as they are (TORGO). docs/corpora.md has them.
named_corpora="speechocean762 l2_arctic torgo afrispeech_200 common_voice librispeech"
corpus_source=
known_corpora="debian_voices mini_an4 ${named_corpora}"

# is_known NAME: whether a corpus is called so.
is_known() {
    [[ $1 =~ ^[a-z0-9_]+$ && " ${known_corpora} " == *" $1 "* ]]
}

if is_known "${corpus}"; then
    name=${corpus}
    if [[ " ${named_corpora} " == *" ${corpus} "* ]]; then
        variable=${corpus//_/}
        variable=${variable^^}
        corpus_source=${!variable:-}
        if [ -z "${corpus_source}" ]; then
            usage_error "--corpus ${corpus}: say where it is in ${PWD}/db.sh," \
                "${variable}=/path/to/it (docs/corpora.md says where to get it)"
        elif [ ! -d "${corpus_source}" ]; then
            usage_error "--corpus ${corpus}: there is no folder '${corpus_source}'," \
                "which db.sh names: correct ${variable} there"
        fi
    fi
else
    corpus=$(find_path "${corpus}")
    if [ ! -d "${corpus}" ]; then
        usage_error "--corpus must be a folder or one of ${known_corpora// /, }, and" \
            "there is no folder '${corpus}'"
    fi
    corpus=$(cd -- "${corpus}" && pwd)
    name=${corpus##*/}
    # Names with spaces and the like are hard to use in further commands.
    name=${name//[^A-Za-z0-9._-]/_}
    if is_known "${name}" || [[ -z ${name} || ${name} == .* ]]; then
        usage_error "a folder called '${name}' cannot be a corpus: rename it"
    fi
fi

if [ "${corpus}" = mini_an4 ]; then
    # In a model this small, threads would only wait for each other.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi

# The small Conformer that comes with the recipe.
shipped=pretrained/debian_voices.zip

if [ -z "${train_backbone}" ]; then
    train_backbone=false
    if [ "${corpus}" = mini_an4 ] && [ -z "${pretrained_model}" ]; then
        train_backbone=true
    fi
fi
check_boolean train_backbone
if "${train_backbone}"; then
    if [ -n "${pretrained_model}" ]; then
        usage_error "--train_backbone true and --pretrained_model exclude each other"
    fi
elif [ "${pretrained_model:=whisper:base}" = debian_voices ]; then
    pretrained_model=${shipped}
    if [ ! -f "${pretrained_model}" ]; then
        usage_error "the backbone debian_voices is not here: train it with" \
            "--train_backbone true, or name another one with --pretrained_model"
    fi
else
    if [[ ${pretrained_model} == whisper:*/* || ${pretrained_model} == whisper:*.pt ]]
    then
        pretrained_model=whisper:$(find_path "${pretrained_model#whisper:}")
    elif [ -e "$(find_path "${pretrained_model}")" ]; then
        pretrained_model=$(find_path "${pretrained_model}")
    elif [[ ${pretrained_model} == /* || ${pretrained_model} == *.zip ||
        ${pretrained_model} == *.pth ]]; then
        usage_error "--pretrained_model: there is no file '${pretrained_model}'"
    fi
fi

configs=conf
decoding=decode_greedy
if [ "${corpus}" = mini_an4 ] && "${train_backbone}"; then
    configs=conf/mini_an4
elif [[ ${pretrained_model} == whisper:* ]]; then
    configs=conf/whisper
    decoding=decode_beam
fi
# What the caller names is looked for where the caller is, defaults only here.
for item in backbone_config asr_config inference_config; do
    if [ -n "${!item}" ]; then
        check_file "${item}"
    fi
done
: "${backbone_config:=${configs}/train_backbone.yaml}"
: "${inference_config:=${configs}/${decoding}.yaml}"
if [ ! -f "${inference_config}" ]; then
    inference_config=conf/${decoding}.yaml
fi
if [ "${method}" = none ]; then
    for item in asr_config variant asr_args init_adapter classify; do
        if [ -n "${!item}" ]; then
            usage_error "--method none adapts nothing, and --${item} is of an adaptation"
        fi
    done
elif [ -n "${variant}" ]; then
    if [ -n "${asr_config}" ]; then
        usage_error "--variant and --asr_config both name the adaptation: give one"
    fi
elif [ -z "${asr_config}" ]; then
    : "${method:=hra}"
    asr_config=${configs}/train_${method}.yaml
    if [ ! -f "${asr_config}" ] && [ "${configs}" != conf/whisper ]; then
        asr_config=conf/train_${method}.yaml
    fi
    if [ ! -f "${asr_config}" ]; then
        usage_error "there is no ${asr_config}: name a configuration with --asr_config"
    fi
fi
if [[ " ${asr_args}" == *" adapter="* ]]; then
    usage_error "--asr_args cannot choose the adapter: use --method or --asr_config"
fi
if [ -z "${speed_perturb_factors}" ]; then
    speed_perturb_factors=none
    # At another speed, a voice is like another's: not where tasks tell speakers.
    if [ "${configs}" = conf/whisper ] && [ -z "${classify}" ]; then
        speed_perturb_factors="0.9 1.0 1.1"
    fi
fi
speeds=()
if [ "${speed_perturb_factors}" != none ]; then
    read -r -a speeds <<<"${speed_perturb_factors}"
    for factor in "${speeds[@]}"; do
        if [[ ! ${factor} =~ ^(0\.[5-9][0-9]*|1(\.[0-9]+)?|2(\.0+)?)$ ]]; then
            usage_error "--speed_perturb_factors must be none, or numbers from 0.5 to 2" \
                "like \"0.9 1.0 1.1\", not '${speed_perturb_factors}'"
        fi
    done
fi
if [ "${regime}" = new_task ]; then
    if [ -z "${init_adapter}" ]; then
        usage_error "--regime new_task freezes the controller of an earlier joint" \
            "training: name its checkpoint with --init_adapter"
    fi
fi
if [ -n "${init_adapter}" ]; then
    check_file init_adapter
fi

# Words of options that hold several; nothing in them is expanded.
read -r -a task_names <<<"${tasks}"
read -r -a label_names <<<"${classify}"
read -r -a asr_words <<<"${asr_args}"
read -r -a inference_words <<<"${inference_args}"
read -r -a train_words <<<"${train_cmd}"
read -r -a decode_words <<<"${decode_cmd}"
if [ -x "$(command -v -- "${python}" || true)" ]; then
    python_words=("${python}")
    prepare_python=${python}
else
    # As for asr.sh, it may be a command with options.
    read -r -a python_words <<<"${python}"
    prepare_python=python3
fi
if ! "${python_words[@]}" -c 'import espnet_hra, espnet2' >/dev/null 2>&1; then
    if [ -f ../../Makefile ] && [ -d ../../espnet_hra ]; then
        fail "${python} cannot import espnet2 and espnet_hra: run \"make venv\" in" \
            "$(cd ../.. && pwd), or name another Python with --python"
    fi
    fail "${python} cannot import espnet2 and espnet_hra: install espnet-hra in it" \
        "with pip, or name another Python with --python"
fi
expdir=$(find_path "${expdir}")
work=${expdir:-exp}/${name}
if [ -n "${variant}" ]; then
    asr_config=${work}/conf/train_${variant//[^A-Za-z0-9._-]/_}.yaml
    variants=conf
    if [ "${configs}" = conf/whisper ]; then
        variants=conf/whisper
    fi
    "${python_words[@]}" local/variant.py --conf "${variants}" --name "${variant}" \
        --out "${asr_config}" || exit 2
fi
if [ "${method}" != none ]; then
    adapter=$("${python_words[@]}" -c '
import sys
from espnet_hra.errors import one_line
from espnet_hra.files.config import read_yaml

with one_line("run.sh"):
    print((read_yaml(sys.argv[1]).get("encoder_conf") or {}).get("adapter", "hra"))
' "${asr_config}")
    : "${method:=${adapter}}"
    if [ "${method}" != "${adapter}" ]; then
        usage_error "--method ${method} contradicts ${asr_config}, whose adapter is" \
            "${adapter}: leave one of the two out"
    fi
fi

dump=$(find_path "${dumpdir}")
dump=${dump:+${dump}/${name}}
dump=${dump:-${work}/dump}
audio=${dump}/audio
if [ -z "${clean_text}" ]; then
    clean_text=none
    # Whisper's tokens can write everything.
    if [[ ${pretrained_model} != whisper:* ]] &&
        { [ "${corpus}" != "${name}" ] || [ -n "${corpus_source}" ]; }; then
        clean_text=auto
    fi
fi

# Some of the tasks, or of their sentences, are data of their own, and adaptations of
# their own.
subset=
if [ "${#task_names[@]}" -gt 0 ]; then
    mapfile -t task_names < <(printf '%s\n' "${task_names[@]}" | sort -u)
    subset=${task_names[0]}
    if [ "${#task_names[@]}" -gt 1 ]; then
        subset=${#task_names[@]}-$(digest "${task_names[@]}" | cut -c 1-6)
    fi
    subset=tasks-${subset//[^A-Za-z0-9._-]/_}
fi
if [ -n "${train_utterances}" ]; then
    subset=${subset:+${subset}_}train-${train_utterances}
fi
if [ "${#label_names[@]}" -gt 0 ]; then
    mapfile -t label_names < <(printf '%s\n' "${label_names[@]}" | sort -u)
    subset=${subset:+${subset}_}classify$(printf -- '-%s' "${label_names[@]}")
    subset=${subset//[^A-Za-z0-9._-]/_}
fi
dump=${dump}${subset:+_${subset}}
for item in "${work}" "${dump}"; do
    # ESPnet separates path, name and type of data by commas.
    if [[ ${item} == *,* ]]; then
        usage_error "the folder '${item}' must not have a comma in its name"
    fi
done
data=data/${name}

# A label for tables, and a folder for what belongs to it.
label=none
if [ "${method}" != none ]; then
    # Of a link, the file that it leads to: conf/train_lora.yaml is one of several.
    label=$(readlink -f -- "${asr_config}")
    label=${label##*/}
    label=${label%.*}
    label=${label#train_}
    case "${label}" in
        "${method}" | "${method}_"*) ;;
        *) label=${method}_${label} ;;
    esac
    if [ "${regime}" = new_task ]; then
        label=${label}_new_task
    fi
    if [ "${#asr_words[@]}" -gt 0 ]; then
        label=${label}_$(digest "${asr_words[@]}" | cut -c 1-6)
    fi
    label=${label//[^A-Za-z0-9._-]/_}${subset:+_${subset}}
fi
if [ -z "${asr_tag}" ]; then
    asr_tag=${label}_seed${seed}
elif [[ ! ${asr_tag} =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]]; then
    usage_error "--asr_tag must consist of letters, digits, '.', '_' and '-'"
fi
decode_tag=${inference_config##*/}
decode_tag=${decode_tag%.*}
if [ "${#inference_words[@]}" -gt 0 ]; then
    decode_tag=${decode_tag}_$(digest "${inference_words[@]}" | cut -c 1-6)
fi

done_dir=${work}/.done
log_dir=${work}/logs
times=${work}/times.tsv
backbone_dir=${work}/backbone
backbone_file=${work}/backbone.path
token_list=${work}/tokens.txt
task_list=${dump}/tasks
asr_exp=${work}/asr_${asr_tag}
frozen_decode=${work}/frozen/${decode_tag}${subset:+_${subset}}
asr_decode=${asr_exp}/${decode_tag}

# Whether the backbone has data of its own, and was trained in the recipe.
backbone_part=false
if [ "${corpus}" = debian_voices ]; then
    backbone_part=${train_backbone}
fi
own_backbone=${train_backbone}
if "${train_backbone}" && [ -n "${subset}" ]; then
    # The backbone is that of all tasks, whatever is adapted; then it is a given one.
    if [ "${stage}" -le 8 ] && ! { "${skip_data_prep}" && "${skip_train}"; }; then
        echo "The backbone is trained on all tasks:"
        (cd -- "${start_dir}" && bash "${OLDPWD}/hra.sh" "$@" --tasks "" --classify "" \
            --train_utterances "" \
            --stop_stage "$((stop_stage < 8 ? stop_stage : 8))")
        if [ ! -f "${backbone_file}" ]; then
            echo "Its stages come before all that concerns ${subset}"
            exit 0
        fi
        echo "The backbone is done; ${task_names[*]}:"
    fi
    train_backbone=false
    if [ ! -f "${backbone_file}" ]; then
        fail "there is no ${backbone_file}: run stage 8 first"
    fi
    pretrained_model=$(sed -n 2p "${backbone_file}")
fi

for item in "${done_dir}" "${log_dir}" "${dump}"; do
    said=$(mkdir -p "${item}" 2>&1) && said=$([ -w "${item}" ] || echo "no right to")
    if [ -n "${said}" ]; then
        fail "cannot write in ${item} (${said#*: }): make room there, or name another" \
            "place with --expdir; then run the same command again"
    fi
done
if command -v flock >/dev/null; then
    # Held by all that is started from here: training that goes on after its script was
    # killed is found out.
    exec 9>"${work}/.lock"
    if ! flock -w 5 9; then
        fail "another run works in ${work} (maybe the rest of one that was killed):" \
            "wait for it, or end it"
    fi
fi

first_places "${PWD}" "${corpus}" "${work}"

task_sets=(train dev test)
all_sets=(train dev test)
# Of the backbone: whether its tokens are Whisper's, and whether it is told a language.
whisper=false
multilingual=false
eval_sets=(dev test)
# What the frozen backbone decodes: of Whisper, whose windows take long, the test set.
frozen_sets=(dev test)
backbone_train=train
backbone_dev=dev
if "${train_backbone}" && [ "${corpus}" = debian_voices ]; then
    all_sets+=(backbone_train backbone_dev)
    backbone_train=backbone_train
    backbone_dev=backbone_dev
fi

# A backbone that is trained here knows the letters of the tasks as well.
token_sets=("${backbone_train}")
if [ "${backbone_train}" != train ]; then
    token_sets+=(train)
fi

# wanted STAGE: whether the options ask for it.
wanted() {
    local number
    if [ "$1" -lt "${stage}" ] || [ "$1" -gt "${stop_stage}" ]; then
        return 1
    fi
    for number in ${skip_stages}; do
        if [ "$((10#${number}))" -eq "$1" ]; then
            return 1
        fi
    done
    case "$1" in
        1 | 2 | 3 | 4 | 5) ! "${skip_data_prep}" ;;
        6 | 7 | 8) ! "${skip_train}" ;;
        10 | 11) ! "${skip_train}" && [ "${method}" != none ] ;;
        12) ! "${skip_eval}" && [ "${method}" != none ] ;;
        9 | 13) ! "${skip_eval}" ;;
        14) ! "${skip_packing}" && [ "${method}" != none ] ;;
        15) ! "${skip_upload_hf}" && [ "${method}" != none ] ;;
    esac
}

# files_of ROOT FILE SET...: the names of a file in several data sets, one a line; of
# @ROOT, as items for digest.
files_of() {
    local set
    for set in "${@:3}"; do
        printf '%s\n' "$1/${set}/$2"
    done
}

# contents_of ROOT SET...: the lists of data sets, as items for digest.
contents_of() {
    local file
    for file in wav.scp segments text utt2spk utt2task audio_stamp; do
        files_of "@$1" "${file}" "${@:2}"
    done
}

# need FILE STAGE: stop if what an earlier stage makes is not there.
need() {
    if [ ! -e "$1" ]; then
        fail "there is no $1: run stage $2 first"
    fi
}

# number_of KEY CONFIG [WORD...]: the number that a key has in a configuration, if any;
# options win.
number_of() {
    local number key=$1
    number=$(sed -n "s/^${key}: *\([0-9]\+\).*/\1/p" "$2")
    shift 2
    while [ $# -gt 0 ]; do
        case "$1" in
            --"${key}") number=${2:-} ;;
            --"${key}"=*) number=${1#*=} ;;
        esac
        shift
    done
    printf '%s' "${number}"
}

# best_model FOLDER: its best checkpoint. Averages come first; a model without a decoder
# has no accuracy, and is chosen by its character error rate.
best_model() {
    local candidate
    for candidate in valid.cer_ctc.ave valid.cer_ctc.best valid.acc.ave \
        valid.acc.best valid.loss.ave valid.loss.best latest; do
        if [ -e "$1/${candidate}.pth" ]; then
            printf '%s' "$1/${candidate}.pth"
            return
        fi
    done
    fail "there is no trained model in $1"
}

# data_options KIND SET WITH_TASKS: ESPnet's options on the data of a set.
data_options() {
    local shapes=${dump}/$2/speech_shape
    if [ "$1" = train ]; then
        shapes=${train_shapes:-${shapes}}
    fi
    printf '%s\n' "--$1_data_path_and_name_and_type" "${dump}/$2/wav.scp,speech,sound" \
        "--$1_data_path_and_name_and_type" "${dump}/$2/text,text,text" \
        "--$1_shape_file" "${shapes}"
    if "$3"; then
        printf '%s\n' "--$1_data_path_and_name_and_type" \
            "${dump}/$2/utt2task,utt2task,text"
    fi
}

# train WITH_TASKS TRAIN_SET DEV_SET OPTION...: one process that trains.
train() {
    local options
    mapfile -t options < <(data_options train "$2" "$1" && data_options valid "$3" "$1")
    # The data were validated in stage 4; once is enough.
    announce "${train_words[@]}" "${python_words[@]}" -m espnet_hra.bin.asr_train \
        --use_preprocessor true \
        --resume true \
        --ngpu "${ngpu}" \
        --autocast "${autocast}" \
        --check_data false \
        --log_interval 10 \
        "${options[@]}" \
        "${@:4}"
}

# decode FOLDER CONFIG MODEL WITH_TASKS SET...: decode evaluation sets in one go (starting
# a process costs more than decoding some hundred utterances), then part the results.
decode() {
    local folder=$1 job jobs=() set name options=() texts lists failed=false
    local sets=("${@:5}")
    # What runs in the background does not hear Ctrl-C.
    trap 'kill "${jobs[@]}" 2>/dev/null; exit 130' INT TERM
    rm -rf "${folder}"
    mkdir -p "${folder}/jobs"
    if "$4"; then
        options+=(--data_path_and_name_and_type "${dump}/eval/utt2task,utt2task,text")
    elif "${multilingual}"; then
        options+=(--data_path_and_name_and_type "${dump}/eval/utt2lang,utt2lang,text")
    fi
    mapfile -t lists < <(files_of "${dump}" wav.scp "${sets[@]}")
    : >"${folder}/jobs/without"
    if ! "$4" && [ "${#label_names[@]}" -gt 0 ]; then
        # The frozen backbone knows no labels.
        printf '%s\n' "${label_names[@]}" | awk 'NR == FNR { labels[$1]; next }
            $2 in labels { print $1 }' - "${dump}/eval/utt2task" >"${folder}/jobs/without"
    fi
    for ((job = 1; job <= inference_nj; job++)); do
        cat "${lists[@]}" | in_order_of "${dump}/eval/ids" |
            awk 'FILENAME != "-" { without[$1]; next } ! ($1 in without)' \
                "${folder}/jobs/without" - |
            awk -v n="${inference_nj}" -v i="${job}" 'NR % n == i % n { print $1 }' \
                >"${folder}/jobs/keys.${job}"
        if [ ! -s "${folder}/jobs/keys.${job}" ]; then
            continue
        fi
        announce "${decode_words[@]}" "${python_words[@]}" \
            -m espnet_hra.bin.asr_inference \
            --config "${inference_config}" \
            --ngpu "$((ngpu > 0))" \
            --asr_train_config "$2" \
            --asr_model_file "$3" \
            --data_path_and_name_and_type "${dump}/eval/wav.scp,speech,sound" \
            "${options[@]}" \
            --key_file "${folder}/jobs/keys.${job}" \
            --output_dir "${folder}/jobs/output.${job}" \
            "${inference_words[@]}" &
        jobs+=("$!")
    done
    for job in "${jobs[@]}"; do
        wait "${job}" || failed=true
    done
    if "${failed}"; then
        return 1
    fi
    for set in "${sets[@]}"; do
        mkdir -p "${folder}/${set}"
        for name in text token score; do
            cat "${folder}/jobs"/output.*/1best_recog/"${name}" |
                awk 'NR == FNR { wanted[$1]; next } $1 in wanted' \
                    "${dump}/${set}/wav.scp" - | sort >"${folder}/${set}/${name}"
        done
    done
    rm -rf "${folder}/jobs"
    if "${whisper}"; then
        mapfile -t texts < <(files_of "${folder}" text "${sets[@]}")
        announce "${prepare_python}" local/fold_decoded.py \
            "${texts[@]}" --like "${dump}/train/text" --labels "${label_names[@]}" \
            --utt2task "${dump}/train/utt2task" "${dump}/eval/utt2task"
    fi
}

# languages: what a multilingual Whisper is told, of the tasks and of what is decoded.
languages() {
    local lists
    mapfile -t lists < <(files_of "${data}" utt2lang "${task_sets[@]}" &&
        files_of "${corpus}" utt2lang . "${task_sets[@]}")
    "${prepare_python}" local/languages.py --lang "${lang}" --utt2lang "${lists[@]}" \
        --labels "${label_names[@]}" \
        --utt2task "${dump}/train/utt2task" --eval "${dump}/eval" \
        --model "${base_config}" "${base_model}" --out "${dump}/languages.json" \
        2>"${log_dir}/languages.txt" || {
        tail -n 1 "${log_dir}/languages.txt" >&2
        return 1
    }
}

# load_backbone: its configuration and checkpoint, once chosen in stage 8.
load_backbone() {
    need "${backbone_file}" 8
    {
        IFS= read -r base_config
        IFS= read -r base_model
        IFS= read -r base_keys || base_keys=${base_config}
    } <"${backbone_file}"
    need "${base_config}" 8
    need "${base_model}" 8
    if "${own_backbone}"; then
        keep_training 7 - "${backbone_dir}"
    fi
    if [ -z "${base_digest:-}" ]; then
        base_digest=$(digest "@${base_config}" "@${base_model}")
    fi
    if grep -Eqx "bpemodel: '?whisper_.*" "${base_keys}"; then
        whisper=true
        frozen_sets=(test)
    fi
    if grep -Eqx "bpemodel: '?whisper_multilingual'?" "${base_keys}"; then
        multilingual=true
    fi
}

# ---------------------------------------------------------------------- the stages

stage_1() {
    local options=(--datadir data --nj "${nj}" --downloads "${HRA_DOWNLOADS}")
    if [ "${corpus}" = "${name}" ]; then
        options+=(--corpus "${corpus}" --part tasks)
        if "${backbone_part}"; then
            options+=(backbone)
            if [ -d "${SPEECHOCEAN762:-}" ]; then
                options+=(--english "${SPEECHOCEAN762}")
            fi
        fi
        if "${allow_changed}" && [ "${corpus}" = debian_voices ]; then
            options+=(--allow_changed)
        fi
        if [ -n "${corpus_source}" ]; then
            options+=(--source "${corpus_source}")
        fi
    else
        options+=(--corpus folder --source "${corpus}" --name "${name}"
            --run_pipes "${run_pipes}")
    fi
    remove_changed 1 -
    PYTHON=${prepare_python} announce bash local/data.sh "${options[@]}"
}

stage_3() {
    local options=() set
    if [ "${#task_names[@]}" -gt 0 ]; then
        options+=(--tasks "${task_names[@]}")
    fi
    if [ -n "${train_utterances}" ]; then
        options+=(--train_utterances "${train_utterances}")
    fi
    if [ "${#all_sets[@]}" -gt "${#task_sets[@]}" ]; then
        options+=(--all_tasks "${all_sets[@]:${#task_sets[@]}}")
    fi
    remove_changed 3 "${subset:--}"
    if [ "${#places[@]}" -gt 0 ]; then
        options+=(--moved "${places[@]}")
    fi
    if [ "${#label_names[@]}" -gt 0 ]; then
        options+=(--classify "${label_names[@]}")
        if [ "${corpus}" != "${name}" ]; then
            options+=(--labels "${corpus}")
            for set in "${task_sets[@]}"; do
                options+=("${corpus}/${set}")
            done
        fi
    fi
    announce "${prepare_python}" local/format_wav_scp.py --data "${data}" \
        --dump "${dump}/raw" --audio "${audio}" --nj "${nj}" --fs "${fs}" \
        --run_pipes "${run_pipes}" --sets "${task_sets[@]}" "${options[@]}"
}

stage_4() {
    local set name config=${dump}/validation.yaml extra unknown ids texts from options
    local lost count
    local tokens= told=()
    if [ "${#label_names[@]}" -gt 0 ]; then
        told=(--tasks "${dump}/raw/records")
    fi
    if "${train_backbone}"; then
        # Every character of the training texts; stage 5 leaves out those of bad ones.
        mapfile -t texts < <(files_of "${dump}/raw" text "${token_sets[@]}")
        "${prepare_python}" local/char_list.py --token_list "${dump}/raw/tokens.txt" \
            --text "${texts[@]}"
        tokens="token_type: char"$'\n'"token_list: '${dump//\'/\'\'}/raw/tokens.txt'"
    fi
    from=${dump}/raw
    if [ "${clean_text}" = auto ]; then
        from=${dump}/clean
        printf '%s\n' "$(cat "${validation_config}")" "${tokens}" >"${config}"
        announce "${prepare_python}" local/clean_text.py --raw "${dump}/raw" \
            --out "${from}" --sets "${all_sets[@]}" --keep test --config "${config}" \
            --labels "${label_names[@]}" \
            --report "${log_dir}/clean_text.txt" --note "${dump}/note.txt"
    fi
    : >"${dump}/left_out.txt"
    for set in "${all_sets[@]}"; do
        # Of two values of a key, YAML takes the second.
        extra=${tokens}
        options=(--text "${from}/${set}/text")
        if [ "${set}" = test ]; then
            # Its texts are only compared with: any character may occur in them.
            extra="token_list: null"
            if [ "${clean_text}" = auto ]; then
                # And none at all: all that is recognised in silence is wrong.
                options=()
            fi
        fi
        printf '%s\n' "$(cat "${validation_config}")" "${extra}" >"${config}"
        echo "${set}:"
        announce "${python_words[@]}" -m espnet_hra.cli validate \
            --wav_scp "${from}/${set}/wav.scp" \
            "${options[@]}" \
            --utt2task "${from}/${set}/utt2task" \
            --config "${config}" \
            "${told[@]}" \
            --skip_bad "${skip_bad}" \
            --skip_long true \
            --report "${log_dir}/validate_${set}.txt" \
            --out_dir "${dump}/${set}"
        if [ "${#options[@]}" -eq 0 ]; then
            awk 'NR == FNR { kept[$1]; next } $1 in kept' "${dump}/${set}/wav.scp" \
                "${from}/${set}/text" >"${dump}/${set}/text"
        fi
        cp "${dump}/raw/${set}/audio_stamp" "${dump}/${set}"
        count=$(($(wc -l <"${from}/${set}/utt2task") - $(wc -l <"${dump}/${set}/utt2task")))
        if [ "${count}" -gt 0 ]; then
            lost=$(comm -23 <(cut -d ' ' -f 2- "${from}/${set}/utt2task" | sort -u) \
                <(cut -d ' ' -f 2- "${dump}/${set}/utt2task" | sort -u) | paste -sd ' ')
            echo "${set}: left out in the validation: ${count}$(
                [ -z "${lost}" ] || echo ", all utterances of: ${lost}")." |
                tee -a "${dump}/left_out.txt"
        fi
    done
    cut -d ' ' -f 2- "${dump}/train/utt2task" | sort -u >"${task_list}"
    for set in "${eval_sets[@]}"; do
        unknown=$(cut -d ' ' -f 2- "${dump}/${set}/utt2task" | sort -u |
            comm -13 "${task_list}" - | head -n 5 | tr '\n' ' ')
        if [ -n "${unknown}" ]; then
            leave_out "${dump}/${set}" "${task_list}"
            echo "${set}: left out, as nothing is there to train them on: ${unknown}(to" \
                "map them to others, write an utt2task)"
        fi
        if [ ! -s "${dump}/${set}/wav.scp" ]; then
            fail "no utterance of ${set} has a task with training data"
        fi
    done
    # One list for all that is decoded, short ones first: a batch is as long as its
    # longest, and ESPnet takes batches in the order of the list.
    mkdir -p "${dump}/eval"
    files_of "${dump}" speech_shape "${eval_sets[@]}" | tr '\n' '\0' |
        xargs -0 cat | sort -t ' ' -k 2,2n -k 1,1 | cut -d ' ' -f 1 >"${dump}/eval/ids"
    for name in wav.scp text utt2task; do
        files_of "${dump}" "${name}" "${eval_sets[@]}" | tr '\n' '\0' |
            xargs -0 cat | in_order_of "${dump}/eval/ids" >"${dump}/eval/${name}"
    done
    ids=$(sort "${dump}/eval/ids" | uniq -d | head -n 3 | tr '\n' ' ')
    if [ -n "${ids}" ]; then
        fail "utterance ids that stand in both ${eval_sets[*]}: ${ids}... (rename them)"
    fi
}

# in_order_of IDS: the lines of a list (of standard input) in the order of these ids.
in_order_of() {
    awk 'NR == FNR { line[$1] = $0; next } $1 in line { print line[$1] }' - "$1"
}

# leave_out FOLDER TASKS: keep utterances of these tasks only, in all lists there.
leave_out() {
    local file
    awk 'NR == FNR { known[$1]; next } $2 in known { print $1 }' "$2" "$1/utt2task" \
        >"$1/.kept"
    rm -f "$1/spk2utt"
    for file in wav.scp text utt2task utt2spk speech_shape text_shape; do
        if [ -e "$1/${file}" ]; then
            awk 'NR == FNR { kept[$1]; next } $1 in kept' "$1/.kept" "$1/${file}" \
                >"$1/.${file}"
            mv "$1/.${file}" "$1/${file}"
        fi
    done
    rm "$1/.kept"
}

stage_5() {
    local texts
    mapfile -t texts < <(files_of "${dump}" text "${token_sets[@]}")
    announce "${prepare_python}" local/char_list.py --token_list "${token_list}" \
        --text "${texts[@]}"
}

stage_6() {
    train false "${backbone_train}" "${backbone_dev}" \
        --collect_stats true \
        --config "${backbone_config}" \
        --normalize none \
        --token_type char \
        --token_list "${token_list}" \
        --output_dir "${work}/backbone_stats"
}

# Steps before the training proper: fewer layers, shorter utterances (see the header of
# conf/train_backbone.yaml). Each begins with what the one before has learned.
backbone_steps=${backbone_config%.*}.steps

# grow FOLDER OPTION...: make init.pth there from the latest step's model.
grow() {
    local options
    if [ -n "${previous}" ] && [ ! -e "$1/init.pth" ]; then
        mkdir -p "$1"
        announce "${prepare_python}" local/grow_layers.py \
            --model "$(best_model "${previous}")" --out "$1/init.pth.part" \
            --config "${backbone_config}" --token_type char \
            --token_list "${token_list}" "${@:2}"
        mv "$1/init.pth.part" "$1/init.pth"
    fi
}

stage_7() {
    local options=() previous= step=0 seconds words folder train_shapes=
    if "${needs_stats}"; then
        options+=(--normalize_conf
            "stats_file='${work//\'/\'\'}/backbone_stats/train/feats_stats.npz'")
    fi
    own_folder "${backbone_dir}" "${key}"
    if [ -f "${backbone_steps}" ]; then
        while read -r seconds words; do
            step=$((step + 1))
            folder=${backbone_dir}/step${step}
            read -r -a words <<<"${words}"
            echo "+ step ${step}: utterances of up to ${seconds} s, ${words[*]}"
            grow "${folder}" "${words[@]}"
            mkdir -p "${folder}"
            train_shapes=${folder}/speech_shape
            awk -v most="${seconds}" '$2 <= most * 16000' \
                "${dump}/${backbone_train}/speech_shape" >"${train_shapes}"
            train false "${backbone_train}" "${backbone_dev}" \
                --config "${backbone_config}" \
                --token_type char \
                --token_list "${token_list}" \
                --output_dir "${folder}" \
                ${previous:+--init_param "${folder}/init.pth"} \
                "${options[@]}" "${words[@]}" </dev/null
            previous=${folder}
        done < <(grep -v '^#' "${backbone_steps}")
        train_shapes=
        grow "${backbone_dir}"
    fi
    train false "${backbone_train}" "${backbone_dev}" \
        --config "${backbone_config}" \
        --token_type char \
        --token_list "${token_list}" \
        --output_dir "${backbone_dir}" \
        ${previous:+--init_param "${backbone_dir}/init.pth"} \
        "${options[@]}"
}

stage_8() {
    local path
    find_changed 8 "${subset:--}"
    for path in "${changed[@]}"; do
        # A pack that was unpacked before is not unpacked again.
        if [[ ${path} == "${work}/pretrained/"* ]]; then
            path=${path#"${work}/pretrained/"}
            rm -rf "${work}/pretrained/${path%%/*}"
        fi
    done
    if "${train_backbone}"; then
        printf '%s\n' "${backbone_dir}/config.yaml" "$(best_model "${backbone_dir}")" \
            "${backbone_dir}/config.yaml"
    else
        "${python_words[@]}" -c '
import sys
from pathlib import Path
from espnet_hra.espnet.base import check_adaptable, open_base
from espnet_hra.data.requirements import requirements_from_config
from espnet_hra.errors import one_line
from espnet_hra.files.config import write_yaml

with one_line("backbone"):
    base = open_base(sys.argv[1], cache=sys.argv[2])
    if base.config_file is None:
        sys.exit(f"backbone: there is no config.yaml beside {base.model_file}")
    check_adaptable(base)
    # Its keys, with whole paths: what data must fit.
    config = base.model_config()
    rate = requirements_from_config(config).sample_rate
    try:
        write_yaml(Path(sys.argv[3]), config)
        Path(f"{sys.argv[3]}.fs").write_text(f"{rate}\n")
        print(base.config_file, base.model_file, sys.argv[3], sep="\n", flush=True)
    except OSError as error:  # a full disk, for one
        sys.stdout = None
        sys.exit(f"error: {error}")' \
            "${pretrained_model}" "${work}/pretrained" "${work}/backbone.yaml"
    fi >"${backbone_file}.part" || {
        if [[ ${pretrained_model} == whisper:* ]]; then
            echo "Without Whisper's weights, adapt the small Conformer that comes along:" \
                "--pretrained_model debian_voices" >&2
        fi
        return 1
    }
    mv "${backbone_file}.part" "${backbone_file}"
    sed -n 's/^/backbone: /; 2p' "${backbone_file}"
}

stage_9() {
    local config=${base_config}
    if "${whisper}"; then
        config=${work}/frozen.yaml
        "${prepare_python}" local/frozen_whisper.py --config "${base_config}" "${base_keys}" \
            --seconds "${frozen_seconds}" --out "${config}"
    fi
    decode "${frozen_decode}" "${config}" "${base_model}" false "${frozen_sets[@]}"
}

stage_10() {
    local set
    # Stage 4 has measured everything; there is nothing to collect.
    for set in train dev; do
        need "${dump}/${set}/speech_shape" 4
        echo "${set}:"
        awk 'NR == FNR { task[$1] = $2; next }
            { n[task[$1]]++; samples[task[$1]] += $2 }
            END {
                for (t in n)
                    printf "  %s: %d utterances, %.1f minutes\n",
                        t, n[t], samples[t] / 960000
            }' "${dump}/${set}/utt2task" "${dump}/${set}/speech_shape" | sort
    done
}

stage_11() {
    local options=() base=${base_model} listed=${task_list} effects slowest count train_shapes=
    if [ "${#label_names[@]}" -gt 0 ]; then
        listed=${dump}/raw/records
    fi
    if [ "${regime}" = new_task ]; then
        options+=(--encoder_conf adapter_conf.regime=new_task)
    fi
    if [ -n "${init_adapter}" ]; then
        options+=(--init_adapter "${init_adapter}")
    fi
    if "${multilingual}"; then
        options+=(--languages "$(cat "${dump}/languages.json")")
    fi
    if "${whisper}"; then
        options+=(--spelled_numbers "$("${prepare_python}" local/spelled_numbers.py \
            --text "${dump}/train/text" --utt2task "${dump}/train/utt2task")")
    fi
    if [ "${#speeds[@]}" -gt 0 ]; then
        # ESPnet's augmentation: each utterance at one of them, drawn anew each time.
        effects=$(printf ',[1.0,speed_perturb,{factor: %s}]' "${speeds[@]}")
        options+=(--preprocessor_conf "fs=${fs}" --preprocessor_conf data_aug_prob=1.0
            --preprocessor_conf "data_aug_effects=[${effects:1}]")
        if "${whisper}"; then
            slowest=$(printf '%s\n' "${speeds[@]}" | sort -n | head -n 1)
            train_shapes=${work}/logs/train_shapes
            awk -v slowest="${slowest}" '$2 <= 480000 * slowest' \
                "${dump}/train/speech_shape" >"${train_shapes}"
            count=$(($(wc -l <"${dump}/train/speech_shape") - $(wc -l <"${train_shapes}")))
            if [ "${count}" -gt 0 ]; then
                echo "train: left out, as Whisper hears 30 s and they take more at" \
                    "${slowest} of their speed (--speed_perturb_factors none): ${count}"
            fi
            if [ ! -s "${train_shapes}" ]; then
                fail "nothing is left to train on: give --speed_perturb_factors none"
            fi
        fi
    fi
    if [[ ${pretrained_model} == whisper:* ]]; then
        base=${pretrained_model} # by its name, which is the same on every machine
    fi
    own_folder "${asr_exp}" "${key}"
    train true train dev \
        --config "${asr_config}" \
        --pretrained_model "${base}" \
        --encoder_conf "tasks='${listed//\'/\'\'}'" \
        --seed "${seed}" \
        --output_dir "${asr_exp}" \
        "${options[@]}" \
        "${asr_words[@]}"
}

stage_12() {
    decode "${asr_decode}" "${asr_exp}/config.yaml" "${asr_model}" true "${eval_sets[@]}"
    # What error rates may hide: a controller that is dead or saturated, no effect.
    announce "${python_words[@]}" -m espnet_hra.cli diagnose "${asr_exp}" "${dump}/dev" \
        --limit 2 --faults "${asr_decode}/faults.tsv" || {
        rm -f "${asr_decode}/faults.tsv"
        echo "The adapter could not be looked at; the results stand."
    }
}

stage_13() {
    local set note= of aside file why= i
    local options=(--out_dir "${work}" --title "${name}" --times "${times}"
        --command "${RECIPE_COMMAND:-./run.sh}")
    local -a frozen=() adapted=()
    of=$(digest "${base_digest}" "${clean_text}")
    if [ -e "${work}/results.tsv" ] && ! grep -Fqsx "${of}" "${done_dir}/results"; then
        why="of another backbone"
    fi
    find_changed 13 "${tag}"
    for ((i = 0; i < ${#changed[@]}; i++)); do
        if [[ ${changed[i]} == *.tsv ]]; then
            # Rows of others may be lost: they are scored again when they are asked for.
            rm -f "${done_dir}/stage13"
            if [ "${changed_how[i]}" != changed ]; then
                why="not whole, ${changed[i]##*/} was ${changed_how[i]}"
            fi
        fi
    done
    if [ -n "${why}" ]; then
        aside=$(name_aside "${work}/results")
        echo "The results in ${work} are ${why}: moved to ${aside}"
        mkdir "${aside}"
        for file in "${work}"/*.{tsv,md,png,svg}; do
            if [ -f "${file}" ] && [ "${file}" != "${times}" ]; then
                mv "${file}" "${aside}"
            fi
        done
        rm -f "${done_dir}/stage13"
    fi
    put "${done_dir}/results" "${of}"
    if [ "${corpus}" = mini_an4 ]; then
        note="This corpus has seven utterances: it shows that the machinery works, and \
is no result. The dev set is the training set."
    fi
    if [ "${clean_text}" = auto ]; then
        note+=${note:+ }$(cat "${dump}/note.txt")
    fi
    if [ -s "${dump}/left_out.txt" ]; then
        note+=${note:+ }$(paste -sd ' ' "${dump}/left_out.txt")
    fi
    if [ -n "${note}" ]; then
        options+=(--note "${note}")
    fi
    if [ "${#label_names[@]}" -gt 0 ]; then
        options+=(--tasks "${dump}/raw/records")
    fi
    for set in "${eval_sets[@]}"; do
        options+=(--utt2task "${dump}/${set}/utt2task")
        adapted+=(--ref "${set}=${dump}/${set}/text")
        adapted+=(--hyp "${set}=${asr_decode}/${set}/text")
    done
    for set in "${frozen_sets[@]}"; do
        frozen+=(--ref "${set}=${dump}/${set}/text")
        frozen+=(--hyp "${set}=${frozen_decode}/${set}/text")
    done
    if [ "${method}" = none ]; then
        announce "${python_words[@]}" -m espnet_hra.cli score --method none \
            "${options[@]}" "${frozen[@]}"
        return
    fi
    if [ -e "${frozen_decode}/test/text" ]; then
        announce "${python_words[@]}" -m espnet_hra.cli score --method none \
            --report false "${options[@]}" "${frozen[@]}" \
            >"${log_dir}/scoring_frozen.txt"
        adapted+=(--before "test=${frozen_decode}/test/text")
    else
        echo "no results of the frozen backbone (stage 9) to compare with"
    fi
    if [ -e "${asr_decode}/faults.tsv" ]; then
        adapted+=(--faults "dev=${asr_decode}/faults.tsv")
    fi
    # Status 3: a task has become worse. The tables are whole; the end of the run says it.
    announce "${python_words[@]}" -m espnet_hra.cli score --method "${label}" \
        --seed "${seed}" --params "${asr_exp}/params.json" \
        "${options[@]}" "${adapted[@]}" || [ $? -eq 3 ]
}

stage_14() {
    announce "${python_words[@]}" -m espnet_hra.cli pack --model "${asr_exp}" \
        --tasks all --name "${name}_${label}" --out "${asr_exp}/pack.zip"
}

stage_15() {
    announce "${python_words[@]}" -m espnet_hra.cli pack --out "${asr_exp}/pack.zip" \
        --upload "${hf_repo}"
}

# from_there PATH: as the caller, in the folder of the call, can write it.
from_there() {
    local path=$1
    if [[ ${path} != /* ]]; then
        path=${PWD}/${path}
    fi
    printf '%q' "${path#"${start_dir}/"}"
}

# what_next: commands that go on from here.
what_next() {
    local again program audio task config
    again=$(from_there "${PWD}/run.sh")
    if [ "${again}" = run.sh ]; then
        again=./run.sh
    fi
    if [ "${python}" != python3 ]; then
        again+=" --python $(printf '%q' "${python}")"
    fi
    program="$(printf '%q ' "${python_words[@]}")-m espnet_hra.cli"
    audio=$(command -v -- "${python}" || true)
    if [ -x "${audio%/*}/espnet-hra" ]; then
        program=$(from_there "${audio%/*}/espnet-hra")
    fi
    read -r _ audio <"${dump}/test/wav.scp"
    read -r _ task <"${dump}/test/utt2task"
    echo
    echo "What to try next:"
    if [ "${method}" != none ]; then
        echo "  Write down a recording, of any format (tasks:" \
            "$(head -n 5 "${task_list}" | paste -sd ' ')$(
                [ "$(wc -l <"${task_list}")" -le 5 ] || echo ' ...'))"
        echo "    ${program} transcribe $(from_there "${audio}") \\"
        echo "        --model $(from_there "${asr_exp}") --task ${task}"
    fi
    echo "  Adapt to voices of your own, DIR/{train,dev,test}/{wav.scp,text,utt2spk}"
    echo "    ${again} --corpus DIR"
    if [ "${corpus}" != "${name}" ]; then
        again+=" --corpus $(from_there "${corpus}")"
    elif [ "${corpus}" != debian_voices ]; then
        again+=" --corpus ${corpus}"
    fi
    if [ -n "${expdir}" ]; then
        again+=" --expdir $(from_there "${expdir}")"
    fi
    echo "  Start from another recogniser: whisper:small, an ESPnet pack, folder or tag"
    echo "    ${again} --pretrained_model MODEL"
    if "${own_backbone}"; then
        if [ "${corpus}" != mini_an4 ]; then
            again+=" --train_backbone true"
        fi
    elif [ "${pretrained_model}" = "${shipped}" ]; then
        again+=" --pretrained_model debian_voices"
    elif [[ ${pretrained_model} == whisper:* ]]; then
        if [ "${pretrained_model}" != whisper:base ]; then
            again+=" --pretrained_model $(printf '%q' "${pretrained_model}")"
        fi
    else
        again+=" --pretrained_model $(from_there "${pretrained_model}")"
    fi
    if [ "${method}" = none ]; then
        echo "  Adapt this one"
        echo "    ${again} --method hra"
        return
    fi
    echo "  Train longer; compare with another adapter"
    if [ "${configs}" = conf ] && grep -qs "^${method}_long:" conf/variants.yaml; then
        echo "    ${again} --variant ${method}_long"
    elif [ "${configs}" = conf/whisper ]; then
        echo "    ${again} --variant ${method}_x3"
    else
        echo "    ${again} --asr_args '--max_epoch 50'"
    fi
    echo "    ${again} --method $([ "${method}" = residual ] && echo hra || echo residual)"
}

# ------------------------------------------------------------------------- run them

log "Corpus ${name}, method ${label}, in ${work}"

if wanted 1; then
    key=(1 "${corpus}" "${backbone_part}" "${allow_changed}")
    if "${backbone_part}" && [ -d "${SPEECHOCEAN762:-}" ]; then
        key+=("${SPEECHOCEAN762}")
    fi
    if [ "${corpus}" != "${name}" ]; then
        mapfile -t lists < <(find -L "${corpus}" -maxdepth 2 \( -name wav.scp -o \
            -name text -o -name utt2spk -o -name utt2task -o -name spk2utt -o \
            -name segments \) | sort)
        key+=("${lists[@]}" "${lists[@]/#/@}")
        if "${run_pipes}"; then
            key+=(pipes)
        fi
    elif [ -n "${corpus_source}" ]; then
        key+=("${corpus_source}" @conf/corpora.yaml "$(find -L "${corpus_source}" \
            -type f -printf '%P %s %T@\n' | sort | sha256sum)")
    fi
    mapfile -t outputs < <(files_of "${data}" '*' "${all_sets[@]}")
    mapfile -t lists < <(files_of "${data}" wav.scp "${all_sets[@]}")
    key=$(digest "${key[@]}")
    run_stage 1 "Data" - "${key}" all stage_1 "${outputs[@]}" \
        --within "${data}" --lists "${lists[@]}"
fi

if wanted 2; then
    log "Stage 2: speed perturbation is not used"
fi

# A backbone that is given brings the rate, the tokens and the subsampling that data must
# fit.
if ! "${train_backbone}" && [ "${stop_stage}" -ge 3 ]; then
    if [ -d "${pretrained_model}" ]; then
        key=$(find -L "${pretrained_model}" -type f -printf '%P %s %T@\n' | sort)
        key=$(digest 8 "${pretrained_model}" "${key}")
    elif [ -f "${pretrained_model}" ]; then
        key=$(digest 8 "${pretrained_model}" "@${pretrained_model}")
    else
        key=$(digest 8 "${pretrained_model}")
    fi
    if "${own_backbone}"; then
        keep_training 7 - "${backbone_dir}"
    fi
    if has_mark 8 "${subset:--}" "${key}"; then
        find_changed 8 "${subset:--}"
        for ((i = 0; i < ${#changed[@]}; i++)); do
            # What is elsewhere is not ours to remove.
            if [[ ${changed[i]} != "${work}/"* && ${changed_how[i]} != gone ]]; then
                fail "${changed[i]} (${changed_how[i]}): not the backbone that stage 8" \
                    "chose: put it back from a copy, or remove it to get it again"
            fi
        done
    fi
    run_stage 8 "Choice of the backbone" "${subset:--}" "${key}" all stage_8 \
        "${backbone_file}" --named "${backbone_file}"
    load_backbone
    validation_config=${base_keys}
    : "${fs:=$(cat "${base_keys}.fs")}"
else
    validation_config=${backbone_config}
fi
: "${fs:=16000}"

if wanted 3; then
    for set in "${all_sets[@]}"; do
        need "${data}/${set}/wav.scp" 1
    done
    mapfile -t key < <(contents_of "${data}" "${all_sets[@]}")
    for set in "${all_sets[@]}"; do
        key+=("$(audio_digest "${data}/${set}/wav.scp")")
    done
    mapfile -t outputs < <(files_of "${dump}/raw" '*' "${all_sets[@]}")
    mapfile -t lists < <(files_of "${dump}/raw" wav.scp "${all_sets[@]}")
    if [ "${fs}" != 16000 ]; then
        key+=("${fs}")
    fi
    if [ "${#label_names[@]}" -gt 0 ]; then
        mapfile -t lists < <(for item in "${label_names[@]}"; do
            files_of "@${data}" "utt2${item}" "${task_sets[@]}"
            files_of "@${corpus}" "utt2${item}" . "${task_sets[@]}"
        done)
        key+=(classify "${label_names[@]}" "${lists[@]}")
    fi
    if [ -n "${train_utterances}" ]; then
        key+=(train "${train_utterances}")
    fi
    key=$(digest 3 "${key[@]}" "${tasks}" "${all_sets[*]}")
    run_stage 3 "Format wav.scp" "${subset:--}" "${key}" all stage_3 "${outputs[@]}" \
        --within "${audio}" --lists "${lists[@]}"
fi

if wanted 4; then
    for set in "${all_sets[@]}"; do
        need "${dump}/raw/${set}/wav.scp" 3
    done
    mapfile -t key < <(contents_of "${dump}/raw" "${all_sets[@]}")
    mapfile -t outputs < <(files_of "${dump}" '*' "${all_sets[@]}")
    key=$(digest 4 "${key[@]}" "@${validation_config}" "${skip_bad}" "${clean_text}" \
        "${all_sets[*]}")
    run_stage 4 "Validation" "${subset:--}" "${key}" all stage_4 "${task_list}" \
        "${dump}/left_out.txt" "${dump}/eval"/{ids,wav.scp,text,utt2task} "${outputs[@]}"
fi

if wanted 5; then
    if "${train_backbone}"; then
        need "${dump}/${backbone_train}/text" 4
        mapfile -t key < <(files_of "@${dump}" text "${token_sets[@]}")
        key=$(digest 5 "${key[@]}")
        run_stage 5 "Token list" - "${key}" all stage_5 "${token_list}"
    else
        log "Stage 5: the tokens are the backbone's"
    fi
fi

needs_stats=false
if "${train_backbone}" && grep -Eq '^normalize: *"?global_mvn' "${backbone_config}"; then
    needs_stats=true
fi

if "${train_backbone}" && { wanted 6 || wanted 7; }; then
    need "${token_list}" 5
    need "${dump}/${backbone_train}/speech_shape" 4
    mapfile -t key < <(contents_of "${dump}" "${backbone_train}" "${backbone_dev}")
    key=$(digest "${key[@]}" "@${token_list}" "@${backbone_config}" \
        "@${backbone_steps}" "${autocast}")
fi
if wanted 6; then
    if "${needs_stats}"; then
        run_stage 6 "Statistics of the backbone" - "${key}" progress stage_6 \
            "${work}/backbone_stats/train/feats_stats.npz"
    else
        log "Stage 6: no statistics needed (lengths are known from stage 4)"
    fi
fi
if wanted 7; then
    if "${train_backbone}"; then
        updates_per_epoch=$(number_of num_iters_per_epoch "${backbone_config}")
        if [ -f "${backbone_steps}" ]; then
            updates_per_epoch=
        fi
        keep_training 7 - "${backbone_dir}" "${key}"
        run_stage 7 "Training of the backbone" - "${key}" progress stage_7 \
            "${backbone_dir}"/{config.yaml,'valid.*.pth',latest.pth}
    else
        log "Stage 7: the backbone is given"
    fi
fi
if wanted 8 && "${train_backbone}"; then
    need "${backbone_dir}/config.yaml" 7
    keep_training 7 - "${backbone_dir}"
    model=$(best_model "${backbone_dir}")
    key=$(digest 8 "@${backbone_dir}/config.yaml" "${model}" "@${model}")
    run_stage 8 "Choice of the backbone" - "${key}" all stage_8 "${backbone_file}"
fi

if wanted 9; then
    load_backbone
    need "${dump}/eval/wav.scp" 4
    told=()
    if "${multilingual}"; then
        languages
        told=("@${dump}/languages.json")
    fi
    mapfile -t outputs < <(files_of "${frozen_decode}" '*' "${frozen_sets[@]}")
    key=$(digest 9 "${base_digest}" "@${dump}/eval/wav.scp" \
        "@${dump}/dev/audio_stamp" "@${dump}/test/audio_stamp" \
        "@${inference_config}" "${inference_args}" "${frozen_seconds}" "${told[@]}")
    run_stage 9 "Decoding with the frozen backbone" \
        "${decode_tag}${subset:+ ${subset}}" "${key}" \
        progress stage_9 "${outputs[@]}"
fi

if wanted 10; then
    mapfile -t key < <(contents_of "${dump}" train dev)
    key=$(digest 10 "${key[@]}")
    run_stage 10 "Statistics" "${subset:--}" "${key}" all stage_10 "${task_list}"
fi

if wanted 11; then
    load_backbone
    need "${task_list}" 4
    told=()
    if "${multilingual}"; then
        languages
        told=("@${dump}/languages.json")
    fi
    mapfile -t key < <(contents_of "${dump}" train dev)
    key=$(digest 11 "${key[@]}" "${base_digest}" "@${asr_config}" "${asr_args}" \
        "${method}" "${regime}" "${init_adapter:+@${init_adapter}}" "${autocast}" \
        "${seed}" "${told[@]}" "${speeds[@]}")
    updates_per_epoch=$(number_of num_iters_per_epoch "${asr_config}" "${asr_words[@]}")
    keep_training 11 "${asr_tag}" "${asr_exp}" "${key}"
    run_stage 11 "Adaptation" "${asr_tag}" "${key}" progress stage_11 \
        "${asr_exp}"/{config.yaml,params.json,'valid.*.pth',latest.pth}
fi

if wanted 12; then
    load_backbone
    need "${asr_exp}/config.yaml" 11
    keep_training 11 "${asr_tag}" "${asr_exp}"
    if [ -n "${inference_model}" ]; then
        asr_model=${asr_exp}/${inference_model}
        need "${asr_model}" 11
    else
        asr_model=$(best_model "${asr_exp}")
    fi
    mapfile -t outputs < <(files_of "${asr_decode}" '*' "${eval_sets[@]}")
    key=$(digest 12 "@${asr_exp}/config.yaml" "@${asr_model}" "@${dump}/eval/wav.scp" \
        "@${dump}/eval/utt2task" "@${dump}/dev/audio_stamp" "@${dump}/test/audio_stamp" \
        "@${inference_config}" "${inference_args}")
    run_stage 12 "Decoding" "${asr_tag} ${decode_tag}" "${key}" progress stage_12 \
        "${asr_decode}/*.tsv" "${outputs[@]}"
fi

if [ "${method}" = none ]; then
    log "Stages 10 to 12: nothing is adapted"
fi

if wanted 13; then
    load_backbone
    mapfile -t key < <(contents_of "${dump}" "${eval_sets[@]}" &&
        files_of "@${frozen_decode}" text "${frozen_sets[@]}")
    if [ "${method}" = none ]; then
        need "${frozen_decode}/test/text" 9
        tag=none
    else
        need "${asr_decode}/${eval_sets[0]}/text" 12
        mapfile -t -O "${#key[@]}" key < <(files_of "@${asr_decode}" text \
            "${eval_sets[@]}")
        key+=("@${asr_exp}/params.json" "${seed}")
        if [ -e "${asr_decode}/faults.tsv" ]; then
            key+=("@${asr_decode}/faults.tsv")
        fi
        tag=${asr_tag}
    fi
    key=$(digest 13 "${key[@]}" "${label}" "${base_digest}" "${clean_text}")
    run_stage 13 "Scoring" "${tag} ${decode_tag}${subset:+ ${subset}}" "${key}" all \
        stage_13 "${work}"/{results.tsv,utterances.tsv,RESULTS.md,results.png}
fi

if wanted 14; then
    need "${asr_exp}/config.yaml" 11
    keep_training 11 "${asr_tag}" "${asr_exp}"
    key=$(digest 14 "@${asr_exp}/config.yaml" "@$(best_model "${asr_exp}")")
    run_stage 14 "Packing" "${asr_tag}" "${key}" all stage_14 "${asr_exp}/pack.zip"
fi

if wanted 15; then
    need "${asr_exp}/pack.zip" 14
    key=$(digest 15 "@${asr_exp}/pack.zip" "${hf_repo}")
    run_stage 15 "Upload to ${hf_repo}" "${asr_tag}" "${key}" all stage_15
fi

print_times
if wanted 13; then
    echo
    echo "Results: $(from_there "${work}/RESULTS.md")"
    echo "Picture: $(from_there "${work}/results.png")"
    what_next
    sick=$(grep -F -- " (${label}, seed ${seed}, " "${work}/RESULTS.md" || true)
    if [ -n "${sick}" ]; then
        printf '\nTasks that need a look:\n%s\n' "${sick}" >&2
        exit 3
    fi
fi
