"""The embedded model's parts, built with random weights: Stable Diffusion's architecture, small enough for any CPU.

64 px images, latents 4 x 16 x 16, prompts of up to 48 tokens. The recipe that trains them: configs/tiny/.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModel,
)

SIZE_PX = 64
MAX_TOKENS = 48
TEXT_WIDTH = 192
VISION_WIDTH = 128
PROJECTION_DIM = 128
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's format, trained on `texts`; every text can be encoded, known words short."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    blank = CLIPTokenizer()
    trainable = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=EOS))
    trainable.normalizer = blank.backend_tokenizer.normalizer
    trainable.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        special_tokens=[],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trainable.train_from_iterator(texts, trainer)
    merges: Any = [tuple(pair) for pair in json.loads(trainable.to_str())["model"]["merges"]]
    # As in CLIP: every byte, every byte at a word's end, every merge, then the two special tokens.
    words = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges), BOS, EOS]
    vocab = {word: index for index, word in enumerate(dict.fromkeys(words))}
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS, **special)


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Both encoders with random weights; the text encoder's special tokens are the tokenizer's."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": PROJECTION_DIM,
        **special,
    }
    vision = {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 4 * VISION_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE_PX,
        "patch_size": 8,
        "projection_dim": PROJECTION_DIM,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION_DIM))


_PROJECTIONS = "clip_projections.safetensors"


def save_projections(clip: CLIPModel, folder: Path) -> None:
    """Write what a CLIP has beyond its two encoders, so that each encoder is stored once, where diffusers wants it."""
    state = clip.state_dict()
    shared = {name: state[name] for name in ("text_projection.weight", "visual_projection.weight", "logit_scale")}
    save_file({name: value.to(torch.float16).contiguous() for name, value in shared.items()}, folder / _PROJECTIONS)


def load_clip(folder: str | Path) -> CLIPModel:
    """The CLIP of an embedded model's folder: both encoders and the projections into the shared space, in float32.

    Raises:
        ValueError: the folder holds another base model, which has no CLIP of its own.
    """
    folder = Path(folder)
    if not (folder / _PROJECTIONS).is_file():
        raise ValueError(
            f"The base model '{folder}' brings no CLIP of its own ({_PROJECTIONS}): name the folder of a transformers "
            "CLIPModel, with --clip or clip_dir."
        )
    text: Any = CLIPTextModel.from_pretrained(folder / "text_encoder")
    vision: Any = CLIPVisionModel.from_pretrained(folder / "image_encoder")
    clip = CLIPModel(CLIPConfig(text_config=text.config, vision_config=vision.config, projection_dim=PROJECTION_DIM))
    copy_encoder(text, clip.text_model)
    copy_encoder(vision, clip.vision_model)
    clip.load_state_dict(load_file(folder / _PROJECTIONS), strict=False)
    return clip.float().eval()


def copy_encoder(source: nn.Module, target: nn.Module) -> None:
    """Copy a CLIP encoder between its stand-alone class and CLIPModel, whatever prefix either puts before the names."""
    ours, theirs = target.state_dict(), source.state_dict()
    long, short = max((ours, theirs), key=_first_name_length), min((ours, theirs), key=_first_name_length)
    prefix = next(iter(long)).removesuffix(next(iter(short)))
    renamed = (
        {f"{prefix}{name}": value for name, value in theirs.items()}
        if long is ours
        else {name.removeprefix(prefix): value for name, value in theirs.items()}
    )
    target.load_state_dict(renamed)


def _first_name_length(state: dict[str, torch.Tensor]) -> int:
    return len(next(iter(state)))


def build_image_processor() -> CLIPImageProcessor:
    """Images as the image encoder wants them: 64 px, values in [-1, 1]."""
    side = {"height": SIZE_PX, "width": SIZE_PX}
    return CLIPImageProcessor(
        size={"shortest_edge": SIZE_PX}, crop_size=side, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )


# Spec tables: what each part is made of.
_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (32, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": SIZE_PX,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
    "force_upcast": False,
}
_UNET: dict[str, Any] = {
    "sample_size": SIZE_PX // 4,
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": TEXT_WIDTH,
    "norm_num_groups": 16,
    "use_linear_projection": True,
}
_HEAD_WIDTH = 32


def build_vae() -> AutoencoderKL:
    """64 px images to latents 4 x 16 x 16."""
    return AutoencoderKL(**_VAE)


def build_unet(channels: tuple[int, int, int] = (64, 128, 192)) -> UNet2DConditionModel:
    """The U-Net: three levels at 16, 8 and 4 latent pixels, each attending to the text encoder's states."""
    # diffusers calls the number of heads `attention_head_dim` here.
    heads = tuple(width // _HEAD_WIDTH for width in channels)
    return UNet2DConditionModel(block_out_channels=channels, attention_head_dim=heads, **_UNET)  # type: ignore[arg-type]


def build_scheduler() -> DDIMScheduler:
    """DDIM for v-prediction with zero terminal signal-to-noise ratio and trailing steps (arXiv 2305.08891)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
