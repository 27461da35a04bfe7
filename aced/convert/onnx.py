"""Writes both towers as ONNX, by transformers' model in torch and torch.onnx.

Only models that transformers can express are written, in float32. See `serving` for the files.
"""

import contextlib
import dataclasses
import functools
import io
import logging
import pathlib
import tempfile
import warnings
from typing import Any

import numpy as np

from aced.convert import huggingface, serving
from aced.models.saved import InteropError, Model, flat

_ONE_FILE_BYTES = 1 << 30  # weights of larger towers are in a file beside the graph


def write(model: Model, folder: pathlib.Path) -> list[str]:
    """Writes `model` into the empty `folder`.

    Returns:
        Notes on differences from the model, with the measured errors.

    Raises:
        InteropError: a library is not installed, or transformers cannot express the model; the
            message names the settings.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx imports it
        import torch
        import transformers
    except ImportError as error:
        raise InteropError(f"--to=onnx needs: pip install '.[onnx]' ({error}).") from error
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # a line for each op that is kept
    with tempfile.TemporaryDirectory() as there:
        huggingface.write(model, pathlib.Path(there))
        theirs = transformers.AutoModel.from_pretrained(there).eval()
    model, written = serving.with_tokenizer(model)
    config = dataclasses.replace(model.config, dtype="float32", attention="xla")
    model = dataclasses.replace(model, config=config)
    towers = {}
    for name, inputs in serving.examples(config, 2).items():
        file = folder / f"{name}.onnx"
        size = sum(x.nbytes for x in flat(model.params[name]).values())
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(
                _tower(theirs, model, name),
                (torch.from_numpy(inputs),),
                file,
                input_names=[name],
                output_names=["zimg" if name == "image" else "ztxt"],
                dynamic_shapes=({0: torch.export.Dim("b")},),
                external_data=size > _ONE_FILE_BYTES,
            )
        towers[name] = functools.partial(_run, onnxruntime.InferenceSession(file), name)
    errors = serving.errors(model, towers)
    serving.write_description(model, folder, "onnx", errors)
    serving.write_tokenizer(written, folder)
    return [*written.notes, serving.note(errors)]


def _run(session: Any, name: str, x: np.ndarray) -> np.ndarray:
    return session.run(None, {name: x})[0]


def _tower(theirs: Any, model: Model, name: str) -> Any:
    """A torch module from uint8 pixels or ids to embeddings of length 1."""
    import torch

    image = model.config.image
    mean, std = (np.float32(x).reshape(3, 1, 1) for x in (image.mean, image.std))

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = theirs
            self.register_buffer("factor", torch.from_numpy(1 / (255 * std)))
            self.register_buffer("offset", torch.from_numpy(mean / std))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if name == "image":
                x = x.permute(0, 3, 1, 2).to(torch.float32) * self.factor - self.offset
                z = self.model.get_image_features(pixel_values=x).pooler_output
            else:
                z = self.model.get_text_features(input_ids=x).pooler_output
            return torch.nn.functional.normalize(z)

    return Tower().eval()
