"""Text from outside, decoded for certain or refused."""

import codecs

# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_MARK = "\ufeff"


def decode_text(data: bytes) -> str:
    """Return a text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; without the mark, within it too.

    Marks within a text are left by programs that join files. Anything else is refused rather than guessed: Latin-1,
    Cyrillic and Japanese code pages look alike.

    Raises:
        ValueError: it is none of these, or was spoilt by an earlier conversion; the message is to follow a name.
    """
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    encoding = _MARKS.get(mark, "utf-8")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        odd = f"byte 0x{data[len(mark) + error.start]:02x} at place {error.start}"
        raise ValueError(f"is not {encoding.upper()} ({odd}): save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("holds null bytes, as UTF-16 without its mark does: save it as UTF-8")
    if "\ufffd" in text:
        raise ValueError("holds U+FFFD, which stands for lost letters: write it anew")
    return text.replace(_MARK, "")
