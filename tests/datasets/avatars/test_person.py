"""People without end: exact records, splits and what is held out, and pairs that differ in what is named."""

import random

import numpy as np
import pytest

from promptnet.datasets.avatars import colours
from promptnet.datasets.avatars.captions import caption, mentioned, random_fields
from promptnet.datasets.avatars.frames import Frame, sample_frame
from promptnet.datasets.avatars.person import (
    ATTRIBUTE_FIELDS,
    FIELDS,
    GEOMETRY,
    WORLDS,
    Attributes,
    Identity,
    changed,
    sample_attributes,
    sample_avatar,
    sample_identity,
)
from promptnet.datasets.avatars.render import render, render_avatar, to_svg
from promptnet.datasets.avatars.rendered import pair_of, reference_for
from promptnet.datasets.avatars.styles import STYLES


def test_the_stream_is_a_function_of_seed_and_index_and_never_repeats_anybody():
    people = [sample_identity(0, index) for index in range(500)]
    assert people[7] == sample_identity(0, 7)
    assert sample_identity(1, 7) != people[7]
    assert len({(who.skin, who.hair_color, who.geometry) for who in people}) == 500
    others = {(who.skin, who.hair_color, who.geometry) for who in (sample_identity(0, i, "test") for i in range(500))}
    assert not others & {(who.skin, who.hair_color, who.geometry) for who in people}


def test_training_sees_nothing_that_is_held_out():
    for index in range(600):
        who = sample_avatar(0, index).identity
        assert not STYLES[who.style].is_held_out
        assert (who.hair, who.drawings[0]) not in STYLES[who.style].held_out_hair
        assert not colours.is_held_out("hair_color", who.hair_color)


@pytest.mark.parametrize("world", ["style", "hair", "color"])
def test_each_held_out_world_has_what_it_is_called_after_and_cannot_be_trained_on(world):
    for index in range(40):
        who = sample_identity(0, index, "validation", world)
        assert STYLES[who.style].is_held_out == (world == "style")
        assert ((who.hair, who.drawings[0]) in STYLES[who.style].held_out_hair) == (world == "hair")
        assert colours.is_held_out("hair_color", who.hair_color) == (world == "color")
    with pytest.raises(ValueError, match="held out of training"):
        sample_identity(0, 0, "train", world)


def test_the_world_of_all_mixes_known_and_held_out_people_and_cannot_be_trained_on():
    assert WORLDS == ("known", "style", "hair", "color", "all")
    people = [sample_identity(0, index, "validation", "all") for index in range(60)]
    held_out = [
        STYLES[who.style].is_held_out
        or (who.hair, who.drawings[0]) in STYLES[who.style].held_out_hair
        or colours.is_held_out("hair_color", who.hair_color)
        for who in people
    ]
    assert 15 < sum(held_out) < 45
    with pytest.raises(ValueError, match="held out of training"):
        sample_identity(0, 0, "train", "all")


def test_records_say_the_nearest_words():
    avatar = sample_avatar(0, 3)
    record = avatar.record()
    assert list(record) == list(FIELDS)
    assert all(record[field] in values for field, values in FIELDS.items())
    for field, color in avatar.colors().items():
        assert record[field] == colours.nearest_name(field, color)


@pytest.mark.parametrize("style", STYLES)
def test_every_drawing_of_every_style_can_be_rendered_and_no_two_look_alike(style: str):
    spec = STYLES[style]
    traits = {part: variants[0] for part, variants in spec.traits.items()}
    plain = Attributes("calm", "none", "#ffffff", "t-shirt", "#d4232b")
    svgs = [
        to_svg(Identity(style, "#dba36f", hair, "#d9541e", drawings=(place, 0), traits=traits), plain)
        for hair, drawings in spec.hair.items()
        for place in range(len(drawings))
    ]
    who = Identity(style, "#dba36f", next(iter(spec.hair)), "#d9541e", traits=traits)
    for expression, drawings in spec.expression.items():
        svgs += [
            to_svg(who, Attributes(expression, "none", "#ffffff", "t-shirt", "#2f6fe4", k))
            for k in range(len(drawings))
        ]
    for beard, drawings in spec.beard.items():
        for place in range(len(drawings)):
            svgs.append(to_svg(Identity(style, "#dba36f", who.hair, "#1d1a22", beard, (0, place), traits), plain))
    assert len(set(svgs)) == len(svgs)


