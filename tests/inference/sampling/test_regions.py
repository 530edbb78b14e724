"""Two people in one image: maps, the formula, and that nobody is mixed with anybody."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from promptnet.inference.sampling.conditions import SubjectPrompts, networks_of
from promptnet.inference.sampling.guidance import Condition, References, Refinement
from promptnet.inference.sampling.loop import UNetInputs, predict_output, weighted_sum
from promptnet.inference.sampling.phases import Role
from promptnet.inference.sampling.regions import region_maps, region_masks
from promptnet.inference.sampling.requests import make_requests
from promptnet.inference.sampling.schedule import Step

STEP = Step(0, 2, torch.tensor(500), 0.5, 0.7)


def draw(pipe: Any, prompt: str, subject: Any, seed: int = 0, **options: Any) -> torch.Tensor:
    options = {"subject_scale": 3.0, "class_scale": 1.0, "fusion_steps": 0, "num_inference_steps": 2, **options}
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, subject=subject, generator=generator, output_type="latent", **options).images


def test_halves_are_columns_from_left_to_right_and_boxes_are_averaged_over_cells():
    maps = region_maps(region_masks("halves", 2), 2, 4)
    assert torch.equal(maps, torch.tensor([[[1.0, 1, 0, 0]] * 2, [[0.0, 0, 1, 1]] * 2]))
    three = region_maps(region_masks("halves", 3), 1, 4)
    torch.testing.assert_close(three[1], torch.tensor([[0, 2 / 3, 2 / 3, 0]]), atol=0.01, rtol=0)
    boxed = region_maps(region_masks([(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5)], 2), 2, 2)
    assert torch.equal(boxed, torch.tensor([[[1, 0], [0.5, 0.5]], [[0, 1], [0.5, 0.5]]]))
    torch.testing.assert_close(three.sum(0), torch.ones(1, 4))


def test_masks_are_images_or_tensors_and_share_where_they_overlap():
    white, half = Image.new("L", (8, 8), 255), torch.ones(8, 8)
    half[:, 4:] = 0
    maps = region_maps(region_masks([white, half], 2), 1, 2)
    assert torch.equal(maps, torch.tensor([[[0.5, 1.0]], [[0.5, 0.0]]]))


@pytest.mark.parametrize(
    ("regions", "count", "message"),
    [
        ("halves", 1, "S1\\* and S2\\*"),
        ("thirds", 2, "must be 'halves'"),
        ([(0, 0, 1, 1)], 2, "need a region each"),
        ([(0, 0, 1, 2), (0, 0, 1, 1)], 2, "in fractions"),
        ([(0.5, 0, 0.5, 1), (0, 0, 1, 1)], 2, "no area"),
        ([torch.zeros(4, 4), (0, 0, 1, 1)], 2, "empty"),
        ([torch.full((4, 4), 2.0), (0, 0, 1, 1)], 2, "in \\[0, 1\\]"),
    ],
)
def test_what_is_no_region_is_refused(regions, count, message):
    with pytest.raises(ValueError, match=message):
        region_masks(regions, count)


def test_weights_may_differ_from_place_to_place():
    from promptnet.inference.sampling.loop import Term

    x = torch.zeros(2, 3, 2, 2)
    one, two = torch.randn(2, 3, 2, 2), torch.randn(1, 3, 2, 2)
    map_ = torch.tensor([[[[1.0, 2], [3, 4]]]])
    inputs: Any = None
    terms = [Term(Role.UNCOND, 0.5, inputs), Term(Role.subject(0), map_, inputs, rows=torch.tensor([1]))]
    total = weighted_sum(terms, [one, two], x)
    torch.testing.assert_close(total[0], 0.5 * one[0])
    torch.testing.assert_close(total[1], 0.5 * one[1] + map_[0] * two[0])


class Constants(torch.nn.Module):
    """A U-Net that says what its condition holds."""

    dtype = torch.float32

    def forward(self, x: Any, t: Any, encoder_hidden_states: Any, return_dict: bool = False) -> tuple[Any]:
        return (torch.ones_like(x) * encoder_hidden_states.mean(dim=(1, 2))[:, None, None, None],)


def constant(value: float) -> Condition:
    return Condition(lambda x, step: UNetInputs(torch.full((1, 1, 1), value)), torch.tensor([0]))


def test_refinement_with_maps_is_the_formula():
    left, right = region_maps(region_masks("halves", 2), 1, 2)
    conditions = [constant(10.0), constant(20.0)]
    maps = [2 * left[None, None], 2 * right[None, None]]
    references = References(
        torch.tensor([0]), conditions, torch.tensor([[0.5, 0.5]]), maps, num_regions=torch.tensor([2])
    )
    for each in (False, True):  # one image a person: the same
        rule = Refinement(constant(1.0), references, constant(5.0), 3.0, 2.0, each=each)
        found = predict_output(Constants(), torch.zeros(1, 1, 1, 2), STEP, [rule])
        expected = [1 + 3 * (10 - 1) + 2 * (5 - 1), 1 + 3 * (20 - 1) + 2 * (5 - 1)]
        torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float32))


def test_each_prediction_holds_one_person_and_that_ones_loras(pipe, make_subject):
    a, b = make_subject(pipe, seed=1, tuned=True), make_subject(pipe, seed=2, tuned=True, num_references=2)
    rows = make_requests("S1* and a happy S2*", [a, b], regions="halves")
    assert rows[0].prompt_of(a) == "S1* and a happy person"
    assert rows[0].prompt_of(b) == "a person and a happy S2*"
    prompts = SubjectPrompts(networks_of(pipe), rows, [0], latent_size=(8, 16))
    references = prompts.references()
    torch.testing.assert_close(references.weights, torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64))
    x = torch.randn(1, 4, 8, 16)
    given: list[Any] = [condition.inputs(x, STEP).loras for condition in references.conditions]
    loras = [rows.rows[0] for rows in given]
    assert [set(found) == set(s.unet_loras) for found, s in zip(loras, (a, b, b), strict=True)] == [True] * 3
    assert (
        loras[0]["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"]
        is a.unet_loras["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"]
    )
    maps: Any = references.maps
    total: Any = sum(w * m for w, m in zip(references.weights[0], maps, strict=True))
    torch.testing.assert_close(total, torch.ones(1, 1, 8, 16), check_dtype=False)
    torch.testing.assert_close(references.num_images, torch.tensor([[1.5]]))


def test_where_one_region_is_everything_the_image_is_that_persons(pipe, make_subject):
    a, b = make_subject(pipe, seed=1, tuned=True), make_subject(pipe, seed=2, tuned=True)
    sliver = torch.zeros(1024, 1024)
    whole = torch.ones(1024, 1024)
    sliver[0, 0] = 1e-6
    both = draw(pipe, "a photo of S1* and S2*", [a, b], regions=[whole, sliver])
    alone = draw(pipe, "a photo of S* and a person", a)
    torch.testing.assert_close(both, alone, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(both, draw(pipe, "a photo of S1* and S2*", [a, b]), atol=1e-2)


def test_they_follow_their_regions_not_the_order_of_the_words(pipe, make_subject):
    a, b = make_subject(pipe, seed=1, tuned=True), make_subject(pipe, seed=2, tuned=True)
    boxes = [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    one = draw(pipe, "S2* and S1*", [a, b], regions=boxes)
    torch.testing.assert_close(one, draw(pipe, "S1* and S2*", [b, a], regions=boxes[::-1]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one, draw(pipe, "S2* and S1*", [a, b], regions=boxes[::-1]), atol=1e-2)


@pytest.mark.parametrize("options", [{"fusion_steps": 1}, {"width": 32, "height": 16}, {"guidance_rescale": 0.5}])
def test_fusion_sizes_and_rescale_go_with_them_and_rows_are_their_own(pipe, make_subject, options):
    a, b = make_subject(pipe, seed=1, tuned=True), make_subject(pipe, seed=2)
    options = {"num_inference_steps": 2, "output_type": "latent", "regions": "halves", **options}
    prompts, subjects = ["S1* and S2*", "S2* and S1*"], [[a, b], [a, b]]
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    together = pipe(prompts, subject=subjects, generator=generators, **options).images
    alone = pipe("S2* and S1*", subject=[a, b], generator=torch.Generator().manual_seed(1), **options).images
    torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(together).all()


def test_what_does_not_go_together_is_said(pipe, make_subject):
    a = make_subject(pipe)
    with pytest.raises(ValueError, match="two regions"):
        draw(pipe, "S1* and S2*", [a, a], regions="halves")
    row = replace(make_requests("S1* and S2*", [a, make_subject(pipe, seed=2)], regions="halves")[0])
    with pytest.raises(ValueError, match="not supported here"):
        SubjectPrompts(networks_of(pipe), [row], [0])
