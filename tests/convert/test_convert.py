"""The command: the layouts that it reads and writes, and the way from a run to transformers."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import jax
import ml_collections
import numpy as np
import pytest
import small_run

from aced.checkpoints import checkpointer
from aced.config import ConfigError, to_config
from aced.convert import big_vision, command, huggingface
from aced.convert.__main__ import summary
from aced.convert.command import ConvertConfig
from aced.data.shapes import scenes
from aced.metrics import history
from aced.models import model_folder
from aced.models.saved import InteropError, flat
from aced.train import loop
from tests import commands, many_processes
from tests.convert import hub_server


def config_of_run():
    config = small_run.get_config()
    config.ema_decay = 0.5
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run of two steps, as configs/smoke.py:tiny makes it."""
    folder = tmp_path_factory.mktemp("run")
    loop.run(config_of_run(), str(folder), jax.devices()[:1])
    return folder


@pytest.fixture(scope="module")
def ours(run):
    """That run as a model folder."""
    out = run.parent / "ours"
    command.convert(ConvertConfig(source=str(run), out=str(out), to="aced"))
    return out


@pytest.mark.slow
def test_a_run_becomes_a_model_folder(run, ours):
    params = checkpointer.load_params(str(run), part="model")
    again = model_folder.read(str(ours))
    for name, value in flat(again.params).items():
        np.testing.assert_array_equal(value, flat(params)[name])
    assert again.config.tokenizer.kind == "shapes"
    assert again.source == f"{run} (last, params)"
    assert sorted(x.name for x in ours.iterdir()) == ["model.json", "model.safetensors"]


def test_the_moving_average_is_a_choice(run, ours, tmp_path):
    out = str(tmp_path / "ema")
    command.convert(ConvertConfig(source=str(run), out=out, to="aced", parameters="ema"))
    ema = checkpointer.load_params(str(run), key="ema", part="model")
    found = flat(model_folder.read_params(out))
    for name, value in flat(ema).items():
        np.testing.assert_array_equal(found[name], value)
    first = flat(model_folder.read_params(str(ours)))
    assert any((found[name] != first[name]).any() for name in found)


def test_the_card_of_a_run_has_its_last_numbers(run, tmp_path):
    out = tmp_path / "small"
    wanted = ConvertConfig(source=str(run), out=str(out), to="huggingface", license="apache-2.0")
    command.convert(wanted)
    content = (out / "README.md").read_text()
    assert "license: apache-2.0\nlibrary_name: transformers\n" in content
    assert "\n# small\n" in content
    last = history.last_values(run)
    assert f"| examples trained | {last['examples_trained']:,} |" in content
    assert f"| flops | {last['flops']:.2e} |" in content
    assert "| method | IID |" in content
    assert "The run has measured none." in content
    assert str(run) not in content


