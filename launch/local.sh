#!/usr/bin/env bash
# Runs aced.main on this machine, in one process or, to try out many hosts, in several.
#
#   launch/local.sh --config=configs/smoke.py
#   launch/local.sh --config=configs/smoke.py --workdir=runs/two --processes=2 --devices=4
#
# With --processes=N, N processes find each other on the loopback, each with --devices CPU devices.
# If one of them dies, all are ended. Ctrl-C saves and ends with code 42; a second one kills.
# Paths are relative to the root of the repository. The exit code is the run's.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/cli.sh"

common_flags
flag python python "the interpreter"
flag processes 1 "number of processes"
flag devices "" "CPU devices of each process; empty: the accelerators of this machine"
flag port "" "port of the coordinator; empty: a free one"
flag stop-timeout 60 "seconds that the other processes have once one has ended"
flag poll 0.5 "seconds between looks at the processes"
parse "run" "$@"
need config
need_count processes stop-timeout
processes=${FLAG[processes]}
((processes > 0)) || fail 2 "--processes=0 runs nothing" "give at least 1"
((processes <= 1024)) || fail 2 "--processes=$processes is too many for one machine" "give at most 1024"
if ((processes > 1)) && [[ -z ${FLAG[devices]} ]]; then
  fail 2 "--processes=$processes would share this machine's accelerators" "give --devices=N CPU devices each"
fi
if [[ -n ${FLAG[devices]} ]]; then
  need_count devices
  ENVIRONMENT=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=${FLAG[devices]}" "${ENVIRONMENT[@]}")
fi

free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 20000))
    # Nobody answers: free.
    if ! (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then
      echo "$port"
      return
    fi
  done
}

# words_of PROCESS: its command, in WORDS.
words_of() {
  if ((processes == 1)); then
    main_command "${FLAG[python]}"
  else
    main_command "${FLAG[python]}" --distributed
    WORDS=(env "ACED_COORDINATOR=127.0.0.1:$port" "ACED_NUM_PROCESSES=$processes"
      "ACED_PROCESS_ID=$1" "${WORDS[@]:1}")
  fi
}

# Lines of several processes carry the number of theirs; signals for them are not for this.
numbered() {
  trap '' INT TERM
  while IFS= read -r line; do printf '[%s] %s\n' "$1" "$line"; done
}

# Every process leads a group of its own, so that its children end with it.
start() {
  set -m
  local i
  for ((i = 0; i < processes; i++)); do
    words_of "$i"
    show "${WORDS[@]}"
    if ((processes == 1)); then
      "${WORDS[@]}" < /dev/null &
    else
      "${WORDS[@]}" < /dev/null > >(numbered "$i") 2> >(numbered "$i" >&2) &
    fi
    pids+=($!)
    codes+=("")
  done
  set +m
}

# collect: codes of those that have ended; `running` counts the others.
collect() {
  local i
  running=0
  for ((i = 0; i < processes; i++)); do
    if [[ -n ${codes[i]} ]]; then continue; fi
    if kill -0 "${pids[i]}" 2> /dev/null; then
      running=$((running + 1))
      continue
    fi
    codes[i]=0
    wait "${pids[i]}" 2> /dev/null || codes[i]=$?
    if ((codes[i] != 0 && outcome == 0)); then
      outcome=${codes[i]}
      if ((processes > 1)); then say "process $i ended with code $outcome."; fi
    fi
  done
}

send() {
  local i
  for ((i = 0; i < processes; i++)); do
    if [[ -z ${codes[i]} ]]; then kill "-$1" -- "-${pids[i]}" 2> /dev/null || true; fi
  done
}

# shellcheck disable=SC2329  # called by trap
interrupted() {
  interrupts=$((interrupts + 1))
  if ((interrupts == 1)); then
    say "Interrupted: the run saves and stops. Once more kills it."
    send TERM
  else
    send KILL
  fi
}

cd "$ROOT"
port=${FLAG[port]:-$(free_port)}
words_of 0
table config "${FLAG[config]}" workdir "${FLAG[workdir]:-runs/ and the name of the config}" \
  processes "$processes" "CPU devices" "${FLAG[devices]}" costs "nothing"
if [[ ${FLAG[dry-run]} == true ]]; then
  for ((i = 0; i < processes; i++)); do
    words_of "$i"
    show "${WORDS[@]}"
  done
  exit 0
fi
need_program "${FLAG[python]}" "give --python=PATH"

pids=() codes=() running=0 outcome=0 interrupts=0
trap interrupted INT TERM
trap 'send KILL' EXIT
start
collect
while ((running > 0 && outcome == 0)); do
  doze "${FLAG[poll]}"
  collect
done
# One has failed. With 42 the others are saving; otherwise they wait for it in vain.
deadline=$((SECONDS + FLAG[stop-timeout]))
if ((running > 0 && outcome != PREEMPTED)); then
  say "The other $running are ended."
  send KILL
fi
while ((running > 0)); do
  if ((SECONDS >= deadline)); then send KILL; fi
  doze "${FLAG[poll]}"
  collect
done
if ((outcome == PREEMPTED)); then
  say "Saved (code 42). The same command again goes on."
elif ((outcome != 0)); then
  say "error: the run failed with code $outcome; its last lines are above."
fi
exit "$outcome"
