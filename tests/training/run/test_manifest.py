"""A sealed folder verifies; one that is cut, changed or lacks a file anywhere does not, and says where."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptnet.training.run.manifest import MANIFEST, DamagedError, read_manifest, seal, verify

FILES = {"state.ckpt": b"weights and moments" * 9, "shards/rank-1.distcp": b"\x00\x01" * 50}


def sealed(folder: Path, *, number: int = 1, name: str = "step=5.ckpt") -> Path:
    draft = folder / f".{name}.draft"
    for file, content in FILES.items():
        (draft / file).parent.mkdir(parents=True, exist_ok=True)
        (draft / file).write_bytes(content)
    seal(draft, folder / name, number=number, step=5)
    return folder / name


def test_sealing_names_the_draft_and_lists_its_files(tmp_path: Path):
    final = sealed(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step=5.ckpt"]
    manifest = verify(final)
    assert (manifest.number, manifest.step, manifest.num_bytes) == (1, 5, sum(map(len, FILES.values())))
    assert set(manifest.files) == set(FILES)


def test_sealing_over_a_name_replaces_it(tmp_path: Path):
    sealed(tmp_path, number=1)
    assert verify(sealed(tmp_path, number=2)).number == 2
    assert len(list(tmp_path.iterdir())) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    final = sealed(tmp_path_factory.mktemp("flip"))
    path = final / data.draw(st.sampled_from([*FILES, MANIFEST]))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        changed = verify(final)
    except DamagedError:
        return
    # JSON knows several spellings: white space in the manifest may change without changing what it says.
    assert path.name == MANIFEST
    assert changed == read_manifest(sealed(tmp_path_factory.mktemp("same")))


@pytest.mark.parametrize("file", list(FILES))
def test_a_cut_or_missing_file_is_named(file: str, tmp_path: Path):
    path = sealed(tmp_path) / file
    path.write_bytes(FILES[file][:-1])
    with pytest.raises(DamagedError, match=rf"{file} has \d+ bytes where {len(FILES[file])} were written"):
        verify(tmp_path / "step=5.ckpt")
    path.unlink()
    with pytest.raises(DamagedError, match=f"{file} is missing"):
        verify(tmp_path / "step=5.ckpt")


def test_the_number_cannot_be_changed_unnoticed(tmp_path: Path):
    path = sealed(tmp_path) / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "number": 99}))
    with pytest.raises(DamagedError, match="not what was written"):
        read_manifest(path.parent)


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path: Path):
    with pytest.raises(DamagedError, match=r"has no manifest\.json"):
        verify(tmp_path)
