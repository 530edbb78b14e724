"""What users of diffusers' own pipelines expect: LoRA, textual inversion, prompt_embeds, clip_skip, single files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

from promptnet import PromptNetPipeline
from promptnet.inference.editing.card import EditCard, edit_fingerprint
from tests.base_models import write_base

PROMPT = "a photo of a dog"


def stock_of(pipe: Any) -> Any:
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    parts = {name: getattr(pipe, name) for name in names}
    stock = StableDiffusionPipeline(
        **parts,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    return stock


@pytest.fixture
def xl(tmp_path: Path) -> tuple[Any, Any]:
    folder = write_base(tmp_path / "xl", "sdxl")
    ours, stock = PromptNetPipeline.from_pretrained(folder), StableDiffusionXLPipeline.from_pretrained(folder)
    for pipe in (ours, stock):
        pipe.set_progress_bar_config(disable=True)
    return ours, stock


def draw(pipe: Any, prompt: Any = PROMPT, seed: int = 0, **options: Any) -> Any:
    if options.get("prompt_embeds") is not None:
        prompt = None if isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)) else ""
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent", **options}
    result: Any = pipe(prompt, generator=torch.Generator().manual_seed(seed), **options)
    return result.images


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


def differ(one: Tensor, other: Tensor) -> None:
    assert (one - other).abs().max() > 1e-3


def write_lora(pipe: Any, folder: Path, seed: int = 7) -> Path:
    """A LoRA of another person's making, on what a subject's own LoRA layers stand on too, as diffusers saves it."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v", "to_q"]), "made")
    generator = torch.Generator().manual_seed(seed)
    for name, weight in pipe.unet.named_parameters():
        if ".lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    layers = get_peft_model_state_dict(pipe.unet, adapter_name="made")
    type(pipe).save_lora_weights(folder, unet_lora_layers=layers)
    pipe.unet.delete_adapters("made")
    return folder


# -- LoRA -------------------------------------------------------------------------------------------------------------


def test_a_lora_draws_as_in_diffusers_and_can_be_unloaded(new_pipe: Any, tmp_path: Path) -> None:
    plain, folder = draw(new_pipe), write_lora(stock_of(new_pipe), tmp_path)
    new_pipe.load_lora_weights(folder, adapter_name="style")
    styled = draw(new_pipe)
    differ(styled, plain)
    same(styled, draw(stock_of(new_pipe)))
    new_pipe.set_adapters("style", 0.5)
    same(draw(new_pipe), draw(stock_of(new_pipe)))
    differ(draw(new_pipe), styled)
    new_pipe.unload_lora_weights()
    same(draw(new_pipe), plain)


def test_a_lora_and_a_subjects_own_layers_add_up(new_pipe: Any, make_subject: Any, tmp_path: Path) -> None:
    """The subject was made before the LoRA came, and its layers had slots before peft wrapped them."""
    subject, options = make_subject(new_pipe, 1, tuned=True), {"fusion_steps": 1}
    alone = draw(new_pipe, "S* on a chair", subject=subject, **options)
    new_pipe.load_lora_weights(write_lora(stock_of(new_pipe), tmp_path), adapter_name="style")
    both = draw(new_pipe, "S* on a chair", subject=subject, **options)
    differ(both, alone)
    untuned = draw(new_pipe, "S* on a chair", subject=subject.scaled(0), **options)
    differ(both, untuned)
    new_pipe.set_adapters("style", 0.0)
    same(draw(new_pipe, "S* on a chair", subject=subject, **options), alone)
    new_pipe.set_adapters("style", 1.0)
    same(draw(new_pipe, "S* on a chair", subject=subject, **options), both)
    new_pipe.unload_lora_weights()
    assert torch.equal(draw(new_pipe, "S* on a chair", subject=subject, **options), alone)


def test_a_fused_lora_is_another_base_model_until_it_is_unfused(
    new_pipe: Any, make_subject: Any, tmp_path: Path
) -> None:
    subject = make_subject(new_pipe, 1, tuned=True)
    new_pipe.load_lora_weights(write_lora(stock_of(new_pipe), tmp_path))
    styled = draw(new_pipe, "S*", subject=subject)
    new_pipe.fuse_lora()
    with pytest.raises(ValueError, match="the weights of unet differ"):
        draw(new_pipe, "S*", subject=subject)
    new_pipe.unfuse_lora()
    torch.testing.assert_close(draw(new_pipe, "S*", subject=subject), styled, rtol=1e-3, atol=1e-3)


