"""Provide the cases that benchmarks/unchanged.py runs: each a small function of the reference images, all in `CASES`.

A case returns tensors, which are kept whole, and lists of weights, of which checksums are kept. It depends on nothing
that another case leaves behind.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModel

from promptnet import PromptNetModel, PromptNetPipeline, Subject
from promptnet.datasets.faces.module import FaceDataModule
from promptnet.inference.editing.card import EditCard, edit_fingerprint
from promptnet.inference.editing.edit_image import edit_image as edit_with_cards
from promptnet.inference.editing.edit_image import image_latents, invert_images, redrawn
from promptnet.inference.editing.stock_pipeline import stock_arguments
from promptnet.inference.resolution import ResolutionSettings, adapt_resolution
from promptnet.inference.sampling.requests import make_requests
from promptnet.inference.tuning.config import TuningProgress
from promptnet.training.editing.data import SeedDataModule
from promptnet.training.editing.learn import learn_card
from promptnet.training.editing.stage import EditStage
from promptnet.training.pretrain.stage import PretrainStage
from tests.base_models import write_base

BASE = Path(__file__).parents[1] / "checkpoints/tiny"
STEPS = 4

Images = Sequence[Image.Image]  # four: two people, two images of each
Weights = list[Tensor]
Result = Mapping[str, Tensor | Weights]
Case = Callable[[Images], Result]

CASES: dict[str, Case] = {}
"""Case by name, in the order in which they run."""


def case(function: Case) -> Case:
    """Register a case under its function's name."""
    CASES[function.__name__] = function
    return function


# -- what the cases share ---------------------------------------------------------------------------------------------


def quiet(pipe: Any) -> Any:
    """Return the pipeline without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny() -> Any:
    """Load the embedded model."""
    return quiet(PromptNetPipeline.from_pretrained(BASE))


@contextmanager
def random_base(family: str) -> Iterator[Path]:
    """Write a small base model of random weights, of the family "sd" or "sdxl", for as long as the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        yield write_base(Path(folder), family)


def random_pipeline(family: str) -> Any:
    """Load such a base model with an encoder of random weights; images of 32 px."""
    with random_base(family) as folder:
        vision: Any = CLIPVisionModel.from_pretrained(folder / "vision")
        pipe = PromptNetPipeline.from_pretrained(
            folder, image_encoder=vision, feature_extractor=CLIPImageProcessor.from_pretrained(folder / "vision")
        )
    torch.manual_seed(1)
    encoder = PromptNetModel.from_unet(
        pipe.unet,
        vision_dim=vision.config.hidden_size,
        prompt_channel=pipe.unet.config["cross_attention_dim"],
        region_proj_channel=8,
        region_kernel_size=2,
    )
    return quiet(PromptNetPipeline(**{**pipe.components, "promptnet": encoder.eval()}))


def seeded(*seeds: int) -> list[torch.Generator]:
    """Return a generator for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sampled(pipe: Any, prompt: str | list[str], seeds: Sequence[int] = (0,), **options: Any) -> Tensor:
    """Return the latents (B, C, h, w), or with another `output_type` the images, of few steps."""
    given = {"num_inference_steps": STEPS, "output_type": "latent", **options}
    return pipe(prompt, generator=seeded(*seeds), **given).images


def happy(pipe: Any) -> EditCard:
    """Return an edit card of fixed weights, in few steps."""
    texts = "a portrait of a person", "a happy portrait of a person"
    return EditCard(torch.linspace(0.9, 0.2, STEPS), *texts, "DDIMScheduler", 3.0, edit_fingerprint(pipe))


def tune(pipe: Any, image: Image.Image, **options: Any) -> tuple[Subject, Tensor]:
    """Tune a subject in few steps; return it and its losses (steps, 2), in training and at the held-out levels."""
    losses: list[list[float]] = []

    def note(progress: TuningProgress) -> None:
        losses.append([progress.loss, progress.validation_loss])

    given = {"steps": 3, "batch_size": 2, "num_views": 3, "validate_every": 1, **options}
    generator = torch.Generator().manual_seed(0)
    subject = pipe.customize(image, generator=generator, progress_bar=False, callback=note, **given)
    return subject, torch.tensor(losses)


def lora_of(subject: Subject) -> Weights:
    """Return all weights of a tuned subject."""
    return [matrix for lora in subject.loras.values() for matrix in (lora.A, lora.B)]


# -- sampling ---------------------------------------------------------------------------------------------------------


@case
def prompt(images: Images) -> Result:
    """Sample a prompt without a subject."""
    return {"latents": sampled(tiny(), "a sad portrait of a person, wearing sunglasses")}


@case
def prompt_decoded(images: Images) -> Result:
    """Sample a batch of prompts with all that guidance can do, down to pixels."""
    prompts = ["a happy portrait of a person", "a portrait of a person, on a teal background"]
    options: dict[str, Any] = {"negative_prompt": "glasses", "guidance_rescale": 0.7, "eta": 0.5, "output_type": "pt"}
    return {"images": list(sampled(tiny(), prompts, (0, 1), **options))}


@case
def subject_untuned(images: Images) -> Result:
    """Sample an encoded subject of two images with the checkpoint's own settings."""
    pipe = tiny()
    subject = pipe.encode(images[:2], weights=[1.0, 0.5])
    features = [subject.reference_latents, subject.vision_states]
    return {"features": features, "latents": sampled(pipe, "a happy portrait of S*", subject=subject)}


