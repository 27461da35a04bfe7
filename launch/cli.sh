# shellcheck shell=bash
# Functions of the launch scripts: flags, the table, and running or only printing a command.
# A script sources this file, declares its flags with `flag`, then calls `parse "$@"`.
#
# Every command is called by `run` (or by `ask`, which returns its output). `run` prints it as
# `+ ...`, quoted for a shell, and with --dry-run does nothing else, so that both print the same.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is needed, this is $BASH_VERSION." >&2
  exit 2
fi

# The scripts read these.
# shellcheck disable=SC2034
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SCRIPT=launch/$(basename "$0")
# shellcheck disable=SC2034
PREEMPTED=42 # aced/parallel/preemption.py: everything is saved, start the same command again
# shellcheck disable=SC2034
LOST=255 # of ssh: no connection, or it broke
COMMAND=""
ARGS=() # what follows --, for aced.main
ENVIRONMENT=()
declare -A FLAG=() HELP=()
FLAGS=()
BLIND=0 # questions in a row without an answer
SEEN=0  # 1 after the first answer

say() { printf '%s\n' "$*" >&2; }

# fail CODE WHAT [NEXT STEP]
fail() {
  say "error: $2"
  if [[ -n ${3-} ]]; then say "next:  $3"; fi
  exit "$1"
}

# flag NAME DEFAULT HELP: --NAME=VALUE; with the default "false" it is a switch.
flag() {
  FLAGS+=("$1")
  FLAG[$1]=$2
  HELP[$1]=$3
}

common_flags() {
  flag config "" "the recipe: configs/acid_b16.py, or with arguments configs/small.py:method=iid"
  flag workdir "" "folder of the run; the same one again goes on where the run stopped"
  flag env "" "NAME=VALUE for the run's environment; may be given several times"
  flag dry-run false "print the exact commands and run none of them"
  flag help false "print this"
}

# The comment at the head of a script is its help.
usage() {
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
  echo
  echo "Flags:"
  local name value
  for name in "${FLAGS[@]}"; do
    value=${FLAG[$name]}
    case $value in
      false) printf '  --%-26s %s\n' "$name" "${HELP[$name]}" ;;
      "") printf '  --%-26s %s\n' "$name=..." "${HELP[$name]}" ;;
      *) printf '  --%-26s %s\n' "$name=$value" "${HELP[$name]}" ;;
    esac
  done
  echo "  --                           what follows goes to aced.main unchanged"
}

