"""Models that open_clip or transformers run, in torch, and that embed a data set for a cache.

Any of their models with an image and a text tower can so be a reference or a teacher, although it
has no form in JAX: training needs only its embeddings. The library itself transforms the pictures
and tokenizes the captions.
"""

import abc
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from aced.bounds import PositiveInt
from aced.cache import fingerprint
from aced.config import Checked, ConfigError, expand
from aced.models import layouts, tensors

# What computes pixels, ids and embeddings, by its name on PyPI.
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "tokenizers")


@dataclasses.dataclass(frozen=True)
class About(Checked):
    """The record of a model in the description of its cache."""

    library: Literal["open_clip", "transformers"]
    name: str  # of its folder
    width: PositiveInt  # of its embeddings


class LibraryModel(abc.ABC):
    """A model of another library.

    Attributes:
        about: the record.
        scale: of its logits.
        bias: of its logits; None: it has none.
        fingerprint: of weights, library and preprocessing, by what it is of.
    """

    about: About
    scale: float
    bias: float | None
    fingerprint: dict[str, str]

    @abc.abstractmethod
    def pixels(self, picture: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "3 r s"]:
        """The model's input for a decoded picture."""

    @abc.abstractmethod
    def tokens(self, texts: Sequence[str]) -> Int[np.ndarray, "n *l"]:
        """The model's input for captions."""

    @abc.abstractmethod
    def embed(self, tower: str, x: np.ndarray) -> Float[np.ndarray, "b d"]:
        """The embeddings, of length 1, of a batch of `pixels` ("image") or of `tokens` ("text")."""


class _TorchModel(LibraryModel):
    """A model in torch, in float32, on a GPU if torch has one."""

    library: str
    config: str  # the file that describes the model
    weights: str  # a pattern of the files that the library loads

    def __init__(self, folder: pathlib.Path, weights: Sequence[pathlib.Path]):
        """Loads the model in `folder`."""
        import torch

        self._torch = torch
        self._lock = threading.Lock()  # fast tokenizers raise an error if two threads use one
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._load(str(folder))
        self._model.eval()
        self.scale = float(self._model.logit_scale.detach().exp())
        bias = getattr(self._model, "logit_bias", None)
        self.bias = None if bias is None else float(bias.detach())
        texts = self.tokens(fingerprint.PROBE)
        width = self.embed("text", texts[:1]).shape[1]
        self.about = About(self.library, folder.name, width)
        self.fingerprint = {
            "weights": _sha256([folder / self.config, *weights]),
            "library": _versions(),
            "tokenizer": hashlib.sha256(texts.tobytes()).hexdigest(),
            "preprocess": self._transform_text(),
        }

    @abc.abstractmethod
    def _load(self, folder: str) -> None:
        """Sets `_model` and what the other methods use."""

    @abc.abstractmethod
    def _transform_text(self) -> str:
        """The settings of the picture's transform."""

    @abc.abstractmethod
    def _encode(self, tower: str, x: Any) -> Any:
        """The embeddings of a batch of torch tensors."""

    def embed(self, tower: str, x: np.ndarray) -> np.ndarray:
        with self._torch.inference_mode():
            z = self._encode(tower, self._torch.from_numpy(x).to(self._device))
            return self._torch.nn.functional.normalize(z.float(), dim=-1).cpu().numpy()


class _OpenClip(_TorchModel):
    library, config = "open_clip", layouts.OPEN_CLIP_CONFIG
    # It prefers this file to all others, and some pickles to safetensors of another name.
    weights = "open_clip_model.safetensors"

    def _load(self, folder: str) -> None:
        import open_clip

        name = f"local-dir:{folder}"
        self._model, self._transform = open_clip.create_model_from_pretrained(
            name, device=self._device
        )
        self._tokenizer = open_clip.get_tokenizer(name)

    def _transform_text(self) -> str:
        return " ".join(repr(self._transform).split())

    def pixels(self, picture: np.ndarray) -> np.ndarray:
        return self._transform(Image.fromarray(picture)).numpy()

    def tokens(self, texts: Sequence[str]) -> np.ndarray:
        with self._lock:
            return self._tokenizer(list(texts)).numpy()

    def _encode(self, tower: str, x: Any) -> Any:
        return self._model.encode_image(x) if tower == "image" else self._model.encode_text(x)


