#!/usr/bin/env bash
# Runs aced.main on all workers of a TPU VM that is there already.
#
#   launch/tpu_vm.sh [run] --name=NODE --zone=ZONE --config=configs/acid_b16.py \
#       --workdir=gs://BUCKET/acid_b16 -- --config.seed=1
#
# Commands:
#   run       sync, install, start, follow; ends with the code of the run
#   sync      copy this checkout to all workers        start    start the run on all workers
#   install   install it there                         follow   show the log until the run ends
#   status    what every worker does                   stop     SIGTERM, which saves, on all workers
#
# The run goes on when this machine or the connection goes away: `follow` finds it again.
# Exit codes: 0 done; 42 saved, the same command again goes on; 255 no connection; else the run's.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/cli.sh"

common_flags
flag name "" "name of the TPU VM (of the node)"
flag zone "" "zone, such as us-east5-b"
flag project "" "project; empty: that of gcloud config"
flag extras tpu,gcs "extras of setup.py to install; gcs is for gs:// workdirs"
flag internal-ip false "connect by internal addresses"
flag ready-timeout 900 "seconds to wait for the node to be READY"
flag attempts 5 "tries to copy, install and reach the node"
flag stop-timeout 120 "seconds that workers have to save and end"
flag poll 15 "seconds between looks and tries"
parse "run sync install start follow status stop" "$@"
need name zone
need_count ready-timeout attempts stop-timeout
if [[ $COMMAND == run || $COMMAND == start ]]; then need config workdir; fi
if [[ ${FLAG[workdir]} != "" && ${FLAG[workdir]} != gs://* ]]; then
  say "warning: --workdir=${FLAG[workdir]} is on each worker's own disk unless it is a shared mount."
fi
need_program gcloud "install the Google Cloud SDK: https://cloud.google.com/sdk/docs/install"
scratch

NODE=${FLAG[name]}
WHERE=("--zone=${FLAG[zone]}")
if [[ -n ${FLAG[project]} ]]; then WHERE+=("--project=${FLAG[project]}"); fi
REACH=("${WHERE[@]}")
if [[ ${FLAG[internal-ip]} == true ]]; then REACH+=(--internal-ip); fi
ARCHIVE=$ROOT/build/launch/$NODE.tgz
WORKER=aced/launch/tpu_worker.sh # in the home of the worker

# on WORKERS COMMAND: a shell command on workers, by ssh. A node that was taken away does not close
# its connections; without the keep-alive, ssh would wait for it for ever.
on() {
  run gcloud compute tpus tpu-vm ssh "$NODE" "${REACH[@]}" --ssh-flag=-oServerAliveInterval=15 \
    --ssh-flag=-oServerAliveCountMax=4 "--worker=$1" "--command=$2"
}

# with_attempts WORD...: again while there is no connection; a new node takes a while to answer.
with_attempts() {
  local attempt code
  for ((attempt = 1; ; attempt++)); do
    code=0
    "$@" || code=$?
    if ((code == 0)); then return; fi
    if ((attempt >= FLAG[attempts])); then
      say "error: this failed $attempt times, the last time with code $code (see above)."
      say "next:  look at it with gcloud compute tpus tpu-vm ssh $NODE $(quoted "${WHERE[@]}")"
      return "$code"
    fi
    say "Try $attempt of ${FLAG[attempts]} failed with code $code; again in ${FLAG[poll]} s."
    doze "${FLAG[poll]}"
  done
}

wait_until_ready() {
  local state printed="" deadline=$((SECONDS + FLAG[ready-timeout]))
  while true; do
    if state=$(ask READY gcloud compute tpus tpu-vm describe "$NODE" "${WHERE[@]}" \
      "--format=value(state)"); then
      seen
    else
      blind "$NODE" "check --name, --zone and --project"
      state=UNKNOWN
    fi
    if [[ $state != "$printed" ]]; then say "$NODE is $state."; fi
    printed=$state
    case $state in
      READY) return ;;
      PREEMPTED | TERMINATED | DELETING | STOPPED | STOPPING | HIDING | HIDDEN)
        fail "$LOST" "$NODE is $state and will not come back by itself" \
          "delete it and create it again; launch/queued_resource.sh does so"
        ;;
    esac
    if ((SECONDS >= deadline)); then
      fail 1 "$NODE is not READY after ${FLAG[ready-timeout]} s, but $state" \
        "wait longer with --ready-timeout"
    fi
    doze "${FLAG[poll]}"
  done
}

