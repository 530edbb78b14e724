"""Base models of each family with an encoder, people and prompts: all a table needs, with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.base_models import write_base
from tests.clip_models import write_clip

FAMILIES = ("sd", "sd-v", "sdxl")
Write = Callable[..., Path]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write_base(tmp_path_factory.mktemp(family) / "base", family) for family in FAMILIES}


@pytest.fixture(scope="session")
def encoders(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from diffusers import UNet2DConditionModel

    from promptnet import PromptNetModel

    found = {}
    for family, base in bases.items():
        torch.manual_seed(4)
        unet = UNet2DConditionModel.from_pretrained(base / "unet")
        width = 56 if family == "sdxl" else 24
        model = PromptNetModel.from_unet(
            unet, vision_dim=20, prompt_channel=width, region_proj_channel=8, region_kernel_size=2
        )
        found[family] = tmp_path_factory.mktemp(f"encoder-{family}")
        model.save_pretrained(found[family])
    return found


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip")


def noise(path: Path, seed: int, side_px: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two people: one image, and a folder of two."""
    noise(tmp_path / "people" / "ann.png", 0)
    for index in range(2):
        noise(tmp_path / "people" / "bob" / f"{index}.png", 1 + index)
    (tmp_path / "people" / "notes.txt").write_text("nobody")
    return tmp_path / "people"


@pytest.fixture
def toy_faces(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A face embedder whose vectors are mean colours, in place of facenet's."""

    class Means:
        def identity(self, images: Any) -> torch.Tensor:
            colours = torch.tensor(
                np.stack([np.asarray(image.convert("RGB"), dtype=np.float32).mean((0, 1)) for image in images])
            )
            return torch.nn.functional.normalize(colours, dim=1)

        appearance = identity

        def to(self, device: torch.device) -> None: ...

    monkeypatch.setattr("promptnet.evaluation.papers.scorers.load_face_embedder", lambda place: None)
    monkeypatch.setattr("promptnet.evaluation.papers.scorers.FaceIdentity", lambda network: Means())
    return Means()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_config(**values: Any) -> Path:
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write_config
