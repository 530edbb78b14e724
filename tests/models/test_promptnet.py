"""The encoder: its size, its trunk, its heads, loading and refusing."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from promptnet.models.promptnet import PromptNetModel, projection_sizes

# stabilityai's Stable Diffusion 2 base, as its unet/config.json has it.
SD2_UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 1024,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "use_linear_projection": True,
}

# Small relatives of the base models, each with what is peculiar to its family.
SMALL = {"block_out_channels": (16, 32), "norm_num_groups": 8, "sample_size": 16, "cross_attention_dim": 24}
CROSS_CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
CROSS_PLAIN = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
PLAIN_CROSS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
FAMILIES: dict[str, dict[str, Any]] = {
    "sd15": {**SMALL, **CROSS_PLAIN, "attention_head_dim": 4},
    "sd2": {
        **SMALL,
        **CROSS_PLAIN,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        **SMALL,
        **PLAIN_CROSS,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 10,
    },
    "distilled": {**SMALL, **CROSS_PLAIN, "attention_head_dim": 4, "time_cond_proj_dim": 6},
    "odd": {**SMALL, **CROSS_CROSS, "attention_head_dim": 4, "layers_per_block": (1, 2), "only_cross_attention": True},
}
OPTIONS: dict[str, Any] = {"vision_dim": 20, "prompt_channel": 12, "region_proj_channel": 6, "region_kernel_size": 2}


TRUNK = {key: value for key, value in FAMILIES["sd15"].items() if key != "up_block_types"}


class Recorder:
    """Keeps what a module returned each time."""

    def __init__(self, *modules: nn.Module) -> None:
        self.outputs: list[Any] = []
        for module in modules:
            module.register_forward_hook(lambda _module, _arguments, output: self.outputs.append(output))


def small_unet(family: str = "sd15") -> Any:
    return UNet2DConditionModel(**FAMILIES[family]).eval()


def small_encoder(**options: Any) -> Any:
    return PromptNetModel.from_unet(small_unet(), **{**OPTIONS, **options}).eval()


def inputs(batch: int = 2, height: int = 16, width: int = 16) -> dict[str, Any]:
    return {
        "reference_latents": torch.randn(batch, 4, height, width),
        "timestep": torch.randint(0, 1000, (batch,)),
        "vision_states": torch.randn(batch, 5, 20),
        "noisy_latents": torch.randn(batch, 4, height, width),
    }


def encode(model: PromptNetModel, **arguments: Any) -> Tensor:
    with torch.no_grad():
        return model(**arguments).pseudo_words


class TestFullSize:
    @staticmethod
    def build(**options: Any) -> PromptNetModel:
        with torch.device("meta"):
            model = PromptNetModel.from_config(
                SD2_UNET, vision_dim=1280, prompt_channel=1024, region_proj_channel=128, region_kernel_size=8, **options
            )
        assert isinstance(model, PromptNetModel)
        return model

    @pytest.mark.parametrize(("use_res", "count"), [(True, 431_285_504), (False, 408_337_024)])
    def test_has_the_published_number_of_parameters(self, use_res: bool, count: int) -> None:
        assert sum(p.numel() for p in self.build(use_res=use_res).parameters()) == count

    def test_reads_64_pixels_of_latents_as_one_word(self) -> None:
        model = self.build()
        words = model(
            torch.zeros(2, 4, 64, 64, device="meta"),
            torch.zeros(2, device="meta"),
            torch.zeros(2, 257, 1280, device="meta"),
        ).pseudo_words
        assert words.shape == (2, 1, 1024)

    def test_has_the_published_names_and_shapes(self) -> None:
        """What a published checkpoint holds beside the U-Net's own down and mid blocks."""
        skips = [320] * 4 + [640] * 3 + [1280] * 5
        expected = {
            "conv_in.weight": (320, 4, 3, 3),
            "time_embedding.linear_1.weight": (1280, 320),
            "promptnet_cond_embedding.conv_in.weight": (320, 4, 3, 3),
            "promptnet_cond_embedding.conv_out.weight": (320, 320, 3, 3),
            "vision_embedding.weight": (1024, 1280),
            "first_prompt_projection.weight": (128, 320, 8, 8),
            "down_prompt_projections.0.weight": (128, 320, 4, 4),
            "down_prompt_projections.1.weight": (128, 640, 2, 2),
            "down_prompt_projections.2.weight": (128, 1280, 1, 1),
            "down_prompt_projections.3.weight": (128, 1280, 1, 1),
            "mid_prompt_projection.weight": (128, 1280, 1, 1),
            "region_prompt_output.weight": (1024, 768, 8, 8),
            "mid_residual_projection.weight": (1280, 1280, 1, 1),
            "mid_residual_projection_2.weight": (1280, 1280, 1, 1),
            **{f"residual_projections.{i}.weight": (c, c, 1, 1) for i, c in enumerate(skips)},
            **{f"residual_projections_2.{i}.weight": (c, c, 1, 1) for i, c in enumerate(skips)},
        }
        biases = {name.replace("weight", "bias"): shape[:1] for name, shape in expected.items() if "_2." not in name}
        biases["time_embedding.linear_1.bias"] = (1280,)
        trunk = ("down_blocks.", "mid_block.", "time_embedding.linear_2.")
        state = self.build(use_res=True).state_dict()
        found = {name: tuple(value.shape) for name, value in state.items() if not name.startswith(trunk)}
        assert found == {**expected, **biases}
        assert state["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape == (320, 1024)


class TestTrunk:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_computes_what_the_unet_computes(self, family: str) -> None:
        """Fed the same latents and context, the mid block's output is the U-Net's own."""
        unet = small_unet(family)
        model = PromptNetModel.from_unet(unet, **{**OPTIONS, "vision_dim": 24}).eval()
        nn.init.zeros_(model.get_parameter("promptnet_cond_embedding.conv_out.weight"))
        nn.init.zeros_(model.get_parameter("promptnet_cond_embedding.conv_out.bias"))
        nn.init.eye_(model.get_parameter("vision_embedding.weight"))
        nn.init.zeros_(model.get_parameter("vision_embedding.bias"))
        mid_blocks = Recorder(unet.mid_block, model.mid_block)
        latents, steps, context = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 5, 24)
        added = None
        if family == "sdxl":  # its added embedding has no part in the trunk
            nn.init.zeros_(unet.add_embedding.linear_2.weight)
            nn.init.zeros_(unet.add_embedding.linear_2.bias)
            added = {"text_embeds": torch.randn(2, 10), "time_ids": torch.randn(2, 6)}
        with torch.no_grad():
            unet(latents, steps, context, added_cond_kwargs=added)
            model(latents, steps, context)
        assert len(mid_blocks.outputs) == 2
        assert torch.equal(*mid_blocks.outputs)

    def test_is_a_copy_in_the_unets_dtype(self) -> None:
        unet = small_unet().bfloat16()
        model = PromptNetModel.from_unet(unet, **OPTIONS)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        weight = unet.conv_in.weight
        assert torch.equal(model.conv_in.weight, weight)
        nn.init.zeros_(model.conv_in.weight)
        assert weight.abs().sum() > 0

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("class_embed_type", "timestep"),
            ("encoder_hid_dim_type", "text_proj"),
            ("mid_block_type", "UNetMidBlock2D"),
            ("cross_attention_dim", [8, 16]),
            ("time_embedding_type", "fourier"),
        ],
    )
    def test_what_it_would_compute_differently_is_refused(self, key: str, value: object) -> None:
        with pytest.raises(ValueError, match=f"{key}="):
            PromptNetModel.from_config({**FAMILIES["sd15"], key: value})

    def test_settings_for_other_numbers_of_blocks_are_refused(self) -> None:
        with pytest.raises(ValueError, match="attention_head_dim="):
            PromptNetModel(
                **{**SMALL, "down_block_types": CROSS_PLAIN["down_block_types"]}, attention_head_dim=(2, 2, 2)
            )


