"""Values that are not finite never become an image: black ones would not say why."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from promptnet import cli
from promptnet.inference.references import decode_finite

FEW: dict[str, Any] = {"num_inference_steps": 2}


@pytest.mark.parametrize("output_type", ["pil", "latent"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_without_numbers_are_refused_by_place(pipe: Any, output_type: str, value: float) -> None:
    latents = torch.randn(2, 4, 8, 8)
    latents[1, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"Image 2 of 2 holds values that are not finite.* in float32"):
        pipe(["a hat", "a dog"], latents=latents, output_type=output_type, **FEW)


def test_a_scale_that_overflows_is_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="lower the scales"):
        pipe("a hat", guidance_scale=1e300, generator=torch.Generator().manual_seed(0), **FEW)


def test_a_decoder_that_overflows_is_refused(new_pipe: Any) -> None:
    new_pipe.vae.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match="Image 1 of 1"):
        decode_finite(new_pipe.vae, torch.randn(1, 4, 8, 8))


def test_the_command_overwrites_nothing_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "me.png"
    Image.new("RGB", (64, 64), "red").save(out)
    before = out.read_bytes()
    words = ["generate", "--prompt", "a portrait", "--out", str(out), "--overwrite", "--guidance-scale", "1e300"]
    assert cli.main([*words, "--steps", "1", "--device", "cpu"]) == 2
    assert "error: Image 1 of 1 holds values that are not finite" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_half_characters_are_refused_before_anything_is_drawn(pipe: Any) -> None:
    for words in ({"prompt": "a caf\udce9"}, {"prompt": "a", "negative_prompt": "\ud800"}):
        with pytest.raises(ValueError, match="is no character"):
            pipe(**words, **FEW)


def test_an_encoder_that_overflows_is_blamed_and_not_the_learning_rate(new_pipe: Any) -> None:
    new_pipe.vae.encoder.conv_in.bias.fill_(float("nan"))
    face = Image.new("RGB", (64, 64), "red")
    with pytest.raises(ValueError, match="reference_latents has values that are not finite: load the pipeline in"):
        new_pipe.customize(face, steps=0, registration="never", allow_foreign=True, progress_bar=False)


def test_what_cannot_be_is_said_before_anything_is_drawn(pipe: Any) -> None:
    for given in ({"callback_on_step_end": 3}, {"resolution": None}):
        with pytest.raises(ValueError, match=r"callback_on_step_end=3|settings=None"):
            pipe("a hat", **given, **FEW)
