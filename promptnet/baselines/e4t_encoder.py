"""E4T's encoder: one image, seen by CLIP and by the U-Net under noise, to an offset from the class word (section 4.1).

    S* = e(class word) + s E(x, x_t, t)

E joins the class tokens of every second layer of the image encoder, and of the last, each with what the U-Net's down
and middle blocks make of x_t under an empty prompt, averaged over places. A linear map a layer, their mean, a leaky
ReLU and one linear map give the offset. The paper has no public code of its authors; sizes and slopes are as in the
public re-implementation. The U-Net is read without offsets, so it needs no gradient.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptnet.baselines.config import check_layers
from promptnet.baselines.learner import lora_targets
from promptnet.baselines.weight_offsets import WeightOffsets
from promptnet.io.atomic import new_folder

CONFIG, WEIGHTS = "config.json", "e4t.safetensors"


class E4TEncoder(nn.Module):
    """Maps features of images to offsets of words.

    Args:
        num_layers: class tokens an image.
        vision_dim: V, their width.
        unet_dim: U, of the U-Net's pooled features.
        word_dim: D, the sum of the text encoders' widths.
    """

    def __init__(self, num_layers: int, vision_dim: int, unet_dim: int, word_dim: int) -> None:
        super().__init__()
        self.unet_embedding = nn.Sequential(
            nn.Linear(unet_dim, vision_dim), nn.LeakyReLU(), nn.Linear(vision_dim, vision_dim)
        )
        self.joint = nn.Linear(2 * vision_dim, vision_dim)
        self.of_layers = nn.ModuleList([nn.Linear(vision_dim, vision_dim) for _ in range(num_layers)])
        self.last = nn.Linear(vision_dim, word_dim)

    def forward(self, class_tokens: Tensor, unet_features: Tensor) -> Tensor:
        """Return offsets (B, D) of class tokens (B, K, V) and U-Net features (B, U)."""
        noisy = self.unet_embedding(unet_features)[:, None].expand_as(class_tokens)
        joint = self.joint(torch.cat([class_tokens, noisy], dim=-1))  # (B, K, V)
        layers = [layer(joint[:, k]) for k, layer in enumerate(self.of_layers)]
        return self.last(F.leaky_relu(torch.stack(layers).mean(0)))


class E4T(nn.Module):
    """Encoder and offsets, which are pretrained on a domain together.

    Args:
        unet: of the base model.
        vision_config: of the image encoder.
        word_dim: D, the sum of the text encoders' widths.
        class_word: of the domain.
        layers: "kv" or "attention": which layers get offsets.
        scale: s.
    """

    def __init__(
        self, unet: Any, vision_config: Any, word_dim: int, class_word: str, layers: str = "kv", scale: float = 0.1
    ) -> None:
        super().__init__()
        check_layers(layers)
        self.class_word, self.layers, self.scale = class_word, layers, scale
        num_layers = vision_config.num_hidden_layers // 2 + 1
        self.encoder = E4TEncoder(num_layers, vision_config.hidden_size, num_unet_features(unet), word_dim)
        self.offsets = WeightOffsets(lora_targets(unet, layers))

    def words(self, class_words: Tensor, class_tokens: Tensor, unet_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return S* (B, 1, D) and the encoder's offsets (B, D)."""
        offsets = self.encoder(class_tokens, unet_features)
        return class_words + self.scale * offsets[:, None], offsets

    def save(self, folder: Path, fingerprint: Mapping[str, str]) -> None:
        """Write a new folder with the weights and what they were made for.

        Raises:
            ValueError: a weight is not finite, or the folder exists.
        """
        if bad := [name for name, weight in self.state_dict().items() if not bool(weight.isfinite().all())]:
            raise ValueError(
                f"{bad[0]} holds values that are not finite, so '{folder}' is not written: lower the rate."
            )
        config = {"class_word": self.class_word, "layers": self.layers, "scale": self.scale}
        with new_folder(folder) as part:
            (part / CONFIG).write_text(
                json.dumps({**config, "fingerprint": dict(fingerprint)}, indent=1) + "\n", "utf-8"
            )
            state = {name: weight.detach().cpu().contiguous() for name, weight in self.state_dict().items()}
            safetensors.torch.save_file(state, part / WEIGHTS)

    @classmethod
    def load(cls, folder: Path, pipe: Any) -> "E4T":
        """Read such a folder.

        Args:
            folder: that `save` wrote.
            pipe: with the base model and image encoder that it was made with.

        Raises:
            ValueError: it cannot be read, or was made with another base model or image encoder.
        """
        from promptnet.inference.subject.fingerprint import differing

        try:
            config = json.loads((folder / CONFIG).read_text("utf-8"))
            state = safetensors.torch.load_file(folder / WEIGHTS)
            made_with = config.pop("fingerprint")
            found = new_e4t(pipe, **config)
        except (OSError, KeyError, TypeError, safetensors.SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"'{folder}' is no folder of promptnet pretrain-e4t ({error}): name one.") from error
        if names := differing(made_with, e4t_fingerprint(pipe)):
            raise ValueError(
                f"The E4T encoder '{folder}' was made with another base model: the weights of {', '.join(names)} "
                "differ. Pretrain one for this base model."
            )
        found.load_state_dict(state)
        return found


