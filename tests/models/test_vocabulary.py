import logging
from typing import Any

import pytest

from promptnet.models.tiny import train_tokenizer
from promptnet.models.vocabulary import unknown_words, warn_of_unknown_words


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["a portrait of a person, clean-shaven, with a beard"] * 3, 1024)


def test_words_that_the_captions_did_not_have_are_unknown(tokenizer: Any) -> None:
    texts = ["A portrait of S1* riding a horse, 3 horses", "a horse with clean-shaven Beard; S*"]
    assert unknown_words(tokenizer, texts) == ["riding", "horse", "horses"]
    assert unknown_words(tokenizer, ["", "S*", "a person, with a beard!"]) == []


def test_a_large_tokenizer_knows_every_word() -> None:
    class Large:
        def __len__(self) -> int:
            return 49408

    assert unknown_words(Large(), ["a quokka"]) == []


def test_the_warning_names_the_words_once(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_unknown_words([tokenizer, tokenizer], ["a person with the moon", "the moon"])
        warn_of_unknown_words([tokenizer], ["a portrait"])
    (record,) = caplog.records
    assert "does not know the words 'the', 'moon'" in record.getMessage()
