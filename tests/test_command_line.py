"""Help, and what commands print about flags, recipes, arguments and settings that do not exist."""

import os
import pathlib
import re
import runpy
import subprocess
import sys

import pytest
from etils import epath

from aced import __main__ as aced
from aced import recipes, run_flags
from aced.checkpoints import record
from aced.train.config import parse
from configs import smoke
from tests import commands, many_processes

ROOT = pathlib.Path(__file__).parents[1]
OF_A_RUN = ("main", "cache", "evaluate", "preflight")
SMOKE = "--config=configs/smoke.py"


def refused(command, *arguments):
    """The message of a command that ends before it does anything."""
    done = commands.call(command, *arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(f"\nSee python -m aced.{command} --help.\n")
    assert not done.stdout
    return done.stderr


@pytest.mark.parametrize("command", [*OF_A_RUN, "convert", "select_text", "report"])
def test_flag_that_resembles_another(command):
    flag, meant = ("--wrkdir", "--workdir") if command in OF_A_RUN else ("--ot", "--out")
    assert f"There is no flag {flag}; did you mean {meant}?" in refused(command, f"{flag}=x")


def test_flags_are_checked_before_the_recipe_is_loaded(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text("raise RuntimeError('loaded')")
    message = refused("main", f"--config={recipe}", "--wrkdir=x")
    assert "loaded" not in message
    message = refused("main", f"--config={recipe}")
    assert f"{recipe}, line 1: RuntimeError: loaded" in message


def test_setting_given_as_a_flag():
    assert "no flag --lr; did you mean --config.optimizer.schedule.peak?" in refused(
        "main", "--lr=1"
    )
    message = refused("evaluate", SMOKE, "lr=3")
    assert "'lr=3' is no flag" in message
    assert "did you mean --config.optimizer.schedule.peak?" in message


def test_help_that_is_mistyped():
    assert "There is no flag --hlep; did you mean --help?" in refused("main", "--hlep")


def test_flag_without_dashes():
    message = refused("convert", "out=x")
    assert "'out=x' is no flag, and the command takes nothing else; did you mean --out?" in message


@pytest.mark.parametrize("command", OF_A_RUN)
def test_recipe_that_resembles_another(command):
    message = refused(command, "--config=configs/smal.py")
    assert "There is no config file configs/smal.py in " in message
    assert "; did you mean configs/small.py?" in message
    assert "  small               ACED on your own pairs" in message
    assert "  methods " not in message  # not a recipe


def test_recipe_without_its_folder():
    assert "did you mean configs/acid_b16.py?" in refused("main", "--config=acid_b16")


def test_no_recipes_outside_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = refused("main", "--config=configs/small.py")
    assert f"There are no recipes in {tmp_path}. Start from the root of the repository" in message


def test_recipe_that_does_not_parse_is_listed_with_the_others(monkeypatch, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/broken.py").write_text("x = (\n")
    (tmp_path / "configs/whole.py").write_text('"""A whole one."""\ndef get_config(): pass\n')
    monkeypatch.chdir(tmp_path)
    lines = recipes.summaries().splitlines()
    assert lines[1].startswith("  broken  does not parse: ")
    assert lines[1].endswith("(broken.py, line 1)")
    assert lines[2] == "  whole   A whole one."


def test_argument_that_ends_like_a_record_is_one_of_the_recipe(a_record):
    text = f"configs/small.py:method=iid,data={a_record}"
    assert not recipes.is_record(text)
    assert recipes.is_record(str(a_record))
    message = refused("main", f"--config={text},steps")
    assert "is no config.json of a run" not in message


def test_file_that_is_neither_a_recipe_nor_a_record(a_record):
    other = a_record.rename(a_record.with_name("other.json"))
    message = refused("main", f"--config={other}")
    assert f"{other} is neither a recipe, NAME.py, nor the config.json of a run." in message


def test_argument_that_resembles_another():
    message = refused("main", "--config=configs/small.py:stepz=3")
    assert "The config has no argument 'stepz'; did you mean steps?" in message
    assert "  reference_steps = 0\n" in message


def test_data_that_do_not_exist_are_named_before_the_reference_that_they_lack(tmp_path):
    message = refused("main", f"--config=configs/small.py:data={tmp_path}/typo")
    assert f"\n{tmp_path}/typo is not a prepared data set: it has no dataset.json." in message
    assert "or correct the path" in message


@pytest.mark.parametrize("command", OF_A_RUN)
def test_setting_that_resembles_another(command):
    message = refused(command, SMOKE, "--config.optimizer.lr=3")
    assert "no setting optimizer.lr; did you mean --config.optimizer.schedule.peak?" in message
    message = refused(command, SMOKE, "--config.optimizer.schedule.peek=None")
    assert "did you mean --config.optimizer.schedule.peak" in message


def test_evaluations_are_added_in_a_config_file():
    message = refused("main", SMOKE, "--config.evals.imagenet.kind=zeroshot")
    assert "There is no setting evals.imagenet.kind; did you mean --config.evals." in message
    assert "are added in a config file: see configs/mine.py in docs/guides/runs.md." in message


@pytest.mark.parametrize("command", [name for name in OF_A_RUN if name != "evaluate"])
def test_missing_recipe(command):
    assert "--config is missing: give a recipe.\nRecipes" in refused(command)
    assert "--config is missing: give a recipe." in refused(command, "--config.seed=1")


def test_help_lists_the_recipes_and_the_most_used_flags_first():
    done = commands.call("main", "--help")
    assert done.returncode == 0
    found = re.findall(r"^  --(?:\[no\])?(\w+): ", done.stdout, re.MULTILINE)
    assert found == ["config", "workdir", "distributed", "force"]
    assert "\n  smoke               ACED on a laptop: a reference on clean pairs" in done.stdout
    assert commands.call("main", "-h").stdout == done.stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.seed", "Missing value for flag --config.seed"),
        ("--config.seed=x", "base 10: 'x'"),
        ("--config.method.selection.gain=x", "could not convert string to float: 'x'"),
        ("--config.optimizer=3", "is not a dict"),
        (
            "--config.evals.retrieval.class_names[0]=x",
            "did you mean --config.evals.retrieval.",
        ),
    ],
)
def test_values_that_a_setting_cannot_have(override, message):
    assert message in refused("main", SMOKE, override)


def test_full_help_exits_with_0():
    done = commands.call("report", "--helpfull")
    assert done.returncode == 0
    assert "--out:" in done.stdout
    assert "--verbosity:" in done.stdout


@pytest.mark.parametrize("recipe", ["small", "coca_large"])  # one of its own, one of another file
def test_help_of_a_recipe(recipe):
    done = commands.call("main", f"--config=configs/{recipe}.py:help")
    assert done.returncode == 0
    assert "\nCost:     " in done.stdout
    assert "Arguments, with their defaults:\n" in done.stdout
    assert "\n  tiny\n" in done.stdout
    assert ("  lr              = 0.001\n" in done.stdout) == (recipe == "small")


@pytest.fixture
def a_record(tmp_path):
    """The config.json of a run."""
    settings = parse(smoke.get_config("tiny,method=iid"))
    record.write(epath.Path(tmp_path / "run"), settings, "shapes")
    return tmp_path / "run" / "config.json"


def test_new_run_is_beside_the_one_with_its_settings(a_record):
    again = a_record.parent.with_name("run-again")
    again.write_text("a file, where the run would be")
    done = commands.call("main", f"--config={a_record}")
    assert done.returncode == 1
    assert f"{again}" in done.stderr
    assert os.listdir(a_record.parent) == ["config.json"]  # only read


@pytest.mark.slow
def test_run_with_the_settings_of_another(a_record):
    done = commands.call("main", f"--config={a_record}", "--config.total_steps=1")
    assert done.returncode == 0, done.stderr
    again = epath.Path(f"{a_record.parent}-again")
    then, now = (record.read(folder).settings for folder in (epath.Path(a_record).parent, again))
    assert now == then | {"total_steps": 1}
    assert f"The run is in {again}." in done.stdout
    assert os.listdir(a_record.parent) == ["config.json"]  # only read


@pytest.mark.parametrize("command", OF_A_RUN)
def test_settings_of_a_run_are_checked_as_those_of_a_recipe(a_record, command):
    message = refused(command, f"--config={a_record}", "--config.optimizer.lr=3")
    assert "did you mean --config.optimizer.schedule.peak?" in message
    message = refused(command, f"--config={a_record.parent}")
    assert f"did you mean the settings of the run there, {a_record}?" in message


@pytest.mark.parametrize("command", OF_A_RUN)
def test_damaged_settings_of_a_run(a_record, command):
    text = a_record.read_text()
    a_record.write_text(text.replace('"batch_size": 16', '"batch_size": 17', 1))
    message = refused(command, f"--config={a_record}")
    assert (
        f"{a_record} is not readable (its sha256 does not match its content: it was changed"
        in message
    )
    missing = a_record.with_name("missing") / "config.json"
    message = refused(command, f"--config={missing}")
    assert f"{missing} is no config.json of a run; it is in the workdir of every run" in message


def test_evaluate_takes_the_folder_of_the_settings(a_record):
    done = commands.call("evaluate", f"--config={a_record}")
    assert done.returncode == 1  # the run has no checkpoint
    assert f"{a_record.parent}/checkpoints" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--config=configs/smal.py"], ["--wrkdir=x", SMOKE]]
)
def test_no_heavy_import_before_a_mistake_is_found(arguments):
    code = (
        "import runpy, sys\n"
        "try: runpy.run_module('aced.main', run_name='__main__', alter_sys=True)\n"
        "finally: print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, capture_output=True, text=True, env=many_processes.environment(1),
    )  # fmt: skip
    assert done.stdout.endswith("False False\n"), done.stderr


def run_aced(monkeypatch, *arguments):
    """Runs the console command in this process; returns the module that it started, if any."""
    started = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **_: started.append(name))
    monkeypatch.setattr(sys, "argv", ["/bin/aced", *arguments])
    monkeypatch.setattr(sys, "path", ["/bin", *sys.path[1:]])
    aced.main()
    return started, sys.argv, sys.path[0]


