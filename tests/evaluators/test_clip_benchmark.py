"""The same folder and the same model, evaluated by CLIP_benchmark's command and by ours."""

import json
import pathlib
import sys

import pytest

from tests.commands import call
from tests.evaluators import wds_tree

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
_VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
_SETTINGS = {"embed_dim": 20, "vision_cfg": _VISION, "text_cfg": _TEXT}


def spread(model, torch):
    """Parameters such that pictures, and texts, differ much: no score is near another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                scale = 1.0 if "embedding" in name else 1.5 * parameter.shape[-1] ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory):
    """A random CLIP as open_clip keeps it, and our conversion."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("open_clip")
    save_file = pytest.importorskip("safetensors.torch").save_file
    from aced.convert import open_clip
    from aced.convert.command import ConvertConfig, convert

    theirs = tmp_path_factory.mktemp("open_clip")
    settings = {"model_cfg": _SETTINGS, "preprocess_cfg": {}}
    (theirs / open_clip.CONFIG).write_text(json.dumps(settings))
    model = spread(library.CLIP(**_SETTINGS), torch)
    save_file(model.state_dict(), theirs / open_clip.WEIGHTS)
    ours = theirs / "ours"
    convert(ConvertConfig(source=str(theirs), out=str(ours), to="aced"))
    return theirs, ours


def theirs(models, folder, name, monkeypatch, tmp_path):
    """The metrics of `clip_benchmark eval`."""
    cli = pytest.importorskip("clip_benchmark.cli")
    metrics = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")

    def accuracy(output, target, topk=(1,)):  # theirs calls float() of an array [1]: NumPy < 2.4
        best = output.topk(max(topk), 1, True, True)[1]
        right = best.eq(target.view(-1, 1))
        return [right[:, :k].any(dim=1).float().mean().item() for k in topk]

    monkeypatch.setattr(metrics, "accuracy", accuracy)
    out = tmp_path / "theirs.json"
    arguments = ["eval", "--dataset", f"wds/{name}", "--dataset_root", str(folder), "--no_amp"]
    arguments += ["--model", f"local-dir:{models[0]}", "--pretrained", "", "--num_workers", "0"]
    arguments += ["--recall_k", "1", "5", "10", "--output", str(out)]
    monkeypatch.setattr(sys, "argv", ["clip_benchmark", *arguments])
    cli.main()
    return json.loads(out.read_text())["metrics"]


def ours(models, folder, tmp_path):
    done = call("evaluate", f"--model={models[1]}", f"--data={folder}", f"--out={tmp_path}/ours")
    assert done.returncode == 0, done.stderr
    content = json.loads(pathlib.Path(tmp_path, "ours", "results.json").read_text())
    return content["evaluations"]


@pytest.mark.parametrize("write", [wds_tree.classes, wds_tree.groups])
def test_classes(models, write, tmp_path, monkeypatch):
    folder = write(tmp_path / "wds_cifar10", 150)
    found = ours(models, folder, tmp_path)["cifar10"]["numbers"]
    wanted = theirs(models, folder, "cifar10", monkeypatch, tmp_path)
    assert found["top1"] == pytest.approx(wanted["acc1"], abs=1e-6)
    assert found["top5"] == pytest.approx(wanted["acc5"], abs=1e-6)
    assert found["mean_per_class"] == pytest.approx(wanted["mean_per_class_recall"], abs=1e-6)
    assert len(set(found.values())) > 3  # no constant answer


def test_several_classes(models, tmp_path, monkeypatch):
    folder = wds_tree.several_classes(tmp_path / "wds_voc2007_multilabel", 150)
    found = ours(models, folder, tmp_path)["voc2007_multilabel"]["numbers"]
    wanted = theirs(models, folder, "voc2007_multilabel", monkeypatch, tmp_path)
    assert found["map"] == pytest.approx(wanted["mean_average_precision"], abs=1e-6)


def test_several_captions(models, tmp_path, monkeypatch):
    folder = wds_tree.captions(tmp_path / "wds_flickr30k", 60)
    found = ours(models, folder, tmp_path)["flickr30k"]["numbers"]
    wanted = theirs(models, folder, "flickr30k", monkeypatch, tmp_path)
    for k in (1, 5, 10):
        assert found[f"t2i_r{k}"] == pytest.approx(wanted[f"image_retrieval_recall@{k}"], abs=1e-6)
        assert found[f"i2t_r{k}"] == pytest.approx(wanted[f"text_retrieval_recall@{k}"], abs=1e-6)
