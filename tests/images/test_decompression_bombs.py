"""Files made to exhaust whoever opens them are refused at once; costly but honest ones are not."""

import os
import struct
import subprocess
import sys
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptnet.images import ImageError, open_image
from promptnet.images.decompression_bombs import MAX_SCANS, hidden_cost


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes = b"", before: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + chunk(b"IEND")


def zeros(num_bytes: int) -> bytes:
    """Deflated zeros, made without holding them."""
    packer, block = zlib.compressobj(1), bytes(2**20)
    return b"".join(packer.compress(block) for _ in range(num_bytes >> 20)) + packer.flush()


def progressive(side_px: int = 64) -> bytes:
    file = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG", progressive=True)
    return file.getvalue()


def many_scans(num_scans: int) -> bytes:
    """A progressive JPEG whose first scan comes again and again."""
    data = progressive()
    first = data.index(b"\xff\xda")
    second = first + 2
    while not (data[second] == 0xFF and data[second + 1] not in (0, *range(0xD0, 0xD8), 0xFF)):
        second += 1
    return data[:second] + data[first:second] * (num_scans - 1) + data[second:]


def webp(width: int, height: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64)).save(file, "WEBP", lossless=True)
    data = bytearray(file.getvalue())
    at = data.index(b"VP8L") + 9
    data[at : at + 4] = ((width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(data)


def gif(width: int, height: int) -> bytes:
    file = BytesIO()
    Image.new("P", (64, 64)).save(file, "GIF")
    data = bytearray(file.getvalue())
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def after_palette(blocks: bytes) -> bytes:
    data = gif(64, 64)
    end = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:end] + blocks + data[end:]


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(progressive())
    at = data.index(b"\xff\xc2") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp(width: int, height: int) -> bytes:
    return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 100, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


BOMBS = {
    "png header": lambda: png(60_000, 60_000),
    "png of zeros": lambda: png(9_000, 9_000, zeros(9_000 * 27_001)),
    "png text": lambda: png(90, 90, before=chunk(b"zTXt", b"a\0\0" + zeros(40 << 20))),
    "png profile": lambda: png(90, 90, before=chunk(b"iCCP", b"a\0\0" + zeros(40 << 20))),
    "png pieces": lambda: png(90, 90, before=chunk(b"prVt") * 2_000_000),
    "png empty pixels": lambda: png(90, 90)[:-12] + chunk(b"IDAT") * 2_000_000,
    "jpeg": lambda: jpeg(65_000, 65_000),
    "jpeg scans": lambda: many_scans(20_000),
    "jpeg segments": lambda: b"\xff\xd8" + b"\xff\xe5\0\2" * 5_000_000 + progressive()[2:],
    "gif": lambda: gif(65_535, 65_535),
    "gif comment": lambda: after_palette(b"!\xfe" + b"\1x" * 5_000_000 + b"\0"),
    "gif comments": lambda: after_palette(b"!\xfe\1x\0" * 2_000_000),
    "webp": lambda: webp(16_383, 16_383),
    "bmp": lambda: bmp(60_000, 60_000),
    "bmp file": lambda: bmp(60_000, 60_000),
}
FILE_BYTES = {"bmp file": 250 << 20}  # as long as a file may be

MEASURE = """
import resource, sys, time
from PIL import Image
from pathlib import Path
from promptnet.images import ImageError, open_image
from promptnet.images.load import open_hashed
Image.init()  # the first image of all pays for loading the decoders
before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
door = {"open_image": open_image, "open_hashed": open_hashed}[sys.argv[1]]
for path in sys.argv[2:]:
    start_s = time.process_time()
    try:
        door(Path(path))
        reason = "opened"
    except ImageError as error:
        reason = error.reason
    taken_s = time.process_time() - start_s
    print(reason, taken_s, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024, sep="|")
"""


Measured = dict[str, tuple[str, float, float]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    """Reason, processor time and the most memory so far in MiB of each bomb, by door, each door in its own process."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, make in BOMBS.items():
        (folder / name).write_bytes(make())
        if name in FILE_BYTES:
            os.truncate(folder / name, FILE_BYTES[name])
    paths = [str(folder / name) for name in BOMBS]
    return {door: measure(door, paths) for door in ("open_image", "open_hashed")}


def measure(door: str, paths: list[str]) -> Measured:
    command = [sys.executable, "-c", MEASURE, door, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {name: (row[0], float(row[1]), float(row[2])) for name, row in zip(BOMBS, rows, strict=True)}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("door", ["open_image", "open_hashed"])
def test_a_bomb_is_refused_within_100_ms_and_200_mb(door: str, name: str, measured: dict[str, Measured]) -> None:
    reason, taken_s, most_mib = measured[door][name]
    assert reason in ("too many pixels", "hidden cost", "broken")
    assert taken_s < 0.1
    assert most_mib < 200


def test_a_huge_jpeg_or_webp_file_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.write(progressive())
        file.truncate(100 << 20)  # sparse
    with pytest.raises(ImageError, match="more than 64 MiB") as caught:
        open_image(path)
    assert caught.value.reason == "hidden cost"


@pytest.mark.parametrize(
    "data",
    [
        progressive(),
        many_scans(MAX_SCANS - 20),
        after_palette(b"!\xfe\1x\0" * 9),
        png(64, 64, zlib.compress(bytes(64 * 193))),
    ],
)
def test_honest_images_pass_and_the_file_is_left_at_its_start(data: bytes) -> None:
    file = BytesIO(data)
    assert hidden_cost(file) is None
    assert file.tell() == 0


def test_a_video_behind_the_image_does_not_count() -> None:
    """Phones append a film to an image; in it, bytes that look like scans mean nothing."""
    start_s = time.process_time()
    data = progressive() + b"\xff\xda" * 100_000
    assert open_image(BytesIO(data)).size == (64, 64)
    assert time.process_time() - start_s < 1


def test_a_image_within_a_image_is_no_second_one() -> None:
    """The preview in a JPEG's metadata has scans and an end of its own."""
    preview = progressive(8)
    segment = b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview
    data = progressive()
    assert hidden_cost(BytesIO(data[:2] + segment + data[2:])) is None
    assert hidden_cost(BytesIO(data[:2] + segment + many_scans(200)[2:])) is not None


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"GIF89a", b"GIF89a" + b"\xff" * 40, b"\xff" * 20]
)
def test_stubs_are_left_to_the_decoder(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(BytesIO(data))
    assert caught.value.reason in ("empty", "broken", "not an image")
