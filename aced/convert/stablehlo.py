"""Writes both towers as StableHLO, which jax.export.deserialize loads without this package.

The graphs contain the weights, run on CPU, TPU and CUDA GPUs, and take batches of any size. JAX
guarantees that its versions of at least the next six months load them. See `serving` for the files.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
from jax import export

from aced.convert import serving
from aced.models import two_tower
from aced.models.saved import InteropError, Model, flat

PLATFORMS = ("cpu", "cuda", "tpu")
_MAX_BYTES = 2**31 - 2**20  # of a FlatBuffer, which jax.export writes


def write(model: Model, folder: pathlib.Path) -> list[str]:
    """Writes `model` into the empty `folder`.

    Returns:
        Notes on differences from the model, with the measured errors.

    Raises:
        InteropError: flatbuffers is not installed, a tower is too large, or the tokenizer cannot be
            converted.
    """
    try:
        import flatbuffers  # noqa: F401 - jax.export imports it when it serializes
    except ImportError as error:
        raise InteropError("--to=stablehlo needs: pip install '.[stablehlo]'.") from error
    model, written = serving.with_tokenizer(model)
    # The graphs have to run on any platform, and have no backward pass.
    config = dataclasses.replace(model.config, attention="xla", remat="none")
    model = dataclasses.replace(model, config=config)
    towers = {}
    for name, inputs in serving.examples(config, 1).items():
        size = sum(x.nbytes for x in flat(model.params[name]).values())
        if size > _MAX_BYTES:
            raise InteropError(
                f"The {name} tower has {size:,} bytes, and a file of jax.export fewer than 2 GiB; "
                "convert --to=huggingface instead."
            )
        content = _exported(model, name, inputs.shape[1:], inputs.dtype)
        (folder / f"{name}.stablehlo").write_bytes(content)
        towers[name] = export.deserialize(bytearray(content)).call
    errors = serving.errors(model, towers)
    serving.write_description(model, folder, "stablehlo", errors)
    serving.write_tokenizer(written, folder)
    return [*written.notes, serving.note(errors)]


def _exported(model: Model, name: str, shape: tuple[int, ...], dtype: jnp.dtype) -> bytes:
    """A tower for batches of any size, serialized."""
    tower, params = two_tower.TwoTower(model.config), jax.device_put(model.params)

    @jax.jit
    def embed(x: jax.Array) -> jax.Array:
        return tower.apply({"params": params}, x, method=f"encode_{name}")

    (batch,) = export.symbolic_shape("b")
    argument = jax.ShapeDtypeStruct((batch, *shape), dtype)
    return bytes(export.export(embed, platforms=PLATFORMS)(argument).serialize())
