"""What an edit is learned by: parts of the loss, each a number an image (Wu et al., arXiv 2212.08698, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from promptnet.models.tiny import load_clip


@dataclass(frozen=True)
class Edit:
    """What is being learned, for parts of the loss that read it."""

    base_dir: Path
    neutral: str
    styled: str
    device: torch.device


class LossPart:
    """A part of the loss. Subclasses are chosen by `class_path` in a config.

    Args:
        weight: its factor in the sum.
    """

    name = ""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def prepare(self, edit: Edit) -> None:
        """Load what is needed, once, before training."""

    def __call__(self, image: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """The part (B,) of images (B, 3, H, W) in about [-1, 1], made of originals of that shape."""
        raise NotImplementedError


def frozen(network: Any, device: torch.device) -> Any:
    """The network for evaluation, on the device."""
    return nn.Module.to(network, device).eval().requires_grad_(False)


def resized(pixels: torch.Tensor, size_px: int) -> torch.Tensor:
    """Images (B, 3, H, W) at the size a network reads."""
    if pixels.shape[2:] == (size_px, size_px):
        return pixels
    return F.interpolate(pixels, size=(size_px, size_px), mode="bicubic", antialias=True)


def normalised(pixels: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    """Images in [-1, 1] in the units of a network that wants (p - mean) / std of p in [0, 1]."""
    mean, std = (torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for values in (mean, std))
    return (pixels / 2 + 0.5 - mean) / std


def feature_distance(first: list[torch.Tensor], second: list[torch.Tensor]) -> torch.Tensor:
    """Mean over depths of the L1 distance of features, (B,)."""
    return torch.stack([(a - b).abs().flatten(1).mean(1) for a, b in zip(first, second, strict=True)]).mean(0)


def published_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Images in about [-1, 1] as the published losses take them: in [0, 1], cut off there."""
    return (pixels / 2 + 0.5).clamp(0, 1)


