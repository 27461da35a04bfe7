"""The model card: metadata that the hub reads, and the facts about the model."""

import ours
import pytest
import yaml

from aced.convert import card

RUN = card.Training(
    title="H-ACID",
    step=1200,
    averaged=True,
    settings={"batch_size": 64, "method.loss": "sigmoid", "seed": 0},
    data="shapes",
    costs={"examples_trained": 76_800, "examples_scored": 384_000, "flops": 1.25e12},
    evaluations={"retrieval/mean_r1": 0.1234567},
)


def metadata(content):
    _, head, _ = content.split("---\n", 2)
    return yaml.safe_load(head)


def test_card_of_a_run():
    content = card.text(
        ours.siglip(), "huggingface", name="small", license="mit", run=RUN, notes=["one thing"]
    )
    assert metadata(content) == {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["aced", "siglip", "image-text", "zero-shot-image-classification"],
    }
    for line in (
        "| retrieval/mean_r1 | 0.1235 |",
        "| examples trained | 76,800 |",
        "| examples scored | 384,000 |",
        "| flops | 1.25e+12 |",
        "| method | H-ACID |",
        "| data | shapes |",
        "| seed | 0 |",
        "- one thing.",
    ):
        assert f"\n{line}\n" in content
    assert "of the parameters themselves; this folder has their moving average" in content
    assert "AutoModel" in content
    assert ".sigmoid()" in content


def test_card_of_a_converted_model():
    content = card.text(
        ours.clip(), "open_clip", name="x", base_model="openai/clip-vit-base-patch32"
    )
    about = metadata(content)
    assert "license" not in about
    assert (about["library_name"], about["base_model"]) == (
        "open_clip",
        "openai/clip-vit-base-patch32",
    )
    assert "## Evaluations" not in content
    assert "create_model_from_pretrained('local-dir:FOLDER')" in content


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"source": "shapes", "shapes": {}}, "shapes"),
        (
            {"source": "array_record", "array_record": {"path": "/home/me/pairs"}},
            "pairs, read as array_record",
        ),
        (
            {
                "source": "shapes",
                "mixture": {"b": {"source": "shapes", "shapes": {}}},
            },
            "b (shapes)",
        ),
    ],
)
def test_data_are_named_without_their_folders(data, name):
    assert card._data(data) == name
