"""Commands whose files or folders cannot be used end with one message and no stack trace."""

import json
import shutil
import tarfile

import pytest
from etils import epath
from PIL import Image

from aced import command, errors
from aced.checkpoints import record
from aced.config import ConfigError
from aced.convert.command import ConvertConfig
from aced.data import sources
from aced.evaluate.command import EvaluateConfig
from aced.files import storage
from aced.files.storage import StorageError
from aced.methods.frozen import CheckpointOf, trained_model
from aced.models import model_folder
from aced.prepare.config import PrepareConfig
from aced.sweep import SweepConfig
from aced.train.config import parse
from configs import smoke
from tests import cached, commands, disks

WRITERS = ("main", "cache", "select_text", "prepare", "convert", "report")
READERS = ("evaluate", "suite", "preflight")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What commands read: a model, a run, pictures with captions, and sentences."""
    folder = tmp_path_factory.mktemp("made")
    cached.write_model(folder / "model")
    cached.write_data(folder / "data", 20)
    settings = parse(smoke.get_config("tiny,method=iid"))
    record.write(epath.Path(folder / "run"), settings, "shapes")
    (folder / "run" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n")
    (folder / "photos").mkdir()
    lines = []
    for k in range(4):
        Image.effect_noise((32, 32), 90 + k).save(folder / "photos" / f"{k}.png")
        lines.append(json.dumps({"image": f"{k}.png", "caption": f"picture {k}"}) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines))
    (folder / "corpus.txt").write_text("".join(f"sentence number {k}\n" for k in range(50)))
    return folder


def arguments(name, made, place):
    return {
        "main": ("--config=configs/smoke.py:tiny,method=iid", f"--workdir={place}"),
        "cache": (
            f"--config=tests/small_run.py:reference={made}/model",
            f"--out={place}",
            "--config.data.source=array_record",
            f"--config.data.array_record.path={made}/data",
        ),
        "select_text": (f"--corpus={made}/corpus.txt", "--method=random", f"--out={place}"),
        "prepare": (
            f"--images={made}/photos",
            f"--captions={made}/captions.jsonl",
            f"--out={place}",
        ),
        "convert": (f"--source={made}/model", "--to=aced", f"--out={place}"),
        "report": (f"{made}/run", "--pictures=0", f"--out={place}"),
        "evaluate": ("--config=configs/smoke.py:tiny,method=iid", f"--workdir={place}"),
        "suite": (f"{place}", f"{place}"),
        "preflight": (
            "--config=configs/smoke.py:tiny",
            "--config.method.reference.checkpoint={workdir}",
            "--topology=v5e:2x2",
            f"--workdir={place}",
        ),
    }[name]


@pytest.fixture
def read_only(tmp_path):
    with disks.mounted(tmp_path / "read_only", "ro,size=64k") as folder:
        yield folder


@pytest.fixture
def small_disk(tmp_path):
    with disks.mounted(tmp_path / "small", "size=4m") as folder:
        yield folder


def fill(folder, room=0):
    """Leaves `room` bytes on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    (folder / "other").write_bytes(bytes(free - room))


def ended(name, made, place):
    """The message that the command ends with."""
    done = commands.call(name, *arguments(name, made, place))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.rpartition("\nerror: ")[2]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_where_the_output_belongs(made, tmp_path, name):
    if name == "report":
        place = tmp_path
    else:
        place = tmp_path / "file"
        place.write_text("mine")
    message = ended(name, made, place)
    assert str(place) in message


