"""What README.md and docs/ state about the package: commands, settings, messages, layers, sizes."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

from aced.config import flatten
from tests.docs.pages import PAGES, ROOT, blocks, commands, name

COMMANDS = [(page, words) for page in PAGES for words in commands(page)]
OURS = [(page, words[2:]) for page, words in COMMANDS if words[:2] == ["python", "-m"]]
EXAMPLES = {"configs/mine.py", "configs/locked_image.py"}  # of these pages, tested as examples


def test_commands_are_found():
    modules = {words[0] for _, words in OURS}
    assert {"aced.main", "aced.prepare", "aced.cache", "aced.convert", "aced.evaluate"} <= modules
    assert {"aced.preflight", "aced.select_text", "aced.report", "aced.suite"} <= modules
    assert len(OURS) > 40


def flags(words: list[str]) -> list[str]:
    return [word[2:].partition("=")[0] for word in words if word.startswith("--")]


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted({w[0] for _, w in OURS if w[0].startswith("aced.")}))
def test_flags_of_commands_exist(module):
    # A settings' flag stands for all below it; its path is tested below.
    known = {flag.partition(".")[0] for flag in flags_source(module)}
    for page, words in OURS:
        if words[0] == module:
            for flag in flags(words):
                is_known = flag.partition(".")[0] in known
                if not is_known and module == "aced.prepare":
                    is_known = is_of_beam(flag)
                assert is_known, f"{name(page)}: {' '.join(words)}"


def is_of_beam(flag: str) -> bool:
    """Whether Beam has a flag that `aced.prepare` passes on."""
    from aced.prepare.runner import unknown_options

    if flag.startswith("dask_"):
        pytest.importorskip("distributed")
        importlib.import_module("aced.prepare.dask_runner")  # defines them
    return not unknown_options([f"--{flag}=1"])


def flags_source(module: str) -> set[str]:
    """The flags of a command: those that its module defines when imported, or in its `run`."""
    text = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True,
        timeout=120,
    ).stdout  # fmt: skip
    found = set(re.findall(r"^ {2,}--(?:\[no\])?([\w.]+)", text, re.MULTILINE))
    assert found, module
    return found


CONFIGS = sorted(
    {
        (word.partition("=")[2], tuple(w[2:] for w in words if w.startswith("--config.")))
        for _, words in COMMANDS
        for word in words
        if word.startswith("--config=") and word.partition("=")[2].partition(":")[0] not in EXAMPLES
    }
)


def _empty(settings, path=""):
    """The paths of empty mappings."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _empty(value, f"{path}{key}.") if value else (f"{path}{key}",)


@pytest.mark.parametrize(("config", "changes"), CONFIGS)
def test_configs_of_commands_have_these_arguments_and_settings(config, changes):
    file, _, arg = config.partition(":")
    if file.endswith("config.json"):  # of a run with the settings of a recipe
        file = f"configs/{pathlib.Path(file).parent.name}.py"
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    if "prompts=" in arg:  # a file of the user's
        arg = arg.partition(",prompts=")[0]
    settings = module.get_config(arg)
    known = flatten(settings.to_dict())
    known |= {path: {} for path in _empty(settings.to_dict())}
    for change in changes:
        path = change.partition("=")[0].removeprefix("config.")
        assert path in known, f"{config}: no setting {path}"


@pytest.mark.parametrize(
    ("page", "words"),
    [(page, words) for page, words in COMMANDS if words[0].startswith("launch/")],
    ids=lambda value: name(value) if isinstance(value, pathlib.Path) else value[0],
)
def test_flags_of_launch_scripts_exist(page, words):
    text = (ROOT / words[0]).read_text() + (ROOT / "launch/cli.sh").read_text()
    declared = set(re.findall(r"^ *flag ([a-z-]+)", text, re.MULTILINE))
    assert set(flags(words)) <= declared, name(page)


def test_readme_is_at_most_8_kb():
    assert len((ROOT / "README.md").read_bytes()) <= 8192


LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*/README.md")], ids=name)
def test_links_lead_to_files(page):
    for target in LINK.findall(page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def messages() -> list[str]:
    """All texts of the package, with … where something is filled in."""
    found = []
    for path in sorted((ROOT / "aced").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sd]", "…", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.append("".join(parts))
    return found


def test_troubleshooting_quotes_messages_that_exist():
    text = (ROOT / "docs/guides/troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r"^`([^`]+)`\n:", text, re.MULTILINE)
    assert len(quoted) > 15
    known = messages()
    for message in quoted:
        fragment = message.strip("… ")
        # Python's own text, from faulthandler.
        assert fragment == "Timeout" or any(fragment in one for one in known), message


def test_paths_in_code_tables_exist():
    """The files that pages name as `folder/file.py` or `aced/...`, in the package or the root."""
    for page in PAGES:
        for path in re.findall(r"`((?:[\w]+/)+[\w]*(?:\.py)?)`", page.read_text("utf-8")):
            places = [ROOT / path, ROOT / "aced" / path]
            ours = path.split("/")[0] in {"aced", "configs", "launch", "tests", "benchmarks"} or (
                path.endswith(".py") and (ROOT / "aced" / path.split("/")[0]).exists()
            )
            if ours and path not in EXAMPLES:
                assert any(place.exists() for place in places), f"{name(page)}: {path}"


def test_example_of_a_config_is_on_the_page_that_the_error_names():
    assert "configs/mine.py" in (ROOT / "README.md").read_text("utf-8")
    assert len(blocks(ROOT / "docs/guides/runs.md", "python")) == 1


@pytest.mark.parametrize("folder", ["benchmarks", "launch"])
def test_readme_of_a_folder_names_its_scripts(folder):
    text = (ROOT / folder / "README.md").read_text("utf-8")
    scripts = [path for path in (ROOT / folder).iterdir() if path.suffix in (".py", ".sh")]
    assert scripts
    for path in scripts:
        label = path.stem if folder == "benchmarks" else path.name
        assert f"`{label}`" in text, f"{folder}/README.md does not name {path.name}"


def test_every_page_is_in_the_site():
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in text


def test_tests_that_ci_names_exist():
    names = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", (ROOT / ".ci" / "run").read_text())
    assert len(names) > 1
    for path, test in names:
        assert not test or f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"
        assert (ROOT / path).exists()
