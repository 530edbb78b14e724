"""SDXL: two text encoders, a pooled state and sizes, in the pipeline that also draws with Stable Diffusion 1 and 2."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModel

from promptnet import PromptNetModel, PromptNetPipeline, Subject
from promptnet.inference.editing.card import EditCard, edit_fingerprint
from promptnet.inference.editing.edit_image import edit_image, image_latents
from promptnet.inference.editing.stock_pipeline import stock_arguments
from promptnet.inference.references import EncodedReferences
from promptnet.inference.tuning.customize import customize_subject, denoising_loss
from promptnet.models.text import encode_prompts
from tests.base_models import write_base

FEW: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent"}
SIZES = [32, 32, 0, 0, 32, 32]
# The tiny tokenizers know no letter at a word's end, so the state pooled is that of the first word's end; a prompt that
# begins with S* has it behind S*, as real ones do.
PROMPT = "S* hat"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("sdxl"), "sdxl")


@pytest.fixture(scope="module")
def plain_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One text encoder."""
    return write_base(tmp_path_factory.mktemp("sd"), "sd")


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(folder: Path, word_width: int = 24 + 32, **more: Any) -> Any:
    """A base model from its folder with an encoder of random weights, as a user would put them together."""
    parts: dict[str, Any] = {
        "image_encoder": CLIPVisionModel.from_pretrained(folder / "vision"),
        "feature_extractor": CLIPImageProcessor.from_pretrained(folder / "vision"),
    }
    unet: Any = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    torch.manual_seed(1)
    parts["promptnet"] = PromptNetModel.from_unet(
        unet, vision_dim=20, prompt_channel=word_width, region_proj_channel=8, region_kernel_size=2
    )
    return quiet(PromptNetPipeline.from_pretrained(folder, **(parts | more)))


@pytest.fixture
def pipe(base: Path) -> Any:
    return load(base)


@pytest.fixture
def stock(base: Path) -> Any:
    return quiet(diffusers.StableDiffusionXLPipeline.from_pretrained(base))


def image(seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipe: Any, prompt: Any = PROMPT, **more: Any) -> Tensor:
    given = {**FEW, "generator": torch.Generator().manual_seed(0), **more}
    return pipe(prompt, **given).images


@contextlib.contextmanager
def watched(unet: Any) -> Iterator[list[dict[str, Any]]]:
    """The arguments of each call."""
    calls: list[dict[str, Any]] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append({"x": args[0], "timestep": args[1], **kwargs, **kwargs.get("added_cond_kwargs", {})})

    handle = unet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


# -- as diffusers draws -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("negative_prompt", [None, ["", "red"]])
def test_plain_prompts_are_drawn_as_diffusers_draws_them(
    pipe: Any, stock: Any, scheduler: str, guidance_scale: float, negative_prompt: Any
):
    kind = getattr(diffusers, scheduler)
    pipe, stock = pipe.to(torch.float64), stock.to(torch.float64)
    pipe.scheduler, stock.scheduler = (kind.from_config(stock.scheduler.config) for _ in range(2))
    asked: dict[str, Any] = {
        "prompt": ["a dog", "hat"],
        "negative_prompt": negative_prompt,
        "num_images_per_prompt": 2,
        "guidance_scale": guidance_scale,
        "guidance_rescale": 0.5,
        "num_inference_steps": 4,
        "output_type": "latent",
    }
    ours = pipe(**asked, generator=seeded(1, 2, 3, 4)).images
    theirs = stock(**asked, generator=seeded(1, 2, 3, 4)).images
    assert ours.dtype == torch.float64  # in which differences are not those of rounding
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("zeros", [True, False])
def test_a_negative_prompt_that_is_not_given_is_zeros_where_the_base_model_says_so(base: Path, stock: Any, zeros: bool):
    stock.register_to_config(force_zeros_for_empty_prompt=zeros)
    pipe, stock = load(base, force_zeros_for_empty_prompt=zeros).to(torch.float64), stock.to(torch.float64)
    given, not_given = draw(pipe, "a dog", negative_prompt=""), draw(pipe, "a dog")
    torch.testing.assert_close(not_given, draw(stock, "a dog", guidance_scale=7.5), rtol=0, atol=1e-5)
    assert torch.equal(given, not_given) is not zeros