def repeated_and_pooled(pixels: torch.Tensor, size_px: int) -> torch.Tensor:
    """Square images (B, C, S, S) at another size: pixels repeated, then means; as published 512 x 7 / 16 = 224."""
    common = math.gcd(pixels.shape[-1], size_px)
    larger = F.interpolate(pixels, scale_factor=size_px // common)
    return F.avg_pool2d(larger, pixels.shape[-1] // common)


class ClipReader:
    """A CLIP with its preprocessing as differentiable arithmetic.

    Args:
        base_dir: embedded model, whose own encoders are used where `clip_dir` is None.
        clip_dir: folder of a transformers CLIPModel with its tokenizer.
        device: where it computes.
        as_published: feed images in [0, 1], not in the units that CLIP was trained with.
    """

    def __init__(
        self, base_dir: Path, clip_dir: str | None, device: torch.device, *, as_published: bool = False
    ) -> None:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        folder = Path(clip_dir) if clip_dir else base_dir
        clip: Any = CLIPModel.from_pretrained(folder) if clip_dir else load_clip(base_dir)
        self.clip = frozen(clip, device)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder if clip_dir else folder / "tokenizer")
        processor: Any = CLIPImageProcessor.from_pretrained(folder if clip_dir else folder / "feature_extractor")
        self.mean, self.std = processor.image_mean, processor.image_std
        self.as_published = as_published

    def pixels(self, image: torch.Tensor) -> torch.Tensor:
        """Images as the image encoder wants them."""
        size_px = self.clip.config.vision_config.image_size
        if self.as_published:
            return repeated_and_pooled(published_pixels(image), size_px).to(self.clip.dtype)
        return normalised(resized(image, size_px), self.mean, self.std).to(self.clip.dtype)

    def image_features(self, image: torch.Tensor) -> torch.Tensor:
        """(B, P) in the space that images and texts share."""
        pooled = self.clip.vision_model(pixel_values=self.pixels(image)).pooler_output
        return self.clip.visual_projection(pooled)

    def hidden_states(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, T, V) after each layer of the image encoder."""
        found = self.clip.vision_model(pixel_values=self.pixels(image), output_hidden_states=True)
        return list(found.hidden_states[1:])

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> torch.Tensor:
        """(N, P) in the shared space.

        Raises:
            ValueError: CLIP would cut a text off.
        """
        num_tokens = self.clip.config.text_config.max_position_embeddings
        for text in texts:
            if len(self.tokenizer(text).input_ids) > num_tokens:
                raise ValueError(
                    f"The prompt {text!r} has more than {num_tokens} tokens, which is what CLIP reads: shorten it."
                )
        tokens = self.tokenizer(texts, padding="max_length", max_length=num_tokens, return_tensors="pt")
        tokens = tokens.to(self.clip.device)
        pooled = self.clip.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return self.clip.text_projection(pooled)


class DirectionalClip(LossPart):
    """1 - cos(clip(original) - clip(image), clip(c0) - clip(c1)): the image changes as the prompt does.

    Where nothing changed yet the image's direction is 0; an epsilon in the norms makes the cosine 0 there.

    Args:
        weight: its factor.
        clip_dir: folder of a CLIPModel; None takes the embedded model's own encoders.
        epsilon: in units of the features, which ours have norm 1.
        as_published: differences of CLIP's features as they are, of images in [0, 1]; ours are of features of norm 1,
            of images in CLIP's own units.
    """

    name = "direction"

    def __init__(
        self, weight: float = 1.0, clip_dir: str | None = None, epsilon: float = 1e-3, as_published: bool = False
    ) -> None:
        super().__init__(weight)
        self.clip_dir, self.epsilon, self.as_published = clip_dir, epsilon, as_published

    def prepare(self, edit: Edit) -> None:
        """Load CLIP, encode both prompts."""
        self.reader = ClipReader(edit.base_dir, self.clip_dir, edit.device, as_published=self.as_published)
        neutral, styled = self._scaled(self.reader.text_features([edit.neutral, edit.styled]))
        self.text_direction = neutral - styled  # (P,)

    def __call__(self, image: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """(B,) in [0, 2]."""
        features = [self._scaled(self.reader.image_features(pixels)) for pixels in (original, image)]
        return 1 - soft_cosine(features[0] - features[1], self.text_direction, self.epsilon)

    def _scaled(self, features: torch.Tensor) -> torch.Tensor:
        return features if self.as_published else F.normalize(features, dim=1)


def soft_cosine(first: torch.Tensor, second: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Cosine (B,) of (B, P) and (P,), finite and smooth where the first is 0."""
    norms = (first.square().sum(1) + epsilon**2).sqrt() * (second.square().sum() + epsilon**2).sqrt()
    return first @ second / norms


class VisionPerceptual(LossPart):
    """Mean L1 of a CLIP image encoder's hidden states: what stands in for VGG16 where its weights are not at hand.

    Args:
        weight: its factor (published for VGG16: 0.05, for people 0.03).
        clip_dir: folder of a CLIPModel; None takes the embedded model's own encoder.
    """

    name = "perceptual"

    def __init__(self, weight: float = 0.05, clip_dir: str | None = None) -> None:
        super().__init__(weight)
        self.clip_dir = clip_dir

    def prepare(self, edit: Edit) -> None:
        """Load the encoder."""
        self.reader = ClipReader(edit.base_dir, self.clip_dir, edit.device)

    def __call__(self, image: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """(B,)."""
        return feature_distance(self.reader.hidden_states(image), self.reader.hidden_states(original))


VGG_DEPTHS = (3, 8, 15, 22)  # after relu1_2, relu2_2, relu3_3 and relu4_3
VGG_MEAN, VGG_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VGG_SIZE_PX = 224


class VGGPerceptual(LossPart):
    """L1 of VGG16 features at four depths.

    Args:
        weights_file: safetensors of torchvision's VGG16 (`features.*`).
        weight: its factor; published 0.05, 0.03 for people.
        as_published: the sum over depths, of images cut off at [0, 1] and brought to 224 px (bilinear); ours is the
            mean over depths, a fourth of it, of images at their own size.
    """

    name = "perceptual"

    def __init__(self, weights_file: str, weight: float = 0.05, as_published: bool = False) -> None:
        super().__init__(weight)
        self.as_published = as_published
        if not Path(weights_file).is_file():
            raise ValueError(
                f"weights_file={weights_file!r} does not exist: save torchvision's VGG16 there as safetensors, or use "
                "VisionPerceptual, which needs no weights of its own."
            )
        self.weights_file = weights_file

    def prepare(self, edit: Edit) -> None:
        """Load the convolutions up to the last depth."""
        from safetensors.torch import load_file
        from torchvision.models import vgg16

        network: Any = vgg16(weights=None)
        layers = network.features[: VGG_DEPTHS[-1] + 1]
        state = {name.removeprefix("features."): value for name, value in load_file(self.weights_file).items()}
        if absent := sorted(set(layers.state_dict()) - set(state)):
            raise ValueError(
                f"weights_file={self.weights_file!r} is not torchvision's VGG16: it lacks features.{absent[0]}."
            )
        layers.load_state_dict({name: state[name] for name in layers.state_dict()})
        for layer in layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.layers = frozen(layers, edit.device)

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features at the four depths."""
        if self.as_published:
            image = 2 * published_pixels(image) - 1
        found, x = [], normalised(image, VGG_MEAN, VGG_STD)
        if self.as_published:
            x = F.interpolate(x, size=(VGG_SIZE_PX, VGG_SIZE_PX), mode="bilinear")
        for depth, layer in enumerate(self.layers):
            x = layer(x)
            if depth in VGG_DEPTHS:
                found.append(x)
        return found

    def __call__(self, image: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """(B,)."""
        distance = feature_distance(self.features(image), self.features(original))
        return distance * len(VGG_DEPTHS) if self.as_published else distance
