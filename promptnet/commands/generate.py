"""`promptnet generate`: generate images from prompts, with or without subjects."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from promptnet.commands._base_folder import check_scheduler_name
from promptnet.commands._checks import check_counts, check_files, check_prompts, check_seed
from promptnet.commands._loading import EMBEDDED, check_model, choose_scheduler, load_pipeline, make_generator
from promptnet.commands._metadata import read_record, save_image, versions, without_folders
from promptnet.commands._methods import needs_encoder
from promptnet.commands._output import IMAGES, check_output, numbered, parse_size
from promptnet.commands._progress import sampling_bar, status
from promptnet.commands._regions import check_regions, read_regions
from promptnet.inference.resolution.published_files import check_resolution
from promptnet.inference.sampling.config import PUBLISHED
from promptnet.io.atomic import make_folder
from promptnet.io.decode_text import decode_text

if TYPE_CHECKING:
    from PIL.Image import Image

    from promptnet import PromptNetPipeline, Subject

_LINE_END = re.compile(r"\r\n?|\n")  # alone: texts may hold other signs that Python takes for the end of a line


def generate(
    out: Path,
    prompt: list[str] | None = None,
    prompts: Path | None = None,
    subject: list[Path] | None = None,
    region: list[str] | None = None,
    size: str | None = None,
    resolution: str | None = None,
    steps: int | None = None,
    scheduler: str | None = None,
    num_images: int = 1,
    seed: int | None = None,
    negative_prompt: str | None = None,
    class_word: str | None = None,
    guidance_scale: float | None = None,
    guidance_interval: list[float] | None = None,
    subject_scale: float | None = None,
    class_scale: float | None = None,
    fusion_steps: int | None = None,
    fusion_scale: float | None = None,
    fusion_eta: float | None = None,
    fusion_end: float | None = None,
    pseudo_word_scale: float | None = None,
    pseudo_word_every: int | None = None,
    start_timestep: int | None = None,
    as_published: bool = False,
    like: Path | None = None,
    no_metadata: bool = False,
    overwrite: bool = False,
    base: str | None = None,
    promptnet: str | None = None,
    image_encoder: str | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    device: str = "auto",
) -> None:
    """Generate images from prompts, with S* in them for the subject.

    Args:
        out: the image to write (.png, .jpg, .webp); several are numbered out-1.png, out-2.png
        prompt: for example "a sad portrait of S* wearing sunglasses"; S1*, S2* for several subjects; may be repeated
        prompts: a text file with a prompt a line, beside or in place of --prompt
        subject: one subject file of `promptnet customize`, or several
        region: of each of several subjects, so that they do not blend: halves for columns from left to right, or one
            for each subject: left,top,right,bottom in fractions of the image, or the file of a mask that is white there
        size: WIDTHxHEIGHT in pixels (null: the size the base model was trained at); more than four times the trained
            area is decoded in tiles
        resolution: auto (also if null) adapts the base model to a size far from its own, off never does; or
            published:NAME, or a YAML file
        steps: denoising steps
        scheduler: such as EulerDiscreteScheduler (null: the base model's own, or DDIMScheduler if subjects need it)
        num_images: number of images of each prompt
        seed: of the first image of each prompt (null: 0); the next has the next seed, so any can be made alone
        negative_prompt: guides away from this prompt (null: none; SDXL treats that unlike an empty text)
        class_word: replaces S* in the class term (null: the subject's own)
        guidance_scale: of a prompt without a subject
        guidance_interval: START END, fractions of the steps, from the noisy end, between which there is guidance
        subject_scale: weight of the term with S*
        class_scale: weight of the term with the class word in place of S*
        fusion_steps: fusion iterations at every step
        fusion_scale: guidance inside the fusion stage
        fusion_eta: fraction of the noise that the fusion stage renews
        fusion_end: fraction of the steps, from the noisy end, that are fused
        pseudo_word_scale: weight of the pseudo-word in the fusion stage
        pseudo_word_every: number of steps for which the pseudo-word is made at once
        start_timestep: noisiest timestep that is executed, of 1000, as in the published code
        as_published: use the published value of every parameter that is not given
        like: a PNG that this command wrote: take prompt, seed and every other option that is not given from it
        no_metadata: write no record of prompt, seed and options into PNG files
        overwrite: replace files that exist
        base: base model, a folder in diffusers layout or a Hub id (null: checkpoints/tiny)
        promptnet: folder of the encoder, if the base model has none or another one is wanted
        image_encoder: CLIP image encoder for that encoder, a folder or a Hub id
        dtype: of the networks; float16 and bfloat16 are for GPUs
        device: auto, cpu, cuda, ...
    """
    config = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval,
        "subject_scale": subject_scale,
        "class_scale": class_scale,
        "fusion_steps": fusion_steps,
        "fusion_scale": fusion_scale,
        "fusion_eta": fusion_eta,
        "fusion_end": fusion_end,
        "pseudo_word_scale": pseudo_word_scale,
        "pseudo_word_every": pseudo_word_every,
        "start_timestep": start_timestep,
    }
    record = None if like is None else read_record(like)
    asked = Asked.of(
        record,
        prompts=listed_prompts(prompt, prompts),
        negative_prompt=negative_prompt,
        class_word=class_word,
        seed=seed,
        size=size,
        resolution=resolution,
        regions=region or None,
        scheduler=scheduler,
        base=base,
        config=(published_config() if as_published else {}) | {k: v for k, v in config.items() if v is not None},
    )
    check_counts(num_images=num_images)
    paths = numbered(out, num_images * len(asked.prompts))
    for path in [out, *paths]:
        check_output(path, IMAGES, overwrite=overwrite or path not in paths)
    check_files("subject", subject or [])
    parts = promptnet, image_encoder
    renoising = asked.check(len(subject or []), num_images, device, *parts, reading=needs_encoder(subject or []))
    from promptnet import Subject

    subjects = [Subject.load(path) for path in subject or []]
    check_same_subjects(record, subjects)
    with status("loading the base model"):
        pipe = load_pipeline(asked.base, device, *parts, dtype)
        choose_scheduler(pipe, asked.scheduler, renoising=renoising)
    make_folder(out.parent)
    for place, text in enumerate(asked.prompts):
        images = generate_images(pipe, asked, text, subjects, num_images)
        of_prompt = paths[place * num_images : (place + 1) * num_images]
        for number, (path, image) in enumerate(zip(of_prompt, images, strict=True)):
            made = None if no_metadata else asked.record(pipe, text, asked.seed + number, subjects)
            save_image(path, image, made)
            print(path)


@dataclass(frozen=True)
class Asked:
    """What a command asks for, with what `--like` adds."""

    prompts: list[str]
    negative_prompt: str | None
    class_word: str | None
    seed: int
    size: str | None
    resolution: str | None
    regions: list[str] | None
    scheduler: str | None
    base: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, record: Mapping[str, Any] | None, **given: Any) -> Asked:
        """Return the options given, else those of a record, else the defaults.

        Raises:
            ValueError: there is no prompt.
        """
        before: Mapping[str, Any] = {} if record is None else {**record, "prompts": [record["prompt"]]}
        found = {name: before.get(name) if value in (None, []) else value for name, value in given.items()}
        if not found["prompts"]:
            raise ValueError("there is no prompt: give --prompt, --prompts or --like")
        config = {**(before.get("config") or {}), **given["config"]}
        return cls(**{**found, "seed": found["seed"] or 0, "base": found["base"] or EMBEDDED, "config": config})

    def check(self, num_subjects: int, num_images: int, device: str, *parts: str | None, reading: bool = True) -> bool:
        """Check everything that the words alone say; return whether Fusion Sampling will re-noise."""
        check_prompts(self.prompts, num_subjects, self.negative_prompt, self.class_word)
        check_seed(self.seed)
        check_seed(self.seed + num_images - 1)
        if self.resolution is not None:
            check_resolution(self.resolution)
        if self.regions is not None:
            check_regions(self.regions, num_subjects)
        folder = check_model(self.base, device, *parts, subjects=bool(num_subjects) and reading)
        if self.size is not None:
            folder.check_size(parse_size(self.size))
        sampling = folder.sampling(self.config)
        renoising = bool(num_subjects and sampling.fusion_steps)
        check_scheduler_name(self.scheduler, renoising=renoising)
        return renoising

    def options(self, subjects: Sequence[Subject]) -> dict[str, Any]:
        """Return the keyword arguments of the pipeline, without those that are left at their defaults."""
        found: dict[str, Any] = dict(self.config)
        for name in ("resolution", "class_word"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if self.size is not None:
            found["width"], found["height"] = parse_size(self.size)
        if self.regions is not None:
            found["regions"] = read_regions(self.regions)
        if subjects:
            found["subject"] = subjects[0] if len(subjects) == 1 else list(subjects)
        return found

    def record(self, pipe: PromptNetPipeline, prompt: str, seed: int, subjects: Sequence[Subject]) -> dict[str, Any]:
        """Return how one image was made, with which `--like` makes it again."""
        width_px, height_px = parse_size(self.size) if self.size else reversed(pipe.trained_size_px)
        config = pipe.sampling_defaults.replaced(self.config)
        return {
            "prompt": prompt,
            "negative_prompt": self.negative_prompt,
            "class_word": self.class_word,
            "seed": seed,
            "size": f"{width_px}x{height_px}",
            "resolution": without_folders(self.resolution or "auto"),
            "regions": self.regions,
            "scheduler": type(pipe.scheduler).__name__,
            "base": without_folders(self.base),
            "config": asdict(config),
            "subjects": [subject.content_hash for subject in subjects],
            "versions": versions(),
        }


def listed_prompts(prompt: Sequence[str] | None, file: Path | None) -> list[str]:
    """Return the prompts of the command line, then those of a file.

    Raises:
        ValueError: the file is no text, or holds no prompt.
    """
    found = list(prompt or [])
    if file is None:
        return found
    check_files("prompts", [file])
    try:
        lines = [line.strip() for line in _LINE_END.split(decode_text(file.read_bytes()))]
    except ValueError as error:
        raise ValueError(f"--prompts '{file}' {error}") from error
    if not any(lines):
        raise ValueError(f"--prompts '{file}' holds no prompt: write one a line")
    return found + [line for line in lines if line]


def check_same_subjects(record: Mapping[str, Any] | None, subjects: Sequence[Subject]) -> None:
    """Say on stderr where the image of `--like` was made with other subjects.

    Raises:
        ValueError: it was made with a number of subjects that is not given.
    """
    if record is None:
        return
    before, now = record["subjects"], [subject.content_hash for subject in subjects]
    if len(before) != len(now):
        raise ValueError(f"the image of --like was made with {len(before)} subjects: give --subject with as many files")
    if before != now:
        print("the image of --like was made with another subject", file=sys.stderr)


def generate_images(
    pipe: PromptNetPipeline, asked: Asked, prompt: str, subjects: Sequence[Subject], num_images: int
) -> list[Image]:
    """Generate the images of one prompt in a batch; each has noise of its own, and is what it would be alone."""
    if asked.size is not None and needs_tiles(parse_size(asked.size), pipe.trained_size_px):
        pipe.vae.enable_tiling()
    with sampling_bar(pipe, "generating") as callback:
        generated: Any = pipe(
            prompt,
            negative_prompt=asked.negative_prompt,
            num_images_per_prompt=num_images,
            generator=[make_generator(asked.seed + number) for number in range(num_images)],
            callback_on_step_end=callback,
            **asked.options(subjects),
        )
    return generated.images


def needs_tiles(size_px: tuple[int, int], trained_size_px: tuple[int, int]) -> bool:
    """Return whether to decode an image in tiles, to save memory: if it has over four times the trained area.

    Args:
        size_px: of the image.
        trained_size_px: of the images that the base model was trained on.
    """
    return prod(size_px) > 4 * prod(trained_size_px)


def published_config() -> dict[str, Any]:
    """Return the published values of every parameter."""
    return asdict(PUBLISHED)
