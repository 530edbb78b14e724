"""The one door through which images from outside come in.

What arrives here is untrusted: a file of unknown make, perhaps not an image, perhaps made to exhaust memory. What
leaves is always the same: an upright RGB image of 8 bits a channel, without metadata.

Formats: PNG, JPEG (also the multi-image kind of phones), WEBP, BMP, GIF. Of an animation the first frame is taken.
TIFF, PSD, HEIC and the rest are refused: each is a family of codecs that avatars do not need. Embedded colour
profiles are not applied, as in most training data.
"""

import errno
import hashlib
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from promptnet.images.decompression_bombs import hidden_cost

Source = str | os.PathLike[str] | IO[bytes] | Image.Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")  # BMP's two letters are no proof
MAX_PIXELS = 64_000_000  # a phone's 50 megapixels pass
MIN_SIZE_PX = 32
MAX_FILE_BYTES = 256 * 1024 * 1024

# EXIF tag 274: what was done to the upright image when it was stored, and so what undoes it.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE = (255, 255, 255, 255)
_warnings_lock = threading.Lock()


# What can be wrong with an image, in the words of `ImageError.reason`.
REASONS = (
    "missing",
    "dangling link",
    "link loop",
    "folder",
    "not a file",
    "unreadable",
    "empty",
    "file too large",
    "not an image",
    "hidden cost",
    "too many pixels",
    "too small",
    "broken",
    "pixel kind",
)


class ImageError(ValueError):
    """An image that cannot be used. The message names the image, what is wrong, and what to do.

    Attributes:
        reason: what is wrong in a word or two, one of `REASONS`, for those who count.
        problem: the message without the image's name, for those who list.
    """

    def __init__(self, message: str, reason: str = "", problem: str = "") -> None:
        super().__init__(message)
        self.reason, self.problem = reason, problem or message


def _refusal(name: str, reason: str, problem: str) -> ImageError:
    return ImageError(f"{name} {problem}", reason, problem)


def open_image(source: Source, *, max_pixels: int = MAX_PIXELS, min_size_px: int = MIN_SIZE_PX) -> Image.Image:
    """Return an image from outside as an upright RGB `PIL.Image` of its own, without metadata or an open file.

    The EXIF orientation is applied, transparent parts show white, and CMYK, palette, grey and 16-bit images become
    8-bit RGB. The size is read from the header, so an image that is too large is refused before it is decoded.

    Args:
        source: a path, a file opened in binary mode (read from where it stands), or a `PIL.Image`, which is left as
            it is.
        max_pixels: width times height at most.
        min_size_px: the shorter side at least.

    Raises:
        ImageError: missing, not a file, empty, too large, too small, not one of `FORMATS`, made to take long (see
            `promptnet.images.decompression_bombs`), broken or truncated, or of a kind of pixel (floating point,
            32-bit) that has no given range.
        TypeError: `source` is none of the above.
    """
    name = _name(source)
    with _opened(source, name) as image:
        return _decoded(image, name, max_pixels, min_size_px)


def open_hashed(
    source: Path | bytes, *, max_pixels: int = MAX_PIXELS, min_size_px: int = MIN_SIZE_PX
) -> tuple[Image.Image, str]:
    """Open an image as `open_image` does, and return it with the SHA-256 of the file's content in hexadecimal.

    Both come from one opened file, which may be renamed, replaced or removed meanwhile. It is not held in memory, and
    hashed only once it has turned out to be an image.

    Args:
        source: a path, or what a file holds.
        max_pixels: width times height at most.
        min_size_px: the shorter side at least.

    Raises:
        ImageError: as `open_image` does.
    """
    name = "the given image" if isinstance(source, bytes) else _name(source)
    if isinstance(source, bytes):
        _check_bytes(len(source), name)
    opened: Any = BytesIO(source) if isinstance(source, bytes) else _regular_file(source, name)
    with opened as file:
        with _header(file, name) as image:
            decoded = _decoded(image, name, max_pixels, min_size_px)
        file.seek(0)
        try:
            return decoded, hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _refusal(name, "unreadable", f"cannot be read ({error.strerror or _said(error)})") from error


def _decoded(image: Image.Image, name: str, max_pixels: int, min_size_px: int) -> Image.Image:
    _check_size(image, name, max_pixels, min_size_px)
    try:
        return _upright_rgb(image, name)
    except ImageError:
        raise
    except Exception as error:  # on hostile bytes decoders raise anything
        raise _broken(name, error) from error


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a small file that comes with images, such as a caption.

    Raises:
        ImageError: missing, not a file, unreadable or larger than `max_bytes`.
    """
    name = f"file '{path}'"
    with _regular_file(path, name) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise _refusal(name, "file too large", f"has more than {max_bytes} bytes")
    return data


def _broken(name: str, error: Exception) -> ImageError:
    return _refusal(name, "broken", f"is broken or cut short ({_said(error)}): export or download it again")


def _name(source: Source) -> str:
    if isinstance(source, str | os.PathLike):
        return f"image '{os.fspath(source)}'"
    if isinstance(source, Image.Image):
        filename = getattr(source, "filename", "")
        return f"image '{filename}'" if filename else "the given image"
    filename = getattr(source, "name", "")
    return f"image '{filename}'" if isinstance(filename, str) and filename else "the given image"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


@contextmanager
def _opened(source: Source, name: str) -> Iterator[Image.Image]:
    """The image with its header read and its pixels not yet decoded."""
    if isinstance(source, Image.Image):
        yield source
        return
    if isinstance(source, str | os.PathLike):
        source = _regular_file(Path(source), name)
    elif hasattr(source, "read"):
        source = _held(source, name)
    else:
        raise TypeError(
            f"an image is a path, a file opened in binary mode or a PIL.Image, got {type(source).__name__}"
            + (" (wrap it: io.BytesIO(data))" if isinstance(source, bytes | bytearray) else "")
        )
    with source, _header(source, name) as image:
        yield image


def _regular_file(path: Path, name: str) -> IO[bytes]:
    """Opened only if it is a file: reading a pipe or a device might never end."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise _refusal(name, "folder", "is a folder: name one image in it")
        if not stat.S_ISREG(status.st_mode):
            raise _refusal(name, "not a file", "is not a regular file")
        _check_bytes(status.st_size, name)
        return path.open("rb")
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _unreachable(path, name, error) from error