def test_console_command_starts_a_module(monkeypatch):
    started, argv, first = run_aced(monkeypatch, "select-text", "--k=3")
    assert started == ["aced.select_text"]
    assert argv[1:] == ["--k=3"]
    assert first == os.getcwd()  # where configs/ is


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_console_command_lists_the_commands(monkeypatch, capsys, arguments):
    assert run_aced(monkeypatch, *arguments)[0] == []
    out = capsys.readouterr().out
    assert "\n  train        Trains and evaluates any method.\n" in out
    assert len(re.findall(r"^  [\w-]+ +[A-Z].*\.$", out, re.MULTILINE)) == len(aced.COMMANDS)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tarin", "train"),
        ("main", "train"),
        ("select_text", "select-text"),
        ("evalute", "evaluate"),
    ],
)
def test_command_that_resembles_another(monkeypatch, name, meant):
    with pytest.raises(
        SystemExit, match=f"There is no command '{name}'; did you mean aced {meant}"
    ):
        run_aced(monkeypatch, name)


def test_every_command_is_in_the_table():
    files = [*(ROOT / "aced").glob("*.py"), *(ROOT / "aced").glob("*/__main__.py")]
    names = {
        path.parent.name if path.stem == "__main__" else path.stem
        for path in files
        if "command_line.run(" in path.read_text()
    }
    assert names == set(aced.COMMANDS.values())


