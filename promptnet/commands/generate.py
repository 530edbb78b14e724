"""`promptnet generate`: generate images from a prompt, with or without subjects."""

from __future__ import annotations

from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

from promptnet.commands._base_folder import check_scheduler_name
from promptnet.commands._checks import check_counts, check_files, check_prompts, check_seed
from promptnet.commands._loading import EMBEDDED, check_model, choose_scheduler, load_pipeline, make_generator
from promptnet.commands._output import IMAGES, check_output, numbered, parse_size
from promptnet.commands._progress import sampling_bar, status
from promptnet.inference.resolution.published_files import check_resolution
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.io.atomic import make_folder, write_whole

SAMPLING = {field.name for field in fields(SamplingConfig)}


def generate(
    prompt: str,
    out: Path,
    subject: list[Path] | None = None,
    size: str | None = None,
    resolution: str | None = None,
    steps: int | None = None,
    scheduler: str | None = None,
    num_images: int = 1,
    seed: int = 0,
    negative_prompt: str | None = None,
    class_word: str | None = None,
    guidance_scale: float | None = None,
    subject_scale: float | None = None,
    class_scale: float | None = None,
    fusion_steps: int | None = None,
    fusion_scale: float | None = None,
    fusion_eta: float | None = None,
    fusion_end: float | None = None,
    pseudo_word_scale: float | None = None,
    as_published: bool = False,
    base: str = EMBEDDED,
    promptnet: str | None = None,
    image_encoder: str | None = None,
    device: str = "auto",
) -> None:
    """Generate images from a prompt, with S* in it for the subject.

    Args:
        prompt: for example "a sad portrait of S* wearing sunglasses"; S1*, S2* for several subjects
        out: the image to write (.png, .jpg, .webp); several are numbered out-1.png, out-2.png
        subject: one subject file of `promptnet customize`, or several
        size: WIDTHxHEIGHT in pixels (null: the size the base model was trained at); more than four times the trained
            area is decoded in tiles
        resolution: auto (also if null) adapts the base model to a size far from its own, off never does; or
            published:NAME, or a YAML file
        steps: denoising steps
        scheduler: such as EulerDiscreteScheduler (null: the base model's own, or DDIMScheduler if subjects need it)
        num_images: number of images
        seed: makes the result reproducible
        negative_prompt: guides away from this prompt (null: none; SDXL treats that unlike an empty text)
        class_word: replaces S* in the class term (null: the subject's own)
        guidance_scale: of a prompt without a subject
        subject_scale: weight of the term with S*
        class_scale: weight of the term with the class word in place of S*
        fusion_steps: fusion iterations at every step
        fusion_scale: guidance inside the fusion stage
        fusion_eta: fraction of the noise that the fusion stage renews
        fusion_end: fraction of the steps, from the noisy end, that are fused
        pseudo_word_scale: weight of the pseudo-word in the fusion stage
        as_published: use the published value of every parameter that is not given
        base: base model, a folder in diffusers layout or a Hub id
        promptnet: folder of the encoder, if the base model has none or another one is wanted
        image_encoder: CLIP image encoder for that encoder, a folder or a Hub id
        device: auto, cpu, cuda, ...
    """
    config = {
        "resolution": resolution,
        "num_inference_steps": steps,
        "class_word": class_word,
        "guidance_scale": guidance_scale,
        "subject_scale": subject_scale,
        "class_scale": class_scale,
        "fusion_steps": fusion_steps,
        "fusion_scale": fusion_scale,
        "fusion_eta": fusion_eta,
        "fusion_end": fusion_end,
        "pseudo_word_scale": pseudo_word_scale,
    }
    options: dict[str, Any] = published_config() if as_published else {}
    options |= {name: value for name, value in config.items() if value is not None}
    if size is not None:
        options["width"], options["height"] = parse_size(size)
    check_counts(num_images=num_images)
    paths = numbered(out, num_images)
    check_output(out, IMAGES)
    check_files("subject", subject or [])
    check_prompts([prompt], len(subject or []), negative_prompt, class_word)
    check_seed(seed)
    if resolution is not None:
        check_resolution(resolution)
    folder = check_model(base, device, promptnet, image_encoder, subjects=bool(subject))
    if size is not None:
        folder.check_size(parse_size(size))
    sampling = folder.sampling({name: value for name, value in options.items() if name in SAMPLING})
    renoising = bool(subject and sampling.fusion_steps)
    check_scheduler_name(scheduler, renoising=renoising)
    from promptnet import Subject

    subjects = [Subject.load(path) for path in subject or []]
    generator = make_generator(seed)
    with status("loading the base model"):
        pipe = load_pipeline(base, device, promptnet, image_encoder)
        choose_scheduler(pipe, scheduler, renoising=renoising)
    if size is not None and needs_tiles(parse_size(size), pipe.trained_size_px):
        pipe.vae.enable_tiling()
    if subjects:
        options["subject"] = subjects[0] if len(subjects) == 1 else subjects
    with sampling_bar(pipe, "drawing") as callback:
        generated: Any = pipe(
            prompt,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images,
            generator=generator,
            callback_on_step_end=callback,
            **options,
        )
    make_folder(out.parent)
    for path, image in zip(paths, generated.images, strict=True):
        write_whole(path, image.save, public=True)
        print(path)


def needs_tiles(size_px: tuple[int, int], trained_size_px: tuple[int, int]) -> bool:
    """Return whether to decode an image in tiles, to save memory: if it has over four times the trained area.

    Args:
        size_px: of the image.
        trained_size_px: of the images that the base model was trained on.
    """
    return prod(size_px) > 4 * prod(trained_size_px)


def published_config() -> dict[str, Any]:
    """Return the published values of every parameter."""
    from dataclasses import asdict

    from promptnet.inference.sampling.config import PUBLISHED

    return asdict(PUBLISHED)
