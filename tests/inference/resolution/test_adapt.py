from typing import Any

import pytest
import torch

from promptnet.inference.resolution.adapt import active_handle, adapt_resolution
from tests.inference.resolution.slots import is_asked

SIZE: Any = {"height": 256, "width": 256}  # trained at 128: latents 16x16
ALWAYS: Any = {"factors": {"mid_block": 2}, "active_steps": 50}


def leftovers(unet: Any) -> list[str]:
    return [name for name, module in unet.named_modules() if module._forward_pre_hooks or is_asked(module)]


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
        assert not any(map(is_asked, unet.modules()))
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
        assert torch.equal(call_unet(unet, 16, 16), plain)
        assert "nothing is adapted" in handle.explain()


def test_another_size_than_adapted_for_is_refused(unet: Any, call_unet: Any) -> None:
    with adapt_resolution(unet, **SIZE), pytest.raises(ValueError, match=r"adapted for 256x256 pixels.*16x16"):
        call_unet(unet, 16, 16)


def test_explain_has_a_line_for_each_layer(unet: Any) -> None:
    settings = {"factors": {"mid_block": [2, 1.5], "up_blocks.0.upsamplers": 3}, "active_steps": 30}
    with adapt_resolution(unet, **SIZE, settings=settings, num_inference_steps=20) as handle:
        text = handle.explain()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if "block" in line}
    assert rows["up_blocks.0.upsamplers.0.conv"] == "2 3 first 12 of 20"
    assert rows["mid_block.resnets.0.conv1"] == "3 2 high, 1.5 wide first 12 of 20"
    assert "logits times" in text


def test_explain_says_what_is_applied_whatever_the_config_says(make_unet: Any, call_unet: Any) -> None:
    """The trained size as given, and the tokens that there are."""
    from promptnet.inference.resolution.attention import QueryScaling, query_scale

    unet, seen = make_unet(2), set()
    plain = QueryScaling.__call__

    def note(self: Any, layer: Any, args: Any, output: Any) -> Any:
        seen.add(f"{self.scale(args[0].shape[-2]):.3f}")
        return plain(self, layer, args, output)

    with (
        pytest.MonkeyPatch.context() as patch,
        adapt_resolution(unet, 264, 200, trained_size=96, settings={"attention": True}) as handle,
    ):
        patch.setattr(QueryScaling, "__call__", note)
        call_unet(unet, 33, 25)
        text = handle.explain()
    said = {part.split()[-4] for part in text.splitlines()[-1].replace("logits times", ",").split(",")[1:-1]}
    assert said == seen == {f"{query_scale(tokens, 264 * 200 / 96**2):.3f}" for tokens in (33 * 25, 17 * 13)}


def test_explain_does_not_call_a_far_size_near(unet: Any) -> None:
    with adapt_resolution(unet, **SIZE, settings={"attention": False}) as handle:
        assert "settings change nothing" in handle.explain()


@pytest.mark.parametrize("num_steps", [10, 20, 25, 30, 50])
@pytest.mark.parametrize(
    "spacing", [("leading", 1), ("leading", 0), ("trailing", 0), ("linspace", 0)], ids=lambda s: f"{s[0]}{s[1]}"
)
def test_a_bare_networks_steps_are_known_from_its_timesteps(unet: Any, num_steps: int, spacing: Any) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing=spacing[0], steps_offset=spacing[1])
    scheduler.set_timesteps(num_steps)
    with adapt_resolution(unet, **SIZE, num_inference_steps=num_steps) as handle:
        for _ in range(2):  # another drawing
            fractions = [handle.share(t) for t in scheduler.timesteps for _ in range(2)]
            assert fractions == [index / num_steps for index in range(num_steps) for _ in range(2)]


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