def test_console_command_in_a_process_of_its_own():
    done = subprocess.run(
        [sys.executable, "-c", "from aced.__main__ import main; main()", "train", "--help"],
        cwd=ROOT, capture_output=True, text=True, env=many_processes.environment(1),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == commands.call("main", "--help").stdout


@pytest.mark.parametrize("value", ["None", "Nonesuch", "x=None"])
def test_only_none_itself_unsets_a_setting(value):
    match = run_flags._OVERRIDE.fullmatch(f"--config.metrics.name={value}")
    assert bool(match[2]) == (value == "None")


def test_a_record_in_a_store_starts_a_run_beside_it(monkeypatch):
    file = "gs://bucket/run1/config.json"
    monkeypatch.setattr(run_flags.config_flags, "get_config_filename", lambda flag: file)
    with monkeypatch.context() as patched:
        patched.setattr(run_flags.flags, "FLAGS", _Flags())
        assert run_flags.workdir(starts=True) == "gs://bucket/run1-again"
        assert run_flags.workdir() == "gs://bucket/run1"


class _Flags(dict):
    """Flags without a workdir."""

    workdir = None

    def __missing__(self, name):
        return None


def test_flags_of_absl_are_known(tmp_path):
    (tmp_path / "flags").write_text("--nosuch=3\n")
    done = commands.call("report", f"--flagfile={tmp_path}/flags", str(tmp_path))
    assert "There is no flag --flagfile" not in done.stderr
    assert "nosuch" in done.stderr
