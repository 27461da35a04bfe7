"""Whose layout files have, names of the hub, and the command that converts a model."""

import numpy as np
import pytest

from aced.models import layouts
from aced.models.saved import InteropError


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("model.json", b"{}", "aced"),
        ("config.json", b'{"model_type": "clip"}', "transformers"),
        ("config.json", b'{"method": {}}', None),
        ("open_clip_config.json", b"{}", "open_clip"),
        ("other.json", b"{}", None),
    ],
)
def test_layout_of_a_folder(tmp_path, file, content, expected):
    (tmp_path / file).write_bytes(content)
    assert layouts.layout(tmp_path) == expected


def test_layout_of_a_file(tmp_path):
    np.savez(tmp_path / "weights.npz", a=np.zeros(1))
    assert layouts.layout(tmp_path / "weights.npz") == "big_vision"
    assert layouts.layout(tmp_path / "gone.npz") is None


def test_damaged_description_is_an_error(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"model_type"')
    with pytest.raises(InteropError, match=r"config\.json"):
        layouts.layout(tmp_path)


def test_command_that_converts():
    command = "python -m aced.convert --source=a/b --out=models/b --to=aced"
    assert layouts.convert_command("a/b") == command
    assert "--source=x/y.npz --model=NAME --out=models/y" in layouts.convert_command("x/y.npz")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("google/siglip-base-patch16-224", True),
        ("a.b/c_d", True),
        ("siglip", False),
        ("../x", False),
        ("a/b/c", False),
        ("/etc/passwd", False),
        ("a/..", False),
    ],
)
def test_names_of_the_hub(name, expected):
    assert layouts.is_hub_name(name) == expected
