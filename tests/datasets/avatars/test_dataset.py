"""Avatars as a Hugging Face data set: what `sample_avatar` says, rendered once and kept on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file

from promptnet.datasets.avatars.captions import caption, mentioned
from promptnet.datasets.avatars.dataset import avatar_dataset, avatar_of
from promptnet.datasets.avatars.latents import encode_latents, latent_path
from promptnet.datasets.avatars.module import AvatarStream, codes_of, pixels_of
from promptnet.datasets.avatars.render import FIELDS, AvatarRecord, identities, sample_avatar
from promptnet.models.tiny import build_vae

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("portraits")


@pytest.fixture(scope="module")
def data(cache: Path) -> Dataset:
    return avatar_dataset("test", NUM_IMAGES, seed=4, size_px=32, cache_dir=cache)


def test_rows_are_the_streams_portraits_with_their_whole_record(data: Dataset) -> None:
    assert isinstance(data, Dataset)
    assert data.column_names == ["image", *FIELDS]
    assert len(data) == NUM_IMAGES
    for index in range(NUM_IMAGES):
        avatar, row = sample_avatar(4, index, "test"), data[index]
        assert avatar_of(row) == avatar
        assert avatar.identity in identities("test")
        assert np.array_equal(np.asarray(row["image"]), np.asarray(avatar.render(32)))


def test_asking_again_renders_nothing(data: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("rendered")

    monkeypatch.setattr(AvatarRecord, "render", refuse)
    again = avatar_dataset("test", NUM_IMAGES, seed=4, size_px=32, cache_dir=cache)
    assert again["hair"][:] == data["hair"][:]
    with pytest.raises(Exception, match=r"generating the dataset|rendered"):
        avatar_dataset("test", NUM_IMAGES, seed=5, size_px=32, cache_dir=cache)


def test_a_set_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="num_images=0"):
        avatar_dataset("train", 0)


def test_codes_are_places_in_the_fields_and_unsaid_ones_minus_one() -> None:
    record = sample_avatar(0, 0).record()
    assert [values[code] for values, code in zip(FIELDS.values(), codes_of(record), strict=True)] == list(
        record.values()
    )
    assert codes_of({"glasses": "sunglasses"}).tolist() == [-1] * 6 + [1] + [-1] * 3


def test_training_shuffles_images_and_clauses_and_drops_some(data: Dataset) -> None:
    stream = AvatarStream(data, seed=1)
    items = [stream[sample] for sample in range(10 * NUM_IMAGES)]
    for epoch in range(10):
        indices = [item["index"] for item in items[epoch * NUM_IMAGES : (epoch + 1) * NUM_IMAGES]]
        assert sorted(indices) == list(range(NUM_IMAGES))
    counts = []
    for item in items:
        row = data[item["index"]]
        said = mentioned(item["caption"])
        assert said.items() <= avatar_of(row).record().items()
        assert (item["pixels"] == pixels_of(row["image"])).all()
        counts.append(len(said))
    assert max(counts) == len(FIELDS)
    assert min(counts) < len(FIELDS) // 2
    avatars = [avatar_of(data[index]) for index in range(NUM_IMAGES)]
    whole = [caption(avatar.identity, avatar.attributes) for avatar in avatars]
    assert any(item["caption"] not in whole for item in items if len(mentioned(item["caption"])) == len(FIELDS))
    assert stream[17]["caption"] == AvatarStream(data, seed=1)[17]["caption"]


def test_validation_has_its_order_and_its_whole_captions(data: Dataset) -> None:
    stream = AvatarStream(data, seed=1, shuffled=False)
    for index in range(NUM_IMAGES):
        avatar = sample_avatar(4, index, "test")
        assert stream[index]["index"] == index
        assert stream[index]["caption"] == caption(avatar.identity, avatar.attributes)


@pytest.mark.parametrize("damage", ["", "cut", "rows"])
def test_latents_are_kept_and_damaged_ones_made_again(damage: str, tmp_path: Path):
    data, vae = avatar_dataset("train", 3, cache_dir=tmp_path), build_vae()
    expected = encode_latents(data, vae, tmp_path)
    path = latent_path(data, vae, tmp_path)
    written = path.stat().st_mtime_ns
    if damage:
        path.write_bytes(path.read_bytes()[:-5]) if damage == "cut" else save_file({"latents": expected[:2]}, path)
        with pytest.warns(UserWarning, match="latents in .* are damaged"):
            assert torch.equal(encode_latents(data, vae, tmp_path), expected)
    assert torch.equal(encode_latents(data, vae, tmp_path), expected)
    assert (path.stat().st_mtime_ns == written) == (damage == "")
