"""The cards of a comparison of edits: each is learned once, by whichever process comes first."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from promptnet.evaluation.papers.base_models import hash_of
from promptnet.evaluation.papers.config import ConfigError, EditsConfig
from promptnet.evaluation.papers.image_store import key_of
from promptnet.metrics.clip_models import OWN, check_clip

_DECIDES = ("steps", "seed", "learned_on", "iterations", "learning_rate", "preserve", "guidance_scale", "scheduler")


def check_teacher(config: EditsConfig, base: Path) -> None:
    """Check the CLIP that teaches, and that edits can be learned in the base model.

    Raises:
        ValueError: they cannot, or there is no such CLIP.
    """
    from promptnet.training.editing.base import check_base

    check_base(base)
    if config.teacher is not None:
        check_clip(OWN, Path(config.teacher))
    elif not (base / "clip_projections.safetensors").is_file():
        raise ConfigError(f"row disentanglement: '{base}' has no CLIP of its own, so teacher must be a CLIP's folder")


def card_record(config: EditsConfig, edit: Mapping[str, str], base_hash: str | None) -> dict[str, Any]:
    """Return all that decides a card."""
    settings = {name: getattr(config, name) for name in _DECIDES}
    networks = {"base": base_hash, "teacher": hash_of(config.teacher)}
    return {**settings, **networks, "from": edit["from"], "to": edit["to"]}


def card_path(config: EditsConfig, edit: Mapping[str, str], base_hash: str | None) -> Path:
    """Return the path of a card."""
    name = key_of(card_record(config, edit, base_hash))
    return Path(config.out) / "cards" / f"{edit['name']}.{name}.safetensors"


def learn_missing(
    config: EditsConfig, edits: Sequence[Mapping[str, str]], base_hash: str | None, first: int, device: str
) -> None:
    """Learn the cards that are not there, beginning at a place of one's own, and wait for those others learn."""
    begin = first % len(edits)
    for edit in [*edits[begin:], *edits[:begin]]:
        path = card_path(config, edit, base_hash)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_suffix(".lock")):
            if not path.is_file():
                _learn(config, edit, path, device)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Keep other processes out of the block."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _learn(config: EditsConfig, edit: Mapping[str, str], path: Path, device: str) -> None:
    from promptnet.training.editing.data import SeedDataModule
    from promptnet.training.editing.learn import learn_card
    from promptnet.training.editing.losses import DirectionalClip, VisionPerceptual
    from promptnet.training.editing.stage import EditStage

    stage = EditStage(
        edit["from"],
        edit["to"],
        str(path),
        config.base,
        num_steps=config.steps,
        scheduler=config.scheduler,
        guidance_scale=config.guidance_scale,
        learning_rate=config.learning_rate,
        parts=[VisionPerceptual(config.preserve, config.teacher), DirectionalClip(clip_dir=config.teacher)],
        image_every=0,
        seed=config.seed,
    )
    data = SeedDataModule(config.learned_on, min(config.batch_size, config.learned_on), config.seed)
    learn_card(stage, data, iterations=config.iterations, device=device)
