"""Two sets of images for `promptnet prepare`, and what must become of each file.

`python tests/datasets/image_sets.py FOLDER` writes both for looking at: `avatars`, 2,000 files of which 100 are bad
in 20 ways, and `photographs`, composed from those that scikit-image ships.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

NUM_FILES = 2000
NUM_OF_A_BAD_KIND = 5
SIDE_PX = 40
NUM_PEOPLE = 16


@dataclass
class ImageSet:
    """What was written: names below the folder, with what is to become of them.

    Attributes:
        good: name as bytes -> the RGB pixels that must come out, and by how much they may differ.
        bad: name as bytes -> the reason that the report must give.
    """

    good: dict[bytes, tuple[np.ndarray, int]] = field(default_factory=dict)
    bad: dict[bytes, str] = field(default_factory=dict)


# --- good images of many kinds ----------------------------------------------------------------------------------


@functools.cache
def _bases() -> list[np.ndarray]:
    from promptnet.datasets.avatars.person import sample_avatar
    from promptnet.datasets.avatars.render import render_avatar

    return [np.asarray(render_avatar(sample_avatar(5, person), SIDE_PX)) for person in range(NUM_PEOPLE)]


def avatar(number: int) -> np.ndarray:
    """Portrait of person `number % NUM_PEOPLE`, each number another image: few are drawn, and moved about."""
    moved, base = divmod(number, NUM_PEOPLE)
    return np.roll(_bases()[base], (moved % 16, moved // 16), axis=(0, 1))


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


Good = tuple[bytes, np.ndarray, int]
_FINE_JPEG = {"quality": 100, "subsampling": 0}


def _plain(kind: str, tolerance: int = 0, **options) -> Callable[[np.ndarray], Good]:
    return lambda pixels: (_encoded(Image.fromarray(pixels), kind, **options), pixels, tolerance)


def _cmyk(pixels: np.ndarray) -> Good:
    data = _encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", **_FINE_JPEG)
    return data, pixels, 12


def _grey_16_bit(pixels: np.ndarray) -> Good:
    grey = pixels[..., 0]
    data = _encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    return data, np.stack([grey] * 3, -1), 0


def _rgb_16_bit(pixels: np.ndarray) -> Good:
    rows = (pixels.astype(">u2") * 257).reshape(len(pixels), -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    return _png(pixels.shape[1], pixels.shape[0], zlib.compress(data), depth=16), pixels, 1


def _palette(kind: str) -> Callable[[np.ndarray], Good]:
    def make(pixels: np.ndarray) -> Good:
        image = Image.fromarray(pixels).quantize(64)
        return _encoded(image, kind), np.asarray(image.convert("RGB")), 0

    return make


def _animated(kind: str, **options) -> Callable[[np.ndarray], Good]:
    def make(pixels: np.ndarray) -> Good:
        first = Image.fromarray(pixels).quantize(64).convert("RGB")
        later = [Image.new("RGB", first.size, colour) for colour in ("red", "blue")]
        data = _encoded(first, kind, save_all=True, append_images=later, duration=40, **options)
        return data, np.asarray(first), 0

    return make


def _transparent(pixels: np.ndarray) -> Good:
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:8] = 0
    expected = pixels.copy()
    expected[:8] = 255
    return _encoded(Image.fromarray(np.dstack([pixels, alpha])), "PNG"), expected, 0


def _grey(pixels: np.ndarray) -> Good:
    return _encoded(Image.fromarray(pixels[..., 1]), "PNG"), np.stack([pixels[..., 1]] * 3, -1), 0


# EXIF 2.3, tag 274: how the upright image is stored.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}


def turned(pixels: np.ndarray, orientation: int, kind: str = "PNG", **options) -> bytes:
    """An image as a camera stores it that was held in one of eight ways."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded(Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels))), kind, exif=exif, **options)


def _turned(orientation: int) -> Callable[[np.ndarray], Good]:
    def make(pixels: np.ndarray) -> Good:
        tall = np.concatenate([pixels[-4:], pixels, pixels[:4]])  # so that a wrong turn shows in the shape, too
        return turned(tall, orientation), pixels, 0

    return make


GOOD_KINDS: dict[str, Callable[[np.ndarray], Good]] = {
    "plain.png": _plain("PNG"),
    "plain.jpg": _plain("JPEG", 12, **_FINE_JPEG),
    "progressive.jpeg": _plain("JPEG", 12, progressive=True, **_FINE_JPEG),
    "plain.webp": _plain("WEBP", lossless=True),
    "plain.bmp": _plain("BMP"),
    "palette.gif": _palette("GIF"),
    "palette.png": _palette("PNG"),
    "animated.gif": _animated("GIF"),
    "animated.webp": _animated("WEBP", lossless=True),
    "animated.png": _animated("PNG"),
    "cmyk.jpg": _cmyk,
    "16-bit-grey.png": _grey_16_bit,
    "16-bit.png": _rgb_16_bit,
    "grey.png": _grey,
    "transparent.png": _transparent,
    **{f"turned-{orientation}.png": _turned(orientation) for orientation in STORED},
}
ODD_NAMES = [
    b"two\nlines.png",
    b"caf\xe9.jpg",  # Latin-1, so not UTF-8
    b"\x1b[31mred.png",
    "n" * 251 + ".png",
    "-rf.png",
    "no ending",
    "wrong ending.txt",
    "Großbuchstaben.JPEG",
    "שלום 😀.png",
    "back\\slash.png",
    "' quotes \".png",
    "not.hidden.png",
]


