"""Generate images of one person with a method: each network is loaded once, each subject is tuned once."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from promptnet.evaluation.harness.methods import OURS, PUBLISHED, Encoder, Method
from promptnet.evaluation.harness.tasks import CLASS_PHRASE, PLACEHOLDER, Person

if TYPE_CHECKING:
    from promptnet import PromptNetPipeline, Subject

EDIT_CARDS = "edits"
"""Folder of edit cards inside a base model's folder; it does not count as part of the base model."""


class Generate(Protocol):
    """Callable that generates the images of one person's prompts with a method."""

    def __call__(self, person: Any, method: Any, /) -> list[Image.Image]:
        """Generate one image a prompt."""
        ...


class Renderer:
    """Generate images with a base model.

    Args:
        base: folder of the base model, diffusers layout.
        steps: denoising steps an image.
        device: of the base model; None is the CPU.
        keep: number of subjects kept in memory.
        threads: for a process of its own: torch's number of threads, without loading bars. None changes nothing.
    """

    def __init__(
        self, base: str | Path, *, steps: int, device: str | None = None, keep: int = 8, threads: int | None = None
    ):
        self.base, self.steps, self.device = Path(base), steps, device or "cpu"
        self.keep, self.threads = keep, threads
        self.size_px = image_size(base)
        self._pipes: dict[Encoder, PromptNetPipeline] = {}
        self._subjects: OrderedDict[str, Subject] = OrderedDict()

    def __call__(self, person: Person, method: Method) -> list[Image.Image]:
        """Generate the images of one person's prompts; the same person and method give the same images."""
        if method.source == "truth":
            return person.true_images(self.size_px)
        if method.source in ("prompt", "described"):
            person = person.described() if method.source == "described" else person
            prompts = [eval_prompt.prompt.replace(PLACEHOLDER, CLASS_PHRASE) for eval_prompt in person.eval_prompts]
            return self._sampled(person, OURS, prompts, method.config)
        subject = self.subject(person, method)
        return self._sampled(
            person,
            method.encoder,
            [eval_prompt.prompt for eval_prompt in person.eval_prompts],
            method.config,
            subject=subject,
        )

    def subject(self, person: Person, method: Method) -> "Subject":
        """Return the person as a method's encoder and tuning represent it, from a cache of `keep` subjects."""
        key = json.dumps([method.encoder, method.tuned, dict(method.customize), repr(person)], sort_keys=True)
        if key not in self._subjects:
            self._subjects[key] = self._new_subject(person, method)
        self._subjects.move_to_end(key)
        while len(self._subjects) > self.keep:
            self._subjects.popitem(last=False)
        return self._subjects[key]

    def _new_subject(self, person: Person, method: Method) -> "Subject":
        pipe, reference = self._pipe(method.encoder), person.reference_image(self.size_px)
        if not method.tuned:
            return pipe.encode(reference, class_word=CLASS_PHRASE)
        quiet = {"generator": generator(person.seed), "progress_bar": False}
        return pipe.customize(reference, class_word=CLASS_PHRASE, **quiet, **method.customize)

    def _sampled(
        self, person: Person, encoder: Encoder, prompts: list[str], config: Mapping[str, Any], **subject: Any
    ) -> list[Image.Image]:
        # One generator an image: noise does not depend on neighbours, and every method starts from the same noise.
        generators = [generator(eval_prompt.seed) for eval_prompt in person.eval_prompts]
        run = {"num_inference_steps": self.steps, "generator": generators, "output_type": "pil", "return_dict": False}
        (images,) = self._pipe(encoder)(prompts, **run, **config, **subject)
        return images

    def _pipe(self, encoder: Encoder) -> "PromptNetPipeline":
        if encoder not in self._pipes:
            self._pipes[encoder] = self._load(encoder)
            self._pipes[encoder].set_progress_bar_config(disable=True)
        return self._pipes[encoder]

    def _load(self, encoder: Encoder) -> "PromptNetPipeline":
        from promptnet import PromptNetModel, PromptNetPipeline

        if self.threads is not None:
            settle_process(self.threads)
        if encoder == OURS:
            return PromptNetPipeline.from_pretrained(self.base, use_safetensors=True).to(self.device)
        ours = self._pipe(OURS)
        published = PromptNetModel.from_pretrained(encoder_folder(self.base, encoder), use_safetensors=True)
        pipe: Any = PromptNetPipeline.from_pipe(ours, promptnet=published)
        return pipe.to(self.device)


def settle_process(threads: int) -> None:
    """Set up a process of its own: torch's number of threads, and no loading bars."""
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def encoder_folder(base: str | Path, encoder: Encoder) -> Path:
    """Return an encoder's folder: inside the base model's, or, for the second encoder, `<base>-published` beside it.

    Raises:
        ValueError: neither folder exists.
    """
    folder = Path(base)
    beside = folder.parent / (folder.name + encoder.removeprefix(OURS))
    for place in (folder / encoder, beside, beside / OURS):
        if (place / "config.json").is_file():
            return place
    raise ValueError(f"the base model at '{folder}' has no encoder {encoder!r}: leave its methods out, or train it")


def has_encoder(base: str | Path, method: Method) -> bool:
    """Return whether a base model has the encoder that a method needs, if it needs one."""
    if method.source != "subject":
        return True
    try:
        encoder_folder(base, method.encoder)
    except ValueError:
        return False
    return True


def image_size(base: str | Path) -> int:
    """Return the side in pixels of the images that the base model was trained on.

    Raises:
        ValueError: `base` is not the folder of a base model.
    """
    try:
        unet = json.loads((Path(base) / "unet" / "config.json").read_text("utf-8"))
        vae = json.loads((Path(base) / "vae" / "config.json").read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"'{base}' is not the folder of a base model in diffusers layout: {error}") from error
    return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


def weight_hashes(base: str | Path, methods: Iterable[Method]) -> dict[str, str]:
    """Return hashes of the weights behind methods: the base model as "base", each encoder under its name."""
    folder = Path(base)
    encoders = {
        method.encoder: encoder_folder(folder, method.encoder) for method in methods if method.source == "subject"
    }
    apart = {folder / OURS, folder / PUBLISHED, folder / EDIT_CARDS, folder / "judges", *encoders.values()}
    whole = [path for path in folder.rglob("*") if not apart & set(path.parents)]
    hashes = {name: _hash_files(place, place.rglob("*")) for name, place in encoders.items()}
    return {"base": _hash_files(folder, whole), **hashes}


def _hash_files(folder: Path, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.suffix in (".json", ".safetensors", ".txt"):
            name, content = path.relative_to(folder).as_posix(), path.read_bytes()
            digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def generator(seed: int) -> Any:
    """Return a torch generator on the CPU."""
    import torch

    return torch.Generator().manual_seed(seed)
