"""Contact sheets: what lies where."""

import pytest
from PIL import Image

from promptnet.images.contact_sheet import GAP_PX, TEXT_PX, contact_sheet


def tile(color: str, width: int = 10, height: int = 8) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def test_without_words_tiles_alone_take_room() -> None:
    sheet = contact_sheet([("", [tile("red"), None, tile("blue", 20)]), ("", [tile("lime")])])
    assert sheet.size == (4 * GAP_PX + 10 + 0 + 20, GAP_PX + 2 * (8 + GAP_PX))
    assert sheet.getpixel((GAP_PX + 2, GAP_PX + 2)) == (255, 0, 0)
    assert sheet.getpixel((3 * GAP_PX + 10 + 2, GAP_PX + 2)) == (0, 0, 255)
    assert sheet.getpixel((GAP_PX + 2, 2 * GAP_PX + 8 + 2)) == (0, 255, 0)


def test_words_take_room_above() -> None:
    sheet = contact_sheet([("a line", [tile("red")])], ["a heading"])
    top = GAP_PX + 2 * TEXT_PX
    assert sheet.size == (2 * GAP_PX + 10, top + 8 + GAP_PX + TEXT_PX)
    assert sheet.getpixel((GAP_PX + 2, top + TEXT_PX + 2)) == (255, 0, 0)


def test_tiles_of_one_size() -> None:
    sheet = contact_sheet([("", [tile("red"), tile("blue", 100, 50)])], tile_px=16)
    assert sheet.size == (3 * GAP_PX + 32, 2 * GAP_PX + 16)
    assert sheet.getpixel((2 * GAP_PX + 16 + 8, GAP_PX + 8)) == (0, 0, 255)


def test_a_long_heading_without_a_hyphen_is_folded() -> None:
    assert contact_sheet([("", [tile("red")])], ["x" * 40]).width == 2 * GAP_PX + 10


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(ValueError, match="one image"):
        contact_sheet([("nobody", [None])])
