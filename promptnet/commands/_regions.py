"""What `--region` says: halves, boxes in fractions of the image, or files of masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

HALVES = "halves"


def check_regions(regions: Sequence[str], num_subjects: int) -> None:
    """Check the regions of subjects as text.

    Raises:
        ValueError: there is not one for each subject, or one is no box and no file.
    """
    if num_subjects < 2:
        raise ValueError(f"--region needs several subjects in one image, not {num_subjects}: give --subject A B")
    if list(regions) == [HALVES]:
        return
    if len(regions) != num_subjects:
        raise ValueError(f"{num_subjects} subjects need as many values of --region, but there are {len(regions)}")
    for region in regions:
        if _box(region) is None and not Path(region).is_file():
            raise ValueError(
                f"--region '{region}' must be halves, left,top,right,bottom in fractions, or the file of a mask"
            )


def read_regions(regions: Sequence[str]) -> Any:
    """Return what the pipeline takes as `regions`."""
    from promptnet.images.load import open_image

    if list(regions) == [HALVES]:
        return HALVES
    return [_box(region) or open_image(Path(region)) for region in regions]


def _box(region: str) -> tuple[float, ...] | None:
    try:
        found = tuple(float(part) for part in region.split(","))
    except ValueError:
        return None
    return found if len(found) == 4 else None
