from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from promptnet.evaluation.harness.tasks import Person, make_people
from promptnet.evaluation.subjects.exact import ERRORS, FRACTIONS
from promptnet.evaluation.subjects.exact_results import summarise_exact
from promptnet.evaluation.subjects.report import TILE_PX, print_results, save_sheet
from promptnet.evaluation.subjects.results import summarise
from promptnet.evaluation.subjects.score import METRICS, MethodScores
from promptnet.images.contact_sheet import GAP_PX, TEXT_PX

SETTINGS = {"split": "test", "people": 2, "prompts": 4, "steps": 20, "world": "hair", "frame": "shift"}


def exact_figures(people: list[Person], error: float) -> dict[str, np.ndarray]:
    """Return figures of two people's images, all fields right, with one error everywhere."""
    measures = (*FRACTIONS, *ERRORS, "lightness_skin")
    return {name: np.full(2 * len(people), 1.0 if name in FRACTIONS else error) for name in measures}


@pytest.mark.parametrize("width", [100, 200])
def test_the_console_shows_methods_fields_checks_and_exact_measures(width: int):
    people = make_people("test", 2, 2)
    scores = {metric: np.array([0.25, 0.75]) for metric in METRICS}
    names = ("prompt-only", "plain-guidance", "plain-guidance-tuned", "best", "ceiling")
    methods = {name: MethodScores(scores, {"style": 0.5, "glasses": 0.125}) for name in names}
    errors = dict(zip(names, (40.0, 20.0, 10.0, 10.0, 0.0), strict=True))
    figures = {name: exact_figures(people, error) for name, error in errors.items()}
    exact = summarise_exact(figures, figures["ceiling"], people)
    console = Console(width=width, record=True)
    print_results(summarise(methods, SETTINGS, {}, exact), console)
    text = console.export_text()
    assert "2 test people, 4 prompts, 20 steps, world hair, frame shift" in text
    assert "yes no other method with our encoder is above best" in text
    assert "best minus plain-guidance: 0.000 (0.000, 0.000)" in text
    if width == 200:
        assert "0.500 (0.250, 0.750)" in text
        assert "20.00 (0.50)" in text, "half of the way from prompt-only to the truth"
        assert "-10.00 (-10.00, -10.00)" in text, "tuned minus untuned"
        assert "1 people" in text or "2 people" in text


def colored(color: str) -> Image.Image:
    return Image.new("RGB", (32, 32), color)


def test_a_line_of_the_sheet_is_reference_methods_and_truth(tmp_path: Path):
    people = make_people("test", 3, 2)
    columns = {"plain-guidance": [[colored("red"), colored("darkred")]] * 3, "best": [[colored("blue")] * 2] * 3}
    truths = [[colored("lime"), colored("green")]] * 3
    save_sheet(tmp_path / "sheet.png", people, [colored("gold")] * 3, columns, truths, max_lines=2)
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    pitch, height, top = TILE_PX + GAP_PX, TILE_PX + TEXT_PX + GAP_PX, 2 * TEXT_PX + GAP_PX
    assert sheet.size == (4 * pitch + GAP_PX, top + 2 * height)
    centre = (GAP_PX + TILE_PX // 2, top + TEXT_PX + TILE_PX // 2)

    def line(index: int) -> list:
        return [sheet.getpixel((centre[0] + column * pitch, centre[1] + index * height)) for column in range(4)]

    # The second line shows the second prompt.
    assert line(0) == [(255, 215, 0), (255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert line(1) == [(255, 215, 0), (139, 0, 0), (0, 0, 255), (0, 128, 0)]