def test_images_of_other_sizes_are_drawn_as_diffusers_draws_them(pipe: Any, stock: Any):
    pipe, stock, size = pipe.to(torch.float64), stock.to(torch.float64), {"height": 40, "width": 24}
    ours = draw(pipe, "a dog", **size, resolution="off")
    torch.testing.assert_close(ours, draw(stock, "a dog", **size, guidance_scale=7.5), rtol=0, atol=1e-5)


def test_saved_and_loaded_it_draws_the_same(base: Path, tmp_path: Path):
    pipe = load(base, force_zeros_for_empty_prompt=False)
    pipe.save_pretrained(tmp_path)
    loaded = quiet(PromptNetPipeline.from_pretrained(tmp_path))
    assert type(loaded.text_encoder_2).__name__ == "CLIPTextModelWithProjection"
    assert loaded.config["force_zeros_for_empty_prompt"] is False
    subject = pipe.encode(image())
    torch.testing.assert_close(draw(loaded, subject=subject), draw(pipe, subject=subject), rtol=0, atol=1e-6)


def test_one_tower_knows_nothing_of_zeros(plain_base: Path, tmp_path: Path):
    pipe = load(plain_base, 24)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert "force_zeros_for_empty_prompt" not in index
    assert index["text_encoder_2"] == [None, None]
    with watched(pipe.unet) as calls:
        assert torch.equal(draw(pipe, "a dog"), draw(pipe, "a dog", negative_prompt=""))
    assert "added_cond_kwargs" not in calls[0]


def test_text_towers_stay_where_they_are_when_the_others_are_offloaded(pipe: Any):
    moved = set(pipe.model_cpu_offload_seq.split("->"))
    assert moved == {"image_encoder", "unet", "vae"}
    assert {"text_encoder", "text_encoder_2", "promptnet"} <= set(pipe.components) - moved


# -- subjects ---------------------------------------------------------------------------------------------------------


def slowly(pipe: Any, prompt: str, word: Tensor, gamma: float = 1.0) -> tuple[Tensor, Tensor]:
    """States and pooled state of a prompt, encoder by encoder."""
    how: dict[str, Any] = {"layer": "penultimate", "final_norm": False, "pseudo_word_scale": gamma}
    first = encode_prompts(pipe.tokenizer, pipe.text_encoder, [prompt], [{"S*": word[:, :24]}], **how)
    second = encode_prompts(pipe.tokenizer_2, pipe.text_encoder_2, [prompt], [{"S*": word[:, 24:]}], **how)
    assert second.pooled is not None
    return torch.cat([first.hidden_states, second.hidden_states], dim=-1)[0], second.pooled[0]


@torch.no_grad()
def test_subjects_speak_through_both_towers_in_both_stages(pipe: Any):
    subject, gamma = pipe.encode(image()), 0.7
    config = {"fusion_steps": 1, "class_scale": 2.0, "pseudo_word_scale": gamma}
    with watched(pipe.unet) as calls:
        draw(pipe, subject=subject, num_inference_steps=2, **config)
    assert [len(call["x"]) for call in calls] == [2, 3] * 2
    for index, call in enumerate(calls):
        words = pipe.promptnet(
            subject.reference_latents, call["timestep"], subject.vision_states, noisy_latents=call["x"][1:2]
        ).pseudo_words[0]
        states, pooled = slowly(pipe, PROMPT, words, gamma if index % 2 == 0 else 1.0)
        torch.testing.assert_close(call["encoder_hidden_states"][1], states, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(call["text_embeds"][1], pooled, rtol=1e-5, atol=1e-5)
        assert not call["encoder_hidden_states"][0].any()  # no negative prompt
        assert not call["text_embeds"][0].any()
        assert call["time_ids"].tolist() == [SIZES] * len(call["x"])
        other, other_pooled = slowly(pipe, PROMPT, torch.randn_like(words))
        assert (other - states).abs().max() > 1e-3
        assert (other_pooled - pooled).abs().max() > 1e-3
    assert not torch.equal(calls[0]["text_embeds"][1], calls[2]["text_embeds"][1])  # S* depends on x and t


def test_a_image_does_not_depend_on_its_batch(pipe: Any):
    """Several subjects, several reference images, and a plain prompt."""
    one, two = pipe.encode(image(1)), pipe.encode([image(2), image(3)])
    prompts: Any = [PROMPT, "a dog", "S1* S2*"]
    subjects: Any = [one, None, [one, two]]
    together = draw(pipe, prompts, subject=subjects, generator=seeded(1, 2, 3), class_scale=1.5)
    for row in range(3):
        asked = {"subject": [subjects[row]], "generator": seeded(row + 1), "class_scale": 1.5}
        alone = draw(pipe, [prompts[row]], **asked)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-4)


