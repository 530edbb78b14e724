from typing import Any

import pytest
import torch
from torch import nn

from promptnet.inference.resolution.attention import attention_scale
from promptnet.inference.resolution.layers import plain_name, spatial_attentions, spatial_convolutions
from promptnet.inference.resolution.mode import check_settings
from promptnet.inference.resolution.published_files import published_names
from promptnet.inference.resolution.settings import load_settings, settings_from_mapping
from tests.inference.resolution.slots import is_asked

SIZES: Any = ((128, 128), (256, 256))  # trained, asked


def checked(unet: nn.Module, **values: Any) -> Any:
    return check_settings(unet, settings_from_mapping(values, "mine"), *SIZES)


def test_layers_are_found_from_structure_with_their_depth(unet: Any) -> None:
    depths = {name: layer.depth for name, layer in spatial_convolutions(unet).items()}
    assert depths["down_blocks.0.resnets.0.conv1"] == 0
    assert depths["down_blocks.2.downsamplers.0.conv"] == 2
    assert depths["mid_block.resnets.1.conv2"] == 3
    assert depths["up_blocks.0.resnets.0.conv1"] == 3
    assert depths["up_blocks.0.upsamplers.0.conv"] == 2  # it computes on what it has enlarged
    assert depths["up_blocks.3.resnets.1.conv2"] == 0
    assert not [name for name in depths if name in ("conv_in", "conv_out") or "shortcut" in name]
    assert len(depths) == 8 + 3 + 4 + 16 + 3  # down, downsamplers, mid, up, upsamplers
    assert all(name.endswith("attn1") for name in spatial_attentions(unet))
    assert len(spatial_attentions(unet)) == 3 + 1 + 6


def test_names_do_not_change_with_adapters(unet: Any) -> None:
    from peft import LoraConfig

    before = [*spatial_convolutions(unet)]
    unet.add_adapter(LoraConfig(r=2, target_modules=["conv1", "to_q"], init_lora_weights=False))
    layers = spatial_convolutions(unet)
    assert [*layers] == before
    assert len(layers["mid_block.resnets.0.conv1"].modules) == 2  # the layer, and its adapter's first half
    assert plain_name("a.conv1.base_layer") == plain_name("a.conv1.lora_A.default") == "a.conv1"


@pytest.mark.parametrize("name", [name for name in published_names() if not name.startswith("sdxl")])
def test_published_settings_fit_stable_diffusion(name: str, unet: Any) -> None:
    settings = load_settings(f"published:{name}")
    size: Any = settings.size_px
    factors = check_settings(unet, settings, (512, 512), size).factors
    assert factors["mid_block.resnets.0.conv1"] == max(settings.factors.values())
    assert "down_blocks.0.resnets.0.conv1" not in factors


@pytest.mark.parametrize("name", [name for name in published_names() if name.startswith("sdxl")])
def test_published_settings_with_dead_names_are_refused_and_repaired_ones_fit(name: str, make_unet: Any) -> None:
    settings = load_settings(f"published:{name}")
    size: Any = settings.size_px
    if name.endswith("-repaired"):
        check_settings(make_unet(3), settings, (1024, 1024), size)
        return
    with pytest.raises(ValueError, match=rf"down_blocks\.3, but.*published:{name}-repaired"):
        check_settings(make_unet(3), settings, (1024, 1024), size)


def test_settings_for_another_architecture_are_refused(make_unet: Any) -> None:
    with pytest.raises(ValueError, match=r"4 down blocks.*has 3"):
        check_settings(make_unet(3), load_settings("published:sd21-1024x1024"), (512, 512), (1024, 1024))


@pytest.mark.parametrize("key", ["factors", "damped_factors"])
@pytest.mark.parametrize("name", ["mid_block.resnets.2", "down_block.1", "conv_in", "mid_block.attentions", "mid"])
def test_names_that_do_not_exist_are_refused(key: str, name: str, unet: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}, but"):
        checked(unet, **{key: {name: 2}})
    with pytest.raises(ValueError, match=f"{name}, but"):
        checked(unet, dispersed=[name])


def test_dispersed_layers_without_a_factor_are_refused(unet: Any) -> None:
    with pytest.raises(ValueError, match=r"down_blocks\.1\.downsamplers\.0\.conv, which has no factor"):
        checked(unet, factors={"mid_block": 2}, dispersed=["mid_block", "down_blocks.1"])


