"""The figures of a pre-flight as a readable table."""

from collections.abc import Iterator
from typing import Any

_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_USES = ("state", "frozen", "batch", "padding", "temporaries", "code")
_NAMES = {"state": "parameters, optimizer", "frozen": "frozen models", "padding": "padding"}


def table(report: dict[str, Any]) -> str:
    """Returns the figures of `preflight.command.report` in lines of two columns."""
    rows = [*_setting(report), *_memory(report["hbm"])]
    if "time" in report:
        rows += [*_work(report), *_collectives(report), *_speed(report)]
    rows += [*_run(report), *(("assumed", text) for text in report["assumed"])]
    rows += [("note", text) for text in report["notes"]]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}".rstrip() for name, text in rows]
    return "\n".join(["", *lines, "", verdict(report), ""])


def verdict(report: dict[str, Any]) -> str:
    """The last line: whether the step fits, or else which batch would."""
    hbm, size = report["hbm"], report["batch_size"]
    if report["method"] == "roofline":
        verb = "fit" if report["fits"] else "do NOT fit"
        return (
            f"Parameters and batch {verb}; whether the step fits is only known after compilation."
        )
    if report["fits"]:
        return f"FITS, with {_bytes(hbm['free'])} of {_bytes(hbm['limit'])} free on a device."
    short = f"DOES NOT FIT: batch_size = {size:,} needs {_bytes(hbm['used'])} of "
    short += f"{_bytes(hbm['limit'])} on a device. "
    largest = report["largest_batch_size"]
    if largest is None:
        return short + "No smaller batch fits either: raise mesh.fsdp, or take other chips."
    return short + (
        f"The largest batch_size that fits is {largest:,} (compiled). Or keep it, and set "
        "method.train_micro_batch, method.score_micro_batch, model.remat or mesh.fsdp."
    )


def _setting(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    slices = f" x {report['num_slices']} slices" if report["num_slices"] > 1 else ""
    yield "topology", f"{report['topology']}{slices}, {report['chips']} x {report['chip']}"
    yield "mesh", ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    selects = report["strata"] is not None
    chosen = f" of {report['super_batch_size']:,} in {report['strata']} strata" if selects else ""
    yield "batch", f"{report['batch_size']:,}{chosen}"
    for name, count in report["parameters"].items():
        yield f"parameters, {name}", f"{count:,}"


def _memory(hbm: dict[str, int | float]) -> Iterator[tuple[str, str]]:
    for use in _USES:
        if use in hbm:
            yield f"HBM, {_NAMES.get(use, use)}", _bytes(hbm[use])
    yield "HBM, total", f"{_bytes(hbm['used'])} of {_bytes(hbm['limit'])}"
    yield "HBM, free", _bytes(hbm["free"])


def _work(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    flops = report["flops"]
    yield "FLOPs per step, model", f"{flops['model']:.3e}"
    if "compiled" in flops:
        again = flops["compiled"] / flops["model"] - 1
        yield "FLOPs per step, compiled", f"{flops['compiled']:.3e} ({again:+.1%})"
        yield "HBM traffic per step", f"{_bytes(report['hbm_bytes'])} on a device"


def _collectives(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for kind, found in report.get("collectives", {}).items():
        yield (
            kind,
            f"{found['count']:,} times, results {_bytes(found['bytes'])}, sent "
            f"{_bytes(found['sent'])} on a device",
        )
    for largest in report.get("largest_collectives", [])[:1]:
        arrays = f" and {largest['arrays'] - 1} more" if largest["arrays"] > 1 else ""
        shape = ",".join(map(str, largest["shape"]))
        yield (
            "largest collective",
            f"{largest['kind']} of {_bytes(largest['bytes'])}, {largest['dtype']}[{shape}]{arrays}",
        )


def _speed(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    time = report["time"]
    for what in ("compute", "memory", "interconnect"):
        bound = "  <- bounds the step" if what == time["bound_by"] else ""
        yield f"time by {what}", f"{time[what] * 1e3:,.4g} ms{bound}"
    yield "examples/s, at best", f"{report['examples_per_second']:,.0f}"
    yield "MFU, at best", f"{report['mfu']:.1%}"


def _run(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    run = report["run"]
    scored = f", {run['examples_scored']:,} scored" if run["examples_scored"] else ""
    yield "run", f"{run['steps']:,} steps, {run['examples_trained']:,} examples trained{scored}"
    yield "run, FLOPs", f"{run['flops']:.3e}"
    if "chip_hours" in run:
        yield "run, chip-hours, at best", f"{run['chip_hours']:,.4g}"
    yield "run, chip-hours at 50 % MFU", f"{run['chip_hours_at_usual_mfu']:,.4g}"


def _bytes(count: int | float) -> str:
    for size, unit in _UNITS:
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
