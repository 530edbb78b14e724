from typing import Any

import pytest
import torch

from promptnet.inference.resolution.handle import active_handle, adapt_resolution

SIZE: Any = {"height": 256, "width": 256}  # trained at 128: latents 16x16
ALWAYS: Any = {"factors": {"mid_block": 2}, "active_steps": 50}


def leftovers(unet: Any) -> list[str]:
    return [
        name
        for name, module in unet.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or "_conv_forward" in vars(module)
    ]


def test_removal_is_bit_identical_and_may_be_repeated(unet: Any, call_unet: Any) -> None:
    plain = call_unet(unet)
    handle = adapt_resolution(unet, **SIZE)
    assert active_handle(unet) is handle
    assert not torch.equal(call_unet(unet), plain)
    handle.remove()
    handle.remove()
    assert torch.equal(call_unet(unet), plain)
    assert leftovers(unet) == []
    assert active_handle(unet) is None


def test_again_replaces_the_first(unet: Any, call_unet: Any) -> None:
    plain = call_unet(unet)
    first = adapt_resolution(unet, **SIZE)
    once = call_unet(unet)
    second = adapt_resolution(unet, **SIZE)
    assert torch.equal(call_unet(unet), once)
    first.remove()
    assert torch.equal(call_unet(unet), once)
    second.remove()
    assert torch.equal(call_unet(unet), plain)


def test_an_error_in_a_call_leaves_the_network_plain(unet: Any, call_unet: Any) -> None:
    plain = call_unet(unet)
    with adapt_resolution(unet, **SIZE):
        adapted = call_unet(unet)
        hook = unet.up_blocks[0].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call_unet(unet)
        hook.remove()
        assert not any("_conv_forward" in vars(module) for module in unet.modules())
        assert torch.equal(call_unet(unet), adapted)
    assert torch.equal(call_unet(unet), plain)


def test_whether_it_acts_is_decided_from_the_timestep(unet: Any, call_unet: Any) -> None:
    plain = {t: call_unet(unet, timestep=t) for t in (981, 401, 381, 1)}
    settings = {**ALWAYS, "active_steps": 30, "attention": False}
    with adapt_resolution(unet, **SIZE, settings=settings, num_inference_steps=50):
        acts = {t: not torch.equal(call_unet(unet, timestep=t), plain[t]) for t in (1, 381, 401, 981)}
    assert acts == {981: True, 401: True, 381: False, 1: False}
    with adapt_resolution(unet, **SIZE, settings=settings):
        assert not torch.equal(call_unet(unet, timestep=1), plain[1])  # no step count: always


def test_height_and_width_are_apart(unet: Any, call_unet: Any) -> None:
    with adapt_resolution(unet, height=128, width=256) as handle:
        assert handle.settings.factors["mid_block"] == (1, 1.5)
        assert call_unet(unet, 16, 32).shape[2:] == (16, 32)


def test_smaller_sizes_scale_attention(unet: Any, call_unet: Any) -> None:
    plain = call_unet(unet, 8, 8)
    with adapt_resolution(unet, 64, 64):
        small = call_unet(unet, 8, 8)
    assert small.isfinite().all()
    assert not torch.equal(small, plain)


def test_the_trained_size_is_left_alone(unet: Any, call_unet: Any) -> None:
    plain = call_unet(unet, 16, 16)
    with adapt_resolution(unet, 128, 128) as handle:
        assert leftovers(unet) == []
        assert torch.equal(call_unet(unet, 16, 16), plain)
        assert "nothing is adapted" in handle.explain()


def test_another_size_than_adapted_for_is_refused(unet: Any, call_unet: Any) -> None:
    with adapt_resolution(unet, **SIZE), pytest.raises(ValueError, match=r"adapted for 256x256 pixels.*16x16"):
        call_unet(unet, 16, 16)


def test_explain_has_a_line_for_each_layer(unet: Any, capsys: Any) -> None:
    settings = {"factors": {"mid_block": [2, 1.5], "up_blocks.0.upsamplers": 3}, "active_steps": 30}
    with adapt_resolution(unet, **SIZE, settings=settings, num_inference_steps=20) as handle:
        text = handle.explain()
    assert capsys.readouterr().out.strip() == text
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if "block" in line}
    assert rows["up_blocks.0.upsamplers.0.conv"] == "2 3 first 12 of 20"
    assert rows["mid_block.resnets.0.conv1"] == "3 2 high, 1.5 wide first 12 of 20"
    assert "logits times" in text


def test_adapters_loaded_and_dtypes_changed_afterwards(unet: Any, call_unet: Any) -> None:
    from peft import LoraConfig

    with adapt_resolution(unet, **SIZE, settings=ALWAYS):
        unet.add_adapter(LoraConfig(r=2, target_modules=["conv1", "to_q"], init_lora_weights=False))
        unet.requires_grad_(False).eval()
        late = call_unet(unet)
    with adapt_resolution(unet, **SIZE, settings=ALWAYS):
        assert torch.equal(call_unet(unet), late)
        x, states = torch.randn(1, 4, 32, 32), torch.randn(1, 5, 16)
        unet.double()
        assert unet(x.double(), 999, encoder_hidden_states=states.double()).sample.dtype == torch.float64


def test_sequential_offload_before_and_after(make_unet: Any, call_unet: Any) -> None:
    from accelerate import cpu_offload

    unet = make_unet()
    with adapt_resolution(unet, **SIZE, settings=ALWAYS):
        expected = call_unet(unet)
        cpu_offload(unet, torch.device("cpu"))
        assert torch.equal(call_unet(unet), expected)
    with adapt_resolution(unet, **SIZE, settings=ALWAYS):
        assert torch.equal(call_unet(unet), expected)


def test_compiled_code_from_before_is_not_used(make_unet: Any, call_unet: Any) -> None:
    unet = make_unet(2)
    plain = call_unet(unet)
    with adapt_resolution(unet, **SIZE, settings=ALWAYS):
        expected = call_unet(unet)
    unet.mid_block.compile(backend="eager")
    assert torch.equal(call_unet(unet), plain)
    with adapt_resolution(unet, **SIZE, settings=ALWAYS):
        assert torch.equal(call_unet(unet), expected)
    assert torch.equal(call_unet(unet), plain)


def test_a_bare_network_says_that_guidance_is_not_damped(unet: Any) -> None:
    settings = {**ALWAYS, "damped_factors": {"mid_block": 2}, "damped_steps": 10}
    with pytest.warns(UserWarning, match="not damped"):
        handle = adapt_resolution(unet, **SIZE, settings=settings)
    assert not handle.damps_guidance
    assert "not possible here" in handle.explain()
    handle.remove()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 100, "width": 256}, "height=100"),
        ({"height": 256, "width": 0}, "width=0"),
        ({**SIZE, "trained_size": 0}, "trained_size=0"),
        ({**SIZE, "num_inference_steps": 0}, "num_inference_steps=0"),
        ({**SIZE, "settings": "published:nothing"}, "no published settings"),
        ({**SIZE, "settings": {"factors": {"mid_block.resnets.7": 2}}}, "mid_block.resnets.7"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left(options: Any, message: str, unet: Any) -> None:
    with pytest.raises(ValueError, match=message):
        adapt_resolution(unet, **options)
    assert leftovers(unet) == []


def test_things_without_a_unet_are_refused() -> None:
    with pytest.raises(ValueError, match="has no U-Net"):
        adapt_resolution(object(), 64, 64)
    with pytest.raises(ValueError, match="down_blocks"):
        adapt_resolution(torch.nn.Linear(1, 1), 64, 64, trained_size=32)