@pytest.mark.parametrize("name", WRITERS)
def test_below_a_file(made, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    message = ended(name, made, tmp_path / "file" / "out")
    assert str(tmp_path / "file") in message
    assert "move it away, or " in message


@pytest.mark.parametrize("name", [*WRITERS, *READERS])
def test_a_name_that_is_too_long(made, tmp_path, name):
    message = ended(name, made, tmp_path / ("x" * 300))
    assert "x" * 300 in message
    if name == "suite":  # which looks for a run alone
        assert "is not the workdir of a run" in message
    else:
        assert "Choose a shorter name." in message


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_is_read_only(made, read_only, name):
    message = ended(name, made, read_only / "out")
    assert str(read_only) in message
    assert "Mount it so that it can be written to, or choose another place." in message


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_is_full_at_the_start(made, small_disk, name):
    fill(small_disk)
    message = ended(name, made, small_disk / "out")
    assert str(small_disk) in message
    assert "Make room there or choose another place, and start the same command again." in message


@pytest.mark.parametrize("name", READERS)
def test_a_file_is_where_a_run_belongs(made, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        message = ended(name, made, place)
        if name == "preflight":  # which needs no run, but what one would have said
            assert "'{workdir}/embeddings' does not exist, so the width of its" in message
        else:
            assert str(place) in message


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_gets_full(made, small_disk, name):
    """At any file: of the owner, of Beam's workers, of ArrayRecord, of Orbax."""
    codes = []
    rooms = (4096, 131_072) if name == "main" else (4096, 12_288, 40_960, 131_072, 4_000_000)
    for room in rooms:
        for path in small_disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        fill(small_disk, min(room, shutil.disk_usage(small_disk).free))
        done = commands.call(name, *arguments(name, made, small_disk / "out"))
        codes.append(done.returncode)
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode:
            assert "\nerror: " in done.stderr, done.stderr
            assert "Make room" in done.stderr.rpartition("\nerror: ")[2], done.stderr
    assert codes[0] == int(name != "report")  # whose page is smaller
    assert codes[-1] == int(name == "main")  # whose checkpoints need more than there is


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space", "/data/x"), "/data/x cannot be used: No space left on device. M"),
        (OSError(28, "No space"), "--out=here cannot be used: No space left on device. Make room"),
        (
            RuntimeError("write() failed: No space left on device; writing /d/train-0; at byte 0"),
            "--out=here: write() failed: No space left on device; writing /d/train-0; at byte 0. M",
        ),
        (
            ValueError(
                "Trace of a worker\n  step 3\nOSError: [Errno 13] Permission denied: '/d'\n"
            ),
            "--out=here: OSError: [Errno 13] Permission denied: '/d'. Give this user the right",
        ),
        (ExceptionGroup("two", [KeyError("a"), OSError(30, "ro", "/d")]), "/d cannot be used: Re"),
        (
            StorageError("/d cannot be written: [Errno 36] File name too long: '/d'"),
            "/d cannot be written: [Errno 36] File name too long: '/d'. Choose a shorter name.",
        ),
        (OSError("the picture ends early"), "--out=here: the picture ends early"),
    ],
)
def test_the_message_names_place_reason_and_next_step(error, message):
    assert errors.message(error, "--out=here").startswith(message)


class JaxRuntimeError(RuntimeError):
    __module__ = "jax.errors"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("No such luck"),
        KeyError("device"),
        KeyError("Permission denied"),
        AssertionError("a mistake: File exists"),
        JaxRuntimeError("INTERNAL: Permission denied: ptxas"),
        RuntimeError("OSError: [Errno 17] File exists\n  in a worker\nTypeError: None + 1"),
    ],
)
def test_other_errors_show_where_they_happened(error):
    assert errors.message(error, "--out=here") is None
    with pytest.raises(type(error)), command.running("--out=here"):
        raise error


def test_libraries_that_are_missing_are_not_files_of_the_user():
    error = OSError("libcudnn.so.9: cannot open shared object file: No such file or directory")
    assert errors.message(error, "--out=here") == f"--out=here: {error}"


def test_an_error_that_is_its_own_cause():
    error = KeyError("a")
    error.__cause__ = error
    assert errors.message(error, "--out=here") is None


def test_ctrl_c_ends_with_its_code(caplog):
    with pytest.raises(SystemExit) as stop, command.running("--out=here"):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert "the same command resumes from what was saved, if anything was" in caplog.text


@pytest.mark.parametrize("name", [*WRITERS, *READERS])
@pytest.mark.parametrize("scheme", ["https", "hf"])
def test_a_scheme_that_cannot_be_used(made, name, scheme):
    message = ended(name, made, f"{scheme}://host/some/folder")
    assert f" = '{scheme}://host/some/folder" in message
    assert f"cannot be used, as it begins with {scheme}://" in message
    assert "Local paths" in message


