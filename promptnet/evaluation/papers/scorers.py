"""What a table is scored with: CLIP models, identity scorers and a network of features, by their names in a config."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.papers.config import ConfigError, PaperConfig
from promptnet.io.network_weights import check_weights
from promptnet.metrics.clip_models import OWN, ClipModel, check_clip, load_clip_model
from promptnet.metrics.feature_networks import FeatureNetwork, InceptionFeatures, JudgeFeatures, load_inception
from promptnet.metrics.identity import FaceIdentity, IdentityScorer, JudgeIdentity, load_face_embedder
from promptnet.metrics.judge import load_judge

JUDGE = "judge"


def check_scorers(config: PaperConfig, base: Path) -> None:
    """Check all names and files before anything is loaded.

    Raises:
        ValueError: a name is not known, or a file is missing or of a kind that holds code.
        ModuleNotFoundError: a package is not installed.
    """
    for name, place in config.clip.items():
        check_clip(name, None if place is None else Path(place))
        if name == OWN and place is None and not (base / "clip_projections.safetensors").is_file():
            raise ConfigError(f"the base model '{base}' has no CLIP of its own: clip: own needs a folder")
    for name, place in config.faces.items():
        if name == JUDGE:
            _judge(base, place)
            continue
        check_weights(Path(place), f"the face embedder {name!r}")
        if find_spec("facenet_pytorch") is None:
            raise ModuleNotFoundError("the face embedder needs the extra, pip install 'promptnet[faces]'")


def _judge(base: Path, split: str) -> Path:
    if split not in ("validation", "test"):
        raise ConfigError(f"judge: {split!r} must be validation or test")
    return judge_folder(base, split)


def load_clips(config: PaperConfig, base: Path, device: str) -> dict[str, ClipModel]:
    """Load the CLIP models of a config."""
    return {
        name: load_clip_model(name, None if place is None else Path(place), base, device)
        for name, place in config.clip.items()
    }


def load_faces(config: PaperConfig, base: Path, device: str) -> dict[str, IdentityScorer]:
    """Load the identity scorers of a config."""
    import torch

    found: dict[str, IdentityScorer] = {}
    for name, place in config.faces.items():
        if name == JUDGE:
            judge = load_judge(_judge(base, place))
            found[name] = JudgeIdentity(judge)  # pyright: ignore[reportArgumentType]  (an AvatarJudge)
        else:
            found[name] = FaceIdentity(load_face_embedder(place))
        found[name].to(torch.device(device))
    return found


def check_features(features: Mapping[str, str], base: Path) -> None:
    """Check the network of FID and KID.

    Raises:
        ValueError: there is no such file or judge.
    """
    for kind, place in features.items():
        if kind == "inception":
            check_weights(Path(place), "FID's Inception")
        else:
            _judge(base, place)


def load_features(features: Mapping[str, str], base: Path, device: str) -> FeatureNetwork:
    """Load the network of FID and KID."""
    ((kind, place),) = features.items()
    if kind == "inception":
        return InceptionFeatures(load_inception(Path(place)), device)
    return JudgeFeatures(load_judge(_judge(base, place), device), device)
