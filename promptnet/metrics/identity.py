"""Identity scorers behind one interface: one for avatars and one for photographs of faces."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch.nn import functional as F

from promptnet.datasets.avatars.person import IDENTITY_FIELDS
from promptnet.images.crop import square, to_pixels
from promptnet.images.face_alignment import crop_around, cut
from promptnet.images.face_detection import DetectionError, Face, FaceDetector
from promptnet.io.network_weights import read_weights
from promptnet.models.judge import AvatarJudge

Images = Sequence[Image.Image]
_FACE_PX = 160  # what the face embedder was trained on, and
_FACE_MARGIN = 0.1  # around the detector's box, as a fraction of it


class IdentityScorer(Protocol):
    """Map images to unit vectors whose dot products are similarities."""

    def identity(self, images: Images) -> torch.Tensor:
        """Return (N, F) unit rows that depend on the person and as little else as possible."""
        ...

    def appearance(self, images: Images) -> torch.Tensor:
        """Return (N, G) unit rows that differ between two images of one person: the space to measure copying in."""
        ...

    def to(self, device: torch.device) -> None:
        """Move to the device of the images."""
        ...


def stacked(images: Images, size_px: int) -> torch.Tensor:
    """Return the images' central squares as (N, 3, size_px, size_px) in [-1, 1]."""
    return torch.stack([to_pixels(square(image.convert("RGB"), size_px)) for image in images])


class JudgeIdentity:
    """The judge of avatars: its probabilities for the fields that make an identity.

    An image's vector holds sqrt(p) for every value of every identity field, p being the judge's probability. The dot
    product of two such vectors is the mean Bhattacharyya coefficient over the fields: 1 if the judge predicts the same
    identity in both, whatever the attributes. Appearance is the judge's feature space, attributes included.

    Args:
        judge: the validation judge.
    """

    def __init__(self, judge: AvatarJudge) -> None:
        self.judge = judge.eval().requires_grad_(False)

    def identity(self, images: Images) -> torch.Tensor:
        """Return the square roots of the probabilities, (N, F)."""
        with torch.no_grad():
            logits = self.judge(self._pixels(images))
        beliefs = [logits[name].softmax(dim=1).sqrt() for name in IDENTITY_FIELDS if name in logits]
        return torch.cat(beliefs, dim=1) / len(beliefs) ** 0.5

    def appearance(self, images: Images) -> torch.Tensor:
        """Return the judge's unit features, (N, G)."""
        with torch.no_grad():
            return F.normalize(self.judge.features(self._pixels(images)), dim=1)

    def to(self, device: torch.device) -> None:
        """Move the judge."""
        torch.nn.Module.to(self.judge, device)

    def _pixels(self, images: Images) -> torch.Tensor:
        return stacked(images, 64).to(self.judge.device)


class FaceIdentity:
    """facenet-pytorch's InceptionResnetV1, on the largest face of each image.

    An image without a detected face is embedded as it is, so a generated image that lost the face scores low.

    Args:
        network: with its weights, without its classifier.
        detect: returns an image's faces, the largest first; None takes MTCNN.

    Raises:
        ModuleNotFoundError: facenet-pytorch is not installed.
    """

    def __init__(self, network: Any, detect: Callable[[Image.Image], list[Face]] | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        self._detect = detect or FaceDetector().detect

    def identity(self, images: Images) -> torch.Tensor:
        """Return unit embeddings, (N, 512)."""
        weight = next(self.network.parameters())
        faces = stacked([self._face(image.convert("RGB")) for image in images], _FACE_PX)
        with torch.no_grad():  # trained on (x - 127.5) / 128, which is [-1, 1] to half a per cent
            return F.normalize(self.network(faces.to(weight)), dim=1)

    def _face(self, image: Image.Image) -> Image.Image:
        try:
            faces = self._detect(image)
        except DetectionError:
            faces = []
        return cut(image, crop_around(faces[0], _FACE_MARGIN), _FACE_PX) if faces else image

    def appearance(self, images: Images) -> torch.Tensor:
        """Return the same embeddings: they differ between two photographs of one person too."""
        return self.identity(images)

    def to(self, device: torch.device) -> None:
        """Move the network."""
        self.network.to(device)


def load_validation_judge(folder: str | Path) -> AvatarJudge:
    """The validation judge.

    Raises:
        ValueError: there is none, or it is the one that tests are judged by.
    """
    place = Path(folder)
    if place.resolve().name == "test":
        raise ValueError(f"'{place}' is for `promptnet evaluate` alone: a run may look at the validation judge only")
    if not (place / "config.json").is_file():
        raise ValueError(f"there is no judge of portraits at '{place}': train it (configs/tiny) or name its folder")
    judge: Any = AvatarJudge.from_pretrained(place, use_safetensors=True)
    return judge.float()


FACE_WEIGHTS = "20180402-114759-vggface2"


def find_face_weights() -> Path | None:
    """Return facenet-pytorch's own file of the face embedder's weights, if it exists; nothing is downloaded."""
    cache = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    places = [Path(cache).expanduser() / "checkpoints" / f"{FACE_WEIGHTS}{end}" for end in (".safetensors", ".pt")]
    return next((place for place in places if place.is_file()), None)


def load_face_embedder(weights: str | Path | None = None) -> Any:
    """Load InceptionResnetV1 with its published weights (512 features) from a local file.

    Args:
        weights: a .safetensors file, or the published .pt file (loaded with `weights_only`). None looks in
            facenet-pytorch's cache.

    Raises:
        ValueError: the package or the file is missing, or the file holds another network.
    """
    place = Path(weights) if weights else find_face_weights()
    if place is None or not place.is_file():
        raise ValueError(
            f"no weights of the face embedder{f' at {str(place)!r}' if place else ''}: put facenet-pytorch's "
            f"{FACE_WEIGHTS}.pt (its release v2.2.9) into ~/.cache/torch/checkpoints or name the file with face_weights"
        )
    try:
        from facenet_pytorch import InceptionResnetV1
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: the face embedder needs the extra, pip install 'promptnet[faces]'") from error
    network = InceptionResnetV1(pretrained=None, classify=False)
    missing = network.load_state_dict(read_weights(place, "the face embedder"), strict=False).missing_keys
    if missing:
        raise ValueError(
            f"'{place}' does not hold InceptionResnetV1: it lacks {missing[0]} and {len(missing) - 1} more"
        )
    return network
