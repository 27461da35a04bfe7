#!/usr/bin/env bash
# Measures on one accelerator what a CPU cannot: the recipes' steps, and the methods side by side.
#
#   benchmarks/device/run.sh [--tiny] [--limits=total=520,case=80,torch=80]
#
# Nothing is fetched: what the Python there lacks is installed, beside it, from the folder wheels/,
# which wheels.sh fills; JAX, Flax, Optax, Orbax and OpenCV have to be there. Tables and log go to
# $OUT, or benchmarks/results/device. The tables of that folder are gone on with: what has rows
# is not run again, so that the same command continues what its limit has ended. Limits are in
# seconds: of everything (520 and 15 until what runs is ended, under 9 minutes), of each case of
# steps.csv, of PyTorch; methods.csv has the rest. --tiny is a dry run on a CPU.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
results=benchmarks/results/device
work=${TMPDIR:-/tmp}/aced-device
out=${OUT:-$results}
if [[ " $* " == *' --tiny '* ]]; then
  work+=-tiny
  out=${OUT:-$work/results}
fi
mkdir -p "$work/site" "$out"
for table in steps.csv methods.csv; do
  if [[ -e $results/$table && ! -e $out/$table && $work != *-tiny ]]; then
    cp "$results/$table" "$out"
  fi
done

export PYTHONPATH=$work/site:$PWD PYTHONUNBUFFERED=1
missing=$("$python" -m benchmarks.device.missing benchmarks/device/wheels)
if [[ $missing ]]; then
  mapfile -t wheels <<<"$missing"
  printf -- '-- installed: %s\n' "${wheels[@]##*/}"
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --target "$work/site" "${wheels[@]}"
fi
"$python" -m benchmarks.device.run --out="$out" --work="$work" --spent="$SECONDS" "$@" 2>&1 |
  tee "$out/run.log"
