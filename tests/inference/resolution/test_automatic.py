import pytest

from promptnet.inference.resolution.adaptation import check_settings
from promptnet.inference.resolution.automatic import active_share, automatic_settings, depth_factor


@pytest.mark.parametrize("size", [(64, 64), (72, 64), (56, 72)])
def test_near_the_trained_size_nothing_is_done(size) -> None:
    assert automatic_settings(3, (64, 64), size).is_plain


def test_smaller_pictures_scale_attention_alone() -> None:
    settings = automatic_settings(3, (64, 64), (32, 32), 20)
    assert settings.attention
    assert not settings.factors


@pytest.mark.parametrize("ratio", [2.0, 4.0])
def test_four_blocks_get_the_published_factors(ratio: float) -> None:
    published = {2.0: [1, 2, 2, 2], 4.0: [1, 2, 3, 4]}
    assert [depth_factor(depth, 4, ratio) for depth in range(4)] == published[ratio]


def test_three_blocks_get_the_published_factor_at_twice() -> None:
    assert [depth_factor(depth, 3, 2.0) for depth in range(3)] == [1, 1, 2]


def test_deeper_blocks_never_get_less_and_none_more_than_the_ratio() -> None:
    for num_blocks in (1, 2, 3, 4, 5):
        for ratio in (0.4, 1.0, 1.3, 1.7, 2.5, 3.2, 6.0):
            factors = [depth_factor(depth, num_blocks, ratio) for depth in range(num_blocks)]
            assert factors == sorted(factors)
            assert max(factors) <= max(ratio, 1)


def test_each_side_has_its_own_factor() -> None:
    settings = automatic_settings(4, (64, 64), (64, 160), 20)
    assert settings.factors["mid_block"] == (1, 2.5)
    assert not settings.damped_steps


def test_four_times_is_progressive_and_damped_with_a_smaller_map() -> None:
    for num_blocks in (3, 4):
        settings = automatic_settings(num_blocks, (512, 512), (2048, 2048), 30)
        assert settings.progressive == "capped"
        assert settings.damped_steps == settings.active_steps == 22
        assert settings.num_steps == 30
        smaller, larger = settings.damped_factors, settings.factors
        assert set(smaller) < set(larger)
        assert all(smaller[name] <= larger[name] for name in smaller)


def test_larger_pictures_are_adapted_for_longer() -> None:
    shares = [active_share(ratio) for ratio in (1.25, 1.5, 2, 3, 4, 8)]
    assert shares == sorted(shares)
    assert active_share(2) == pytest.approx(0.6)


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4])
def test_its_names_exist(num_blocks: int, make_unet) -> None:
    unet = make_unet(num_blocks)
    for size in ((256, 256), (512, 512), (512, 128)):
        check_settings(unet, automatic_settings(num_blocks, (128, 128), size), (128, 128), size)
