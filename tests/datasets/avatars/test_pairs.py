"""What pretraining the encoder sees: pairs of one image or of one person, captioned or not."""

from typing import Any

import datasets
import pytest
from PIL import Image

from promptnet.datasets.avatars.captions import mentioned
from promptnet.datasets.avatars.module import codes_of, pixels_of
from promptnet.datasets.avatars.pairs import NEUTRAL_PROMPT, PairDataModule, SubjectPairs
from promptnet.datasets.avatars.render import ATTRIBUTE_FIELDS, IDENTITY_FIELDS, identities, sample_avatar

NUM_SAMPLES = 200


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    """Three people in four images each, and one in a single image; each image has a colour of its own."""
    people = [*identities("train")[:3]] * 4 + [identities("train")[3]]
    rows = [
        {
            "image": Image.new("RGB", (8, 8), (20 * index, 0, 0)),
            **who.record(),
            **sample_avatar(0, index).attributes.record(),
        }
        for index, who in enumerate(people)
    ]
    return datasets.Dataset.from_list(rows)


def samples(data: datasets.Dataset, **how: Any) -> list[dict[str, Any]]:
    pairs = SubjectPairs(data, seed=3, **how)
    return [pairs[sample] for sample in range(NUM_SAMPLES)]


def who(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[field] for field in IDENTITY_FIELDS)


def test_as_published_the_reference_is_the_target_and_the_prompt_says_nothing(data: datasets.Dataset) -> None:
    for item in samples(data, reference="same-image", captioned=0.0):
        assert item["reference_index"] == item["target_index"]
        assert item["prompt"] == NEUTRAL_PROMPT == "a portrait of S*"


def test_pairs_are_two_images_of_one_person(data: datasets.Dataset) -> None:
    items = samples(data, reference="same-identity")
    for item in items:
        reference, target = data[item["reference_index"]], data[item["target_index"]]
        assert who(reference) == who(target)
        assert (item["reference_index"] == item["target_index"]) is (item["target_index"] == 12)  # the single image
        assert (item["reference_pixels"] == pixels_of(reference["image"])).all()
        assert item["codes"].tolist() == codes_of(target).tolist()
    partners = {item["reference_index"] for item in items if item["target_index"] == 0}
    assert partners == {3, 6, 9}
    assert {item["target_index"] for item in items} == set(range(13))


def test_captions_name_the_targets_attributes_and_nothing_of_who_it_is(data: datasets.Dataset) -> None:
    items = samples(data, captioned=0.5)
    told = [item for item in items if item["prompt"] != NEUTRAL_PROMPT]
    assert 0.3 * NUM_SAMPLES < len(told) < 0.6 * NUM_SAMPLES
    for item in told:
        said, target = mentioned(item["prompt"]), data[item["target_index"]]
        assert "S*" in item["prompt"]
        assert set(said) <= set(ATTRIBUTE_FIELDS)
        assert all(target[field] == value for field, value in said.items())
    assert {len(mentioned(item["prompt"])) for item in told} == {1, 2, 3, 4, 5}


def test_the_description_says_who_it_is_and_what_the_prompt_says_besides(data: datasets.Dataset) -> None:
    for item in samples(data, captioned=0.5):
        said, described = mentioned(item["prompt"]), mentioned(item["described"])
        target = data[item["target_index"]]
        assert "S*" not in item["described"]
        assert all(described[field] == target[field] for field in described)
        assert {field for field in described if field in ATTRIBUTE_FIELDS} == set(said)
        assert set(IDENTITY_FIELDS) - set(described) <= {"beard"}, "toon faces of some hair have none to speak of"


def test_a_sample_is_a_function_of_seed_and_number(data: datasets.Dataset) -> None:
    one, again, other = (SubjectPairs(data, seed=seed) for seed in (5, 5, 6))
    keys = ("target_index", "reference_index", "prompt", "described")
    last, first = [again[sample] for sample in reversed(range(20))], [one[sample] for sample in range(20)]
    assert [[item[key] for key in keys] for item in first] == [[item[key] for key in keys] for item in last[::-1]]
    assert any(first[sample]["target_index"] != other[sample]["target_index"] for sample in range(20))


def test_validation_keeps_the_order(data: datasets.Dataset) -> None:
    pairs = SubjectPairs(data, seed=3, shuffled=False)
    assert [pairs[sample]["target_index"] for sample in range(13)] == list(range(13))


@pytest.mark.parametrize(("how", "message"), [({"reference": "twin"}, "'twin'"), ({"captioned": 1.5}, "captioned=1.5")])
def test_other_pairs_are_refused(data: datasets.Dataset, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SubjectPairs(data, seed=0, **how)


def test_the_old_word_for_the_same_image_is_read_for_one_release():
    with pytest.warns(DeprecationWarning, match="same-picture is now same-image"):
        assert PairDataModule(reference="same-picture").reference == "same-image"
    with pytest.raises(ValueError, match="must be 'same-image' or 'same-identity'"):
        PairDataModule(reference="other")  # type: ignore[arg-type]
