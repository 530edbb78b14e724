"""At true widths: the keys of kohya files are names that ComfyUI's loader knows, and nothing else.

What it knows is derived here from the architectures as it describes them (attention blocks counted from the first to
the last in each half of the U-Net), not from our files or diffusers' modules.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from promptnet.export import Passport, StaticSubject, write_files
from promptnet.inference.subject.lora import LoRALayer, key_value_layers
from promptnet.models.base_model_shapes import BASES, SD2, SD15, SDXL


@dataclass(frozen=True)
class Architecture:
    """A U-Net as hosts describe it.

    Args:
        multipliers: of 320 channels, by level.
        depth: transformers behind each of a level's two blocks, on the way down.
        middle: transformers in the middle.
        depth_up: behind each of a level's three blocks on the way up, by level as on the way down.
        context: width of the prompt's states.
        widths: of the text encoders.
        words: keys of the embedding's file, "" for any.
    """

    multipliers: tuple[int, ...]
    depth: tuple[int, ...]
    middle: int
    depth_up: tuple[int, ...]
    context: int
    widths: tuple[int, ...]
    words: tuple[str, ...]


_SD = ((1, 2, 4, 4), (1, 1, 1, 1, 1, 1, 0, 0), 1, (1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0))
_XL = ((1, 2, 4), (0, 0, 2, 2, 10, 10), 10, (0, 0, 0, 2, 2, 2, 10, 10, 10))
ARCHITECTURES = {
    SD15: Architecture(*_SD, 768, (768,), ("",)),
    SD2: Architecture(*_SD, 1024, (1024,), ("",)),
    SDXL: Architecture(*_XL, 2048, (768, 1280), ("clip_l", "clip_g")),
}


def accepted(of: Architecture) -> Iterator[tuple[str, tuple[int, int]]]:
    """Key and shape (out, in) of every map from the prompt to keys and values that a host can load."""
    levels = len(of.multipliers)
    places = [(f"down_blocks_{n // 2}_attentions_{n % 2}", depth, n // 2) for n, depth in enumerate(of.depth)]
    places.append(("mid_block_attentions_0", of.middle, levels - 1))
    for n, depth in enumerate(reversed(of.depth_up)):  # the way up begins at the deepest level
        places.append((f"up_blocks_{n // 3}_attentions_{n % 3}", depth, levels - 1 - n // 3))
    for place, depth, level in places:
        for block in range(depth):
            for part in ("to_k", "to_v"):
                shape = (320 * of.multipliers[level], of.context)
                yield f"lora_unet_{place}_transformer_blocks_{block}_attn2_{part}", shape


@pytest.mark.parametrize(("base", "count"), [(SD15, 32), (SD2, 32), (SDXL, 140)])
def test_kohya_keys_are_those_that_hosts_load(base: str, count: int, tmp_path: Path) -> None:
    of = ARCHITECTURES[base]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**BASES[base].unet)
    loras = {
        name: LoRALayer(torch.ones(1, layer.in_features), torch.ones(layer.out_features, 1))
        for name, layer in key_value_layers(unet).items()
        if isinstance(layer, torch.nn.Linear)
    }
    static = StaticSubject(torch.ones(2, sum(of.widths)), of.widths, loras)
    paths = write_files(static, ["kohya"], tmp_path, "me", Passport({}))
    tensors = load_file(paths["kohya"])
    expected = dict(accepted(of))
    assert len(expected) == count
    assert set(tensors) == {
        f"{key}.{part}" for key in expected for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    for key, (rows, columns) in expected.items():
        assert tensors[f"{key}.lora_down.weight"].shape == (1, columns)
        assert tensors[f"{key}.lora_up.weight"].shape == (rows, 1)
    words = load_file(paths["textual-inversion"])
    assert {tensor.shape for tensor in words.values()} == {(2, width) for width in of.widths}
    assert len(words) == len(of.words)
    assert not set(of.words) - {""} - set(words)


def test_the_derivation_knows_the_names_that_differ_between_families() -> None:
    sd, xl = (dict(accepted(ARCHITECTURES[base])) for base in (SD15, SDXL))
    assert sd["lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_k"] == (1280, 768)
    assert sd["lora_unet_up_blocks_3_attentions_0_transformer_blocks_0_attn2_to_v"] == (320, 768)
    assert "lora_unet_up_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k" not in sd
    assert xl["lora_unet_up_blocks_0_attentions_0_transformer_blocks_9_attn2_to_k"] == (1280, 2048)
    assert xl["lora_unet_down_blocks_1_attentions_1_transformer_blocks_1_attn2_to_v"] == (640, 2048)
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k" not in xl
