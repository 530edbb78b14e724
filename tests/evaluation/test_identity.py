"""`promptnet evaluate identity`: cosines by the face embedder, offline, with weights that the user names."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from facenet_pytorch import InceptionResnetV1
from PIL import Image
from safetensors.torch import save_file

from promptnet import cli
from promptnet.evaluation.identity import compare_identities, images_in


class Means:
    """A scorer whose vectors are the images' mean colours."""

    def identity(self, images: Sequence[Image.Image]) -> torch.Tensor:
        colours = torch.tensor([image.resize((1, 1)).getpixel((0, 0)) for image in images], dtype=torch.float32)
        return torch.nn.functional.normalize(colours, dim=1)

    appearance = identity

    def to(self, device: torch.device) -> None: ...


def noise(path: Path, seed: int) -> Path:
    values = (torch.rand(48, 48, 3, generator=torch.Generator().manual_seed(seed)) * 255).byte()
    Image.fromarray(values.numpy()).save(path)
    return path


def test_every_image_is_compared_with_every_other(tmp_path):
    folder = tmp_path / "b"
    folder.mkdir()
    Image.new("RGB", (40, 40), (0, 255, 0)).save(folder / "green.png")
    Image.new("RGB", (40, 40), (255, 255, 0)).save(folder / "yellow.png")
    (folder / "notes.txt").write_text("no image")
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "red.png")
    found = compare_identities(tmp_path / "red.png", folder, Means(), batch=1)
    assert found.others == ("green.png", "yellow.png")
    torch.testing.assert_close(found.values, torch.tensor([[0.0, 0.5**0.5]]))
    assert found.record()["best_of_each"] == pytest.approx([0.5**0.5])


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder that holds images"):
        images_in(tmp_path)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_the_command_with_named_weights_is_the_network_itself(ending, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("a download was started"))
    torch.manual_seed(0)
    network = InceptionResnetV1(pretrained=None).eval()
    weights = tmp_path / f"face{ending}"
    if ending == ".pt":
        torch.save(network.state_dict(), weights)
    else:
        save_file(network.state_dict(), weights)
    a, b = noise(tmp_path / "a.png", 0), noise(tmp_path / "b.png", 1)
    words = ["evaluate", "identity", str(a), str(b), "--face-weights", str(weights), "--out", str(tmp_path / "x.json")]
    assert cli.main(words) == 0
    assert "a.png  b.png" in capsys.readouterr().out
    found = json.loads((tmp_path / "x.json").read_text())["similarities"][0][0]
    faces = []
    for path in (a, b):  # noise has no face: the image itself is read
        image = Image.open(path).convert("RGB").resize((160, 160), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32))
        faces.append(pixels.permute(2, 0, 1) / 127.5 - 1)
    with torch.no_grad():
        one, two = network(torch.stack(faces))
    assert found == pytest.approx(float(one @ two), abs=2e-2)


def test_missing_weights_are_said_and_nothing_is_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    a = noise(tmp_path / "a.png", 0)
    assert cli.main(["evaluate", "identity", str(a), str(a)]) == 2
    assert "no weights of the face embedder" in capsys.readouterr().err
    assert cli.main(["evaluate", "identity", str(a), str(tmp_path / "no.png")]) == 2


def test_the_judge_reads_avatars(tmp_path, capsys):
    from promptnet.evaluation.harness.tasks import make_people

    one, other = make_people("validation", 2, 1)
    one.reference_image(64).save(tmp_path / "a.png")
    one.true_images(64)[0].save(tmp_path / "again.png")
    other.reference_image(64).save(tmp_path / "b.png")
    similarities = []
    for name in ("again.png", "b.png"):
        words = ["evaluate", "identity", str(tmp_path / "a.png"), str(tmp_path / name), "--embedder", "judge"]
        assert cli.main(words) == 0
        similarities.append(float(capsys.readouterr().out.split("mean ")[1].split()[0]))
    assert similarities[0] > similarities[1] + 0.05