class TestWords:
    @pytest.mark.parametrize(
        ("num_down", "sizes"),
        [(2, (8, 4, 4, 4)), (3, (8, 4, 2, 2, 2)), (4, (8, 4, 2, 1, 1, 1)), (5, (16, 8, 4, 2, 1, 1, 1))],
    )
    def test_projection_sizes(self, num_down: int, sizes: tuple[int, ...]) -> None:
        assert projection_sizes(num_down) == sizes

    @pytest.mark.parametrize(
        ("region", "height", "width", "count"), [(2, 16, 16, 1), (1, 16, 16, 4), (1, 16, 32, 8), (2, 32, 16, 2)]
    )
    def test_one_for_each_region(self, region: int, height: int, width: int, count: int) -> None:
        model = small_encoder(region_kernel_size=region)
        assert encode(model, **inputs(height=height, width=width)).shape == (2, count, 12)
        assert model.num_pseudo_words(height, width) == count

    def test_are_row_major_maps_of_all_feature_maps(self) -> None:
        """Each word written out: the regions of every projection, side by side, through one linear map."""
        model = small_encoder(region_kernel_size=1)
        first, last = model.first_prompt_projection, model.mid_prompt_projection
        projections = Recorder(first, *model.down_prompt_projections, last)
        words = encode(model, **inputs(height=16, width=24))
        parts = projections.outputs
        assert [part.shape for part in parts] == [(2, 6, 2, 3)] * 4
        grid = torch.cat(parts, dim=1)
        linear, bias = model.region_prompt_output.weight[:, :, 0, 0], model.region_prompt_output.bias
        for row in range(2):
            for column in range(3):
                expected = grid[:, :, row, column] @ linear.T + bias
                torch.testing.assert_close(words[:, row * 3 + column], expected)

    def test_depend_on_every_input(self) -> None:
        model, base = small_encoder(), inputs()
        words = encode(model, **base)
        for name, value in inputs().items():
            assert not torch.allclose(encode(model, **{**base, name: value}), words), name

    def test_are_each_items_own(self) -> None:
        model, both = small_encoder(), inputs()
        alone = encode(model, **{name: value[1:] for name, value in both.items()})
        torch.testing.assert_close(encode(model, **both)[1:], alone, rtol=1e-5, atol=1e-6)

    def test_first_features_are_reference_plus_noisy(self) -> None:
        """h0 = conv_in(r) + C2(silu(C1(x_t)))."""
        model, arguments = small_encoder(), inputs()
        seen: list[Tensor] = []
        model.first_prompt_projection.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        encode(model, **arguments)
        inner = model.promptnet_cond_embedding.conv_in(arguments["noisy_latents"])
        noisy = model.promptnet_cond_embedding.conv_out(inner * torch.sigmoid(inner))
        torch.testing.assert_close(seen[0], model.conv_in(arguments["reference_latents"]) + noisy)

    @pytest.mark.parametrize("with_noise", [True, False])
    def test_reference_stands_in_for_noisy_latents(self, with_noise: bool) -> None:
        model, arguments = small_encoder(with_noise=with_noise), inputs()
        noisy = encode(model, **arguments)
        stand_in = encode(model, **{**arguments, "noisy_latents": arguments["reference_latents"]})
        absent = encode(model, **{**arguments, "noisy_latents": None})
        assert torch.equal(absent, stand_in)
        assert torch.equal(absent, noisy) != with_noise

    def test_timestep_may_be_shared(self) -> None:
        model, arguments = small_encoder(), inputs()
        expected = encode(model, **{**arguments, "timestep": torch.tensor([7, 7])})
        for shared in (7, 7.0, torch.tensor(7), torch.tensor([7])):
            assert torch.equal(encode(model, **{**arguments, "timestep": shared}), expected)

    def test_plain_tuple_on_request(self) -> None:
        model, arguments = small_encoder(), inputs()
        assert torch.equal(model(**arguments, return_dict=False)[0], model(**arguments).pseudo_words)


