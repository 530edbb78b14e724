import numpy as np
import pytest
import torch
from PIL import Image

from promptnet.images.crop import to_pixels
from promptnet.inference.references import encode_pixels
from promptnet.inference.tuning import views as material_module
from promptnet.inference.tuning.config import TuningDefaults
from promptnet.inference.tuning.loss import held_out_timesteps
from promptnet.inference.tuning.views import View, held_out_batches, prepare_material, training_batch, views_at_once


def picture(seed: int = 0, side_px: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), np.uint8))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def material(pipe):
    return prepare_material(pipe, [picture(0), picture(1)], TuningDefaults(num_views=10), draws())


def test_every_picture_has_its_views_and_its_reference(pipe, material):
    assert material.latents.shape == (20, 4, 8, 8)
    assert material.masks.shape == (20, 1, 8, 8)
    assert material.references.latents.shape == (2, 4, 8, 8)
    assert not material.latents.requires_grad
    with torch.no_grad():
        expected = encode_pixels(pipe.vae, torch.stack([to_pixels(picture(seed)) for seed in (0, 1)]))
    torch.testing.assert_close(material.references.latents, expected)
    shares = material.masks.mean(dim=(1, 2, 3))
    assert shares.min() > 0.3
    assert shares.max() == 1
    assert shares.unique().numel() > 3


def test_a_views_latents_are_those_of_its_canvas(pipe, monkeypatch):
    views = [View(16), View(16, flipped=True), View(12, top_px=2, left_px=4)]
    monkeypatch.setattr(material_module, "sample_views", lambda *args, **kwargs: views)
    found = prepare_material(pipe, [picture()], TuningDefaults(), draws())
    pixels = to_pixels(picture())
    with torch.no_grad():
        torch.testing.assert_close(found.latents[:1], encode_pixels(pipe.vae, pixels[None]))
        torch.testing.assert_close(found.latents[1:2], encode_pixels(pipe.vae, pixels.flip(-1)[None]))
    expected = torch.zeros(8, 8)
    expected[1:7, 2:8] = 1
    assert torch.equal(found.masks[2, 0], expected)


def test_batches_hold_views_pictures_and_prompts_of_the_person(material):
    knobs = TuningDefaults(batch_size=64, prompts=("a photo of S*", "S* at home"))
    held_out = held_out_timesteps(1000)
    batch = training_batch(material, knobs, 1000, held_out, draws())
    assert batch.latents.shape == batch.noise.shape == (64, 4, 8, 8)
    for row in range(64):
        view = next(i for i in range(20) if torch.equal(batch.latents[row], material.latents[i]))
        assert torch.equal(batch.masks[row], material.masks[view])
    assert set(batch.pictures.tolist()) == {0, 1}
    assert set(batch.prompts) == set(knobs.prompts)
    assert not torch.isin(batch.timesteps, held_out).any()
    assert abs(batch.noise.std() - 1) < 0.02


def test_the_held_out_set_is_the_pictures_as_they_are(material):
    knobs = TuningDefaults(prompts=("a photo of S*", "S* at home"))
    held_out = held_out_timesteps(1000)
    batches = held_out_batches(material, knobs, held_out, draws())
    assert len(batches) == 2
    for picture_index, batch in enumerate(batches):
        assert torch.equal(batch.latents, material.references.latents[picture_index].expand(4, -1, -1, -1))
        assert batch.masks.all()
        assert torch.equal(batch.timesteps, held_out)
        assert batch.pictures.tolist() == [picture_index] * 4
        assert set(batch.prompts) == {"a photo of S*"}
    assert batches[0].noise.flatten(1).unique(dim=0).shape[0] == 4
    assert not torch.equal(batches[0].noise, batches[1].noise)


def test_everything_random_comes_from_the_generator(pipe):
    knobs = TuningDefaults(num_views=3)
    one, again, other = (prepare_material(pipe, [picture()], knobs, draws(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.latents, again.latents)
    assert not torch.equal(one.latents, other.latents)


def test_large_views_are_encoded_fewer_at_a_time():
    assert [views_at_once(side_px) for side_px in (64, 512, 1024, 2048)] == [16, 8, 2, 1]
