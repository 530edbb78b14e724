"""The one door: what comes in as anything leaves as upright RGB, or is refused by name."""

import os
import pickle
import struct
import threading
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptnet.images import ImageError, open_image
from promptnet.images.load import FORMATS, REASONS

SIZE_PX = (48, 40)
RED, GREEN, BLUE = (220, 20, 30), (10, 200, 40), (20, 30, 210)


def quarters() -> Image.Image:
    """Red top left, green top right, blue below: tells every orientation from every other."""
    image = Image.new("RGB", SIZE_PX, BLUE)
    image.paste(RED, (0, 0, 24, 20))
    image.paste(GREEN, (24, 0, 48, 20))
    return image


def saved(image: Image.Image, kind: str, **options) -> BytesIO:
    file = BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def bytes_of(image: Image.Image, kind: str, **options) -> bytes:
    return saved(image, kind, **options).getvalue()


def assert_close(image: Image.Image, expected: Image.Image, tolerance: int = 0) -> None:
    assert image.mode == "RGB"
    assert image.size == expected.size
    difference = np.asarray(image).astype(int) - np.asarray(expected.convert("RGB")).astype(int)
    assert np.abs(difference).max() <= tolerance


@pytest.mark.parametrize("kind", FORMATS)
def test_every_listed_format_opens(kind, tmp_path):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    path = tmp_path / "me.bin"  # the content decides, not the name
    path.write_bytes(bytes_of(quarters(), kind, **options))
    assert_close(open_image(path), quarters(), tolerance=4)


@pytest.mark.parametrize("source", ["path", "str", "file", "memory", "pil"])
def test_every_kind_of_source(source, tmp_path):
    path = tmp_path / "me.png"
    quarters().save(path)
    with path.open("rb") as file, Image.open(path) as lazy:
        sources = {"path": path, "str": str(path), "file": file, "memory": BytesIO(path.read_bytes()), "pil": lazy}
        assert_close(open_image(sources[source]), quarters())


def test_a_file_that_cannot_seek():
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as writer:
        writer.write(bytes_of(quarters(), "PNG"))
    with os.fdopen(read_end, "rb") as reader:
        assert_close(open_image(reader), quarters())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, kind):
    # EXIF: where row 0 and column 0 of the stored image belong in the upright one
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],  # top right
        3: lambda a: a[::-1, ::-1],  # bottom right
        4: lambda a: a[::-1],  # bottom left
        5: lambda a: a.transpose(1, 0, 2),  # left top
        6: lambda a: a.transpose(1, 0, 2)[::-1],  # right top: upright(i, j) = stored(H - 1 - j, i)
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),  # right bottom
        8: lambda a: a.transpose(1, 0, 2)[:, ::-1],  # left bottom
    }[orientation](np.asarray(quarters()))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    image = open_image(saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options))
    assert_close(image, quarters(), tolerance=4)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_close(open_image(saved(quarters(), "PNG", exif=exif)), quarters())


def half_transparent(mode: str) -> Image.Image:
    image = quarters().convert("RGBA")
    alpha = np.full((SIZE_PX[1], SIZE_PX[0]), 255, np.uint8)
    alpha[:, :12] = 0
    alpha[:, 12:24] = 128
    image.putalpha(Image.fromarray(alpha))
    return image.convert(mode)


def test_transparency_shows_white():
    pixels = np.asarray(open_image(saved(half_transparent("RGBA"), "PNG"))).astype(int)
    assert (pixels[:, :12] == 255).all()
    half = (np.array(RED) * 128 + 255 * 127) / 255
    assert np.abs(pixels[0, 18] - half).max() <= 1
    assert tuple(pixels[0, 40]) == GREEN


def test_grey_with_transparency_shows_white():
    image = half_transparent("LA")
    pixels = np.asarray(open_image(saved(image, "PNG")))
    assert (pixels[:, :12] == 255).all()
    assert (pixels[0, 40] == image.getpixel((40, 0))[0]).all()  # type: ignore[index]


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_a_transparent_palette_entry_shows_white(transparency):
    image = Image.new("P", SIZE_PX, 1)
    image.putpalette([*RED, *GREEN])
    image.paste(0, (0, 0, 24, 40))
    pixels = np.asarray(open_image(saved(image, "PNG", transparency=transparency)))
    assert (pixels[:, :24] == 255).all()
    assert tuple(pixels[0, 40]) == GREEN


