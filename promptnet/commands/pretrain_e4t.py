"""`promptnet pretrain-e4t`: images of many people in, an E4T encoder with its offsets out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from promptnet.commands._checks import check_counts, check_numbers, check_seed
from promptnet.commands._loading import EMBEDDED, check_model, load_pipeline, make_generator
from promptnet.commands._progress import status
from promptnet.inference.subject.class_word import check_class_word


def pretrain_e4t(
    images: Path,
    out: Path,
    class_word: str = "person",
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    layers: Literal["kv", "attention"] = "kv",
    prompt: str = "a photo of S*",
    seed: int = 0,
    base: str = EMBEDDED,
    image_encoder: str | None = None,
    device: str = "auto",
) -> None:
    """Pretrain E4T, a baseline of `promptnet customize`, on a folder of images of many people.

    Args:
        images: folder of images, one person each; folders in it count too
        out: the folder to write; it must not exist
        class_word: of the domain, for example "person"
        steps: of the optimiser (null: 30,000, as published for faces)
        batch_size: images in one step (null: 16, as published)
        learning_rate: of the optimiser (null: 1.6e-5, as published)
        layers: which get weight offsets: kv, the cross-attention keys and values; attention, all projections
        prompt: what the images are called; it holds S*
        seed: makes the result reproducible
        base: base model, a folder in diffusers layout or a Hub id
        image_encoder: CLIP image encoder, a folder or a Hub id, if the base model has none
        device: auto, cpu, cuda, ...
    """
    from promptnet.datasets.image_files import image_files

    paths = image_files(images)
    if not paths:
        raise ValueError(f"--images '{images}' must be a folder that holds images (PNG, JPEG, ...)")
    if out.exists():
        raise ValueError(f"--out '{out}' exists already: choose another name or remove it")
    check_counts(steps=steps, batch_size=batch_size)
    check_numbers(0, learning_rate=learning_rate)
    check_class_word(class_word)
    check_seed(seed)
    check_model(base, device, None, image_encoder)
    with status("loading the base model"):
        pipe = load_pipeline(base, device, None, image_encoder)
    from promptnet.baselines import E4TPretraining
    from promptnet.baselines import pretrain_e4t as pretrain

    given = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    recipe = E4TPretraining(layers=layers, prompts=(prompt,), **{k: v for k, v in given.items() if v is not None})
    losses: list[float] = []

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        if step % max(1, recipe.steps // 20) == 0:
            part = losses[-100:]
            print(f"step {step} of {recipe.steps}: loss {sum(part) / len(part):.4f}", flush=True)

    pretrain(pipe, list(paths), out, class_word, recipe, generator=make_generator(seed), on_step=on_step)
    print(f"{out}: pretrained on {len(paths)} images")
