"""Rendered sets, their latents, and the data modules."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from promptnet.datasets.avatars.captions import mentioned
from promptnet.datasets.avatars.latents import AvatarLatents
from promptnet.datasets.avatars.module import AvatarDataModule, PairDataModule, pixels_of
from promptnet.datasets.avatars.person import ATTRIBUTE_FIELDS, FIELDS, IDENTITY_FIELDS, sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.datasets.avatars.rendered import RenderedAvatars, pair_of
from promptnet.datasets.avatars.vectors import NUM_EXACT, color_weights, exact_of, num_record_numbers, record_of
from promptnet.models.tiny import build_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("people")


def test_images_are_rendered_once_and_read_from_the_disk_afterwards(folder: Path, monkeypatch: pytest.MonkeyPatch):
    people = RenderedAvatars(folder, "train", 10, shard_size=4)
    expected = np.asarray(render_avatar(sample_avatar(0, 5), 64))
    assert np.array_equal(people.pixels(5), expected)
    assert [path.name for path in people.folder.glob("*.npy")] == ["00001.npy"]
    monkeypatch.setattr(RenderedAvatars, "_render", lambda *_: pytest.fail("rendered again"))
    again = RenderedAvatars(folder, "train", 10, shard_size=4)
    assert np.array_equal(again.pixels(5), expected)
    assert again[5]["hair"] == sample_avatar(0, 5).identity.hair


def test_a_reference_shows_the_same_person_otherwise(folder: Path):
    references = RenderedAvatars(folder, "validation", 4, role="reference", shard_size=4)
    reference, target, _ = pair_of(0, 2, "validation")
    assert references.avatar(2) == reference
    assert reference.identity == target.identity
    assert references.pixels(2).shape == (64, 64, 3)


def test_latents_are_those_of_the_images_and_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    vae: Any = build_vae()
    people = RenderedAvatars(folder, "train", 8, shard_size=4)
    pixels = torch.from_numpy(people.pixels(6)).permute(2, 0, 1)[None] / 127.5 - 1
    found = AvatarLatents(people, vae)[torch.tensor([6, 1])]
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mode() * vae.config["scaling_factor"]
    assert torch.allclose(found[:1], expected, atol=5e-3)
    monkeypatch.setattr(AvatarLatents, "_encode", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(AvatarLatents(people, vae)[torch.tensor([6])], found[:1])
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        AvatarLatents(people, build_vae())[torch.tensor([6])]


def test_latents_do_not_depend_on_the_precision_of_the_step_that_asks_first(folder: Path, tmp_path: Path):
    vae: Any = build_vae()
    found = []
    for place, low in ((folder, False), (tmp_path, True)):
        people = RenderedAvatars(place, "test", 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            found.append(AvatarLatents(people, vae)[torch.tensor([1, 0])])
    assert torch.equal(*found)
    assert found[1].dtype == torch.float32


@pytest.mark.parametrize("damage", ["cut", "rows"])
def test_damaged_images_and_latents_are_made_again(damage: str, tmp_path: Path):
    vae: Any = build_vae()
    people = RenderedAvatars(tmp_path, "train", 3, size_px=16)
    images, latents = np.array(people.shard(0)), AvatarLatents(people, vae).shard(0)
    drawn, encoded = people.folder / "00000.npy", next(people.folder.glob("latents-*"))
    if damage == "cut":
        for path in (drawn, encoded):
            path.write_bytes(path.read_bytes()[:-5])
    else:
        np.save(drawn, images[:2])
        save_file({"latents": latents[:2].clone()}, encoded)
    again = RenderedAvatars(tmp_path, "train", 3, size_px=16)
    with pytest.warns(UserWarning, match="images in .* are damaged: they are rendered again"):
        assert np.array_equal(again.shard(0), images)
    with pytest.warns(UserWarning, match="latents in .* are damaged: they are computed again"):
        assert torch.equal(AvatarLatents(again, vae).shard(0), latents)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(AvatarLatents(RenderedAvatars(tmp_path, "train", 3, size_px=16), vae).shard(0), latents)


def test_batches_hold_images_records_and_prompts(folder: Path):
    module = AvatarDataModule(8, 4, 4, cache_dir=str(folder), shard_size=4)
    module.setup()
    batch = next(iter(module.train_dataloader()))
    assert batch["pixels"].shape == (4, 3, 64, 64)
    assert batch["exact"].shape == (4, NUM_EXACT)
    assert batch["record"].shape == (4, num_record_numbers())
    for row in range(4):
        said = {f: FIELDS[f][c] for f, c in zip(FIELDS, batch["said"][row].tolist(), strict=True) if c >= 0}
        assert mentioned(batch["caption"][row]) == said
        assert "S*" in batch["prompt"][row]
    validation = next(iter(module.val_dataloader()))
    assert (validation["said"] == validation["codes"]).all()


def pairs_of(folder: Path, **how: Any) -> PairDataModule:
    module = PairDataModule(num_images=8, num_validation=4, batch_size=4, cache_dir=str(folder), shard_size=4, **how)
    module.setup()
    return module


def test_pairs_name_with_s_what_differs(folder: Path):
    module = pairs_of(folder)
    batch = next(iter(module.train_dataloader()))
    for row in range(4):
        index = int(batch["target_index"][row])
        _, target, fields = pair_of(0, index, "train")
        said, described = mentioned(batch["prompt"][row]), mentioned(batch["described"][row])
        assert said == {f: v for f, v in target.record().items() if f in fields}
        assert described == {f: v for f, v in target.record().items() if f in fields or f in IDENTITY_FIELDS}
        assert "S*" not in batch["described"][row]
        assert torch.equal(batch["reference_pixels"][row], pixels_of(module.references("train").pixels(index)))
    assert module.references("train").role == "reference"


def test_as_published_the_reference_is_the_target_and_the_prompt_says_nothing(folder: Path):
    module = pairs_of(folder, as_published=True)
    batch = next(iter(module.train_dataloader()))
    assert set(batch["prompt"]) == {"a portrait of S*"}
    for row in range(4):
        index = int(batch["target_index"][row])
        assert torch.equal(batch["reference_pixels"][row], pixels_of(module.rendered("train").pixels(index)))
        assert torch.equal(batch["record"][row], record_of(sample_avatar(0, index)))
    assert module.references("train").folder == module.rendered("train").folder


def test_a_shard_holds_no_more_images_than_are_asked_for(folder: Path):
    few, many = RenderedAvatars(folder, "test", 3), RenderedAvatars(folder, "test", 5, shard_size=4)
    assert len(few.shard(0)) == 3
    assert len(many.shard(1)) == 4
    assert few.folder != many.folder
    with pytest.raises(ValueError, match="num_images=0"):
        RenderedAvatars(folder, "test", 0)


def test_vectors_tell_people_apart_and_hold_exact_values():
    avatars = [sample_avatar(0, index) for index in range(50)]
    vectors = torch.stack([record_of(avatar) for avatar in avatars])
    assert len(vectors.unique(dim=0)) == 50
    assert torch.equal(vectors[:, -NUM_EXACT:], torch.stack([exact_of(avatar) for avatar in avatars]))
    assert torch.allclose(color_weights(avatars[0]).sum(), torch.tensor(4.0))
    reference, target, fields = pair_of(0, next(i for i in range(50) if pair_of(0, i, "train")[2]), "train")
    assert not torch.equal(record_of(reference), record_of(target))
    assert fields <= set(ATTRIBUTE_FIELDS)
