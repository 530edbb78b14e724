"""Random-weight models, small enough for milliseconds: 16 px images, latents 4 x 8 x 8."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

TEXT_WIDTH = 32


def build_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def unet() -> UNet2DConditionModel:
    return build_unet()


def build_pipeline() -> Any:
    """Every component with random weights."""
    from promptnet import PromptNetModel, PromptNetPipeline
    from promptnet.models.tiny import train_tokenizer

    torch.manual_seed(1)
    tokenizer = train_tokenizer(["a photo of a person wearing a hat, a dog and a woman on a red chair"] * 2, 600)
    tokenizer.model_max_length = 24
    special: Any = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        **special,
    )
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    two_blocks: Any = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    vae = AutoencoderKL(**two_blocks, norm_num_groups=4, latent_channels=4)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    unet = build_unet()
    promptnet = PromptNetModel.from_unet(
        unet, vision_dim=24, prompt_channel=TEXT_WIDTH, region_proj_channel=8, region_kernel_size=1
    )
    extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    networks: dict[str, Any] = {"vae": vae, "text_encoder": CLIPTextModel(text), "promptnet": promptnet}
    networks["image_encoder"] = CLIPVisionModel(vision)
    for network in networks.values():
        network.eval().requires_grad_(False)
    parts = {**networks, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler, "feature_extractor": extractor}
    pipe = PromptNetPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def networks() -> dict[str, Any]:
    """Components, built once; nothing changes their weights."""
    return build_pipeline().components


@pytest.fixture
def pipe(networks: dict[str, Any]) -> Any:
    """A pipeline of one's own, of shared networks."""
    from promptnet import PromptNetPipeline

    scheduler = DDIMScheduler.from_config(networks["scheduler"].config)
    pipe = PromptNetPipeline(**{**networks, "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def new_pipe() -> Any:
    """A pipeline of networks of its own, which nobody has called."""
    return build_pipeline()


def build_subject(pipe: Any, seed: int = 0, *, num_references: int = 1, tuned: bool = False, **more: Any) -> Any:
    """Somebody made of noise; tuned ones have LoRA layers large enough to see."""
    from promptnet import Subject
    from promptnet.inference.subject.fingerprint import fingerprint
    from promptnet.inference.subject.lora import LoRALayer, initial_loras, key_value_layers, word_layers

    generator = torch.Generator().manual_seed(seed)
    layers = {f"unet.{name}": layer for name, layer in key_value_layers(pipe.unet).items()}
    layers |= {f"promptnet.{name}": layer for name, layer in word_layers(pipe.promptnet).items()}
    loras = initial_loras(layers, 2, generator) if tuned else {}
    return Subject(
        torch.randn(num_references, 4, 8, 8, generator=generator),
        torch.randn(num_references, 17, 24, generator=generator),
        torch.ones(num_references),
        fingerprint=fingerprint(pipe),
        loras={n: LoRALayer(d.A, torch.randn(d.B.shape, generator=generator)) for n, d in loras.items()},
        **{"class_word": "person", **more},
    )


@pytest.fixture(scope="session")
def make_subject() -> Any:
    return build_subject