@pytest.mark.parametrize("source", ["array_record", "webdataset", "parquet"])
def test_data_with_a_scheme_that_cannot_be_used(made, tmp_path, source):
    settings = arguments("main", made, tmp_path / "out")
    settings += (f"--config.data.source={source}",)
    done = commands.call("main", *settings, f"--config.data.{source}.path=https://host/x.tar")
    assert done.returncode == 1
    assert f"data.{source}.path = 'https://host/x.tar' cannot be used" in done.stderr
    assert "Local paths and gs:// and s3:// can. Download it" in done.stderr


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        (PrepareConfig, {"images": "photos", "out": "data"}, "captions"),
        (PrepareConfig, {"captions": "captions.csv", "out": "data"}, "images"),
        (PrepareConfig, {"out": "data"}, "tars"),
        (PrepareConfig, {"out": "data"}, "parquet"),
        (ConvertConfig, {"source": "a.npz", "to": "aced", "out": "b"}, "model"),
        (ConvertConfig, {"source": "a.npz", "to": "aced", "out": "b"}, "tokenizer"),
        (EvaluateConfig, {}, "out"),
        (SweepConfig, {"config": "configs/small.py"}, "out"),
    ],
)
def test_flags_whose_scheme_cannot_be_used_are_named(kind, settings, name):
    for scheme in ("http", "simplecache::https", "hf"):
        path = f"{scheme}://host/captions.jsonl"
        with pytest.raises(ConfigError, match=rf"^--{name} = '{path}' cannot be used"):
            kind(**settings, **{name: path})


def test_files_with_their_scheme_are_local(made, tmp_path):
    file = f"file://{tmp_path}/out"
    done = commands.call("convert", *arguments("convert", f"file://{made}", file))
    assert done.returncode == 0, done.stderr
    assert model_folder.is_model_folder(f"{tmp_path}/out")
    assert CheckpointOf(file).folder("") == f"{tmp_path}/out"
    config = sources.SourceConfig(
        "array_record", array_record=sources.ArrayRecordConfig(f"file://{made}/data")
    )
    assert len(sources.open_source(config)) == 20
    assert storage.find(f"file://{made}/photos", ".png")[0].path == f"{made}/photos/0.png"


@pytest.mark.parametrize("data", ["", "/0.tar.gz"])
@pytest.mark.parametrize("command", ["main", "prepare"])
def test_compressed_tars_are_named(tmp_path, command, data):
    with tarfile.open(tmp_path / "0.tar.gz", "w:gz"):
        pass
    if command == "main":
        flags = [f"--config=configs/small.py:method=iid,data={tmp_path}{data}"]
    else:
        flags = [f"--tars={tmp_path}{data}", f"--out={tmp_path}/out"]
    done = commands.call(command, *flags)
    assert done.returncode == 1
    assert f"{tmp_path}/0.tar.gz" in done.stderr
    assert "decompress" in done.stderr
    assert "Traceback" not in done.stderr


def test_unreadable_config_file_is_named(made):
    (made / "latin").mkdir(exist_ok=True)
    path = made / "latin" / ("x" * 300)
    done = commands.call("main", f"--config=configs/small.py:method=iid,data={path}")
    assert done.returncode == 1
    assert "File name too long" in done.stderr
    assert "_ErrorConfig" not in done.stderr


@pytest.mark.parametrize(
    ("file", "content", "layout"),
    [
        ("config.json", '{"model_type": "siglip"}', "transformers"),
        ("open_clip_config.json", "{}", "open_clip"),
    ],
)
def test_a_reference_of_another_layout_names_the_command_that_converts_it(
    tmp_path, file, content, layout
):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / file).write_text(content)
    done = commands.call(
        "evaluate",
        "--config=configs/smoke.py:tiny,method=iid",
        f"--model={tmp_path}/theirs",
        f"--workdir={tmp_path}/run",
    )
    assert done.returncode == 1
    assert f"{tmp_path}/theirs holds a model in the layout of {layout};" in done.stderr
    assert (
        f"python -m aced.convert --source={tmp_path}/theirs --out=models/theirs --to=aced"
        in done.stderr
    )


def test_a_name_of_the_hub_as_a_reference_names_the_command_that_converts_it():
    with pytest.raises(ConfigError, match="--source=google/siglip-base --out=models/siglip-base"):
        trained_model("google/siglip-base")