def _unreachable(path: Path, name: str, error: Exception) -> ImageError:
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return _refusal(name, "dangling link", "does not exist: it is a link to nothing")
        return _refusal(name, "missing", "does not exist: check the path")
    reason = getattr(error, "strerror", None) or _said(error)  # the text of the error itself repeats the path
    loops = getattr(error, "errno", None) == errno.ELOOP
    return _refusal(name, "link loop" if loops else "unreadable", f"cannot be read ({reason})")


def _held(file: IO[bytes], name: str) -> IO[bytes]:
    """What is left to read of someone else's file object, so that theirs need not be able to seek."""
    try:
        data = file.read(MAX_FILE_BYTES + 1)
    except Exception as error:
        raise _refusal(name, "unreadable", f"cannot be read ({_said(error)})") from error
    if not isinstance(data, bytes | bytearray):
        raise TypeError(f"{name} was opened in text mode: open it with mode 'rb'")
    _check_bytes(len(data), name)
    return BytesIO(data)


def _check_bytes(num_bytes: int, name: str) -> None:
    if num_bytes == 0:
        raise _refusal(name, "empty", "is empty (0 bytes): export or download it again")
    if num_bytes > MAX_FILE_BYTES:
        most = f"{MAX_FILE_BYTES // 2**20} MiB"
        raise _refusal(name, "file too large", f"has more than {most}: save a smaller copy, as PNG or JPEG")


def _header(file: IO[bytes], name: str) -> Image.Image:
    try:
        if cost := hidden_cost(file):
            raise _refusal(name, "hidden cost", f"{cost}: export it again with another program")
        with _quiet():
            return Image.open(file, formats=FORMATS)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise _refusal(name, "too many pixels", f"has too many pixels ({error}): save a smaller copy") from error
    except Image.UnidentifiedImageError as error:
        if _is_of_a_format(file):
            raise _refusal(
                name, "broken", "is broken: its header makes no sense, export or download it again"
            ) from error
        raise _refusal(
            name,
            "not an image",
            f"is not an image in one of the formats {', '.join(FORMATS)}, whatever its name says: "
            "convert it to PNG or JPEG",
        ) from error
    except Exception as error:
        raise _broken(name, error) from error


def _is_of_a_format(file: IO[bytes]) -> bool:
    file.seek(0)
    start = file.read(12)
    return start.startswith(_SIGNATURES) or (start.startswith(b"RIFF") and start.endswith(b"WEBP"))


@contextmanager
def _quiet() -> Iterator[None]:
    """PIL's warnings about headers are about the sender's software; ours are errors. The filters are process-wide."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_size(image: Image.Image, name: str, max_pixels: int, min_size_px: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        problem = f"is too large, {width}x{height} px, at most {max_pixels} pixels: save a smaller copy"
        raise _refusal(name, "too many pixels", problem)
    if min(width, height) < min_size_px:
        problem = f"is too small, {width}x{height} px: at least {min_size_px} px a side are needed"
        raise _refusal(name, "too small", problem)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    image.load()
    with _quiet():
        orientation = image.getexif().get(_ORIENTATION_TAG)
    rgb = _on_white(image) if image.has_transparency_data else _opaque(image, name)
    clean = Image.new("RGB", rgb.size)  # takes the pixels and nothing else
    clean.paste(rgb)
    return clean.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else clean


def _opaque(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _eight_bit(image)
    if image.mode in ("I", "F"):
        problem = f"has pixels of mode {image.mode}, whose range is not given: save it with 8 bits a channel"
        raise _refusal(name, "pixel kind", problem)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _on_white_16_bit(image)
    rgba = straight_alpha(image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba)


def straight_alpha(image: Image.Image) -> Image.Image:
    """Return grey images whose alpha is multiplied in as PIL can convert them, others as they are."""
    return image.convert("LA") if image.mode == "La" else image


def _eight_bit(image: Image.Image) -> Image.Image:
    """PIL's own conversion clips at 255 instead of scaling 65535 to it."""
    grey = np.asarray(image).astype(np.float32) / 257
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))


def _on_white_16_bit(image: Image.Image) -> Image.Image:
    """A 16-bit grey image with one grey value that means transparent."""
    grey: Any = np.array(_eight_bit(image))
    grey[np.asarray(image) == image.info["transparency"]] = 255
    return Image.fromarray(grey)