# --- bad files ----------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, pixels: bytes, *, depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND")


def _noise(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)
    return Image.fromarray(pixels)


def _cut(share: float, kind: str) -> Callable[[int], bytes]:
    def make(number: int) -> bytes:
        data = _encoded(_noise(number), kind)
        return data[: int(len(data) * share)]

    return make


def _bad_checksum(number: int) -> bytes:
    data = bytearray(_encoded(_noise(number), "PNG"))
    data[data.index(b"IDAT") + 20 + number] ^= 0xFF
    return bytes(data)


def _many_scans(number: int) -> bytes:
    data = _encoded(_noise(number), "JPEG", progressive=True)
    start, end = data.index(b"\xff\xda"), data.index(b"\xff\xc4", data.index(b"\xff\xda"))
    return data[:end] + data[start:end] * 1000 + data[end:]


_ZEROS = zlib.compress(bytes(12_000 * 3), 1) * 400
BAD_FILES: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "empty.jpg": ("empty", lambda number: b""),
    "cut-10.jpg": ("broken", _cut(0.1, "JPEG")),
    "cut-50.jpg": ("broken", _cut(0.5, "JPEG")),
    "cut-90.png": ("broken", _cut(0.9, "PNG")),
    "cut-50.webp": ("broken", _cut(0.5, "WEBP")),
    "page.jpg": ("not an image", lambda number: b"<!DOCTYPE html><title>%d not found</title>" % number),
    "notes.txt": ("not an image", lambda number: b"about picture %d\n" % number),
    "checksum.png": ("broken", _bad_checksum),
    "bomb-header.png": ("too many pixels", lambda number: _png(60_000, 60_000 + number, b"")),
    "bomb-zeros.png": ("too many pixels", lambda number: _png(12_000, 12_000 + number, _ZEROS)),
    "bomb-scans.jpg": ("hidden cost", _many_scans),
    "scan.tiff": ("not an image", lambda number: _encoded(_noise(number), "TIFF")),
    "weights.png": ("not an image", lambda number: b"\x80\x04\x95" + bytes([number]) * 90),
    "tiny.png": ("too small", lambda number: _encoded(_noise(number).resize((9, 9 + number)), "PNG")),
    "no-width.png": ("broken", lambda number: _png(0, 40 + number, zlib.compress(b""))),
    "colour-kind.png": ("broken", lambda number: _png(40, 40, zlib.compress(bytes(9999)), depth=8, colour=5)),
}


def _link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def _folder_loop(path: Path) -> None:
    path.symlink_to(path.parent.absolute(), target_is_directory=True)


BAD_PLACES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "dangling.jpg": ("dangling link", _link_to("nobody.jpg")),
    "link-loop.png": ("link loop", _link_loop),
    "folder-loop": ("link loop", _folder_loop),
    "folder.jpg": ("folder", Path.mkdir),
    "pipe.png": ("not a file", lambda path: os.mkfifo(path)),
}
NUM_BAD_KINDS = len(BAD_FILES) + len(BAD_PLACES) - 1  # the two cuts at 50 % are one way


# --- the sets -----------------------------------------------------------------------------------------------------


