from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptnet.inference.resolution.published_files import published_names
from promptnet.inference.resolution.settings import (
    ResolutionSettings,
    factor_at,
    load_settings,
    settings_from_mapping,
)


def published(name: str) -> ResolutionSettings:
    return load_settings(f"published:{name}")


def test_all_published_settings_are_there_and_read() -> None:
    names = published_names()
    stems = ["1024x1024", "1280x1280", "2048x1024", "2048x2048", "2048x2048-disperse"]
    sdxl = ["2048x2048", "2560x2560", "4096x2048", "4096x4096", "4096x4096-disperse"]
    expected = [f"{base}-{stem}" for base in ("sd15", "sd21") for stem in stems]
    expected += [f"sdxl-{stem}{end}" for stem in sdxl for end in ("", "-repaired")]
    assert names == sorted(expected)
    for name in names:
        settings = published(name)
        assert settings.name == f"published:{name}"
        assert not settings.attention  # ScaleCrafter scales no attention
        assert settings.dispersed_steps == 0  # and dispersed nothing, also in the files that name layers for it
        assert bool(settings.dispersed) == ("disperse" in name)


@pytest.mark.parametrize(
    ("name", "tau", "damped", "progressive"),
    [
        ("sd15-1024x1024", 30, 0, "no"),
        ("sd15-1280x1280", 35, 0, "no"),
        ("sd15-2048x1024", 35, 35, "published"),
        ("sd15-2048x2048", 35, 35, "published"),
        ("sd21-1024x1024", 20, 0, "no"),
        ("sd21-1280x1280", 30, 0, "no"),
        ("sd21-2048x1024", 37, 0, "published"),
        ("sd21-2048x2048", 37, 37, "published"),
        ("sdxl-2048x2048", 30, 0, "no"),
        ("sdxl-2560x2560", 30, 0, "no"),
        ("sdxl-4096x2048", 35, 35, "published"),
        ("sdxl-4096x4096", 35, 35, "published"),
    ],
)
def test_published_steps(name: str, tau: int, damped: int, progressive: str) -> None:
    settings = published(name)
    assert (settings.active_steps, settings.damped_steps, settings.progressive) == (tau, damped, progressive)
    assert settings.num_steps == 50


def test_names_read_width_by_height() -> None:
    assert published("sd21-2048x1024").size_px == (1024, 2048)
    assert published("sd21-2048x1024").trained_size_px == (512, 512)
    assert published("sdxl-4096x4096").trained_size_px == (1024, 1024)


# Factors by block, as published: down_blocks, mid_block, up_blocks from the outermost number given.
TWICE = {"down_blocks.1": 2, "down_blocks.2": 2, "down_blocks.3": 2, "mid_block": 2}
TWICE |= {"up_blocks.0": 2, "up_blocks.1": 2, "up_blocks.2": 2}
FOUR = {"down_blocks.1": 2, "down_blocks.2": 3, "down_blocks.3": 4, "mid_block": 4}
FOUR |= {"up_blocks.0": 4, "up_blocks.1": 3, "up_blocks.2": 2}
SD15_DAMPED = {"down_blocks.2": 3, "down_blocks.3": 4, "mid_block": 4, "up_blocks.0": 4, "up_blocks.1": 3}
SD21_DAMPED = {"down_blocks.2.resnets": 3, "down_blocks.2.downsamplers": 4, "down_blocks.3": 4, "mid_block": 4}
SD21_DAMPED |= {"up_blocks.0": 4, "up_blocks.1": 4, "up_blocks.2": 3}
XL_TWICE = {"down_blocks.3": 2, "mid_block": 2, "up_blocks.0": 2}
XL_WIDE = {"down_blocks.2": 3, "down_blocks.3": 4, "mid_block": 4, "up_blocks.0": 4, "up_blocks.1": 3, "up_blocks.2": 2}


def scaled(factors: dict[str, int], by: float) -> dict[str, float]:
    return {name: factor * by for name, factor in factors.items()}


