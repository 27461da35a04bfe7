"""A trained model in Python: embeddings of pictures and texts, and how well they match.

model = aced.load("models/siglip")
model.probabilities("picture.jpg", ["a photo of a cat", "a photo of a dog"])
"""

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Array, Float, Int, PyTree, UInt8
from PIL import Image

from aced.checkpoints import checkpointer
from aced.config import ConfigError, expand
from aced.convert import command, tokenizer_write
from aced.data.batch_spec import View
from aced.data.images import decode
from aced.data.images.decode import DecodeError
from aced.data.images.pictures import Viewer
from aced.methods.frozen import evaluated_parameters
from aced.models import int8_weights, layouts
from aced.models.base import ModelConfig
from aced.models.saved import Model
from aced.models.two_tower import logit_parameters
from aced.parallel import mesh as meshes
from aced.train import program

# "model": in the model's own dtype. "int8": products of weights and activations in 8-bit integers;
# "int8_weights": weights stored in 8-bit integers. All else is in the model's own dtype.
Precision = Literal["model", "float32", "bfloat16", "int8", "int8_weights"]
Picture = str | os.PathLike | bytes | Image.Image | UInt8[np.ndarray, "_ _ 3"]


class Towers:
    """Both towers of a model as jitted functions of the parameters, which lie on a mesh.

    Attributes:
        config: the model's settings, with the dtype of `precision`.
        params: the parameters, whole on every device of the mesh.
        mesh: the devices.
        image: (params, uint8 [b h w 3]) to zimg, float32 [b d], L2-normalised.
        text: (params, int32 [b l]) to ztxt, float32 [b d], L2-normalised.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: PyTree,
        precision: Precision = "model",
        devices: Sequence[jax.Device] | None = None,
    ):
        """Places `params`, float32 arrays on the host, on `devices` (None: all local ones).

        Raises:
            ConfigError: the model's attention cannot be computed in this precision.
        """
        if precision in ("float32", "bfloat16"):
            config = dataclasses.replace(config, dtype=precision)
        self.config = config
        self.mesh = meshes.make_mesh(jax.local_devices() if devices is None else devices)
        if precision == "int8_weights":
            params = jax.jit(int8_weights.quantized)(params)
        else:
            stored = program.frozen_shapes(config, self.mesh, ())
            params = jax.tree.map(lambda x, s: np.asarray(x).astype(s.dtype), params, stored)
        self.params = jax.device_put(params, meshes.replicated(self.mesh))
        module = config.build(int8=precision == "int8")

        def tower(method: str) -> Callable[[PyTree, Array], Array]:
            return jax.jit(lambda params, x: module.apply({"params": params}, x, method=method))

        self.image, self.text = tower("encode_image"), tower("encode_text")


class Encoder:
    """A trained model with its preprocessing: pictures and texts in, embeddings out.

    Embeddings are L2-normalised. Batches are shared by the devices of the mesh. A batch that is not
    full is padded, so that there is one compilation for each batch size, and one for each power of
    two below it that holds a small request.

    Attributes:
        config: the model's settings.
        params: its parameters on the mesh: `config.embed(params, image, text)` computes with them,
            unless the precision is an integer one.
        mesh: the devices.
        scale: the factor of the logits: `scale * <zimg, ztxt> + bias`.
        bias: the bias of the logits; 0 for a model that was trained with the softmax loss.
    """

    def __init__(
        self,
        model: Model,
        precision: Precision = "model",
        devices: Sequence[jax.Device] | None = None,
    ):
        """Places the model on `devices` (None: all local ones).

        Raises:
            ConfigError: the tokenizer does not fit the model, or the precision its attention.
        """
        self._tokenizer = tokenizer_write.opened(model)
        model.config.check_tokenizer(self._tokenizer)
        self._view = Viewer([View.of(model.config).look], "exact", decode.MAX_PIXELS)
        self._towers = Towers(model.config, model.params, precision, devices)
        self.config, self.params = self._towers.config, self._towers.params
        self.mesh = self._towers.mesh
        self.scale, self.bias = (float(x) for x in logit_parameters(self.params))

    def embed_images(
        self, images: Picture | Iterable[Picture], batch_size: int = 64
    ) -> Float[np.ndarray, "n d"]:
        """Returns L2-normalised embeddings, one row for each picture.

        Args:
            images: one picture or several, of any sizes. A picture is a path, the bytes of an
                encoded file, an image of Pillow's, or a uint8 array [h w 3]. Pictures are resized,
                cropped and normalised as in the model's training.
            batch_size: pictures computed at once; rounded up to a multiple of the devices.

        Raises:
            DecodeError: a picture cannot be read; the message names it.
            OSError: a file cannot be opened.
            TypeError: an item is not a picture.
        """
        pictures = [images] if _is_picture(images) else list(images)
        with concurrent.futures.ThreadPoolExecutor() as threads:

            def read(start: int, end: int) -> UInt8[np.ndarray, "b r r 3"]:
                places = range(start, min(end, len(pictures)))
                return np.stack(list(threads.map(self._pixels, places, pictures[start:end])))

            return self._embed(self._towers.image, read, len(pictures), batch_size)

    def embed_texts(
        self, texts: str | Iterable[str], batch_size: int = 64
    ) -> Float[np.ndarray, "n d"]:
        """Returns L2-normalised embeddings, one row for each text.

        Args:
            texts: one text or several. Those that are too long are cut, as in training.
            batch_size: texts computed at once; rounded up to a multiple of the devices.

        Raises:
            TypeError: an item is not a string.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"Text {i} is a {type(text).__name__}; give strings.")

        def read(start: int, end: int) -> Int[np.ndarray, "b l"]:
            return self._tokenizer(texts[start:end])

        return self._embed(self._towers.text, read, len(texts), batch_size)

    def similarity(
        self, images: Picture | Iterable[Picture], texts: str | Iterable[str], batch_size: int = 64
    ) -> Float[np.ndarray, "n m"]:
        """Returns the logits of n pictures and m texts, `scale * <zimg, ztxt> + bias`.

        The arguments and errors are those of `embed_images` and `embed_texts`.
        """
        zimg, ztxt = self.embed_images(images, batch_size), self.embed_texts(texts, batch_size)
        return self.scale * zimg @ ztxt.T + self.bias

    def probabilities(
        self,
        images: Picture | Iterable[Picture],
        texts: str | Iterable[str],
        loss: Literal["softmax", "sigmoid"] | None = None,
        batch_size: int = 64,
    ) -> Float[np.ndarray, "n m"]:
        """Returns the probability of each text for each picture, of n pictures and m texts.

        Args:
            images: see `embed_images`.
            texts: see `embed_texts`; prompts such as "a photo of a cat" for zero-shot
                classification.
            loss: "softmax": exactly one of the texts fits, so that each row sums to one.
                "sigmoid": each text fits or not by itself. None: the loss of the model's training,
                which is the sigmoid if the model has a bias.
            batch_size: see `embed_images`.
        """
        logits = self.similarity(images, texts, batch_size)
        if loss is None:
            loss = "softmax" if self.config.init_bias is None else "sigmoid"
        return np.asarray(jax.nn.softmax(logits) if loss == "softmax" else jax.nn.sigmoid(logits))

    def _embed(
        self,
        tower: Callable[[PyTree, Array], Array],
        read: Callable[[int, int], np.ndarray],
        count: int,
        batch_size: int,
    ) -> Float[np.ndarray, "n d"]:
        """Applies a tower to `count` rows; `read(start, end)` returns those from start to end."""
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
        shards = meshes.example_shards(self.mesh)
        size = min(batch_size, 1 << max(count - 1, 0).bit_length())
        size = -(-size // shards) * shards
        parts: list[Any] = [np.zeros((0, self.config.width), np.float32)]
        with jax.set_mesh(self.mesh):
            for start in range(0, count, size):
                rows = read(start, start + size)
                rows = np.pad(rows, [(0, size - len(rows)), *[(0, 0)] * (rows.ndim - 1)])
                batch = jax.device_put(rows, meshes.by_example(self.mesh))
                parts.append(tower(self.params, batch))
                # The devices compute one batch while the next one is read.
                parts[-2] = np.asarray(parts[-2])
        return np.concatenate([*parts[:-1], np.asarray(parts[-1])])[:count]

    def _pixels(self, place: int, picture: Picture) -> UInt8[np.ndarray, "r r 3"]:
        try:
            (pixels,) = self._view({"image": _content(place, picture)})
        except DecodeError as error:
            name = f", {picture}," if isinstance(picture, str | os.PathLike) else ""
            raise DecodeError(f"Picture {place}{name} cannot be read: {error}") from error
        return pixels


def load(
    source: str | os.PathLike,
    *,
    which: Literal["last", "best"] = "last",
    parameters: Literal["trained", "params", "ema"] = "trained",
    precision: Precision = "model",
    devices: Sequence[jax.Device] | None = None,
) -> Encoder:
    """Loads a trained two-tower model of any format that `python -m aced.convert` reads.

    Args:
        source: a run's workdir, a model folder, a folder of transformers or open_clip, which is
            converted in memory, or the owner/name of a model on the Hugging Face hub.
        which: of a run's checkpoints.
        parameters: of a run: those that its training evaluates, the parameters themselves, or their
            moving average.
        precision: "model": in the model's own dtype; "float32" or "bfloat16": in another one.
            "int8": weights and activations in 8-bit integers, which accelerators multiply faster.
            "int8_weights": weights in 8-bit integers, which take a quarter of the memory.
        devices: the devices to share batches; None: all local ones.

    Raises:
        ConfigError: `source` is not a model that can be read, or lacks the requested parameters.
        CheckpointError: the run lacks the checkpoint.
    """
    return Encoder(read(os.fspath(source), which, parameters), precision, devices)


def read(
    source: str,
    which: Literal["last", "best"] = "last",
    parameters: Literal["trained", "params", "ema"] = "trained",
) -> Model:
    """Returns the model that `load` loads, as arrays on the host.

    Arguments and errors are those of `load`.
    """
    if source.endswith(layouts.BIG_VISION_SUFFIX):
        raise ConfigError(
            f"{source} holds weights without settings. Convert it, and load the new folder: "
            + layouts.convert_command(source)
        )
    folder = expand(source)
    if (epath.Path(folder) / checkpointer.FOLDER).is_dir():
        if parameters == "trained":
            parameters = evaluated_parameters(folder)
    elif (which, parameters) not in (("last", "trained"), ("last", "params")):
        raise ConfigError(
            f"{source} is not a run: it has one set of parameters. Leave `which` and `parameters` "
            "at their defaults."
        )
    else:
        parameters = "params"
    _, model = command.read(command.SourceConfig(source=source, which=which, parameters=parameters))
    for note in model.notes:
        logging.warning("%s: %s", source, note)
    return model


def _is_picture(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, str | os.PathLike | bytes | Image.Image)


def _content(place: int, picture: Any) -> bytes | UInt8[np.ndarray, "h w 3"]:
    """A picture as `Viewer` takes it."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return pathlib.Path(picture).read_bytes()
    if isinstance(picture, Image.Image):
        return decode.from_pillow(picture)
    kind = type(picture).__name__
    if isinstance(picture, np.ndarray):
        if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3:
            return picture
        kind = f"{picture.dtype} array {list(picture.shape)}"
    raise TypeError(
        f"Picture {place} is a {kind}; give a path, the bytes of a file, an image of Pillow's, or "
        "a uint8 array [h w 3]."
    )
