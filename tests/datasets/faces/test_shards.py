"""Parquet shards as rows by number."""

import json
import multiprocessing
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptnet.datasets.faces import shards
from promptnet.datasets.faces.shards import ShardStore, find_shards, open_row_image
from tests.datasets.conftest import count_copies, png, write_shard

Make = Callable[..., Path]


def test_rows_come_back_from_every_shard(prepared: Make, tmp_path: Path):
    store = ShardStore(prepared(5, 70, 3), tmp_path / "copies")
    assert len(store) == 78
    assert [store.locate(row) for row in (0, 4, 5, 74, 75, 77)] == [(0, 0), (0, 4), (1, 0), (1, 69), (2, 0), (2, 2)]
    for row in (0, 4, 5, 74, 75, 77):
        found = store.row(row, ["image", "identity", "width_px", "missing"])
        assert found["image"]["bytes"] == png(row)
        assert found["identity"] == f"person {row % 4}"
        assert (found["width_px"], found["missing"]) == (40, None)
    assert store.column("identity") == [f"person {row % 4}" for row in range(78)]
    assert open_row_image(store.row(6, ["image"])["image"]).size == (40, 40)
    with pytest.raises(IndexError):
        store.locate(78)


def test_images_as_plain_bytes_do_as_well(tmp_path: Path):
    pq.write_table(pa.table({"image": [png(3)]}), tmp_path / "a.parquet")
    assert open_row_image(ShardStore(tmp_path, tmp_path / "c").row(0, ["image"])["image"]).size == (40, 40)


def test_a_bounded_store_keeps_few_copies_and_still_finds_every_row(prepared: Make, tmp_path: Path):
    store = ShardStore(prepared(2, 2, 2, 2), tmp_path / "copies", max_shards=2)
    for row in (0, 2, 4, 6, 0, 7, 1):
        assert store.row(row, ["image"])["image"]["bytes"] == png(row)
        assert len(list((tmp_path / "copies").glob("*.arrow"))) <= 2
    store.prefetch(2)
    assert store.row(5, ["image"])["image"]["bytes"] == png(5)


