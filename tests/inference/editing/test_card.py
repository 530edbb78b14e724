"""Mixing weights: the formula, resampling, the file, the rule, and the same in diffusers' own pipelines."""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from promptnet.inference.editing.card import EditCard, EditError, edit_fingerprint, start_weights
from promptnet.inference.editing.rule import Directions, Mixing, joined_weights, mix, mixing_rule, weight_place
from promptnet.inference.editing.schedule_settings import schedule_settings
from promptnet.inference.editing.stock_pipeline import stock_arguments
from promptnet.inference.sampling.conditions import PlainPrompts, networks_of
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.sampling.guidance import ClassifierFreeGuidance, Condition
from promptnet.inference.sampling.loop import Step, Term, UNetInputs, sample
from promptnet.inference.sampling.phases import Role
from promptnet.inference.sampling.schedule import plan
from promptnet.inference.subject.subject import hash_content
from tests.inference.conftest import build_unet

SCHEDULERS = ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
NEUTRAL, STYLED, OTHER = "a photo of a person", "a photo of a person wearing a hat", "a photo of a dog"


def make_card(num_steps: int = 6, **more: Any) -> EditCard:
    values: dict[str, Any] = {
        "weights": start_weights(num_steps),
        "neutral": NEUTRAL,
        "styled": STYLED,
        "scheduler": "DDIMScheduler",
        "guidance_scale": 3.0,
        "fingerprint": {"unet": "0" * 16},
        "base": "tiny",
    }
    return EditCard(**{**values, **more})


def use_scheduler(pipe: Any, name: str) -> None:
    options = {"skip_prk_steps": True, "prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)


# --- the numbers --------------------------------------------------------------------------------------------------


def test_mix_is_exact_at_both_ends():
    neutral, styled = torch.randn(2, 3, 4)
    assert torch.equal(mix(neutral, styled, 1.0), neutral)
    assert torch.equal(mix(neutral, styled, 0.0), styled)
    torch.testing.assert_close(mix(neutral, styled, 0.25), neutral / 4 + styled * 3 / 4)


def test_the_published_start_is_twenty_neutral_steps_of_fifty():
    assert start_weights(50).tolist() == [1.0] * 20 + [0.0] * 30


def test_resampling_keeps_a_switch_in_its_place():
    assert make_card(50).at_steps(20).weights.tolist() == pytest.approx([1.0] * 8 + [0.0] * 12, abs=1e-6)
    assert make_card(5).at_steps(10).weights.tolist() == pytest.approx([1.0] * 4 + [0.0] * 6, abs=1e-6)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=60), st.integers(1, 80))
def test_resampling_keeps_the_mean_and_the_range(values: list[float], num_steps: int):
    card = make_card(weights=torch.tensor(values, dtype=torch.float64))
    found = card.at_steps(num_steps).weights
    assert len(found) == num_steps
    assert found.mean().item() == pytest.approx(card.weights.mean().item(), abs=1e-9)
    assert min(values) - 1e-9 <= found.min().item() <= found.max().item() <= max(values) + 1e-9


def test_strength_dials_from_the_original_beyond_what_was_learned():
    card = make_card(weights=torch.tensor([1.0, 0.5, 0.0]))
    assert card.scaled(0).weights.tolist() == [1, 1, 1]
    assert card.scaled(1).weights.tolist() == [1, 0.5, 0]
    assert card.scaled(2).weights.tolist() == [1, 0, -1]
    with pytest.raises(EditError, match="strength=nan"):
        card.scaled(float("nan"))


def test_the_first_two_calls_of_plms_share_a_weight():
    assert [weight_place(call, 51, 50, shared=True) for call in (0, 1, 2, 50)] == [0, 0, 1, 49]
    assert [weight_place(call, 50, 50) for call in (0, 1, 49)] == [0, 1, 49]
    for num_calls, shared in ((49, False), (51, False), (52, False), (50, True), (52, True)):
        with pytest.raises(EditError, match=f"50 mixing weights, but the scheduler makes {num_calls} calls"):
            weight_place(0, num_calls, 50, shared=shared)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.tensor([1.0, float("nan")])}, "not finite"),
        ({"weights": torch.ones(0)}, "one for each of"),
        ({"weights": torch.ones(2, 2)}, "not of shape"),
        ({"weights": torch.ones(2, dtype=torch.int64)}, "float32"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf"),
        ({"neutral": 3}, "neutral=3"),
        ({"fingerprint": {"unet": 1}}, "fingerprint"),
        ({"fingerprint": "x"}, "fingerprint"),
        ({"schedule": ["leading"]}, "schedule="),
        ({"schedule": {"alphas": "0.5"}}, "schedule="),
    ],
)
def test_values_that_cannot_be_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(EditError, match=message):
        make_card(**change)


