"""`promptnet customize`: images of one person in, a subject file out."""

from __future__ import annotations

import time
from pathlib import Path

from promptnet.commands._loading import EMBEDDED, load_pipeline, make_generator
from promptnet.commands._output import check_output
from promptnet.commands._progress import status, tuning_bar


def customize(
    image: list[Path],
    out: Path,
    class_word: str = "person",
    steps: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    base: str = EMBEDDED,
    promptnet: str | None = None,
    image_encoder: str | None = None,
    device: str = "auto",
) -> None:
    """Tune the model to one person in seconds and save the subject as a small file.

    Args:
        image: one or more images of the person (PNG, JPEG, ...)
        out: the subject file to write (.safetensors); it holds the image's latents, so treat it like a photograph
        class_word: the subject's class, for example "person"
        steps: tuning steps; 0 keeps the encoder's output as it is (null: the pipeline's default)
        learning_rate: of the tuning (null: the pipeline's default)
        seed: makes the result reproducible
        base: base model, a folder in diffusers layout or a Hub id
        promptnet: folder of the encoder, if the base model has none or another one is wanted
        image_encoder: CLIP image encoder for that encoder, a folder or a Hub id
        device: auto, cpu, cuda, ...
    """
    check_output(out, (".safetensors",))
    from promptnet.images.load import open_image

    images = [open_image(path) for path in image]
    generator = make_generator(seed)
    with status("loading the base model"):
        pipe = load_pipeline(base, device, promptnet, image_encoder)
    start_s = time.perf_counter()
    with tuning_bar("customising") as callback:
        subject = pipe.customize(
            images,
            class_word=class_word,
            steps=steps,
            learning_rate=learning_rate,
            generator=generator,
            progress_bar=False,
            callback=callback,
        )
    subject.save(out)
    print(f"{out}: customised in {time.perf_counter() - start_s:.1f} s")
