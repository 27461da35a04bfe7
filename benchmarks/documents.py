"""Writes the committed results into the documentation, between its marks.

    python -m benchmarks.documents

A table stands between `<!-- table NAME -->` and `<!-- /table -->`. A test holds that README.md and
docs/ are what this command writes.
"""

import ast
import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.methods import suites
from benchmarks.methods.runs import DIVERSE, HIDDEN, SHIFTED, Run
from benchmarks.table import RESULTS

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_MARK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values: Sequence[float]) -> str:
    """The mean in per cent, and the standard deviation over seeds where there are several."""
    if not values:
        return ""
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * np.std(values, ddof=1):.1f}"


def gain_rule() -> str:
    """R@1 by the rule of the gain, for each batch size and share of wrong captions."""
    found, columns = _Cells(), set()
    for run, row in table.read_runs("gain.csv", Run):
        settings = json.loads(run.settings)
        shown = run.score in ("", "learnability") and settings.get("reference_weight", 2.0) == 2.0
        if is_plain(run) and shown and run.wrong in (0.0, 0.5):
            column = (run.wrong, run.batch_size)
            columns.add(column)
            found[_rule(run)][column].append(float(row["r1"]))
    return _table(found, sorted(columns), lambda c: f"{c[0]:.0%} wrong, b = {c[1]}")


def _rule(run: Run) -> str:
    settings = json.loads(run.settings)
    if not run.score:
        return "IID"
    if "gain" in settings:
        return f"gain {settings['gain']:g}, the paper's"
    return f"perplexity share {settings['perplexity_share']:g}, weight 2"


def is_plain(run: Run) -> bool:
    """Whether a run of the suite `gain` differs by selection, batch, noise and seed only."""
    kept = ("score", "settings", "batch_size", "wrong", "seed")
    return run == Run(**{name: getattr(run, name) for name in kept})


class _Cells(collections.defaultdict):
    """Values by row and column."""

    def __init__(self):
        super().__init__(lambda: collections.defaultdict(list))


def _table(found: _Cells, columns: Sequence, title: Callable[[Any], str]) -> str:
    rows = [
        [name, *(spread(values[column]) for column in columns)]
        for name, values in sorted(found.items(), key=lambda item: _order(item[0]))
    ]
    return markdown(["R@1, %", *map(title, columns)], rows)


def _order(name: str) -> tuple[bool, bool, str]:
    return name != "IID", name.startswith("only"), name


METHODS = {  # of configs/methods.py, as the tables call them
    "iid": "IID",
    "kd": "softmax-KD",
    "h_acid": "H-ACID",
    "aced": "ACED-ACIDistill",
    "i_acid": "I-ACID",
    "aced_iid": "ACED-IIDistill",
    "hard": "hard learner",
    "cabs_dm": "CABS-DM",
    "cabs_fm": "CABS-FM",
}


def is_main(run: Run) -> bool:
    """Whether a run of methods.csv is one of the comparison at equal examples."""
    usual = suites.by_name(run.method, examples=suites.EXAMPLES)
    same = dataclasses.replace(run, data="shapes", wrong=usual.wrong, seed=usual.seed)
    return same == usual and run.seed in suites.SEEDS


def methods() -> str:
    """R@1 at the end of training: scenes by their share of wrong captions, and icons."""
    found, pools = _Cells(), set()
    for run, row in table.read_runs("methods.csv", Run):
        name = METHODS[run.method]
        if run.seed not in suites.SEEDS:
            name = f"reference ({HIDDEN[run.reference]} wide, on clean pairs)"
        elif run == suites.by_name("iid", wrong=run.wrong, seed=run.seed, data=run.data,
                                   examples=suites.EQUAL_FLOPS):  # fmt: skip
            name = "IID at H-ACID's FLOPs"
        elif not is_main(run) or run.method not in suites.MAIN:
            continue
        if run.reference == Run().reference:
            pools.add((run.data == "icons", run.wrong))
            found[name][run.data == "icons", run.wrong].append(float(row["r1"]))
    columns = sorted(pools)
    titles = ["icons" if is_icons else f"{wrong:.0%} wrong" for is_icons, wrong in columns]
    rows = [[name, *(spread(cells[c]) for c in columns)] for name, cells in found.items()]
    names = [*(METHODS[name] for name in suites.MAIN), "IID at H-ACID's FLOPs"]
    rows.sort(key=lambda row: names.index(row[0]) if row[0] in names else len(names))
    return markdown(["R@1, %", *titles], rows)


