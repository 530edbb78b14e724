"""What a run is made of, noted in its checkpoints: a command that goes on with something else is told, or refused.

Refused is what would make two runs of one: other weights of the base model, other images or another choice of them,
another seed, another optimiser. What takes effect from here on (rates, prompts, sizes) is said in one line. Where files
lie, and how the work is shared out, is nobody's business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from promptnet.inference.subject.fingerprint import hash_weights

KEY = "promptnet_run"
# By the last part of the option's name.
_FIXED = (
    "class_path",
    "num_images",
    "num_seeds",
    "optimizer",
    "seed",
    "seed_everything",
    "size_px",
    "sizes_px",
    "start_from",
    "window_shards",
)
_FREE = (
    "base_dir",
    "cache_dir",
    "compile_backend",
    "data_dir",
    "export_dir",
    "gradient_checkpointing",
    "num_workers",
    "sampling",
    "tuning",
    "validation_dir",
    "vision_id",
)
_RENAMED = {"same-picture": "same-image"}  # values of checkpoints of before
_OF_TRAINER = ("accumulate_grad_batches", "gradient_clip_val", "max_steps", "precision")


class RunChanged(ValueError):
    """A run is to go on with something else than it was begun with."""


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a resolved `fit` configuration that decide what is trained, by their dotted names.

    Args:
        config: with `model`, `data` and `trainer`, nested dictionaries.
    """
    plain = json.loads(json.dumps(config, default=str))
    found: dict[str, Any] = {"seed_everything": plain.get("seed_everything")}
    for part in ("model", "data"):
        given = plain.get(part) or {}
        found[f"{part}.class_path"] = given.get("class_path")
        found |= {f"{part}.{name}": value for name, value in (given.get("init_args") or {}).items()}
    return found | {f"trainer.{name}": plain["trainer"].get(name) for name in _OF_TRAINER}


class RunRecord(Callback):
    """Notes in every checkpoint what the run is made of, and compares that when the run goes on.

    Args:
        options: of this command, see `options_of`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options, self.facts = dict(options), {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Look at weights and data before anything is moved or rounded."""
        parts = getattr(pl_module, "frozen", {})
        self.facts: dict[str, str] = {f"weights of {name}": hash_weights(part, name) for name, part in parts.items()}
        if hasattr(trainer.datamodule, "facts"):
            self.facts |= trainer.datamodule.facts()
        averaging = [type(each).__name__ for each in trainer.callbacks if isinstance(each, WeightAveraging)]
        self.facts["weight averaging"] = averaging[0] if averaging else ""

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note it."""
        checkpoint[KEY] = {"options": self.options, "facts": self.facts}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Compare.

        Raises:
            RunChanged: the run may not go on with these options.
        """
        if KEY not in checkpoint:
            rank_zero_warn("this checkpoint does not say what its run was made of: nothing can be compared")
            return
        begun, step = checkpoint[KEY], checkpoint["global_step"]
        refused = _changed_facts(begun["facts"], self.facts)
        changed = _changed_options(begun["options"], self.options)
        refused += [text for name, text in changed.items() if _is_fixed(name, self.options)]
        if refused:
            raise RunChanged(
                f"the run is at step {step} and cannot go on with something else than it was begun with: "
                f"{'; '.join(refused)}. Repeat the command it was begun with, or begin another run: another --run_dir, "
                "and the encoder so far as start_from."
            )
        said = [text for name, text in changed.items() if name.rpartition(".")[2] not in _FREE]
        if said:
            rank_zero_info(f"from step {step} on with other options: {'; '.join(said)}")


def _is_fixed(name: str, options: Mapping[str, Any]) -> bool:
    last = name.rpartition(".")[2]
    return last in _FIXED or (last == "batch_size" and bool(options.get("data.sizes_px")))  # buckets are cut by it


def _changed_options(begun: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that have other values by now; those that one version alone knows are left out."""
    return {
        name: f"{name}={now[name]!r}, before {value!r}"
        for name, value in begun.items()
        if name in now and now[name] != _RENAMED.get(value if isinstance(value, str) else "", value)
    }


def _changed_facts(begun: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what is another by now. An average may be begun at any time, but not be dropped: it is the model."""
    return [
        f"{name}: {now.get(name) or 'none'}, before {value}"
        for name, value in begun.items()
        if now.get(name) != value and value
    ]
