#!/usr/bin/env bash
# A run on TPUs that may be taken away: creates a queued resource, waits for it, runs, and when it
# is preempted creates it again and goes on from the workdir.
#
#   launch/queued_resource.sh [run] --name=acid --zone=us-east5-b --accelerator-type=v6e-16 \
#       --runtime-version=v2-alpha-tpuv6e --spot --config=configs/acid_b16.py \
#       --workdir=gs://BUCKET/acid_b16 --delete-after
#
# Commands: run; status; delete. The node is called NAME too, so that launch/tpu_vm.sh finds it:
# launch/tpu_vm.sh follow --name=acid --zone=us-east5-b shows the log from anywhere.
#
# An existing resource of that name is adopted if it is of the same type, and replaced if it is dead.
# To stop for good, press Ctrl-C here first; the script then lists what still costs money.
# Exit codes: 0 done; 42 preempted more than --max-restarts times; else the run's or gcloud's.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/cli.sh"

common_flags
flag name "" "name of the queued resource and of its node"
flag zone "" "zone, such as us-east5-b"
flag project "" "project; empty: that of gcloud config"
flag accelerator-type "" "such as v5litepod-256, v6e-16, v5p-128"
flag runtime-version "" "such as v2-alpha-tpuv5-lite, v2-alpha-tpuv6e, v2-alpha-tpuv5"
flag spot false "cheaper, and can be taken away at any time"
flag reserved false "from a reservation"
flag network "" "network of the node"
flag subnetwork "" "subnetwork of the node"
flag service-account "" "service account of the node; it needs access to the workdir"
flag internal-ip false "no external addresses, connect by internal ones"
flag extras tpu,gcs "extras of setup.py to install"
flag wait-timeout 86400 "seconds to wait for capacity; then the request is deleted"
flag delete-timeout 900 "seconds to wait for a resource to be gone"
flag settle 120 "seconds in which a failure may turn out to be a preemption"
flag max-restarts 50 "how often it is created again"
flag backoff 30 "seconds before it is created again; doubles while it brings nothing, up to 900"
flag delete-after false "delete the resource when the run has ended, whether well or not"
flag attempts 5 "as in launch/tpu_vm.sh"
flag poll 30 "seconds between looks"
parse "run status delete" "$@"
need name zone
need_count wait-timeout delete-timeout settle max-restarts backoff attempts
if [[ $COMMAND == run ]]; then need config workdir accelerator-type runtime-version; fi
if [[ ${FLAG[spot]} == true && ${FLAG[reserved]} == true ]]; then
  fail 2 "--spot and --reserved exclude each other" "give one of them"
