"""What is drawn: metrics that can be compared between runs, each in a panel."""

import dataclasses
from collections.abc import Iterable, Sequence

from aced.report.runs import Run
from aced.train import summary

_SELECTION = {  # and whether it is a share
    "selection/noisy_share": True,
    "selection/perplexity": True,
    "selection/variety": True,
    "selection/near_copies": True,
    "selection/easy_overlap": True,
}
_PICKED = "/picked_share"  # of a member of a mixture: sources/NAME/picked_share
_BASELINES = {  # the same number of the whole super-batch
    "selection/noisy_share": "selection/noisy_share_super_batch",
    _PICKED: "/share",
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """A metric of some runs."""

    title: str
    metric: str
    runs: list[Run]
    is_share: bool  # drawn in per cent
    baseline: str | None = None  # a metric to compare with, drawn dotted


def of(runs: Sequence[Run]) -> list[Panel]:
    """The panels of a page: scores of evaluations, losses, and what was selected."""
    by_metric: dict[str, list[Run]] = {}
    for run in runs:
        for name in dict.fromkeys(name for line in run.lines for name in line):
            by_metric.setdefault(name, []).append(run)
    scores = summary.scores(by_metric)
    panels = [
        Panel(name, name, by_metric[name], form.endswith("%}")) for name, form in scores.items()
    ]
    panels += _losses(by_metric)
    for name, is_share in _SELECTION.items():
        if name in by_metric:
            panels.append(Panel(name, name, by_metric[name], is_share, _BASELINES.get(name)))
    for name in by_metric:
        if name.startswith("sources/") and name.endswith(_PICKED):
            share = name.removesuffix(_PICKED) + _BASELINES[_PICKED]
            panels.append(Panel(name, name, by_metric[name], True, share))
    return panels


def _losses(by_metric: dict[str, list[Run]]) -> Iterable[Panel]:
    """A panel for each part of the loss, and kind of contrastive loss.

    "loss" is the sum of a run's parts, which differ between methods, so that it is drawn only for
    runs without parts.
    """
    in_parts = set()
    for name in sorted(name for name in by_metric if name.startswith("loss/")):
        kinds: dict[str, list[Run]] = {}
        for run in by_metric[name]:
            in_parts.add(run.name)
            kinds.setdefault(_kind(name, run), []).append(run)
        for title, runs in kinds.items():
            yield Panel(title, name, runs, is_share=False)
    whole = [run for run in by_metric.get("loss", []) if run.name not in in_parts]
    if whole:
        yield Panel("loss", "loss", whole, is_share=False)


def _kind(name: str, run: Run) -> str:
    """The part of the loss, with its form where methods have several: sigmoid or softmax."""
    method = run.settings.get("method", {})
    forms = {
        "loss/contrastive": method.get("loss"),
        "loss/distillation": (method.get("distillation") or {}).get("loss"),
    }
    form = forms.get(name)
    return f"{name}, {form}" if form else name