@case
def subject_tuned(images: Images) -> Result:
    """Sample a tuned subject."""
    pipe = tiny()
    subject, _ = tune(pipe, images[0])
    return {"latents": sampled(pipe, "a happy portrait of S*", subject=subject)}


@case
def fusion(images: Images) -> Result:
    """Sample with Fusion Sampling in half of the steps, without a class term."""
    pipe = tiny()
    options = {"fusion_steps": 2, "fusion_end": 0.5, "fusion_eta": 0.8, "pseudo_word_scale": 0.7, "class_scale": 0.0}
    return {"latents": sampled(pipe, "a happy portrait of S*", subject=pipe.encode(images[0]), **options)}


@case
def fusion_euler(images: Images) -> Result:
    """Sample with Fusion Sampling and the Euler solver."""
    pipe = random_pipeline("sd")  # the embedded model's noise levels end without signal, which Euler does not know
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    return {"latents": sampled(pipe, "S* hat", subject=pipe.encode(images[0]), fusion_steps=1, class_scale=1.0)}


@case
def refinement(images: Images) -> Result:
    """Sample with the refinement alone, with a class term."""
    pipe = tiny()
    options = {"fusion_steps": 0, "class_scale": 2.0, "subject_scale": 2.5, "class_word": "a person"}
    return {"latents": sampled(pipe, "a sad portrait of S*", subject=pipe.encode(images[0]), **options)}


@case
def two_subjects(images: Images) -> Result:
    """Sample two subjects in one prompt, and a batch of two prompts with a subject each and one without."""
    pipe = tiny()
    first, second = tune(pipe, images[0])[0], pipe.encode(images[2])
    prompts = ["a portrait of S*", "a sad portrait of S*", "a portrait of a person"]
    return {
        "together": sampled(pipe, "a portrait of S1* with S2*", subject=[first, second]),
        "batch": sampled(pipe, prompts, (0, 1, 2), subject=[first, second, None]),
    }


# -- editing ----------------------------------------------------------------------------------------------------------


@case
def edit_card(images: Images) -> Result:
    """Sample with an edit card, alone and with a subject, here and in a stock pipeline."""
    pipe = tiny()
    card = happy(pipe)
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    parts = {name: pipe.components[name] for name in names}
    subject = pipe.encode(images[0])
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    stock: Any = quiet(StableDiffusionPipeline(**parts, **unused))
    return {
        "plain": sampled(pipe, card.neutral, edits=card.scaled(0.8)),
        "subject": sampled(pipe, "a portrait of S*", subject=subject, edits=card, fusion_steps=0),
        "stock": stock(**stock_arguments(stock, card), generator=seeded(0), output_type="latent").images,
    }


