#!/usr/bin/env bash
# A run on TPUs of a GKE cluster, as a JobSet (launch/jobset.yaml): one pod per host of a slice.
#
#   launch/gke.sh [run] --name=acid --image=REGION-docker.pkg.dev/PROJECT/REPO/aced:TAG \
#       --accelerator=tpu-v6e-slice --topology=4x4 --config=configs/acid_b16.py \
#       --workdir=gs://BUCKET/acid_b16
#
# Commands:
#   run      submit and wait for the end                submit   only that
#   status   of the JobSet and its pods                 logs     of host 0, following
#   delete   the JobSet, running or not
#
# The image holds the repository with `pip install '.[tpu,gcs]'` done, in --directory. The cluster
# has a node pool of that accelerator and topology, and the JobSet controller. JobSet restarts the
# run by itself after code 42, a signal or a lost node; any other code ends it.
# Exit codes: 0 done; 1 failed; else kubectl's.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/cli.sh"

common_flags
flag name "" "name of the JobSet: small letters, digits and -"
flag namespace default "namespace"
flag context "" "context of kubectl; empty: the current one"
flag image "" "container image with the project installed"
flag directory /aced "where the image has the repository"
flag accelerator "" "tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice, tpu7x"
flag topology "" "such as 4x4, or 4x4x4 for v4, v5p and tpu7x"
flag chips-per-host 4 "TPU chips of a host of the node pool"
flag service-account default "service account of the pods; it needs access to the workdir"
flag spot false "on nodes that can be taken away at any time"
flag max-restarts 50 "how often JobSet restarts the run"
flag grace 120 "seconds between SIGTERM and SIGKILL, to save in; spot nodes give at most 25"
flag start-timeout 3600 "seconds to wait for all pods to run"
flag wait-timeout 2592000 "seconds to wait for the end"
flag delete-after false "delete the JobSet when it has ended, whether well or not"
flag poll 30 "seconds between looks"
parse "run submit status logs delete" "$@"
need name
need_count chips-per-host max-restarts grace start-timeout wait-timeout
# A pod is called NAME-slice-0-HOST-SUFFIX, and names have 63 characters.
[[ ${FLAG[name]} =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  fail 2 "--name=${FLAG[name]} is not a name for Kubernetes" \
    "at most 40 small letters, digits and -, a letter first, no - last"
need_program kubectl "install it: gcloud components install kubectl"
scratch

HOSTS=""
NAME=${FLAG[name]}
KUBE=(kubectl)
if [[ -n ${FLAG[context]} ]]; then KUBE+=("--context=${FLAG[context]}"); fi
KUBE+=("--namespace=${FLAG[namespace]}")
MANIFEST=$ROOT/build/launch/$NAME.yaml
DELETE=("${KUBE[@]}" delete jobset "$NAME" --wait=true --timeout=600s)
HOST_0=jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0

count_hosts() {
  local dims chips=1 side
  [[ ${FLAG[topology]} =~ ^[0-9]+(x[0-9]+){1,2}$ ]] ||
    fail 2 "--topology=${FLAG[topology]} is not a topology" "such as 4x4 or 4x4x4"
  IFS=x read -ra dims <<< "${FLAG[topology]}"
  for side in "${dims[@]}"; do chips=$((chips * side)); done
  if ((FLAG[chips-per-host] == 0 || chips % FLAG[chips-per-host] != 0)); then
    fail 2 "--topology=${FLAG[topology]} has $chips chips, no multiple of --chips-per-host=${FLAG[chips-per-host]}" \
      "see the machine type of the node pool: ct6e-standard-4t has 4 chips a host"
  fi
  HOSTS=$((chips / FLAG[chips-per-host]))
}

# yaml_string TEXT: TEXT as a string of JSON, which YAML accepts. Kubernetes expands $(NAME) in
# commands, so $ is written as $$.
yaml_string() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"' "$text"
}

yaml_words() {
  local word line=""
  for word in "$@"; do line+=", $(yaml_string "${word//\$/\$\$}")"; done
  printf '[%s]' "${line#, }"
}

# fill KEY VALUE: ${KEY} in $manifest.
fill() {
  local key="\${$1}"
  manifest=${manifest//"$key"/"$2"}
}

# write_manifest: launch/jobset.yaml with everything filled in, to $MANIFEST.
write_manifest() {
  local manifest codes
  manifest=$(< "$ROOT/launch/jobset.yaml")
  if [[ ${FLAG[spot]} == false ]]; then manifest=$(grep -v 'gke-spot: "true"' <<< "$manifest"); fi
  codes=$(
    IFS=,
    echo "[$PREEMPTED,$(seq -s, 128 255)]"
  )
  main_command python --distributed
  fill NAME "$NAME"
  fill MAX_RESTARTS "${FLAG[max-restarts]}"
  fill HOSTS "$HOSTS"
  fill RESTART_CODES "$codes"
  fill GRACE "${FLAG[grace]}"
  fill SERVICE_ACCOUNT "$(yaml_string "${FLAG[service-account]}")"
  fill ACCELERATOR "$(yaml_string "${FLAG[accelerator]}")"
  fill TOPOLOGY "$(yaml_string "${FLAG[topology]}")"
  fill IMAGE "$(yaml_string "${FLAG[image]}")"
  fill DIRECTORY "$(yaml_string "${FLAG[directory]}")"
  fill CHIPS "${FLAG[chips-per-host]}"
  fill WORDS "$(yaml_words "${WORDS[@]}")"
  mkdir -p "$(dirname "$MANIFEST")"
  printf '%s\n' "$manifest" > "$MANIFEST"
}

# look DRY_ANSWER: STATE of the JobSet: NONE, RUNNING, Completed, Failed or UNKNOWN; and RESTARTS of it.
look() {
  local answer
  answer=$(ask "$1" "${KUBE[@]}" get jobset "$NAME" --ignore-not-found \
    "--output=jsonpath=RUNNING {.status.terminalState} {.status.restarts}") || {
    blind "$NAME" \
      "check kubectl's context (gcloud container clusters get-credentials) and the JobSet controller"
    STATE=UNKNOWN RESTARTS=""
    return
  }
  seen
  read -r STATE RESTARTS <<< "${answer:-NONE}" || true
  if [[ ${RESTARTS%% *} =~ ^(Completed|Failed)$ ]]; then
    STATE=${RESTARTS%% *} RESTARTS=${RESTARTS#* }
  fi
}

running_pods() {
  local names
  names=$(ask "$(seq "$HOSTS")" "${KUBE[@]}" get pods \
    "--selector=jobset.sigs.k8s.io/jobset-name=$NAME" --field-selector=status.phase=Running \
    --output=name) || names=""
  grep -c . <<< "$names" || true
}

submit() {
  look ""
  if [[ $STATE != NONE ]]; then
    fail 1 "a JobSet $NAME is there already, $STATE" "give another --name, or: $(quoted "${DELETE[@]}")"
  fi
  paid "$HOSTS hosts with ${FLAG[chips-per-host]} chips, while pods run and the node pool is kept up" \
    "${KUBE[@]}" create "--filename=$MANIFEST" || {
    local code=$?
    say "Nothing was submitted: it costs nothing."
    fail "$code" "kubectl could not create the JobSet (its message is above)" \
      "look at $MANIFEST; 'no matches for kind' means that the JobSet controller is missing"
  }
}

# wait_running: all pods run, or the reason why not.
wait_running() {
  local pods seen="" deadline=$((SECONDS + FLAG[start-timeout]))
  while true; do
    pods=$(running_pods)
    if [[ $pods != "$seen" ]]; then say "$(date +%H:%M:%S) $pods of $HOSTS pods run."; fi
    seen=$pods
    if ((pods >= HOSTS)); then return; fi
    look "RUNNING"
    if [[ $STATE != RUNNING && $STATE != UNKNOWN ]]; then return; fi
    if ((SECONDS >= deadline)); then
      run "${KUBE[@]}" get events --sort-by=.lastTimestamp || true
      fail 1 "after ${FLAG[start-timeout]} s only $pods of $HOSTS pods run (events above)" \
        "wait longer with --start-timeout, or: $(quoted "${DELETE[@]}")"
    fi
    doze "${FLAG[poll]}"
  done
}

# wait_end: until the JobSet is Completed or Failed.
wait_end() {
  local seen="" deadline=$((SECONDS + FLAG[wait-timeout]))
  while true; do
    look "RUNNING Completed 0"
    if [[ "$STATE $RESTARTS" != "$seen" ]]; then
      say "$(date +%H:%M:%S) $NAME is $STATE, restarted ${RESTARTS:-0} times."
    fi
    seen="$STATE $RESTARTS"
    case $STATE in
      Completed) return 0 ;;
      Failed) return 1 ;;
      NONE) fail 1 "$NAME was deleted by someone else" "the same command goes on from ${FLAG[workdir]}" ;;
    esac
    if ((SECONDS >= deadline)); then
      fail 1 "$NAME still runs after ${FLAG[wait-timeout]} s" "$(quoted "${DELETE[@]}")"
    fi
    doze "${FLAG[poll]}"
  done
}

next_commands() {
  local here=("--name=$NAME" "--namespace=${FLAG[namespace]}")
  if [[ -n ${FLAG[context]} ]]; then here+=("--context=${FLAG[context]}"); fi
  say "  logs    $(quoted "$SCRIPT" logs "${here[@]}")"
  say "  status  $(quoted "$SCRIPT" status "${here[@]}")"
  say "  delete  $(quoted "${DELETE[@]}")"
}

# shellcheck disable=SC2329  # called by trap
interrupted() {
  say ""
  say "Interrupted. $NAME, if submitted, goes on and costs money until it ends or is deleted."
  next_commands
  exit 130
}
trap interrupted INT TERM

if [[ $COMMAND == run || $COMMAND == submit ]]; then
  need config workdir image accelerator topology
  count_hosts
  write_manifest
fi
table name "$NAME" namespace "${FLAG[namespace]}" image "${FLAG[image]}" \
  accelerator "${FLAG[accelerator]:+${FLAG[accelerator]} ${FLAG[topology]}, $HOSTS hosts}" \
  config "${FLAG[config]}" workdir "${FLAG[workdir]}" arguments "$(quoted "${ARGS[@]}")" \
  manifest "${HOSTS:+$MANIFEST}" costs "the nodes, while pods run and the node pool is kept up"
code=0
case $COMMAND in
  run)
    submit
    next_commands
    wait_running
    wait_end || code=1
    if ((code != 0)); then
      run "${KUBE[@]}" logs "--selector=$HOST_0" --tail=30 || true
      say "error: $NAME has failed; the last lines of host 0 are above."
    fi
    if [[ ${FLAG[delete-after]} == true ]]; then
      run "${DELETE[@]}"
    else
      say "Its pods have ended. Delete what is left with: $(quoted "${DELETE[@]}")"
    fi
    ;;
  submit)
    submit
    next_commands
    ;;
  status)
    run "${KUBE[@]}" get jobset "$NAME"
    run "${KUBE[@]}" get pods "--selector=jobset.sigs.k8s.io/jobset-name=$NAME" --output=wide
    ;;
  logs) run "${KUBE[@]}" logs "--selector=$HOST_0" --tail=-1 --follow ;;
  delete) run "${DELETE[@]}" --ignore-not-found ;;
esac
exit "$code"
