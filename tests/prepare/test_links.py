"""Symbolic links among the pictures that prepare reads, as the hub's cache and DVC make them."""

import pytest

from aced.prepare.captions import PrepareError
from tests.prepare.small import encoded, picture, read, rejected, rows, run


def hub_cache(tmp_path, count=4):
    """A data set as huggingface_hub keeps it: a snapshot of links to files by their hash."""
    repository = tmp_path / "datasets--someone--drawings"
    snapshot = repository / "snapshots" / ("0" * 40) / "images"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i in range(count):
        (repository / "blobs" / f"{i:040d}").write_bytes(encoded(picture(i)))
        (snapshot / f"{i}.png").symlink_to(f"../../../blobs/{i:040d}")
    return snapshot


def test_links_out_of_the_folder_are_followed_when_allowed(tmp_path):
    snapshot = hub_cache(tmp_path)
    (snapshot / "gone.png").symlink_to("../../../blobs/gone")
    lines = [{"image": f"{i}.png", "caption": f"Caption {i}"} for i in range(4)]
    lines += [{"image": "gone.png", "caption": "c"}, {"image": "../x.png", "caption": "c"}]
    statistics = run(tmp_path, snapshot, lines, follow_links=True)
    assert statistics["images"] == 4
    assert statistics["rejected"] == {"missing_file": 1, "outside_folder": 1}
    found = read(tmp_path)
    assert {key: x["image"] for key, x in found.items()} == {
        f"{i}.png": encoded(picture(i)) for i in range(4)
    }
    assert any("blobs/gone" in entry.get("detail", "") for entry in rejected(tmp_path))


def test_rejected_links_out_of_the_folder_name_the_flag(tmp_path, folder):
    snapshot = hub_cache(tmp_path)
    lines = [{"image": f"{i}.png", "caption": f"Caption {i}"} for i in range(4)]
    with pytest.raises(PrepareError, match="No image is left") as error:
        run(tmp_path, snapshot, lines)
    blob = tmp_path / "datasets--someone--drawings" / "blobs" / ("0" * 40)
    said = str(error.value)
    assert "outside_link 4, the first: " in said
    assert f"without --follow_links, since it leads out of --images: the link {snapshot}" in said
    assert f"{snapshot}/0.png to {blob}" in said
    assert "relative to the same folder?" not in said
    (folder / "linked").symlink_to(snapshot)  # a folder behind a link, and a link to a link
    (folder / "again.png").symlink_to(folder / "linked" / "1.png")
    lines = [{"image": "linked/0.png", "caption": "a"}, {"image": "again.png", "caption": "b"}]
    run(tmp_path, folder, [*rows(2), *lines])
    details = {entry["image"]: entry["detail"] for entry in rejected(tmp_path)}
    assert details["linked/0.png"].endswith(f"the link {folder}/linked to {blob}")
    assert f"the link {folder}/again.png to " in details["again.png"]