fi
if [[ $COMMAND == run && ${FLAG[workdir]} != gs://* ]]; then
  say "warning: --workdir=${FLAG[workdir]} is lost with the node unless it is a shared mount."
fi
need_program gcloud "install the Google Cloud SDK: https://cloud.google.com/sdk/docs/install"
scratch

NAME=${FLAG[name]}
QUEUED=(gcloud compute tpus queued-resources)
WHERE=("--zone=${FLAG[zone]}")
if [[ -n ${FLAG[project]} ]]; then WHERE+=("--project=${FLAG[project]}"); fi
QUOTA_HINT="ask for quota (console: IAM, Quotas), or give another --zone, --spot or --reserved"
DELETE=("${QUEUED[@]}" delete "$NAME" "${WHERE[@]}" --force --quiet)

# look DRY_ANSWER: STATE of the resource (NONE: there is no such; UNKNOWN) and its TYPE.
look() {
  local answer
  answer=$(ask "$1" "${QUEUED[@]}" describe "$NAME" "${WHERE[@]}" \
    "--format=value(state.state,tpu.nodeSpec[0].node.acceleratorType)") || {
    if grep -qi 'not.found' "$ASKED"; then
      seen
      STATE=NONE TYPE=""
      return
    fi
    blind "$NAME" "check --zone, --project and gcloud auth login"
    STATE=UNKNOWN TYPE=""
    return
  }
  seen
  read -r STATE TYPE <<< "$answer" || true
}

delete() {
  local deadline=$((SECONDS + FLAG[delete-timeout]))
  while true; do
    run "${DELETE[@]}" || say "gcloud could not delete $NAME just now."
    look NONE
    if [[ $STATE == NONE ]]; then break; fi
    if ((SECONDS >= deadline)); then
      fail 1 "$NAME is still $STATE after ${FLAG[delete-timeout]} s and may cost money" \
        "$(quoted "${DELETE[@]}")"
    fi
    doze "${FLAG[poll]}"
  done
  say "$NAME is deleted: it costs nothing any more."
}

# A create that fails leaves nothing behind. The first one ends the script; of a run that was
# preempted, whose flags have worked, it returns 1.
create() {
  local words=("${QUEUED[@]}" create "$NAME" "${WHERE[@]}" "--node-id=$NAME"
    "--accelerator-type=${FLAG[accelerator-type]}" "--runtime-version=${FLAG[runtime-version]}")
  local name code=0 output=$SCRATCH/create
  for name in network subnetwork service-account; do
    if [[ -n ${FLAG[$name]} ]]; then words+=("--$name=${FLAG[$name]}"); fi
  done
  if [[ ${FLAG[spot]} == true ]]; then words+=(--spot); fi
  if [[ ${FLAG[reserved]} == true ]]; then words+=(--reserved); fi
  if [[ ${FLAG[internal-ip]} == true ]]; then words+=(--internal-ips); fi
  paid "${FLAG[accelerator-type]}, from ACTIVE until it is deleted" "${words[@]}" 2>&1 |
    tee "$output" >&2 || code=$?
  if ((code == 0)); then return; fi
  look NONE
  if [[ $STATE != NONE ]]; then
    say "The failed create left $NAME in state $STATE: it is deleted."
    delete
  else
    say "Nothing was created: it costs nothing."
  fi
  if ((restarts > 0)); then
    say "gcloud could not create $NAME again just now (its message is above)."
    return 1
  fi
  if grep -qiE 'quota|RESOURCE_EXHAUSTED' "$output"; then
    fail "$code" "no quota for ${FLAG[accelerator-type]} in ${FLAG[zone]} (the message of gcloud is above)" \
      "$QUOTA_HINT"
  fi
  fail "$code" "gcloud could not create $NAME (its message is above)" "change the flags it names"
}

# ensure: deletes a resource that has failed, adopts one that works, or else creates one.
ensure() {
  look NONE
  while [[ $STATE == UNKNOWN ]]; do
    doze "${FLAG[poll]}"
    look NONE
  done
  case $STATE in
    NONE) ;;
    FAILED | SUSPENDED | SUSPENDING | DELETING)
      say "$NAME is there already, $STATE: it is deleted and created again."
      delete
      ;;
    *)
      if [[ -n $TYPE && $TYPE != "${FLAG[accelerator-type]}" ]]; then
        fail 1 "$NAME is there already and is a $TYPE, not a ${FLAG[accelerator-type]}" \
          "give another --name, or: $(quoted "${DELETE[@]}")"
      fi
      say "$NAME is there already, $STATE: it is adopted. If it should not be, Ctrl-C and delete it."
      return
      ;;
  esac
  create
}

# A preemption suspends; only a person deletes, and would be surprised by a new one.
stop_if_deleted() {
  if [[ $STATE == NONE || $STATE == DELETING ]]; then
    fail 1 "$NAME was deleted by someone else: it is not created again" \
      "the same command creates it and goes on from ${FLAG[workdir]}"
  fi
}

# stop_if_hopeless: prints why creation failed, and stops if quota is missing, since trying again does
# not help then.
stop_if_hopeless() {
  local reason
  reason=$(ask "" "${QUEUED[@]}" describe "$NAME" "${WHERE[@]}" \
    "--format=value(state.failedData.error.message)") || reason="unknown"
  say "$NAME has FAILED: ${reason:-no reason given}"
  if [[ $reason == *[Qq]uota* ]]; then
    delete
    fail 1 "no quota for ${FLAG[accelerator-type]} in ${FLAG[zone]}" "$QUOTA_HINT"
  fi
}

# wait_active: 0 when ACTIVE; 1 when it has failed instead.
wait_active() {
  local seen="" deadline=$((SECONDS + FLAG[wait-timeout])) printed=$SECONDS
  while true; do
    look ACTIVE
    if [[ $STATE != "$seen" ]] || ((SECONDS - printed >= 600)); then
      say "$(date +%H:%M:%S) $NAME is $STATE."
      seen=$STATE printed=$SECONDS
    fi
    stop_if_deleted
    case $STATE in
      ACTIVE) return 0 ;;
      SUSPENDED | SUSPENDING) return 1 ;;
      FAILED)
        stop_if_hopeless
        return 1
        ;;
    esac
    if ((SECONDS >= deadline)); then
      say "No capacity in ${FLAG[wait-timeout]} s; the request is deleted, so that it does not begin" \
        "to cost money unnoticed."
      delete
      fail 1 "$NAME was $STATE for ${FLAG[wait-timeout]} s" "wait longer with --wait-timeout"
    fi
    doze "${FLAG[poll]}"
  done
}

