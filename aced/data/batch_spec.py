"""Names of the arrays of a batch; each array has one row per example.

A model with prefix P reads Pimage and Ptext, and its stored embeddings are Pzimg and Pztxt. The
learner's prefix is "". Views that equal the learner's share its arrays.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxtyping import Array

from aced.data.images.augment import AugmentConfig
from aced.data.images.pictures import Look, PictureName
from aced.data.images.transforms import ResizeConfig
from aced.data.tokenizers import TokenizerConfig
from aced.outputs import Embeddings

SECOND = "second/"  # prefix of the second picture of an example
EMBEDDINGS = {"image": "zimg", "text": "ztxt"}  # by tower
K = TypeVar("K")


@dataclasses.dataclass(frozen=True)
class View:
    """How the pictures and texts of an example are prepared for one model."""

    resolution: int  # pixels a side
    tokenizer: TokenizerConfig | None  # None: the model reads no captions
    resize: ResizeConfig = dataclasses.field(default_factory=ResizeConfig)
    augment: AugmentConfig = AugmentConfig()  # in training; allowed only for a single view
    picture: PictureName = "image"  # records without this picture are skipped and counted
    # Whether captions are questions, each followed by one of its answers. Records without an answer
    # that fits into the text are skipped and counted. Only for the learner's view.
    answers: bool = False

    @property
    def look(self) -> Look:
        """The settings that determine the pixels."""
        return Look(self.resolution, self.resize, self.picture)

    @classmethod
    def of(cls, model: Any) -> "View":
        """The view of a `ModelConfig` (Any, because its class is in a higher layer)."""
        return cls(model.image.resolution, model.tokenizer, model.resize)

    def of_pictures(self, pictures: int) -> dict[str, "View"]:
        """This view and, with two pictures, the view of the second one, by prefix."""
        second = dataclasses.replace(self, picture="second", tokenizer=None)
        return {"": self, SECOND: second} if pictures == 2 else {"": self}


def image_arrays(views: Mapping[str, View]) -> dict[Look, list[str]]:
    """Names of the pixel arrays of each look, the learner's look first."""
    return _names("image", {prefix: view.look for prefix, view in views.items()})


def text_arrays(views: Mapping[str, View]) -> dict[TokenizerConfig, list[str]]:
    """Names of the token arrays of each tokenizer, the learner's tokenizer first."""
    tokenizers = {prefix: view.tokenizer for prefix, view in views.items()}
    return _names("text", {p: tokenizer for p, tokenizer in tokenizers.items() if tokenizer})


def _names(kind: str, contents: dict[str, K]) -> dict[K, list[str]]:
    """Names of the arrays of each content; those that equal the learner's have only its name."""
    names = {contents[""]: [kind]} if "" in contents else {}
    for prefix, content in contents.items():
        if content != contents.get(""):
            names.setdefault(content, []).append(f"{prefix}{kind}")
    return names


def view_of(batch: Mapping[str, Array], prefix: str) -> tuple[Array, Array]:
    """The images and texts that the model with this prefix reads."""
    return tuple(batch.get(f"{prefix}{kind}", batch[kind]) for kind in ("image", "text"))


def embeddings_of(batch: Mapping[str, Array], prefix: str) -> tuple[Array, Array]:
    """The stored embeddings of images and texts under this prefix."""
    return tuple(batch[f"{prefix}{name}"] for name in EMBEDDINGS.values())


def with_embeddings(
    batch: dict[str, Array], prefix: str, embeddings: Embeddings
) -> dict[str, Array]:
    """Returns the batch with embeddings of its rows under this prefix."""
    return batch | {f"{prefix}{name}": getattr(embeddings, name) for name in EMBEDDINGS.values()}
