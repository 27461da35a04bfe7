"""Fine-tuning tasks on the scenes of the embedded data set, with exact answers by construction.

Questions with answers, statements about covered pictures, and statements about two pictures. Each
example is determined by (seed, split, index).
"""

import dataclasses
import itertools
import re
from typing import Any

from aced.data.draws import Draws
from aced.data.records import check_index
from aced.data.shapes import entailment, pairs, questions
from aced.data.shapes.kinds import NUMBERS, Kind
from aced.data.shapes.scenes import SHAPES, Scene, Shapes, ShapesConfig, draw
from aced.data.shapes.scenes import WORDS as CAPTION_WORDS

CLASS_NAMES = {
    "questions": questions.ANSWERS,
    "entailment": entailment.CLASSES,
    "two_pictures": pairs.CLASSES,
}
_SPLITS = ("train", "val")
_SECOND = 2**31  # first number of the scenes of second pictures, beyond those of first pictures


@dataclasses.dataclass(frozen=True)
class TaskExample:
    """The scenes, text and label of an example."""

    scenes: tuple[Scene, ...]  # of the pictures
    text: str
    label: int
    covered: int | None = None  # the place that is covered


class ShapesTask:
    """The examples of `config.task`; see `Source`."""

    def __init__(self, config: ShapesConfig):
        self.config = config
        self.name = f"shapes/{config.task}/{config.split}"
        self.fingerprint = f"shapes-{config.task}-v1 {config}"
        self.class_names = CLASS_NAMES[config.task]
        self._scenes = Shapes(dataclasses.replace(config, task="captions"))
        # One stream per task and split, apart from those of the scenes.
        tasks = tuple(CLASS_NAMES)
        self._stream = 0x7A5C + 2 * tasks.index(config.task) + _SPLITS.index(config.split)

    def __len__(self) -> int:
        return self.config.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Draws example `index`.

        Returns:
            `image` uint8 [h w 3], and of two pictures `second`, too; `texts`, a tuple of one
            question or statement; `id`; `label`, the answer's position in `class_names`.

        Raises:
            IndexError: `index` is outside the data set.
        """
        example, resolution = self.example(index), self.config.resolution
        if example.covered is None:
            images = [draw(scene, resolution) for scene in example.scenes]
        else:
            (scene,) = example.scenes
            images = [entailment.draw_covered(scene, example.covered, resolution)]
        record = {"id": int(index), "texts": (example.text,), "label": example.label}
        return record | dict(zip(("image", "second"), images, strict=False))

    def example(self, index: int) -> TaskExample:
        """The scenes, text and label of example `index`.

        Raises:
            IndexError: `index` is outside the data set.
        """
        index = check_index(self, index)
        draws, scene = Draws(self.config.seed, self._stream, index), self._scenes.scene(index)
        if self.config.task == "questions":
            text, answer = questions.ask(scene, draws)
            return TaskExample((scene,), text, self.class_names.index(answer))
        if self.config.task == "entailment":
            judged = entailment.judge(scene, draws)
            return TaskExample((scene,), judged.text, judged.label, judged.covered)
        second = self._scenes.scene(_SECOND + draws.below(2**31))
        compared = pairs.compare((scene, second), draws)
        return TaskExample(compared.scenes, compared.text, compared.label)


def open_shapes(config: ShapesConfig) -> Shapes | ShapesTask:
    """The embedded data set: captions, or one of the tasks."""
    return Shapes(config) if config.task == "captions" else ShapesTask(config)


def _words() -> tuple[str, ...]:
    asked = [text for texts in questions.TEMPLATES.values() for text in texts]
    parts = [*asked, *entailment.TEMPLATES, *pairs.TEXTS.values()]
    parts = [re.sub(r"\{\w*\}", " ", part) for part in parts]
    parts += [Kind(shape=shape).many for shape in (None, *SHAPES)]
    parts += [Kind().one, "an", *NUMBERS, *itertools.chain(*CLASS_NAMES.values())]
    words = set(re.findall(r"\w+|,", " ".join(parts)))
    return tuple(sorted(words - set(CAPTION_WORDS)))


# Words of the tasks that captions do not have: the second part of the vocabulary "scenes".
WORDS = _words()
