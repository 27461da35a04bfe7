#!/usr/bin/env bash
# A run on GPUs under SLURM (launch/slurm.sbatch). When it is preempted or its time is over, it
# saves, is queued again, and goes on.
#
#   launch/slurm.sh [submit] --nodes=4 --gpus-per-node=8 --time=24:00:00 --partition=gpu \
#       --config=configs/acid_b16.py --workdir=/shared/acid_b16
#
# The runs of a sweep as an array of jobs; --workdir is their folder, and what follows -- belongs to
# aced.sweep:
#
#   launch/slurm.sh --sweep=6 --nodes=1 --config=configs/acid_b16.py --workdir=/shared/gains \
#       -- --set=method.selection.gain=1,10,100 --seeds=2
#
# Commands: submit; status --job=ID; logs --job=ID; stop --job=ID (cancels: SIGTERM, then SIGKILL
# after the cluster's KillWait).
# Paths are relative to the root of the repository, which all nodes must see, as the workdir.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/cli.sh"

common_flags
flag python python "the interpreter on the nodes"
flag nodes 1 "number of nodes"
flag gpus-per-node 8 "GPUs of a node"
flag per gpu "one process per gpu, or per node"
flag cpus-per-task "" "CPU cores of a process"
flag time "" "time limit of one go, such as 24:00:00"
flag partition "" "partition"
flag account "" "account"
flag qos "" "quality of service"
flag grace 120 "seconds between SIGTERM and the end of the time"
flag max-restarts 50 "how often it is queued again"
flag logs runs/slurm "folder of the logs"
flag sweep "" "number of runs of a sweep, an array of jobs of --nodes each"
flag parallel "" "jobs of a sweep that run at the same time; empty: all"
flag job "" "job, for status, logs and stop"
parse "submit status logs stop" "$@"
need_count nodes gpus-per-node grace max-restarts
if [[ -n ${FLAG[sweep]} ]]; then need_count sweep; fi
if [[ -n ${FLAG[parallel]} ]]; then need_count parallel; fi
if [[ $COMMAND != submit ]]; then need job; fi
LOG=${FLAG[logs]}/aced_${FLAG[job]:-%j}.log
if [[ -n ${FLAG[sweep]} ]]; then LOG=${FLAG[logs]}/aced_%A_%a.log; fi

# Asks aced.sweep for the number of its runs, before anything is submitted.
check_sweep() {
  local listed count
  if [[ ${FLAG[dry-run]} == true ]]; then return; fi
  listed=$("${FLAG[python]}" -m aced.sweep --list "--config=${FLAG[config]}" \
    "--out=${FLAG[workdir]}" "${ARGS[@]}") ||
    fail 2 "aced.sweep refuses its arguments (its error is above)" "correct what follows --"
  count=$(wc -l <<< "$listed")
  ((count == FLAG[sweep])) ||
    fail 2 "--sweep=${FLAG[sweep]}, but the sweep has $count runs" "give --sweep=$count"
}

submit() {
  local words tasks name
  local environment=("ACED_PYTHON=${FLAG[python]}" "ACED_MAX_RESTARTS=${FLAG[max-restarts]}")
  need config workdir
  case ${FLAG[per]} in
    gpu) tasks=${FLAG[gpus-per-node]} ;;
    node)
      tasks=1
      # Under SLURM, jax uses one GPU per process unless this variable lists more.
      environment+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((FLAG[gpus-per-node] - 1)))")
      ;;
    *) fail 2 "--per=${FLAG[per]} is neither gpu nor node" "see $SCRIPT --help" ;;
  esac
  words=(sbatch --parsable "--chdir=$ROOT" "--output=$LOG" "--nodes=${FLAG[nodes]}"
    "--gpus-per-node=${FLAG[gpus-per-node]}" "--ntasks-per-node=$tasks"
    "--signal=TERM@${FLAG[grace]}")
  for name in cpus-per-task time partition account qos; do
    if [[ -n ${FLAG[$name]} ]]; then words+=("--$name=${FLAG[$name]}"); fi
  done
  local folder=--workdir
  if [[ -n ${FLAG[sweep]} ]]; then
    check_sweep
    words+=("--array=0-$((FLAG[sweep] - 1))${FLAG[parallel]:+%${FLAG[parallel]}}")
    folder=--out
  fi
  words+=(launch/slurm.sbatch "--config=${FLAG[config]}" "$folder=${FLAG[workdir]}" "${ARGS[@]}")
  run mkdir -p "${FLAG[logs]}"
  # sbatch hands its environment to the job.
  local code=0 job
  job=$(paid "the GPUs, where the cluster accounts for them, until the job ends" \
    env "${environment[@]}" "${ENVIRONMENT[@]}" "${words[@]}") || code=$?
  if ((code != 0)); then
    say "Nothing was submitted: it costs nothing."
    fail "$code" "sbatch refused the job (its message is above)" \
      "change the flags it names; sinfo shows partitions, sacctmgr show assoc the accounts"
  fi
  if [[ ${FLAG[dry-run]} == true ]]; then job=JOB; fi
  job=${job%%;*} # --parsable: job;cluster
  say "Job $job."
  say "  logs    $(quoted "$SCRIPT" logs "--job=$job${FLAG[sweep]:+_0}" "--logs=${FLAG[logs]}")"
  say "  status  $(quoted "$SCRIPT" status "--job=$job")"
  say "  stop    $(quoted "$SCRIPT" stop "--job=$job")"
}

cd "$ROOT"
case $COMMAND in
  submit) need_program sbatch "run this on a login node of the cluster" ;;
  *) need_program squeue "run this on a login node of the cluster" ;;
esac
table job "${FLAG[job]}" \
  nodes "${FLAG[nodes]}, ${FLAG[gpus-per-node]} GPUs each, one process per ${FLAG[per]}" \
  sweep "${FLAG[sweep]:+${FLAG[sweep]} runs, a job each}" \
  config "${FLAG[config]}" workdir "${FLAG[workdir]}" arguments "$(quoted "${ARGS[@]}")" \
  costs "GPU time, where the cluster accounts for it"
case $COMMAND in
  submit) submit ;;
  status) run squeue "--jobs=${FLAG[job]}" "--format=%i %T %M %l %D %r" ;;
  logs)
    [[ -f $LOG || ${FLAG[dry-run]} == true ]] ||
      fail 1 "no log $LOG yet" "$(quoted "$SCRIPT" status "--job=${FLAG[job]}"): it may be waiting"
    run tail -n +1 -F "$LOG"
    ;;
  stop) run scancel "${FLAG[job]}" ;;
esac