TABLE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd15-1024x1024": (TWICE, {}),
    "sd15-1280x1280": (scaled(TWICE, 1.25), {}),
    "sd15-2048x1024": (FOUR, SD15_DAMPED),
    "sd15-2048x2048": (FOUR, SD15_DAMPED),
    "sd21-1024x1024": (TWICE, {}),
    "sd21-1280x1280": (scaled(TWICE, 1.25), {}),
    "sd21-2048x1024": (FOUR, SD21_DAMPED),
    "sd21-2048x2048": ({**SD21_DAMPED, "up_blocks.3.resnets": 2}, SD21_DAMPED),
    "sdxl-2048x2048": (XL_TWICE, {}),
    "sdxl-2560x2560": (scaled(XL_TWICE, 1.25), {}),
    "sdxl-4096x2048": (XL_WIDE, XL_TWICE),
    "sdxl-4096x4096": ({**XL_WIDE, "down_blocks.2": 4}, XL_TWICE),
}
DISPERSED = {
    "sd15": ("down_blocks.2.downsamplers", "down_blocks.3", "mid_block", "up_blocks.0", "up_blocks.1"),
    "sd21": ("down_blocks.2.downsamplers", "down_blocks.3", "mid_block", "up_blocks.0", "up_blocks.1"),
    "sdxl": ("down_blocks.2", "mid_block", "up_blocks.0"),
}
FREE_U = {
    "sd15": {"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "sd21": {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2},
    "sdxl": None,
}


def repaired(factors: dict[str, Any]) -> dict[str, Any]:
    """What was meant for down_blocks.3 acts in down_blocks.2."""
    deepest = {"down_blocks.2": factors["down_blocks.3"]} if factors else {}
    return {name: factor for name, factor in factors.items() if name != "down_blocks.3"} | deepest


@pytest.mark.parametrize("name", published_names())
def test_every_published_file_holds_the_published_numbers(name: str) -> None:
    settings, base = published(name), name.split("-")[0]
    expected = TABLE["-".join(name.split("-")[:2])]
    if name.endswith("-repaired"):
        expected = repaired(expected[0]), repaired(expected[1])
    assert settings.factors == {layer: (factor, factor) for layer, factor in expected[0].items()}
    assert settings.damped_factors == {layer: (factor, factor) for layer, factor in expected[1].items()}
    assert settings.dispersed == (DISPERSED[base] if "disperse" in name else ())
    assert settings.freeu == FREE_U[base]
    assert settings.num_blocks == (3 if base == "sdxl" else 4)
    assert not settings.match_plain_size


def test_repaired_settings_name_what_exists_and_keep_the_rest() -> None:
    for name in ("2048x2048", "2560x2560", "4096x2048", "4096x4096"):
        dead, repaired = published(f"sdxl-{name}"), published(f"sdxl-{name}-repaired")
        assert "down_blocks.3" in dead.factors
        assert "down_blocks.3" not in {*repaired.factors, *repaired.damped_factors}
        assert repaired.factors["down_blocks.2"] == dead.factors["down_blocks.3"]
        same = {layer: f for layer, f in dead.factors.items() if not layer.startswith("down_blocks")}
        assert {layer: f for layer, f in repaired.factors.items() if not layer.startswith("down_blocks")} == same
        assert replace(repaired, name="", factors={}, damped_factors={}) == replace(
            dead, name="", factors={}, damped_factors={}
        )


def test_progression_as_published_and_capped() -> None:
    tau = 35
    assert [factor_at(4.0, i, tau, "published") for i in (0, 1, 8, 9, 17, 18, 34)] == [4, 4, 4, 3, 3, 2, 2]
    assert factor_at(1.5, 0, tau, "published") == 2  # raised
    assert factor_at(1.5, 0, tau, "capped") == 1.5
    assert factor_at(3.5, 20, tau, "capped") == 2
    assert factor_at(3.5, 20, tau, "no") == 3.5


def test_own_yaml(tmp_path: Path) -> None:
    path = tmp_path / "wide.yaml"
    path.write_text("factors: {mid_block: [1, 2.5], down_blocks.1.resnets: 2}\nactive_steps: 6\nnum_steps: 20\n")
    settings = load_settings(path)
    assert settings.factors == {"mid_block": (1.0, 2.5), "down_blocks.1.resnets": (2.0, 2.0)}
    assert settings.attention
    assert not settings.is_plain


def test_steps_that_are_not_given_are_all_where_there_is_something_to_do() -> None:
    everything: Any = {"factors": {"mid_block": 2}, "damped_factors": {"mid_block": 2}, "dispersed": ["mid_block"]}

    def steps(**values: Any) -> tuple[int, int, int]:
        found = settings_from_mapping({"num_steps": 20, **values}, "mine")
        return found.active_steps, found.damped_steps, found.dispersed_steps

    assert steps() == (0, 0, 0)
    assert steps(factors={"mid_block": 2}) == (20, 0, 0)
    assert steps(**everything) == (20, 20, 20)
    assert steps(**everything, active_steps=8) == (8, 8, 8)
    assert steps(**everything, active_steps=8, damped_steps=0, dispersed_steps=3) == (8, 0, 3)
    assert steps(damped_factors={"mid_block": 2}) == (0, 20, 0)
    assert ResolutionSettings(factors={"mid_block": (2, 2)}).active_steps == 50


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"factor": {}}, "no setting factor"),
        ({"factors": {"mid_block": 0}}, "factors"),
        ({"factors": {"mid_block": "much"}}, "factors"),
        ({"factors": [1]}, "factors"),
        ({"active_steps": 51}, "active_steps=51"),
        ({"damped_steps": -1}, "damped_steps=-1"),
        ({"dispersed_steps": 2.5}, "dispersed_steps=2.5"),
        ({"progressive": True}, "progressive=True"),
        ({"dispersion": "R3to1"}, "R3to1"),
        ({"attention": "no"}, "attention='no'"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"factors": {"mid_block": 2}, "active_steps": 0}, "active_steps=0, so"),
        ({"factors": {"mid_block": 2}, "dispersed": "mid_block"}, r"dispersed='mid_block' must be a list"),
        ({"factors": {"mid_block": 2}, "dispersed": [1]}, r"dispersed=\[1\]"),
        ({"size_px": 3}, "size_px"),
        (["factors"], "mapping"),
    ],
)
def test_what_is_not_valid_is_refused_by_name(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_from_mapping(values, "mine.yaml")


@pytest.mark.parametrize("source", ["published:sd3-2048x2048", "published:../settings", "nowhere.yaml", "Auto"])
def test_settings_that_do_not_exist_are_refused(source: str) -> None:
    with pytest.raises(ValueError, match="sd21-2048x2048"):
        load_settings(source)


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("factors: {mid_block: [")
    with pytest.raises(ValueError, match=r"broken\.yaml is no YAML"):
        load_settings(path)


def test_the_example_of_the_page_fits_a_network(make_unet: Any) -> None:
    import re

    import yaml

    from promptnet.inference.resolution.mode import check_settings

    page = (Path(__file__).parents[3] / "docs" / "resolution.md").read_text("utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    settings = settings_from_mapping(yaml.safe_load(example), "the page")
    factors = check_settings(make_unet(3), settings, (128, 128), (256, 320)).factors
    assert factors["mid_block.resnets.0.conv1"] == (2, 2.5)
