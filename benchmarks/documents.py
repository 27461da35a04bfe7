"""Writes the committed results into the documentation, between its marks.

    python -m benchmarks.documents

A table stands between `<!-- table NAME -->` and `<!-- /table -->`. A test holds that README.md and
docs/ are what this command writes.
"""

import collections
import json
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.table import RESULTS, read

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_MARK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rule_of(row: dict[str, str]) -> str:
    """How a run of gain.csv draws, in words."""
    settings = json.loads(row["settings"])
    if not row["score"]:
        return "IID"
    if "gain" in settings:
        return f"gain {settings['gain']:g}, the paper's"
    return f"perplexity share {settings['perplexity_share']:g}, weight 2"


def spread(values: Sequence[float]) -> str:
    """The mean in per cent, and the standard deviation over seeds where there are several."""
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * np.std(values, ddof=1):.1f}"


def gain_rule() -> str:
    """R@1 by the rule of the gain, for each batch size and share of wrong captions."""
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    columns = set()
    for row in read("gain.csv"):
        ours_or_raw = row["score"] != "easy_reference" and _weight(row) in (None, 2.0)
        if _is_plain(row) and ours_or_raw and row["wrong"] in ("0.0", "0.5"):
            column = (float(row["wrong"]), int(row["batch_size"]))
            columns.add(column)
            found[rule_of(row)][column].append(float(row["r1"]))
    return _table(found, sorted(columns), lambda c: f"{c[0]:.0%} wrong, b = {c[1]}")


def gain_weight() -> str:
    """R@1 by the weight of the reference, for each share of wrong captions."""
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    columns = set()
    for row in read("gain.csv"):
        settings = json.loads(row["settings"])
        if not _is_plain(row) or row["batch_size"] != "64" or "gain" in settings:
            continue
        if settings.get("perplexity_share", 0.5) != 0.5:
            continue
        name = {"": "IID", "easy_reference": "only the reference (I-ACID)"}.get(row["score"])
        column = float(row["wrong"])
        columns.add(column)
        found[name or f"weight {_weight(row):g}"][column].append(float(row["r1"]))
    return _table(found, sorted(columns), lambda c: f"{c:.0%} wrong")


def _is_plain(row: dict[str, str]) -> bool:
    usual = ("sigmoid", "128000", "reference", "0.0")
    return tuple(row[k] for k in ("loss", "examples", "reference", "distillation")) == usual


def _weight(row: dict[str, str]) -> float | None:
    return json.loads(row["settings"]).get("reference_weight")


def _table(found: dict[str, dict], columns: Sequence, title: Callable[[object], str]) -> str:
    rows = [
        [name, *(spread(values[column]) if values[column] else "" for column in columns)]
        for name, values in sorted(found.items(), key=lambda item: _order(item[0]))
    ]
    return markdown(["R@1, %", *map(title, columns)], rows)


def _order(name: str) -> tuple[bool, bool, str]:
    return name != "IID", name.startswith("only"), name


def smoke() -> str:
    """What the first command prints at its end."""
    lines = (RESULTS / "smoke.txt").read_text(encoding="utf-8").splitlines()[1:]
    return "".join(f"    {line}\n" for line in lines)


TABLES = {
    "gain_rule": gain_rule,
    "gain_weight": gain_weight,
    "smoke": smoke,
}


def filled(text: str) -> str:
    """The text with its tables as the committed results have them."""
    return _MARK.sub(lambda mark: f"{mark[1]}{TABLES[mark[2]]()}{mark[3]}", text)


if __name__ == "__main__":
    for path in TEXTS:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
