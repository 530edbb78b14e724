"""Pretraining on a prepared set through Lightning: caches filled on the way, interruption without a trace."""

from pathlib import Path
from typing import Any

import fsspec
import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from promptnet.datasets.faces.module import FaceDataModule
from promptnet.models.promptnet import PromptNetModel
from promptnet.training.pretrain.stage import PretrainStage
from tests.datasets.conftest import count_copies, write_shard


class Watch(Callback):
    """What each step saw, and its loss."""

    def __init__(self) -> None:
        self.steps: list[tuple[list[int], float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append((batch["target_row"].tolist(), float(outputs["loss"])))


def fit(
    base: Path, faces: Path | str, place: Path, num_steps: int, ckpt: Path | None, **options: Any
) -> tuple[Any, Watch]:
    """Train to `num_steps`; the trainer and what was seen."""
    torch.manual_seed(0)
    stage = PretrainStage(
        str(base),
        str(place / "encoder"),
        region_proj_channel=8,
        vision_id=str(base / "vision"),
        schedule="constant",
        warmup_steps=1,
    )
    given: dict[str, Any] = {"num_validation": 2}
    data = FaceDataModule(
        str(faces),
        cache_dir=str(place.parent / "cache"),
        resolution_px=32,
        batch_size=2,
        num_workers=0,
        **(given | options),
    )
    watch = Watch()
    trainer = L.Trainer(
        max_steps=num_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        accumulate_grad_batches=2,
        num_sanity_val_steps=0,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        callbacks=[watch],
        default_root_dir=str(place),
    )
    trainer.fit(stage, data, ckpt_path=None if ckpt is None else str(ckpt), weights_only=True)
    return trainer, watch


@pytest.mark.parametrize(
    "options",
    [
        {"features": ["latents", "vision"]},
        {"window_shards": 1, "num_validation": 0, "colour_jitter": 0.1},
        {"sizes_px": [(32, 32), (24, 40)]},
    ],
    ids=["cached", "streamed", "buckets"],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    face_base: Path, faces: Path, tmp_path: Path, options: dict[str, Any]
):
    whole, seen = fit(face_base, faces, tmp_path / "whole", 4, None, **options)
    first, before = fit(face_base, faces, tmp_path / "first", 2, None, **options)
    first.save_checkpoint(tmp_path / "at-2.ckpt")
    second, after = fit(face_base, faces, tmp_path / "second", 4, tmp_path / "at-2.ckpt", **options)
    assert before.steps + after.steps == seen.steps
    assert len(seen.steps) == 8
    expected, found = (trainer.lightning_module.promptnet.state_dict() for trainer in (whole, second))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    saved = PromptNetModel.from_pretrained(tmp_path / "second" / "encoder")
    assert saved.config["vision_dim"] == 20
    if "features" in options:
        folders = list((tmp_path / "cache" / "features").iterdir())
        assert sorted(folder.name.split("-")[0] for folder in folders) == ["latents", "vision"]
        assert float(whole.callback_metrics["val/loss"]) > 0


def test_a_stream_from_an_address_computes_its_features_once(
    face_base: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    system = fsspec.filesystem("memory")
    for path in sorted(faces.glob("*.parquet")):
        system.pipe_file(f"/streamed/{path.name}", path.read_bytes())
    given: dict[str, Any] = {"window_shards": 1, "num_validation": 0, "features": ["latents", "vision"]}
    _, seen = fit(face_base, "memory://streamed", tmp_path / "whole", 2, None, **given)
    computed = sorted((tmp_path / "cache/features").rglob("*.safetensors"))
    assert len(computed) == 2 * 2 * 3  # kinds, mirrored and not, shards
    fetched = count_copies(monkeypatch)
    monkeypatch.setattr(PretrainStage, "_encode_vision", None)  # nothing is computed again
    _, after = fit(face_base, "memory://streamed", tmp_path / "again", 2, None, **given)
    assert after.steps == seen.steps
    assert len(fetched) <= 2  # those that are trained on, and none to learn what is in the others
    assert sorted((tmp_path / "cache/features").rglob("*.safetensors")) == computed


LONG = "a photo taken long ago on the way to the lighthouse of "


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"captioned": 0.1}, r"row 2 of .*long\.parquet: The prompt is too long: S\* would be cut off"),
        ({"neutral_prompt": LONG + "S*"}, "neutral_prompt: The prompt is too long"),
        ({"captioned": 0.1, "caption_prompt": "{caption} S*"}, r"row 0 of .*long\.parquet: The prompt is too long"),
    ],
)
def test_prompts_whose_s_would_be_cut_off_are_named_before_the_first_step(
    options: dict[str, Any], said: str, face_base: Path, tmp_path: Path
):
    captions = [LONG, "S* in a hat, " + LONG, LONG + "S*", None]
    write_shard(tmp_path / "set/long.parquet", range(4))
    table = pq.read_table(tmp_path / "set/long.parquet").drop_columns("caption")
    pq.write_table(table.append_column("caption", pa.array(captions)), tmp_path / "set/long.parquet")
    with pytest.raises(ValueError, match=said):
        fit(face_base, tmp_path / "set", tmp_path / "run", 1, None, num_validation=0, **options)
    _, seen = fit(face_base, tmp_path / "set", tmp_path / "run", 1, None, num_validation=0)
    assert len(seen.steps) == 2


def test_a_sample_that_would_train_without_its_words_is_refused(face_base: Path, tmp_path: Path):
    stage = PretrainStage(str(face_base), str(tmp_path), region_proj_channel=8, vision_id=str(face_base / "vision"))
    batch = {"prompt": ["S*", "the USS* in dock"]}
    with pytest.raises(ValueError, match=r"'the USS\* in dock' has no S\* in it"):
        stage._conditions(batch, torch.zeros(2, 1, 24))
