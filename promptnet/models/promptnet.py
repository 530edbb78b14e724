"""PromptNet, the image-to-word encoder of ProFusion (arXiv 2305.13579, section 3.1).

One image becomes pseudo-words: vectors in the text encoder's embedding space, which stand in a prompt where `S*` is
written (promptnet.models.text). Module names are the published ones, so published checkpoints load.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn

from promptnet.models.familiarity import Familiarity, find_familiarity
from promptnet.models.trunk import build_down_blocks, build_mid_block, per_block, refuse_unknown_trunk

# What the published class fixes in code: its flag `use_clip_vision_embeds` chooses between two image encoders.
PUBLISHED_VISION_DIMS = {True: 1280, False: 1024}


@dataclass
class PromptNetOutput(BaseOutput):
    """What PromptNet returns.

    Args:
        pseudo_words: (B, L, D), L words in the D-dimensional embedding space of the text encoder.
    """

    pseudo_words: Tensor


class NoisyLatentEmbedding(nn.Module):
    """C2(silu(C1(x_t))): how the noisy latents join the reference's first feature map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.conv_out = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.conv_in(latents)))


def projection_sizes(num_down: int) -> tuple[int, ...]:
    """Kernel = stride of each projection: d0 after conv_in, one for each down block, one for the mid block.

    d0 = max(2^(n_down-1), 8); each downsampler halves it, so that all projections end on one grid, 1/d0 of the
    latents' size. The last block has no downsampler and keeps its size, and so does the mid block.
    """
    first = max(2 ** (num_down - 1), 8)
    after_blocks = [first // 2 ** min(i + 1, num_down - 1) for i in range(num_down)]
    return (first, *after_blocks, after_blocks[-1])


def _patch_projection(in_channels: int, out_channels: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=size, stride=size)


def _resolve_vision_dim(vision_dim: int | None, use_clip_vision_embeds: bool | None) -> int:
    """One width from our key and the published one, which must not contradict each other."""
    published = None if use_clip_vision_embeds is None else PUBLISHED_VISION_DIMS[use_clip_vision_embeds]
    if vision_dim is not None and published is not None and vision_dim != published:
        raise ValueError(
            f"vision_dim={vision_dim} contradicts use_clip_vision_embeds={use_clip_vision_embeds}, which means "
            f"{published}. Leave use_clip_vision_embeds out."
        )
    return vision_dim or published or PUBLISHED_VISION_DIMS[True]


class PromptNetModel(ModelMixin, AttentionMixin, ConfigMixin):
    """Maps a reference image, and the image being drawn, to pseudo-words.

    The trunk is the down and mid path of the base U-Net, with the image encoder's states as its cross-attention
    context; patch projections of its feature maps meet on one small grid, and `region_prompt_output` turns each
    region of that grid into one word. Usually built by `from_unet` or `from_pretrained`; keys of a U-Net's or a
    published config that are not listed here are accepted and ignored.

    Args:
        vision_dim: width of the image encoder's hidden states. Default 1280, or what `use_clip_vision_embeds` says.
        prompt_channel: D, width of the text encoder's embeddings.
        region_proj_channel: channels of each patch projection.
        region_kernel_size: R; each word comes from R x R cells of the region grid.
        with_noise: whether the noisy latents are looked at. If not, the reference latents stand in for them.
        use_res: whether to hold the published residual heads. They take no part in any computation here and are
            frozen; they are kept so that a published checkpoint can be written back whole.
        res_block_out_channels: output widths of the residual heads, default `block_out_channels`.
        use_clip_vision_embeds: the published key for `vision_dim`: true means 1280, false 1024.
        word_norm: if given, every pseudo-word is scaled to this L2 norm times one learned gain that starts at 1.
            None, as published, leaves the words as they come.

    The other arguments are those of diffusers' `UNet2DConditionModel`.

    Attributes:
        familiarity: what the encoder knows, if `promptnet calibrate` has measured it.
    """

    familiarity: Familiarity | None = None

    __module__ = "promptnet"  # the public path; pipelines write it into their model_index.json

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["BasicTransformerBlock", "ResnetBlock2D"]
    _repeated_blocks: ClassVar[list[str]] = ["BasicTransformerBlock"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["norm"]
    # The published residual heads, which a model with use_res=False leaves in the file.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^(mid_)?residual_projections?(_2)?\."]

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str = "UNetMidBlock2DCrossAttn",
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1024,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        time_embedding_dim: int | None = None,
        vision_dim: int | None = None,
        prompt_channel: int = 1024,
        region_proj_channel: int = 128,
        region_kernel_size: int = 8,
        with_noise: bool = True,
        use_res: bool = False,
        res_block_out_channels: tuple[int, ...] | None = None,
        use_clip_vision_embeds: bool | None = None,
        word_norm: float | None = None,
    ) -> None:
        super().__init__()
        config: Mapping[str, Any] = self.config
        refuse_unknown_trunk(config)
        vision_dim = _resolve_vision_dim(vision_dim, use_clip_vision_embeds)
        self.register_to_config(vision_dim=vision_dim)
        self.with_noise = with_noise
        self.vision_dim = vision_dim
        self.word_norm = word_norm
        self.gradient_checkpointing = False

        first_channels = block_out_channels[0]
        time_channels = time_embedding_dim or first_channels * 4
        self.conv_in = nn.Conv2d(in_channels, first_channels, kernel_size=3, padding=1)
        self.time_proj = Timesteps(first_channels, flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(first_channels, time_channels, act_fn=act_fn)
        self.promptnet_cond_embedding = NoisyLatentEmbedding(in_channels, first_channels)
        self.vision_embedding = nn.Linear(vision_dim, cross_attention_dim)
        self.down_blocks = build_down_blocks(config, time_channels)
        self.mid_block = build_mid_block(config, time_channels)

        self._add_word_heads(block_out_channels, region_proj_channel, prompt_channel, region_kernel_size)
        if use_res:
            self._add_residual_heads(config)
        if word_norm is not None:
            self.word_gain = nn.Parameter(torch.ones(1))

    def _add_word_heads(self, channels: tuple[int, ...], width: int, prompt_channel: int, region_size: int) -> None:
        """One patch projection for each feature map, and the map from their regions to words."""
        first, *after_blocks, after_mid = projection_sizes(len(channels))
        self.size_divisor = first * region_size
        self.first_prompt_projection = _patch_projection(channels[0], width, first)
        self.down_prompt_projections = nn.ModuleList(
            [_patch_projection(c, width, size) for c, size in zip(channels, after_blocks, strict=True)]
        )
        self.mid_prompt_projection = _patch_projection(channels[-1], width, after_mid)
        self.region_prompt_output = _patch_projection((len(channels) + 2) * width, prompt_channel, region_size)

    def _add_residual_heads(self, config: Mapping[str, Any]) -> None:
        """The published heads for U-Net skips: a 1x1 convolution, silu and one more without bias, for each skip.

        They get no gradient and enter sampling with weight 0, so they only hold what a checkpoint holds.
        """
        channels = per_block(config, "block_out_channels")
        widths = tuple(config["res_block_out_channels"] or channels)
        num_skips = [n + 1 for n in per_block(config, "layers_per_block")]
        num_skips[-1] -= 1  # the last block has no downsampler
        skips = [(channels[0], widths[0])]
        for in_width, out_width, count in zip(channels, widths, num_skips, strict=True):
            skips += [(in_width, out_width)] * count
        self.residual_projections = nn.ModuleList([nn.Conv2d(i, o, kernel_size=1) for i, o in skips])
        self.residual_projections_2 = nn.ModuleList([nn.Conv2d(o, o, kernel_size=1, bias=False) for _, o in skips])
        self.mid_residual_projection = nn.Conv2d(channels[-1], widths[-1], kernel_size=1)
        self.mid_residual_projection_2 = nn.Conv2d(widths[-1], widths[-1], kernel_size=1, bias=False)
        for heads in (self.residual_projections, self.residual_projections_2):
            heads.requires_grad_(False)
        self.mid_residual_projection.requires_grad_(False)
        self.mid_residual_projection_2.requires_grad_(False)

    def num_pseudo_words(self, height: int, width: int) -> int:
        """How many words latents of this size give: L = (H / d0 R) (W / d0 R).

        Raises:
            ValueError: a side is not a multiple of `size_divisor`, d0 R.
        """
        divisor = self.size_divisor
        if height < divisor or width < divisor or height % divisor or width % divisor:
            raise ValueError(
                f"PromptNet reads latents whose sides are multiples of {divisor}, but got {height}x{width} "
                "(height x width). Resize or crop the reference image, or build the encoder with a smaller "
                "region_kernel_size."
            )
        return (height // divisor) * (width // divisor)

    def forward(
        self,
        reference_latents: Tensor,
        timestep: Tensor | float | int,
        vision_states: Tensor,
        noisy_latents: Tensor | None = None,
        return_dict: bool = True,
    ) -> PromptNetOutput | tuple[Tensor]:
        """The pseudo-words of one image each, ProFusion section 3.1.

        Args:
            reference_latents: (B, 4, H, W), scaled VAE latents of the reference image.
            timestep: scalar or (B,), the step at which the words are to be used.
            vision_states: (B, T, V), `last_hidden_state` of the image encoder, before its post layer norm.
            noisy_latents: (B, 4, H, W), x_t on the reference's grid. Without them, or in a model with
                `with_noise=False`, the reference latents are used again.
            return_dict: if false, a plain tuple is returned.

        Returns:
            `pseudo_words` (B, L, D), row-major over the regions; L is what `num_pseudo_words` says.

        Raises:
            ValueError: a size that does not divide, or inputs whose shapes do not belong together.
        """
        self._check_inputs(reference_latents, vision_states, noisy_latents)
        if noisy_latents is None or not self.with_noise:
            noisy_latents = reference_latents
        time = self._embed_time(timestep, reference_latents)  # (B, 4 C0)
        context = self.vision_embedding(vision_states)  # (B, T, cross_attention_dim)
        hidden = self.conv_in(reference_latents) + self.promptnet_cond_embedding(noisy_latents)  # (B, C0, H, W)
        regions = self._project_features(hidden, time, context)  # (B, (n_down + 2) region_proj_channel, H/d0, W/d0)
        words = self.region_prompt_output(regions).flatten(2).transpose(1, 2)  # (B, L, D)
        words = self._normalise(words)
        return PromptNetOutput(pseudo_words=words) if return_dict else (words,)

    def _check_inputs(self, reference: Tensor, vision_states: Tensor, noisy: Tensor | None) -> None:
        channels = self.conv_in.in_channels
        if reference.ndim != 4 or reference.shape[1] != channels:
            raise ValueError(f"reference_latents must be (B, {channels}, H, W), but are {tuple(reference.shape)}.")
        self.num_pseudo_words(reference.shape[2], reference.shape[3])
        if noisy is not None and noisy.shape != reference.shape:
            raise ValueError(
                f"noisy_latents {tuple(noisy.shape)} must have the reference latents' shape "
                f"{tuple(reference.shape)}: PromptNet reads both on one grid."
            )
        expected = (reference.shape[0], self.vision_dim)
        if vision_states.ndim != 3 or (vision_states.shape[0], vision_states.shape[2]) != expected:
            raise ValueError(
                f"vision_states must be ({expected[0]}, T, {expected[1]}), but are {tuple(vision_states.shape)}. "
                "They are the last_hidden_state of the image encoder that this encoder was trained with."
            )

    def _embed_time(self, timestep: Tensor | float | int, latents: Tensor) -> Tensor:
        """Time embedding as in the U-Net, for one shared timestep or one for each item."""
        steps = torch.as_tensor(timestep, device=latents.device)
        if steps.ndim > 1 or (steps.ndim == 1 and steps.shape[0] not in (1, latents.shape[0])):
            raise ValueError(f"timestep must be a scalar or ({latents.shape[0]},), but is {tuple(steps.shape)}.")
        sinusoids = self.time_proj(steps.reshape(-1).expand(latents.shape[0]))  # always float32
        return self.time_embedding(sinusoids.to(latents.dtype))

    def _project_features(self, hidden: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Run the trunk and lay every feature map's patch projection side by side."""
        projections = [self.first_prompt_projection(hidden)]
        for block, project in zip(self.down_blocks, self.down_prompt_projections, strict=True):
            if getattr(block, "has_cross_attention", False):
                hidden, _ = block(hidden_states=hidden, temb=time, encoder_hidden_states=context)
            else:
                hidden, _ = block(hidden_states=hidden, temb=time)
            projections.append(project(hidden))
        hidden = self.mid_block(hidden, time, encoder_hidden_states=context)
        projections.append(self.mid_prompt_projection(hidden))
        return torch.cat(projections, dim=1)

    def _normalise(self, words: Tensor) -> Tensor:
        """If `word_norm` is set, scale each word to that length times the learned gain."""
        if self.word_norm is None:
            return words
        unit = F.normalize(words.float(), dim=-1)  # squares of a long half-precision word overflow
        return (unit * (self.word_norm * self.word_gain)).to(words.dtype)

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        *,
        vision_dim: int,
        prompt_channel: int,
        region_proj_channel: int = 128,
        region_kernel_size: int = 8,
        with_noise: bool = True,
        use_res: bool = False,
        word_norm: float | None = None,
    ) -> Self:
        """A new encoder for a base model: trunk from the U-Net's weights, the rest freshly initialised.

        Args:
            unet: the base model's U-Net; its config gives the trunk's shape, its device and dtype are kept.

        The other arguments are the class's. SDXL's added embeddings are left out.

        Raises:
            ValueError: the U-Net has a feature that the trunk does not know.
        """
        unet_config: Mapping[str, Any] = unet.config
        refuse_unknown_trunk(unet_config)
        trunk = {key: value for key, value in unet_config.items() if key in cls._get_init_keys(cls)}
        model = cls(
            **trunk,
            vision_dim=vision_dim,
            prompt_channel=prompt_channel,
            region_proj_channel=region_proj_channel,
            region_kernel_size=region_kernel_size,
            with_noise=with_noise,
            use_res=use_res,
            word_norm=word_norm,
        )
        model.load_trunk(unet)
        nn.Module.to(model, device=unet.device, dtype=unet.dtype)  # in place
        return model

    def load_trunk(self, unet: UNet2DConditionModel) -> None:
        """Copy `conv_in`, the time embedding, the down blocks and the mid block from a U-Net of the same shape."""
        time_state = unet.get_submodule("time_embedding").state_dict()
        time_state.pop("cond_proj.weight", None)  # distilled U-Nets' guidance embedding, which nothing here feeds
        self.get_submodule("time_embedding").load_state_dict(time_state)
        for name in ("conv_in", "down_blocks", "mid_block"):
            self.get_submodule(name).load_state_dict(unet.get_submodule(name).state_dict())

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict[str, Any], Any, Any]:
        """Drop the U-Net's keys that mean nothing here, after refusing those that would change the trunk."""
        refuse_unknown_trunk(config_dict)
        foreign = UNet2DConditionModel._get_init_keys(UNet2DConditionModel) - cls._get_init_keys(cls)
        known = {key: value for key, value in config_dict.items() if key not in foreign}
        return super().extract_init_dict(known, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, **kwargs: Any) -> Self:
        """diffusers' `from_pretrained`, from safetensors only, and only from complete weights.

        Published folders load too, once a torch pickle has gone through the converter.

        Raises:
            ValueError: the folder holds its weights as a torch pickle only, or some weights are not in it.
        """
        path = pretrained_model_name_or_path
        if path is not None and os.path.isdir(path):
            _refuse_pickle_only(os.path.join(path, kwargs.get("subfolder") or ""))
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(path, output_loading_info=True, **kwargs)
        missing = sorted(loaded[1]["missing_keys"])
        if missing:
            raise ValueError(f"{path} is not a complete encoder: it lacks {', '.join(missing)}.")
        if path is not None:
            loaded[0].familiarity = find_familiarity(path, kwargs)
        return loaded if with_info else loaded[0]

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """diffusers' `save_pretrained`; what the encoder knows, if it was measured, is written beside the weights."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.familiarity is not None:
            self.familiarity.save(save_directory)


def _refuse_pickle_only(folder: str) -> None:
    names = os.listdir(folder) if os.path.isdir(folder) else []
    if "diffusion_pytorch_model.bin" in names and not any(name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"{folder} holds its weights as a torch pickle (diffusion_pytorch_model.bin), which is not loaded. "
            "Write them as safetensors with `promptnet convert`."
        )
