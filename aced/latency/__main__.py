"""Measures the speed and cost of models on this machine: `python -m aced.latency MODEL ...`.

    python -m aced.latency runs/smoke ACED-F1 CLIP-B/32 --batch_sizes=1,8

Prints the milliseconds, multiply-adds, parameters and memory of both towers, by batch size, beside
published numbers. The models are folders of models (ours, of transformers or of open_clip),
workdirs of runs, or presets such as ACED-F1 and CLIP-B/32, with random parameters. Times are of one
device, on pixels and token ids that it already has, without decoding, resizing and tokenizing.
"""

import dataclasses
import json
from collections.abc import Sequence

from absl import logging

from aced import command, command_line, flag_settings
from aced.latency.command import LatencyConfig, Measurement, device, measure
from aced.latency.published import MODELS


def table(found: Sequence[Measurement]) -> str:
    """The measurements, and the published numbers below them."""
    titles = ["model", "precision", "tower", "parameters", "GMAC", "batch", "ms each"]
    titles += ["quartiles", "per second", "arguments", "temporaries"]
    rows = [
        [
            one.model,
            one.precision,
            one.tower,
            f"{one.parameters / 1e6:.1f}M",
            _gmacs(one),
            f"{one.batch_size}",
            f"{one.ms:.3g}",
            f"{one.ms_lower:.3g} to {one.ms_upper:.3g}",
            f"{one.per_second:,.0f}",
            f"{one.arguments / 2**20:,.0f} MiB",
            f"{one.temporaries / 2**20:,.0f} MiB",
        ]
        for one in found
    ]
    theirs = [
        [one.model, _number(one.gmacs), _number(one.image_ms), _number(one.text_ms), one.source]
        for one in MODELS
    ]
    theirs_titles = ["model", "GMAC of both", "image ms", "text ms", "source"]
    return "\n".join(
        [
            f"On {device()}; milliseconds of one picture or text:",
            *_aligned([titles, *rows]),
            "",
            "Published; the milliseconds are those of other hardware:",
            *_aligned([theirs_titles, *theirs]),
        ]
    )


def _gmacs(one: Measurement) -> str:
    by_xla = "" if one.xla_gmacs is None else f" (XLA: {one.xla_gmacs:.2f})"
    return f"{one.gmacs:.2f}{by_xla}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def main(argv: list[str]) -> None:
    """Flags -> table."""
    command.quiet_libraries()
    with command.running("The models"):
        config = flag_settings.read(LatencyConfig)
        measured = []
        for measurement in measure(argv[1:], config):
            logging.info(
                "%s, %s, %s, batch of %d: %.3g ms each",
                measurement.model,
                measurement.precision,
                measurement.tower,
                measurement.batch_size,
                measurement.ms,
            )
            measured.append(measurement)
        if config.json:
            everything = {"device": device(), "measured": measured, "published": MODELS}
            print(json.dumps(everything, default=dataclasses.asdict, indent=2))
        else:
            print(table(measured))


if __name__ == "__main__":
    flag_settings.define(LatencyConfig)
    command_line.run(main, takes="models")