def test_attention_to_image_and_text_at_once_is_refused(make_unet: Any) -> None:
    simple: Any = {
        "down_block_types": ("SimpleCrossAttnDownBlock2D",) * 2,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 2,
    }
    unet = make_unet(2, **simple)
    with pytest.raises(ValueError, match=r"down_blocks\.0\.attentions\.0 attends to the text.*attention: false"):
        checked(unet)
    assert checked(unet, attention=False, factors={"mid_block": 2}).factors


def test_attention_that_is_scaled_already_is_refused(unet: Any, call_unet: Any) -> None:
    from promptnet.inference.resolution.attention import ScaledAttnProcessor

    mode, _ = checked(unet).modes()
    attention: Any = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.set_processor(ScaledAttnProcessor(attention.processor, trained_tokens=16))
    with pytest.raises(ValueError, match=r"mid_block.*ScaledAttnProcessor.*twice"), mode.at(unet, 0.0):
        call_unet(unet)


@pytest.mark.parametrize("backend", ["sliced", "fused"])
def test_attention_of_a_network_is_scaled_by_every_backend(backend: str, unet: Any, call_unet: Any) -> None:
    mode, _ = checked(unet).modes()
    plain = call_unet(unet)
    with mode.at(unet, 0.0):
        expected = call_unet(unet)
    if backend == "sliced":
        unet.set_attention_slice(1)
    else:
        unet.fuse_qkv_projections()
    with mode.at(unet, 0.0):
        scaled = call_unet(unet)
    torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-5)
    assert (scaled - plain).abs().max() > 1e-4


def test_longer_names_have_precedence(unet: Any) -> None:
    factors = checked(unet, factors={"mid_block.resnets.0.conv1": 4, "mid_block": 2, "mid_block.resnets.0": 3}).factors
    assert factors["mid_block.resnets.0.conv1"] == (4, 4)
    assert factors["mid_block.resnets.0.conv2"] == (3, 3)
    assert factors["mid_block.resnets.1.conv1"] == (2, 2)


def test_a_size_of_another_ratio_is_said(unet: Any) -> None:
    with pytest.warns(UserWarning, match="2.0 times as high"):
        check_settings(unet, load_settings("published:sd21-1024x1024"), (512, 512), (1024, 2048))


def test_factors_act_for_their_share_of_the_drawing(unet: Any) -> None:
    mode, damped = checked(
        unet,
        factors={"mid_block": 4},
        active_steps=10,
        num_steps=20,
        progressive="capped",
        damped_factors={"mid_block": 2},
        damped_steps=5,
    ).modes()

    def vertical(mode: Any, share: float | None) -> float:
        return mode.factors_at(share).get("mid_block.resnets.0.conv1", (1, 1))[0]

    assert [vertical(mode, share) for share in (None, 0, 2 / 20, 3 / 20, 9 / 20, 0.5, 0.95)] == [4, 4, 4, 3, 2, 1, 1]
    assert [vertical(mode, step / 40) for step in (19, 20)] == [2, 1]  # twice as many steps, the same share
    assert [vertical(damped, share) for share in (0, 0.2, 0.25)] == [2, 2, 1]


def test_the_mode_is_redilation_of_these_layers_and_nothing_else(unet: Any, call_unet: Any) -> None:
    """Integer factors are what setting dilation by hand does."""
    mode, _ = checked(unet, factors={"mid_block": 2, "down_blocks.1": 3}, active_steps=50, attention=False).modes()
    with mode.at(unet, 0.0):
        adapted = call_unet(unet)
    assert not torch.equal(adapted, call_unet(unet))
    for name, layer in spatial_convolutions(unet).items():
        factor = 2 if name.startswith("mid_block.") else 3 if name.startswith("down_blocks.1.") else 1
        conv: Any = layer.modules[0]
        conv.dilation = conv.padding = (factor, factor)
    assert torch.equal(adapted, call_unet(unet))


