#!/usr/bin/env bash
# Commands on one worker of a TPU VM. launch/tpu_vm.sh copies this file there and calls it by ssh.
#
#   tpu_worker.sh install EXTRAS         a virtual environment with .[EXTRAS]
#   tpu_worker.sh start WORD...          the command in the background; it outlives the connection
#   tpu_worker.sh follow LINES           the log, from its last LINES on, until the run ends
#   tpu_worker.sh code SECONDS           waits at most SECONDS for the end; ends with the run's code
#   tpu_worker.sh status                 one line
#   tpu_worker.sh stop SECONDS           SIGTERM, upon which the run saves; SIGKILL after SECONDS
#
# In $HOME: aced/ the code, aced_venv/ the environment, aced_run/ log, pid and exit_code of the run.

set -euo pipefail

CODE=$HOME/aced
VENV=$HOME/aced_venv
RUN=$HOME/aced_run
TIMED_OUT=124 # as timeout(1)

is_running() { [[ -f $RUN/pid && ! -f $RUN/exit_code ]] && kill -0 "$(< "$RUN/pid")" 2> /dev/null; }

# A python of 3.11 or newer that can make an environment; images of TPU VMs bring older ones.
make_environment() {
  local python
  for python in python3.13 python3.12 python3.11; do
    if "$python" -m venv "$VENV" 2> /dev/null; then return; fi
  done
  return 1
}

install() {
  if [[ ! -x $VENV/bin/python ]] && ! make_environment; then
    rm -rf "$VENV"
    sudo apt-get -qq update || true
    sudo apt-get -qq install -y python3.12-venv || sudo apt-get -qq install -y python3.11-venv || true
    make_environment || {
      echo "error: no python3.11 or newer here, and apt-get has none." >&2
      echo "next:  create the TPU VM with a newer --runtime-version." >&2
      exit 1
    }
  fi
  "$VENV/bin/python" -m pip install --quiet --editable "${CODE}[$1]"
}

start() {
  if is_running; then
    echo "error: a run is going on here already, pid $(< "$RUN/pid")." >&2
    echo "next:  launch/tpu_vm.sh follow, or launch/tpu_vm.sh stop." >&2
    exit 1
  fi
  rm -rf "$RUN"
  mkdir -p "$RUN"
  cd "$CODE"
  PATH=$VENV/bin:$PATH setsid bash "$CODE/launch/tpu_worker.sh" supervise "$@" \
    > "$RUN/log" 2>&1 < /dev/null &
  for ((i = 0; i < 100; i++)); do
    if [[ -s $RUN/pid ]]; then return; fi
    sleep 0.1
  done
  echo "error: the run did not start: $(< "$RUN/log")" >&2
  exit 1
}

# Notes the code of the run. When the machine is taken away SIGTERM comes here as well: wait on.
supervise() {
  local again=yes code=0
  trap 'again=yes' TERM
  "$@" &
  echo $! > "$RUN/pid"
  while [[ $again == yes ]]; do
    again=no code=0
    wait "$(< "$RUN/pid")" || code=$?
  done
  echo "$code" > "$RUN/exit_code"
}

# wait_for_end SECONDS: false if the run is still going on then.
wait_for_end() {
  local deadline=$((SECONDS + $1))
  while is_running; do
    if ((SECONDS >= deadline)); then return 1; fi
    sleep 0.2
  done
  # Gone without a code: killed together with what supervised it.
  if [[ ! -f $RUN/exit_code ]]; then
    sleep 1
    [[ -f $RUN/exit_code ]] || echo 137 > "$RUN/exit_code"
  fi
}

exists() {
  [[ -f $RUN/pid ]] || {
    echo "error: no run was started on $(hostname)." >&2
    echo "next:  launch/tpu_vm.sh start." >&2
    exit 1
  }
}

follow() {
  exists
  if is_running; then
    tail -n "$1" -s 0.2 --pid="$(< "$RUN/pid")" -f "$RUN/log"
    wait_for_end 10
  else
    tail -n "$1" "$RUN/log"
    wait_for_end 0
  fi
  exit "$(< "$RUN/exit_code")"
}

code() {
  exists
  wait_for_end "$1" || {
    echo "aced $(hostname): still running"
    exit "$TIMED_OUT"
  }
  local code
  code=$(< "$RUN/exit_code")
  if ((code != 0 && code != 42)); then
    echo "aced $(hostname): the last lines of the log:"
    tail -n 30 "$RUN/log"
  fi
  echo "aced $(hostname): ended with code $code"
  exit "$code"
}

status() {
  if is_running; then
    echo "aced $(hostname): running; $(tail -n 1 "$RUN/log")"
  elif [[ -f $RUN/exit_code ]]; then
    echo "aced $(hostname): ended with code $(< "$RUN/exit_code")"
  else
    echo "aced $(hostname): no run"
  fi
}

stop() {
  if is_running; then
    kill -TERM "$(< "$RUN/pid")"
    wait_for_end "$1" || {
      kill -KILL "$(< "$RUN/pid")"
      wait_for_end 10
    }
  fi
  status
}

case ${1-} in
  install | start | supervise | follow | code | status | stop) "$@" ;;
  *)
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
    exit 2
    ;;
esac
