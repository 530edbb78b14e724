"""Published folders in, published folders out."""

import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptnet.models.convert import convert_from_published, convert_to_published
from promptnet.models.promptnet import PromptNetModel

# A small encoder's config.json with all the keys that the published class wrote, its own and the U-Net's.
PUBLISHED_CONFIG = {
    "_class_name": "PromptNetModel",
    "_diffusers_version": "0.15.0.dev0",
    "act_fn": "silu",
    "attention_head_dim": [2, 4],
    "block_out_channels": [16, 32],
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 24,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 8,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": None,
    "prompt_channel": 12,
    "region_kernel_size": 2,
    "region_proj_channel": 6,
    "res_block_out_channels": [16, 32],
    "resnet_time_scale_shift": "default",
    "sample_size": 16,
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "upcast_attention": False,
    "use_clip_vision_embeds": True,
    "use_linear_projection": True,
    "use_res": True,
    "with_noise": True,
}


def small_encoder(**options: Any) -> Any:
    return PromptNetModel.from_config({**PUBLISHED_CONFIG, **options})


def encode(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, noisy = torch.randn(2, 2, 4, 16, 16, generator=generator)
    vision_states = torch.randn(2, 5, 1280, generator=generator)
    with torch.no_grad():
        return model.eval()(latents, 7, vision_states, noisy).pseudo_words


def write_published(folder: Path, model: Any, kind: str = "bin") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PUBLISHED_CONFIG))
    if kind == "bin":
        torch.save(model.state_dict(), folder / "diffusion_pytorch_model.bin")
    else:
        save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return folder


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)


class TestFromPublished:
    @pytest.mark.parametrize("kind", ["bin", "safetensors"])
    @pytest.mark.parametrize("use_res", [True, False])
    def test_gives_the_same_words(self, tmp_path: Path, kind: str, use_res: bool) -> None:
        model = small_encoder()
        source = write_published(tmp_path / "published", model, kind)
        target = convert_from_published(source, tmp_path / "ours", use_res=use_res)
        loaded: Any = PromptNetModel.from_pretrained(target)
        assert torch.equal(encode(loaded), encode(model))
        assert loaded.config.use_res is use_res
        assert loaded.config.vision_dim == 1280
        assert any("residual" in name for name in loaded.state_dict()) is use_res
        assert {path.name for path in target.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}

    def test_a_published_folder_with_safetensors_loads_as_it_is(self, tmp_path: Path) -> None:
        model = small_encoder()
        loaded = PromptNetModel.from_pretrained(write_published(tmp_path / "published", model, "safetensors"))
        assert torch.equal(encode(loaded), encode(model))

    def test_keeps_the_precision(self, tmp_path: Path) -> None:
        source = write_published(tmp_path / "published", small_encoder().half())
        weights = load_file(convert_from_published(source, tmp_path / "ours") / "diffusion_pytorch_model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.float16}

    def test_reads_a_pickle_of_views(self, tmp_path: Path) -> None:
        model = small_encoder()
        source = write_published(tmp_path / "published", model)
        names, weights = zip(*model.state_dict().items(), strict=True)
        buffer = torch.cat([weight.flatten() for weight in weights])
        parts = buffer.split([weight.numel() for weight in weights])
        views = {name: part.view_as(w) for name, part, w in zip(names, parts, weights, strict=True)}
        torch.save(views, source / "diffusion_pytorch_model.bin")
        target = convert_from_published(source, tmp_path / "ours")
        assert torch.equal(encode(PromptNetModel.from_pretrained(target)), encode(model))

    def test_drops_keys_that_mean_nothing_here(self, tmp_path: Path) -> None:
        source = write_published(tmp_path / "published", small_encoder())
        config = json.loads((convert_from_published(source, tmp_path / "ours") / "config.json").read_text())
        assert not {"up_block_types", "center_input_sample", "out_channels", "conv_out_kernel"} & set(config)


class TestToPublished:
    @pytest.mark.parametrize("use_res", [True, False])
    def test_round_trip_gives_the_same_words(self, tmp_path: Path, use_res: bool) -> None:
        model = small_encoder(use_res=use_res)
        model.save_pretrained(tmp_path / "ours")
        published = convert_to_published(tmp_path / "ours", tmp_path / "published")
        back = convert_from_published(published, tmp_path / "back", use_res=use_res)
        assert torch.equal(encode(PromptNetModel.from_pretrained(back)), encode(model))
        assert torch.equal(encode(PromptNetModel.from_pretrained(published)), encode(model))

    def test_config_is_what_the_published_class_wrote(self, tmp_path: Path) -> None:
        source = write_published(tmp_path / "published", small_encoder())
        ours = convert_from_published(source, tmp_path / "ours", use_res=True)
        again = convert_to_published(ours, tmp_path / "again")
        nobody_reads = {"_diffusers_version", "conv_out_kernel", "up_block_types"}
        expected = {key: value for key, value in PUBLISHED_CONFIG.items() if key not in nobody_reads}
        assert json.loads((again / "config.json").read_text()) == expected

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"word_norm": 0.3}, "no word_norm=0.3"),
            ({"use_clip_vision_embeds": None, "vision_dim": 20}, "no vision_dim=20"),
            ({"transformer_layers_per_block": [1, 2]}, "no transformer_layers_per_block"),
            ({"layers_per_block": [1, 2]}, "no layers_per_block"),
        ],
    )
    def test_what_it_cannot_compute_is_refused(self, tmp_path: Path, options: dict[str, Any], message: str) -> None:
        small_encoder(**options).save_pretrained(tmp_path / "ours")
        with pytest.raises(ValueError, match=message):
            convert_to_published(tmp_path / "ours", tmp_path / "published")
        assert not (tmp_path / "published").exists()


