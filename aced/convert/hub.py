"""Downloads models of the Hugging Face hub."""

import contextlib
import pathlib

from aced.models import tensors
from aced.models.saved import InteropError

# Weights as safetensors, settings and tokenizers, but no code and no pickles.
PATTERNS = ("*.safetensors", "*.json", "*.model", "*.txt")


def download(name: str, revision: str) -> pathlib.Path:
    """Downloads the model owner/name, unless huggingface_hub has cached it; returns its folder.

    The revision is a branch, tag or commit; empty: the newest.

    Raises:
        InteropError: huggingface_hub is not installed, the download failed, or the model's weights
            are pickles.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise InteropError(
            f"{name} is not a local path. To download it from the Hugging Face hub, install the "
            "extra: pip install '.[hf]'."
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=list(PATTERNS)
        )
    except Exception as error:  # the library raises errors of many kinds
        raise InteropError(
            f"{name} is not a local path, and cannot be downloaded from the hub: {error}"
        ) from error
    folder = pathlib.Path(folder)
    if not any(folder.glob("*.safetensors")):
        files = []
        with contextlib.suppress(Exception):  # the list needs the network
            files = huggingface_hub.list_repo_files(name, revision=folder.name)  # the commit
        tensors.refuse_pickles(files, f"{name} on the hub")
    return folder