# on_node COMMAND: launch/tpu_vm.sh on the node, with this run's flags.
on_node() {
  local words=("$ROOT/launch/tpu_vm.sh" "$1" "--name=$NAME" "${WHERE[@]}" "--config=${FLAG[config]}"
    "--workdir=${FLAG[workdir]}" "--extras=${FLAG[extras]}" "--attempts=${FLAG[attempts]}"
    "--poll=${FLAG[poll]}" "--internal-ip=${FLAG[internal-ip]}")
  words+=("${ENVIRONMENT[@]/#/--env=}" -- "${ARGS[@]}")
  show "${words[@]}"
  if [[ ${FLAG[dry-run]} == true ]]; then words=("${words[@]:0:2}" --dry-run "${words[@]:2}"); fi
  bash "${words[@]}"
}

# was_preempted CODE: by the code or by the state, which may lag behind the broken connection.
was_preempted() {
  local deadline=$((SECONDS + FLAG[settle])) node
  if (($1 == PREEMPTED)); then return 0; fi
  say "The run ended with code $1. For ${FLAG[settle]} s: is $NAME being taken away?"
  while true; do
    look ACTIVE
    stop_if_deleted
    if [[ $STATE != ACTIVE && $STATE != UNKNOWN ]]; then
      say "$NAME is $STATE."
      return 0
    fi
    node=$(ask READY gcloud compute tpus tpu-vm describe "$NAME" "${WHERE[@]}" \
      "--format=value(state)") || node=UNKNOWN
    if [[ $node == PREEMPTED || $node == TERMINATED ]]; then
      say "The node is $node."
      return 0
    fi
    if ((SECONDS >= deadline)); then return 1; fi
    doze "${FLAG[poll]}"
  done
}

# No connection, though the resource is there: the run may well go on, so nothing is deleted.
lost() {
  say "error: no connection to $NAME, which is ACTIVE and costs money; the run may be going on."
  say "next:  the same command again, which follows it, or: $(quoted "${DELETE[@]}")"
  exit "$LOST"
}

# finish CODE: what is left, what it costs, how to end it.
finish() {
  if [[ ${FLAG[delete-after]} == true ]]; then
    delete
  else
    say "$NAME still costs money. Delete it with:"
    say "  $(quoted "${DELETE[@]}")"
  fi
  exit "$1"
}

run_to_the_end() {
  local restarts=0 delay=${FLAG[backoff]} code
  while true; do
    code=$PREEMPTED
    if ensure && wait_active; then
      code=0 delay=${FLAG[backoff]}
      on_node run || code=$?
      if ((code == 0)); then finish 0; fi
      if ((code == 130)); then interrupted; fi
      if ! was_preempted "$code"; then
        if ((code == LOST)); then lost; fi
        say "error: $NAME is ACTIVE, so the run itself failed, with code $code (log above)."
        say "next:  correct that and give the same command: it adopts $NAME."
        finish "$code"
      fi
    fi
    delete
    if ((restarts >= FLAG[max-restarts])); then
      fail "$PREEMPTED" "preempted $((restarts + 1)) times, more than --max-restarts" \
        "the same command goes on from ${FLAG[workdir]}"
    fi
    restarts=$((restarts + 1))
    say "Restart $restarts of ${FLAG[max-restarts]} in $delay s; it goes on from ${FLAG[workdir]}."
    doze "$delay"
    delay=$((delay * 2 < 900 ? delay * 2 : 900))
  done
}

# shellcheck disable=SC2329  # called by trap
interrupted() {
  say ""
  say "Interrupted. $NAME is left as it is: if it is ACTIVE, or becomes so, it costs money."
  say "  go on   the same command again"
  say "  status  $(quoted "$SCRIPT" status "--name=$NAME" "${WHERE[@]}")"
  say "  delete  $(quoted "${DELETE[@]}")"
  exit 130
}
trap interrupted INT TERM

kind=on-demand
if [[ ${FLAG[spot]} == true ]]; then kind=spot; fi
if [[ ${FLAG[reserved]} == true ]]; then kind=reserved; fi
table name "$NAME" zone "${FLAG[zone]}" project "${FLAG[project]}" \
  accelerator "${FLAG[accelerator-type]:+${FLAG[accelerator-type]}, $kind}" \
  config "${FLAG[config]}" workdir "${FLAG[workdir]}" arguments "$(quoted "${ARGS[@]}")" \
  costs "from ACTIVE until it is deleted"
case $COMMAND in
  run) run_to_the_end ;;
  status)
    look ACTIVE
    say "$NAME is $STATE${TYPE:+, $TYPE}."
    if [[ $STATE != NONE ]]; then say "Delete it with: $(quoted "${DELETE[@]}")"; fi
    ;;
  delete) delete ;;
esac