def test_the_network_is_told_the_size_that_it_draws(pipe: Any):
    """With few latents, other sizes are drawn with the shorter side as trained, and resized."""
    with watched(pipe.unet) as calls:
        images = pipe("a dog", height=96, width=64, num_inference_steps=1, output_type="pt").images
    assert images.shape == (1, 3, 96, 64)
    height, width = (2 * side for side in calls[0]["x"].shape[2:])
    assert (height, width) == (48, 32)
    assert calls[0]["time_ids"].tolist() == [[48, 32, 0, 0, 48, 32]] * 2


def test_the_resolution_is_adapted(pipe: Any):
    subject, size = pipe.encode(image()), {"height": 64, "width": 64}
    adapted, plain = (draw(pipe, subject=subject, **size, resolution=name) for name in ("auto", "off"))
    assert adapted.shape == (1, 4, 32, 32)
    assert adapted.isfinite().all()
    assert (adapted - plain).abs().max() > 1e-3


# -- tuning -----------------------------------------------------------------------------------------------------------


def tuned(pipe: Any, **more: Any) -> Subject:
    options: dict[str, Any] = {"steps": 4, "num_views": 2, "batch_size": 2, "rank": 2, "prompts": PROMPT}
    options |= {"validate_every": 1, "learning_rate": 0.05, "generator": torch.Generator().manual_seed(0)}
    return customize_subject(pipe, image(), progress_bar=False, **(options | more))


def test_a_person_is_tuned_saved_and_drawn(pipe: Any, tmp_path: Path):
    with watched(pipe.unet) as calls:
        subject = tuned(pipe)
    assert all(call["time_ids"].tolist() == [SIZES] * len(call["x"]) for call in calls)
    assert calls[-1]["text_embeds"].shape[1] == 12
    assert any(name.startswith("unet.") for name in subject.loras)
    heads = [lora for name, lora in subject.loras.items() if "region_prompt_output" in name]
    assert [lora.B.shape[0] for lora in heads] == [24 + 32]
    assert set(subject.fingerprint) >= {"text_encoder", "text_encoder_2", "unet", "promptnet"}
    subject.save(tmp_path / "me.safetensors")
    loaded = Subject.load(tmp_path / "me.safetensors")
    assert loaded.content_hash == subject.content_hash
    untuned = pipe.encode(image())
    assert torch.equal(draw(pipe, subject=loaded), draw(pipe, subject=subject))
    assert (draw(pipe, subject=loaded) - draw(pipe, subject=untuned)).abs().max() > 1e-5


def test_the_tuning_loss_reaches_the_words_through_states_and_pooled_state(pipe: Any):
    from promptnet.inference.tuning.views import Batch

    references = pipe.encode_references(image())
    latents = references.latents.repeat(2, 1, 1, 1)
    batch = Batch(
        latents,
        torch.ones_like(latents[:, :1]),
        torch.randn(latents.shape),
        torch.tensor([100, 900]),
        torch.zeros(2, dtype=torch.long),
        [PROMPT] * 2,
    )
    with watched(pipe.unet) as calls:
        loss = denoising_loss(pipe, EncodedReferences(*references), batch)
    assert loss.shape == (2,)
    for name in ("encoder_hidden_states", "text_embeds"):
        (gradient,) = torch.autograd.grad(loss.sum(), calls[0][name], retain_graph=True)
        assert gradient.any()
    words = pipe.promptnet.get_submodule("region_prompt_output").weight
    (through_pooled,) = torch.autograd.grad(calls[0]["text_embeds"].sum(), words)
    assert through_pooled[24:].any()
    assert not through_pooled[:24].any()  # the first encoder has no part in it


# -- edits ------------------------------------------------------------------------------------------------------------


def card(pipe: Any, weights: Tensor) -> EditCard:
    made_in = edit_fingerprint(pipe)
    return EditCard(weights, "a dog", "hat", "DDIMScheduler", guidance_scale=3.0, fingerprint=made_in)


