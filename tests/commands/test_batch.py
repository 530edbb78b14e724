"""`promptnet batch`: what is checked before anything is loaded, resuming, and one bad row among good ones."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promptnet import cli
from promptnet.commands.batch import read_rows

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "promptnet" / "serve" / "web" / "example.png"


def table(folder: Path, **columns: Any) -> Path:
    """A table of two people in a folder with their images."""
    for name in ("a.png", "b.png"):
        Image.open(EXAMPLE).convert("RGB").save(folder / name)
    given = {"image": ["a.png", "b.png"], "class_word": ["person"] * 2, "out": ["a.safetensors", "sub/b.safetensors"]}
    given = {name: value for name, value in {**given, **columns}.items() if value is not None}
    pq.write_table(pa.table(given), folder / "table.parquet")
    return folder / "table.parquet"


def test_paths_are_relative_to_the_table(tmp_path: Path) -> None:
    rows = read_rows(table(tmp_path))
    assert rows[1] == {
        "image": str(tmp_path / "b.png"),
        "class_word": "person",
        "out": str(tmp_path / "sub" / "b.safetensors"),
    }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"out": None}, "has no column 'out'"),
        ({"image": ["a.png", "nobody.png"]}, "row 1: image '.*nobody.png' does not exist"),
        ({"out": ["a.safetensors", "b.pt"]}, "row 1: out '.*b.pt' must end in .safetensors"),
        ({"out": ["a.safetensors", "./a.safetensors"]}, "two rows write"),
        ({"class_word": ["person", "S*"]}, "S\\*"),
    ],
)
def test_tables_are_checked_first(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_rows(table(tmp_path, **columns))


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no Parquet file"):
        read_rows(EXAMPLE)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_rows(tmp_path / "none.parquet")


def test_a_bad_row_does_not_end_the_others_and_a_repeat_makes_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from promptnet import PromptNetPipeline, Subject

    path = table(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no image")
    words = ["batch", "--subjects", str(path), "--steps", "0", "--device", "cpu"]
    assert cli.main(words) == 2
    assert "1 subjects made, 1 failed" in capsys.readouterr().out
    Image.open(EXAMPLE).convert("RGB").save(tmp_path / "a.png")
    assert cli.main(words) == 0
    assert "1 subjects made, 0 failed" in capsys.readouterr().out
    assert cli.main(words) == 0
    assert "nothing to do" in capsys.readouterr().out
    made = [Subject.load(tmp_path / name) for name in ("a.safetensors", "sub/b.safetensors")]
    alone = PromptNetPipeline.from_pretrained(ROOT / "checkpoints/tiny").encode([tmp_path / "b.png"])
    assert made[0].content_hash == made[1].content_hash == alone.content_hash
