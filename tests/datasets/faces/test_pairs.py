"""The data module for prepared sets, and features computed once."""

import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from promptnet.datasets.faces.features import ROWS_PER_FILE, FeatureCache, fill, network_hash
from promptnet.datasets.faces.module import FaceDataModule
from promptnet.datasets.faces.pairs import Prompts
from tests.datasets.conftest import write_shard

Make = Callable[..., Path]
SHAPES = [(40, 40), (30, 48), (48, 30)]


def build(folder: Path, **options: Any) -> FaceDataModule:
    """A module on a small set, set up."""
    given: dict[str, Any] = {"cache_dir": str(folder.parent / "cache"), "resolution_px": 32, "batch_size": 4}
    given |= {"num_workers": 0, "num_validation": 0, **options}
    module = FaceDataModule(str(folder), **given)
    module.prepare_data()
    module.setup()
    return module


def batches(module: FaceDataModule, count: int) -> list[dict[str, Any]]:
    return list(islice(iter(module.train_dataloader()), count))


def same(left: Any, right: Any) -> bool:
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def test_a_batch_holds_pairs_of_one_person(prepared: Make):
    module = build(prepared(7, 6), reference="same-identity", captioned=0.5)
    (batch,) = batches(module, 1)
    assert batch["reference_pixels"].shape == batch["target_pixels"].shape == (4, 3, 32, 32)
    assert -1 <= batch["target_pixels"].min() < batch["target_pixels"].max() <= 1
    people = [torch.as_tensor(batch[f"{role}_row"]) % 4 for role in ("target", "reference")]
    assert torch.equal(*people)
    assert not torch.equal(batch["target_row"], batch["reference_row"])
    assert batch["size_ids"].tolist() == [[40, 40, 0, 0, 32, 32]] * 4
    prompts = {prompt for one in batches(module, 6) for prompt in one["prompt"]}
    assert "a photo of S*" in prompts
    assert any(prompt.startswith("a photo of S*, a hat number") for prompt in prompts)


def test_one_image_for_both_is_sent_once(prepared: Make):
    (batch,) = batches(build(prepared(8), reference="same-image"), 1)
    assert "target_pixels" not in batch
    assert torch.equal(batch["target_row"], batch["reference_row"])


@pytest.mark.parametrize("options", [{}, {"sizes_px": [(32, 32), (24, 40), (40, 24)]}, {"window_shards": 1}])
def test_workers_do_not_change_what_is_seen(prepared: Make, options: dict[str, Any]):
    folder = prepared(5, 7, 6, sizes=SHAPES)
    one, many = (build(folder, num_workers=n, colour_jitter=0.1, **options) for n in (0, 2))
    for left, right in zip(batches(one, 7), batches(many, 7), strict=True):
        assert left.keys() == right.keys()
        assert all(same(left[key], right[key]) for key in left)


def test_targets_take_the_size_of_their_shape(prepared: Make):
    module = build(prepared(9, sizes=SHAPES), sizes_px=[(32, 32), (24, 40), (40, 24)], reference="same-image")
    shapes = set()
    for batch in batches(module, 3):
        shapes.add(tuple(batch.get("target_pixels", batch["reference_pixels"]).shape[2:]))
        assert batch["reference_pixels"].shape[2:] == (32, 32)
    assert shapes == {(32, 32), (40, 24), (24, 40)}


def test_held_out_people_are_not_trained_on(prepared: Make):
    module = build(prepared(24), num_validation=5)
    held_out = {row % 4 for row in module.validation.fixed or []}  # type: ignore[union-attr]
    trained = {int(row) % 4 for batch in batches(module, 6) for row in batch["target_row"]}
    assert held_out
    assert held_out.isdisjoint(trained)
    assert len(held_out | trained) == 4
    first, again = (next(iter(module.val_dataloader())) for _ in range(2))
    assert all(same(first[key], again[key]) for key in first)
    with pytest.raises(ValueError, match="num_validation=24"):
        build(Path(module.data_dir), num_validation=24)


