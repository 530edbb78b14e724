import pytest

from promptnet.inference.resolution.auto import (
    active_fraction,
    automatic_settings,
    depth_factor,
    in_proportion,
    redilation,
)
from promptnet.inference.resolution.layers import spatial_convolutions
from promptnet.inference.resolution.mode import check_settings


@pytest.mark.parametrize("size", [(64, 64), (72, 64), (56, 72)])
def test_near_the_trained_size_nothing_is_done(size) -> None:
    assert automatic_settings(3, (64, 64), size).is_plain


def test_smaller_images_scale_attention_alone() -> None:
    settings = automatic_settings(3, (64, 64), (32, 32), 20)
    assert settings.attention
    assert not settings.factors


@pytest.mark.parametrize(
    ("size", "generated"),
    [((32, 32), (64, 64)), ((48, 48), (64, 64)), ((16, 16), (64, 64)), ((32, 48), (48, 64)), ((32, 64), None)],
)
def test_much_smaller_images_are_drawn_larger_where_they_can_be_resized(size, generated) -> None:
    settings = automatic_settings(3, (64, 64), size, 20, multiple_px=16)
    assert settings.drawn_size_px == generated
    assert not settings.factors
    square = generated == (64, 64)
    assert settings.attention is not square, "at the trained size nothing else is needed"


@pytest.mark.parametrize("ratio", [2.0, 4.0])
def test_four_blocks_get_the_published_factors(ratio: float) -> None:
    published = {2.0: [1, 2, 2, 2], 4.0: [1, 2, 3, 4]}
    assert [depth_factor(depth, 4, ratio) for depth in range(4)] == published[ratio]


def test_large_maps_stay_plain_at_twice_as_published() -> None:
    """SDXL, 128 latents and three blocks; Stable Diffusion 2.1 at 768 px, 96 latents and four."""
    assert [depth_factor(depth, 3, 2.0, 128) for depth in range(3)] == [1, 1, 2]
    assert [depth_factor(depth, 4, 2.0, 96) for depth in range(4)] == [1, 1, 2, 2]
    assert [depth_factor(depth, 3, 4.0, 128) for depth in range(3)] == [1, 3, 4]


def test_deeper_blocks_never_get_less_and_none_more_than_the_ratio() -> None:
    for num_blocks in (1, 2, 3, 4, 5):
        for ratio in (0.4, 1.0, 1.3, 1.7, 2.5, 3.2, 6.0):
            for latents in (64, 96, 128):
                factors = [depth_factor(depth, num_blocks, ratio, latents) for depth in range(num_blocks)]
                assert factors == sorted(factors)
                assert max(factors) <= max(ratio, 1)


def test_each_side_has_its_own_factor_and_the_longer_one_is_halfway() -> None:
    assert in_proportion((1.5, 2.5)) == (1.5, 2.0)
    assert in_proportion((4.0, 1.0)) == (2.0, 1.0)
    assert in_proportion((0.5, 2.0)) == (0.5, 1.5)
    assert in_proportion((1.3, 1.3)) == (1.3, 1.3)
    settings = automatic_settings(4, (64, 64), (64, 160), 20)
    assert settings.factors["mid_block"] == (1, 1.5)
    assert not settings.damped_steps


def test_few_latents_are_drawn_with_the_shorter_side_as_trained() -> None:
    generated = {(128, 128): (64, 64), (96, 160): (64, 112), (160, 96): (112, 64), (64, 32): (128, 64), (64, 128): None}
    for size, expected in generated.items():
        settings = automatic_settings(3, (64, 64), size, 20, trained_latents=16, multiple_px=16)
        assert settings.drawn_size_px == expected
        assert settings.is_plain == (expected == (64, 64))
    # The longer side's factor is never so small that nothing happens.
    assert [in_proportion((1.0, ratio), 16)[1] for ratio in (1.25, 1.5, 1.75, 2.5)] == [1.5, 1.5, 1.5, 1.5]
    assert in_proportion((1.0, 1.5)) == (1.0, 1.0)


def test_upsamplers_have_the_factor_of_the_depth_they_compute_at(make_unet) -> None:
    for num_blocks in (2, 3, 4):
        unet = make_unet(num_blocks)
        settings = automatic_settings(num_blocks, (128, 128), (512, 512), trained_latents=64)
        factors = check_settings(unet, settings, (128, 128), (512, 512)).factors
        for name, layer in spatial_convolutions(unet).items():
            assert factors.get(name, (1, 1))[0] == depth_factor(layer.depth, num_blocks, 4.0), name


def test_four_times_is_progressive_and_damped_with_a_smaller_map() -> None:
    for num_blocks in (3, 4):
        settings = automatic_settings(num_blocks, (512, 512), (2048, 2048), 30)
        assert settings.progressive == "capped"
        assert settings.damped_steps == settings.active_steps == 22
        assert settings.num_steps == 30
        smaller, larger = settings.damped_factors, settings.factors
        assert set(smaller) < set(larger)
        assert all(smaller[name] <= larger[name] for name in smaller)


def test_larger_images_are_adapted_for_longer() -> None:
    fractions = [active_fraction(ratio) for ratio in (1.25, 1.5, 2, 3, 4, 8)]
    assert fractions == sorted(fractions)
    assert active_fraction(2) == pytest.approx(0.6)


@pytest.mark.parametrize("size", [(96, 96), (128, 128), (256, 256)])
def test_networks_of_few_latents_are_adapted_to_the_end(size) -> None:
    settings = automatic_settings(3, (64, 64), size, 20, trained_latents=16)
    assert settings.active_steps == 20
    assert settings.progressive == "no"
    assert not settings.damped_steps
    ratio = size[0] / 64
    assert settings.factors["mid_block"] == (ratio, ratio)
    assert settings.factors["down_blocks.1"] == (round(ratio + 0.01), round(ratio + 0.01))


def test_few_latents_get_dispersed_kernels_everywhere_or_at_the_outermost_depth() -> None:
    near, twice = (automatic_settings(3, (64, 64), (side, side), 20, trained_latents=16) for side in (96, 128))
    assert set(near.dispersed) == set(near.factors)
    assert "down_blocks.0" not in near.factors
    assert twice.dispersed == ("down_blocks.0", "up_blocks.2")
    assert twice.factors["up_blocks.2"] == (2, 2)
    assert near.dispersed_steps == twice.dispersed_steps == 20


@pytest.mark.parametrize(("size", "latents"), [((96, 160), 16), ((128, 128), 64), ((256, 256), 64)])
def test_wide_images_and_more_latents_are_not_dispersed(size, latents: int) -> None:
    settings = automatic_settings(3, (64, 64), size, 20, trained_latents=latents)
    assert not settings.dispersed
    assert "down_blocks.0" not in settings.factors


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4])
def test_its_names_exist(num_blocks: int, make_unet) -> None:
    unet = make_unet(num_blocks)
    for size in ((256, 256), (512, 512), (512, 128), (64, 64)):
        check_settings(unet, automatic_settings(num_blocks, (128, 128), size), (128, 128), size)
    assert all(name.startswith("up_") for name in redilation(num_blocks, (4.0, 4.0)) if "upsampler" in name)
