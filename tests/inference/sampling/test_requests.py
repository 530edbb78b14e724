from types import SimpleNamespace
from typing import Any

import pytest
import torch

from promptnet.inference.sampling.requests import distinct_subjects, make_requests, moved, with_class_words
from promptnet.inference.subject.subject import Subject


def subject(class_word: str = "person") -> Subject:
    return Subject(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 5), torch.ones(1), class_word, {})


ANN, BEN = subject("woman"), subject("old man")


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        ("a photo of S* wearing a hat", "person", "a photo of a person wearing a hat"),
        ("a photo of S* wearing a hat", "a person", "a photo of a person wearing a hat"),
        ("S*, sad", "old man", "an old man, sad"),
        ("a smiling S* and the cat", "person", "a smiling person and the cat"),
        ("a smiling S*", "a person", "a smiling person"),
        ("a portrait of the S* in Rome", "an actor", "a portrait of the actor in Rome"),
        ("the cat, S* and S*", "woman", "the cat, a woman and a woman"),
        ("S*'s dog with S*", "person", "a person's dog with a person"),
        ("a photo of S*", "my uncle", "a photo of my uncle"),
    ],
)
def test_the_reference_prompt_has_one_article(prompt: str, word: str, expected: str):
    assert with_class_words(prompt, {"S*": word}) == expected


def test_each_placeholder_has_its_own_class_word():
    words = {"S1*": "woman", "S2*": "old man"}
    assert with_class_words("S2* kisses S1*", words).startswith("an old man kisses")
    (request,) = make_requests("S1* with S2*", [ANN, BEN])
    assert request.reference_prompt == "a woman with an old man"
    assert request.subjects == {"S1*": ANN, "S2*": BEN}


def test_one_subject_is_in_every_prompt():
    requests = make_requests(["S* in Rome", "a hat on S1*"], ANN, negative_prompt="ugly", num_images_per_prompt=2)
    assert [request.prompt for request in requests] == ["S* in Rome", "S* in Rome", "a hat on S1*", "a hat on S1*"]
    assert [set(request.subjects.values()) for request in requests] == [{ANN}] * 4
    assert {request.negative_prompt for request in requests} == {"ugly"}


def test_a_list_of_prompts_has_an_entry_of_subject_each():
    requests = make_requests(["S* in Rome", "a dog", "S2* and S1*"], [BEN, None, [ANN, BEN]], ["", "cat", "bird"])
    assert [request.subjects for request in requests] == [{"S*": BEN}, {}, {"S2*": BEN, "S1*": ANN}]
    assert [request.negative_prompt for request in requests] == ["", "cat", "bird"]
    assert distinct_subjects(requests) == [BEN, ANN]


def test_class_word_of_the_call_counts_more_than_the_subjects():
    assert make_requests("S* in Rome", ANN, class_word="robot")[0].reference_prompt == "a robot in Rome"


def test_an_empty_prompt_needs_no_subject():
    (request,) = make_requests("")
    assert (request.prompt, request.negative_prompt, request.subjects) == ("", None, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a photo of S*"}, "mentions S*, but no subject is given"),
        ({"prompt": "a photo", "subject": ANN}, "does not mention S*"),
        ({"prompt": "", "subject": ANN}, "does not mention S*"),
        ({"prompt": ["S*", "a photo"], "subject": ANN}, "'a photo' does not mention S*"),
        ({"prompt": "S1* and S2*", "subject": ANN}, "mentions S2*, but the 1 subject"),
        ({"prompt": "S1* alone", "subject": [ANN, BEN]}, "does not mention S2*"),
        ({"prompt": "S* and S1*", "subject": [ANN, BEN]}, "mentions S*, but the 2 subject"),
        ({"prompt": ["S*", "S*"], "subject": [ANN]}, "2 prompts need 2 entries of subject, but there are 1"),
        ({"prompt": "S*", "subject": "me.safetensors"}, "Subject.load"),
        ({"prompt": "S*", "subject": [SimpleNamespace()]}, "Subject.load"),
        ({"prompt": []}, "prompt must be a text"),
        ({"prompt": 3}, "prompt must be a text"),
        ({"prompt": "dog", "negative_prompt": "S*"}, "negative prompt 'S*'"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "1 negative prompts for 2"),
        ({"prompt": "dog", "num_images_per_prompt": 0}, "num_images_per_prompt=0"),
        ({"prompt": "S*", "subject": ANN, "class_word": " "}, "class_word=' ' must be a short word"),
    ],
)
def test_what_does_not_match_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError) as refusal:
        make_requests(**arguments)
    assert message in str(refusal.value)


def test_subjects_are_moved_once():
    requests = moved(make_requests(["S*", "S1* and S2*"], [ANN, [ANN, BEN]]), torch.device("cpu"))
    ann, ben = distinct_subjects(requests)
    assert requests[0].subjects["S*"] is ann is requests[1].subjects["S1*"]
    assert requests[1].subjects["S2*"] is ben