def test_flags_for_another_layout(ours, tmp_path):
    wanted = ConvertConfig(source=str(ours), out=str(tmp_path / "a"), to="aced", quick_gelu=True)
    with pytest.raises(ConfigError, match="--quick_gelu is for models in open_clip's layout"):
        command.convert(wanted)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_from_a_run_to_zero_shot_in_transformers(run, ours, tmp_path, monkeypatch, capsys):
    """The steps of a user; the logits equal those of our own tower on the same pictures."""
    sys.path.insert(0, os.path.dirname(__file__))
    try:
        import foreign
    finally:
        sys.path.pop(0)
    transformers, torch = foreign.transformers(), foreign.torch()
    from PIL import Image

    out = tmp_path / "out"
    config = ConvertConfig(source=str(run), out=str(out), to="huggingface")
    done = command.convert(config)
    (note,) = done.notes
    assert "48 text positions were added that receive no attention" in note
    text = summary(done, config)
    assert "patch 8, 32 px" in text
    data = scenes.Shapes(scenes.ShapesConfig(resolution=32))
    pictures = [Image.fromarray(np.asarray(data[i]["image"])) for i in range(3)]
    labels = ["a red circle", "two blue squares"]
    model = transformers.AutoModel.from_pretrained(out).eval()
    processor = transformers.AutoProcessor.from_pretrained(out)
    inputs = processor(
        images=pictures, text=labels, padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = model(**inputs).logits_per_image
    mine = model_folder.read(str(ours))
    ids = inputs["input_ids"].numpy()
    ids = np.concatenate([ids[:, :15], ids[:, -1:]], axis=1)  # without the new positions
    e = foreign.embed(mine, np.stack([np.asarray(x) for x in pictures]), np.resize(ids, (3, 16)))
    np.testing.assert_allclose(theirs, e[2][:, :2], atol=1e-4, rtol=1e-5)
    # The lines that the command prints, unchanged.
    pictures[0].save(tmp_path / "picture.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    lines = textwrap.dedent(text.partition("Next: ")[2].lstrip("\n"))
    exec(lines, {})
    assert "grad_fn=<SigmoidBackward0>" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["huggingface", "big_vision"])
def test_round_trip(target, ours, tmp_path):
    there = tmp_path / target
    exact = {"text_length": 0} if target == "huggingface" else {}
    command.convert(ConvertConfig(source=str(ours), out=str(there), to=target, **exact))
    source, more = str(there), {}
    if target == "big_vision":
        source = str(there / big_vision.WEIGHTS)
        more = {"model": str(there / big_vision.SETTINGS)}
    back = tmp_path / "back"
    done = command.convert(ConvertConfig(source=source, out=str(back), to="aced", **more))
    first, second = (flat(model_folder.read_params(str(x))) for x in (ours, back))
    assert set(first) == set(second)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    expected = {"huggingface": "transformers' layout", "big_vision": "big_vision's .npz"}
    assert done.kind == expected[target]


@pytest.mark.slow
def test_a_model_folder_is_reference_and_starting_point_of_a_run(ours, tmp_path):
    config = small_run.get_config(f"reference={ours}")
    config.total_steps = 1
    config.evals = ml_collections.ConfigDict()
    config.init.checkpoint = str(ours)
    config.method.model = to_config(model_folder.read_config(str(ours)))
    numbers = loop.run(config, str(tmp_path / "run"), jax.devices()[:1])
    assert np.isfinite(numbers["loss"])
    learner = flat(checkpointer.load_params(str(tmp_path / "run"), part="model"))
    # One step of warm-up away from where it started.
    start = flat(model_folder.read_params(str(ours)))
    for name, value in start.items():
        np.testing.assert_allclose(learner[name], value, atol=3e-3)


@pytest.mark.slow
def test_a_model_is_downloaded_from_the_hub(ours, tmp_path):
    """Over HTTP, as from the hub; only weights, settings and tokenizer are downloaded."""
    pytest.importorskip("huggingface_hub")
    model = tmp_path / "served"
    model.mkdir()
    huggingface.write(model_folder.read(str(ours)), model)
    files = {path.name for path in model.iterdir()}
    for name in ("pytorch_model.bin", "modeling.py", "tf_model.h5"):
        (model / name).write_bytes(b"not to be fetched")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((model / "config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"not to be fetched")
    served = {"someone/small": model, "someone/pickled": pickled}
    with hub_server.serve(served) as (endpoint, sent):
        variables = {"HF_ENDPOINT": endpoint, "HF_HOME": tmp_path / "home"}

        def fetch(source, out, **others):
            arguments = [f"--source={source}", f"--out={tmp_path / out}", "--to=aced"]
            return subprocess.run(
                [sys.executable, "-m", "aced.convert", *arguments, "--revision=v1"],
                capture_output=True, text=True, timeout=300,
                env=many_processes.environment(1, **variables, **others),
            )  # fmt: skip

        done = fetch("someone/small", "out")
        assert done.returncode == 0, done.stderr
        assert set(sent) == files
        assert "someone/small" in done.stdout
        missing = fetch("someone/else", "none")
        assert missing.returncode == 1
        assert "someone/else is not a local path, and cannot be" in missing.stderr
        assert "Traceback" not in missing.stderr
        refused = fetch("someone/pickled", "none")
        assert refused.returncode == 1
        assert "someone/pickled on the hub has its weights in pytorch_model.bin" in refused.stderr
        assert "--revision=refs/pr/N" in refused.stderr
        assert "pytorch_model.bin" not in sent
    # From the library's cache, without the hub.
    assert fetch("someone/small", "again", HF_HUB_OFFLINE=1).returncode == 0
    ours_, theirs = (flat(model_folder.read_params(str(x))) for x in (ours, tmp_path / "again"))
    for name, value in ours_.items():
        np.testing.assert_array_equal(theirs[name], value)


def test_output_is_atomic(ours, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InteropError, match="open_clip takes image towers"):
        command.convert(ConvertConfig(source=str(ours), out=str(out), to="open_clip"))
    assert list(tmp_path.iterdir()) == []
    command.convert(ConvertConfig(source=str(ours), out=str(out), to="huggingface"))
    with pytest.raises(InteropError, match="already exists; choose another --out, or give"):
        command.convert(ConvertConfig(source=str(ours), out=str(out), to="aced"))
    command.convert(ConvertConfig(source=str(ours), out=str(out), to="aced", overwrite=True))
    assert sorted(x.name for x in out.iterdir()) == ["model.json", "model.safetensors"]
    with pytest.raises(InteropError, match="open_clip takes image towers"):
        command.convert(
            ConvertConfig(source=str(ours), out=str(out), to="open_clip", overwrite=True)
        )
    assert (out / "model.json").exists()
    assert [x.name for x in tmp_path.iterdir()] == ["out"]


def test_only_earlier_outputs_are_replaced(run, ours, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    wanted = ConvertConfig(source=str(ours), out=str(tmp_path), to="aced", overwrite=True)
    with pytest.raises(InteropError, match="is not an earlier output of this command"):
        command.convert(wanted)
    with pytest.raises(InteropError, match="is not an earlier output of this command"):
        command.convert(dataclasses.replace(wanted, out=str(run)))
    with pytest.raises(InteropError, match="is the source or contains it"):
        command.convert(dataclasses.replace(wanted, out=str(ours)))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_sources_without_a_model_are_refused(tmp_path):
    wanted = ConvertConfig(source=str(tmp_path), out=str(tmp_path / "out"), to="aced")
    with pytest.raises(InteropError, match=r"neither model.json \(ours\), nor config.json with"):
        command.convert(wanted)
    with pytest.raises(InteropError, match=r"is not a folder, an .npz file, or an owner/name"):
        command.convert(dataclasses.replace(wanted, source="nothing"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": ""}, "--out is empty"),
        ({"model": "CLIP-B/16"}, "--model and --tokenizer are for .npz files"),
        ({"text_length": 32}, "--text_length is for --to=huggingface; leave it out for --to=aced"),
        ({"license": "mit"}, "--license is for model cards, which --to=aced does not write"),
    ],
)
def test_contradictory_flags_are_refused(changes, message):
    settings = {"source": "a", "out": "b", "to": "aced"} | changes
    with pytest.raises(ConfigError, match=message):
        ConvertConfig(**settings)


def test_the_command(ours, tmp_path):
    out = tmp_path / "out"
    flags = [f"--source={ours}", f"--out={out}", "--to=huggingface"]
    done = subprocess.run(
        [sys.executable, "-m", "aced.convert", *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "a model folder" in done.stdout
    assert f"{out}: written for huggingface" in done.stdout
    again = commands.call("convert", *flags)
    assert again.returncode == 1
    assert again.stderr.startswith("\nerror: ")
    assert "give --overwrite" in again.stderr
    assert "Traceback" not in again.stderr
    file = tmp_path / "file"
    file.touch()
    nowhere = commands.call("convert", flags[0], f"--out={file}/out", flags[2])
    assert nowhere.returncode == 1
    assert nowhere.stderr.startswith(f"\nerror: {file} cannot be used: File exists.")