# --- the file -----------------------------------------------------------------------------------------------------


def test_a_card_comes_back_as_it_was(tmp_path: Path):
    schedule = schedule_settings(diffusers.DDIMScheduler())
    card, path = make_card(weights=torch.randn(50), schedule=schedule), tmp_path / "smile.safetensors"
    card.save(path)
    found = EditCard.load(path)
    assert torch.equal(found.weights, card.weights)
    assert found.texts() == card.texts()
    assert path.stat().st_size < 2048
    assert list(tmp_path.iterdir()) == [path]


def write_card(path: Path, card: EditCard, weights: Tensor, **change: Any) -> None:
    """A card made by hand, its hash right."""
    texts = {**card.texts(), **change}
    header = {"version": 1, "content_hash": hash_content(texts, {"weights": weights}), **texts}
    metadata = {"promptnet.mixing": json.dumps(header)}
    path.write_bytes(safetensors.torch.save({"weights": weights}, metadata=metadata))


def test_cards_that_cannot_be_used_say_why(tmp_path: Path):
    card, path = make_card(), tmp_path / "card.safetensors"

    def refusal() -> str:
        with pytest.raises(EditError) as caught:
            EditCard.load(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "does not exist" in refusal()
    card.save(path)
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "cut short" in refusal()
    path.write_bytes(whole.replace(b"wearing a hat", b"wearing a cap"))
    assert "altered" in refusal()
    path.write_bytes(whole[:-1] + b"\x01")
    assert "altered" in refusal()
    write_card(path, card, torch.tensor([float("inf")]))
    assert "not finite" in refusal()
    write_card(path, card, card.weights, stranger=1)
    assert "not laid out" in refusal()
    path.write_bytes(safetensors.torch.save({"weights": card.weights}))
    assert "no edit card" in refusal()
    path.write_bytes(b"0" * (2 * 1024 * 1024))
    assert "something else" in refusal()


def test_a_card_cannot_be_written_where_there_is_no_folder(tmp_path: Path):
    with pytest.raises(EditError, match="create the folder"):
        make_card().save(tmp_path / "nowhere" / "card.safetensors")


# --- whether it fits ----------------------------------------------------------------------------------------------


def test_another_base_scheduler_or_number_of_steps_is_refused(pipe: Any):
    card = make_card(fingerprint=edit_fingerprint(pipe))
    card.check(pipe, 6)
    with pytest.raises(EditError, match=r"6 weights, but the drawing 20 steps: .*at_steps\(20\)"):
        card.check(pipe, 20)
    with pytest.raises(EditError, match=r"another base model .*the weights of unet differ"):
        replace(card, fingerprint={**card.fingerprint, "unet": "f" * 16}).check(pipe)
    use_scheduler(pipe, "EulerDiscreteScheduler")
    with pytest.raises(EditError, match="learned with the scheduler DDIMScheduler, but the pipeline has Euler"):
        card.check(pipe)


def test_another_setting_of_the_scheduler_is_refused(pipe: Any):
    card = make_card(fingerprint=edit_fingerprint(pipe), schedule=schedule_settings(pipe.scheduler))
    card.check(pipe)
    config = pipe.scheduler.config
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"timestep_spacing": "leading"}, "timestep_spacing='trailing', but the pipeline's has .*'leading'"),
        ({"rescale_betas_zero_snr": False}, r"alphas=\["),
        ({"beta_end": 0.02}, r"alphas=\["),
    )
    for change, message in changes:
        pipe.scheduler = diffusers.DDIMScheduler.from_config(config, **change)
        with pytest.raises(EditError, match=message):
            card.check(pipe)
        replace(card, schedule={}).check(pipe)  # as older cards have it
        other = replace(card, schedule=schedule_settings(pipe.scheduler))
        with pytest.raises(EditError, match="different settings of the scheduler"):
            joined_weights([card, other])


def test_settings_are_those_that_the_class_knows(pipe: Any):
    found: Any = schedule_settings(diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config))
    assert found["timestep_spacing"] == "trailing"
    assert "use_karras_sigmas" in found
    assert "skip_prk_steps" not in found
    assert found["alphas"][-1] == pytest.approx(0, abs=1e-6)


