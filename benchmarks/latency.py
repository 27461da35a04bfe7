"""Latency, cost and memory of ACED-F0, F1, F2 and CLIP's ViT-B/32 on this machine.

    python -m benchmarks.latency && python -m benchmarks.documents

Takes 10 minutes on two idle cores. Columns are those of `aced.latency.command.Measurement`, and the
`device`. Times are left empty where other programs keep the machine busy (a load average above
1.5), since they would be those of the others; counts and memory do not depend on that.
"""

import argparse
import dataclasses
import os

from aced.latency import command
from benchmarks import table

MODELS = ("ACED-F0", "ACED-F1", "ACED-F2", "CLIP-B/32")
SETTINGS = command.LatencyConfig(
    batch_sizes="1,8,64", precisions="float32,bfloat16,int8_weights", seconds=20.0
)
BUSY = 1.5  # load average of the last minute
TIMES = ("runs", "ms", "ms_lower", "ms_upper", "per_second")


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=table.RESULTS / "latency.csv")
    options = parser.parse_args()
    is_busy = os.getloadavg()[0] > BUSY
    settings = SETTINGS
    if is_busy:
        print(f"The load average is above {BUSY}: times are left out.", flush=True)
        settings = dataclasses.replace(SETTINGS, runs=1, warm_up=1)
    rows = []
    for one in command.measure(MODELS, settings):
        row = {"device": command.device()} | dataclasses.asdict(one)
        for name, value in row.items():
            row[name] = f"{value:.4g}" if isinstance(value, float) else value
        rows.append(row | (dict.fromkeys(TIMES, "") if is_busy else {}))
        print(*rows[-1].values(), flush=True)
    table.write(options.out, rows)


if __name__ == "__main__":
    main()