def weights() -> str:
    """R@1 by the weight of the reference, for each share of wrong captions."""
    found, columns = _Cells(), set()
    for run, row in table.read_runs("methods.csv", Run):
        settings = json.loads(run.settings)
        name = {"iid": "IID", "i_acid": "only the reference (I-ACID)"}.get(run.method)
        if run.method == "h_acid":
            name = f"weight {settings.pop('reference_weight'):g}"
            run = dataclasses.replace(run, settings=suites.ours())
            if settings.keys() != {"normalization", "perplexity_share"}:
                continue
        if name and is_main(run) and run.data == "shapes":
            columns.add(run.wrong)
            found[name][run.wrong].append(float(row["r1"]))
    return _table(found, sorted(columns), lambda wrong: f"{wrong:.0%} wrong")


OTHERS = (suites.rest, suites.references, suites.filter_ratios, suites.softmax, suites.short)


def methods_else() -> str:
    """What else is compared on scenes: R@1, and the share of wrong captions picked."""
    found = _Cells()
    listed = {run for suite in OTHERS for run in suite()} | set(suites.main())
    for run, row in table.read_runs("methods.csv", Run):
        if run in listed and run.wrong in (0.0, 0.5):
            for number in ("r1", "noise"):
                found[_variant(run)][run.wrong, number].append(float(row[number]))
    columns = [(0.0, "r1"), (0.5, "r1"), (0.5, "noise")]
    titles = ["0% wrong: R@1, %", "50% wrong: R@1, %", "50% wrong: picked, %"]
    rows = [
        [name, *(spread(cells[column]) for column in columns)]
        for name, cells in sorted(found.items())
    ]
    return markdown(["run", *titles], rows)


def _variant(run: Run) -> str:
    """A run in words: its method, and what is not usual."""
    parts, settings = [METHODS[run.method]], json.loads(run.settings)
    if run.method == "kd":
        parts = [f"{run.distillation_loss}-KD"]
    if "method" in settings:
        parts.append(settings["method"])
    if "filter_ratio" in settings:
        parts.append(f"f = {settings['filter_ratio']}")
    if run.loss != Run().loss:
        parts.append(f"{run.loss} loss")
    if run.examples != suites.EXAMPLES:
        parts.append(f"{run.examples:,} examples")
    if run.reference != Run().reference:
        parts.append(f"reference {HIDDEN[run.reference]} wide")
    return ", ".join(parts)


def methods_icons() -> str:
    """All methods on icons: R@1 among held-out ones, and the accuracy over shared names."""
    found, listed = _Cells(), set(suites.icons())
    for run, row in table.read_runs("methods.csv", Run):
        if run in listed or (run.data == "icons" and _is_reference(run)):
            name = METHODS[run.method]
            if _is_reference(run):
                name = "reference, on names that families share"
            elif run.examples == suites.EQUAL_FLOPS:
                name += " at H-ACID's FLOPs"
            for number in ("r1", "zeroshot", "noise"):
                found[name][number].append(float(row[number]))
    titles = ["icons", "R@1, %", "zero-shot, %", "names that hardly any family shares, %"]
    columns = ("r1", "zeroshot", "noise")
    rows = [[name, *(spread(cells[c]) for c in columns)] for name, cells in found.items()]
    return markdown(titles, sorted(rows, key=lambda row: float(row[1].split()[0])))


