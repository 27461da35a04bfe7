"""The names that were probably meant where an unknown name was given."""

import difflib
from collections.abc import Collection, Iterable, Sequence

# Settings, and what they are called elsewhere.
_CALLED = {
    "optimizer.schedule.peak": ("lr", "learning_rate", "max_lr", "base_lr", "peak_lr"),
    "optimizer.schedule.warmup_steps": ("warmup",),
    "optimizer.schedule.warmup_percent": ("warmup", "warmup_ratio"),
    "optimizer.schedule.kind": ("scheduler", "lr_schedule", "lr_scheduler"),
    "optimizer.name": ("optim",),
    "optimizer.weight_decay": ("wd", "decay"),
    "optimizer.b1": ("beta1",),
    "optimizer.b2": ("beta2",),
    "optimizer.clip_norm": ("clip", "grad_clip", "grad_clip_norm", "max_grad_norm"),
    "batch_size": ("batch", "bs", "batchsize", "global_batch_size"),
    "total_steps": ("steps", "num_steps", "max_steps", "iters", "iterations"),
    "total_epochs": ("epochs", "num_epochs", "max_epochs"),
    "total_examples": ("examples", "samples"),
    "ema_decay": ("ema",),
    "log_steps": ("log_every", "log_interval", "log_freq"),
    "checkpoint.every_steps": ("save_every", "save_steps", "save_frequency"),
    "init.checkpoint": ("init", "pretrained", "resume"),
    "data.source": ("data", "dataset"),
    "data.num_threads": ("workers", "num_workers"),
    "method.model.dtype": ("dtype",),
    "method.model.remat": ("grad_checkpointing",),
    "method.model.init_scale": ("temperature",),
    "method.model.image.resolution": ("resolution", "image_size", "img_size"),
    "method.model.image.patch": ("patch_size",),
    "method.model.text.length": ("length", "context_length", "seq_len"),
    "method.model.tokenizer.length": ("length", "context_length", "seq_len"),
    "method.train_micro_batch": ("accum_freq", "grad_accum", "micro_batch"),
    "method.reference.checkpoint": ("reference",),
}


def usual(name: str) -> list[str]:
    """Returns the paths of the settings that are commonly called `name`."""
    name = name.replace("-", "_").lower()
    return [path for path, called in _CALLED.items() if name in called]


def names(name: str, known: Iterable[str]) -> list[str]:
    """Returns up to three of the `known` names that resemble `name`, the nearest first."""
    found = difflib.get_close_matches(name.replace("-", "_"), list(known), n=3, cutoff=0.6)
    return [name] if name in found else found


def arguments(name: str, known: Collection[str]) -> list[str]:
    """Returns the arguments of a recipe that `name` may stand for, as `names` and `usual` do."""
    common = {other for path in usual(name) for other in _CALLED[path] if other in known}
    return names(name, known) or sorted(common)


def settings(path: str, known: Collection[str]) -> list[str]:
    """Returns up to three paths of settings that a wrong path may stand for, the nearest first.

    Args:
        path: of no setting, such as "optimizer.lr".
        known: the paths of all settings.

    Where the last part of the path is what settings are commonly called, these are returned.
    """
    last = path.rpartition(".")[2]
    if common := [one for one in usual(last) if one in known]:
        return common
    ends = {one.rpartition(".")[2] for one in known}
    alike = {last, *difflib.get_close_matches(last, ends, n=5, cutoff=0.75)}
    found = {one for one in known if one.rpartition(".")[2] in alike}
    found |= set(difflib.get_close_matches(path, list(known), n=3, cutoff=0.8))
    ratios = {one: difflib.SequenceMatcher(None, path, one).ratio() for one in found}
    nearest = sorted(found, key=lambda one: (-ratios[one], one))[:3]
    return [one for one in nearest if ratios[one] > ratios[nearest[0]] - 0.15]


def did_you_mean(found: Sequence[str]) -> str:
    """Returns the end of a message, "; did you mean a, b or c?", or "." if nothing was found."""
    if not found:
        return "."
    *others, last = found
    return f"; did you mean {' or '.join(filter(None, (', '.join(others), last)))}?"