def test_adapters_fused_while_dispersed(make_unet: Any, call_unet: Any) -> None:
    from peft import LoraConfig

    unet, settings = make_unet(), {**ALWAYS, "dispersed": ["mid_block"], "dispersed_steps": 50, "attention": False}
    unet.add_adapter(LoraConfig(r=2, target_modules=["conv1"], init_lora_weights=False))
    unet.requires_grad_(False).eval()
    with adapt_resolution(unet, **SIZE, settings=settings):
        before = call_unet(unet)
        unet.fuse_lora()
        torch.testing.assert_close(call_unet(unet), before, rtol=0, atol=1e-5)


def test_sequential_offload_before_and_after(make_unet: Any, call_unet: Any) -> None:
    from accelerate import cpu_offload

    unet = make_unet()
    with adapt_resolution(unet, **SIZE, settings=ALWAYS):
        expected = call_unet(unet)
        cpu_offload(unet, torch.device("cpu"))
        assert torch.equal(call_unet(unet), expected)
    with adapt_resolution(unet, **SIZE, settings=ALWAYS):
        assert torch.equal(call_unet(unet), expected)


@pytest.fixture
def new_compiler() -> None:
    """Its limit on making code again counts over all networks of a class."""
    torch.compiler.reset()


HALF: Any = {"settings": {**ALWAYS, "active_steps": 25}, "num_inference_steps": 50}


@pytest.mark.parametrize("way", ["wrapper", "in place", "block"])
def test_compiled_code_from_before_is_not_used(new_compiler: None, way: str, make_unet: Any, call_unet: Any) -> None:
    """Compiled before adapting, through steps in which factors act and others, and after removal; whole graphs."""
    unet = compiled = make_unet(1)
    plain = {t: call_unet(unet, timestep=t) for t in (981, 1)}
    with adapt_resolution(unet, **SIZE, **HALF):
        expected = {t: call_unet(unet, timestep=t) for t in (981, 1)}
    if way == "wrapper":
        compiled = torch.compile(unet, backend="eager", fullgraph=True)
    else:
        (unet if way == "in place" else unet.down_blocks[0]).compile(backend="eager", fullgraph=True)
    assert torch.equal(call_unet(compiled, timestep=981), plain[981])
    with adapt_resolution(compiled, **SIZE, **HALF):
        for t in (981, 1, 981):
            assert torch.equal(call_unet(compiled, timestep=t), expected[t])
        assert torch.equal(call_unet(unet, timestep=1), expected[1])
    assert torch.equal(call_unet(compiled, timestep=981), plain[981])


def test_compiled_code_is_made_once_for_each_way_of_acting(new_compiler: None, make_unet: Any, call_unet: Any) -> None:
    """Also with dispersed kernels; and other networks' compiled code is left alone."""
    made: list[str] = []

    def backend(name: str) -> Any:
        return lambda graph, _: made.append(name) or graph.forward

    other: Any = torch.compile(torch.nn.Linear(2, 2), backend=backend("other"), fullgraph=True)
    other(torch.ones(1, 2))
    unet = make_unet(1)
    settings = {**HALF["settings"], "dispersed": ["mid_block"]}
    compiled: Any = torch.compile(unet, backend=backend("unet"), fullgraph=True)
    with adapt_resolution(unet, **SIZE, settings=settings, num_inference_steps=50):
        for t in (981, 961, 1, 21, 981):
            torch.testing.assert_close(call_unet(compiled, timestep=t), call_unet(unet, timestep=t))
    other(torch.ones(1, 2))
    assert made == ["other", "unet", "unet"]


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
        ({**SIZE, "trained_size": 32.5}, "trained_size=32.5"),
        ({**SIZE, "trained_size": "32"}, "trained_size='32'"),
        ({**SIZE, "trained_size": (32, 32, 3)}, r"trained_size=\(32, 32, 3\)"),
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
        adapt_resolution(torch.nn.Linear(1, 1), 64, 64)


def test_a_trained_size_may_be_a_whole_float(unet: Any) -> None:
    """Row 31 of the faults of real use: a bare TypeError."""
    explained = []
    for size in (32, 32.0, [32, 32.0]):
        with adapt_resolution(unet, 256, 256, trained_size=size) as handle:  # type: ignore[arg-type]
            explained.append(handle.settings)
    assert explained[0] == explained[1] == explained[2]
