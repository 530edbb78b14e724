"""`--crop-face` on a photograph, and `--dtype` on the CPU, with the embedded model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptnet import cli
from promptnet.commands import _loading
from promptnet.commands._faces import face_square
from promptnet.commands._loading import computing_type
from tests.datasets.image_sets import photograph as of_scikit_image


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A woman of whom the face is a tenth of the width, above and left of the middle."""
    path = tmp_path_factory.mktemp("photographs") / "astronaut.png"
    of_scikit_image("astronaut.png").save(path)
    return path


def test_the_square_is_around_the_face(photograph: Path) -> None:
    """Found again in the photograph, its middle is the face's."""
    found = np.asarray(face_square(photograph).convert("L"), np.float32)
    assert found.shape[0] == found.shape[1] < 400
    whole = np.asarray(Image.open(photograph).convert("L"), np.float32)
    side = found.shape[0]
    distances = {
        (top, left): np.abs(whole[top : top + side, left : left + side] - found).mean()
        for top in range(0, 513 - side, 8)
        for left in range(0, 513 - side, 8)
    }
    top, left = min(distances, key=lambda place: distances[place])
    assert abs(left + side / 2 - 224) < 16
    assert abs(top + side / 2 - 117) < 30


def test_an_image_without_a_face_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "grey").save(tmp_path / "wall.png")
    with pytest.raises(ValueError, match=r"wall\.png' shows no face"):
        face_square(tmp_path / "wall.png")


def test_a_cpu_without_half_instructions_computes_in_float32_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_loading, "has_half_instructions", lambda dtype: dtype == "float16")
    assert computing_type("bfloat16", "cpu") == "float32"
    assert "no instructions for bfloat16" in capsys.readouterr().err
    given = [("float16", "cpu"), ("bfloat16", "cuda:0"), ("float32", "cpu")]
    assert [computing_type(*each) for each in given] == ["float16", "bfloat16", "float32"]
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_types_of_lower_precision_generate_nearly_the_same(
    photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_loading, "has_half_instructions", lambda _: True)
    subject = str(tmp_path / "me.safetensors")
    made = ["customize", "--image", str(photograph), "--crop-face", "--steps", "0", "--no-preview", "--out", subject]
    assert cli.main([*made, "--device", "cpu"]) == 0
    images = {}
    for dtype in ("float32", "float16", "bfloat16"):
        out = tmp_path / f"{dtype}.png"
        words = ["generate", "--subject", subject, "--prompt", "a sad portrait of S*", "--steps", "3", "--dtype", dtype]
        assert cli.main([*words, "--out", str(out), "--device", "cpu"]) == 0
        images[dtype] = np.asarray(Image.open(out).convert("RGB"), np.float32)
    assert np.abs(images["float16"] - images["float32"]).mean() < 2
    assert np.abs(images["bfloat16"] - images["float32"]).mean() < 15
