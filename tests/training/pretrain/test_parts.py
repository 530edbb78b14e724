"""Networks that do not belong together are an error when they are loaded, not after a training."""

from pathlib import Path
from typing import Any

import pytest

from promptnet import PromptNetModel
from promptnet.inference.sampling import arguments
from promptnet.training.pretrain.stage import PretrainStage
from tests.base_models import write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), "sd")


def stage(base: Path, folder: Path, **options: Any) -> PretrainStage:
    given: dict[str, Any] = {"base_dir": str(base), "vision_id": str(base / "vision"), "export_dir": str(folder)}
    return PretrainStage(**given, region_kernel_size=1, region_proj_channel=8, **options)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"vision_dim": 24}, r"states 24 wide \(vision_dim\), but the image encoder's are 20"),
        ({"prompt_channel": 32}, r"words are 32 wide \(prompt_channel\)"),
    ],
)
def test_an_encoder_of_other_networks_is_not_gone_on_with(
    widths: dict[str, int], message: str, base: Path, tmp_path: Path
) -> None:
    own = stage(base, tmp_path)
    shape: Any = {"vision_dim": 20, "prompt_channel": 24, **widths}
    encoder = PromptNetModel.from_unet(own.frozen["unet"], region_kernel_size=1, region_proj_channel=8, **shape)
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=message):
        stage(base, tmp_path, start_from=str(tmp_path / "encoder"))


def test_a_complete_text_encoder_of_stable_diffusion_2_is_not_trained_with(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "_COMPLETE_VIT_H", (24, 2))  # the size of this one
    with pytest.raises(ValueError, match="or take Stable Diffusion 2's own text encoder"):
        stage(base, tmp_path)
