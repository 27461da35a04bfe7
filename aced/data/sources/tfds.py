"""TensorFlow Datasets, with random access and without TensorFlow.

The data set must be prepared as ArrayRecord or parquet (`tfds build --file_format=array_record`);
nothing is downloaded. TFDS's own reader is used, so splits have its syntax: "train[:90%]".
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np

from aced.config import Checked, ConfigError, MayChange
from aced.data import records
from aced.data.captions import check_kinds, joined
from aced.data.records import DatasetError, RecordError, check_index


@dataclasses.dataclass(frozen=True)
class TfdsConfig(Checked):
    """A prepared TFDS data set. Features of features are named with a dot: "captions.text"."""

    name: str = ""  # such as "coco_captions" or "coco_captions:1.1.0"; alternative: builder_dir
    builder_dir: str = ""  # the folder of a prepared data set, with dataset_info.json
    split: str = "train"
    # With `name`: the folder of all data sets; empty: TFDS's default.
    data_dir: MayChange[str] = ""
    image: str = "image"  # feature with the picture
    # Features with captions: a text, several texts, or classes, whose names are then the captions.
    captions: tuple[str, ...] = ("caption",)
    # Kinds of the captions, one for each of these features, for data.caption_weights. Empty: all
    # are "given".
    kinds: tuple[str, ...] = ()
    label: str = ""  # feature with the number of a class; empty: no labels
    second: str = ""  # feature with the second picture of examples about two pictures; empty: none

    def _check(self) -> None:
        check_kinds(self.kinds, self.captions, "data.tfds")
        if self.name and self.builder_dir:
            raise ConfigError("Set data.tfds.name or data.tfds.builder_dir, not both.")
        if self.data_dir and self.builder_dir:
            raise ConfigError(
                "data.tfds.data_dir is used only with .name, because .builder_dir is a whole path."
            )


class TfdsSource:
    """The examples of one split; see `Source`."""

    def __init__(self, config: TfdsConfig):
        """Opens a prepared data set.

        Raises:
            ConfigError: tensorflow-datasets or a feature is missing, or a feature has another type.
            DatasetError: the data set or split does not exist, or has another file format.
        """
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ConfigError(
                "data.source='tfds' needs tensorflow-datasets: `pip install '.[tfds]'`."
            ) from error
        self._config = config
        try:
            if config.builder_dir:
                builder = tfds.builder_from_directory(config.builder_dir)
            else:
                builder = tfds.builder(config.name, data_dir=config.data_dir or None)
            split = builder.info.splits[config.split]
            skip = tfds.decode.SkipDecoding()
            decoders = _decoders(builder.info.features, tfds.features.Image, skip)
            self._source = builder.as_data_source(config.split, decoders=decoders)
        except Exception as error:  # TFDS raises errors of many kinds
            reason = str(error).partition("\nAvailable datasets")[0]
            raise DatasetError(
                f"The TFDS data set {config.builder_dir or config.name}, split {config.split!r}, "
                f"cannot be opened: {reason:.500}\nIt must have been prepared with `tfds build "
                "--file_format=array_record` or parquet; correct data.tfds.name, .data_dir, "
                ".builder_dir or .split."
            ) from error
        # The reader silently reports 0 records for a missing file.
        for path in split.filepaths:
            if not path.exists():
                raise DatasetError(f"{path} is missing; copy it again or prepare it again.")
        self._check_features(builder.info.features, tfds)
        self.name = f"{builder.info.full_name}/{config.split}"
        self._names_of = {  # class names of captions that are classes
            name: list(names)
            for name in config.captions
            if (names := _names(_feature(builder.info.features, name)))
        }
        label_names = _names(_feature(builder.info.features, config.label)) if config.label else ()
        self.class_names = list(label_names or ()) or next(iter(self._names_of.values()), None)
        on_disk = [builder.info.splits[name] for name in builder.info.splits]
        digest = hashlib.sha256()
        for fact in (
            builder.info.full_name,
            config.split,
            len(self._source),
            config.image,
            config.captions,
            config.label,
            *filter(None, [config.second]),
            *sorted((s.name, s.shard_lengths, int(s.num_bytes)) for s in on_disk),
            repr(builder.info.features),
        ):
            digest.update(f"{fact}\n".encode())
        self.fingerprint = f"tfds {digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Example `index`, see `Source`; without captions `texts` is empty.

        Raises:
            IndexError: `index` is out of range.
            RecordError: the example cannot be read.
        """
        index = check_index(self, index)
        try:
            example = self._source[index]
            out = {"image": _picture(example, self._config.image)}
            if self._config.second:
                out["second"] = _picture(example, self._config.second)
            captions = [
                _texts(_value(example, name), self._names_of.get(name))
                for name in self._config.captions
            ]
            out |= joined(captions, self._config.kinds, records.MAX_ITEMS) | {"id": index}
            if self._config.label:
                out["label"] = int(_value(example, self._config.label))
        except Exception as error:  # errors of array_record, pyarrow, protobuf and TFDS
            reason = f"{type(error).__name__}: {error}"
            raise RecordError(f"{self.name}, record {index}: {reason:.500}") from error
        return out | {"key": f"{self._config.split}/{index}"}

    def _check_features(self, features: Any, tfds: Any) -> None:
        """Raises a ConfigError if a feature is missing or has a wrong type."""
        config, types = self._config, tfds.features
        required = [("image", config.image, (types.Image,), "a picture")]
        required += [
            ("captions", name, (types.Text, types.ClassLabel), "texts") for name in config.captions
        ]
        if config.second:
            required.append(("second", config.second, (types.Image,), "a picture"))
        if config.label:
            required.append(("label", config.label, (types.ClassLabel, types.Scalar), "a class"))
        for key, name, classes, content in required:
            feature = _feature(features, name)
            if key == "captions":
                feature = _of_sequence(feature)
            if not isinstance(feature, classes):
                problem = "does not exist" if feature is None else f"is {type(feature).__name__}"
                raise ConfigError(
                    f"data.tfds.{key} = {name!r} must be a feature with {content}, and it "
                    f"{problem}. There are: {', '.join(_all_names(features))}."
                )


