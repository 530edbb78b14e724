"""What a pipeline call is given, checked and completed before anything is drawn."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from promptnet.inference.values import tensor, whole
from promptnet.models.text_encoders import TextEncoders

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
SDXL_ADDITION = "text_time"  # what SDXL's U-Net adds to its time embedding: a pooled state, and sizes
_NUM_SIZES = 6
_COMPLETE_VIT_H = (1024, 24)  # width and layers of OpenCLIP's text encoder


def check_base_model(unet_config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> None:
    """Refuse base models whose U-Net wants something else than latents and what text encoders make of a prompt.

    Raises:
        ValueError: it is an inpainting or upscaling model, or of a family that is not Stable Diffusion's.
    """
    kind = unet_config.get("addition_embed_type")
    if kind not in (None, SDXL_ADDITION):
        raise ValueError(
            f"U-Nets with addition_embed_type={kind!r} are not supported: use a base model of the kind of Stable "
            "Diffusion 1.5, 2 or XL."
        )
    if unet_config["in_channels"] != vae_config["latent_channels"]:
        raise ValueError(
            f"The U-Net takes {unet_config['in_channels']} channels, but the latents have "
            f"{vae_config['latent_channels']}: use a text-to-image base model, not one for inpainting or upscaling."
        )


def check_text_encoders(unet_config: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Refuse text encoders that are not those which the U-Net reads: one, or SDXL's two.

    Args:
        unet_config: of a U-Net that `check_base_model` lets through.
        parts: `text_encoder`, `tokenizer`, `text_encoder_2` and `tokenizer_2`, None where there is none.

    Raises:
        ValueError: a part is missing or too much, or it is SDXL's refiner.
    """
    is_xl = unet_config.get("addition_embed_type") == SDXL_ADDITION
    if is_xl and parts["text_encoder"] is None and parts["text_encoder_2"] is not None:
        raise ValueError(
            "This is SDXL's refiner, with the second text encoder alone: it goes on with images that SDXL has begun, "
            "and cannot begin one. Use SDXL's base model."
        )
    wanted = parts if is_xl else [name for name in parts if not name.endswith("_2")]
    absent = [name for name in wanted if parts[name] is None]
    if absent:
        what = "an SDXL U-Net (two text encoders)" if is_xl else "a U-Net for one text encoder"
        raise ValueError(f"The base model has {what}, but no {', '.join(absent)}: its folder is not complete.")
    if not is_xl and any(parts[name] is not None for name in parts if name not in wanted):
        raise ValueError(
            "A second text encoder is given, but the U-Net reads one: leave out text_encoder_2, tokenizer_2."
        )
    if is_xl:
        second: Any = parts["text_encoder_2"]
        _check_sizes(unet_config, second.config.projection_dim)


def check_text_layer(layer: str | None, text_configs: Sequence[Any]) -> None:
    """Refuse an unknown layer, and a complete encoder of Stable Diffusion 2 without one.

    That base model reads the states before the last layer of OpenCLIP's ViT-H. Its own text encoder was cut there, so
    that its last states are the right ones; a complete one's are others.

    Args:
        layer: `text_layer` of the pipeline.
        text_configs: of the text encoders.

    Raises:
        ValueError: says what to set.
    """
    if layer not in (None, "last", "penultimate"):
        raise ValueError(f"text_layer={layer!r} must be 'last' or 'penultimate'.")
    if len(text_configs) > 1:
        if layer is not None:
            raise ValueError(f"text_layer={layer!r} is for one text encoder: SDXL's are read before their last layers.")
        return
    size = text_configs[0].hidden_size, text_configs[0].num_hidden_layers
    if layer is None and size == _COMPLETE_VIT_H:
        raise ValueError(
            f"The text encoder is OpenCLIP's complete ViT-H, of {size[1]} layers, of which Stable Diffusion 2 reads "
            "the states before the last: give text_layer='penultimate' (or 'last', if the base model was trained so), "
            f"or take Stable Diffusion 2's own text encoder, of {size[1] - 1} layers."
        )


def _check_sizes(unet_config: Mapping[str, Any], pooled_width: int) -> None:
    """The refiner, also with both encoders: in place of a target size it wants a score."""
    expected, each = (
        unet_config[name] for name in ("projection_class_embeddings_input_dim", "addition_time_embed_dim")
    )
    if expected != pooled_width + _NUM_SIZES * each:
        raise ValueError(
            f"The U-Net adds {expected} numbers to its time embedding, but SDXL's base model a pooled state of "
            f"{pooled_width} and {_NUM_SIZES} sizes of {each}: this is SDXL's refiner, or its second text encoder is "
            "another model's. Use SDXL's base model."
        )