@pytest.mark.parametrize("style", STYLES)
def test_what_a_record_says_is_what_the_image_shows(style: str):
    spec = STYLES[style]
    traits = {part: variants[0] for part, variants in spec.traits.items()}
    who = Identity(style, "#dba36f", next(iter(spec.hair)), "#d9541e", traits=traits)
    plain = Attributes("calm", "none", "#ff9ccb", "t-shirt", "#2f6fe4")
    image = np.asarray(render(who, plain, 128)).reshape(-1, 3).tolist()
    assert list(colours.rgb("#ff9ccb")) in image
    assert list(colours.rgb("#2f6fe4")) in image
    base = render(who, plain, 64)
    for other in (
        changed(plain, Attributes("sad", "none", "#ff9ccb", "t-shirt", "#2f6fe4"), {"expression"}),
        changed(plain, Attributes("calm", "sunglasses", "#ff9ccb", "t-shirt", "#2f6fe4"), {"glasses"}),
        changed(plain, Attributes("calm", "none", "#ff9ccb", "shirt", "#2f6fe4"), {"clothes"}),
        changed(plain, Attributes("calm", "none", "#ff9ccb", "t-shirt", "#d4232b"), {"clothes_color"}),
    ):
        assert np.abs(np.asarray(render(who, other, 64), int) - np.asarray(base, int)).max() > 40


def test_geometry_moves_the_face_and_little_else():
    who = sample_identity(0, 1)
    still = Identity(**{**who.__dict__, "geometry": (0.0,) * len(GEOMETRY)})
    wide = Identity(**{**who.__dict__, "geometry": (1.0,) + (0.0,) * (len(GEOMETRY) - 1)})
    how = sample_attributes(who.style, random.Random(0))
    one, other = (np.asarray(render(person, how, 64), int) for person in (still, wide))
    assert 1 < np.abs(one - other).mean() < 60


def test_a_pair_differs_in_what_its_prompt_names_and_in_nothing_else():
    for index in range(200):
        reference, target, fields = pair_of(3, index, "validation")
        assert reference.identity == target.identity
        for field in set(ATTRIBUTE_FIELDS) - fields:
            assert getattr(reference.attributes, field) == getattr(target.attributes, field)
    reference, fields = reference_for(sample_avatar(0, 0), random.Random(2))
    if not fields:
        assert reference == sample_avatar(0, 0)


def test_unnamed_glasses_keep_their_frame_and_an_unnamed_mouth_its_drawing():
    mine = Attributes("sad", "glasses", "#ffffff", "shirt", "#d4232b", drawing=1, frame="square")
    theirs = Attributes("happy", "sunglasses", "#24366b", "t-shirt", "#2f6fe4", drawing=0, frame="round")
    found = changed(mine, theirs, {"background"})
    assert found == Attributes("sad", "glasses", "#24366b", "shirt", "#d4232b", drawing=1, frame="square")
    assert changed(mine, theirs, {"glasses"}).frame == "square"
    assert changed(mine, theirs, {"expression"}).drawing == 0


def test_captions_say_what_they_are_asked_to_and_can_be_read_back():
    rng = random.Random(0)
    for index in range(100):
        record = sample_avatar(0, index).record()
        assert mentioned(caption(record, rng=rng)) == record
        fields = random_fields(rng, full=0.0) or set()
        assert mentioned(caption(record, fields=fields)) == {f: v for f, v in record.items() if f in fields}
    with pytest.raises(ValueError, match="age"):
        caption(sample_avatar(0, 0).record(), fields={"age"})


def test_frames_move_mirror_and_compress_and_the_plain_frame_changes_nothing():
    image = render_avatar(sample_avatar(0, 0), 64)
    assert Frame()(image, "#ffffff").tobytes() == image.tobytes()
    mirrored = Frame(mirrored=True)(image, "#ffffff")
    assert np.array_equal(np.asarray(mirrored), np.asarray(image)[:, ::-1])
    small = np.asarray(Frame(zoom=0.5)(image, "#00ff00"))
    assert (small[0, 0] == (0, 255, 0)).all()
    assert (small[32, 32] != (0, 255, 0)).any()
    shifted = np.asarray(Frame(shift_x=0.25)(image, "#00ff00"))
    assert np.array_equal(shifted[:, 16:], np.asarray(image)[:, :48])
    noisy = np.asarray(Frame(noise=5.0)(image, "#ffffff"), int) - np.asarray(image, int)
    assert 1 < noisy.std() < 6
    assert Frame(noise=5.0)(image, "#ffffff").tobytes() == Frame(noise=5.0)(image, "#ffffff").tobytes()
    assert Frame(jpeg_quality=40)(image, "#ffffff").tobytes() != image.tobytes()


def test_sampled_frames_stay_in_range_and_are_plain_now_and_then():
    frames = [sample_frame(random.Random(seed)) for seed in range(300)]
    assert 30 < sum(frame == Frame() for frame in frames) < 100
    assert all(0.7 <= frame.zoom <= 1.4 and abs(frame.shift_x) <= 0.2 and abs(frame.shift_y) <= 0.2 for frame in frames)


def test_a_style_that_cannot_draw_a_word_says_so():
    with pytest.raises(ValueError, match="not 'afro'"):
        Identity("micah", "#dba36f", "afro", "#d9541e")
    with pytest.raises(ValueError, match="beard='moustache'"):
        Identity("micah", "#dba36f", "long", "#d9541e", "moustache")
    with pytest.raises(ValueError, match="size_px=4"):
        render_avatar(sample_avatar(0, 0), 4)
