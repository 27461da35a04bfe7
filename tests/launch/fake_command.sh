#!/usr/bin/env bash
# Stands in for gcloud, kubectl, sbatch, ...: records its call and plays the scripted answer.
# It is copied under each of these names into a folder that is first on PATH. $FAKE_WORLD holds
#   calls             the calls: words that end in NUL, calls that end in RS
#   rules/NN/words    calls that contain this get
#   rules/NN/MM       these answers in turn, the last one from then on: scripts

set -u
name=${0##*/}

if [[ $name == sbatch ]]; then
  printf '%s\0' environment "$ACED_PYTHON" "$ACED_MAX_RESTARTS" "${JAX_LOCAL_DEVICE_IDS-}" $'\x1e' \
    >> "$FAKE_WORLD/calls"
fi
printf '%s\0' "$name" "$@" $'\x1e' >> "$FAKE_WORLD/calls"

for rule in "$FAKE_WORLD"/rules/*; do
  if [[ -d $rule && "$name $*" == *"$(< "$rule/words")"* ]]; then
    printf x >> "$rule/played"
    played=$(< "$rule/played")
    answers=("$rule"/[0-9]*)
    answer=${answers[-1]}
    if ((${#played} <= ${#answers[@]})); then answer=${answers[${#played} - 1]}; fi
    exec bash "$answer"
  fi
done

# As gcloud does, to workers that have a home: copies, or the command; the first code that is not 0.
homes=("$FAKE_WORLD"/home_*)
if [[ ! -d ${homes[0]} ]]; then exit 0; fi
case "$name $*" in
  "gcloud compute tpus tpu-vm scp "*)
    for home in "${homes[@]}"; do cp "$5" "$home/aced.tgz"; done
    ;;
  "gcloud compute tpus tpu-vm ssh "*)
    outcome=0
    for word in "$@"; do
      case $word in
        --worker=all) ;;
        --worker=*) homes=("${homes[${word#--worker=}]}") ;;
        --command=*) command=${word#--command=} ;;
      esac
    done
    for home in "${homes[@]}"; do
      code=0
      (cd "$home" && HOME=$home bash -c "$command") || code=$?
      if ((outcome == 0)); then outcome=$code; fi
    done
    exit "$outcome"
    ;;
esac