def test_more_held_out_than_trained_on_is_refused(prepared: Make):
    folder = prepared(24)  # four people of six images
    assert len(build(folder, num_validation=12).train.order.rows) == 12  # type: ignore[union-attr]
    said = r"num_validation=17 holds out 18 of the 24 images .* all of 3 people, and leaves 6"
    with pytest.raises(ValueError, match=said):
        build(folder, num_validation=17)


def test_partners_that_nobody_has_are_said(tmp_path: Path):
    write_shard(tmp_path / "set/a.parquet", range(6), people=6)
    with pytest.warns(UserWarning, match="nobody in .* has two images"):
        build(tmp_path / "set", reference="same-identity")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(tmp_path / "set", reference="same-image")


def test_what_is_trained_on_is_counted(prepared: Make, tmp_path: Path):
    folder = prepared(12, 12)  # of four people
    assert build(folder).counts() == (24, 4)
    assert build(folder, num_validation=3).counts() == (18, 3)
    assert build(folder, sizes_px=[(32, 32)]).counts() == (24, 4)
    assert build(folder, window_shards=1).counts() == (24, None)
    assert build(with_captions(tmp_path / "nobody", [None] * 5, known=False)).counts() == (5, None)


def test_facts_tell_data_apart(prepared: Make):
    folder = prepared(6, 6)
    facts = [build(folder, **options).facts() for options in ({}, {"num_validation": 3}, {"sizes_px": [(32, 32)]})]
    assert facts[0]["images"] == facts[1]["images"] == facts[2]["images"]
    assert facts[0]["images trained on"] != facts[1]["images trained on"]
    stream = build(folder, window_shards=1).facts()
    write_shard(folder / "data-00001.parquet", range(6, 12), people=2)
    assert build(folder).facts()["images"] != facts[0]["images"]
    assert build(folder, window_shards=1).facts() == stream
    write_shard(folder / "data-00001.parquet", range(6, 13))
    assert build(folder, window_shards=1).facts() != stream


class Tower(nn.Module):
    """Something with weights and a config, as diffusers and transformers models have."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.config = {"width": width, "_name_or_path": "anywhere"}
        self.weight = nn.Parameter(torch.ones(width))


def fill_all(module: FaceDataModule, hashes: dict[Any, str]) -> int:
    """Pixels' means as features; the number of chunks computed."""
    count = 0
    for cache, pixels in module.caches(hashes):
        missing = cache.missing()
        count += len(missing)
        fill(cache, pixels, lambda images: [image.mean(dim=2) for image in images], missing, batch_size=3)
        assert not cache.missing()
    return count


@pytest.mark.parametrize("options", [{}, {"sizes_px": [(32, 32), (24, 40), (40, 24)]}])
def test_cached_features_are_those_of_the_images_served(prepared: Make, options: dict[str, Any]):
    folder = prepared(8, 5, sizes=SHAPES)
    plain, cached = build(folder, **options), build(folder, features=["latents"], **options)
    fill_all(cached, {"latents": "v1"})
    for expected, found in zip(batches(plain, 5), batches(cached, 5), strict=True):
        for role in ("target", "reference"):
            means = expected[f"{role}_pixels"].mean(dim=3).half()
            assert torch.equal(found[f"{role}_moments"], means)
        assert "target_pixels" not in found


def test_images_are_not_opened_where_everything_is_cached(prepared: Make, monkeypatch: pytest.MonkeyPatch):
    module = build(prepared(8), features=["latents", "vision"])
    fill_all(module, {"latents": "a", "vision": "b"})
    monkeypatch.setattr("promptnet.datasets.faces.pairs.open_row_image", None)
    (batch,) = batches(module, 1)
    assert {"target_moments", "reference_moments", "reference_vision"} < set(batch)
    assert not {"target_pixels", "reference_pixels"} & set(batch)