def check_words(word_width: int, text_encoders: TextEncoders) -> None:
    """Refuse an encoder that makes words for other text encoders.

    Raises:
        ValueError: names both widths.
    """
    if word_width != text_encoders.width:
        raise ValueError(
            f"The encoder's words are {word_width} wide (prompt_channel), but {text_encoders.width_in_words()} "
            f"{text_encoders.width}: load the encoder that was trained for this base model (promptnet=...)."
        )


def check_vision(encoder_config: Mapping[str, Any], vision_config: Any, vae_config: Mapping[str, Any]) -> None:
    """Refuse an encoder that reads images in another way than these networks show them.

    Args:
        encoder_config: PromptNet's.
        vision_config: of the image encoder; None where there is none.
        vae_config: of the base model's.

    Raises:
        ValueError: names both numbers.
    """
    width = getattr(vision_config, "hidden_size", None)
    if width is not None and width != encoder_config["vision_dim"]:
        raise ValueError(
            f"The encoder reads states {encoder_config['vision_dim']} wide (vision_dim), but the image encoder's are "
            f"{width}: load the CLIP image encoder that the encoder was trained with (image_encoder=...)."
        )
    channels = encoder_config["in_channels"], vae_config["latent_channels"]
    if channels[0] != channels[1]:
        raise ValueError(
            f"The encoder reads latents of {channels[0]} channels (in_channels), but the base model's have "
            f"{channels[1]}: load the encoder that was trained for this base model (promptnet=...)."
        )


def check_tokenizer(tokenizer: Any, text_config: Any) -> None:
    """Refuse a tokenizer of another encoder; from a folder without one, transformers makes one that knows no word.

    Raises:
        ValueError: it has not half of the encoder's tokens.
    """
    if 2 * len(tokenizer) < text_config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the text encoder {text_config.vocab_size}: it is not this "
            "encoder's, or its folder is empty or missing. Copy or download the base model's tokenizer folder again."
        )


def check_output_type(output_type: str) -> None:
    """Refuse what no postprocessing knows, before the work is done."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type={output_type!r} must be one of {', '.join(OUTPUT_TYPES)}.")


def tensors_for_callback(callback: Any, names: Sequence[str] | None, *, known: Sequence[str]) -> list[str]:
    """The names of the tensors that the callback gets; diffusers' callback classes bring their own."""
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end={callback!r} must be a function of (pipe, index, timestep, tensors).")
    names = getattr(callback, "tensor_inputs", names)
    strangers = [name for name in names or () if name not in known]
    if strangers:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs can hold {', '.join(known)}, but has {', '.join(strangers)}."
        )
    return list(known if names is None else names)


def chosen_size_px(
    given_px: tuple[int | None, int | None], trained_px: tuple[int, int], multiple_px: int
) -> tuple[int, int]:
    """Height and width of the images.

    Raises:
        ValueError: a side is not a multiple of what the networks divide by; names the nearest that is.
    """
    sizes_px = tuple(trained if given is None else given for given, trained in zip(given_px, trained_px, strict=True))
    for name, size_px in zip(("height", "width"), sizes_px, strict=True):
        whole(name, size_px, 0)
        if size_px < multiple_px or size_px % multiple_px:
            nearest = max(multiple_px, round(size_px / multiple_px) * multiple_px)
            raise ValueError(
                f"{name}={size_px} pixels must be a multiple of {multiple_px} with this base model: the nearest is "
                f"{nearest}."
            )
    return int(sizes_px[0]), int(sizes_px[1])


def starting_noise(
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
    latents: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Standard normal latents (B, C, H, W), or those given.

    Raises:
        ValueError: the latents have another shape.
    """
    if latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
    return tensor("latents", latents, shape).to(device, dtype)


def kwargs_of_step(scheduler: Any, *, eta: float, generator: Any) -> dict[str, Any]:
    """What this scheduler's step takes of eta and generator.

    Raises:
        ValueError: eta is asked for, but the scheduler has none.
    """
    taken = signature(scheduler.step).parameters
    if eta and "eta" not in taken:
        raise ValueError(f"eta={eta} is a parameter of DDIM, but the scheduler is {type(scheduler).__name__}.")
    if scheduler.config.get("rescale_betas_zero_snr", False):
        # From pure noise, eta = 1 leaves 1 - b - sigma^2 = 0 for the direction; rounded below zero, its root is NaN.
        eta = min(eta, 1 - 1e-6)
    given = {"eta": eta, "generator": generator}
    return {name: value for name, value in given.items() if name in taken}


def check_encoder(components: Mapping[str, Any]) -> None:
    """Refuse a pipeline that lacks what subjects need.

    Raises:
        ValueError: names what is missing.
    """
    absent = [name for name, component in components.items() if component is None]
    if absent:
        raise ValueError(
            f"This pipeline has no {', '.join(absent)}, which subjects need: load it with promptnet=..., the encoder "
            "for this base model, and with image_encoder=... and feature_extractor=..., the image encoder that the "
            "encoder was trained with."
        )
