"""Draws benchmarks/results/*.png from the committed tables: `python -m benchmarks.plots`.

Needs matplotlib (`pip install '.[plots]'`). A point is a run, a bar the mean over its seeds.
"""

import collections
import json

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from benchmarks import documents
from benchmarks.methods import suites
from benchmarks.methods.runs import Run
from benchmarks.table import RESULTS, as_run, read, read_runs

MODULES = ("image", "unimodal", "multimodal")
COLOURS = ("#4477aa", "#ee6677", "#228833")
METHOD_COLOURS = ("#888888", "#4477aa", "#aa3377", "#228833", "#ccbb44")  # of suites.MAIN


def bars(axis: mpl.axes.Axes, values: dict[str, list[float]], colour: str) -> None:
    """A bar for each name, the largest mean on top, with a point for each run."""
    names = sorted(values, key=lambda name: np.mean(values[name]))
    for y, name in enumerate(names):
        axis.barh(y, np.mean(values[name]), color=colour, alpha=0.6)
        axis.plot(values[name], [y] * len(values[name]), "k.", markersize=4)
    axis.set_yticks(range(len(names)), names, fontsize=8)


def dime() -> None:
    """What each part of DIME-FM gives, as a share of the teacher's retrieval."""
    rows = [row for row in read("dime.csv") if row["run"] != "teacher"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
    titles = {
        "scenes/mean_r1": "retrieval, scenes",
        "drawings/mean_r1": "retrieval, drawings",
        "classes/top1": "zero-shot, scenes",
    }
    for axis, (number, title) in zip(axes, titles.items(), strict=True):
        values = collections.defaultdict(list)
        for row in rows:
            values[row["run"]].append(100 * float(row[f"{number} share"]))
        bars(axis, values, COLOURS[0])
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("% of the teacher", fontsize=8)
    figure.savefig(RESULTS / "dime.png", dpi=100)


def optima() -> None:
    """Scores of all students on all tasks."""
    rows = read("optima_answers.csv") + read("optima_captions.csv")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4 * len(tasks), 3.2), layout="constrained", squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        values = collections.defaultdict(list)
        for row in rows:
            if row["task"] == task:
                values[row["run"]].append(float(row["score"]))
        best = values.pop("teacher")[0]
        values.pop("most frequent answer", None)  # far below
        bars(axis, values, COLOURS[0])
        low = min(min(found) for found in values.values())
        axis.set_xlim(left=max(0.0, low - 0.1 * (best - low)))
        axis.set_title(f"{task} (teacher {best:.3f})", fontsize=9)
    figure.savefig(RESULTS / "optima.png", dpi=100)


def arms() -> None:
    """Which module OPTIMA played over time: the share of the seeds, smoothed over five pulls."""
    rows = read("optima_answers_arms.csv") + read("optima_captions_arms.csv")
    rows = [row for row in rows if row["run"] == "OPTIMA"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4 * len(tasks), 2.6), layout="constrained", squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        played = collections.defaultdict(list)
        for row in rows:
            if row["task"] == task:
                played[int(row["step"])].append(row["played"])
        steps = sorted(played)
        shares = np.array([[np.mean([m == p for p in played[s]]) for m in MODULES] for s in steps])
        ones = np.convolve(np.ones(len(steps)), np.ones(5), "same")
        smooth = [np.convolve(column, np.ones(5), "same") / ones for column in shares.T]
        axis.stackplot(steps, smooth, labels=MODULES, colors=COLOURS, alpha=0.8)
        axis.set_title(task, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylim(0, 1)
        axis.margins(x=0)
    axes[0][0].set_ylabel("share of the seeds", fontsize=8)
    axes[0][-1].legend(fontsize=7, loc="lower right")
    figure.savefig(RESULTS / "optima_arms.png", dpi=100)


def gain() -> None:
    """R@1 against how sharp the draws are, for each batch size: the paper's gain beside ours."""
    sizes = (64, 256, 1024)
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.5), layout="constrained", sharey="row")
    for line, wrong in zip(axes, (0.0, 0.5), strict=True):
        rows = [
            (run, 100 * float(row["r1"]))
            for run, row in read_runs("gain.csv", Run)
            if documents.is_plain(run) and run.wrong == wrong
        ]
        for axis, key in zip(line, ("gain", "perplexity_share"), strict=True):
            for size, colour in zip(sizes, COLOURS, strict=True):
                values, iid = collections.defaultdict(list), []
                for run, r1 in rows:
                    settings = json.loads(run.settings)
                    usual = settings.get("reference_weight", 2.0) == 2.0
                    if run.batch_size != size:
                        continue
                    if not run.score:
                        iid.append(r1)
                    elif run.score == "learnability" and key in settings and usual:
                        values[settings[key]].append(r1)
                if not iid or not values:
                    continue
                places = sorted(values)
                means = [np.mean(values[place]) for place in places]
                axis.plot(places, means, "o-", color=colour, label=f"b = {size}")
                axis.axhline(np.mean(iid), color=colour, linestyle=":", linewidth=1)
            axis.set_title(f"{float(wrong):.0%} wrong captions", fontsize=9)
        line[0].set_xscale("log")
        line[0].set_ylabel("R@1, % (dotted: IID)", fontsize=8)
        line[1].legend(fontsize=7)
    axes[1][0].set_xlabel("selection.gain, the paper's rule", fontsize=8)
    axes[1][1].set_xlabel("selection.perplexity_share, reference_weight 2", fontsize=8)
    figure.savefig(RESULTS / "gain.png", dpi=100)


def methods() -> None:
    """R@1 against examples, a line a method with a band over seeds, and the noise of the picks."""
    curves = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in read("methods.csv"):
        run = as_run(Run, row)
        if documents.is_main(run) and run.method in suites.MAIN:
            curves[run.data, run.wrong][run.method].append(row)
    panels = [
        (("shapes", 0.5), "r1", "scenes, half of the captions wrong"),
        (("shapes", 0.5), "noise", "wrong captions trained on"),
        (("shapes", 0.0), "r1", "scenes, no caption wrong"),
        (("icons", 0.0), "r1", "icons with the names they have"),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 3.4), layout="constrained")
    for axis, (pool, number, title) in zip(axes, panels, strict=True):
        for method, colour in zip(suites.MAIN, METHOD_COLOURS, strict=True):
            points = collections.defaultdict(list)
            for row in curves[pool][method]:
                points[int(row["examples_trained"]) / 1000].append(100 * float(row[number]))
            places = sorted(points)
            means = np.array([np.mean(points[place]) for place in places])
            widths = np.array([np.std(points[place], ddof=1) for place in places])
            label = documents.METHODS[method]
            axis.plot(places, means, color=colour, label=label, linewidth=1.5)
            axis.fill_between(
                places, means - widths, means + widths, color=colour, alpha=0.2, linewidth=0
            )
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("thousands of examples trained", fontsize=8)
        axis.set_ylabel("R@1, %" if number == "r1" else "%", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=7)
    figure.savefig(RESULTS / "methods.png", dpi=100)


if __name__ == "__main__":
    mpl.use("agg")
    methods()
    gain()
    dime()
    optima()
    arms()