def build_portraits(folder: Path, num_files: int = NUM_FILES) -> ImageSet:
    """Procedural avatars in a folder a person, among them five bad files of every kind.

    Args:
        folder: an empty one.
        num_files: good and bad, at least 400.
    """
    made = ImageSet()
    for person in range(NUM_PEOPLE):
        (folder / f"person-{person:02d}").mkdir()
    _add_bad(folder, made)
    kinds = list(GOOD_KINDS.items())
    for number in range(num_files - len(made.bad)):
        kind, make = kinds[(number // NUM_PEOPLE) % len(kinds)]
        name: str | bytes = f"{number:04d}-{kind}" if number >= len(ODD_NAMES) else ODD_NAMES[number]
        data, expected, tolerance = make(avatar(number))
        path = os.path.join(os.fsencode(f"person-{number % NUM_PEOPLE:02d}"), os.fsencode(name))
        with open(os.path.join(os.fsencode(folder), path), "wb") as file:
            file.write(data)
        made.good[path] = (expected, tolerance)
    return made


def _add_bad(folder: Path, made: ImageSet) -> None:
    kinds = [kind for kind in [*BAD_FILES, *BAD_PLACES] if kind != "cut-50.webp"]
    for number in range(NUM_OF_A_BAD_KIND):
        for place, kind in enumerate(kinds):
            odd = "\n" if number == 4 else "-"
            name = f"person-{(place + number) % NUM_PEOPLE:02d}/bad{odd}{number}-{kind}"
            kind = "cut-50.webp" if kind == "cut-50.jpg" and number % 2 else kind
            if kind in BAD_FILES:
                reason, make = BAD_FILES[kind]
                (folder / name).write_bytes(make(number))
            else:
                reason, put = BAD_PLACES[kind]
                put(folder / name)
            made.bad[os.fsencode(name)] = reason


@dataclass(frozen=True)
class Photograph:
    """What must become of a composed photograph.

    Attributes:
        largest: "" if the largest face is accepted, else the reason.
        one: the same if there must be exactly one face.
        num_faces: rows if all faces are taken.
        turn_deg: by how much the face's eyes are turned clockwise, None where that is not known.
    """

    largest: str = ""
    one: str = ""
    num_faces: int = 1
    turn_deg: float | None = None


NO_FACE = Photograph("no face", "no face", 0)
TINY = Photograph("face too small", "face too small", 0)
CUT = Photograph("cut off", "cut off", 0)
TWO = Photograph("", "several faces", 2)


def photograph(name: str) -> Image.Image:
    """One of the images that scikit-image ships, as RGB. The library itself is not loaded."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the photographs come with scikit-image: make setup")
    return Image.open(Path(spec.submodule_search_locations[0], "data", name)).convert("RGB")


def _on(background: Image.Image, *pasted: tuple[Image.Image, tuple[int, int]]) -> Image.Image:
    canvas = background.copy()
    for image, place in pasted:
        canvas.paste(image, place)
    return canvas


def build_photographs(folder: Path) -> dict[str, Photograph]:
    """Images with one face, two, none, one too small, and turned ones: file name -> what must become of it."""
    astronaut, camera, grass = (photograph(name) for name in ("astronaut.png", "camera.png", "grass.png"))
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    small = astronaut.resize((124, 124))
    mirrored = astronaut.resize((440, 440)).transpose(flip)
    wide = grass.resize((900, 520))
    images: dict[str, tuple[Image.Image, Photograph]] = {
        "one-astronaut": (astronaut, Photograph()),
        "one-astronaut-mirrored": (astronaut.transpose(flip), Photograph()),
        "one-cameraman": (camera, Photograph()),
        "one-large": (astronaut.crop((120, 0, 340, 240)).resize((1760, 1920)), Photograph()),
        "one-in-the-corner": (astronaut.crop((185, 70, 512, 512)), CUT),
        "two-astronauts": (_on(wide, (astronaut.resize((400, 400)), (20, 60)), (mirrored, (440, 60))), TWO),
        "two-people": (_on(wide, (astronaut.resize((440, 440)), (0, 40)), (camera.resize((440, 440)), (450, 40))), TWO),
        "one-and-a-tiny-one": (_on(wide, (astronaut, (0, 0)), (small, (700, 300))), Photograph()),
        "none-coffee": (photograph("coffee.png"), NO_FACE),
        "none-rocket": (photograph("rocket.jpg"), NO_FACE),
        "none-cat": (photograph("chelsea.png"), NO_FACE),
        "none-bricks": (photograph("brick.png"), NO_FACE),
        "none-upside-down": (astronaut.transpose(Image.Transpose.ROTATE_180), NO_FACE),
        "tiny-astronaut": (_on(wide, (small, (300, 200))), TINY),
        "tiny-cameraman": (_on(wide, (camera.resize((190, 190)), (500, 100))), TINY),
    }  # fmt: skip
    for turn_deg in (-40, -20, 20, 40):
        turned_one = astronaut.rotate(-turn_deg, Image.Resampling.BICUBIC, fillcolor=(120, 120, 120))
        images[f"turned-{turn_deg}"] = (turned_one, Photograph(turn_deg=turn_deg))
    for name, (image, _) in images.items():
        image.save(folder / f"{name}.png", compress_level=1)
    pixels = np.asarray(astronaut)
    for orientation in STORED:
        (folder / f"held-{orientation}.jpg").write_bytes(turned(pixels, orientation, "JPEG", quality=90 + orientation))
    expected = {f"{name}.png": what for name, (_, what) in images.items()}
    return expected | {f"held-{orientation}.jpg": Photograph() for orientation in STORED}


if __name__ == "__main__":
    for what, build in (("portraits", build_portraits), ("photographs", build_photographs)):
        (Path(sys.argv[1]) / what).mkdir()
        build(Path(sys.argv[1]) / what)
