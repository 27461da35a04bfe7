"""Models of the Hugging Face hub, by name."""

import contextlib
import pathlib

from aced.models import tensors
from aced.models.saved import InteropError

# Weights as safetensors, settings, tokenizers; never code, and no pickle.
PATTERNS = ("*.safetensors", "*.json", "*.model", "*.txt")


def download(name: str, revision: str) -> pathlib.Path:
    """Returns the local copy of a model of the hub; made first, or found in the library's cache.

    Args:
        name: owner/name, such as google/siglip-base-patch16-224.
        revision: a branch, tag or commit; empty: the newest.

    Raises:
        InteropError: huggingface_hub is not installed, it could not get the model, or the model is
            there as a pickle only.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise InteropError(
            f"{name} is no path here. To take it from the Hugging Face hub: pip install '.[hf]'."
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=list(PATTERNS)
        )
    # Network, permissions, names, cache: the library lets out many kinds of errors.
    except Exception as error:
        raise InteropError(
            f"{name} is no path here, and the hub did not give it: {error}"
        ) from error
    folder = pathlib.Path(folder)
    if not any(folder.glob("*.safetensors")):
        files = []
        with contextlib.suppress(Exception):  # without network nothing is known of other files
            files = huggingface_hub.list_repo_files(name, revision=folder.name)  # the commit
        tensors.refuse_pickles(files, f"{name} on the hub")
    return folder
