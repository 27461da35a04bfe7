"""Ten pictures in a folder."""

import pytest

from tests.prepare.small import encoded, picture


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for i in range(10):
        (images / "sub" / f"{i}.png").write_bytes(encoded(picture(i)))
    return images
