"""Arguments under the names that they had before."""

import inspect

import pytest

from promptnet.io.renamed import renamed_arguments


@renamed_arguments(old="new")
def function(*, new: int = 1) -> int:
    return new


def test_the_old_name_works_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="old is now new"):
        assert function(old=3) == 3  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def test_the_new_name_works_without(recwarn: pytest.WarningsRecorder) -> None:
    assert function(new=3) == 3
    assert not recwarn.list


def test_both_names_at_once_are_an_error() -> None:
    with pytest.raises(TypeError, match="old and new"):
        function(old=3, new=3)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def test_the_signature_shows_the_new_name() -> None:
    assert list(inspect.signature(function).parameters) == ["new"]