class _Transformers(_TorchModel):
    library, config = "transformers", layouts.TRANSFORMERS_CONFIG
    weights = "*.safetensors"

    def _load(self, folder: str) -> None:
        import transformers

        local: dict[str, Any] = {"local_files_only": True}
        self._model = transformers.AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype="float32", **local
        ).to(self._device)
        self._processor = transformers.AutoImageProcessor.from_pretrained(folder, **local)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
        positions = self._model.config.get_text_config().max_position_embeddings
        self._length = min(self._tokenizer.model_max_length, positions)
        if missing := [
            name
            for name in ("get_image_features", "get_text_features", "logit_scale")
            if not hasattr(self._model, name)
        ]:
            raise ConfigError(
                f"{folder} holds a {type(self._model).__name__}, which has no {missing[0]}: it is "
                "no model of two towers."
            )

    def _transform_text(self) -> str:
        return json.dumps(json.loads(self._processor.to_json_string()), sort_keys=True)

    def pixels(self, picture: np.ndarray) -> np.ndarray:
        inputs = self._processor(images=Image.fromarray(picture), return_tensors="np")
        return np.asarray(inputs["pixel_values"][0], np.float32)

    def tokens(self, texts: Sequence[str]) -> np.ndarray:
        with self._lock:
            ids = self._tokenizer(
                list(texts), padding="max_length", truncation=True, max_length=self._length
            )
        # Ids, and a mask if the model reads one: [n inputs l].
        return np.stack([ids[name] for name in self._inputs()], axis=1)

    def _inputs(self) -> list[str]:
        names = self._tokenizer.model_input_names
        return [name for name in ("input_ids", "attention_mask") if name in names]

    def _encode(self, tower: str, x: Any) -> Any:
        if tower == "image":
            out = self._model.get_image_features(pixel_values=x)
        else:
            inputs = dict(zip(self._inputs(), x.unbind(1), strict=True))
            out = self._model.get_text_features(**inputs)
        return getattr(out, "pooler_output", out)


_MODELS = {kind.library: kind for kind in (_OpenClip, _Transformers)}


def named(model: str) -> tuple[str, str] | None:
    """The library and folder of open_clip:FOLDER or transformers:FOLDER; None: it is neither."""
    library, separator, folder = model.partition(":")
    return (library, expand(folder)) if separator and library in _MODELS else None


def load(library: str, folder: str) -> LibraryModel:
    """Loads the model in `folder`.

    Raises:
        ConfigError: torch or the library is not installed, or `folder` has no such model.
        InteropError: its weights are pickles.
    """
    path, kind = pathlib.Path(folder), _MODELS[library]
    if not (path / kind.config).is_file():
        raise ConfigError(
            f"{library}:{folder}: there is no {path / kind.config}. Give a folder with "
            "config, safetensors and tokenizer of a model, as `hf download OWNER/NAME "
            "--local-dir=FOLDER` makes it."
        )
    weights = sorted(path.glob(kind.weights))
    if not weights:
        tensors.refuse_pickles((file.name for file in path.iterdir()), folder)
        raise ConfigError(f"{library}:{folder} has no weights ({kind.weights}).")
    try:
        return kind(path, weights)
    except ImportError as error:
        raise ConfigError(
            f"{library}:FOLDER needs: pip install '.[teachers]' ({error})."
        ) from error


def _sha256(files: Sequence[pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _versions() -> str:
    """The installed versions of the packages that take part."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(f"{name} {version}" for name, version in versions.items())
