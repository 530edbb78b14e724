from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from promptnet.inference.sampling.guidance import (
    ClassifierFreeGuidance,
    Condition,
    GuidanceRescale,
    References,
    Refinement,
)
from promptnet.inference.sampling.loop import Rule, UNetInputs, predict_output
from promptnet.inference.sampling.phases import Role
from promptnet.inference.sampling.schedule import Step

STEP = Step(0, 1, torch.tensor(500), 0.5, 0.9)
ALL = torch.tensor([0, 1, 2])


class Echo(nn.Module):
    """Predicts the condition: its output is the first state of each row, so sums can be read off."""

    num_rows = 0

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.num_rows += len(x)
        return (encoder_hidden_states[:, :1, :1, None].expand_as(x),)


def condition(*values: float, rows: Tensor | None = None) -> Condition:
    """One value for each row."""
    return Condition(lambda x, step: UNetInputs(torch.tensor(values)[:, None, None].double()), rows)


def predicted(*rules: Rule, num_rows: int = 3) -> tuple[Any, int]:
    unet = Echo()
    output = predict_output(unet, torch.zeros(num_rows, 1, 1, 1, dtype=torch.float64), STEP, rules)
    return output.flatten().tolist(), unet.num_rows


def test_classifier_free_guidance():
    rule = ClassifierFreeGuidance(condition(1, 2, 3), condition(10, 20, 40), scale=7.5)
    assert predicted(rule) == ([1 + 7.5 * 9, 2 + 7.5 * 18, 3 + 7.5 * 37], 6)


def test_guidance_of_scale_one_leaves_the_unconditional_prediction_out():
    rule = ClassifierFreeGuidance(condition(1, 2, 3), condition(10, 20, 40), scale=1)
    assert predicted(rule) == ([10, 20, 40], 3)


def at(index: int, num_steps: int) -> Step:
    return replace(STEP, index=index, num_steps=num_steps)


@pytest.mark.parametrize(("index", "guided"), [(0, False), (1, True), (2, True), (3, False), (4, False)])
def test_outside_the_interval_only_the_prompt_is_evaluated(index: int, guided: bool):
    rule = ClassifierFreeGuidance(condition(1, 2, 3), condition(10, 20, 40), 7.5, interval=(0.2, 0.6))
    unet = Echo()
    output = predict_output(unet, torch.zeros(3, 1, 1, 1).double(), at(index, 5), [rule]).flatten().tolist()
    assert (output, unet.num_rows) == (([68.5, 137.0, 280.5], 6) if guided else ([10, 20, 40], 3))


def test_outside_the_interval_a_refinement_is_the_mean_of_its_conditions():
    subjects = [condition(10, 20, 30, rows=ALL), condition(14, 24, 34, rows=ALL)]
    rule = refinement([[0.5, 0.5]] * 3, subjects, subject_scale=3.0, class_scale=1.0, interval=(0.0, 0.5))
    unet = Echo()
    output = predict_output(unet, torch.zeros(3, 1, 1, 1).double(), at(1, 2), [rule]).flatten().tolist()
    assert output == pytest.approx([(1.5 * a + 1.5 * (a + 4) + 100 * k) / 4 for k, a in ((1, 10), (2, 20), (3, 30))])
    assert unet.num_rows == 9  # two references and the class word, without the empty prompt


@pytest.mark.parametrize("scales", [(0.0, 0.0), (-1.0, 0.5)])
def test_weights_that_sum_to_nothing_stay_outside_the_interval(scales: tuple[float, float]):
    rules = [
        refinement([[1.0]] * 3, [condition(10, 20, 30, rows=ALL)], subject_scale=s, class_scale=c, interval=interval)
        for s, c in [scales]
        for interval in ((0.0, 1.0), (0.0, 0.5))
    ]
    found = [predict_output(Echo(), torch.zeros(3, 1, 1, 1).double(), at(1, 2), [rule]) for rule in rules]
    assert torch.equal(*found)


def refinement(weights: list[list[float]], subjects: list[Condition], **scales: Any) -> Refinement:
    return Refinement(
        condition(1, 2, 3, rows=ALL),
        References(ALL, subjects, torch.tensor(weights, dtype=torch.float64)),
        condition(100, 200, 300, rows=ALL),
        **{"subject_scale": 5.0, "class_scale": 0.0, **scales},
    )


