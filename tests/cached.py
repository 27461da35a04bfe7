"""A prepared data set with every kind of example, and models to make caches with."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from aced.data import records
from aced.data.shapes.scenes import Shapes, ShapesConfig
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from aced.models import model_folder, two_tower
from aced.models.saved import Model
from aced.models.text import TextConfig
from aced.models.vit import ImageConfig
from tests import small_run

BROKEN, SILENT = 17, 31  # examples: a picture that does not decode, captions that are blank


def write_data(folder, size=90):
    """Pictures with one to four captions, some of them blank, in two shards."""
    shapes = Shapes(ShapesConfig(size=4 * size, resolution=32))
    examples = []
    for i in range(size):
        file = io.BytesIO()
        Image.fromarray(shapes[i]["image"]).save(file, "PNG")
        texts = [shapes[i + k * size]["texts"][0] for k in range(1 + i % 4)]
        texts[1:1] = [" "] if i % 3 else []
        image = file.getvalue()[:100] if i == BROKEN else file.getvalue()
        texts = ["  "] if i == SILENT else texts
        examples.append(records.Example(image, tuple(texts), f"{i}.png"))
    folder.mkdir()
    splits = {"train": records.write_split(folder, "train", examples, size, 2)}
    records.write_description(folder, splits, statistics={}, settings={})
    return str(folder)


def model(*, width=24, resolution=16, length=12, bias=-6.0, dtype="float32"):
    """The smallest model, of another width, resolution and text length than the learner's."""
    tokenizer = TokenizerConfig(kind="shapes", length=length)
    return two_tower.TwoTowerConfig(
        image=ImageConfig(size="mu", patch=8, resolution=resolution),
        text=TextConfig(size="mu", vocab_size=get_tokenizer(tokenizer).vocab_size, length=length),
        embed_dim=width,
        init_scale=20.0,
        init_bias=bias,
        tokenizer=tokenizer,
        dtype=dtype,
    )


def write_model(folder, config=None, seed=0):
    """A model folder with parameters under which no two examples look alike."""
    config = config or model()
    shapes = jax.eval_shape(config.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: np.float32(0.05 + 0.3 * rng.normal(size=x.shape)), shapes)
    params["t"] = np.float32(np.log(config.init_scale))
    if config.init_bias is not None:
        params["bias"] = np.float32(config.init_bias)
    folder.mkdir()
    model_folder.write(Model(config, params, b"", "a test"), folder)
    return str(folder)


def run_config(data, reference, steps=4, cache=None):
    """A tiny ACED run on the data set `data` with the model `reference`, or its `cache`."""
    config = small_run.get_config(f"reference={reference or cache}")
    config.total_steps = steps
    config.batch_size = 8
    config.method.selection.strata = 4
    config.evals = {}
    config.data.source = "array_record"
    config.data.array_record.path = data
    if cache is not None:
        config.method.reference.checkpoint = ""
        config.method.reference.cache = str(cache)
    return config


def embed(folder, images, texts):
    """The embeddings of pixels and token ids by the model in `folder`, without jit."""
    found = model_folder.read(folder)
    tower = two_tower.TwoTower(found.config)
    params = jax.tree.map(jnp.asarray, found.params)
    zimg = tower.apply({"params": params}, jnp.asarray(images), method="encode_image")
    ztxt = tower.apply({"params": params}, jnp.asarray(texts), method="encode_text")
    return np.asarray(zimg), np.asarray(ztxt)