def _inner(feature: Any) -> dict[str, Any]:
    """The features in a dict, or in a sequence of dicts."""
    feature = _of_sequence(feature)
    return dict(feature.items()) if hasattr(feature, "items") else {}


def _feature(features: Any, name: str) -> Any:
    for part in name.split("."):
        features = _inner(features).get(part)
    return features


def _all_names(feature: Any, path: str = "") -> list[str]:
    if not (inner := _inner(feature)):
        return [f"{path} ({type(feature).__name__})"]
    return [x for k, f in inner.items() for x in _all_names(f, f"{path}.{k}" if path else k)]


def _decoders(feature: Any, image: type, skip: Any) -> dict[str, Any]:
    """Decoders that leave all pictures encoded; the pipeline decodes those that it uses."""
    decoders = {}
    for name, inner in _inner(feature).items():
        if isinstance(inner, image):
            decoders[name] = skip
        elif nested := _decoders(inner, image, skip):
            decoders[name] = nested
    return decoders


def _value(example: Any, name: str) -> Any:
    for part in name.split("."):
        example = example[part]
    return example


def _picture(example: Any, name: str) -> bytes:
    image = _value(example, name)
    if not isinstance(image, bytes) or not 0 < len(image) <= records.MAX_IMAGE_BYTES:
        raise ValueError(f"its picture {name!r} must be 1 to {records.MAX_IMAGE_BYTES} bytes")
    return image


def _of_sequence(feature: Any) -> Any:
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature


def _names(feature: Any) -> Sequence[str] | None:
    """The class names of a class, or of a sequence of classes."""
    return getattr(_of_sequence(feature), "names", None)


def _texts(value: Any, names: Sequence[str] | None) -> list[str]:
    """Texts of one example; `names` are the class names if the feature has class numbers."""
    if names is not None:
        return [names[number] for number in np.ravel(value) if number >= 0]  # -1: unknown
    if isinstance(value, bytes | str):
        value = [value]
    return [text.decode() if isinstance(text, bytes) else str(text) for text in value]
