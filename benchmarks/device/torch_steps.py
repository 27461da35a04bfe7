"""The step of siglip_b16 in PyTorch, at the largest batch that it has in `steps`.

    python -m benchmarks.device.torch_steps --batch=2048 --out=steps.csv --seconds=60

open_clip's ViT-B-16-SigLIP-256 is the same model; where it can't be imported, `torch_model` stands
for it. bfloat16 under autocast, attention by scaled_dot_product_attention, every block computed
again in the backward pass, as the recipe has it, the sigmoid loss of all pairs, clipped gradients,
AdamW, fused; once as it is and once by torch.compile. Pixels are bytes on the device, as there. A
batch that does not fit is halved.
"""

import argparse
import functools
import gc
import pathlib
import time
from collections.abc import Callable

import torch
from torch import nn

from aced import methods
from aced.models.two_tower import TwoTowerConfig
from benchmarks.device import cases, steps, timing
from benchmarks.device.rows import Rows
from benchmarks.device.search import DoesNotFitError, largest
from benchmarks.device.torch_model import TwoTowers


def model_of(config: TwoTowerConfig) -> tuple[str, nn.Module]:
    """The model of SigLIP B/16 at 256 px, and whose it is."""
    try:
        import open_clip

        model = open_clip.create_model("ViT-B-16-SigLIP-256")
    except (ImportError, RuntimeError, AttributeError) as error:  # made for another torch
        print(f"open_clip can't be used, plain PyTorch stands for it: {error}", flush=True)
        image, text = config.image, config.text
        return "torch", TwoTowers(
            resolution=image.resolution,
            patch=image.patch,
            length=text.length,
            words=text.vocab_size,
        )
    model.set_grad_checkpointing(True)
    return "open_clip", model


def step_of(
    model: nn.Module, config: TwoTowerConfig, batch: int, device: str
) -> Callable[[], torch.Tensor]:
    """A step on random pairs, to be taken again and again; it gives the loss."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=1e-4, fused=True
    )
    shape = batch, 3, config.image.resolution, config.image.resolution
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    text = torch.randint(0, config.text.vocab_size, (batch, config.text.length), device=device)
    sign = 2 * torch.eye(batch, device=device) - 1

    def step() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            zimg, ztxt, scale, bias = model(pixels.float() / 127.5 - 1, text)
            logits = scale * zimg @ ztxt.T + bias
        loss = -nn.functional.logsigmoid(sign * logits.float()).sum() / batch
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    return step


def measure(rows: Rows, compiles: bool, batch: int) -> str:
    """Times a batch and adds its row, unless it is there; returns its case.

    Raises:
        DoesNotFitError: the device has not the memory.
    """
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    method = steps.settings(cases.CASES[cases.IID], batch).method
    name, model = model_of(method.model)
    kind = torch.cuda.get_device_name()
    case = f"{cases.IID}_{name}{'_compiled' if compiles else ''}"
    if rows.find(device=kind, case=case):
        return case
    model = model.cuda().train()
    step = step_of(torch.compile(model) if compiles else model, method.model, batch, "cuda")
    message, start = "", time.perf_counter()
    try:
        step()
        first = time.perf_counter() - start
        found = timing.seconds(step)
    except torch.cuda.OutOfMemoryError as error:
        message = str(error)
    if message:
        print(f"{name}: {batch} does not fit: {message[:200]}", flush=True)
        raise DoesNotFitError(message)
    flops = methods.build(method).flops_per_step(batch)
    row = {
        "device": kind,
        "case": case,
        "batch": batch,
        "candidates": batch,
        **timing.numbers(found, batch=batch, flops=flops, device=kind),
        "compile_s": first if compiles else "",
        "peak_gb": torch.cuda.max_memory_allocated() / steps.GB,
        "limit_gb": torch.cuda.mem_get_info()[1] / steps.GB,
        "limit": "asked",
    }
    rows.put([row])
    print(row, flush=True)
    return case


def main() -> None:
    """Measures both variants."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, required=True, help="examples trained on per step")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the CSV")
    parser.add_argument("--seconds", type=float, default=600.0, help="for both together")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("PyTorch is left out: it has no CUDA here", flush=True)
        return
    start, rows = time.monotonic(), Rows(args.out, cases.COLUMNS, cases.KEY)
    for compiles in (False, True):
        if compiles and 3 * (time.monotonic() - start) > args.seconds:
            print("torch.compile is left out: no time is left for it", flush=True)
            return
        run = functools.partial(measure, rows, compiles)
        largest(args.batch, run, lambda *_: "asked", least=max(1, args.batch // 8))


if __name__ == "__main__":
    main()
