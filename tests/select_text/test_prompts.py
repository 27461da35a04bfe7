import pytest

from aced.config import ConfigError
from aced.select_text import prompts


def test_every_name_in_every_template():
    found = prompts.prompts(["cat", "dog {x}"], ["a {}", "{} {}"], 0, seed=0)
    assert sorted(found) == ["a cat", "a dog {x}", "cat cat", "dog {x} dog {x}"]


def test_templates_at_random():
    names = [f"n{i}" for i in range(400)]
    found = prompts.prompts(names, [f"{c} {{}}" for c in "abcd"], 1, seed=1)
    assert [text.split()[1] for text in found] == names
    counts = [sum(text.startswith(c) for text in found) for c in "abcd"]
    assert all(60 < count < 140 for count in counts)  # 100 each on average, deviation 9
    again = prompts.prompts(names, [f"{c} {{}}" for c in "abcd"], 1, seed=2)
    assert again != found


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"'a photo' has no {}"):
        prompts.prompts(["x"], ["a photo"], 0, 0)
    with pytest.raises(ConfigError, match="more than the 10 templates"):
        prompts.prompts(["x"], prompts.TEMPLATES, 11, 0)
    with pytest.raises(ConfigError, match="not a readable UTF-8 file"):
        prompts.read_lines(str(tmp_path / "none"), "class_names")
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(ConfigError, match=r"--templates=.* has no lines"):
        prompts.read_lines(str(tmp_path / "empty"), "templates")
    (tmp_path / "names").write_bytes(b"\xef\xbb\xbfcat\r\n\n dog \n")
    assert prompts.read_lines(str(tmp_path / "names"), "class_names") == ["cat", "dog"]