def test_a_lora_of_sdxl(xl: tuple[Any, Any], tmp_path: Path) -> None:
    ours, stock = xl
    folder = write_lora(stock, tmp_path / "lora")
    plain = draw(ours)
    for pipe in (ours, stock):
        pipe.load_lora_weights(folder)
    differ(draw(ours), plain)
    same(draw(ours), draw(stock))


def test_a_person_is_customized_beside_a_lora(new_pipe: Any, tmp_path: Path) -> None:
    from PIL import Image

    new_pipe.load_lora_weights(write_lora(stock_of(new_pipe), tmp_path))
    options: Any = {"steps": 2, "batch_size": 2, "num_views": 2, "learning_rate": 3e-2, "validate_every": 1}
    subject = new_pipe.customize(Image.new("RGB", (48, 48), "grey"), progress_bar=False, **options)
    assert draw(new_pipe, "S*", subject=subject).isfinite().all()


# -- textual inversion ------------------------------------------------------------------------------------------------


def test_words_of_textual_inversions(new_pipe: Any, make_subject: Any) -> None:
    subject = make_subject(new_pipe, 1, tuned=True)
    alone = draw(new_pipe, "S* on a chair", subject=subject)
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    new_pipe.load_textual_inversion({"<toon>": vectors}, token="<toon>")
    stock = stock_of(new_pipe)
    prompt = "a photo of a <toon> dog"
    same(draw(new_pipe, prompt), draw(stock, prompt))
    differ(draw(new_pipe, prompt), draw(new_pipe, "a photo of a dog"))
    same(draw(new_pipe, "S* on a chair", subject=subject), alone)
    differ(draw(new_pipe, "S* on a <toon> chair", subject=subject), alone)
    new_pipe.unload_textual_inversion("<toon>")
    same(draw(new_pipe, "S* on a chair", subject=subject), alone)


# -- prompts that are encoded already ---------------------------------------------------------------------------------


def test_states_draw_as_in_diffusers(pipe: Any) -> None:
    generator = torch.Generator().manual_seed(4)
    given: dict[str, Any] = {"prompt_embeds": torch.randn(2, 24, 32, generator=generator)}
    given |= {"negative_prompt_embeds": torch.randn(2, 24, 32, generator=generator)}
    same(draw(pipe, **given), draw(stock_of(pipe), **given))
    same(draw(pipe, **given, num_images_per_prompt=2), draw(stock_of(pipe), **given, num_images_per_prompt=2))


def test_states_of_sdxl_draw_as_in_diffusers(xl: tuple[Any, Any]) -> None:
    generator = torch.Generator().manual_seed(4)
    given: dict[str, Any] = {
        f"{name}prompt_embeds": torch.randn(1, 16, 56, generator=generator) for name in ("", "negative_")
    }
    given |= {f"{name}pooled_prompt_embeds": torch.randn(1, 12, generator=generator) for name in ("", "negative_")}
    same(draw(xl[0], **given), draw(xl[1], **given))


def test_negative_states_go_beside_a_subject(pipe: Any, make_subject: Any) -> None:
    subject = make_subject(pipe, 1)
    states = pipe.text_encoder(pipe.tokenizer("a hat", padding="max_length", return_tensors="pt").input_ids)[0]
    found = draw(pipe, "S*", subject=subject, negative_prompt_embeds=states)
    same(found, draw(pipe, "S*", subject=subject, negative_prompt="a hat"))


REFUSED: dict[str, tuple[Callable[[Any, Any], dict[str, Any]], str]] = {
    "subject": (lambda _, subject: {"prompt_embeds": torch.zeros(1, 24, 32), "subject": subject}, "needs the text"),
    "both": (lambda *_: {"prompt_embeds": torch.zeros(1, 24, 32), "prompt": "a dog"}, "are both given"),
    "negative": (
        lambda *_: {"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": torch.zeros(1, 24, 32)},
        "are both given",
    ),
    "width": (lambda *_: {"prompt_embeds": torch.zeros(1, 24, 16)}, r"must be a tensor \(B, T, 32\)"),
    "kind": (lambda *_: {"prompt_embeds": "a dog"}, r"must be a tensor"),
    "pooled": (lambda *_: {"prompt_embeds": torch.zeros(1, 24, 32), "pooled_prompt_embeds": torch.zeros(1, 3)}, "SDXL"),
    "pooled alone": (lambda *_: {"pooled_prompt_embeds": torch.zeros(1, 3)}, "give both"),
    "count": (lambda *_: {"prompt": ["a", "b"], "negative_prompt_embeds": torch.zeros(3, 24, 32)}, "states for 3"),
    "edit": (lambda pipe, _: {"prompt_embeds": torch.zeros(1, 24, 32), "edits": card_of(pipe)}, "Edits need the texts"),
    "skip": (lambda *_: {"prompt": "a", "clip_skip": 3}, "clip_skip=3 must be a whole number from 0 to 2"),
}


