from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from promptnet.images.load import ImageError
from promptnet.images.masks import check_white, open_mask


def half(low: int = 0, high: int = 255) -> Image.Image:
    mask = Image.new("L", (64, 64), low)
    mask.paste(high, (32, 0, 64, 64))
    return mask


def with_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    found = image.convert("RGBA")
    found.putalpha(alpha)
    return found


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "RGBA", "I;16", "LA"])
def test_opaque_masks_of_every_kind_are_the_same(mode: str, tmp_path: Path) -> None:
    mask = half().convert("I").point(lambda value: value * 257).convert("I;16") if mode == "I;16" else half()
    path = tmp_path / "mask.png"
    (mask if mode == "I;16" else mask.convert(mode)).save(path)
    found = open_mask(path)
    assert found.mode == "L"
    assert found.tobytes() == half().tobytes()
    check_white(found)


def test_transparent_parts_are_refused(tmp_path: Path) -> None:
    white, black = Image.new("L", (64, 64), 255), Image.new("L", (64, 64))
    for shown in (white, black, half()):
        with pytest.raises(ImageError, match="has transparent parts"):
            open_mask(with_alpha(shown, half()))
    file = BytesIO()
    with_alpha(white, half(254, 255)).save(file, "PNG")
    file.seek(0)
    with pytest.raises(ImageError, match="white where the edit may act"):
        open_mask(file)
    palette = half().convert("P")
    palette.save(tmp_path / "mask.png", transparency=0)
    with pytest.raises(ImageError, match=r"mask\.png"):
        open_mask(tmp_path / "mask.png")


@pytest.mark.parametrize(
    ("low", "high", "message"), [(0, 1, "from 0 to 1 of 255"), (0, 0, "black"), (3, 9, "from 3 to 9"), (1, 1, "1 to 1")]
)
def test_masks_that_are_nowhere_white_are_refused(low: int, high: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_white(half(low, high))
