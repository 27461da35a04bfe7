"""DIME-FM: a large CLIP into a small image encoder, from unpaired data (arXiv 2303.18232).

The student's image tower learns the teacher's similarities of images to sentences and to other
images (`aced.losses.similarity`). Images and sentences are two unpaired data sets, read side by
side. The student keeps the teacher's text tower unchanged, and so becomes an ordinary two-tower
model. The teacher does not run: its features of whole images and of sentences are read from caches
written by `python -m aced.cache`.
"""

import dataclasses
import functools
from typing import Literal

import jax
from jaxtyping import Array, Float, PyTree

from aced.bounds import PositiveInt
from aced.config import Checked, ConfigError, MayChange
from aced.cost import flops
from aced.data.batch_spec import View
from aced.data.images.augment import AugmentConfig, check_single
from aced.data.sources import DataConfig
from aced.data.streams import Stream
from aced.losses import similarity
from aced.losses.similarity import SimilarityConfig
from aced.methods.base import Batch, Loss, Method, MethodConfig, StepContext, Stepped
from aced.methods.frozen import FrozenConfig
from aced.models import two_tower
from aced.models.two_tower import TwoTowerConfig
from aced.optim.state import TrainState
from aced.parallel.micro_batch import map_micro_batches

TEACHER, SENTENCES = "teacher", "sentences"
# Parts copied from the teacher, and never trained.
GIVEN = ("text", "t", "bias")


@dataclasses.dataclass(frozen=True)
class SentencesConfig(Checked):
    """The stream of sentences; only the teacher's cached features of them are read."""

    data: DataConfig = DataConfig()  # written by `python -m aced.select_text`, or any captions
    # Folder of the teacher's features of these sentences, from `python -m aced.cache`.
    cache: MayChange[str] = ""
    batch_size: PositiveInt | None = None  # sentences per step; None: as many as pictures


@dataclasses.dataclass(frozen=True)
class DimeConfig(MethodConfig):
    """Settings of the method `dime`."""

    name: str = "dime"
    # The student. Its text tower, tokenizer and logits are replaced by the teacher's; `embed_dim`
    # must be the teacher's width or None.
    model: TwoTowerConfig = TwoTowerConfig()
    # `checkpoint`: the model with the text tower; `cache`: its image features of the run's data.
    teacher: FrozenConfig = FrozenConfig()
    sentences: SentencesConfig = SentencesConfig()
    loss: SimilarityConfig = SimilarityConfig()
    # Random crops and flips for the student; the teacher's features are of whole pictures.
    augment: AugmentConfig = AugmentConfig(crop_area=(0.08, 1.0), flip=0.5)
    form: MayChange[Literal["ring", "full"]] = "ring"  # see the method `contrastive`

    @property
    def frozen(self) -> dict[str, FrozenConfig]:
        """The teacher, once with each cache: of image features and of sentence features."""
        sentences = dataclasses.replace(self.teacher, cache=self.sentences.cache)
        return {TEACHER: self.teacher, SENTENCES: sentences}

    def data_of(self, name: str, data: DataConfig) -> DataConfig:
        """The data that a frozen model embeds, given the data of the run."""
        return self.sentences.data if name == SENTENCES else data

    def check_data(self, data: DataConfig) -> None:
        """Raises a ConfigError if the data have augmentations beside the student's own."""
        check_single(data.augmentations, self.augment)

    def key_of(self, name: str) -> str:
        """The path in the config of a frozen model's settings."""
        return "method.teacher" if name == TEACHER else "method.sentences"

    def towers_of(self, name: str) -> tuple[str, ...]:
        """The tower whose embeddings are read."""
        return ("image",) if name == TEACHER else ("text",)

    def resolve(self, workdir: str) -> "DimeConfig":
        """Returns the settings completed from the teacher's run and its caches.

        Raises:
            ConfigError: the teacher or a cache is missing, or the student's width differs from the
                teacher's.
        """
        for key, value in (
            ("method.teacher.checkpoint", self.teacher.checkpoint),
            ("method.teacher.cache", self.teacher.cache),
            ("method.sentences.cache", self.sentences.cache),
        ):
            if not value:
                raise ConfigError(
                    f"{key} is empty. DIME-FM needs a teacher and its features of pictures and of "
                    "sentences; make them as in python -m aced.cache --help."
                )
        return super().resolve(workdir)

    def with_frozen(self, frozen: dict[str, FrozenConfig]) -> "DimeConfig":
        """Returns the settings with the given frozen models, and the student to match."""
        teacher, sentences = frozen[TEACHER], frozen[SENTENCES]
        for name, item in ((TEACHER, teacher), (SENTENCES, sentences)):
            if item.model is None:
                raise ConfigError(
                    f"{self.key_of(name)}.cache = {item.cache!r} is of another library's model, "
                    "but DIME-FM's student takes the teacher's text tower; convert the teacher "
                    "with python -m aced.convert, and make the cache with that."
                )
        return dataclasses.replace(
            self,
            model=student(self.model, teacher.model),
            teacher=teacher,
            sentences=dataclasses.replace(self.sentences, cache=sentences.cache),
        )