@case
def edit_image(images: Images) -> Result:
    """Edit a real image, with a mask, and a subject's image."""
    pipe = tiny()
    card = happy(pipe)
    mask = Image.new("L", images[0].size)
    mask.paste(255, (0, images[0].height // 2, *images[0].size))
    return {
        "masked": edit_with_cards(pipe, images[0], card, mask=mask, correction_end=0.75, output_type="latent"),
        "subject": edit_with_cards(pipe, pipe.encode(images[2]), card, output_type="latent"),
        "published": edit_with_cards(pipe, images[2], card, as_published=True, output_type="latent"),
    }


@case
def inversion(images: Images) -> Result:
    """Invert an image and replay it.

    Corrections are small differences of large values, so of them sums are compared, in which rounding averages out.
    """
    pipe = tiny()
    card = happy(pipe)
    latents = image_latents(pipe, images[0])
    inverted = invert_images(pipe, latents, make_requests(card.neutral, None), num_steps=STEPS, guidance_scale=3.0)
    found = inverted.inversion
    replayed = redrawn(pipe, inverted, [card.scaled(0.0)])
    return {"start": found.start, "corrections": list(found.corrections), "replayed": replayed}


@case
def inversion_plms(images: Images) -> Result:
    """Invert an image of an epsilon model with PLMS, which makes a call more than it has steps."""
    pipe = random_pipeline("sd")
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    latents = image_latents(pipe, images[0], crop=True)
    inverted = invert_images(pipe, latents, make_requests("a hat", None), num_steps=STEPS, guidance_scale=3.0)
    found = inverted.inversion
    return {"start": found.start, "levels": found.levels, "corrections": list(found.corrections)}


# -- other sizes ------------------------------------------------------------------------------------------------------


@case
def size_wide(images: Images) -> Result:
    """Sample at 96x64, adapted at that size."""
    return {"latents": sampled(tiny(), "a happy portrait of a person", width=96, height=64)}


@case
def size_large(images: Images) -> Result:
    """Sample a subject at 128x128, adapted at that size; and with the plain network."""
    pipe = tiny()
    options: dict[str, Any] = {"subject": pipe.encode(images[0]), "width": 128, "height": 128, "fusion_steps": 1}
    text = "a happy portrait of S*"
    return {name: sampled(pipe, text, **options, resolution=name) for name in ("auto", "off")}


@case
def size_auto(images: Images) -> Result:
    """Sample images of three sizes, each as "auto" finds best, down to pixels."""
    pipe, sizes = tiny(), [(128, 128), (96, 64), (32, 32)]
    return {
        "images": [
            sampled(pipe, "a portrait of a person", width=width, height=height, output_type="pt")
            for width, height in sizes
        ]
    }


@case
def size_settings(images: Images) -> Result:
    """Sample with settings that use everything: re-dilation, dispersed kernels, damped guidance, scaled attention."""
    settings = ResolutionSettings(
        factors={"down_blocks.2": (2.0, 2.0), "mid_block": (3.0, 2.0), "up_blocks.0": (1.5, 1.0)},
        active_steps=3,
        progressive="capped",
        damped_factors={"mid_block": (2.0, 2.0)},
        damped_steps=2,
        dispersed=("mid_block",),
        dispersed_steps=2,
        num_steps=STEPS,
    )
    options: dict[str, Any] = {"width": 128, "height": 128, "resolution": settings}
    return {"latents": sampled(tiny(), "a portrait of a person", **options)}


@case
def size_unet(images: Images) -> Result:
    """Call a bare U-Net that `adapt_resolution` has adapted, and again after the adaptation was removed."""
    unet = tiny().unet
    generator = torch.Generator().manual_seed(0)
    latents, states = (torch.randn(shape, generator=generator) for shape in ((1, 4, 32, 16), (1, 8, 192)))
    with torch.no_grad(), adapt_resolution(unet, 128, 64, trained_size=64, vae_scale_factor=4):
        adapted = unet(latents, 700, states).sample
    with torch.no_grad():
        return {"adapted": adapted, "plain": unet(latents, 700, states).sample}


# -- SDXL -------------------------------------------------------------------------------------------------------------


@case
def sdxl(images: Images) -> Result:
    """Sample in SDXL's architecture: a prompt, a subject untuned and tuned, another size, a negative prompt."""
    pipe = random_pipeline("sdxl")
    untuned, (tuned, losses) = pipe.encode(images[0]), tune(pipe, images[0])
    return {
        "prompt": sampled(pipe, "a hat"),
        "untuned": sampled(pipe, "S* hat", subject=untuned, fusion_steps=1, class_scale=1.0),
        "tuned": sampled(pipe, "S* hat", subject=tuned, negative_prompt="x"),
        "wide": sampled(pipe, "S* hat", subject=untuned, width=64, height=32),
        "tuning_losses": losses,
        "tuned_weights": lora_of(tuned),
    }


# -- training ---------------------------------------------------------------------------------------------------------


@case
def tuning(images: Images) -> Result:
    """Tune a subject of two images, every part that can train."""
    subject, losses = tune(tiny(), images[1], rank=2, flip=True, learning_rate=5e-3)
    words, _ = tune(tiny(), images[2], train=("words",), learning_rate=5e-3)
    return {"losses": losses, "weights": lora_of(subject), "words_only": lora_of(words)}


class Losses(Callback):
    """Note the loss of each batch."""

    def __init__(self) -> None:
        self.noted: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.noted.append(float(outputs["loss"]))


def write_set(folder: Path, images: Images) -> None:
    """Write the images as `promptnet prepare` would: one shard, two images of each person, captions in half of it."""
    files = []
    for image in images:
        file = BytesIO()
        image.save(file, "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    people, captions = [f"person {place // 2}" for place in range(len(images))], ["happy", None] * (len(images) // 2)
    folder.mkdir()
    columns = {"image": files, "identity": people, "caption": pa.array(captions, pa.string())}
    pq.write_table(pa.table(columns), folder / "data-00000.parquet")


def pretrain(
    base: Path, images: Images, neutral_prompt: str, resolution_px: int, features: list[Any], **options: Any
) -> Result:
    """Pretrain for two steps, with a weight average; return losses and the encoder's weights."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_set(folder / "set", images)
        data = FaceDataModule(
            str(folder / "set"),
            str(folder / "cache"),
            num_validation=0,
            resolution_px=resolution_px,
            batch_size=2,
            captioned=0.5,
            neutral_prompt=neutral_prompt,
            caption_prompt=f"{neutral_prompt}, {{caption}}",
            features=features,
            num_workers=0,
        )
        stage = PretrainStage(
            str(base), str(folder / "encoder"), region_proj_channel=8, warmup_steps=1, decay_fraction=0.0, **options
        )
        losses = Losses()
        Trainer(
            max_steps=2,
            accelerator="cpu",
            devices=1,
            gradient_clip_val=1.0,
            logger=False,
            callbacks=[losses, EMAWeightAveraging(decay=0.5)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
        ).fit(stage, datamodule=data)
        return {"losses": torch.tensor(losses.noted), "weights": list(stage.promptnet.state_dict().values())}


@case
def pretraining(images: Images) -> Result:
    """Pretrain an encoder for the embedded model, everything encoded in the step."""
    return pretrain(BASE, images, "a portrait of S*", 64, [], min_snr_gamma=5.0, sample_posterior=True)


@case
def pretraining_sdxl(images: Images) -> Result:
    """Pretrain an encoder in SDXL's architecture on precomputed features, with recomputed activations."""
    with random_base("sdxl") as base:
        vision = str(base / "vision")
        how: dict[str, Any] = {"vision_id": vision, "gradient_checkpointing": True}
        return pretrain(base, images, "S*", 32, ["latents", "vision"], **how)


def learn(**options: Any) -> Result:
    """Learn an edit card in two iterations; return losses and the card's weights."""
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "card.safetensors"
        texts = "a portrait of a person", "a happy portrait of a person"
        stage = EditStage(*texts, str(out), str(BASE), num_steps=STEPS, guidance_scale=3.0, **options)

        def note() -> None:
            losses.append(float(stage.trainer.callback_metrics["train/loss"]))

        learn_card(stage, SeedDataModule(2, 2), iterations=2, on_step=note)
        return {"losses": torch.tensor(losses), "card": EditCard.load(out).weights}


@case
def edit_learning(images: Images) -> Result:
    """Learn an edit card on two seeds."""
    return learn()


@case
def edit_learning_images(images: Images) -> Result:
    """Learn an edit card on two real images."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{place}.png" for place in (0, 1)]
        for path, image in zip(paths, (images[0], images[2]), strict=True):
            image.save(path)
        return learn(images=[str(path) for path in paths])
