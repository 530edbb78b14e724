import numpy as np
import pytest
import torch
from PIL import Image

from promptnet.images.crop import to_image, to_pixels
from promptnet.inference.references import encode_pixels, encode_references
from promptnet.inference.tuning import views as material_module
from promptnet.inference.tuning.config import TuningConfig
from promptnet.inference.tuning.loss import held_out_timesteps
from promptnet.inference.tuning.views import View, held_out_batches, prepare_views, training_batch, views_at_once


def image(seed: int = 0, side_px: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), np.uint8))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tuning_views(pipe):
    return prepare_views(pipe, [image(0), image(1)], TuningConfig(num_views=10), draws())


def test_every_image_has_its_views_and_its_reference(pipe, tuning_views):
    assert tuning_views.latents.shape == (20, 4, 8, 8)
    assert tuning_views.masks.shape == (20, 1, 8, 8)
    assert tuning_views.references.latents.shape == (2, 4, 8, 8)
    assert not tuning_views.latents.requires_grad
    with torch.no_grad():
        expected = encode_pixels(pipe.vae, torch.stack([to_pixels(image(seed)) for seed in (0, 1)]))
    torch.testing.assert_close(tuning_views.references.latents, expected)
    fractions = tuning_views.masks.mean(dim=(1, 2, 3))
    assert fractions.min() > 0.3
    assert fractions.max() == 1
    assert fractions.unique().numel() > 3


def test_a_views_latents_are_those_of_its_canvas(pipe, monkeypatch):
    views = [View(16), View(16, flipped=True), View(12, top_px=2, left_px=4)]
    monkeypatch.setattr(material_module, "sample_views", lambda *args, **kwargs: views)
    found = prepare_views(pipe, [image()], TuningConfig(), draws())
    pixels = to_pixels(image())
    with torch.no_grad():
        torch.testing.assert_close(found.latents[:1], encode_pixels(pipe.vae, pixels[None]))
        torch.testing.assert_close(found.latents[1:2], encode_pixels(pipe.vae, pixels.flip(-1)[None]))
    expected = torch.zeros(8, 8)
    expected[1:7, 2:8] = 1
    assert torch.equal(found.masks[2, 0], expected)


def test_batches_hold_views_images_and_prompts_of_the_person(tuning_views):
    config = TuningConfig(batch_size=64, prompts=("a photo of S*", "S* at home"))
    held_out = held_out_timesteps(1000)
    batch = training_batch(tuning_views, config, 1000, held_out, draws())
    assert batch.latents.shape == batch.noise.shape == (64, 4, 8, 8)
    for row in range(64):
        view = next(i for i in range(20) if torch.equal(batch.latents[row], tuning_views.latents[i]))
        assert torch.equal(batch.masks[row], tuning_views.masks[view])
    assert set(batch.images.tolist()) == {0, 1}
    assert set(batch.prompts) == set(config.prompts)
    assert not torch.isin(batch.timesteps, held_out).any()
    assert abs(batch.noise.std() - 1) < 0.02


def test_the_held_out_set_is_the_images_as_they_are(tuning_views):
    config = TuningConfig(prompts=("a photo of S*", "S* at home"))
    held_out = held_out_timesteps(1000)
    batches = held_out_batches(tuning_views, config, held_out, draws())
    assert len(batches) == 2
    for image_index, batch in enumerate(batches):
        assert torch.equal(batch.latents, tuning_views.references.latents[image_index].expand(4, -1, -1, -1))
        assert batch.masks.all()
        assert torch.equal(batch.timesteps, held_out)
        assert batch.images.tolist() == [image_index] * 4
        assert set(batch.prompts) == {"a photo of S*"}
    assert batches[0].noise.flatten(1).unique(dim=0).shape[0] == 4
    assert not torch.equal(batches[0].noise, batches[1].noise)


def test_everything_random_comes_from_the_generator(pipe):
    config = TuningConfig(num_views=3)
    one, again, other = (prepare_views(pipe, [image()], config, draws(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.latents, again.latents)
    assert not torch.equal(one.latents, other.latents)


def test_large_views_are_encoded_fewer_at_a_time():
    assert [views_at_once(side_px) for side_px in (64, 512, 1024, 2048)] == [16, 8, 2, 1]


def test_moved_references_are_read_in_turn_with_the_images_as_they_are(pipe):
    config = TuningConfig(num_views=3, moved_references=2, batch_size=64, scales=(0.4, 0.9))
    found = prepare_views(pipe, [image(0), image(1)], config, draws())
    assert found.references.latents.shape == (2, 4, 8, 8)
    assert found.read.latents.shape == (6, 4, 8, 8)
    assert len(found.read.vision_states) == 6
    assert torch.equal(found.read.latents[:2], found.references.latents)
    assert found.read.latents.flatten(1).unique(dim=0).shape[0] == 6
    batch = training_batch(found, config, 1000, held_out_timesteps(1000), draws())
    assert set(batch.images.tolist()) == set(range(6))
    held_out = held_out_batches(found, config, held_out_timesteps(1000), draws())
    assert {place for batch in held_out for place in batch.images.tolist()} == {0, 1}


def test_a_moved_reference_is_what_its_view_shows(pipe, monkeypatch):
    monkeypatch.setattr(material_module, "sample_views", lambda *args, **kwargs: [View(12, top_px=2, left_px=4)])
    found = prepare_views(pipe, [image()], TuningConfig(moved_references=1), draws())
    shown = to_image(material_module.place(to_pixels(image()), View(12, top_px=2, left_px=4))[0])
    parts = pipe.vae, pipe.image_encoder, pipe.feature_extractor
    expected = encode_references(*parts, [shown], 16, "cpu")
    torch.testing.assert_close(found.read.latents[1:], expected.latents)
    torch.testing.assert_close(found.read.vision_states[1:], expected.vision_states)


def test_without_moved_references_nothing_more_is_drawn(pipe):
    one, other = draws(), draws()
    plain = prepare_views(pipe, [image()], TuningConfig(num_views=3), one)
    prepare_views(pipe, [image()], TuningConfig(num_views=3, moved_references=0), other)
    assert plain.read is plain.references
    assert torch.equal(one.get_state(), other.get_state())
    assert torch.equal(to_pixels(to_image(to_pixels(image()))), to_pixels(image()))
