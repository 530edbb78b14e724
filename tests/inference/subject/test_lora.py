"""LoRA layers: what they add, to whom, and that nothing else changes."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from promptnet.inference.subject.lora import (
    LoRALayer,
    RowLoRAs,
    applied_stacks,
    apply_loras,
    initial_loras,
    joined_rows,
    key_value_layers,
    merge_loras,
    stacked,
    word_layers,
)
from promptnet.models.promptnet import PromptNetModel
from promptnet.models.slots import Slot


def tiny_unet(**changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    config = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return tiny_unet()


@pytest.fixture(scope="module")
def promptnet(unet) -> PromptNetModel:
    torch.manual_seed(1)
    return PromptNetModel.from_unet(
        unet, vision_dim=10, prompt_channel=12, region_proj_channel=4, region_kernel_size=1
    ).eval()


def random_loras(layers, rank: int = 2, seed: int = 0) -> dict[str, LoRALayer]:
    generator = torch.Generator().manual_seed(seed)
    loras = initial_loras(layers, rank, generator)
    return {name: LoRALayer(d.A, torch.randn(d.B.shape, generator=generator) * 0.5) for name, d in loras.items()}


def inputs(batch: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(batch, 4, 8, 8, generator=generator),
        "timestep": torch.randint(0, 1000, (batch,), generator=generator),
        "encoder_hidden_states": torch.randn(batch, 7, 12, generator=generator),
    }


def run(unet, given=None) -> torch.Tensor:
    return unet(**(given or inputs()), return_dict=False)[0]


def merged(network, loras):
    """The same network with the LoRA layers added to its weights, as a reference."""
    network = copy.deepcopy(network)
    for name, lora in loras.items():
        weight = network.get_submodule(name).weight
        weight.data += lora.matrix().reshape(weight.shape)
    return network


def test_the_layers_are_every_cross_attentions_keys_and_values(unet):
    names = set(key_value_layers(unet))
    assert names == {name for name, _ in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    assert len(names) == 8  # down, mid, two in the up block


@pytest.mark.parametrize(
    "changes",
    [
        {"use_linear_projection": True, "attention_head_dim": (2, 4)},  # SD 2
        {"transformer_layers_per_block": (1, 2), "cross_attention_dim": 20},  # SDXL
        {"only_cross_attention": True},
    ],
)
def test_layers_of_other_unets_are_those_that_read_the_prompt(changes):
    unet = tiny_unet(**changes)
    width = unet.config["cross_attention_dim"]
    reads_prompt = {
        name
        for name, module in unet.named_modules()
        if name.endswith((".to_k", ".to_v")) and isinstance(module, nn.Linear) and module.in_features == width
    }
    assert set(key_value_layers(unet)) == reads_prompt
    assert reads_prompt


def test_a_unet_with_deltas_equals_one_with_merged_weights(unet):
    loras = random_loras(key_value_layers(unet))
    with torch.no_grad(), apply_loras(unet, [loras] * 3):
        tuned = run(unet)
    torch.testing.assert_close(tuned, run(merged(unet, loras)), atol=1e-5, rtol=1e-4)
    assert (tuned - run(unet)).abs().max() > 1e-3


def test_rows_have_their_own_deltas_and_the_others_are_bit_identical(unet):
    users = [random_loras(key_value_layers(unet), rank, seed) for seed, rank in enumerate((1, 3))]
    given = inputs(5)
    plain = run(unet, given)
    with torch.no_grad(), apply_loras(unet, [None, users[0], None, users[1], {}]):
        mixed = run(unet, given)
    for row in (0, 2, 4):
        assert torch.equal(mixed[row], plain[row])
    for row, user in ((1, users[0]), (3, users[1])):
        torch.testing.assert_close(mixed[row], run(merged(unet, user), given)[row], atol=1e-5, rtol=1e-4)


def test_users_with_deltas_in_different_layers(unet):
    everything = random_loras(key_value_layers(unet))
    keys = {name: lora for name, lora in everything.items() if name.endswith("to_k")}
    values = {name: lora for name, lora in everything.items() if name.endswith("to_v")}
    with torch.no_grad(), apply_loras(unet, [keys, values, None]):
        mixed = run(unet)
    torch.testing.assert_close(mixed[0], run(merged(unet, keys))[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed[1], run(merged(unet, values))[1], atol=1e-5, rtol=1e-4)


def words(promptnet, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, vision = torch.randn(batch, 4, 16, 16, generator=generator), torch.randn(batch, 5, 10, generator=generator)
    return promptnet(latents, torch.tensor([7] * batch), vision).pseudo_words


@pytest.mark.parametrize("region_size", [1, 2])
def test_promptnets_word_layer(unet, region_size):
    torch.manual_seed(1)
    promptnet = PromptNetModel.from_unet(
        unet, vision_dim=10, prompt_channel=12, region_proj_channel=4, region_kernel_size=region_size
    ).requires_grad_(False)
    loras = random_loras(word_layers(promptnet), rank=3)
    plain = words(promptnet)
    with torch.no_grad(), apply_loras(promptnet, [loras, None, loras]):
        tuned = words(promptnet)
    assert torch.equal(tuned[1], plain[1])
    torch.testing.assert_close(tuned[[0, 2]], words(merged(promptnet, loras))[[0, 2]], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(tuned[0], plain[0])


def test_initial_deltas_change_nothing_and_repeat_from_the_generator(unet):
    first, again = (initial_loras(key_value_layers(unet), 2, torch.Generator().manual_seed(3)) for _ in range(2))
    for name, lora in first.items():
        assert torch.equal(lora.A, again[name].A)
        weight = unet.get_submodule(name).weight
        assert 0.5 < (lora.A.std() / weight.std()).item() < 2
    with torch.no_grad(), apply_loras(unet, [first] * 3):
        assert torch.equal(run(unet), run(unet))
        tuned = run(unet)
    assert torch.equal(tuned, run(unet))


def slots_of(network: nn.Module) -> int:
    return sum(isinstance(hook, Slot) for module in network.modules() for hook in module._forward_hooks.values())


def test_layers_are_plain_outside_of_the_block_also_after_an_error():
    unet = tiny_unet()
    loras = random_loras(key_value_layers(unet))
    before = run(unet)
    with apply_loras(unet, [loras] * 3):
        run(unet)
    assert torch.equal(run(unet), before)
    with pytest.raises(KeyError, match="boom"), apply_loras(unet, [loras] * 3):
        raise KeyError("boom")
    assert torch.equal(run(unet), before)
    broken = {**loras, "nowhere.to_k": loras[next(iter(loras))]}
    with pytest.raises(ValueError, match=r"no layer nowhere\.to_k"), apply_loras(unet, [broken] * 3):
        pass
    assert torch.equal(run(unet), before)
    assert slots_of(unet) == len(loras), "one slot for each layer, however often"


def test_copies_of_a_network_are_not_asked_what_it_is_asked(unet):
    loras = random_loras(key_value_layers(unet))
    with apply_loras(unet, [loras] * 3):
        run(unet)
        copied, plain = copy.deepcopy(unet), run(tiny_unet())
        assert torch.equal(run(copied), plain)
        assert torch.equal(run(pickle.loads(pickle.dumps(unet))), plain)
    with apply_loras(copied, [loras] * 3):
        assert torch.equal(run(unet), plain)
        assert not torch.equal(run(copied), plain)


def test_threads_that_share_a_network_have_their_own():
    """Bit for bit what each is alone, also plain calls beside them."""
    unet = tiny_unet()
    users = [None, *(random_loras(key_value_layers(unet), rank, rank) for rank in (1, 2, 3))]

    def call(user) -> torch.Tensor:
        with torch.no_grad(), apply_loras(unet, [None, user, user]):
            return run(unet)

    alone = [call(user) for user in users]
    assert len({float(each.sum()) for each in alone}) == len(users)
    unet = tiny_unet()  # slots are installed while others call
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(call, users * 8))
    assert all(torch.equal(each, alone[place % len(users)]) for place, each in enumerate(found))


# -- stacks -----------------------------------------------------------------------------------------------------------


def test_stacks_have_one_shape_whoever_is_in_the_batch(unet):
    users = [random_loras(key_value_layers(unet), rank) for rank in (1, 3)]
    for rows in ([None, users[0], None], [users[1], users[0], None], [users[1]] * 3):
        shapes = {tuple(part.shape for part in pair) for pair in stacked(rows, rank=4).values()}
        assert {(down[:2], up[0], up[2]) for down, up in shapes} == {((3, 4), 3, 4)}
        with torch.no_grad(), apply_loras(unet, rows):
            expected = run(unet)
        with torch.no_grad(), applied_stacks(unet, stacked(rows, rank=4), 3):
            torch.testing.assert_close(run(unet), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="has rank 3, more than rank=2"):
        stacked([users[1], None], rank=2)


def test_rows_are_stacked_once_unless_they_are_learned(unet):
    loras = random_loras(key_value_layers(unet))
    part = RowLoRAs((loras,))
    joined = joined_rows([None, part, part], [2, 1, 1])
    assert joined is joined_rows([None, part, part], [2, 1, 1])
    assert joined is not None
    assert [row is loras for row in joined.rows] == [False, False, True, True]
    assert joined.stacks is joined.stacks
    as_parameters(loras)
    learned = RowLoRAs((loras, None))
    assert learned.stacks is not learned.stacks
    assert joined_rows([None, None], [1, 2]) is None


def test_nested_blocks_add_up(unet):
    one, two = (random_loras(key_value_layers(unet), seed=s) for s in (1, 2))
    with torch.no_grad(), apply_loras(unet, [one, None, one]), apply_loras(unet, [two, two, None]):
        nested = run(unet)
    with torch.no_grad(), apply_loras(unet, [merge_loras([one, two]), two, one]):
        together = run(unet)
    torch.testing.assert_close(nested, together, atol=1e-5, rtol=1e-4)


def test_a_sum_is_the_sum_of_the_matrices():
    torch.manual_seed(0)
    one = {
        "a": LoRALayer(torch.randn(2, 5), torch.randn(3, 2)),
        "b": LoRALayer(torch.ones(1, 2), torch.ones(2, 1)),
    }
    two = {"a": LoRALayer(torch.randn(1, 5), torch.randn(3, 1))}
    total = merge_loras([one, two], [0.25, -2.0])
    torch.testing.assert_close(total["a"].matrix(), 0.25 * one["a"].matrix() - 2 * two["a"].matrix())
    torch.testing.assert_close(total["b"].matrix(), 0.25 * one["b"].matrix())
    assert total["a"].rank == 3


# -- gradients --------------------------------------------------------------------------------------------------------


def as_parameters(loras: dict[str, LoRALayer]) -> list[torch.Tensor]:
    return [tensor.requires_grad_() for lora in loras.values() for tensor in (lora.A, lora.B)]


@pytest.mark.parametrize("rows", [(0, 1, 2), (1,)])
def test_gradients_are_those_of_merged_weights(unet, rows):
    unet = copy.deepcopy(unet).double()
    given = {k: v.double() if v.is_floating_point() else v for k, v in inputs().items()}
    loras = {n: d.to(dtype=torch.float64) for n, d in random_loras(key_value_layers(unet)).items()}
    parameters = as_parameters(loras)
    with apply_loras(unet, [loras if row in rows else None for row in range(3)]):
        found = torch.autograd.grad(run(unet, given)[list(rows)].square().sum(), parameters)

    weights = {f"{n}.weight": unet.get_submodule(n).weight + d.matrix() for n, d in loras.items()}
    output = torch.func.functional_call(unet, weights, kwargs={**given, "return_dict": False})[0]
    expected = torch.autograd.grad(output[list(rows)].square().sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gradient_checkpointing_inside_the_unet_sees_them_in_the_backward_pass(unet):
    loras = random_loras(key_value_layers(unet))
    parameters = as_parameters(loras)
    row_loras = [loras, None, loras]
    with apply_loras(unet, row_loras):
        expected = torch.autograd.grad(run(unet).square().sum(), parameters)
    checkpointed = copy.deepcopy(unet).train()
    checkpointed.enable_gradient_checkpointing()
    with apply_loras(checkpointed, row_loras):
        run(checkpointed).square().sum().backward()
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_checkpointed_call_with_its_own_block_can_be_recomputed_later(unet):
    loras = random_loras(key_value_layers(unet))
    parameters = as_parameters(loras)

    def call(sample):
        with apply_loras(unet, [loras, None, loras]):
            return run(unet, {**inputs(), "sample": sample})

    expected = torch.autograd.grad(call(inputs()["sample"]).square().sum(), parameters)
    output = checkpoint(call, inputs()["sample"], use_reentrant=False)
    assert isinstance(output, torch.Tensor)
    for one, other in zip(torch.autograd.grad(output.square().sum(), parameters), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_after_a_call_in_inference_mode(unet):
    loras = random_loras(key_value_layers(unet))
    with torch.inference_mode(), apply_loras(unet, [None, None, None, loras]):
        run(unet, inputs(4))
    parameters = as_parameters(loras)
    with apply_loras(unet, [None, None, None, loras]):
        output = run(unet, inputs(4))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(output.sum(), parameters))


# -- with what else users do to a U-Net -------------------------------------------------------------------------------


def test_a_lora_adapter_on_the_unet_stays_in_place(unet):
    with_lora = copy.deepcopy(unet)
    with_lora.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    assert set(key_value_layers(with_lora)) == set(key_value_layers(unet))
    loras = random_loras(key_value_layers(with_lora))
    with_lora.requires_grad_(False)
    style = run(with_lora)
    with torch.no_grad(), apply_loras(with_lora, [loras, None, None]):
        both = run(with_lora)
    assert torch.equal(both[1:], style[1:])
    expected = copy.deepcopy(with_lora)
    for name, lora in loras.items():
        expected.get_submodule(name).get_base_layer().weight.data += lora.matrix()  # type: ignore[operator]
    torch.testing.assert_close(both[0], run(expected)[0], atol=1e-5, rtol=1e-4)


def test_attention_slicing_keeps_them(unet):
    sliced = copy.deepcopy(unet)
    sliced.set_attention_slice(1)
    loras = random_loras(key_value_layers(unet))
    with torch.no_grad(), apply_loras(sliced, [loras, None, loras]):
        found = run(sliced)
    with torch.no_grad(), apply_loras(unet, [loras, None, loras]):
        torch.testing.assert_close(found, run(unet), atol=1e-5, rtol=1e-4)


def test_half_precision_and_autocast(unet):
    loras = random_loras(key_value_layers(unet))
    with torch.no_grad(), apply_loras(unet, [loras, None, loras]):
        expected = run(unet)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = run(unet)
    assert (cast.float() - expected).abs().max() < 0.1 * expected.abs().max()
    half = copy.deepcopy(unet).bfloat16()
    given = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs().items()}
    with torch.no_grad(), apply_loras(half, [loras, None, loras]):
        found = run(half, given)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_fused_projections_are_refused_and_unfused_ones_work(unet):
    fused = copy.deepcopy(unet)
    loras = random_loras(key_value_layers(unet))
    fused.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"unfuse_qkv_projections\(\)"), apply_loras(fused, [loras] * 3):
        run(fused)
    fused.unfuse_qkv_projections()
    with torch.no_grad(), apply_loras(fused, [loras] * 3):
        run(fused)


@pytest.mark.parametrize("level", ["layer", "block"])
def test_what_is_replaced_in_a_network_is_found_anew(unet, level):
    """Layers are walked to once; who stands in their place afterwards has the LoRA layers."""
    changed = copy.deepcopy(unet)
    loras = random_loras(key_value_layers(unet))
    with torch.no_grad(), apply_loras(changed, [loras] * 3):
        before = run(changed)
    if level == "block":
        changed.mid_block = copy.deepcopy(changed.mid_block)
    attention = changed.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_k = copy.deepcopy(attention.to_k)
    with torch.no_grad(), apply_loras(changed, [loras] * 3):
        assert torch.equal(run(changed), before)
    attention.to_k = nn.Linear(5, 32, bias=False)
    with pytest.raises(ValueError, match="layer is 32x5: it was made for another"), apply_loras(changed, [loras] * 3):
        run(changed)
    attention.to_k = None
    with pytest.raises(ValueError, match="no layer mid_block"), apply_loras(changed, [loras] * 3):
        run(changed)


@pytest.mark.parametrize("way", ["wrapper", "in place"])
def test_a_compiled_unet_sees_each_calls_deltas_as_inputs_of_one_graph(way):
    """Compiled before anybody had any; made once for plain calls without slots and with them, once for all loras."""
    torch._dynamo.reset()  # what other tests compiled counts towards the same limit
    made: list[int] = []

    def backend(graph, _):
        made.append(1)
        return graph.forward

    one: dict = {"block_out_channels": (16,), "down_block_types": ("CrossAttnDownBlock2D",)}
    one |= {"up_block_types": ("CrossAttnUpBlock2D",)}
    unet = tiny_unet(**one)
    users = [random_loras(key_value_layers(unet), 2, seed) for seed in range(3)]
    plain, expected = run(unet), []
    for user in users:
        with torch.no_grad(), apply_loras(unet, [None, user, None]):
            expected.append(run(unet))
    compiled = unet = tiny_unet(**one)
    if way == "wrapper":
        compiled = torch.compile(unet, backend=backend, fullgraph=True)
    else:
        unet.compile(backend=backend, fullgraph=True)
    with torch.no_grad():
        assert torch.equal(run(compiled), plain)
        for user, right in zip(users, expected, strict=True):
            with apply_loras(compiled, [None, user, None]):  # type: ignore[arg-type]
                assert torch.equal(run(compiled), right)
        assert torch.equal(run(compiled), plain)
    assert len(made) <= 3


def test_blocks_that_are_compiled_see_them_too(unet):
    loras = random_loras(key_value_layers(unet))
    with torch.no_grad(), apply_loras(unet, [loras] * 3):
        expected = run(unet)
    partly = tiny_unet()
    partly.mid_block.compile(backend="eager")  # type: ignore[union-attr]
    with torch.no_grad():
        run(partly)
        with apply_loras(partly, [loras] * 3):
            assert torch.equal(run(partly), expected)


def test_a_network_that_goes_around_the_layers_is_noticed(unet):
    loras = random_loras(key_value_layers(unet))
    with pytest.raises(RuntimeError, match="never called"), apply_loras(unet, [loras] * 3):
        pass


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_another_number_of_rows_is_refused(unet):
    loras = random_loras(key_value_layers(unet))
    with pytest.raises(ValueError, match=r"for 2 rows.*called with 3"), apply_loras(unet, [loras, None]):
        run(unet)


def test_another_models_deltas_are_refused(unet):
    other = random_loras(key_value_layers(tiny_unet(cross_attention_dim=20)))
    message = "is 16x20, but this UNet2DConditionModel's layer is 16x12"
    with pytest.raises(ValueError, match=message), apply_loras(unet, [other] * 3):
        pass


@pytest.mark.parametrize(("down", "up"), [((2, 5), (3, 1)), ((5,), (3, 1)), ((0, 5), (3, 0))])
def test_a_delta_whose_factors_do_not_fit_is_refused(down, up):
    with pytest.raises(ValueError, match="LoRA layer is A"):
        LoRALayer(torch.zeros(down), torch.zeros(up))


@pytest.mark.parametrize("rank", [0, 13, -1])
def test_an_impossible_rank_is_refused(unet, rank):
    with pytest.raises(ValueError, match=f"rank={rank} must be between 1 and 12"):
        initial_loras(key_value_layers(unet), rank)


def test_layers_that_cannot_have_one_are_named(unet):
    with pytest.raises(ValueError, match="norm is a GroupNorm"):
        initial_loras({"norm": unet.get_submodule("conv_norm_out")}, 1)


def test_no_deltas_cost_nothing():
    unet = tiny_unet()
    for row_loras in ([], [None, None, None], [{}, None, {}]):
        with apply_loras(unet, row_loras):
            assert slots_of(unet) == 0