# parse "COMMANDS" "$@": sets COMMAND (the first of COMMANDS by default), FLAG, ENVIRONMENT, ARGS.
parse() {
  local commands=$1 name value
  shift
  COMMAND=${commands%% *}
  if [[ $# -gt 0 && $1 != -* ]]; then
    [[ " $commands " == *" $1 "* ]] || fail 2 "unknown command '$1' of $SCRIPT" "one of: $commands"
    COMMAND=$1
    shift
  fi
  while [[ $# -gt 0 ]]; do
    if [[ $1 == -- ]]; then
      ARGS=("${@:2}")
      break
    fi
    if [[ $1 == -h || $1 == --help ]]; then
      usage
      exit 0
    fi
    [[ $1 == --* ]] || fail 2 "unexpected argument '$1'" "arguments for aced.main go behind --"
    name=${1#--}
    name=${name%%=*}
    [[ -n ${HELP[$name]+x} ]] ||
      fail 2 "unknown flag '$1' of $SCRIPT" "see $SCRIPT --help; flags of aced.main go behind --"
    if [[ ${FLAG[$name]} == false || ${FLAG[$name]} == true ]]; then
      value=true
      if [[ $1 == *=* ]]; then value=${1#*=}; fi
      [[ $value == true || $value == false ]] ||
        fail 2 "--$name is a switch, not '$value'" "write --$name"
    else
      [[ $1 == *=* ]] || fail 2 "--$name needs a value" "write --$name=VALUE"
      value=${1#*=}
      # The program that gets the value would take it for a flag of its own.
      [[ $value != -* ]] || fail 2 "--$name=$value begins with a dash" "see $SCRIPT --help"
    fi
    if [[ $name == env ]]; then
      [[ $value =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] ||
        fail 2 "--env=$value is not NAME=VALUE" "for example --env=XLA_FLAGS=--xla_dump_to=/tmp/x"
      ENVIRONMENT+=("$value")
    else
      FLAG[$name]=$value
    fi
    shift
  done
}

# need FLAG...: these must have values.
need() {
  local name
  for name in "$@"; do
    [[ -n ${FLAG[$name]} ]] || fail 2 "--$name is missing: ${HELP[$name]}" "see $SCRIPT --help"
  done
}

# need_count FLAG...: these must be whole numbers that bash can count with.
need_count() {
  local name
  for name in "$@"; do
    [[ ${FLAG[$name]} =~ ^[0-9]+$ ]] ||
      fail 2 "--$name=${FLAG[$name]} is not a whole number" "see $SCRIPT --help"
    [[ ${FLAG[$name]} =~ ^0*[0-9]{1,9}$ ]] ||
      fail 2 "--$name=${FLAG[$name]} is too large" "give less than a thousand million"
    FLAG[$name]=$((10#${FLAG[$name]})) # bash takes 08 for octal
  done
}

need_program() {
  [[ ${FLAG[dry-run]} == true ]] || command -v "$1" > /dev/null || fail 127 "there is no '$1' here" "$2"
}

# quoted WORD...: the words as a shell reads them back.
quoted() {
  local line
  if [[ $# -eq 0 ]]; then return; fi
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# table KEY VALUE KEY VALUE ...: prints the settings of the run; empty values are left out.
table() {
  say "$SCRIPT $COMMAND"
  while [[ $# -gt 0 ]]; do
    if [[ -n $2 ]]; then printf '  %-14s %s\n' "$1" "$2" >&2; fi
    shift 2
  done
}

# main_command PYTHON [FLAG...]: the run itself, in WORDS.
main_command() {
  WORDS=()
  if [[ ${#ENVIRONMENT[@]} -gt 0 ]]; then WORDS+=(env "${ENVIRONMENT[@]}"); fi
  WORDS+=("$1" -m aced.main "${@:2}" "--config=${FLAG[config]}")
  if [[ -n ${FLAG[workdir]} ]]; then WORDS+=("--workdir=${FLAG[workdir]}"); fi
  WORDS+=("${ARGS[@]}")
}

show() { say "+ $(quoted "$@")"; }

# run WORD...: prints and runs; with --dry-run prints.
run() {
  show "$@"
  if [[ ${FLAG[dry-run]} == false ]]; then "$@"; fi
}

# paid WHAT WORD...: run, for what costs money.
paid() {
  say "# costs money: $1"
  run "${@:2}"
}

# ask ANSWER WORD...: the output of the command WORD...; with --dry-run prints the command and
# returns ANSWER. The command's standard error is kept in $ASKED, to distinguish a missing resource
# from a failed query.
ask() {
  if [[ ${FLAG[dry-run]} == true ]]; then
    show "${@:2}"
    printf '%s\n' "$1"
  else
    "${@:2}" 2> "$ASKED"
  fi
}

# blind WHAT NEXT: `ask` has failed. The first query of a script must succeed; later ones may fail up
# to 19 times in a row, since a script may wait for days.
blind() {
  BLIND=$((BLIND + 1))
  if ((BLIND == 1 && SEEN == 0)) || ((BLIND >= 20)); then
    fail 1 "cannot look at $1: $(< "$ASKED")" "$2"
  fi
  say "Cannot look at $1 just now: $(tail -n 1 "$ASKED")"
}
seen() { BLIND=0 SEEN=1; }

scratch() {
  SCRATCH=$(mktemp -d)
  ASKED=$SCRATCH/asked
  trap 'rm -rf "$SCRATCH"' EXIT
}

# doze SECONDS: sleeps, unless nothing is really waited for. A signal wakes it: no error.
doze() { if [[ ${FLAG[dry-run]} == false ]]; then sleep "$1" || true; fi; }