sync() {
  run mkdir -p "$(dirname "$ARCHIVE")"
  run tar --exclude-vcs --exclude=./build --exclude=./runs --exclude=./data --exclude=.venv \
    --exclude=__pycache__ --exclude=.pytest_cache -czf "$ARCHIVE" -C "$ROOT" .
  with_attempts run gcloud compute tpus tpu-vm scp "$ARCHIVE" "$NODE:aced.tgz" "${REACH[@]}" \
    --worker=all
  with_attempts on all "rm -rf aced && mkdir aced && tar -xzf aced.tgz -C aced"
}

install() { with_attempts on all "bash $WORKER install $(quoted "${FLAG[extras]}")"; }

start() {
  main_command python --distributed
  on all "bash $WORKER start $(quoted "${WORDS[@]}")"
}

# Is a run going on? One that was started by this script before it was cut off is gone on with.
is_running() {
  local states
  states=$(with_attempts on all "test ! -e $WORKER || bash $WORKER status")
  [[ $states == *": running"* ]]
}

# follow: the log of worker 0 until its end, then the code of all workers.
follow() {
  local code lines=+1 attempt=1 codes all=0 began
  while true; do
    code=0 began=$SECONDS
    on 0 "bash $WORKER follow $lines" || code=$?
    # Only breaks in a row count: in weeks there are many.
    if ((SECONDS - began > 60)); then attempt=1; fi
    if ((code != LOST || attempt >= FLAG[attempts])); then break; fi
    say "The connection broke; the run goes on. Try $((attempt + 1)) of ${FLAG[attempts]}."
    lines=20 attempt=$((attempt + 1))
    doze "${FLAG[poll]}"
    wait_until_ready
  done
  if ((code == LOST || code == PREEMPTED)); then return "$code"; fi
  codes=$(on all "bash $WORKER code ${FLAG[stop-timeout]}") || all=$?
  if [[ -n $codes ]]; then say "$codes"; fi
  # The code of a worker that was preempted counts more than those of workers that lost it.
  if [[ $codes == *"ended with code $PREEMPTED"* ]]; then return "$PREEMPTED"; fi
  if ((code == 0)); then return "$all"; fi
  return "$code"
}

# shellcheck disable=SC2329  # called by trap
interrupted() {
  local same=("$SCRIPT" PLACE "--name=$NODE" "${WHERE[@]}")
  say ""
  say "Interrupted. What runs on $NODE goes on, and $NODE costs money until it is deleted."
  say "  follow  $(quoted "${same[@]/PLACE/follow}")"
  say "  stop    $(quoted "${same[@]/PLACE/stop}")"
  say "  delete  $(quoted gcloud compute tpus tpu-vm delete "$NODE" "${WHERE[@]}")"
  exit 130
}
trap interrupted INT TERM

table name "$NODE" zone "${FLAG[zone]}" project "${FLAG[project]}" config "${FLAG[config]}" \
  workdir "${FLAG[workdir]}" arguments "$(quoted "${ARGS[@]}")" \
  costs "nothing more; $NODE is paid for until it is deleted"
if [[ $COMMAND != status && $COMMAND != stop ]]; then wait_until_ready; fi
code=0
case $COMMAND in
  run)
    if is_running; then
      say "A run is going on on $NODE: it is followed. To start another one, stop this one first."
    else
      sync
      install
      start
    fi
    follow || code=$?
    ;;
  follow) follow || code=$? ;;
  status) on all "bash $WORKER status" ;;
  stop) on all "bash $WORKER stop ${FLAG[stop-timeout]}" ;;
  *) "$COMMAND" ;;
esac
if ((code == PREEMPTED)); then
  say "Saved (code 42). The same command again goes on."
elif ((code == LOST)); then
  say "error: no connection to $NODE; whether the run goes on is not known."
  say "next:  $(quoted "$SCRIPT" status "--name=$NODE" "${WHERE[@]}")"
elif ((code != 0)); then
  say "error: the run failed with code $code; its last lines are above."
fi
say "Delete it when it is not needed any more:"
say "  $(quoted gcloud compute tpus tpu-vm delete "$NODE" "${WHERE[@]}")"
exit "$code"
