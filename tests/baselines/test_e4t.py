"""E4T: offsets, encoder, one step against the formula, and what comes out."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from promptnet.baselines.config import E4TConfig
from promptnet.baselines.e4t import E4TLearner, E4TPretraining, e4t_subject, pretrain_e4t
from promptnet.baselines.e4t_encoder import (
    E4T,
    class_tokens,
    e4t_fingerprint,
    new_e4t,
    num_unet_features,
    unet_features,
)
from promptnet.baselines.learner import Run, lora_targets
from promptnet.baselines.weight_offsets import WeightOffset, WeightOffsets, as_lora
from promptnet.baselines.words import repeated, word_embeddings
from promptnet.inference.tuning.customize import Steps
from tests.baselines.conftest import picture, seeded
from tests.baselines.formulas import squared_error, text_inputs
from tests.baselines.test_methods import SHORT, batch_of, drawn

# Stable Diffusion 1.4's U-Net: 16 blocks of self- and cross-attention.
SD14: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}


def grown(e4t: E4T) -> E4T:
    """With offsets that are there."""
    for parameter in e4t.offsets.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return e4t


def test_the_offset_is_the_papers_and_starts_at_nothing():
    offset = WeightOffset(3, 5)
    assert not offset().any()
    for parameter in offset.parameters():
        torch.nn.init.normal_(parameter)
    state = offset.state_dict()
    x = state["column.weight"][:, 0] * state["v"] + state["column.bias"]
    y = state["row.weight"][:, 0] * state["v"] + state["row.bias"]
    rows = torch.stack([state["mix_in.weight"] @ (x[i] * y) + state["mix_in.bias"] for i in range(3)])
    columns = [state["mix_out.weight"] @ rows[:, j] + state["mix_out.bias"] for j in range(5)]
    torch.testing.assert_close(offset(), torch.stack(columns, dim=1))


def test_offsets_multiply_weights_in_this_call_alone(pipes):
    unet = pipes["sd"].unet
    name: str
    layer: Any
    name, layer = next(iter(lora_targets(unet, "kv").items()))
    offsets = grown_offsets({name: layer})
    x = torch.randn(2, 5, layer.in_features)
    plain = layer(x)
    with offsets.acting(unet):
        changed = layer(x)
    torch.testing.assert_close(changed, x @ (layer.weight * (1 + offsets.offsets[0]())).mT)
    assert torch.equal(layer(x), plain)
    lora = offsets.loras(unet)[name]
    torch.testing.assert_close(layer.weight + lora.matrix(), layer.weight * (1 + offsets.offsets[0]()))


def grown_offsets(layers: dict[str, Any]) -> WeightOffsets:
    offsets = WeightOffsets(layers)
    for parameter in offsets.parameters():
        torch.nn.init.normal_(parameter)
    return offsets


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_a_change_as_lora_is_exact_or_the_nearest_of_its_rank(shape):
    change = torch.randn(shape, generator=seeded())
    assert torch.equal(as_lora(change).matrix(), change)
    U, S, V = torch.linalg.svd(change)
    nearest = U[:, :2] @ torch.diag(S[:2]) @ V[:2]
    torch.testing.assert_close(as_lora(change, 2).matrix(), nearest)
    assert as_lora(change, 2).rank == 2


def num_offset_parameters(d_out: int, d_in: int) -> int:
    """How many parameters the offset of one layer has."""
    return 1 + 3 * (d_out + d_in) + d_out**2 + d_in**2


@pytest.mark.parametrize(("layers", "count"), [("kv", 32), ("attention", 128)])
def test_offsets_of_stable_diffusion_14_have_as_many_parameters_as_counted(layers, count):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD14)
        targets = lora_targets(unet, layers)
        offsets = WeightOffsets(targets)
    assert len(targets) == count
    widths = {320: 5, 640: 5, 1280: 6}  # blocks of each width: 2 down, 3 up; and the middle one
    expected = 0
    for width, blocks in widths.items():
        expected += blocks * 2 * num_offset_parameters(width, 768)  # k, v of the prompt
        if layers == "attention":
            expected += blocks * 6 * num_offset_parameters(width, width)  # q, k, v, out; q, out
    assert sum(p.numel() for p in offsets.parameters()) == expected
    assert expected == {"kv": 43_803_808, "attention": 192_937_984}[layers]


def test_the_encoder_reads_as_many_features_as_the_unet_has():
    with torch.device("meta"):
        assert num_unet_features(UNet2DConditionModel(**SD14)) == 10_880


def test_features_are_the_means_of_skips_and_middle(with_clip):
    pipe = with_clip
    noisy, timesteps = torch.randn(2, 4, 16, 16, generator=seeded()), torch.tensor([5, 500])
    seen: list[torch.Tensor] = []
    hooks = [
        pipe.unet.conv_in.register_forward_hook(lambda *a: seen.append(a[2])),
        pipe.unet.mid_block.register_forward_hook(lambda *a: seen.append(a[2])),
        *(block.register_forward_hook(lambda *a: seen.extend(a[2][1])) for block in pipe.unet.down_blocks),
    ]
    empty = text_inputs(pipe, word_embeddings(pipe, "a")[:0], before="")
    empty["encoder_hidden_states"] = empty["encoder_hidden_states"].expand(2, -1, -1)
    if "added_cond_kwargs" in empty:
        empty["added_cond_kwargs"] = {name: v.expand(2, -1) for name, v in empty["added_cond_kwargs"].items()}
    pipe.unet(noisy, timesteps, **empty)
    for hook in hooks:
        hook.remove()
    expected = torch.cat([feature.mean(dim=(2, 3)) for feature in seen], dim=1)
    found = unet_features(pipe, noisy, timesteps)
    assert found.shape[1] == num_unet_features(pipe.unet)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_one_steps_loss_and_gradient_are_the_papers(with_clip):
    pipe = with_clip
    torch.manual_seed(4)
    model = grown(new_e4t(pipe, "a", "kv"))
    config = E4TConfig(**{**SHORT, "batch_size": 2})
    run = Run(pipe, picture(), "a", config, seeded())
    tokens = class_tokens(pipe, [picture()])
    learner, batch = E4TLearner(model, run.own, tokens, 0.1), batch_of([100, 700])
    steps = Steps(run.own, learner, config)
    steps.optimizer.zero_grad = lambda *_: None  # type: ignore[method-assign]
    before = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    loss = steps.take(run.views.references, batch)

    def formula() -> torch.Tensor:
        named = dict(zip(model.offsets.names, model.offsets.offsets, strict=True))
        weights = {f"{n}.weight": pipe.unet.get_submodule(n).weight * (1 + o()) for n, o in named.items()}
        parts = []
        for i, t in enumerate(batch.timesteps):
            a = pipe.scheduler.alphas_cumprod[t]
            noisy = a.sqrt() * batch.latents[i : i + 1] + (1 - a).sqrt() * batch.noise[i : i + 1]
            offset = model.encoder(tokens, unet_features(pipe, noisy, t[None]))
            word = repeated(word_embeddings(pipe, "a"), 1) + 0.1 * offset
            stand_in: Any = type("Pipe", (), {"scheduler": pipe.scheduler})()
            stand_in.unet = lambda *args, **more: torch.func.functional_call(pipe.unet, weights, args, more)
            one = slice(i, i + 1)
            error = squared_error(stand_in, batch.latents[one], batch.noise[one], int(t), text_inputs(pipe, word))
            parts.append(error + 0.1 * offset.square().sum())
        return torch.stack(parts).mean()

    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(before[name])
            p.grad = None
    expected = formula()
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, rtol=5e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_pretrained_and_tuned_it_gives_a_subject_without_an_encoder(with_clip, pipe, tmp_path):
    losses: list[float] = []
    recipe = E4TPretraining(steps=2, batch_size=2, learning_rate=1e-2, prompts=("a S*",))
    folder = pretrain_e4t(
        with_clip, [picture(s) for s in range(3)], tmp_path / "e4t", "a", recipe,
        generator=seeded(), on_step=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    assert len(losses) == 2
    config = E4TConfig(**{**SHORT, "batch_size": 2, "learning_rate": 1e-2}, num_levels=3)
    subjects = [
        e4t_subject(with_clip, picture(), folder, config, generator=seeded(), progress_bar=False) for _ in range(2)
    ]
    assert subjects[0].content_hash == subjects[1].content_hash
    assert subjects[0].class_word == "a"
    assert set(subjects[0].unet_loras) == set(lora_targets(pipe.unet, "kv"))
    assert not torch.equal(drawn(pipe, "a S*", subjects[0]), drawn(pipe, "a a"))


def test_another_base_model_and_a_missing_image_encoder_are_refused(with_clip, pipe, tmp_path):
    folder = tmp_path / "e4t"
    new_e4t(with_clip, "a").save(folder, {**e4t_fingerprint(with_clip), "unet": "other"})
    with pytest.raises(ValueError, match="another base model: the weights of unet differ"):
        E4T.load(folder, with_clip)
    with pytest.raises(ValueError, match="image_encoder"):
        new_e4t(pipe)
    with pytest.raises(ValueError, match="no folder of promptnet pretrain-e4t"):
        E4T.load(tmp_path, with_clip)
    with pytest.raises(ValueError, match="no image to pretrain"):
        pretrain_e4t(with_clip, [], tmp_path / "new")


def test_weights_that_are_not_finite_are_not_written(with_clip, tmp_path):
    model = new_e4t(with_clip)
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="values that are not finite"):
        model.save(tmp_path / "e4t", {})
    assert not list(tmp_path.iterdir())
