"""The encoder's trunk: the down and mid blocks of a base U-Net, built from that U-Net's config.

diffusers' own block builders do the work, so the trunk takes the U-Net's weights as they are, for SD 1.5, SD 2 and
SDXL alike. What a U-Net adds to its time embedding (SDXL's size and pooled text) has no part in it.
"""

from collections.abc import Mapping
from typing import Any

from diffusers.models.unets.unet_2d_blocks import get_down_block, get_mid_block
from torch import nn

# Settings under which a U-Net computes its down path in a way this trunk does not: key -> values it can follow.
_FOLLOWED: dict[str, tuple[Any, ...]] = {
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "cross_attention_norm": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}


def refuse_unknown_trunk(config: Mapping[str, Any]) -> None:
    """Refuse a U-Net's config that asks for something the trunk would silently compute differently.

    Raises:
        ValueError: names every such setting with its value and the values that work.
    """
    wrong = [
        f"{key}={config[key]!r} (can be {' or '.join(map(repr, allowed))})"
        for key, allowed in _FOLLOWED.items()
        if key in config and config[key] not in allowed
    ]
    if not isinstance(config.get("cross_attention_dim", 0), int):
        wrong.append(f"cross_attention_dim={config['cross_attention_dim']!r} (can be one number)")
    if wrong:
        raise ValueError(f"PromptNet cannot be built on this U-Net: {', '.join(wrong)}.")


def per_block(config: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """A setting that may be one value or a list with one for each down block, as the list."""
    num_blocks, value = len(config["down_block_types"]), config[key]
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * num_blocks
    if len(values) != num_blocks:
        raise ValueError(f"{key}={value!r} has {len(values)} entries, but there are {num_blocks} down blocks.")
    return values


def _shared(config: Mapping[str, Any], time_channels: int) -> dict[str, Any]:
    """What down and mid blocks have in common, under the names of diffusers' builders."""
    return {
        "temb_channels": time_channels,
        "resnet_eps": config["norm_eps"],
        "resnet_act_fn": config["act_fn"],
        "resnet_groups": config["norm_num_groups"],
        "resnet_time_scale_shift": config["resnet_time_scale_shift"],
        "cross_attention_dim": config["cross_attention_dim"],
        "dual_cross_attention": config["dual_cross_attention"],
        "use_linear_projection": config["use_linear_projection"],
        "upcast_attention": config["upcast_attention"],
        "dropout": config["dropout"],
    }


def build_down_blocks(config: Mapping[str, Any], time_channels: int) -> nn.ModuleList:
    """The U-Net's down path: every block but the last ends in a downsampler.

    Args:
        config: the U-Net's settings. Stable Diffusion's `attention_head_dim` is really the number of heads, as in
            diffusers, unless `num_attention_heads` is given.
        time_channels: width of the time embedding.
    """
    out_channels = per_block(config, "block_out_channels")
    in_channels = (out_channels[0], *out_channels[:-1])
    head_dims = per_block(config, "attention_head_dim")
    num_heads = per_block(config, "num_attention_heads") if config["num_attention_heads"] else head_dims
    layers = per_block(config, "layers_per_block")
    transformer_layers = per_block(config, "transformer_layers_per_block")
    only_cross = per_block(config, "only_cross_attention")
    blocks = [
        get_down_block(
            kind,
            num_layers=layers[i],
            transformer_layers_per_block=transformer_layers[i],
            in_channels=in_channels[i],
            out_channels=out_channels[i],
            add_downsample=i < len(out_channels) - 1,
            num_attention_heads=num_heads[i],
            attention_head_dim=head_dims[i],
            downsample_padding=config["downsample_padding"],
            only_cross_attention=only_cross[i],
            **_shared(config, time_channels),
        )
        for i, kind in enumerate(config["down_block_types"])
    ]
    return nn.ModuleList(blocks)


def build_mid_block(config: Mapping[str, Any], time_channels: int) -> nn.Module:
    """The U-Net's mid block, at the lowest resolution."""
    head_dim = per_block(config, "attention_head_dim")[-1]
    num_heads = per_block(config, "num_attention_heads")[-1] if config["num_attention_heads"] else head_dim
    block = get_mid_block(
        config["mid_block_type"],
        in_channels=per_block(config, "block_out_channels")[-1],
        output_scale_factor=config["mid_block_scale_factor"],
        transformer_layers_per_block=per_block(config, "transformer_layers_per_block")[-1],
        num_attention_heads=num_heads,
        attention_head_dim=head_dim,
        **_shared(config, time_channels),
    )
    assert block is not None  # refuse_unknown_trunk saw to the type
    return block