def student(model: TwoTowerConfig, teacher: TwoTowerConfig) -> TwoTowerConfig:
    """Returns `model` with the teacher's text tower, tokenizer, width and kind of logits.

    Raises:
        ConfigError: `embed_dim` differs from the teacher's width.
    """
    if model.embed_dim not in (None, teacher.width):
        raise ConfigError(
            f"method.model.embed_dim = {model.embed_dim}, but the teacher's embeddings, which the "
            f"student's text tower gives, have the width {teacher.width}; set it to that or None."
        )
    same = model.embed_dim is None and model.width == teacher.width
    return dataclasses.replace(
        model,
        text=teacher.text,
        tokenizer=teacher.tokenizer,
        embed_dim=None if same else teacher.width,
        init_scale=teacher.init_scale,
        init_bias=teacher.init_bias,
    )


class Dime(Method):
    """The method `dime`."""

    def __init__(self, config: DimeConfig):
        if config.teacher.model is None:
            raise ConfigError(
                "The teacher is not known; set method.teacher.checkpoint to the workdir of a "
                "finished run or to a folder written by python -m aced.convert."
            )
        self.config = config
        self.frozen = {}  # the teacher does not run
        self.given = (config.teacher, GIVEN)
        self.fixed = (rf"model/({'|'.join(GIVEN)})(/.*)?",)

    def streams(self, data: DataConfig, candidates: int) -> dict[str, Stream]:
        """Two streams: images with their features, and features of sentences."""
        config = self.config
        view = dataclasses.replace(View.of(config.model), tokenizer=None, augment=config.augment)
        pictures = Stream(data, candidates, {"": view}, {f"{TEACHER}/": config.teacher}, ("image",))
        sentences = Stream(
            config.sentences.data,
            config.sentences.batch_size or candidates,
            {},
            {"": self.config.frozen[SENTENCES]},
            ("text",),
        )
        return {"": pictures, f"{SENTENCES}/": sentences}

    def flops_per_step(self, batch_size: int) -> int:
        """Floating point operations of one step; see `aced.cost.flops`."""
        image, _ = flops.macs(self.config.model)
        return flops.step_flops([(image, batch_size)])

    def train_step(
        self, train_state: TrainState, frozen: PyTree, batch: Batch, context: StepContext
    ) -> Stepped:
        """Returns the state after one step, and its metrics; see `Method`.

        `batch` holds `image` [b ...], `id` [b], `teacher/zimg` [b d], the teacher's features of the
        whole images, and `sentences/ztxt` [m d], its features of sentences.
        """
        del frozen
        config = self.config
        # Features from low-precision caches are not exactly of unit length.
        u = two_tower.l2_normalize(batch[f"{TEACHER}/zimg"])
        v = two_tower.l2_normalize(batch[f"{SENTENCES}/ztxt"])

        def loss_fn(params: PyTree) -> Loss:
            model = params["model"]
            z = self._embed(
                jax.lax.stop_gradient(model) | {"image": model["image"]}, batch["image"]
            )
            parts = similarity.similarity_losses(z, u, v, config.loss, config.form)
            loss = similarity.similarity_loss(parts, config.loss)
            metrics = {f"loss/{name}": part for name, part in parts.items()}
            return loss, metrics | {"teacher_cosine": (z * u).sum(axis=1).mean()}

        return context.update(train_state, loss_fn, context.picks(batch, batch))

    def _embed(self, params: PyTree, image: Array) -> Float[Array, "b d"]:
        """The student's embeddings, in micro-batches."""
        tower = two_tower.TwoTower(self.config.model)
        encode = functools.partial(tower.apply, {"params": params}, method="encode_image")
        size = self.config.train_micro_batch
        return map_micro_batches(encode, image, size, "method.train_micro_batch")
