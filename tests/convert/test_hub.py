"""Models of the hub: what happens without network or library."""

import json
import os
import pickle
import sys

import pytest

from aced.convert import hub
from aced.convert.command import ConvertConfig, convert
from aced.models.saved import InteropError


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
    with pytest.raises(InteropError, match="google/other is not a local path"):
        hub.download("google/other", "")


OPEN_CLIP = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}}


class Trap:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder):
        self._folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self._folder,)


@pytest.mark.parametrize("where", ["config.json beside it", "nothing beside it", "named itself"])
def test_a_pickle_is_refused_and_never_opened(tmp_path, where):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("optimizer.pt", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "opened")))
    if where == "config.json beside it":
        (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    source = folder / "pytorch_model.bin" if where == "named itself" else folder
    config = ConvertConfig(source=str(source), out=str(tmp_path / "out"), to="aced")
    with pytest.raises(InteropError, match=r"model has its weights in pytorch_model.bin, a pickle"):
        convert(config)
    assert not (tmp_path / "opened").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("files", [["config.json", "optimizer.pt", "pytorch_model.bin"], None])
def test_a_model_of_the_hub_that_has_only_pickles(monkeypatch, tmp_path, files):
    library = pytest.importorskip("huggingface_hub")
    asked = []

    def listed(name, revision):
        asked.append((name, revision))
        if files is None:
            raise ConnectionError("no network")
        return files

    monkeypatch.setattr(library, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(library, "list_repo_files", listed)
    if files is None:  # the hub does not list the files
        assert hub.download("someone/old", "") == tmp_path
    else:
        with pytest.raises(
            InteropError,
            match=r"someone/old on the hub has its weights in pytorch_model.bin, a pickle.*refs/pr",
        ):
            hub.download("someone/old", "")
    assert asked == [("someone/old", tmp_path.name)]
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert hub.download("someone/old", "") == tmp_path
    assert len(asked) == 1


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InteropError, match=r"pip install '.\[hf\]'"):
        hub.download("google/siglip", "")