class TestRefusals:
    @pytest.mark.parametrize(("height", "width"), [(16, 24), (24, 16), (8, 8)])
    def test_sizes_that_do_not_divide(self, height: int, width: int) -> None:
        with pytest.raises(ValueError, match=rf"multiples of 16, but got {height}x{width}"):
            encode(small_encoder(), **inputs(height=height, width=width))

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("reference_latents", torch.zeros(2, 3, 16, 16), r"must be \(B, 4, H, W\)"),
            ("noisy_latents", torch.zeros(2, 4, 32, 32), r"noisy_latents \(2, 4, 32, 32\)"),
            ("vision_states", torch.zeros(2, 5, 21), r"must be \(2, T, 20\)"),
            ("vision_states", torch.zeros(1, 5, 20), r"must be \(2, T, 20\)"),
            ("timestep", torch.zeros(3), r"scalar or \(2,\), but is \(3,\)"),
        ],
    )
    def test_inputs_that_do_not_belong_together(self, name: str, value: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            encode(small_encoder(), **{**inputs(), name: value})

    def test_two_widths_for_one_vision_tower(self) -> None:
        with pytest.raises(ValueError, match="contradicts"):
            PromptNetModel(**TRUNK, vision_dim=20, use_clip_vision_embeds=True)


class TestWordNorm:
    def test_absent_adds_nothing(self) -> None:
        assert not [name for name in small_encoder().state_dict() if "gain" in name]

    def test_sets_every_words_length_and_keeps_its_direction(self) -> None:
        free, held = small_encoder(region_kernel_size=1), small_encoder(region_kernel_size=1, word_norm=0.3)
        held.load_state_dict(free.state_dict(), strict=False)
        arguments = inputs()
        words, normed = encode(free, **arguments), encode(held, **arguments)
        torch.testing.assert_close(normed.norm(dim=-1), torch.full((2, 4), 0.3))
        torch.testing.assert_close(normed, words / words.norm(dim=-1, keepdim=True) * 0.3)
        nn.init.constant_(held.word_gain, 2.0)
        torch.testing.assert_close(encode(held, **arguments), 2 * normed)

    def test_gain_is_learned(self) -> None:
        model = small_encoder(word_norm=0.3)
        model(**inputs()).pseudo_words.sum().backward()
        assert model.word_gain.grad is not None
        assert model.word_gain.grad.abs() > 0


class TestResidualHeads:
    def test_are_frozen_and_change_nothing(self) -> None:
        with_heads, without = small_encoder(use_res=True), small_encoder()
        heads = [name for name, p in with_heads.named_parameters() if not p.requires_grad]
        assert heads
        assert all("residual" in name for name in heads)
        assert set(with_heads.state_dict()) - set(without.state_dict()) == set(heads)
        without.load_state_dict({k: v for k, v in with_heads.state_dict().items() if k not in heads})
        arguments = inputs()
        assert torch.equal(encode(with_heads, **arguments), encode(without, **arguments))

    def test_every_other_parameter_gets_a_gradient(self) -> None:
        """What gets none would break data-parallel training."""
        model = small_encoder(word_norm=1.0)
        model(**inputs()).pseudo_words.square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


class TestTraining:
    def test_gradient_checkpointing_gives_the_same_gradients(self) -> None:
        model, arguments = small_encoder().double().train(), inputs()
        arguments = {k: v.double() if v.is_floating_point() else v for k, v in arguments.items()}

        def gradients() -> list[Tensor]:
            model.zero_grad()
            (model(**arguments).pseudo_words * torch.arange(12)).sum().backward()
            return [p.grad for p in model.parameters() if p.grad is not None]

        plain = gradients()
        model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing
        torch.testing.assert_close(gradients(), plain, rtol=1e-10, atol=1e-12)

    def test_attention_processors_can_be_exchanged(self) -> None:
        model, arguments = small_encoder(), inputs()
        fused = encode(model, **arguments)
        model.set_attn_processor(AttnProcessor())
        assert {type(p) for p in model.attn_processors.values()} == {AttnProcessor}
        torch.testing.assert_close(encode(model, **arguments), fused, rtol=1e-4, atol=1e-5)


class EncoderPipeline(DiffusionPipeline):
    """A pipeline with an encoder among its components."""

    def __init__(self, promptnet: PromptNetModel) -> None:
        super().__init__()
        self.register_modules(promptnet=promptnet)


class TestLoading:
    def test_what_was_saved(self, tmp_path: Path) -> None:
        model, arguments = small_encoder(word_norm=0.5), inputs()
        model.save_pretrained(tmp_path)
        loaded = PromptNetModel.from_pretrained(tmp_path)
        assert torch.equal(encode(loaded, **arguments), encode(model, **arguments))
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "config.json",
            "diffusion_pytorch_model.safetensors",
        ]

    def test_as_a_pipelines_component(self, tmp_path: Path) -> None:
        model, arguments = small_encoder(), inputs()
        EncoderPipeline(model).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "model_index.json").read_text())["promptnet"] == ["promptnet", "PromptNetModel"]
        loaded: Any = EncoderPipeline.from_pretrained(tmp_path)
        assert torch.equal(encode(loaded.promptnet, **arguments), encode(model, **arguments))

    def test_foreign_keys_are_ignored_without_a_word(self, caplog: pytest.LogCaptureFixture) -> None:
        foreign = {"center_input_sample": False, "up_block_types": ["UpBlock2D"], "out_channels": 4}
        with caplog.at_level(logging.WARNING):
            model: Any = PromptNetModel.from_config(
                {**TRUNK, **foreign, "_class_name": "PromptNetModel", "use_clip_vision_embeds": False}
            )
        assert model.config.vision_dim == 1024
        assert not caplog.records

    def test_without_the_residual_heads_that_the_file_holds(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        model, arguments = small_encoder(use_res=True), inputs()
        model.save_pretrained(tmp_path)
        with caplog.at_level(logging.WARNING):
            loaded = PromptNetModel.from_pretrained(tmp_path, use_res=False)
        assert not caplog.records
        assert torch.equal(encode(loaded, **arguments), encode(model, **arguments))
        assert not [name for name in loaded.state_dict() if "residual" in name]

    def test_incomplete_weights_are_refused_by_name(self, tmp_path: Path) -> None:
        small_encoder().save_pretrained(tmp_path)
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        del weights["mid_prompt_projection.weight"]
        save_file(weights, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks mid_prompt_projection\.weight"):
            PromptNetModel.from_pretrained(tmp_path)

    @pytest.mark.parametrize("subfolder", ["", "promptnet"])
    def test_a_pickle_is_sent_to_the_converter(self, tmp_path: Path, subfolder: str) -> None:
        model, folder = small_encoder(), tmp_path / subfolder
        model.save_pretrained(folder)
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "diffusion_pytorch_model.bin")
        with pytest.raises(ValueError, match="promptnet convert"):
            PromptNetModel.from_pretrained(tmp_path, subfolder=subfolder)
