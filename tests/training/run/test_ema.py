"""What shards weights keeps every callback but the average, and gathers the encoder block by block."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, Strategy
from torch.distributed.fsdp import FullyShardedDataParallel

from promptnet.training.callbacks import GradientWatch, TrainingDiverged
from promptnet.training.pretrain.stage import PretrainStage
from promptnet.training.run.ema import average_where_it_trains, leave_out_averaging
from tests.training.conftest import ROOT


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy])
def test_what_shards_does_without_averaged_weights_and_says_so(kind: type[Strategy]):
    average, watch = EMAWeightAveraging(), GradientWatch()
    trainer = SimpleNamespace(callbacks=[average, watch], strategy=object.__new__(kind))
    with pytest.warns(UserWarning, match=f"no EMAWeightAveraging in this run.*{kind.__name__}"):
        leave_out_averaging(trainer)
    assert trainer.callbacks == [watch]
    whole = SimpleNamespace(callbacks=[average, watch], strategy=DDPStrategy())
    leave_out_averaging(whole)
    assert whole.callbacks == [average, watch]


def test_the_average_lies_where_the_stage_trains_and_holds_only_what_trains(face_base: Path, tmp_path: Path):
    given = {"region_kernel_size": 2, "region_proj_channel": 8, "vision_id": str(face_base / "vision")}
    stage = PretrainStage(str(face_base), str(tmp_path / "encoder"), **given)
    average, placed = EMAWeightAveraging(), EMAWeightAveraging(device="cpu")
    there: Any = SimpleNamespace(
        callbacks=[average, placed], strategy=SimpleNamespace(root_device=torch.device("meta"))
    )
    average_where_it_trains(there)
    assert placed._device == torch.device("cpu")  # a config's own choice
    average.setup(there, stage, "fit")
    assert average._average_model is not None
    copied: Any = average._average_model.module
    assert {value.device.type for value in copied.parameters()} == {"meta"}
    assert {value.device.type for value in stage.parameters()} == {"cpu"}
    assert all(copied.frozen[name] is part for name, part in stage.frozen.items())
    assert [text_encoder.network for text_encoder in copied.text_encoders.text_encoders] == [
        t.network for t in stage.text_encoders.text_encoders
    ]
    assert all(value.device.type == "cpu" for part in stage.frozen.values() for value in part.parameters())


def test_a_copied_stage_has_weights_of_its_own(face_base: Path, tmp_path: Path):
    given = {"region_kernel_size": 2, "region_proj_channel": 8, "vision_id": str(face_base / "vision")}
    stage = PretrainStage(str(face_base), str(tmp_path / "encoder"), **given)
    copied = deepcopy(stage)
    assert copied.state_dict().keys() == stage.state_dict().keys()
    for one, other in zip(stage.parameters(), copied.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
    assert type(copied) is PretrainStage
    assert copied.hparams == stage.hparams


def strategy_of(overlay: str) -> Any:
    given = yaml.safe_load((ROOT / f"configs/trainer/{overlay}.yaml").read_text())["trainer"]["strategy"]
    parser: Any = ArgumentParser()
    parser.add_argument("--strategy", type=Strategy)
    return parser.instantiate_classes(parser.parse_object({"strategy": given})).strategy


def test_fsdp_gathers_the_encoder_block_by_block(two_ranks: None, face_base: Path, tmp_path: Path):
    given = {"region_kernel_size": 2, "region_proj_channel": 8, "vision_id": str(face_base / "vision")}
    stage = PretrainStage(str(face_base), str(tmp_path / "encoder"), **given)
    whole = sum(value.numel() for value in stage.parameters())
    sharded = FullyShardedDataParallel(stage, device_id=torch.device("cpu"), **strategy_of("fsdp").kwargs)
    wrapped = [name for name, part in stage.named_modules() if isinstance(part, FullyShardedDataParallel)]
    assert wrapped == ["promptnet.down_blocks.0", "promptnet.down_blocks.1", "promptnet.mid_block"]
    assert sum(value.numel() for value in stage.parameters()) < 0.6 * whole
    latents, vision = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 20)
    stage.forward = lambda: stage.promptnet(latents, torch.tensor([1, 2]), vision).pseudo_words.sum()  # type: ignore[method-assign]
    sharded().backward()
    assert any(value.grad is not None for value in stage.parameters())


class Engine:
    """Stands in for DeepSpeed's: a norm a step, None where it computes none."""

    def __init__(self, *norms: float | None) -> None:
        self.norms, self.num_steps, self.skipped_steps = list(norms), 0, 0

    def step(self) -> None:
        self.skipped_steps += self.norms[self.num_steps] == float("inf")
        self.num_steps += 1

    def get_global_grad_norm(self) -> float | None:
        return self.norms[self.num_steps - 1]


def watched(watch: GradientWatch, *norms: float | None) -> list[dict[str, float]]:
    """What is logged of steps with these norms, each looked at twice."""
    logged: list[dict[str, float]] = []
    engine = Engine(*norms)
    strategy = SimpleNamespace(deepspeed_engine=engine)
    trainer: Any = SimpleNamespace(strategy=strategy, global_step=0, gradient_clip_val=1.0, loggers=[])
    stage: Any = torch.nn.Linear(2, 2)  # without gradients
    stage.log_dict = lambda values: logged.append(dict(values))
    stage.log = lambda name, value: logged[-1].update({name: value})
    watch.on_train_start(trainer, stage)
    for _ in norms:
        watch.on_before_optimizer_step(trainer, stage, None)
        engine.step()
        trainer.global_step += 1
        for _ in range(2):
            watch.on_train_batch_end(trainer, stage, None, None, 0)
    return logged


def test_deepspeeds_norm_is_read_from_its_engine():
    watch = GradientWatch()
    with pytest.warns(UserWarning, match="not finite") as said:
        logged = watched(watch, 0.5, 2.0, -1.0, float("inf"), 0.5)
    assert [values["gradients/norm"] for values in logged] == [0.5, 2.0, float("inf"), float("inf"), 0.5]
    assert [values["gradients/clipped_share"] for values in logged] == [0.0, 0.5, 0.5, 0.5, 1 / 3]
    assert [values["gradients/nonfinite_steps"] for values in logged] == [0, 0, 1, 2, 2]
    assert "DeepSpeed has taken the step" in str(said[0].message)
    assert "does not say whose" in str(said[1].message)
    assert "left the step out" in str(said[1].message)
    with pytest.raises(TrainingDiverged, match="3 times in a row"):
        watched(GradientWatch(patience=3), *[-1.0] * 3)


def test_an_engine_without_a_norm_is_told_of_once():
    with pytest.warns(UserWarning, match="shows no gradients") as said:
        assert watched(GradientWatch(), None, None) == []
    assert len(said) == 1