def e4t_fingerprint(pipe: Any) -> dict[str, str]:
    """Return the hashes of what E4T depends on."""
    from promptnet.inference.subject.fingerprint import COMPONENTS, hashes_of

    return hashes_of(pipe, [name for name in COMPONENTS if name != "promptnet"])


def new_e4t(pipe: Any, class_word: str = "person", layers: str = "kv", scale: float = 0.1) -> E4T:
    """Return an untrained E4T for a pipeline, on its device.

    Raises:
        ValueError: the pipeline has no image encoder.
    """
    from promptnet.models.text_encoders import text_encoders_of

    if pipe.image_encoder is None or pipe.feature_extractor is None:
        raise ValueError("E4T reads the image with CLIP: give the pipeline an image_encoder and a feature_extractor.")
    width = text_encoders_of(pipe).width
    return E4T(pipe.unet, pipe.image_encoder.config, width, class_word, layers, scale).to(pipe.unet.device)


# -- what the encoder reads -------------------------------------------------------------------------------------------


@torch.no_grad()
def class_tokens(pipe: Any, images: Sequence[Any]) -> Tensor:
    """Return the class tokens (B, K, V) float32 of every second layer of the image encoder, and of the last."""
    encoder = pipe.image_encoder
    pixels = pipe.feature_extractor(images=list(images), return_tensors="pt").pixel_values
    states = encoder(pixels.to(encoder.device, encoder.dtype), output_hidden_states=True).hidden_states
    chosen = [*states[2::2], states[-1]][: encoder.config.num_hidden_layers // 2] + [states[-1]]
    return torch.stack([state[:, 0].float() for state in chosen], dim=1)


@torch.no_grad()
def unet_features(pipe: Any, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """Return what the U-Net's down and middle blocks make of noisy latents, averaged over places, (B, U) float32."""
    from promptnet.inference.sampling.conditions import PlainPrompts, networks_of

    unet, rows = pipe.unet, torch.arange(len(noisy), device=noisy.device)
    plain = PlainPrompts(networks_of(pipe), [""])
    inputs = plain.condition([""] * len(noisy), rows).inputs(noisy, None)  # type: ignore[arg-type]
    states = inputs.encoder_hidden_states
    time = unet.time_embedding(unet.get_time_embed(noisy, timesteps))
    added = unet.get_aug_embed(time, states, inputs.extra.get("added_cond_kwargs", {}))
    time = time if added is None else time + added
    hidden = unet.conv_in(noisy)
    features = [hidden]
    for block in unet.down_blocks:
        given = {"encoder_hidden_states": states} if getattr(block, "has_cross_attention", False) else {}
        hidden, skips = block(hidden_states=hidden, temb=time, **given)
        features += skips
    features.append(unet.mid_block(hidden, time, encoder_hidden_states=states))
    return torch.cat([feature.float().mean(dim=(2, 3)) for feature in features], dim=1)


def num_unet_features(unet: Any) -> int:
    """Return U: the channels of all skips and of the middle block, 10,880 for Stable Diffusion 1.4."""
    channels = tuple(unet.config["block_out_channels"])
    layers = unet.config["layers_per_block"]
    counts = [layers] * len(channels) if isinstance(layers, int) else list(layers)
    downsamplers = [1] * (len(channels) - 1) + [0]
    skips = sum(c * (n + d) for c, n, d in zip(channels, counts, downsamplers, strict=True))
    return channels[0] + skips + channels[-1]