def test_edits_that_do_not_belong_together_are_refused():
    card = make_card()
    assert joined_weights([card, card]).shape == (2, 6)
    for change, message in (
        ({"weights": torch.ones(7)}, "6 and 7 weights"),
        ({"scheduler": "PNDMScheduler"}, "different schedulers"),
        ({"fingerprint": {"unet": "1" * 16}}, "different base models"),
    ):
        with pytest.raises(EditError, match=message):
            joined_weights([card, replace(card, **change)])
    with pytest.raises(EditError, match="no edit"):
        joined_weights([])


# --- the rule -----------------------------------------------------------------------------------------------------

STEP = Step(1, 3, torch.tensor(500), 0.5, 0.9)


def test_the_rule_is_the_formula_and_spares_the_unconditional_term():
    neutral, styled, other = torch.randn(3, 5, 4)
    weights = torch.tensor([[1.0, 0.3, 0.0], [1.0, 0.8, 0.0]])
    rule = Mixing(weights, Directions(torch.stack([styled - neutral, other - neutral])))
    given = UNetInputs(neutral.expand(2, 5, 4))
    terms = [Term(role, 0.5, lambda x, step: given) for role in (Role.UNCOND, Role.PROMPT)]
    uncond, prompt = (term.inputs(torch.zeros(2, 1, 1, 1), STEP) for term in rule.terms(terms, STEP))
    assert torch.equal(uncond.encoder_hidden_states, given.encoder_hidden_states)
    expected = neutral + 0.7 * (styled - neutral) + 0.2 * (other - neutral)
    torch.testing.assert_close(prompt.encoder_hidden_states, expected.expand(2, 5, 4))
    alone = Mixing(weights[:1], Directions((styled - neutral)[None])).terms(terms, STEP)[1]
    found = alone.inputs(torch.zeros(2, 1, 1, 1), STEP).encoder_hidden_states[0]
    torch.testing.assert_close(found, mix(neutral, styled, 0.3))


def test_conditions_of_another_length_are_refused():
    rule = Mixing(torch.ones(1, 3), Directions(torch.randn(1, 5, 4)))
    term = rule.terms([Term(Role.PROMPT, 1.0, lambda x, step: UNetInputs(torch.zeros(1, 7, 4)))], STEP)[0]
    with pytest.raises(EditError, match=r"\(7, 4\)"):
        term.inputs(torch.zeros(1), STEP)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_rule_takes_one_call_more_than_weights_from_plms_alone(pipe: Any, name: str):
    use_scheduler(pipe, name)
    rule = Mixing(torch.rand(1, 6), Directions(torch.randn(1, 5, 4)))
    pipe.scheduler.set_timesteps(6 if name == "PNDMScheduler" else 7)
    steps = plan(pipe.scheduler)
    assert len(steps) == 7
    if name == "PNDMScheduler":
        assert [rule.terms([], step) for step in steps] == [[]] * 7
        return
    with pytest.raises(EditError, match="6 mixing weights, but the scheduler makes 7 calls"):
        rule.terms([], steps[1])  # the first step cannot tell