def card_of(pipe: Any) -> EditCard:
    texts = ("a photo of a person", "a photo of a person wearing a hat")
    return EditCard(torch.tensor([0.2, 0.8]), *texts, "DDIMScheduler", 3.0, edit_fingerprint(pipe), "tiny")


@pytest.mark.parametrize("case", REFUSED)
def test_states_that_cannot_be_are_refused(case: str, pipe: Any, make_subject: Any) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        pipe(**arguments(pipe, make_subject(pipe, 1)), num_inference_steps=2)


# -- clip_skip --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_clip_skip_reads_earlier_states_behind_the_final_norm(clip_skip: int, pipe: Any) -> None:
    """As in diffusers, whose own pipeline fails at it with some versions of transformers."""
    ids = pipe.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    states = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-1 - clip_skip]
    encoder = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    found = draw(pipe, clip_skip=clip_skip, negative_prompt="a hat")
    same(found, draw(pipe, prompt_embeds=encoder.final_layer_norm(states), negative_prompt="a hat"))


def test_clip_skip_of_sdxl_is_that_of_diffusers(xl: tuple[Any, Any]) -> None:
    options: Any = {"clip_skip": 1, "negative_prompt": "a hat"}
    same(draw(xl[0], **options), draw(xl[1], **options))


def test_clip_skip_reaches_the_prompt_of_a_subject(pipe: Any, make_subject: Any) -> None:
    subject = make_subject(pipe, 1)
    plain = draw(pipe, "S* on a chair", subject=subject)
    differ(draw(pipe, "S* on a chair", subject=subject, clip_skip=1), plain)
    same(draw(pipe, "S* on a chair", subject=subject, clip_skip=0), plain)


# -- single files -----------------------------------------------------------------------------------------------------


def test_a_single_file_gives_the_base_models_parts(
    pipe: Any, make_subject: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers reads the file; its reading of real files needs real shapes, so a stand-in reads here."""
    asked: list[Any] = []

    def read(file: str, **options: Any) -> Any:
        asked.append((file, options))
        return stock_of(pipe)

    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", read)
    file = tmp_path / "model.safetensors"
    save_file({"cond_stage_model.a": torch.zeros(1)}, file)
    found = PromptNetPipeline.from_single_file(
        file,
        config="folder",
        promptnet=pipe.promptnet,
        image_encoder=pipe.image_encoder,
        feature_extractor=pipe.feature_extractor,
        sampling={"fusion_steps": 0},
    )
    found.set_progress_bar_config(disable=True)
    assert asked == [(str(file), {"config": "folder", "torch_dtype": torch.float32})]
    subject = make_subject(pipe, 1)
    same(draw(found, "S*", subject=subject), draw(pipe, "S*", subject=subject, fusion_steps=0))


def test_single_files_are_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'nobody\.safetensors' does not exist"):
        PromptNetPipeline.from_single_file("nobody.safetensors")
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match="is no safetensors file"):
        PromptNetPipeline.from_single_file(tmp_path / "model.ckpt")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is broken"):
        PromptNetPipeline.from_single_file(tmp_path / "cut.safetensors")


# -- the subject, dialled ---------------------------------------------------------------------------------------------


def test_a_subject_is_dialled(pipe: Any, make_subject: Any) -> None:
    tuned = make_subject(pipe, 1, tuned=True)
    plain = replace(tuned, loras={})
    images = {strength: draw(pipe, "S*", subject=tuned.scaled(strength)) for strength in (0, 0.5, 1)}
    same(images[0], draw(pipe, "S*", subject=plain))
    same(images[1], draw(pipe, "S*", subject=tuned))
    differ(images[0.5], images[0])
    differ(images[0.5], images[1])
    with pytest.raises(ValueError, match="finite number"):
        tuned.scaled(float("nan"))
    with pytest.raises(ValueError, match="was not tuned"):
        plain.scaled(0.7)


# -- names of arguments -----------------------------------------------------------------------------------------------


def test_a_misspelt_argument_is_answered_with_the_closest(pipe: Any) -> None:
    with pytest.raises(TypeError, match=r"no argument 'fusion_step': did you mean fusion_steps\?"):
        pipe(PROMPT, fusion_step=1)
    with pytest.raises(TypeError, match=r"no argument 'learning_rat': did you mean learning_rate\?"):
        pipe.customize("nobody.png", learning_rat=1)