def test_edit_cards_act_as_in_the_stock_pipeline(pipe: Any, stock: Any):
    edit = card(pipe, torch.tensor([1.0, 0.6, 0.1, 0.0]))
    assert set(edit.fingerprint) == {"unet", "text_encoder", "text_encoder_2"}
    latents = torch.randn(1, 4, 16, 16)
    theirs = stock(**stock_arguments(stock, edit), latents=latents, output_type="latent").images
    ours = pipe("a dog", edits=edit, latents=latents, output_type="latent").images
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    plain = pipe("a dog", edits=edit.scaled(0), latents=latents, output_type="latent").images
    assert (ours - plain).abs().max() > 1e-3


def test_images_of_people_are_edited(pipe: Any):
    subject = pipe.encode(image())
    same, edited = (
        edit_image(pipe, subject, card(pipe, weights), prompt=PROMPT, output_type="latent")
        for weights in (torch.ones(4), torch.zeros(4))
    )
    torch.testing.assert_close(same, image_latents(pipe, subject), rtol=0, atol=1e-4)
    assert (edited - same).abs().max() > 1e-3


# -- refusals ---------------------------------------------------------------------------------------------------------


def without_first_tower(base: Path, folder: Path) -> Path:
    """A base model whose index is that of the refiner."""
    shutil.copytree(base, folder / "refiner")
    file = folder / "refiner" / "model_index.json"
    absent = {name: [None, None] for name in ("text_encoder", "tokenizer")}
    file.write_text(json.dumps({**json.loads(file.read_text()), **absent}))
    return folder / "refiner"


def test_the_refiner_is_refused_by_name(base: Path, tmp_path: Path, pipe: Any):
    with pytest.raises(ValueError, match=r"SDXL's refiner.*base model"):
        PromptNetPipeline.from_pretrained(without_first_tower(base, tmp_path))
    pipe.unet.register_to_config(projection_class_embeddings_input_dim=12 + 5 * 8)
    with pytest.raises(ValueError, match=r"adds 52 numbers .* a pooled state of 12 and 6 sizes of 8: .*refiner"):
        PromptNetPipeline(**pipe.components)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_encoder_2": None, "tokenizer_2": None}, "SDXL U-Net.*no text_encoder_2, tokenizer_2"),
        ({"tokenizer_2": None}, "no tokenizer_2: its folder is not complete"),
    ],
)
def test_missing_towers_are_refused_by_name(pipe: Any, change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        PromptNetPipeline(**{**pipe.components, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"addition_embed_type": None}, "reads one: leave out text_encoder_2"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type='text_image' are not supported"),
        ({"in_channels": 9}, "takes 9 channels"),
    ],
)
def test_other_networks_are_refused_by_name(pipe: Any, change: dict[str, Any], message: str):
    pipe.unet.register_to_config(**change)
    with pytest.raises(ValueError, match=message):
        PromptNetPipeline(**pipe.components)


def test_an_encoder_for_other_towers_is_refused_with_the_width_expected(base: Path, plain_base: Path):
    with pytest.raises(ValueError, match=r"words are 24 wide .* these text encoders take 24 \+ 32, that is 56"):
        load(base, 24)
    with pytest.raises(ValueError, match=r"words are 56 wide .* this text encoder takes 24"):
        load(plain_base, 56)


def test_subjects_of_the_other_kind_are_refused_by_name(pipe: Any, plain_base: Path):
    other = load(plain_base, 24)
    with pytest.raises(ValueError, match=r"another base model.*text_encoder_2 differ|weights of .*text_encoder_2"):
        draw(pipe, subject=other.encode(image()))
    with pytest.raises(ValueError, match=r"weights of .*text_encoder_2"):
        draw(other, subject=pipe.encode(image()))


def test_words_of_the_wrong_width_and_tokenizers_that_differ_are_refused(pipe: Any):
    from promptnet.models.base_model_shapes import any_tokenizer
    from promptnet.models.text_encoders import text_encoders_of

    text_encoders = text_encoders_of(pipe)
    with pytest.raises(ValueError, match=r"S\* have shape \(1, 24\), but these text encoders take 24 \+ 32.*\(L, 56\)"):
        text_encoders.encode(["S*"], [{"S*": torch.zeros(1, 24)}])
    pipe.tokenizer_2 = any_tokenizer(12)
    with pytest.raises(ValueError, match="two tokenizers cut prompts in different ways"):
        draw(pipe, "a dog")
