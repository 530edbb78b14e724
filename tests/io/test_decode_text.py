"""Texts of people's own files: every encoding that says what it is, and none that has to be guessed."""

import pytest

from promptnet.io.decode_text import decode_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_what_says_its_encoding_is_read(encoding: str) -> None:
    assert decode_text("a café \U0001f600\r\nb".encode(encoding)) == "a café \U0001f600\r\nb"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "latin-1"])
def test_what_would_have_to_be_guessed_is_refused(encoding: str) -> None:
    with pytest.raises(ValueError, match="save it as UTF-8"):
        decode_text("a café on the left".encode(encoding))


def test_marks_that_joined_files_leave_within_are_dropped() -> None:
    assert decode_text(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n") == "one\ntwo\n"


def test_lost_letters_are_said() -> None:
    with pytest.raises(ValueError, match="lost letters"):
        decode_text("caf\ufffd".encode())
