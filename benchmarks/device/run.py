"""All parts, one after the other, each in a process of its own and under a limit: see run.sh."""

import argparse
import importlib.util
import os
import pathlib
import subprocess
import sys
import time

from benchmarks.device import cases
from benchmarks.device.rows import Rows

# Seconds: of everything, of each case of `steps`, of `torch_steps`. The methods have what is left.
LIMITS = {"total": 520, "case": 80, "torch": 80}
GRACE = 15  # seconds after its limit until a process is ended
FOLDER = pathlib.Path(__file__).parent
# For a dry run, which waits for little else than the compiler.
_QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_PROBE = """
import jax, aced.train
device = jax.devices()[0]
print(device.platform, device.device_kind, jax.__version__, sep="\\n")
"""


def parse_limits(text: str) -> dict[str, int]:
    """The limits, with those replaced that `text` names: "total=300,torch=0"; 0 leaves out.

    Raises:
        ValueError: a name is unknown, or a limit is no whole number.
    """
    limits = dict(LIMITS)
    for part in filter(None, text.split(",")):
        name, _, seconds = part.partition("=")
        if name not in limits or not seconds.isdecimal():
            known = ", ".join(LIMITS)
            raise ValueError(f"{part!r} is no limit; write NAME=SECONDS, with NAME one of {known}.")
        limits[name] = int(seconds)
    return limits


class Parts:
    """Starts processes, as long as time is left."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def run(self, module: str, *arguments: str, limit: float, **env: str) -> None:
        """Runs `benchmarks.device.MODULE` within `limit` and what is left; prints how it ended."""
        seconds = min(limit, self.left)
        what = " ".join((module, *arguments))
        if seconds < GRACE:
            print(f"-- {what}: left out, {max(0, seconds):.0f} s are left for it", flush=True)
            return
        print(f"-- {what}: {seconds:.0f} s", flush=True)
        command = [sys.executable, "-m", f"benchmarks.device.{module}", *arguments]
        start = time.monotonic()
        try:
            done = subprocess.run(
                [*command, f"--seconds={seconds:.0f}"],
                env=os.environ | env,
                timeout=seconds + GRACE,
                check=False,
            )
            how = "done" if done.returncode == 0 else f"ended with code {done.returncode}"
        except subprocess.TimeoutExpired:
            how = "ended at its limit"
        print(f"-- {what}: {how} after {time.monotonic() - start:.0f} s", flush=True)


def compare(parts: Parts, table: pathlib.Path, device: str, limit: float) -> None:
    """Runs PyTorch at the largest batch of the same model, where there is PyTorch."""
    batch = cases.largest_batch(Rows(table, cases.COLUMNS, cases.KEY), device, cases.IID)
    if importlib.util.find_spec("torch") is None:
        print("-- torch_steps: left out, PyTorch is not installed", flush=True)
    elif batch is not None:
        ours = {"JAX_PLATFORMS": "cpu"}
        parts.run("torch_steps", f"--batch={batch}", f"--out={table}", limit=limit, **ours)


def main() -> None:
    """Runs all parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the tables")
    parser.add_argument("--work", required=True, type=pathlib.Path, help="what need not be kept")
    parser.add_argument("--limits", type=parse_limits, default=LIMITS, help=parse_limits.__doc__)
    parser.add_argument("--spent", type=float, default=0.0, help="seconds that are gone already")
    parser.add_argument("--tiny", action="store_true", help="a dry run with tiny models")
    args = parser.parse_args()
    parts = Parts(args.limits["total"] - args.spent)
    probe = subprocess.run([sys.executable, "-c", _PROBE], stdout=subprocess.PIPE, check=True)
    platform, device, version = probe.stdout.decode().splitlines()[-3:]
    python = sys.version.split()[0]
    print(f"-- {platform}: {device}; Python {python}, JAX {version}", flush=True)
    if platform == "cpu" and not args.tiny:
        sys.exit("There is no accelerator; --tiny makes a dry run on a CPU.")
    tiny = ["--tiny"] if args.tiny else []
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(args.work / "jax")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if args.tiny:
        os.environ["XLA_FLAGS"] = _QUICKLY

    steps = args.out / "steps.csv"
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.94"}
    for name in cases.CASES:
        if not cases.is_done(Rows(steps, cases.COLUMNS, cases.KEY), device, name):
            limit = args.limits["case"]
            parts.run("steps", f"--case={name}", f"--out={steps}", *tiny, limit=limit, **memory)
        if name == cases.IID:
            compare(parts, steps, device, args.limits["torch"])

    parts.run(
        "methods",
        f"--out={args.out / 'methods.csv'}",
        f"--work={args.work}",
        f"--icons={FOLDER / 'wheels' / 'icons.npz'}",
        *tiny,
        limit=parts.left,
    )


if __name__ == "__main__":
    main()