def test_nothing_stale_is_ever_read(prepared: Make):
    folder = prepared(6, 5)
    options: dict[str, Any] = {"features": ["latents"]}
    chunks = 2 * 2  # two shards, mirrored and not
    assert fill_all(build(folder, **options), {"latents": "v1"}) == chunks
    assert fill_all(build(folder, **options), {"latents": "v1"}) == 0
    assert fill_all(build(folder, **options), {"latents": "v2"}) == chunks  # another network
    assert fill_all(build(folder, resolution_px=24, **options), {"latents": "v1"}) == chunks  # another size
    write_shard(folder / "data-00001.parquet", range(90, 95))
    changed = build(folder, **options)
    assert fill_all(changed, {"latents": "v1"}) == 2  # the other images' shard alone
    (batch,) = batches(build(folder), 1)
    (found,) = batches(changed, 1)
    assert torch.equal(found["target_moments"], batch["target_pixels"].mean(dim=3).half())


def test_a_missing_feature_is_an_error_and_a_draft_is_not_a_feature(prepared: Make):
    module = build(prepared(5), features=["vision"])
    ((cache, _),) = module.caches({"vision": "v"})
    (cache.folder / ".abc.draft").touch()
    assert len(cache.missing()) == 2
    with pytest.raises(ValueError, match="fill the cache"):
        batches(module, 1)
    with pytest.raises(ValueError, match="not finite"):
        cache.write(cache.missing()[0], [torch.full((2,), torch.inf)] * 5)
    assert len(cache.missing()) == 2


@pytest.mark.parametrize("keep", [0, 8, 60, -3])
def test_damaged_features_are_computed_again(keep: int, prepared: Make):
    folder, options = prepared(6), {"features": ["latents"]}
    first = build(folder, **options)
    assert fill_all(first, {"latents": "v"}) == 2
    ((cache, _),) = first.caches({"latents": "v"})
    (expected,) = batches(first, 1)
    path = cache.path(next(cache.chunks()))
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=rf"latents in .*{path.name} are damaged .* repeat the command"):
        build_cache_of(folder).read(0, False)
    with pytest.warns(UserWarning, match=f"{path.name} are damaged: they are computed again"):
        assert fill_all(build(folder, **options), {"latents": "v"}) == 1
    again = build(folder, **options)
    assert fill_all(again, {"latents": "v"}) == 0
    (found,) = batches(again, 1)
    assert torch.equal(found["target_moments"], expected["target_moments"])


def build_cache_of(folder: Path) -> FeatureCache:
    ((cache, _),) = build(folder, features=["latents"]).caches({"latents": "v"})
    return cache


def test_a_copy_that_was_damaged_while_it_was_read_is_made_again(prepared: Make):
    folder = prepared(6)
    expected = batches(build(folder, reference="same-image"), 3)
    module = build(folder, reference="same-image")
    (copy,) = module.cache_dir.rglob("*.arrow")
    data = copy.read_bytes()
    with copy.open("r+b") as file:  # the same file, as a failing disk has it
        file.write(data.replace(b"\x89PNG", b"\x00\x00\x00\x00"))
    with pytest.warns(UserWarning, match="is damaged"):
        found = batches(module, 3)
    assert all(torch.equal(a["reference_pixels"], b["reference_pixels"]) for a, b in zip(expected, found, strict=True))


def test_a_long_shard_is_cached_in_several_files(prepared: Make):
    module = build(prepared(ROWS_PER_FILE + 3), features=["latents"], flip=0.0)
    ((cache, _),) = module.caches({"latents": "v"})
    for chunk in cache.missing():
        cache.write(chunk, [torch.tensor([float(row)]) for row in range(chunk.start, chunk.stop)])
    assert len(list(cache.folder.iterdir())) == 2
    assert [int(cache.read(row, False)) for row in (0, ROWS_PER_FILE, ROWS_PER_FILE + 2)] == [0, 256, 258]


