"""Editing real images: what comes back, what changes, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promptnet.inference.editing import edit_image as mixing_images
from promptnet.inference.editing.card import EditCard, EditError, edit_fingerprint
from promptnet.inference.editing.edit_image import default_prompt, edit_image, image_latents, mask_of, networks_of
from promptnet.inference.editing.inversion import make_scheduler
from promptnet.inference.editing.rule import check_request_lengths
from promptnet.inference.sampling.conditions import SubjectPrompts
from promptnet.inference.sampling.requests import make_requests

SCHEDULERS = ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")


def card_of(pipe: Any, num_steps: int = 8, **more: Any) -> EditCard:
    prompts = ("a photo of a person", "a photo of a person wearing a hat")
    name = type(pipe.scheduler).__name__
    card = EditCard(torch.linspace(1, 0, num_steps), *prompts, name, 3.0, edit_fingerprint(pipe))
    return replace(card, **more)


def make_image(width_px: int = 16, height_px: int = 16) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height_px, width_px, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_strength_zero_gives_the_image_back_and_one_edits(pipe: Any, name: str, monkeypatch: pytest.MonkeyPatch):
    allow_small_images(monkeypatch)
    pipe.scheduler = make_scheduler(name, pipe.scheduler.config)  # of a base model with zero terminal signal
    card, image = card_of(pipe), make_image()
    with torch.no_grad():
        latents = image_latents(pipe, image)
    back = edit_image(pipe, image, card.scaled(0), output_type="latent")
    torch.testing.assert_close(back, latents, rtol=0, atol=1e-4)
    edited = edit_image(pipe, image, [card, card], output_type="latent")
    assert (edited - latents).abs().max() > 1e-3
    published = edit_image(pipe, image, card.scaled(0), as_published=True, output_type="latent")
    assert (published - latents).abs().max() > 1e-3
    assert edit_image(pipe, image, card)[0].size == (16, 16)


def test_a_mask_keeps_the_rest(pipe: Any, monkeypatch: pytest.MonkeyPatch):
    allow_small_images(monkeypatch)
    mask = Image.new("RGB", (16, 16), "black")
    mask.paste("white", (8, 0, 16, 16))
    card, image = card_of(pipe), make_image()
    with torch.no_grad():
        latents = image_latents(pipe, image)
    assert mask_of(pipe, mask, image)[0, 0, 0].tolist() == [0] * 4 + [1] * 4
    edited = edit_image(pipe, image, card, mask=mask, output_type="latent")
    assert torch.equal(edited[..., :4], latents[..., :4])
    assert (edited - latents)[..., 4:].abs().max() > 1e-3


def test_a_mask_is_cropped_as_its_image_and_refused_at_another_size(
    pipe: Any, make_subject: Any, monkeypatch: pytest.MonkeyPatch
):
    allow_small_images(monkeypatch)
    wide = Image.new("L", (32, 16), 0)
    wide.paste(255, (16, 0, 32, 16))  # right of the middle
    assert mask_of(pipe, wide, make_image(32, 16), crop=True)[0, 0, 0].tolist() == [0] * 4 + [1] * 4
    monkeypatch.setattr(mixing_images, "invert_images", lambda *_, **__: pytest.fail("inverted"))
    for image, size, crop in ((make_image(), (32, 32), False), (make_image(32, 16), (16, 16), True)):
        message = f"The mask has {size[0]}x{size[1]} pixels, but the image {image.width}x16"
        with pytest.raises(ValueError, match=message):
            edit_image(pipe, image, card_of(pipe), mask=Image.new("L", size), crop=crop)
    with pytest.raises(ValueError, match="The mask has 8x8 pixels, but the image 16x16"):
        edit_image(pipe, make_subject(pipe), card_of(pipe), mask=Image.new("L", (8, 8)))
    with pytest.raises(ValueError, match=r"until=1\.5"):
        edit_image(pipe, make_image(), card_of(pipe), correction_end=1.5)


def test_masks_that_could_mean_their_opposite_are_refused(pipe: Any, monkeypatch: pytest.MonkeyPatch):
    """Row 10 of the faults."""
    allow_small_images(monkeypatch)
    monkeypatch.setattr(mixing_images, "invert_images", lambda *_, **__: pytest.fail("inverted"))
    half = Image.new("L", (16, 16), 0)
    half.paste(255, (8, 0, 16, 16))
    transparent = make_image().convert("RGBA")
    transparent.putalpha(half)
    for mask, message in (
        (transparent, "has transparent parts"),
        (half.point([value // 255 for value in range(256)]), "nowhere white: its values go from 0 to 1 of 255"),
        (Image.new("L", (16, 16)), "black everywhere"),
    ):
        with pytest.raises(ValueError, match=message):
            edit_image(pipe, make_image(), card_of(pipe), mask=mask)


def test_as_published_the_less_noisy_steps_are_free(pipe: Any, monkeypatch: pytest.MonkeyPatch):
    allow_small_images(monkeypatch)
    noted: dict[str, Any] = {}
    monkeypatch.setattr(mixing_images, "redrawn", lambda pipe, inverted, cards, **more: noted.update(more))
    more: dict[str, Any]
    for more, until in (({"as_published": True}, 0.66), ({"as_published": True, "correction_end": 0.9}, 0.9), ({}, 1)):
        edit_image(pipe, make_image(), card_of(pipe), output_type="latent", **more)
        assert noted["correction_end"] == until


def test_as_published_the_way_up_is_guided(pipe: Any, monkeypatch: pytest.MonkeyPatch):
    allow_small_images(monkeypatch)
    noted: list[dict[str, Any]] = []
    monkeypatch.setattr(mixing_images, "invert", lambda unet, scheduler, latents, rules, **how: noted.append(how))
    monkeypatch.setattr(mixing_images, "redrawn", lambda *_, **__: None)
    for published in (True, False):
        edit_image(pipe, make_image(), card_of(pipe), as_published=published, output_type="latent")
    guided, plain = ([rule.scale for rule in how["inversion_rules"]] for how in noted)
    assert (guided, plain) == ([3.0], [1.0])


def test_prompts_that_would_be_cut_off_are_refused(pipe: Any, make_subject: Any, monkeypatch: pytest.MonkeyPatch):
    allow_small_images(monkeypatch)
    monkeypatch.setattr(mixing_images, "invert_images", lambda *_, **__: pytest.fail("inverted"))
    card, subject, long = card_of(pipe), make_subject(pipe), "a hat " * 60
    for image, prompt in ((make_image(), long), (subject, f"a photo of S* wearing {long}")):
        with pytest.raises(EditError, match="tokens, but the text encoder reads"):
            edit_image(pipe, image, card, prompt=prompt)
    for words in ({"prompt": long}, {"prompt": "a hat", "negative_prompt": long}):
        with pytest.raises(EditError, match="tokens, but the text encoder reads"):
            pipe(edits=card, **words)
    with pytest.raises(EditError, match="tokens, but the text encoder reads"):
        pipe(f"S* wearing {long}", subject=subject, edits=card)


def test_pseudo_words_count_as_tokens(pipe: Any, make_subject: Any, caplog: pytest.LogCaptureFixture):
    networks, subject = networks_of(pipe), make_subject(pipe)

    def refused(num_words: int) -> bool:
        (row,) = make_requests("the S*" + " hat" * num_words, subject)
        caplog.clear()
        SubjectPrompts(networks, [row], [0])  # warns of what it cuts off
        try:
            check_request_lengths([row], networks)
        except EditError:
            return True
        return False

    for count in range(30):
        assert refused(count) == bool(caplog.records)
    assert caplog.records


def test_a_subjects_image_comes_back_and_is_edited(pipe: Any, make_subject: Any):
    subject, card = make_subject(pipe, tuned=True), card_of(pipe)
    back = edit_image(pipe, subject, card.scaled(0), output_type="latent")
    torch.testing.assert_close(back, subject.reference_latents, rtol=0, atol=1e-4)
    edited = edit_image(pipe, subject, card, output_type="latent")
    assert (edited - back).abs().max() > 1e-3
    with pytest.raises(ValueError, match="does not mention S"):
        edit_image(pipe, subject, card, prompt="a photo of a person")


def test_the_class_word_gives_way_to_the_subject(pipe: Any, make_subject: Any):
    card = card_of(pipe)
    assert default_prompt(card, None) == "a photo of a person"
    assert default_prompt(card, make_subject(pipe)) == "a photo of S*"
    assert default_prompt(card, make_subject(pipe, class_word="a person")) == "a photo of S*"
    with pytest.raises(EditError, match="does not mention the subject's class word 'dog'"):
        default_prompt(card, make_subject(pipe, class_word="dog"))


def test_what_does_not_fit_is_refused(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    allow_small_images(monkeypatch)
    card = card_of(pipe)
    with pytest.raises(ValueError, match="has 32x16 pixels, but this base model draws 16x16"):
        edit_image(pipe, make_image(32, 16), card)
    assert edit_image(pipe, make_image(32, 16), card, crop=True)[0].size == (16, 16)
    with pytest.raises(EditError, match="another base model"):
        edit_image(pipe, make_image(), replace(card, fingerprint={"unet": "0"}))
    with pytest.raises(EditError, match="learned with the scheduler PNDMScheduler"):
        edit_image(pipe, make_image(), replace(card, scheduler="PNDMScheduler"))
    (tmp_path / "words.png").write_text("no image")
    with pytest.raises(ValueError, match=r"words\.png"):
        edit_image(pipe, tmp_path / "words.png", card)
    with pytest.raises(EditError, match="tokens"):
        edit_image(pipe, make_image(), replace(card, styled="a hat " * 30))


def allow_small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixture's model draws 16 px, less than a photograph may have."""
    from promptnet.images import load, masks

    monkeypatch.setattr(mixing_images, "open_mask", lambda source: masks.open_mask(source, min_size_px=1))
    monkeypatch.setattr(mixing_images, "open_image", lambda source: load.open_image(source, min_size_px=1))
