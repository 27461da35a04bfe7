"""The summary that `python -m aced.prepare` prints."""

from collections.abc import Mapping
from typing import Any

from aced.prepare.command import PAGE, REJECTED
from aced.prepare.config import PrepareConfig

REASONS = {
    "duplicate_image": "same bytes as an earlier picture, which got the captions",
    "empty_caption": "no text",
    "malformed_line": "no valid row of the table",
    "missing_file": "no readable file at the path",
    "near_duplicate": "a rescaled or recompressed copy of an earlier picture",
    "other_label": "another label than an earlier line of the same picture",
    "outside_folder": "a path that leads out of --images",
    "outside_link": "a link that leads out of --images; --follow_links reads it",
    "repeated_caption": "same text as an earlier caption of the picture",
    "too_large": "more bytes or pixels (--max_pixels) than allowed",
    "too_many_captions": "more captions than a picture may have",
    "undecodable": "no picture, or a damaged one",
    "unreadable_record": "a damaged record",
}


def text(statistics: Mapping[str, Any], config: PrepareConfig) -> str:
    """Returns what was kept, what was changed, what was left out, and where it is listed."""
    out, images = config.out, statistics["images"]
    lines = [f"{out} has {images:,} images with {statistics['captions']:,} captions:"]
    for split, counts in statistics["splits"].items():
        noisy = f", {counts['noisy']:,} of them labelled noisy" if "noisy" in counts else ""
        lines.append(
            f"  {split:8} {counts['images']:,} images{noisy}, {counts['captions']:,} captions, "
            f"{counts['image_bytes'] / 1e6:,.1f} MB"
        )
    kinds = statistics.get("captions_by_kind", {})  # none where an earlier version counted
    if len(kinds) > 1:
        listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        lines.append(f"Captions by kind: {listed}.")
    if config.max_side:
        lines.append(
            f"{statistics['stored_anew']:,} images were encoded again, since a side was above "
            f"--max_side={config.max_side} or they were transparent; the others keep their bytes."
        )
    if config.thumbnails:
        without = images - statistics["thumbnails"]
        lines.append(
            f"{statistics['thumbnails']:,} images have a small copy; {without:,} have none, since "
            f"their shorter side is at most --thumbnails={config.thumbnails} pixels (or their copy "
            "would be too long for a JPEG)."
        )
    rejected = statistics["rejected"]
    lines.append(f"Left out, listed line by line in {out}/{REJECTED}:" if rejected else "")
    width = max(map(len, rejected), default=0)
    for reason, count in rejected.items():
        lines.append(f"  {count:9,}  {reason:{width}}  {REASONS[reason]}")
    lines[-1] = lines[-1] or "Nothing was left out."
    lines.append(f"Pictures and statistics: {out}/{PAGE}")
    if not config.val:
        lines.append(
            "The recipes evaluate on a split 'val': prepare again with --val=N to hold some out."
        )
    return "\n".join(lines)