BEYOND = (
    suites.only_distils,
    suites.teachers,
    suites.scales,
    suites.shifted,
    suites.concepts,
    suites.false_negatives,
)


def methods_beyond() -> str:
    """Methods that are not in the papers, and their baselines."""
    usual = (suites.main, suites.icons, suites.equal_flops, suites.softmax)
    baselines = ("iid", "kd", "h_acid", "aced")
    listed = {run for suite in usual for run in suite() if run.method in baselines}
    return _on_pools(listed.union(*(suite() for suite in BEYOND)))


def methods_captions() -> str:
    """Given captions, others in their place, and both."""
    listed = suites.captions()
    given = {dataclasses.replace(run, captions=Run().captions) for run in listed}
    return _on_pools(given.union(listed))


def methods_augmented() -> str:
    """Few pairs, with and without stored augmentations."""
    return _on_pools(suites.augmented())


def _on_pools(listed: Collection[Run]) -> str:
    """The listed runs by pool; only cells with all seeds."""
    found = _Cells()
    for run, row in table.read_runs("methods.csv", Run):
        numbers = ("r1", "zeroshot") if run.data == "icons" else ("r1",)
        if run in listed:
            for number in numbers:
                found[_beyond(run)][run.data, run.wrong, number].append(float(row[number]))
    pools = {
        "0% wrong": ("shapes", 0.0, "r1"),
        "50% wrong": ("shapes", 0.5, "r1"),
        "icons": ("icons", 0.0, "r1"),
        "icons, zero-shot": ("icons", 0.0, "zeroshot"),
    }
    rows = []
    for name, cells in found.items():
        complete = [cells[pool] for pool in pools.values()]
        shown = [spread(values) if len(values) == len(suites.SEEDS) else "" for values in complete]
        if any(shown):
            rows.append([name, *shown])
    return markdown(["R@1, %", *pools], sorted(rows))


def _beyond(run: Run) -> str:
    """A run in words: the loss, the teachers, what is selected, and whether it is longer."""
    is_long = run.examples == suites.EQUAL_FLOPS
    run = dataclasses.replace(run, examples=suites.EXAMPLES)
    name, settings = METHODS[run.method], json.loads(run.settings)
    if not run.contrastive:
        name = "softmax-KD only" + (", on H-ACID's picks" if run.score else "")
    if run.loss == SHIFTED:
        name = "DRRho" if run.method == "iid" else f"{name} with DRRho"
    elif run.loss != Run().loss:
        name += f", {run.loss} loss"
    if run.teachers == DIVERSE:
        name += ", teacher of the run's own pairs"
    elif run.teachers != Run().teachers:
        name += f", two teachers, mean of {run.average}"
    if run.teacher_scale:
        name += f", teacher's scale {run.teacher_scale:g}"
    if "false_negative_margin" in settings:
        name += f", false negatives by a margin of {settings['false_negative_margin']:g}"
    if run.captions != Run().captions:
        name += f", {run.captions.replace('+', ' and ')} captions"
    if run.pairs:
        name += f", {run.augmentations or 'no'} augmentations"
    return f"{name}, at H-ACID's FLOPs" if is_long else name


def _is_reference(run: Run) -> bool:
    """Whether a run is the training of the usual reference."""
    return run.seed not in suites.SEEDS and run.reference == Run().reference


def smoke() -> str:
    """What the first command prints at its end."""
    lines = (RESULTS / "smoke.txt").read_text(encoding="utf-8").splitlines()[1:]
    return "".join(f"    {line}\n" for line in lines)