@pytest.mark.parametrize(("mode", "colour"), [("RGB", RED), ("L", 90)])
def test_one_transparent_colour_shows_white(mode, colour):
    image = Image.new(mode, SIZE_PX, colour)
    image.paste(200 if mode == "L" else BLUE, (24, 0, 48, 40))
    pixels = np.asarray(open_image(saved(image, "PNG", transparency=colour)))
    assert (pixels[:, :24] == 255).all()
    assert tuple(pixels[0, 40]) == ((200, 200, 200) if mode == "L" else BLUE)


def test_palette_grey_and_black_and_white_become_rgb():
    for mode in ("P", "L", "1"):
        image = quarters().convert(mode)
        assert_close(open_image(saved(image, "PNG")), image)


@pytest.mark.parametrize("colour", [(0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)])
def test_cmyk_becomes_rgb(colour):
    image = Image.new("CMYK", SIZE_PX, colour)
    expected = {(0, 0, 0, 0): (255, 255, 255), (0, 255, 255, 0): (255, 0, 0), (0, 0, 0, 255): (0, 0, 0)}[colour]
    assert_close(open_image(saved(image, "JPEG", quality=100)), Image.new("RGB", SIZE_PX, expected), tolerance=3)


def ramp_16_bit() -> np.ndarray:
    return np.linspace(0, 65535, SIZE_PX[0] * SIZE_PX[1]).reshape(SIZE_PX[1], SIZE_PX[0]).astype(np.uint16)


def test_16_bit_grey_is_scaled_not_clipped():
    pixels = np.asarray(open_image(saved(Image.fromarray(ramp_16_bit()), "PNG")))
    assert np.abs(pixels[..., 0].astype(float) - ramp_16_bit() / 257).max() <= 0.51
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_16_bit_grey_with_a_transparent_value():
    values = ramp_16_bit()
    values[:, :10] = 1000
    pixels = np.asarray(open_image(saved(Image.fromarray(values), "PNG", transparency=1000)))
    assert (pixels[:, :10] == 255).all()
    assert np.abs(pixels[:, 10:, 0].astype(float) - values[:, 10:] / 257).max() <= 0.51


def test_16_bit_colour():
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32768, 0) * 40 for _ in range(40))
    data = _png(40, 40, depth=16, colour_type=2, rows=rows)
    pixels = np.asarray(open_image(BytesIO(data))).astype(int)
    assert np.abs(pixels[5, 5] - [255, 127.5, 0]).max() <= 1


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_range_are_refused(mode):
    with pytest.raises(ImageError, match=f"mode {mode}.*8 bits"):
        open_image(Image.new(mode, SIZE_PX))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", SIZE_PX, c) for c in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert Image.open(file).n_frames == 3  # type: ignore[attr-defined]
    file.seek(0)
    assert_close(open_image(file), frames[0], tolerance=1)


def test_a_phones_multi_image_jpeg():
    first = Image.new("RGB", SIZE_PX, RED)
    file = saved(first, "MPO", save_all=True, append_images=[Image.new("RGB", SIZE_PX)], quality=100)
    assert_close(open_image(file), first, tolerance=4)


def test_metadata_is_dropped_and_the_given_image_left_alone():
    exif = Image.Exif()
    exif[0x0112], exif[0x8825], exif[0x010F] = 6, {1: "N"}, "camera"
    given = Image.open(saved(quarters(), "JPEG", exif=exif, dpi=(300, 300), comment=b"secret"))
    given.load()
    before = (given.size, given.tobytes(), dict(given.info))
    image = open_image(given)
    assert image.info == {}
    assert not image.getexif()
    assert "secret" not in repr(vars(image))
    assert (given.size, given.tobytes(), dict(given.info)) == before
    image.putpixel((0, 0), (1, 2, 3))
    assert given.tobytes() == before[1]


# -- refusals ---------------------------------------------------------------------------------------------------------


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *, depth: int = 8, colour_type: int = 2, rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


@pytest.mark.parametrize("side_px", [9_000, 12_000, 60_000])  # PIL: silent, warns, refuses
def test_a_decompression_bomb_is_refused_from_its_header(side_px, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png(side_px, side_px))  # without pixels: decoding would say "truncated"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"bomb\.png.*(too large|too many pixels).*smaller copy"):
            open_image(path)


def test_the_limits_are_the_callers():
    with pytest.raises(ImageError, match="48x40 px, at most 100 pixels"):
        open_image(quarters(), max_pixels=100)
    with pytest.raises(ImageError, match="48x40 px: at least 41 px"):
        open_image(quarters(), min_size_px=41)
    assert_close(open_image(quarters(), max_pixels=48 * 40, min_size_px=40), quarters())
    with pytest.raises(ImageError, match="too small, 31x200"):
        open_image(Image.new("RGB", (31, 200)))


