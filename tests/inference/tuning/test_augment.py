import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptnet.inference.tuning.views import View, latent_mask, place, sample_views


def image(side_px: int = 32) -> torch.Tensor:
    return torch.rand(3, side_px, side_px, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_whole_canvas_is_the_image():
    canvas, mask = place(image(), View(32))
    torch.testing.assert_close(canvas, image())
    assert mask.shape == (1, 32, 32)
    assert mask.all()


def test_a_flip_mirrors():
    torch.testing.assert_close(place(image(), View(32, flipped=True))[0], image().flip(-1))


def test_a_shift_moves_the_image_and_repeats_its_border():
    canvas, mask = place(image(), View(32, top_px=5, left_px=-3))
    torch.testing.assert_close(canvas[:, 5:, :29], image()[:, :27, 3:])
    torch.testing.assert_close(canvas[:, :5, :29], image()[:, :1, 3:].expand(3, 5, 29))
    assert mask[:, 5:, :29].all()
    assert not mask[:, :5].any()
    assert not mask[:, :, 29:].any()


def test_a_smaller_image_keeps_its_mean_and_its_mask():
    canvas, mask = place(image(), View(16, top_px=4, left_px=8))
    assert mask.sum() == 16 * 16
    inside = canvas[mask.expand(3, -1, -1).bool()]
    torch.testing.assert_close(inside.mean(), image().mean(), atol=0.02, rtol=0)


@given(
    seed=st.integers(0, 10_000),
    low=st.floats(0.25, 1.5),
    width=st.floats(0, 1),
)
def test_sampled_views_have_the_asked_scale_and_waste_no_canvas(seed, low, width):
    high = min(low + width, 4.0)
    views = sample_views(5, 64, scales=(low, high), generator=torch.Generator().manual_seed(seed))
    for view in views:
        assert round(low * 64) <= view.size_px <= round(high * 64)
        for start in (view.top_px, view.left_px):
            assert min(0, 64 - view.size_px) <= start <= max(0, 64 - view.size_px)
        covered = place(torch.zeros(3, 64, 64), view)[1].sum()
        assert covered == min(view.size_px, 64) ** 2


def test_views_come_from_the_generator_alone():
    first, again, other = (
        sample_views(8, 64, flip=True, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert {view.flipped for view in first} == {True, False}
    assert not any(view.flipped for view in sample_views(32, 64))


@pytest.mark.parametrize("scales", [(0.1, 1), (1.2, 0.8), (1, 5), (float("nan"), 1)])
def test_impossible_scales_are_refused(scales):
    with pytest.raises(ValueError, match="augmentation scales"):
        sample_views(1, 64, scales=scales)


def test_a_latent_cell_counts_only_when_wholly_covered():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3:12, 4:16] = 1
    expected = torch.zeros(1, 1, 4, 4)
    expected[..., 1:3, 1:4] = 1
    assert torch.equal(latent_mask(mask, 4), expected)