def latency() -> str:
    """Cost and time of the presets' towers in float32, by batch size."""
    rows: dict[tuple[str, str], list[str]] = {}
    sizes = {}
    for row in table.read("latency.csv"):
        if row["precision"] != "float32":
            continue
        sizes[row["batch_size"]] = None
        parameters = f"{int(row['parameters']) / 1e6:.1f}M"
        start = [row["model"], row["tower"], parameters, row["gmacs"]]
        cells = rows.setdefault((row["model"], row["tower"]), start)
        cells.append(row["ms"] or "not measured")
    times = [f"ms each, batch of {size}" for size in sizes]
    return markdown(["model", "tower", "parameters", "GMAC", *times], [*rows.values()])


def int8() -> str:
    """Accuracy of the smoke run's models by the precision of their weights."""
    rows = [
        [
            row["model"],
            row["precision"],
            row["megabytes"],
            *(f"{100 * float(row[name]):.2f}" for name in ("classes/top1", "retrieval/mean_r1")),
        ]
        for row in table.read("int8.csv")
    ]
    titles = ["model", "precision", "parameters, MB", "zero-shot, %", "R@1, %"]
    return markdown(titles, rows)


def layers() -> str:
    """The packages and modules of each layer, from the highest to the lowest."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    named = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id in ("LAYERS", "COMMANDS")
    }
    rows = []
    for number, layer in reversed([*enumerate(named["LAYERS"], 1)]):
        names = named["COMMANDS"] if layer == ("commands",) else layer
        rows += [[str(number), f"`aced.{name}`", _purpose(name)] for name in names]
    return markdown(["layer", "package or module", "what it has"], rows)


def score_ahead_speed() -> str:
    """Images per second of each way, and the input of an example in units of uniform sampling's."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in table.read("score_ahead.csv"):
        if row["part"] in ("input", "run"):
            way = (row["way"], row["decode"], row["score_ahead"])
            found.setdefault(way, [*way]).extend([row["images_per_s"], row["cost"]])
    titles = ["candidates", "`data.decode`", "`score_ahead`"]
    titles += ["input alone, images/s", "cost", "run, images/s", "cost"]
    return markdown(titles, [*found.values()])


def score_ahead_overlap() -> str:
    """The mean share of equal picks by the age of the scores and the size of the candidates."""
    found: dict[tuple[str, ...], list[float]] = collections.defaultdict(list)
    for row in table.read("score_ahead.csv"):
        if row["part"] == "overlap":
            drawn = "another" if row["way"] == "other noise" else "the same"
            found[row["score_ahead"], row["resolution"], drawn].append(float(row["overlap"]))
    rows = [[*way, f"{100 * np.mean(values):.1f}"] for way, values in found.items()]
    return markdown(["steps ahead", "candidates, px", "draw", "same picks, %"], rows)


def exports() -> str:
    """The errors of each export."""
    titles = ["model", "`--to`", "loaded by", "image", "text", "parameters", "KiB"]
    names = ("model", "to", "loaded_by", "image", "text", "again")
    rows = [
        [*(row[name] for name in names), f"{int(row['bytes']) // 1024:,}"]
        for row in table.read("exports.csv")
    ]
    return markdown(titles, rows)


def _purpose(name: str) -> str:
    """The first sentence of the docstring of a package or module."""
    folder = ROOT / "aced" / name
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return text.split("\n")[0].split(": `python")[0].rstrip(".") + "."


TABLES = {
    "exports": exports,
    "gain_rule": gain_rule,
    "int8": int8,
    "latency": latency,
    "layers": layers,
    "methods": methods,
    "methods_augmented": methods_augmented,
    "methods_beyond": methods_beyond,
    "methods_captions": methods_captions,
    "methods_else": methods_else,
    "methods_icons": methods_icons,
    "score_ahead_overlap": score_ahead_overlap,
    "score_ahead_speed": score_ahead_speed,
    "smoke": smoke,
    "weights": weights,
}


def filled(text: str) -> str:
    """The text with its tables as the committed results have them."""
    return _MARK.sub(lambda mark: f"{mark[1]}{TABLES[mark[2]]()}{mark[3]}", text)


if __name__ == "__main__":
    for path in TEXTS:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
