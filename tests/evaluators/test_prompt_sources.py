"""Class names and prompts of installed packages and of files."""

import json
import sys
import types

import pytest

from aced.config import ConfigError
from aced.evaluators import prompts


def test_imagenet_of_open_clip():
    library = pytest.importorskip("open_clip", reason="needs the 'parity' extra")
    words = prompts.read("open_clip:imagenet", "imagenet")
    assert words.class_names == tuple(library.IMAGENET_CLASSNAMES)
    assert [t.replace("{}", "cat") for t in words.templates] == [
        template("cat") for template in library.OPENAI_IMAGENET_TEMPLATES
    ]
    simple = prompts.read("open_clip:imagenet_simple", "imagenet").templates
    assert len(simple) == len(library.SIMPLE_IMAGENET_TEMPLATES)


def test_open_clip_is_not_imported(monkeypatch, tmp_path):
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").write_text("raise ImportError('no torch')")
    (tmp_path / "open_clip" / "zero_shot_metadata.py").write_text(
        "IMAGENET_CLASSNAMES = ('cat', 'dog')\n"
        "OPENAI_IMAGENET_TEMPLATES = (lambda c: f'a {c}.', lambda c: f'{c}')\n"
    )
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert prompts.read("open_clip:imagenet", "x") == (("cat", "dog"), ("a {}.", "{}"))


@pytest.fixture(name="clip_benchmark")
def _clip_benchmark(monkeypatch, tmp_path):
    """A package with files as CLIP_benchmark's."""
    folder = tmp_path / "clip_benchmark" / "datasets"
    folder.mkdir(parents=True)
    (tmp_path / "clip_benchmark" / "__init__.py").touch()
    names = {"flowers": ["rose", "tulip"], "imagenet1k": ["tench"]}
    templates = {"flowers": ["a {c}, a flower."], "cifar10": ["a {c}"], "imagenet1k": ["{c}!"]}
    (folder / "en_classnames.json").write_text(json.dumps(names))
    file = folder / "en_zeroshot_classification_templates.json"
    file.write_text(json.dumps(templates))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("data_set", "words"),
    [
        ("flowers102", (("rose", "tulip"), ("a {}, a flower.",))),
        ("cifar10", ((), ("a {}",))),
        ("imagenet", (("tench",), ("{}!",))),
        ("objectnet", ((), ("{}!",))),  # as CLIP_benchmark does it
    ],
)
@pytest.mark.usefixtures("clip_benchmark")
def test_those_of_clip_benchmark(data_set, words):
    assert prompts.read("clip_benchmark", data_set) == words
    assert prompts.read("clip_benchmark:flowers", data_set) == (
        ("rose", "tulip"),
        ("a {}, a flower.",),
    )


def test_installed_clip_benchmark():
    pytest.importorskip("clip_benchmark", reason="needs the 'parity' extra")
    words = prompts.read("clip_benchmark", "flowers102")
    assert len(words.class_names) == 102
    assert len(prompts.read("clip_benchmark:imagenet1k", "x").class_names) == 1000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("open_clip:flowers", "there are open_clip:imagenet, open_clip:imagenet_simple"),
        ("clip_benchmark:rose", "clip_benchmark:flowers, "),
        ("nowhere.json", "there is no file nowhere.json"),
    ],
)
@pytest.mark.usefixtures("clip_benchmark")
def test_unknown_sources(source, message):
    with pytest.raises(ConfigError, match=message):
        prompts.read(source, "cifar10")


def test_missing_package(monkeypatch):
    monkeypatch.setattr(prompts, "importlib", types.SimpleNamespace(util=_NothingInstalled))
    with pytest.raises(ConfigError, match="needs the package clip-benchmark: pip install"):
        prompts.read("clip_benchmark", "cifar10")


class _NothingInstalled:
    @staticmethod
    def find_spec(name):
        del name


def test_files(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"wds_vtab-flowers": {"templates": ["a {}"]}}))
    assert prompts.read(str(file), "flowers102") == ((), ("a {}",))
    assert prompts.read(str(file), "cifar10") == ((), ())
    file.write_text(json.dumps({"cifar10": {"names": ["a {}"]}}))
    with pytest.raises(ConfigError, match=r"has \['names'\]; there are class_names, templates"):
        prompts.read(str(file), "cifar10")
    file.write_text(json.dumps({"cifar10": {"templates": ["a {c}", "{c}"]}}))
    assert prompts.read(str(file), "cifar10") == ((), ("a {}", "{}"))
    for entry, message in (
        (["a {}"], "must be an object with class_names and templates"),
        ({"templates": "a {}"}, "templates must be a list of strings"),
        ({"class_names": ["a", 1]}, "class_names must be a list of strings"),
    ):
        file.write_text(json.dumps({"cifar10": entry}))
        with pytest.raises(ConfigError, match=f"prompts.json: 'cifar10'.*{message}"):
            prompts.read(str(file), "dtd")
    file.write_text("[]")
    with pytest.raises(ConfigError, match="must be a JSON object"):
        prompts.read(str(file), "cifar10")
    file.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        prompts.read(str(file), "cifar10")
