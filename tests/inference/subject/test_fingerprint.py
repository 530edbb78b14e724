import copy
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from promptnet.inference.subject.fingerprint import differing, fingerprint, hash_weights, same_weights

BUILD = (
    "import torch; torch.manual_seed(0); from torch import nn; m = nn.Sequential(nn.Conv2d(4, 64, 3), nn.Linear(64, 8))"
)


def small_network() -> nn.Module:
    space: dict = {}
    exec(BUILD, space)  # the same lines as in the other process below
    return space["m"]


def test_half_precision_copies_are_the_same_model():
    network = small_network()
    expected = hash_weights(network)
    half = copy.deepcopy(network).half()
    assert hash_weights(half) == expected
    assert hash_weights(half.float()) == expected


def test_memory_layout_training_mode_and_grad_flags_do_not_matter():
    network = small_network()
    expected = hash_weights(network)
    channels_last = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert hash_weights(channels_last) == expected
    assert hash_weights(network.eval().requires_grad_(False)) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_the_same_under_mixed_precision(dtype: torch.dtype):
    network = small_network()
    expected = hash_weights(network)
    with torch.autocast("cpu", dtype=dtype):
        assert hash_weights(network) == expected


def test_names_do_not_matter_and_weights_do():
    network = small_network()
    expected = hash_weights(network)
    assert hash_weights(nn.ModuleDict({"renamed": network})) == expected
    for parameter in network.parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.01)
        assert hash_weights(network) != expected
        with torch.no_grad():
            parameter.copy_(kept)
    assert hash_weights(network) == expected


def test_a_change_through_data_is_noticed_at_once():
    network = small_network()
    before = hash_weights(network)
    network[1].weight.data += 0.5  # type: ignore[index]  # leaves version counters alone
    assert hash_weights(network) != before


def test_the_same_values_in_another_shape_are_another_model():
    one, other = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)
    other.weight.data = one.weight.data.reshape(4, 6).clone()
    assert hash_weights(one) != hash_weights(other)


def test_it_is_stable_across_processes():
    code = f"{BUILD}; from promptnet.inference.subject.fingerprint import hash_weights; print(hash_weights(m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hash_weights(small_network())


def test_an_adapter_on_top_is_the_same_base_and_a_merged_one_is_not():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    expected = hash_weights(unet)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    assert hash_weights(unet) == expected
    unet.fuse_lora()
    assert hash_weights(unet) != expected


def test_a_pipelines_components_are_told_apart():
    parts = {name: small_network() for name in ("unet", "text_encoder", "vae", "promptnet", "image_encoder")}
    pipe = SimpleNamespace(**parts, text_encoder_2=None, scheduler=object())
    before = fingerprint(pipe)
    assert set(before) == set(parts)
    parts["vae"][0].weight.data.zero_()  # type: ignore[index]
    after = fingerprint(pipe)
    assert {name for name in parts if before[name] != after[name]} == {"vae"}


def test_weights_that_are_not_in_memory_are_refused():
    with torch.device("meta"):
        network = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"weights of the unet are not in memory.*enable_model_cpu_offload"):
        hash_weights(network, "unet")


def test_weights_that_sequential_offloading_put_aside_are_read(unet: Any):
    from accelerate import cpu_offload

    expected = hash_weights(unet := copy.deepcopy(unet))
    cpu_offload(unet, torch.device("cpu"))
    assert hash_weights(unet) == expected


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "DoRA", "OFT"])
def test_every_adapter_of_peft_may_come_and_go(kind: str, unet: Any):
    import peft

    expected = hash_weights(unet := copy.deepcopy(unet))
    config: Any = peft.LoraConfig if kind == "DoRA" else getattr(peft, f"{kind}Config")
    options: Any = {"use_dora": True} if kind == "DoRA" else {}
    if kind == "OFT":
        options |= {"r": 0, "oft_block_size": 4}
    unet.add_adapter(config(**{"r": 2, "target_modules": ["to_k"], **options}))
    assert hash_weights(unet) == expected


def test_of_a_large_tensor_only_spread_values_are_read():
    network = nn.Linear(2048, 2048, bias=False)
    before = hash_weights(network)
    with torch.no_grad():
        network.weight.view(-1)[1] += 1  # not among the 1024 of 4 million
    assert hash_weights(network) == before
    with torch.no_grad():
        network.weight.view(-1)[4096] += 1
    assert hash_weights(network) != before


