"""CLIP models behind one interface: cosines by hand, and names and files that are refused before anything is loaded."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from promptnet.metrics.clip_models import (
    CLIP_MODELS,
    check_clip,
    direction_similarity,
    load_clip_model,
    prompt_similarity,
)
from tests.clip_models import write_clip


class Colours:
    """A CLIP in which texts and images are their mean colours."""

    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return F.normalize(torch.tensor([image.getpixel((0, 0)) for image in images], dtype=torch.float32), dim=1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        known = {"red": (1.0, 0, 0), "green": (0, 1.0, 0)}
        return torch.tensor([known[text] for text in texts])


def coloured(*colours: tuple[int, int, int]) -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), colour) for colour in colours]


def test_similarity_of_prompts_by_hand():
    found = prompt_similarity(Colours(), ["red", "red"], coloured((255, 0, 0), (255, 255, 0)))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5**0.5]))
    with pytest.raises(ValueError, match="do not go together"):
        prompt_similarity(Colours(), ["red"], coloured((1, 1, 1), (2, 2, 2)))


def test_direction_by_hand():
    clip = Colours()
    before = clip.images(coloured((255, 0, 0), (255, 0, 0), (255, 0, 0)))
    after = clip.images(coloured((0, 255, 0), (255, 0, 0), (0, 0, 255)))
    found = direction_similarity(clip, before, after, ("red", "green"))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.5]))  # turned green, unchanged, turned blue


def test_a_folder_of_transformers_is_that_model(tmp_path):
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = write_clip(tmp_path / "clip")
    clip, images = load_clip_model("own", folder), coloured((250, 10, 40), (0, 90, 0))
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
    tokens = tokenizer(["a b", "c"], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, **pixels).logits_per_image.diag() / model.logit_scale.exp()
    torch.testing.assert_close(prompt_similarity(clip, ["a b", "c"], images), expected, atol=1e-5, rtol=0)


def test_the_embedded_models_own_clip():
    clip = load_clip_model("own", None, Path("checkpoints/tiny"))
    images = clip.images(coloured((255, 0, 0)))
    assert images.norm(dim=1).item() == pytest.approx(1, abs=1e-5)
    assert images.shape == clip.texts(["a portrait of a person"]).shape


class Toy(nn.Module):
    """What open-clip gives, with four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(4))

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean(dim=(1, 2, 3))[:, None] + self.scale

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float().mean(dim=1)[:, None] * self.scale


@pytest.fixture
def open_clip(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    asked: list[Any] = []
    module: Any = ModuleType("open_clip")
    module.__spec__ = sys.__spec__

    def create(name: str, **options: Any) -> tuple[Any, Any, Any]:
        asked.append((name, options))
        return Toy(), None, lambda image: torch.full((3, 2, 2), float(image.getpixel((0, 0))[0]))

    module.create_model_and_transforms = create
    module.get_tokenizer = lambda name: lambda texts: torch.tensor([[len(text), 1] for text in texts])
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return asked


def test_a_file_goes_into_open_clips_network_of_that_name(open_clip, tmp_path):
    path = tmp_path / "rn50.safetensors"
    save_file({"scale": torch.tensor([1.0, 2.0, 3.0, 4.0]), "input_resolution": torch.tensor(224)}, path)
    clip = load_clip_model("RN50", path)
    assert open_clip == [("RN50", {"pretrained": None, "force_quick_gelu": True})]  # nothing is fetched
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(clip.texts(["abc"])[0], F.normalize(scale, dim=0))
    torch.testing.assert_close(clip.images(coloured((10, 0, 0)))[0], F.normalize(scale + 10, dim=0))
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not RN50"):
        load_clip_model("RN50", path)


def test_open_clip_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("promptnet.metrics.clip_models.find_spec", lambda name: None)
    save_file({"scale": torch.zeros(4)}, tmp_path / "x.safetensors")
    for name in CLIP_MODELS:
        with pytest.raises(ModuleNotFoundError, match="pip install open-clip-torch"):
            check_clip(name, tmp_path / "x.safetensors")


def test_names_and_files_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"no CLIP model 'ViT-B/23'.*ViT-B/32"):
        check_clip("ViT-B/23", tmp_path)
    with pytest.raises(ValueError, match="needs a folder or a file"):
        check_clip("RN50", None)
    with pytest.raises(ValueError, match="nothing is downloaded"):
        check_clip("RN50", tmp_path / "none.pt")
    with pytest.raises(ValueError, match="must be a folder"):
        check_clip("own", tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"no config\.json"):
        check_clip("ViT-B/32", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(ValueError, match="both encoders"):
        check_clip("ViT-B/32", tmp_path)
    check_clip("own", write_clip(tmp_path / "clip"))
    with pytest.raises(ValueError, match=r"is not ViT-B/32: .*\(20, 8, 16\)"):
        check_clip("ViT-B/32", tmp_path / "clip")
