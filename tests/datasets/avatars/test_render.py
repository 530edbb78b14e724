"""Avatars: deterministic, complete records, splits that share nobody, captions that say what the record says."""

import random

import numpy as np
import pytest

from promptnet.datasets.avatars.captions import caption, mentioned, random_caption
from promptnet.datasets.avatars.render import (
    ATTRIBUTE_FIELDS,
    FIELDS,
    IDENTITY_FIELDS,
    SPLITS,
    STYLES,
    Attributes,
    Identity,
    all_identities,
    identities,
    render,
    sample_attributes,
    sample_avatar,
)


def _pixels(identity: Identity, attributes: Attributes, size_px: int = 64) -> np.ndarray:
    return np.asarray(render(identity, attributes, size_px), dtype=np.int16)


SOMEONE = Identity("toon", "fair", "long", "ginger", "none")
PLAIN = Attributes("happy", "none", "pink", "t-shirt", "red")


def test_every_identity_belongs_to_exactly_one_split():
    everyone = [person for split in SPLITS for person in identities(split)]
    assert len(everyone) == len(set(everyone)) == len(list(all_identities()))
    assert len(identities("test")) >= 64
    assert len(identities("validation")) >= 64


def test_unknown_split_and_values_are_refused_by_name():
    with pytest.raises(ValueError, match="'holdout'"):
        identities("holdout")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="skin='green'"):
        Identity("toon", "green", "long", "ginger", "none")
    with pytest.raises(ValueError, match=r"'toon' draws hair .*, not 'mohawk'"):
        Identity("toon", "fair", "mohawk", "ginger", "none")
    with pytest.raises(ValueError, match="size_px=4"):
        render(SOMEONE, PLAIN, 4)


def test_a_portrait_is_a_function_of_seed_index_and_split():
    first, again = sample_avatar(3, 17), sample_avatar(3, 17)
    assert first == again
    assert np.array_equal(np.asarray(first.render()), np.asarray(again.render()))
    assert len({sample_avatar(3, index) for index in range(40)}) > 35
    assert sample_avatar(3, 17, "test").identity in identities("test")


@pytest.mark.parametrize("style", list(STYLES))
@pytest.mark.parametrize("field", [*IDENTITY_FIELDS[1:], *ATTRIBUTE_FIELDS])
def test_every_value_of_every_field_can_be_seen(style: str, field: str):
    """Two records that differ in one field give images that differ, in every style."""
    record = {
        "style": style,
        "skin": "tan",
        "hair": next(iter(STYLES[style].hair)),
        "hair_color": "ginger",
        "beard": "none",
    }
    record |= PLAIN.record()
    values = tuple(STYLES[style].hair) if field == "hair" else FIELDS[field]
    images = []
    for value in values:
        changed = record | {field: value}
        who = Identity(**{name: changed[name] for name in IDENTITY_FIELDS})
        how = Attributes(**{name: changed[name] for name in ATTRIBUTE_FIELDS})
        images.append(_pixels(who, how))
    for place, one in enumerate(images):
        for other in images[:place]:
            assert (np.abs(one - other).max(axis=-1) > 24).sum() >= 12  # pixels of 64 x 64 that clearly changed


def test_rendering_at_another_size_shows_the_same_image():
    small, large = render(SOMEONE, PLAIN, 64), render(SOMEONE, PLAIN, 256)
    shrunk = np.asarray(large.resize((64, 64), box=(0, 0, 256, 256), reducing_gap=2.0), dtype=np.int16)
    assert large.size == (256, 256)
    assert np.abs(shrunk - np.asarray(small, dtype=np.int16)).mean() < 6


def test_a_black_beard_still_shows_the_mouth():
    who = Identity("micah", "fair", "long", "black", "beard")
    sad, happy = (_pixels(who, Attributes(mood, "none", "pink", "t-shirt", "red")) for mood in ("sad", "happy"))
    assert (np.abs(sad - happy).max(axis=-1) > 60).sum() >= 12


def test_full_captions_say_the_whole_record():
    for index in range(200):
        avatar = sample_avatar(0, index)
        assert mentioned(caption(avatar.identity, avatar.attributes)) == avatar.record()


def test_random_captions_say_nothing_false_and_vary():
    avatar = sample_avatar(0, 1)
    texts = {random_caption(avatar.identity, avatar.attributes, rng=random.Random(seed)) for seed in range(60)}
    assert len(texts) > 30
    for text in texts:
        assert mentioned(text).items() <= avatar.record().items()


def test_captions_of_a_subject_name_only_the_asked_fields():
    text = caption(None, PLAIN, subject="S*", fields=("expression", "glasses", "background"))
    assert text == "a happy portrait of S*, without glasses, on a pink background"
    assert caption(None, None, subject="S*") == "a portrait of S*"
    with pytest.raises(ValueError, match="'hat'"):
        caption(None, PLAIN, fields=("hat",))


def test_attributes_are_drawn_uniformly():
    rng = random.Random(0)
    generated = [sample_attributes(rng).background for _ in range(1200)]
    for value in FIELDS["background"]:
        assert 140 < generated.count(value) < 260  # expectation 200, five standard deviations is 65