# -- copies that lost digits ------------------------------------------------------------------------------------------


def blocks(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Sequential(nn.Conv2d(16, 64, 3), nn.GroupNorm(8, 64), nn.Linear(64, 32)) for _ in range(6)]
    return nn.Sequential(*layers)


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)


@pytest.mark.parametrize("one", DTYPES, ids=str)
@pytest.mark.parametrize("other", DTYPES, ids=str)
def test_copies_in_every_precision_are_known(one: torch.dtype, other: torch.dtype):
    """Row 32 of the faults, and float8's part of row 31."""
    found, again = (hash_weights(copy.deepcopy(blocks()).to(dtype)) for dtype in (one, other))
    assert same_weights(found, again)
    assert not same_weights(found, hash_weights(blocks(seed=1).to(other)))
    through_half = hash_weights(blocks().half().to(other))
    assert same_weights(found, through_half)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_training_and_merging_are_noticed_in_bfloat16_too(dtype: torch.dtype):
    expected, trained = hash_weights(blocks().to(dtype)), blocks()
    with torch.no_grad():
        for layer in trained[0], trained[3]:  # type: ignore[index]
            layer[2].weight.add_(0.1 * torch.randn(32, 1) @ torch.randn(1, 64))
    assert not same_weights(expected, hash_weights(trained.bfloat16()))
    assert not same_weights(expected, hash_weights(trained))


def test_hashes_of_earlier_files_are_known_by_their_digits():
    found = hash_weights(blocks())
    assert same_weights(found.split(".", maxsplit=1)[0], found)
    assert not same_weights("0" * 16, found)
    assert not same_weights(found.split(".", maxsplit=1)[0], hash_weights(blocks().bfloat16()))
    for broken in ("", "....", f"{'0' * 16}.bfloat16.@@", f"{'0' * 16}.bfloat16.AAAA", f"{'0' * 16}.lost.{'A' * 88}"):
        assert not same_weights(broken, found)
    assert same_weights(None, None)
    assert not same_weights(None, found)
    assert differing({"unet": found, "vae": found}, {"unet": found, "text_encoder": found}) == ["vae", "text_encoder"]


# -- what comes and goes on top of a model ----------------------------------------------------------------------------


def attending_unet() -> Any:
    from tests.inference.conftest import build_unet

    return build_unet()


def test_fused_projections_are_the_same_weights_also_when_taken_apart_again():
    """Row 36 of the faults: `unfuse` leaves them in the model."""
    unet = attending_unet()
    expected = hash_weights(unet)
    unet.fuse_qkv_projections()
    assert same_weights(hash_weights(unet), expected)
    unet.unfuse_qkv_projections()
    assert same_weights(hash_weights(unet), expected)


def test_an_ip_adapter_is_not_the_models_own():
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    unet = attending_unet()
    expected = hash_weights(unet)
    unet.encoder_hid_proj = nn.Linear(8, 8)
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    processors = {
        name: IPAdapterAttnProcessor2_0(16, 32) if name.endswith("attn2.processor") else processor
        for name, processor in unet.attn_processors.items()
    }
    unet.set_attn_processor(processors)
    assert any(".processor." in key for key in unet.state_dict())
    assert same_weights(hash_weights(unet), expected)


def test_words_of_a_textual_inversion_are_not_the_models_own(pipe: Any):
    pipe.tokenizer, pipe.text_encoder = copy.deepcopy(pipe.tokenizer), copy.deepcopy(pipe.text_encoder)
    before = fingerprint(pipe)
    pipe.tokenizer.add_tokens(["<style>", "<other>"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    assert differing(before, fingerprint(pipe)) == []
    pipe.text_encoder.get_input_embeddings().weight.data[:-2] += 1
    assert differing(before, fingerprint(pipe)) == ["text_encoder"]


def test_layerwise_casting_is_the_same_model(pipe: Any):
    unet = attending_unet()
    expected = hash_weights(unet)
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert any(parameter.dtype == torch.float8_e4m3fn for parameter in unet.parameters())
    assert same_weights(hash_weights(unet), expected)
