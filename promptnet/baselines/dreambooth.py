"""DreamBooth of the whole U-Net, with prior preservation (Ruiz et al., arXiv 2208.12242).

What comes out is a base model of its own, in which "sks person" is this person: a folder in diffusers' layout.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from promptnet.baselines.config import DreamBoothConfig
from promptnet.baselines.dreambooth_lora import make_prior
from promptnet.baselines.learner import Run, WordLearner
from promptnet.baselines.prior import Drawn, Prior
from promptnet.baselines.words import word_embeddings
from promptnet.images.load import Source
from promptnet.inference.tuning.customize import Callback
from promptnet.inference.tuning.views import Batch
from promptnet.io.atomic import new_folder
from promptnet.io.configs import drop_sources

NOTE = "dreambooth.json"


class DreamBooth(WordLearner):
    """A U-Net under training.

    Args:
        unet: a copy of the base model's, float32; it is changed.
        words: (L, D), which stay as they are.
        prior: None trains on the person alone.
    """

    def __init__(self, unet: nn.Module, words: Tensor, prior: Prior | None = None) -> None:
        super().__init__(words)
        self.unet, self.prior = unet.requires_grad_(), prior

    def parameters(self) -> list[Tensor]:
        return list(self.unet.parameters())

    def extended(self, batch: Batch) -> Batch:
        return batch if self.prior is None else self.prior.extended(batch)

    def total(self, losses: Tensor) -> Tensor:
        return super().total(losses) if self.prior is None else self.prior.total(losses)

    @contextmanager
    def acting(self, pipe: Any, num_rows: int) -> Iterator[None]:
        before = vars(pipe).get("unet", pipe.unet)
        vars(pipe)["unet"] = self.unet
        try:
            yield
        finally:
            vars(pipe)["unet"] = before

    def snapshot(self) -> Any:
        """Return a copy of the weights, on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in self.unet.state_dict().items()}


def dreambooth_folder(
    pipe: Any,
    images: Source | Sequence[Source],
    out: Path,
    class_word: str = "person",
    config: DreamBoothConfig | None = None,
    *,
    cache: Path | None = None,
    generator: torch.Generator | None = None,
    progress_bar: bool = True,
    callback: Callback | None = None,
    on_prior: Drawn | None = None,
) -> Path:
    """Tune the whole U-Net to one person, and write the base model that comes out.

    Args:
        pipe: a PromptNetPipeline with a float32 U-Net; it needs no encoder, and is not changed.
        images: one image or several of the person.
        out: the folder to write; it must not exist.
        class_word: what the person is in a sentence.
        config: of the method; None is its defaults.
        cache: folder where prior images are kept; see `prior_images`.
        generator: makes the outcome reproducible.
        progress_bar: whether to show one.
        callback: called after every step.
        on_prior: called after each prior image.

    Returns:
        The folder. Prompts name the person as "sks person", or with the config's identifier and this class word.

    Raises:
        ImageError: an image cannot be used.
        TuningError: the loss became infinite or no number.
        ValueError: a parameter is out of range, the pipeline cannot be tuned, or the folder exists.
    """
    config = config or DreamBoothConfig()
    if pipe.unet.dtype != torch.float32:
        raise ValueError(
            f"DreamBooth trains every weight of the U-Net, and steps of {config.learning_rate} are lost in "
            f"{pipe.unet.dtype}: load the base model as float32. On a GPU it computes in bfloat16 all the same."
        )
    with new_folder(out) as part:
        run = Run(pipe, images, class_word, config, generator)
        words = word_embeddings(pipe, f"{config.identifier} {class_word}")
        prior = make_prior(run, config, cache, on_prior) if config.steps else None
        unet = copy.deepcopy(run.own.unet)
        weights = run.tune(lambda: DreamBooth(unet, words, prior), progress_bar, callback)
        _write(pipe, unet, weights, part)
        note = {"prompt": f"a photo of {config.identifier} {class_word}", "class_word": class_word}
        note |= {"identifier": config.identifier, "steps": config.steps, "prior_weight": config.prior_weight}
        (part / NOTE).write_text(json.dumps(note, indent=1, sort_keys=True) + "\n", "utf-8")
    return out


def _write(pipe: Any, unet: Any, weights: Any, folder: Path) -> None:
    """Write the base model with this U-Net, without the encoder, which knows another one."""
    if weights:
        unet.load_state_dict(weights)
    else:
        unet = pipe.unet
    parts = {name: part for name, part in pipe.components.items() if name not in _ENCODER}
    own = {name: pipe.config[name] for name in ("text_layer", "force_zeros_for_empty_prompt") if name in pipe.config}
    sampling = {"guidance_scale": pipe.sampling_defaults.guidance_scale}
    type(pipe)(**{**parts, "unet": unet.requires_grad_(False)}, sampling=sampling, **own).save_pretrained(folder)
    drop_sources(folder)


_ENCODER = ("promptnet", "image_encoder", "feature_extractor")
