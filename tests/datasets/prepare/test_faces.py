"""`promptnet prepare` with the detector, on photographs composed of those that scikit-image ships; its command line."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promptnet import cli
from promptnet.commands.prepare import prepare
from promptnet.datasets.prepare.image import Detect, rows_of
from promptnet.datasets.prepare.options import PrepareOptions
from promptnet.datasets.prepare.report import FEATURES
from promptnet.datasets.prepare.run import prepare_images
from promptnet.datasets.prepare.sources import base as sources
from promptnet.datasets.prepare.sources.base import Raw, Refused
from promptnet.images import load as opening
from promptnet.images.face_alignment import eye_angle_deg
from promptnet.images.face_detection import DetectionError, Face, FaceDetector
from promptnet.images.load import open_image
from tests.datasets.image_sets import STORED, Photograph, build_photographs

SIZE_PX = 128


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Photograph]]:
    folder = tmp_path_factory.mktemp("photographs")
    return folder, build_photographs(folder)


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector(SIZE_PX // 8)


@pytest.fixture(scope="module")
def found(photographs: tuple[Path, dict[str, Photograph]], detector: FaceDetector) -> dict[str, list[Face]]:
    """Every photograph searched once, for all the tests."""
    folder, expected = photographs
    return {name: detector.detect(open_image(folder / name)) for name in expected}


def reason_or_rows(path: Path, options: PrepareOptions, faces: list[Face]) -> tuple[str, int]:
    try:
        return "", len(rows_of(Raw(path, "somebody"), path.name, options, lambda _: faces))
    except Refused as refusal:
        return refusal.reason, 0


@pytest.mark.parametrize("faces", ["largest", "exactly-one", "all"])
def test_each_photograph_lands_in_the_right_class(
    faces: Any, photographs: tuple[Path, dict[str, Photograph]], found: dict[str, list[Face]]
) -> None:
    folder, expected = photographs
    options = PrepareOptions(faces=faces, size_px=SIZE_PX)
    outcome = {name: reason_or_rows(folder / name, options, found[name]) for name in expected}
    reasons = {name: what.one if faces == "exactly-one" else what.largest for name, what in expected.items()}
    assert {name: reason for name, (reason, _) in outcome.items()} == reasons
    if faces == "all":
        assert {name: number for name, (_, number) in outcome.items()} == {
            name: what.num_faces for name, what in expected.items()
        }


def test_the_set_holds_what_it_should(photographs: tuple[Path, dict[str, Photograph]]) -> None:
    classes = {what.largest for what in photographs[1].values()} | {what.one for what in photographs[1].values()}
    assert classes == {"", "no face", "several faces", "face too small", "cut off"}


def test_prepared_faces_are_upright_in_the_middle(
    photographs: tuple[Path, dict[str, Photograph]], detector: FaceDetector, tmp_path: Path
) -> None:
    """The whole way through files; what came out is searched again."""
    folder, expected = photographs
    chosen = {name: what for name, what in expected.items() if name.startswith(("turned", "held", "none-cat"))}
    (tmp_path / "in/anna").mkdir(parents=True)
    for name in chosen:
        (tmp_path / "in/anna" / name).write_bytes((folder / name).read_bytes())
    report = prepare_images([str(tmp_path / "in")], tmp_path / "out", PrepareOptions(size_px=SIZE_PX)).report
    assert report["rejections"][0]["source"] == "anna/none-cat.png"
    rows = [
        row for path in sorted((tmp_path / "out/data").iterdir()) for row in pq.ParquetFile(path).read().to_pylist()
    ]
    assert len(rows) == report["accepted"] == len(chosen) - 1
    for row in rows:
        (tmp_path / "face.png").write_bytes(row["image"]["bytes"])
        (again,) = detector.detect(open_image(tmp_path / "face.png"))
        assert abs(eye_angle_deg(again)) < 6, row["source"]
        middle = [(again.box[0] + again.box[2]) / 2, (again.box[1] + again.box[3]) / 2]
        assert np.abs(np.array(middle) - SIZE_PX / 2).max() < SIZE_PX / 12, row["source"]
        assert row["identity"] == "anna"
        assert len(row["landmarks"]) == 5
        assert row["score"] > 0.95
        what = expected[Path(row["source"]).name]
        if what.turn_deg is not None:
            assert row["crop"][3] == pytest.approx(what.turn_deg + 2.7, abs=6)


def test_all_eight_orientations_give_the_same_face(found: dict[str, list[Face]]) -> None:
    boxes = np.array([found[f"held-{orientation}.jpg"][0].box for orientation in STORED])
    assert np.abs(boxes - boxes[0]).max() < 4


# --- one image, with a detector that says what it is told -------------------------------------------------------


def face(left: float = 20, top: float = 20, side: float = 40, score: float = 1.0) -> Face:
    middle, eyes = left + side / 2, top + side / 3
    points = (
        (middle - 8, eyes),
        (middle + 8, eyes),
        (middle, eyes + 9),
        (middle - 6, eyes + 18),
        (middle + 6, eyes + 18),
    )
    return Face((left, top, left + side, top + side), points, score)


def shows(*faces: Face) -> Detect:
    return lambda _: list(faces)


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 240, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return Raw((tmp_path / "a.png").read_bytes(), "anna", "at the sea")


REFUSED: dict[str, tuple[Detect, dict[str, Any], str]] = {
    "no face": (shows(), {}, "shows no face that the detector is sure of$"),
    "not sure": (shows(face(score=0.8)), {}, "the best guess scores 0.80"),
    "small": (shows(face(side=12)), {}, "a face of 12 px: at least 16 px"),
    "two": (shows(face(), face(120)), {"faces": "exactly-one"}, "2 faces, and exactly one"),
    "blurred": (shows(face()), {"min_sharpness": 1e9}, "has a sharpness of .* at least 1000000000"),
    "cut off": (shows(face(-30, -30)), {}, "0.14 of its square in the image: at least 0.5"),
}


@pytest.mark.parametrize(("detect", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_thresholds(detect: Detect, options: dict[str, Any], said: str, raw: Raw) -> None:
    with pytest.raises(Refused, match=said):
        rows_of(raw, "a.png", PrepareOptions(size_px=64, **options), detect)


def test_faces_that_do_not_count_do_not_make_several(raw: Raw) -> None:
    detect = shows(face(), face(120, side=10), face(150, score=0.5))
    assert len(rows_of(raw, "a.png", PrepareOptions(size_px=64, faces="exactly-one"), detect)) == 1


def test_of_several_faces_nobody_knows_whose_name_it_is(raw: Raw) -> None:
    detect = shows(face(), face(120))
    one = rows_of(raw, "a.png", PrepareOptions(size_px=64), detect)
    assert [row["identity"] for row in one] == ["anna"]
    both = rows_of(raw, "a.png", PrepareOptions(size_px=64, faces="all"), detect)
    assert [row["identity"] for row in both] == [None, None]
    assert [row["caption"] for row in both] == ["at the sea"] * 2
    assert len({row["pixel_hash"] for row in both}) == 1


def test_a_detector_that_fails_costs_one_image(raw: Raw) -> None:
    def fail(_image: Image.Image) -> list[Face]:
        raise DetectionError("odd shape")

    with pytest.raises(Refused, match="odd shape") as caught:
        rows_of(raw, "a.png", PrepareOptions(), fail)
    assert caught.value.reason == "detector failed"


@pytest.mark.parametrize(("keep_aspect", "size"), [(False, (50, 50)), (True, (60, 50))])
def test_without_a_detector(keep_aspect: bool, size: tuple[int, int], raw: Raw, tmp_path: Path) -> None:
    options = PrepareOptions(detector="none", size_px=50, keep_aspect=keep_aspect, encoding="jpeg")
    (row,) = rows_of(raw, "a.png", options, None)
    (tmp_path / "out.jpg").write_bytes(row["image"]["bytes"])
    with Image.open(tmp_path / "out.jpg") as image:
        assert (image.format, image.size) == ("JPEG", size)
    assert row["box"] == ([0, 0, 240, 200] if keep_aspect else [20, 0, 220, 200])
    with pytest.raises(Refused, match="at least 201 px a side"):
        rows_of(raw, "a.png", PrepareOptions(detector="none", min_face_px=201), None)


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_says_what_the_library_does() -> None:
    """One default, said twice."""
    shared = {name: parameter.default for name, parameter in inspect.signature(prepare).parameters.items()}
    options = PrepareOptions()
    for name, value in options.record().items():
        name = {"size_px": "size", "max_pixels": "max_megapixels"}.get(name, name)
        assert shared[name] == (value / 1e6 if name == "max_megapixels" else value), name


def test_the_command(tmp_path: Path, raw: Raw, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in/secret name").mkdir(parents=True)
    assert isinstance(raw.content, bytes)
    (tmp_path / "in/secret name/a.png").write_bytes(raw.content)
    (tmp_path / "in/secret name/b.png").write_bytes(b"")
    words = ["prepare", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--detector", "none"]
    words += ["--size", "64", "--workers", "1", "--max-megapixels", "0.5", "--identity", "parent"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "rejected: empty" in said.out
    assert "secret name" not in said.out + said.err
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["accepted"], report["identities"]) == (1, 1)
    assert report["plan"]["options"]["max_pixels"] == 500_000
    assert cli.main(words) == 0
    assert "was finished already" in capsys.readouterr().out
    assert cli.main([*words, "--margin", "9"]) == 2
    assert "margin=9.0 must be within 0 ... 3" in capsys.readouterr().err


def test_the_page_lists_every_reason() -> None:
    page = (Path(__file__).parents[3] / "docs/prepare.md").read_text("utf-8")
    table = page.partition("## What is rejected")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z ]+)` \|", table, re.M) == [*opening.REASONS, *sources.REASONS]


def test_the_page_lists_every_column() -> None:
    page = (Path(__file__).parents[3] / "docs/prepare.md").read_text("utf-8")
    table = page.partition("Columns:")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.M)
    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == list(FEATURES)


def test_nothing_accepted_is_an_error_with_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"")
    words = ["prepare", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--detector", "none"]
    assert cli.main([*words, "--workers", "1"]) == 2
    assert "no image was accepted" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/report.json").read_text())["rejected"] == {"empty": 1}