def test_a_base_models_own_rescaling_and_noise_are_not_an_edits(pipe: Any, monkeypatch: pytest.MonkeyPatch):
    card = make_card(fingerprint=edit_fingerprint(pipe))

    def generated(**config: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(NEUTRAL, edits=card, generator=generator, output_type="latent", **config).images

    expected = generated()
    own = SamplingConfig(guidance_rescale=0.7, eta=1.0)
    monkeypatch.setattr(type(pipe), "sampling_defaults", own)
    assert torch.equal(generated(), expected)
    assert (generated(guidance_rescale=0.7) - expected).abs().max() > 1e-3
    assert (generated(eta=1.0) - expected).abs().max() > 1e-3


# --- the same in diffusers' own pipelines -------------------------------------------------------------------------


def stock(pipe: Any) -> Any:
    found = diffusers.StableDiffusionPipeline(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        unet=pipe.unet,
        scheduler=pipe.scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    found.set_progress_bar_config(disable=True)
    return found


@torch.no_grad()
def on_the_loop(pipe: Any, cards: list[EditCard], latents: Tensor) -> Tensor:
    networks = networks_of(pipe)
    prompts, rows = PlainPrompts(networks, ["", cards[0].neutral]), torch.arange(len(latents))
    negative, positive = (prompts.condition([text] * len(latents), rows) for text in ("", cards[0].neutral))
    guidance = ClassifierFreeGuidance(negative, positive, cards[0].guidance_scale)
    pipe.scheduler.set_timesteps(cards[0].num_steps)
    x = latents * pipe.scheduler.init_noise_sigma
    return sample(pipe.unet, pipe.scheduler, x, [guidance, mixing_rule(cards, networks)])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_stock_pipeline_draws_what_the_rule_draws(pipe: Any, name: str):
    use_scheduler(pipe, name)
    card = make_card(weights=torch.rand(6), scheduler=name, fingerprint=edit_fingerprint(pipe))
    cards, latents = [card, replace(card, styled=OTHER, weights=torch.rand(6))], torch.randn(2, 4, 8, 8)
    expected = on_the_loop(pipe, cards, latents)
    theirs = stock(pipe)
    generated: Any = theirs(**stock_arguments(theirs, cards, num_images=2), latents=latents, output_type="latent")
    torch.testing.assert_close(generated.images, expected, rtol=1e-4, atol=1e-4)
    plain = on_the_loop(pipe, [one.scaled(0) for one in cards], latents)
    assert (plain - expected).abs().max() > 1e-2


@pytest.mark.parametrize("num_steps", [1, 5, 7, 8])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_another_number_of_steps_is_refused_while_drawing(pipe: Any, name: str, num_steps: int):
    use_scheduler(pipe, name)
    card = make_card(scheduler=name, fingerprint=edit_fingerprint(pipe))
    theirs, latents = stock(pipe), torch.randn(1, 4, 8, 8)
    arguments = {**stock_arguments(theirs, card), "num_inference_steps": num_steps}
    num_calls = num_steps + (name == "PNDMScheduler" and num_steps > 1)
    with pytest.raises(EditError, match=rf"6 mixing weights, but the scheduler makes {num_calls} calls.*at_steps"):
        theirs(**arguments, latents=latents, output_type="latent")


def with_another_unet(pipe: Any) -> None:
    pipe.unet = build_unet(seed=1)


def with_another_text_tower(pipe: Any) -> None:
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder)
    pipe.text_encoder.get_input_embeddings().weight.add_(0.1)


def with_another_scheduler(pipe: Any) -> None:
    use_scheduler(pipe, "EulerDiscreteScheduler")


def with_another_setting(pipe: Any) -> None:
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")


@pytest.mark.parametrize(
    ("change", "problem", "fix"),
    [
        (with_another_unet, "another base model (tiny) than this one: the weights of unet differ", "learn it again"),
        (with_another_text_tower, "the weights of text_encoder differ", "Load the base model it was learned in"),
        (
            with_another_scheduler,
            "learned with the scheduler DDIMScheduler, but the pipeline has EulerDiscreteScheduler",
            "set pipe.scheduler = ",
        ),
        (with_another_setting, "timestep_spacing='trailing', but the pipeline's has timestep_spacing", "settings, "),
    ],
)
def test_a_stock_pipeline_that_an_edit_was_not_learned_in_is_refused(
    pipe: Any, change: Callable[[Any], None], problem: str, fix: str
):
    card = make_card(fingerprint=edit_fingerprint(pipe), schedule=schedule_settings(pipe.scheduler))
    theirs = stock(pipe)
    stock_arguments(theirs, card)
    change(theirs)
    for cards in (card, [card, card]):
        with pytest.raises(EditError, match=f"{re.escape(problem)}.*{re.escape(fix)}"):
            stock_arguments(theirs, cards)


def test_without_guidance_too(pipe: Any):
    card = make_card(weights=torch.rand(6), fingerprint=edit_fingerprint(pipe), guidance_scale=1.0)
    latents, theirs = torch.randn(1, 4, 8, 8), stock(pipe)
    generated: Any = theirs(**stock_arguments(theirs, card), latents=latents, output_type="latent")
    torch.testing.assert_close(generated.images, on_the_loop(pipe, [card], latents), rtol=1e-4, atol=1e-4)


def test_prompts_longer_than_the_tower_are_refused(pipe: Any):
    card = make_card(styled="a hat " * 30, fingerprint=edit_fingerprint(pipe))
    with pytest.raises(ValueError, match="tokens"):
        stock_arguments(stock(pipe), card)
    with pytest.raises(ValueError, match="tokens"):
        stock_arguments(stock(pipe), replace(card, styled=STYLED), negative_prompt=card.styled)
    networks = networks_of(pipe)
    with pytest.raises(ValueError, match="tokens"):
        mixing_rule([card], networks)


def stock_xl(pipe: Any) -> Any:
    """SDXL's two encoders, pooled states and added conditions, in a few thousand weights."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    settings = {**pipe.text_encoder.config.to_dict(), "projection_dim": 16}
    config: Any = CLIPTextConfig(**settings)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    found: Any = StableDiffusionXLPipeline(
        vae=pipe.vae,
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=pipe.tokenizer,
        tokenizer_2=pipe.tokenizer,
        unet=unet,
        scheduler=pipe.scheduler,
        add_watermarker=False,
    )
    for network in (found.text_encoder, found.text_encoder_2, found.unet):
        network.eval().requires_grad_(False)
    found.set_progress_bar_config(disable=True)
    return found


@torch.no_grad()
def test_sdxl_mixes_the_pooled_states_too(pipe: Any):
    theirs = stock_xl(pipe)
    card = make_card(weights=torch.rand(6), fingerprint=edit_fingerprint(theirs))
    assert set(card.fingerprint) == {"unet", "text_encoder", "text_encoder_2"}
    latents = torch.randn(1, 4, 8, 8)
    generated: Any = theirs(**stock_arguments(theirs, card), latents=latents, output_type="latent", height=16, width=16)

    def encoded(text: str) -> tuple[Tensor, Tensor]:
        found = theirs.encode_prompt(text, do_classifier_free_guidance=False, device="cpu")
        return found[0], found[2]

    (neutral, pooled_neutral), (styled, pooled_styled) = encoded(NEUTRAL), encoded(STYLED)
    times = torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]])

    def given(states: Tensor, pooled: Tensor) -> Condition:
        extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": times}}
        return Condition(lambda x, step: UNetInputs(states, extra))

    nothing = given(torch.zeros_like(neutral), torch.zeros_like(pooled_neutral))
    guidance = ClassifierFreeGuidance(nothing, given(neutral, pooled_neutral), card.guidance_scale)

    def ours(directions: Directions) -> Tensor:
        theirs.scheduler.set_timesteps(6)
        return sample(theirs.unet, theirs.scheduler, latents, [guidance, Mixing(card.weights[None], directions)])

    expected = ours(Directions(styled - neutral, pooled_styled - pooled_neutral))
    torch.testing.assert_close(generated.images, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(generated.images, ours(Directions(styled - neutral)), rtol=1e-4, atol=1e-4)


# --- in our own pipeline ------------------------------------------------------------------------------------------


def test_the_pipeline_draws_in_the_steps_and_with_the_guidance_of_the_edit(pipe: Any):
    card = make_card(weights=torch.rand(6), fingerprint=edit_fingerprint(pipe))
    latents = torch.randn(2, 4, 8, 8)
    options: dict[str, Any] = {"latents": latents, "output_type": "latent", "num_images_per_prompt": 2}
    generated = pipe(NEUTRAL, edits=card, **options).images
    assert pipe.num_timesteps == 6
    torch.testing.assert_close(generated, on_the_loop(pipe, [card], latents))
    plain = pipe(NEUTRAL, num_inference_steps=6, guidance_scale=3.0, **options).images
    assert torch.equal(pipe(NEUTRAL, edits=[card.scaled(0)], **options).images, plain)
    with pytest.raises(EditError, match=r"at_steps\(7\)"):
        pipe(NEUTRAL, edits=card, num_inference_steps=7, **options)


def test_an_edit_learned_without_a_subject_acts_on_one(pipe: Any, make_subject: Any):
    card = make_card(weights=torch.zeros(6), fingerprint=edit_fingerprint(pipe))
    options: dict[str, Any] = {"subject": make_subject(pipe, tuned=True), "latents": torch.randn(1, 4, 8, 8)}

    def generated(**more: Any) -> Tensor:
        torch.manual_seed(0)
        return pipe("a photo of S*", output_type="latent", **options, **more).images

    assert torch.equal(generated(edits=card.scaled(0)), generated(num_inference_steps=6))
    assert (generated(edits=card) - generated(num_inference_steps=6)).abs().max() > 1e-3


def test_a_card_comes_back_from_its_bytes() -> None:
    card = make_card()
    assert EditCard.from_bytes(card.to_bytes()).texts() == card.texts()
    with pytest.raises(EditError, match="The given edit card cannot be used"):
        EditCard.from_bytes(card.to_bytes()[:-1])
