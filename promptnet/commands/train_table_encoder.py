"""`promptnet train-table-encoder`: an encoder whose words depend on the step alone, a table for each drawing."""

from __future__ import annotations

from pathlib import Path

from promptnet.commands._checks import check_counts, check_numbers, check_seed
from promptnet.commands._loading import EMBEDDED, check_model
from promptnet.io.atomic import make_folder


def train_table_encoder(
    out: Path,
    data: Path | None = None,
    teacher: Path | None = None,
    distil: bool = True,
    steps: int = 2000,
    batch_size: int = 16,
    learning_rate: float = 4e-4,
    num_noises: int = 4,
    denoising_weight: float = 0.0,
    num_images: int = 24000,
    resolution: int = 512,
    seed: int = 0,
    run_dir: Path | None = None,
    base: str = EMBEDDED,
    image_encoder: str | None = None,
    device: str = "auto",
) -> None:
    """Train an encoder whose words depend on the step alone. Repeat the command to go on where it stopped.

    Args:
        out: the folder to write the encoder to; give it to other commands as --promptnet
        data: a set that `promptnet prepare` made (null: procedural avatars, for the embedded base model)
        teacher: folder of the encoder to learn from (null: the base model's own)
        distil: learn the teacher's words, averaged over noise; --no-distil pretrains on the base model's own error
        steps: of the optimiser
        batch_size: images in one step
        learning_rate: of the optimiser
        num_noises: noisy images that the teacher's words are averaged over
        denoising_weight: of the base model's own error beside the distance of the words, in distilling
        num_images: procedural avatars to train on, where no --data is given
        resolution: side of the images in pixels, where --data is given
        seed: makes the result reproducible
        run_dir: folder of checkpoints and figures (null: beside --out, with the ending -run)
        base: base model, a folder in diffusers layout or a Hub id
        image_encoder: CLIP image encoder, a folder or a Hub id, if the base model has none
        device: auto, cpu, cuda, ...
    """
    check_counts(steps=steps, batch_size=batch_size, num_noises=num_noises, num_images=num_images)
    check_counts(resolution=resolution)
    check_numbers(0, learning_rate=learning_rate)
    if denoising_weight < 0:
        raise ValueError(f"--denoising-weight {denoising_weight} must be at least 0")
    if teacher is not None and not distil:
        raise ValueError("--teacher is for distilling: leave out --no-distil, or --teacher")
    if distil and teacher is None and not (Path(base) / "promptnet").is_dir():
        raise ValueError(f"--base '{base}' is no folder with an encoder in it: say which one by --teacher")
    check_seed(seed)
    check_model(base, device, None, image_encoder)
    make_folder(out.parent)
    run_dir = out.with_name(f"{out.name}-run") if run_dir is None else run_dir
    words = ["fit", f"--run_dir={run_dir}", f"--seed_everything={seed}"]
    words += _model(out, teacher, distil, learning_rate, num_noises, denoising_weight, seed, base, image_encoder)
    words += _data(data, batch_size, num_images, resolution, seed, run_dir)
    words += _trainer(steps, device)
    from promptnet.training.callbacks.gradient_watch import TrainingDiverged
    from promptnet.training.cli import train

    try:
        train(words)
    except TrainingDiverged as error:
        raise ValueError(str(error)) from error
    print(f"{out}: an encoder whose words are a table")


def _model(
    out: Path,
    teacher: Path | None,
    distil: bool,
    learning_rate: float,
    num_noises: int,
    denoising_weight: float,
    seed: int,
    base: str,
    image_encoder: str | None,
) -> list[str]:
    room = "promptnet.training.pretrain"
    words = [f"--model={room}.table_stage.TableEncoderStage" if distil else f"--model={room}.stage.PretrainStage"]
    words += [f"--model.base_dir={base}", f"--model.export_dir={out}", f"--model.seed={seed}"]
    words += [f"--model.learning_rate={learning_rate}"]
    words += [] if image_encoder is None else [f"--model.vision_id={image_encoder}"]
    if not distil:
        return [*words, "--model.with_noise=false"]
    words += [] if teacher is None else [f"--model.teacher_dir={teacher}"]
    return [*words, f"--model.num_noises={num_noises}", f"--model.denoising_weight={denoising_weight}"]


def _data(data: Path | None, batch_size: int, num_images: int, resolution: int, seed: int, run_dir: Path) -> list[str]:
    common = [f"--data.batch_size={batch_size}", f"--data.seed={seed}"]
    if data is None:
        words = ["--data=promptnet.datasets.avatars.module.PairDataModule", f"--data.num_images={num_images}"]
        return [*words, f"--data.num_validation={min(512, num_images)}", *common]
    words = ["--data=promptnet.datasets.faces.module.FaceDataModule", f"--data.data_dir={data}"]
    words += [f"--data.cache_dir={run_dir / 'features'}", f"--data.resolution_px={resolution}"]
    words += ["--data.reference=same-identity"]
    return [*words, "--data.features=[latents,vision]", "--data.flip=0.0", *common]


def _trainer(steps: int, device: str) -> list[str]:
    words = [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={min(500, steps)}"]
    words += ["--trainer.check_val_every_n_epoch=null", "--trainer.gradient_clip_val=1.0", "--trainer.devices=1"]
    accelerator = {"auto": "auto", "cpu": "cpu"}.get(device, "cuda")
    words += [f"--trainer.accelerator={accelerator}", f"--trainer.log_every_n_steps={min(20, steps)}"]
    words += ["--trainer.callbacks=lightning.pytorch.callbacks.EMAWeightAveraging"]
    return [*words, "--trainer.callbacks.decay=0.99", f"--checkpoint.every_n_train_steps={min(250, steps)}"]