def test_what_is_in_a_shard_is_learnt_once_however_few_copies_are_kept(
    prepared: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fetched = count_copies(monkeypatch)
    whole = ShardStore(prepared(2, 3, 2), tmp_path / "whole")
    expected = [whole.content(shard) for shard in range(3)]
    first = ShardStore(whole.source, tmp_path / "few", max_shards=1)
    waiting = ShardStore(whole.source, tmp_path / "few", max_shards=1)
    assert [first.content(shard) for shard in range(3)] == expected
    assert len(fetched) == 6
    again = ShardStore(whole.source, tmp_path / "few", max_shards=1)
    for store in (first, waiting, again, pickle.loads(pickle.dumps(again))):
        assert [store.content(shard) for shard in range(3)] == expected
    assert len(fetched) == 6
    assert again.row(0, ["caption"]) == {"caption": "a hat number 0"}
    assert len(fetched) == 7


def test_a_changed_shard_is_copied_again(prepared: Make, tmp_path: Path):
    folder = prepared(3)
    before = ShardStore(folder, tmp_path / "copies")
    content = before.content(0)
    write_shard(folder / "data-00000.parquet", range(50, 53))
    after = ShardStore(folder, tmp_path / "copies")
    assert after.row(0, ["image"])["image"]["bytes"] == png(50)
    assert after.content(0) != content


def test_the_content_hash_tells_images_apart_and_nothing_else(tmp_path: Path):
    write_shard(tmp_path / "a/1.parquet", range(3))
    write_shard(tmp_path / "b/other.parquet", range(3), people=1)
    write_shard(tmp_path / "c/1.parquet", range(1, 4))
    same, renamed, other = (ShardStore(tmp_path / name, tmp_path / f"{name}-copies").content(0) for name in "abc")
    assert same == renamed != other


def _read_all(store: ShardStore) -> list[bytes]:
    return [store.row(row, ["image"])["image"]["bytes"] for row in range(len(store))]


def test_processes_share_the_copies(prepared: Make, tmp_path: Path):
    store = ShardStore(prepared(3, 3), tmp_path / "copies", max_shards=1)
    store.row(0, ["image"])
    assert pickle.loads(pickle.dumps(store)).row(4, ["image"])["image"]["bytes"] == png(4)  # maps stay behind
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(_read_all, [store] * 4).get(timeout=60)
    assert found == [[png(row) for row in range(6)]] * 4


def test_a_broken_image_is_named_at_the_start(tmp_path: Path):
    images = [png(0), png(1)[:90], png(2)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row 1 of .*a\.parquet"):
        ShardStore(tmp_path, tmp_path / "c").table(0)
    assert not list((tmp_path / "c").glob("*.arrow"))
    assert not list((tmp_path / "c").glob(".*.draft"))


def test_what_is_no_prepared_set_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="promptnet prepare"):
        find_shards(tmp_path)
    pq.write_table(pa.table({"label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'image'"):
        ShardStore(tmp_path, tmp_path / "c").table(0)
    with pytest.raises(ValueError, match="max_shards=0"):
        ShardStore(tmp_path, tmp_path / "c", max_shards=0)


def test_drafts_of_shards_are_not_read(prepared: Make):
    folder = prepared(2)
    write_shard(folder / ".part/data-00001.parquet", range(3))
    assert [shard.num_rows for shard in find_shards(folder)] == [2]


def test_a_process_forked_while_a_shard_is_on_its_way_can_read_it(
    prepared: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It would share the shard's lock, and wait for a thread that it does not have."""
    store = ShardStore(prepared(3, 3), tmp_path / "copies")
    copied = shards.write_copy

    def slowly(*given: Any) -> str:
        time.sleep(0.5)
        return copied(*given)

    monkeypatch.setattr(shards, "write_copy", slowly)
    store.prefetch(1)
    process = multiprocessing.get_context("fork").Process(target=store.row, args=(4, ["image"]))
    process.start()
    process.join(20)
    assert process.exitcode == 0


# --- missing and damaged ------------------------------------------------------------------------------------------


@pytest.fixture
def finished(prepared: Make) -> Path:
    """A set as `promptnet prepare` leaves it, with its report."""
    folder = prepared(3, 3, name="finished/data").parent
    listed = [{"file": path.name, "num_bytes": path.stat().st_size} for path in sorted(folder.rglob("*.parquet"))]
    (folder / "report.json").write_text(json.dumps({"shards": listed}))
    return folder


@pytest.mark.parametrize("source", [".", "data"])
def test_a_missing_shard_is_named(source: str, finished: Path):
    assert len(find_shards(finished / source)) == 2
    shard = finished / "data/data-00001.parquet"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ValueError, match=r"data/data-00001\.parquet' is missing: copy the set again"):
        find_shards(finished / source)
    shard.write_bytes(content[:-7])
    with pytest.raises(ValueError, match=r"data-00001\.parquet' has [\d,]+ bytes where [\d,]+ were written"):
        find_shards(finished / source)


def test_a_set_that_is_not_finished_is_refused(finished: Path):
    (finished / ".preparing").mkdir()
    assert len(find_shards(finished)) == 2  # its report is written last
    (finished / "report.json").write_text('{"shards": [')
    with pytest.raises(ValueError, match=r"report\.json' is not what `promptnet prepare` writes"):
        find_shards(finished)
    (finished / "report.json").unlink()
    with pytest.raises(ValueError, match="is not finished: repeat the `promptnet prepare`"):
        find_shards(finished)


def test_a_gap_in_numbered_shards_is_named(tmp_path: Path):
    for number in (0, 2, 4):
        write_shard(tmp_path / f"train-{number:05d}-of-00005.parquet", range(2))
    with pytest.raises(ValueError, match=r"Of the 5 shards '.*train-\*.*' 2 are missing, the first is number 1"):
        find_shards(tmp_path)
    for number in (1, 3):
        write_shard(tmp_path / f"train-{number:05d}-of-00005.parquet", range(2))
    write_shard(tmp_path / "test-00000-of-00001.parquet", range(2))
    assert len(find_shards(tmp_path)) == 6


@pytest.mark.parametrize("how", ["empty", "cut", "no parquet", "middle"])
def test_a_damaged_shard_is_named(how: str, prepared: Make, tmp_path: Path):
    path = prepared(3, 80) / "data-00001.parquet"
    data = bytearray(path.read_bytes())
    if how == "middle":
        data[2000 : len(data) // 2] = b"\xaa" * (len(data) // 2 - 2000)
    path.write_bytes({"empty": b"", "cut": data[:-9], "no parquet": b"hello" * 99}.get(how, bytes(data)))
    with pytest.raises(ValueError, match=r"data-00001\.parquet"):
        ShardStore(path.parent, tmp_path / "copies").table(1)
    assert not list((tmp_path / "copies").glob("*.arrow"))


@pytest.mark.parametrize("keep", [0, 100, -9])
def test_a_damaged_copy_is_made_again(keep: int, prepared: Make, tmp_path: Path):
    folder = prepared(3, 4)
    content = ShardStore(folder, tmp_path / "copies").content(1)
    (copy,) = (path for path in (tmp_path / "copies").glob("*.arrow") if content in path.name)
    copy.write_bytes(copy.read_bytes()[:keep])
    store = ShardStore(folder, tmp_path / "copies")
    with pytest.warns(UserWarning, match=r"copy .* is damaged: .*data-00001\.parquet is copied again"):
        assert store.row(5, ["image"])["image"]["bytes"] == png(5)
    assert store.content(1) == content