def test_a_networks_hash_follows_weights_settings_and_format():
    text_encoder = Tower()
    before = network_hash(text_encoder)
    assert network_hash(Tower()) == before
    assert network_hash(Tower(width=3)) != before
    assert network_hash(Tower().half()) != before
    text_encoder.config["act"] = "gelu"
    assert network_hash(text_encoder) != before
    text_encoder = Tower()
    text_encoder.weight.data[1] += 1e-3
    assert network_hash(text_encoder) != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": ["latents"], "colour_jitter": 0.1}, "colour_jitter=0.1"),
        ({"window_shards": 1, "sizes_px": [(32, 32)]}, "sizes_px"),
        ({"window_shards": 1, "num_validation": 4}, "validation_dir"),
        ({"reference": "other"}, "reference='other'"),
        ({"features": ["depth"]}, "depth"),
        ({"neutral_prompt": "a photo"}, "S\\*"),
        ({"neutral_prompt": "a photo of USS*"}, "a word of its own"),
        ({"neutral_prompt": "S* and S2*"}, "another placeholder"),
        ({"caption_prompt": "S8*, {caption}"}, "both S"),
        ({"captioned": 2.0}, "captioned=2.0"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(options: dict[str, Any], message: str):
    given: dict[str, Any] = {"num_validation": 0}
    with pytest.raises(ValueError, match=message):
        FaceDataModule("nowhere", **(given | options))


def test_a_caption_becomes_a_prompt():
    prompts = Prompts(captioned=0.5)
    assert prompts.prompt("a red hat", 0.4) == "a photo of S*, a red hat"
    assert prompts.prompt("S* in a red hat", 0.4) == "S* in a red hat"
    assert prompts.prompt("a red hat", 0.6) == prompts.prompt(None, 0.1) == "a photo of S*"


@pytest.mark.parametrize("caption", ["the USS* in dock", "a 5* hotel", "S * in a hat", "aS*", "s* alone", "*S"])
def test_what_only_looks_like_s_is_text(caption: str):
    assert Prompts(captioned=1.0).prompt(caption, 0.0) == f"a photo of S*, {caption}"


def with_captions(folder: Path, captions: list[str | None], known: bool = True) -> Path:
    """A set of one shard with these captions."""
    write_shard(folder / "a.parquet", range(len(captions)))
    table = pq.read_table(folder / "a.parquet")
    place = table.column_names.index("caption")
    table = table.set_column(place, "caption", pa.array(captions, pa.string()))
    table = table if known else table.drop_columns("identity")
    names = pa.array([f"p{number}.jpg" for number in range(len(captions))])
    pq.write_table(table.append_column("source", names), folder / "a.parquet")
    return folder


@pytest.mark.parametrize("caption", ["S8* in a hat", "S* beside S1*", "(S12*)"])
def test_a_caption_of_somebody_else_is_named_before_the_first_step(caption: str, tmp_path: Path):
    folder = with_captions(tmp_path / "set", ["S*, smiling", caption, "a hat", None])
    with pytest.raises(ValueError, match=r"row 1 of .*a\.parquet \(from 'p1\.jpg'\): .* mentions S\d+\*"):
        build(folder, captioned=0.01)
    build(folder)  # captions are not read
    other = with_captions(tmp_path / "other", ["a hat"] * 4)
    with pytest.raises(ValueError, match="row 1 of"):
        build(other, captioned=0.01, validation_dir=str(folder), num_validation=3)
    stream = build(folder, captioned=1.0, window_shards=1)  # where rows come one by one, the row is named in its turn
    with pytest.raises(ValueError, match=r"row 1 of .*p1\.jpg.* mentions S"):
        batches(stream, 2)


def test_captions_that_nobody_has_are_refused(tmp_path: Path):
    folder = with_captions(tmp_path / "set", [None, "", None, None])
    with pytest.raises(ValueError, match=r"captioned=0\.5, but not one image"):
        build(folder, captioned=0.5)


def test_the_old_word_for_the_same_image_is_read_for_one_release(prepared: Make):
    with pytest.warns(DeprecationWarning, match="same-picture is now same-image"):
        assert build(prepared(4), reference="same-picture").reference == "same-image"
    with pytest.raises(ValueError, match="must be 'same-image' or 'same-identity'"):
        build(prepared(4, name="other"), reference="other")