def test_refinement_has_three_terms():
    rule = refinement([[1.0]] * 3, [condition(10, 20, 30, rows=ALL)], class_scale=2.0)
    assert predicted(rule) == ([1 + 5 * 9 + 2 * 99, 2 + 5 * 18 + 2 * 198, 3 + 5 * 27 + 2 * 297], 9)


def test_refinement_without_class_scale_has_two():
    rule = refinement([[1.0]] * 3, [condition(10, 20, 30, rows=ALL)])
    assert predicted(rule) == ([1 + 5 * 9, 2 + 5 * 18, 3 + 5 * 27], 6)


def test_refinement_adds_each_reference_image_with_its_weight():
    """Row 0 has both images, row 1 the first alone, row 2 both with other weights."""
    subjects = [condition(10, 20, 30, rows=ALL), condition(-4, -6, rows=torch.tensor([0, 2]))]
    rule = refinement([[0.5, 0.5], [1.0, 0.0], [0.2, 0.6]], subjects, subject_scale=2.0, class_scale=1.0)
    expected = [
        1 + (10 - 1) + (-4 - 1) + (100 - 1),
        2 + 2 * (20 - 2) + (200 - 2),
        3 + 0.4 * (30 - 3) + 1.2 * (-6 - 3) + (300 - 3),
    ]
    found, num_rows = predicted(rule)
    assert found == pytest.approx(expected)
    assert num_rows == 3 + 3 + 2 + 3


def test_as_published_each_reference_image_pulls_by_the_whole_scale():
    """Weights 5 and 5 of two images, and 5 of one: e_u + sum_k w_k (e_s,k - e_u)."""
    subjects = [condition(10, 20, 30, rows=ALL), condition(-4, -6, rows=torch.tensor([0, 2]))]
    weights = [[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]
    rule = replace(refinement(weights, subjects), each=True)
    expected = [1 + 5 * (10 - 1) + 5 * (-4 - 1), 2 + 5 * (20 - 2), 3 + 2.5 * (30 - 3) + 7.5 * (-6 - 3)]
    assert predicted(rule)[0] == pytest.approx(expected)


def test_rows_with_and_without_a_subject_in_one_batch():
    rows = torch.tensor([2, 0])
    with_subject = Refinement(
        condition(3, 1, rows=rows),
        References(rows, [condition(30, 10, rows=rows)], torch.ones(2, 1, dtype=torch.float64)),
        condition(0, 0, rows=rows),
        subject_scale=5.0,
        class_scale=0.0,
    )
    one = torch.tensor([1])
    without = ClassifierFreeGuidance(condition(2, rows=one), condition(20, rows=one), scale=4.0)
    assert predicted(with_subject, without) == ([1 + 5 * 9, 2 + 4 * 18, 3 + 5 * 27], 6)


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.0])
def test_guidance_rescale(factor: float):
    """With factor 1 each row has its conditional prediction's standard deviation; with 0 nothing changes."""
    torch.manual_seed(0)
    prompt, subject, total = torch.randn(3, 3, 4, 8, 8, dtype=torch.float64)
    prompt, subject = prompt.clone(), 3 * subject
    prompt[2], subject[:2] = 0, 0
    rescaled = GuidanceRescale(factor).combine({Role.PROMPT: prompt, Role.subject(0): subject}, 5 * total, STEP)
    positive = prompt + subject
    for row in range(3):
        target = factor * positive[row].std() + (1 - factor) * (5 * total[row]).std()
        torch.testing.assert_close(rescaled[row], total[row] / total[row].std() * target)


@pytest.mark.parametrize("factor", [0.3, 1.0])
def test_rescaling_changes_nothing_where_no_conditional_prediction_is_made(factor: float):
    """Row 19b of the faults: with a scale of 0 the prompt is not evaluated, and the sum is no guidance to tame."""
    rescale = GuidanceRescale(factor)
    noise = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    every, outer, middle = condition(0, 0, 0, rows=ALL), condition(0, 0, rows=ALL[::2]), condition(0, rows=ALL[1:2])
    mixed = [ClassifierFreeGuidance(outer, outer, 0.0), ClassifierFreeGuidance(middle, middle, 3.0)]
    for rules in (
        [ClassifierFreeGuidance(every, every, 0.0)],
        [Refinement(every, References(ALL, [every], noise.new_ones(3, 1)), None, 0.0, 0.0)],
        mixed,  # both predictions of the middle row are the same
    ):
        torch.testing.assert_close(predict_output(Copy(), noise, STEP, [*rules, rescale]), noise)


class Copy(nn.Module):
    """Predicts its input."""

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (x,)