def _broken_files() -> dict[str, bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    whole = {kind: bytes_of(noise, kind) for kind in FORMATS}
    cut = {f"half.{kind.lower()}": data[: len(data) // 2] for kind, data in whole.items()}
    headless = {f"stub.{kind.lower()}": data[:20] for kind, data in whole.items()}
    png = bytearray(whole["PNG"])
    png[len(png) // 2] ^= 0xFF
    return {
        **cut,
        **headless,
        "flipped.png": bytes(png),
        "empty.png": b"",
        "page.jpg": b"<!DOCTYPE html><html><body>404 not found</body></html>",
        "scan.tiff": bytes_of(noise, "TIFF"),
        "icon.ico": bytes_of(noise, "ICO"),
        "drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n" + b" " * 100,
        "weights.png": b"\x80\x04\x95" + b"\0" * 100,
    }


@pytest.mark.parametrize("name", sorted(_broken_files()))
def test_broken_files_are_refused_by_name(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(_broken_files()[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as caught:
            open_image(path)
    message = str(caught.value)
    assert str(path) in message
    assert any(fix in message for fix in ("export or download it again", "convert it to PNG or JPEG"))


def test_what_is_not_a_file_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"nobody\.png' does not exist: check the path"):
        open_image(tmp_path / "nobody.png")
    with pytest.raises(ImageError, match="is a folder"):
        open_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")  # reading it would block for ever
    with pytest.raises(ImageError, match="not a regular file"):
        open_image(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="cannot be read"):
        open_image("null\0byte.png")
    with pytest.raises(ImageError, match="cannot be read"):
        open_image("a" * 5000)


def test_a_refusal_says_why_in_a_word_and_without_the_name(tmp_path):
    def reason_of(name: str) -> str:
        with pytest.raises(ImageError) as caught:
            open_image(tmp_path / name)
        assert str(caught.value) == f"image '{tmp_path / name}' {caught.value.problem}"
        assert caught.value.reason in REASONS
        return caught.value.reason

    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nobody")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    files = {"empty": b"", "text": b"hello", "small": bytes_of(quarters().resize((8, 8)), "PNG"), "cut": b""}
    files["cut"] = bytes_of(quarters(), "PNG")[:-40]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    found = {name: reason_of(name) for name in [*files, "loop", "dangling", "pipe", "folder", "nobody", "a" * 300]}
    assert found == {
        "empty": "empty",
        "text": "not an image",
        "small": "too small",
        "cut": "broken",
        "loop": "link loop",
        "dangling": "dangling link",
        "pipe": "not a file",
        "folder": "folder",
        "nobody": "missing",
        "a" * 300: "unreadable",
    }


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    """Root may read everything, so the system's answer is put into its mouth."""
    path = tmp_path / "me.png"
    quarters().save(path)

    def denied(*_args, **_options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ImageError, match=r"cannot be read \(Permission denied\)$") as caught:
        open_image(path)
    assert caught.value.reason == "unreadable"


def test_a_refusal_crosses_processes():
    copy = pickle.loads(pickle.dumps(ImageError("image 'a' is empty", "empty", "is empty")))
    assert (str(copy), copy.reason, copy.problem) == ("image 'a' is empty", "empty", "is empty")


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.write(bytes_of(quarters(), "PNG"))
        file.truncate(2**40)  # sparse
    with pytest.raises(ImageError, match="more than 256 MiB"):
        open_image(path)


@pytest.mark.parametrize("source", [None, 3, b"bytes", np.zeros((64, 64, 3))])
def test_other_types_are_a_type_error(source):
    with pytest.raises(TypeError, match=r"an image is a path, a file opened in binary mode or a PIL\.Image"):
        open_image(source)


def test_text_mode_is_a_type_error(tmp_path):
    path = tmp_path / "me.txt"
    path.write_text("hello")
    with path.open() as file, pytest.raises(TypeError, match="mode 'rb'"):
        open_image(file)  # type: ignore[arg-type]


def test_a_broken_exif_block_is_no_reason_to_fail_or_warn():
    data = bytes_of(quarters(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\x00" + b"\x12\x01\x03\x00" + b"\xff" * 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(BytesIO(data)).size == SIZE_PX


def test_threads_leave_the_warning_filters_alone(tmp_path):
    path = tmp_path / "me.png"
    quarters().save(path)
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [open_image(path) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_no_file_stays_open(tmp_path):
    path: Path = tmp_path / "me.png"
    quarters().save(path)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(5):
        open_image(path)
    with pytest.raises(ImageError):
        open_image(path, max_pixels=1)
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


def test_grey_with_its_alpha_multiplied_in():
    image = Image.new("LA", (40, 40), (100, 128)).convert("La")
    assert open_image(image).getpixel((0, 0)) == (177, 177, 177)
