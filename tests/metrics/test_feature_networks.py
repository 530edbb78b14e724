"""FID's Inception: its pooling branches, and what its loader takes and refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from promptnet.metrics import feature_networks
from promptnet.metrics.feature_networks import InceptionFeatures, JudgeFeatures, load_inception, new_inception


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return new_inception()


@pytest.mark.parametrize(
    ("block", "width", "pooled"),
    [
        ("Mixed_5b", 192, lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
        ("Mixed_6b", 768, lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
        ("Mixed_7b", 1280, lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
        ("Mixed_7c", 2048, lambda x: F.max_pool2d(x, 3, 1, 1)),
    ],
)
def test_pooling_branches_are_those_of_fids_network(block, width, pooled, network):
    layer = getattr(network, block)
    x = torch.rand(1, width, 5, 5)
    with torch.no_grad():
        branch = layer.branch_pool(pooled(x))
        assert torch.equal(layer(x)[:, -branch.shape[1] :], branch)


def test_features_are_of_images_at_299_px_in_minus_one_to_one():
    class Means(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[1:] == (3, 299, 299)
            return x.mean(dim=(2, 3))

    images = [Image.new("RGB", (40, 20), "white"), Image.new("L", (8, 8), 0), Image.new("RGB", (9, 9), (255, 0, 0))]
    found = InceptionFeatures(Means(), batch=2).features(images)
    np.testing.assert_allclose(found, [[1, 1, 1], [-1, -1, -1], [1, -1, -1]], atol=1e-6)
    assert found.dtype == np.float64


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_the_users_file_is_what_computes(ending, network, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("a download was started"))
    published = {name: value.clone() for name, value in network.state_dict().items()}
    published |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    path = tmp_path / f"inception{ending}"
    save_file(published, path) if ending == ".safetensors" else torch.save(published, path)
    loaded = load_inception(path)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, published[name]), name


def test_another_network_is_refused(tmp_path):
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is not FID's Inception of 2015"):
        load_inception(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="nothing is downloaded"):
        load_inception(Path(tmp_path / "none.pth"))


def test_a_judges_features_are_those_of_read_images(monkeypatch):
    class Judge:
        def read(self, pixels: torch.Tensor) -> list[dict[str, str]]:
            return [{} for _ in pixels]

        def features(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean(dim=(2, 3))

    found = JudgeFeatures(Judge()).features([Image.new("RGB", (30, 10), "white")])
    np.testing.assert_allclose(found, [[1, 1, 1]])
    assert feature_networks.INCEPTION_SIZE_PX == 299
