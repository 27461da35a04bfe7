import numpy as np
import pytest

from aced.evaluators.retrieval import recall


def _by_sorting(zimg, ztxt, owner, k):
    """R@k by a full sort of each row, query by query."""
    similarity = zimg @ ztxt.T
    i2t = [any(owner[j] == i for j in np.argsort(-similarity[i])[:k]) for i in range(len(zimg))]
    t2i = [owner[j] in np.argsort(-similarity[:, j])[:k] for j in range(len(ztxt))]
    return np.mean(i2t), np.mean(t2i)


@pytest.mark.parametrize("captions", [1, 5])
def test_recall_equals_a_full_sort(captions):
    rng = np.random.default_rng(captions)
    zimg = rng.normal(size=(1100, 8))  # more than one block of queries
    owner = np.repeat(np.arange(1100), captions)
    ztxt = zimg[owner] + 1.5 * rng.normal(size=(len(owner), 8))
    found = recall(zimg, ztxt, owner)
    for k in (1, 5, 10):
        i2t, t2i = _by_sorting(zimg, ztxt, owner, k)
        assert (found[f"i2t_r{k}"], found[f"t2i_r{k}"]) == (pytest.approx(i2t), pytest.approx(t2i))
    assert 0 < found["i2t_r1"] < found["i2t_r10"] < 1
    assert found["captions"] == len(owner)
    assert found["images"] == len(set(owner.tolist()))


def test_images_without_a_caption_are_candidates_but_no_queries():
    zimg = np.eye(3)
    found = recall(zimg, zimg[[0, 2]], np.array([0, 2]))
    assert found["i2t_r1"] == found["t2i_r1"] == 1.0


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_constant_model_has_zero_recall(value):
    z = np.full((20, 4), value)
    found = recall(z, z, np.arange(20))
    assert found["i2t_r10"] == found["t2i_r10"] == 0.0