def test_attention_is_scaled_in_every_self_attention(unet: Any, call_unet: Any) -> None:
    mode, _ = checked(unet).modes()
    with mode.at(unet, 0.0):
        adapted = call_unet(unet)
    sides = {name: 32 // 2**layer.depth for name, layer in spatial_attentions(unet).items()}
    for name, layer in spatial_attentions(unet).items():  # by hand, through the weights
        tokens = sides[name] ** 2
        layer.modules[0].get_submodule("to_q").get_parameter("weight").mul_(attention_scale(tokens, tokens / 4))
    torch.testing.assert_close(call_unet(unet), adapted, rtol=0, atol=1e-5)


def test_dispersed_layers_use_half_the_factor(unet: Any, call_unet: Any) -> None:
    from promptnet.inference.resolution.dispersion import dispersed_kernel, transform_matrix

    values: Any = {"factors": {"mid_block": 2}, "active_steps": 50, "attention": False, "dispersed": ["mid_block"]}
    mode, _ = checked(unet, **values, dispersed_steps=25).modes()
    with mode.at(unet, 0.0):
        adapted = call_unet(unet)
    with mode.at(unet, 0.5):  # re-dilated still, dispersed no more
        later = call_unet(unet)
    plain, _ = checked(unet, **values, dispersed_steps=0).modes()
    with plain.at(unet, 0.5):
        assert torch.equal(call_unet(unet), later)
    for name, layer in spatial_convolutions(unet).items():
        if name.startswith("mid_block."):
            conv: Any = layer.modules[0]
            conv.weight = nn.Parameter(dispersed_kernel(conv.weight, transform_matrix()), requires_grad=False)
            conv.padding = (2, 2)
    torch.testing.assert_close(call_unet(unet), adapted, rtol=0, atol=1e-6)


def test_a_dispersed_kernel_is_computed_once_for_all_modes(
    unet: Any, call_unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from promptnet.inference.resolution import dispersion

    computed: list[int] = []
    plain = dispersion.dispersed_kernel
    monkeypatch.setattr(dispersion, "dispersed_kernel", lambda *given: computed.append(1) or plain(*given))
    values: Any = {"factors": {"mid_block": 4}, "damped_factors": {"mid_block": 2}, "dispersed": ["mid_block"]}
    steps = {"active_steps": 50, "damped_steps": 50, "dispersed_steps": 50}
    for mode in 2 * checked(unet, **values, **steps).modes():
        with mode.at(unet, 0.0):
            call_unet(unet)
    assert len(computed) == 4  # the layers of the middle block


def test_adapters_of_a_convolution_are_redilated_with_it(unet: Any, call_unet: Any) -> None:
    from peft import LoraConfig

    unet.add_adapter(LoraConfig(r=2, target_modules=["conv1"], init_lora_weights=False))
    unet.requires_grad_(False).eval()
    mode, _ = checked(unet, factors={"mid_block": 1.5}, active_steps=50, attention=False).modes()
    with mode.at(unet, 0.0):
        adapted = call_unet(unet)
    unet.fuse_lora()
    with mode.at(unet, 0.0):
        torch.testing.assert_close(call_unet(unet), adapted, rtol=0, atol=1e-5)


def test_an_error_leaves_nothing_behind(unet: Any, call_unet: Any) -> None:
    mode, _ = checked(unet, factors={"mid_block": 2}, active_steps=50).modes()
    before = call_unet(unet)
    with pytest.raises(KeyError), mode.at(unet, 0.0):
        raise KeyError
    assert torch.equal(call_unet(unet), before)
    assert not any(map(is_asked, unet.modules()))


def test_layers_that_were_never_called_are_an_error(unet: Any, call_unet: Any) -> None:
    mode, _ = checked(unet, factors={"mid_block": 2}, active_steps=50, attention=False).modes()
    conv: Any = unet.mid_block.resnets[0].conv1
    conv.forward = lambda x: x  # somebody goes around it
    with pytest.raises(RuntimeError, match=r"never called mid_block\.resnets\.0\.conv1"), mode.at(unet, 0.0):
        call_unet(unet)


def test_somebody_elses_convolution_is_not_replaced(unet: Any) -> None:
    mode, _ = checked(unet, factors={"mid_block": 2}, active_steps=50).modes()
    conv: Any = unet.mid_block.resnets[1].conv2
    own = conv._conv_forward = lambda *_: None
    with pytest.raises(ValueError, match=r"mid_block\.resnets\.1\.conv2"), mode.at(unet, 0.0):
        pass
    assert vars(conv)["_conv_forward"] is own
    assert not any(map(is_asked, unet.modules()))