class Harmful:
    """What a pickle from a stranger may hold."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class TestRefusals:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        return write_published(tmp_path / "published", small_encoder(), "safetensors")

    @staticmethod
    def refused(source: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            convert_from_published(source, source.parent / "ours")
        assert [path.name for path in source.parent.iterdir()] == [source.name]

    def test_missing_unknown_and_misshapen_weights_are_named(self, source: Path) -> None:
        def edit(weights: dict[str, Tensor]) -> None:
            del weights["conv_in.bias"]
            weights["extra.weight"] = torch.zeros(1)
            weights["vision_embedding.bias"] = torch.zeros(3)

        edit_weights(source, edit)
        self.refused(source, r"1 missing \(conv_in\.bias\)")
        self.refused(source, r"1 unknown \(extra\.weight\)")
        self.refused(source, r"vision_embedding\.bias is \(3,\), not \(24,\)")

    def test_residual_heads_are_missed_only_where_wanted(self, source: Path, tmp_path: Path) -> None:
        def edit(weights: dict[str, Tensor]) -> None:
            for name in [name for name in weights if "residual" in name]:
                del weights[name]

        edit_weights(source, edit)
        with pytest.raises(ValueError, match=r"15 missing \(mid_residual_projection\.bias"):
            convert_from_published(source, tmp_path / "ours", use_res=True)
        convert_from_published(source, tmp_path / "ours")

    @pytest.mark.parametrize("content", [b"", b"not weights", b"\x00" * 100])
    @pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
    def test_a_broken_file_is_named(self, source: Path, name: str, content: bytes) -> None:
        (source / "diffusion_pytorch_model.safetensors").unlink()
        (source / name).write_bytes(content)
        self.refused(source, rf"{name} is broken")

    @pytest.mark.parametrize("kind", ["bin", "safetensors"])
    def test_a_truncated_file_is_named(self, tmp_path: Path, kind: str) -> None:
        source = write_published(tmp_path / "cut", small_encoder(), kind)
        path = source / f"diffusion_pytorch_model.{kind}"
        path.write_bytes(path.read_bytes()[:-1000])
        self.refused(source, rf"diffusion_pytorch_model\.{kind} is broken")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_harmful_pickle_is_not_run(self, source: Path, zipped: bool) -> None:
        (source / "diffusion_pytorch_model.safetensors").unlink()
        path, trace = source / "diffusion_pytorch_model.bin", source / "trace"
        if zipped:
            torch.save({"conv_in.weight": Harmful(trace)}, path)
        else:
            path.write_bytes(pickle.dumps({"conv_in.weight": Harmful(trace)}))
        self.refused(source, "never loaded")
        assert not trace.exists()

    def test_a_pickle_of_something_else_is_refused(self, source: Path) -> None:
        (source / "diffusion_pytorch_model.safetensors").unlink()
        torch.save(OrderedDict(state={"a": torch.zeros(1)}), source / "diffusion_pytorch_model.bin")
        self.refused(source, "does not hold a model's weights")

    @pytest.mark.parametrize("content", ["{", "[]", "{}"])
    def test_a_broken_config_is_named(self, source: Path, content: str) -> None:
        (source / "config.json").write_text(content)
        self.refused(source, r"config\.json")

    @pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
    def test_a_missing_file_is_named(self, source: Path, name: str) -> None:
        (source / name).unlink()
        self.refused(source, name)

    def test_an_existing_target_is_left_alone(self, source: Path, tmp_path: Path) -> None:
        target = tmp_path / "ours"
        target.mkdir()
        (target / "mine").touch()
        with pytest.raises(ValueError, match="exists already"):
            convert_from_published(source, target)
        assert [path.name for path in target.iterdir()] == ["mine"]
