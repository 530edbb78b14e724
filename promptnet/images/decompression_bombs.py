"""Images whose cost neither their size in pixels nor a quick look shows, told from their structure before decoding.

A few megabytes can keep a decoder busy for hours without a large image in them: a JPEG that says the same block in
thousands of scans, a PNG or GIF of millions of empty pieces. No camera and no program writes such files.
"""

import re
from io import SEEK_CUR, SEEK_SET
from typing import IO

MAX_SCANS = 64  # a progressive JPEG has about ten
MAX_SEGMENTS = 10_000  # of one image before its pixels; a large colour profile takes some hundred
MAX_PNG_CHUNKS = 50_000  # 64 megapixels in pieces of 8 KiB, which is what libpng writes, are some ten thousand
MAX_WHOLE_BYTES = 64 * 1024 * 1024  # of a JPEG or WEBP, which are read whole

_PNG = b"\x89PNG\r\n\x1a\n"
# A marker that stands for something: not a stuffed zero, a restart, or a fill byte.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_START_OF_SCAN, _END_OF_IMAGE, _WITHOUT_LENGTH = 0xDA, 0xD9, (0x01, 0xD8)


def hidden_cost(file: IO[bytes]) -> str | None:
    """Return why an open file would take long to decode; None for any other. It is rewound to its start."""
    start = file.read(12)
    file.seek(0, SEEK_SET)
    try:
        if start.startswith(_PNG):
            return _png_cost(file)
        if start.startswith(b"GIF8"):
            return _gif_cost(file)
        if start.startswith(b"\xff\xd8") or (start.startswith(b"RIFF") and start.endswith(b"WEBP")):
            return _whole_cost(file)
        return None
    finally:
        file.seek(0, SEEK_SET)


def _whole_cost(file: IO[bytes]) -> str | None:
    data = file.read(MAX_WHOLE_BYTES + 1)
    if len(data) > MAX_WHOLE_BYTES:
        return f"has more than {MAX_WHOLE_BYTES // 2**20} MiB, which no JPEG or WEBP of its size needs"
    return _jpeg_cost(data) if data.startswith(b"\xff\xd8") else None


def _jpeg_cost(data: bytes) -> str | None:
    """Walk the markers of the first image (ITU T.81, annex B)."""
    num_scans = num_segments = 0
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        kind, position = marker[1][0], marker.end()
        if kind == _END_OF_IMAGE:
            break
        num_segments += 1
        num_scans += kind == _START_OF_SCAN
        if num_scans > MAX_SCANS or num_segments > MAX_SEGMENTS:
            return f"is a JPEG of more than {MAX_SCANS} scans or {MAX_SEGMENTS} segments"
        if kind not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2])
    return None


def _png_cost(file: IO[bytes]) -> str | None:
    """Walk the chunks: length, kind, data, checksum (PNG specification, section 5.3)."""
    file.seek(len(_PNG), SEEK_SET)
    has_pixels = False
    for number in range(MAX_PNG_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return None
        has_pixels = has_pixels or head[4:] == b"IDAT"
        if number >= MAX_SEGMENTS and not has_pixels:
            return f"is a PNG of more than {MAX_SEGMENTS} chunks before its pixels"
        file.seek(int.from_bytes(head[:4]) + 4, SEEK_CUR)
    return f"is a PNG of more than {MAX_PNG_CHUNKS} chunks"


def _gif_cost(file: IO[bytes]) -> str | None:
    """Walk the blocks of the extensions before the first frame (GIF89a, sections 18 to 26)."""
    flags = file.read(13)[10]
    file.seek(3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0, SEEK_CUR)
    inside = False
    for _ in range(MAX_SEGMENTS):
        if not inside and file.read(2)[:1] != b"!":
            return None
        size = file.read(1)
        if not size:
            return None
        inside = size != b"\0"
        file.seek(size[0], SEEK_CUR)
    return f"is a GIF of more than {MAX_SEGMENTS} blocks before its first frame"
