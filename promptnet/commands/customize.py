"""`promptnet customize`: images of one person in, a subject file out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from promptnet.commands._checks import check_files, check_seed
from promptnet.commands._faces import face_square
from promptnet.commands._loading import EMBEDDED, check_model, choose_scheduler, load_pipeline, make_generator
from promptnet.commands._methods import Method, check_budget, check_method, run_method
from promptnet.commands._output import check_output
from promptnet.commands._preview import preview_sheet
from promptnet.commands._progress import status, tuning_bar
from promptnet.commands._warnings import plain_warnings
from promptnet.inference.subject.class_word import check_class_word
from promptnet.inference.tuning.config import TuningConfig, TuningProgress
from promptnet.io.atomic import make_folder, write_whole


def check_new_folder(out: Path) -> None:
    """Check that a folder can be written.

    Raises:
        ValueError: it exists.
    """
    if out.exists():
        raise ValueError(f"--out '{out}' exists already: choose another name or remove it")


def customize(
    image: list[Path],
    out: Path,
    class_word: str = "person",
    steps: int | None = None,
    learning_rate: float | None = None,
    seconds: float | None = None,
    vram_gb: float | None = None,
    seed: int = 0,
    base: str = EMBEDDED,
    promptnet: str | None = None,
    image_encoder: str | None = None,
    crop_face: bool = False,
    registration: Literal["auto", "always", "never"] = "auto",
    allow_foreign: bool = False,
    no_preview: bool = False,
    method: Method = "promptnet",
    method_config: Path | None = None,
    e4t: Path | None = None,
    overwrite: bool = False,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    device: str = "auto",
) -> None:
    """Tune the model to one person in seconds and save the subject as a small file.

    Args:
        image: one or more images of the person (PNG, JPEG, ...)
        out: the subject file to write (.safetensors); it holds the image's latents, so treat it like a photograph
        class_word: the subject's class, for example "person"
        steps: tuning steps; 0 keeps the encoder's output as it is (null: the pipeline's or method's default)
        learning_rate: of the tuning (null: the pipeline's or method's default)
        seconds: how long customising may take, loading left out; steps, batch and views are planned for it
        vram_gb: GiB of the GPU that customising may hold; smaller batches, then recomputed activations
        seed: makes the result reproducible
        base: base model, a folder in diffusers layout or a Hub id
        promptnet: folder of the encoder, if the base model has none or another one is wanted
        image_encoder: CLIP image encoder for that encoder, a folder or a Hub id
        crop_face: take the square around the largest face of each image instead of its central square
        registration: search the frame that the encoder knows: auto (where an image is doubtful), always or never
        allow_foreign: let in an image that is unlike all that the encoder knows
        no_preview: do not generate the preview, an image beside the subject with its ending -preview.png
        method: promptnet needs an encoder for the base model; textual-inversion, dreambooth-lora and dreambooth need
            none, e4t its own. dreambooth writes a whole base model, so that --out is a folder
        method_config: a YAML file with the parameters of another method, such as configs/baselines/dreambooth.yaml
        e4t: the folder that `promptnet pretrain-e4t` wrote, for --method e4t
        overwrite: replace files that exist
        dtype: of the networks; float16 and bfloat16 are for GPUs
        device: auto, cpu, cuda, ...
    """
    check_method(method, out, e4t, method_config, promptnet)
    if method == "dreambooth":
        check_new_folder(out)
        no_preview = True
    else:
        check_output(out, (".safetensors",), overwrite=overwrite)
    preview = out.with_name(f"{out.stem}-preview.png")
    if not no_preview:
        check_output(preview, (".png",), overwrite=overwrite)
    check_files("image", image)
    check_class_word(class_word)
    check_seed(seed)
    TuningConfig().replaced({"steps": steps, "learning_rate": learning_rate})
    check_budget(method, seconds, vram_gb)
    check_files("method-config", [method_config])
    check_model(base, device, promptnet, image_encoder, subjects=method == "promptnet")
    from promptnet.images.load import open_image

    images = [face_square(path) if crop_face else open_image(path) for path in image]
    generator = make_generator(seed)
    with status("loading the base model"):
        pipe = load_pipeline(base, device, promptnet, image_encoder, dtype)
    start_s = time.perf_counter()
    tuning: list[TuningProgress] = []
    with tuning_bar("customising") as advance:

        def callback(progress: TuningProgress) -> None:
            tuning.append(progress)
            advance(progress)

        subject: Any
        if method == "promptnet":
            with plain_warnings():
                subject = pipe.customize(
                    images,
                    class_word=class_word,
                    registration=registration,
                    allow_foreign=allow_foreign,
                    steps=steps,
                    learning_rate=learning_rate,
                    seconds=seconds,
                    vram_gb=vram_gb,
                    generator=generator,
                    progress_bar=False,
                    callback=callback,
                )
        else:
            from promptnet.baselines.config import load_config

            own = pipe.config["tuning"].get("prompts") if method_config is None else None
            config = load_config(method, method_config, steps=steps, learning_rate=learning_rate, prompts=own)
            make_folder(out.parent)
            subject = run_method(
                method, pipe, images, class_word, config, out=out, e4t=e4t, generator=generator, callback=callback
            )
    make_folder(out.parent)
    if subject is not None:
        subject.save(out)
    print(f"{out}: customised in {time.perf_counter() - start_s:.1f} s")
    if not no_preview and subject is not None:
        losses = (tuning[-1].first_validation_loss, tuning[-1].best_validation_loss) if tuning else None
        choose_scheduler(pipe, None, renoising=True)
        sheet, told = preview_sheet(pipe, subject, make_generator(seed), losses)
        write_whole(preview, sheet.save)
        print(f"{preview}: {told}")
