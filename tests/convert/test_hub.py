"""Names of the hub, and what happens without network or library."""

import sys

import pytest

from aced.convert import hub
from aced.models.saved import InteropError


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
def test_names(name, expected):
    assert hub.is_name(name) == expected


def test_the_librarys_cache_serves_without_network(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    snapshot = tmp_path / "models--google--tiny" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--google--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert (hub.download("google/tiny", "") / "config.json").is_file()
    with pytest.raises(InteropError, match="google/other is no path here, and the hub did not"):
        hub.download("google/other", "")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InteropError, match=r"pip install '.\[hf\]'"):
        hub.download("google/siglip", "")
