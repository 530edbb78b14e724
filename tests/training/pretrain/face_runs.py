"""Pretraining small enough for a test: runs on a prepared set."""

from pathlib import Path

from tests.training.conftest import ROOT
from tests.training.forked import Runs
from tests.training.run.ranks import CALLBACKS

BATCH = 3  # images of a process and step
ROWS = "[sample, target_row, reference_row]"


def face_pretraining(runs: Runs, base: Path, faces: Path, *case: str):
    """Starts 6 steps of a shipped config on the tiny set, a checkpoint every 2."""

    def start(run_dir: Path, *options: str, environment: dict[str, str] | None = None) -> int:
        run_dir.mkdir(exist_ok=True)
        callbacks = CALLBACKS.replace("FOLDER", f"{run_dir / 'ledger'}, fields: {ROWS}")
        given = [f"--config={ROOT / 'configs/pretrain/sd15.yaml'}", f"--run_dir={run_dir}", "--threads=1"]
        given += [f"--model.init_args.base_dir={base}", f"--model.init_args.vision_id={base / 'vision'}"]
        given += [f"--model.init_args.export_dir={run_dir / 'encoder'}", "--model.init_args.warmup_steps=1"]
        given += ["--model.init_args.region_kernel_size=2", "--model.init_args.region_proj_channel=8"]
        given += [f"--data.init_args.data_dir={faces}", f"--data.init_args.cache_dir={run_dir.parent / 'cache'}"]
        given += ["--data.init_args.resolution_px=32", f"--data.init_args.batch_size={BATCH}"]
        given += ["--data.init_args.reference=same-identity", "--data.init_args.num_workers=0", *case]
        given += ["--trainer.precision=32-true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        given += ["--trainer.max_steps=6", "--checkpoint.every_n_train_steps=2", "--trainer.val_check_interval=4"]
        given += [f"--trainer.callbacks={callbacks}"]
        return runs.start(run_dir / "log", "fit", *given, *options, environment=environment)

    return start
