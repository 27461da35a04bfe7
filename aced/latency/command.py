"""Measures the towers of models: time, multiply-adds, parameters and memory."""

import dataclasses
import functools
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from aced import inference
from aced.bounds import PositiveFloat, PositiveInt
from aced.config import ConfigError, expand
from aced.cost import flops
from aced.files import storage
from aced.flag_settings import FlagSettings, setting
from aced.inference import Precision, Towers
from aced.models import layouts, presets, two_tower
from aced.models.two_tower import TwoTowerConfig

_FEWEST_RUNS = 3  # even where one takes longer than the time that there is
_AGREE = 0.01  # relative difference of two counts of multiply-adds that is not worth a column


@dataclasses.dataclass(frozen=True)
class LatencyConfig(FlagSettings):
    """The command's settings; each is a flag of the same name."""

    batch_sizes: str = setting(
        "1,8,64", "Numbers of pictures, and of texts, that are computed at once."
    )
    precisions: str = setting(
        "model",
        "model (the model's own dtype), float32, bfloat16, int8 (weights and activations) or "
        "int8_weights (stored so, computed in the model's dtype); several with commas.",
    )
    runs: PositiveInt = setting(50, "Timed runs at most, after those of the warm-up.")
    warm_up: PositiveInt = setting(3, "Runs before those that are timed.")
    seconds: PositiveFloat = setting(
        10.0, f"Of timed runs at most, for each line; there are at least {_FEWEST_RUNS} of them."
    )
    json: bool = setting(False, "Print the numbers as JSON.")

    def _check(self) -> None:
        if wrong := set(self.precisions.split(",")) - set(get_args(Precision)):
            raise ConfigError(
                f"--precisions: {sorted(wrong)[0]!r} is none of {', '.join(get_args(Precision))}."
            )
        for size in self.batch_sizes.split(","):
            if not size.isdecimal() or int(size) < 1:
                raise ConfigError(
                    f"--batch_sizes must be whole numbers from 1 on, as in 1,8,64; found {size!r}."
                )


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One tower at one batch size. Times are of arrays on the device, without preprocessing."""

    model: str
    precision: Precision
    tower: str  # "image" or "text"
    parameters: int
    gmacs: float  # 1e9 multiply-adds of one picture or text: matrix products, by aced/cost/flops.py
    # The same, half of the FLOPs of XLA's cost analysis, which counts elementwise work, too. None:
    # they agree within 1 %
    xla_gmacs: float | None
    batch_size: int
    runs: int
    ms: float  # of one picture or text: the median over the runs, divided by the batch size
    ms_lower: float  # the quartiles
    ms_upper: float
    per_second: float  # pictures or texts, from the median
    arguments: int  # bytes of the parameters and the batch, as XLA plans its memory
    temporaries: int  # bytes beside arguments and results


def measure(sources: Sequence[str], config: LatencyConfig) -> Iterator[Measurement]:
    """Measures models on the first local device, in one line for each tower and batch size.

    Args:
        sources: names of `presets.MODELS`, or models that `aced.load` loads. Presets have random
            parameters.
        config: the settings.

    Raises:
        ConfigError: there are no sources, or one is neither a preset nor a model.
        CheckpointError: a run has no checkpoint.
    """
    if not sources:
        raise ConfigError(
            "No models: give folders of models, workdirs of runs, or presets "
            f"({', '.join(presets.MODELS)})."
        )
    device = jax.local_devices()[0]
    for source in sources:
        model, params = _model(source)
        for precision in config.precisions.split(","):
            towers = Towers(model, params, precision, [device])
            for tower in ("image", "text"):
                yield from _tower(source, precision, towers, tower, config)


def device() -> str:
    """The device that `measure` uses, in words."""
    first = jax.local_devices()[0]
    if first.platform == "cpu":
        return f"a CPU ({platform.machine()}) with {os.cpu_count()} cores"
    return f"one {first.device_kind}"


def _model(source: str) -> tuple[TwoTowerConfig, Any]:
    """The settings of a model, and its parameters on the host."""
    if source in presets.MODELS:
        config = two_tower.preset(source)
        return config, jax.device_get(jax.jit(config.init)(jax.random.key(0)))
    is_path = storage.is_remote(source) or pathlib.Path(expand(source)).exists()
    if not is_path and not layouts.is_hub_name(source):
        raise ConfigError(
            f"{source} is neither a model or run here nor a preset; the presets are "
            f"{', '.join(presets.MODELS)}."
        )
    model = inference.read(source)
    return model.config, model.params


def _tower(
    source: str, precision: Precision, towers: Towers, tower: str, config: LatencyConfig
) -> Iterator[Measurement]:
    model, jitted = towers.config, getattr(towers, tower)
    ours = flops.macs(model)[tower == "text"]
    xla = xla_macs(model, tower)
    for size in map(int, config.batch_sizes.split(",")):
        batch = jax.device_put(inputs(model, tower, size), towers.mesh.devices.flat[0])
        compiled = jitted.lower(towers.params, batch).compile()
        seconds = _timed(functools.partial(compiled, towers.params, batch), config)
        lower, median, upper = (1000 * x / size for x in np.percentile(seconds, (25, 50, 75)))
        memory = compiled.memory_analysis()
        yield Measurement(
            model=source,
            precision=precision,
            tower=tower,
            parameters=parameters(model, tower),
            gmacs=ours / 1e9,
            xla_gmacs=None if abs(xla - ours) <= _AGREE * ours else xla / 1e9,
            batch_size=size,
            runs=len(seconds),
            ms=median,
            ms_lower=lower,
            ms_upper=upper,
            per_second=1000 / median,
            arguments=memory.argument_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
        )


def inputs(model: TwoTowerConfig, tower: str, size: int) -> np.ndarray:
    """Random pictures, uint8 [size r r 3], or ids of texts, int32 [size l]."""
    rng = np.random.default_rng(0)
    if tower == "image":
        side = model.image.resolution
        return rng.integers(0, 256, (size, side, side, 3), np.uint8)
    length = min(model.tokenizer.length, model.text.length)
    return rng.integers(0, model.text.vocab_size, (size, length), np.int32)


def _timed(run: Callable[[], jax.Array], config: LatencyConfig) -> list[float]:
    """Seconds of each run after the warm-up."""
    for _ in range(config.warm_up):
        run().block_until_ready()
    seconds: list[float] = []
    while len(seconds) < config.runs:
        if len(seconds) >= _FEWEST_RUNS and sum(seconds) > config.seconds:
            break
        start = time.perf_counter()
        run().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return seconds


def parameters(model: TwoTowerConfig, tower: str) -> int:
    """The number of a tower's parameters."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))[tower]
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def xla_macs(model: TwoTowerConfig, tower: str) -> float:
    """Half of the FLOPs of one picture or text by XLA's cost analysis, in float32.

    Layers are unrolled, since XLA counts the body of a loop once.
    """
    model = dataclasses.replace(model, scan=False, dtype="float32", attention="xla")
    module = model.build()
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = jax.eval_shape(jnp.asarray, inputs(model, tower, 1))

    def encode(params: Any, batch: jax.Array) -> jax.Array:
        return module.apply({"params": params}, batch, method=f"encode_{tower}")

    return jax.jit(encode).lower(params, batch).cost_analysis()["flops"] / 2
