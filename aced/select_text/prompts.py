"""Task-aware texts: class names of downstream tasks in prompt templates."""

import hashlib
from collections.abc import Sequence

from aced.config import ConfigError
from aced.files import storage

_MAX_BYTES = 1 << 24

# Our own general templates; CLIP's lists are written for one data set each.
TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a close-up of a {}.",
    "a {} in the background.",
    "a small {}.",
    "a large {}.",
    "a drawing of a {}.",
    "a blurry photo of a {}.",
    "this is a {}.",
)


def prompts(
    class_names: Sequence[str], templates: Sequence[str], per_class: int, seed: int
) -> list[str]:
    """Every class name in `per_class` random templates, or in all of them if that is 0.

    Raises:
        ConfigError: a template has no {}, or `per_class` exceeds the number of templates.
    """
    for template in templates:
        if "{}" not in template:
            raise ConfigError(f"The template {template!r} has no {{}}, where the class name goes.")
    if per_class > len(templates):
        raise ConfigError(
            f"--templates_per_class={per_class} is more than the {len(templates)} templates."
        )

    def order(name: str, template: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}:{template}".encode()).digest()

    out = []
    for name in class_names:
        chosen = sorted(templates, key=lambda template: order(name, template))
        out += [template.replace("{}", name) for template in chosen[: per_class or None]]
    return out


def read_lines(path: str, flag: str) -> list[str]:
    """The non-blank lines of a small UTF-8 file.

    Raises:
        ConfigError: the file is missing, too large, empty or not UTF-8.
    """
    try:
        data = storage.read(path, 0, _MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (storage.StorageError, UnicodeDecodeError) as error:
        raise ConfigError(f"--{flag}={path} is not a readable UTF-8 file: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(data) > _MAX_BYTES or not lines:
        raise ConfigError(
            f"--{flag}={path} has {'too many bytes' if lines else 'no lines'}; it must have one "
            f"entry per line, and at most {_MAX_BYTES} bytes."
        )
    return lines
