"""E4T, encoder-based domain tuning (Gal et al., arXiv 2302.12228): pretrained on a domain, then tuned on one image.

L = E[ || eps - eps_theta(z_t, t, c(y, S*)) ||^2 ] + lambda || E(x, x_t, t) ||^2
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptnet.baselines.config import E4TConfig, Layers
from promptnet.baselines.e4t_encoder import E4T, class_tokens, e4t_fingerprint, new_e4t, unet_features
from promptnet.baselines.learner import Run
from promptnet.baselines.words import repeated, word_embeddings
from promptnet.images.crop import square, to_pixels
from promptnet.images.load import Source, open_image
from promptnet.inference.references import EncodedReferences, encode_pixels
from promptnet.inference.subject.subject import Subject
from promptnet.inference.tuning.customize import Callback, loss_with_words, own_generator, with_frozen_networks
from promptnet.inference.tuning.loss import noised, training_timesteps
from promptnet.inference.tuning.views import Batch


class E4TLearner:
    """Encoder and offsets under training.

    Args:
        e4t: is changed.
        pipe: with frozen networks.
        tokens: (K, N, V), class tokens of the images.
        regularization: lambda.
    """

    def __init__(self, e4t: E4T, pipe: Any, tokens: Tensor, regularization: float) -> None:
        self.e4t, self.tokens, self.regularization = e4t.requires_grad_(), tokens, regularization
        self.class_words = repeated(word_embeddings(pipe, e4t.class_word), 1)  # (1, D)
        self.decays = False

    def optimizer(self, config: Any) -> torch.optim.Optimizer:
        self.decays = config.decay
        return torch.optim.AdamW(self.e4t.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    def rate_at(self, step: int, num_steps: int) -> float:
        return 1 - step / num_steps if self.decays else 1.0

    def extended(self, batch: Batch) -> Batch:
        return batch

    @contextmanager
    def acting(self, pipe: Any, num_rows: int) -> Iterator[None]:
        yield  # `losses` enters the offsets itself, behind the features that are read without them

    def losses(self, pipe: Any, references: EncodedReferences, batch: Batch) -> Tensor:
        offsets: list[Tensor] = []

        def words_of(noisy: Tensor) -> Tensor:
            words, offset = self.words(pipe, noisy, batch.timesteps, batch.images)
            offsets.append(offset)
            return words

        alphas = pipe.scheduler.alphas_cumprod.to(batch.latents.device)[batch.timesteps]
        noisy = noised(batch.latents.float(), batch.noise.float(), alphas).to(pipe.unet.dtype)
        words = words_of(noisy)
        with self.e4t.offsets.acting(pipe.unet):
            losses = loss_with_words(pipe, batch, lambda _: words)
        return losses + self.regularization * offsets[0].square().sum(dim=1)

    def words(self, pipe: Any, noisy: Tensor, timesteps: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return S* (B, 1, D) at these noise levels, and the encoder's offsets (B, D)."""
        features = unet_features(pipe, noisy, timesteps)
        return self.e4t.words(self.class_words, self.tokens[images], features)

    def total(self, losses: Tensor) -> Tensor:
        return losses.mean()

    def snapshot(self) -> Any:
        return {name: weight.detach().cpu().clone() for name, weight in self.e4t.state_dict().items()}


def e4t_subject(
    pipe: Any,
    images: Source | Sequence[Source],
    folder: Path,
    config: E4TConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    progress_bar: bool = True,
    callback: Callback | None = None,
) -> Subject:
    """Tune a pretrained E4T to one person.

    Args:
        pipe: a PromptNetPipeline with the image encoder that the E4T was pretrained with; it needs no PromptNet.
        images: one image or several of the person.
        folder: of `pretrain_e4t`.
        config: of the method; None is its defaults.
        generator: makes the outcome reproducible.
        progress_bar: whether to show one.
        callback: called after every step.

    Returns:
        The subject, on the CPU: its word is the mean of the encoder's over noise levels of the image, its LoRA layers
        are the offsets.

    Raises:
        ImageError: an image cannot be used.
        TuningError: the loss became infinite or no number.
        ValueError: a parameter is out of range, the pipeline cannot be tuned, or the E4T is of another base model.
    """
    config = config or E4TConfig()
    model = E4T.load(folder, pipe)
    run = Run(pipe, images, model.class_word, config, generator)
    vars(run.own).update({name: getattr(pipe, name) for name in ("image_encoder", "feature_extractor")})
    with torch.inference_mode(False):
        tokens = class_tokens(run.own, [square(image, min(image.size)) for image in run.images])
        learner = E4TLearner(model, run.own, tokens, config.regularization)
        found = run.tune(lambda: learner, progress_bar, callback)
        model.load_state_dict(found or learner.snapshot())
        words = mean_word(run, learner, config.num_levels)
        return run.subject(words, model.offsets.loras(run.own.unet, config.rank))


@torch.no_grad()
def mean_word(run: Run, learner: E4TLearner, num_levels: int) -> Tensor:
    """Return the encoder's word of the images, the mean over noise levels from first to last, (1, D)."""
    own, latents = run.own, run.views.references.latents
    num_timesteps = len(own.scheduler.alphas_cumprod)
    found = []
    for level in range(num_levels):
        timesteps = torch.full((len(latents),), (2 * level + 1) * num_timesteps // (2 * num_levels))
        noise = torch.randn(latents.shape, generator=run.draws).to(latents)
        alphas = own.scheduler.alphas_cumprod[timesteps].to(latents.device)
        noisy = noised(latents.float(), noise.float(), alphas).to(own.unet.dtype)
        images = torch.arange(len(latents), device=latents.device)
        found.append(learner.words(own, noisy, timesteps.to(latents.device), images)[0].mean(0))
    return torch.stack(found).mean(0)


# -- pretraining ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class E4TPretraining:
    """How E4T is pretrained on a domain; the values are those of the published recipe for faces.

    Args:
        steps: of the optimiser.
        batch_size: images in one step.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        regularization: lambda.
        scale: s, how much of the encoder's output is added to the class word.
        layers: "kv", the cross-attention keys and values, or "attention", every projection, as published.
        prompts: what images are called, in turn by chance.
        decay: whether the learning rate falls linearly to 0.
    """

    steps: int = 30_000
    batch_size: int = 16
    learning_rate: float = 1.6e-5
    weight_decay: float = 1e-2
    regularization: float = 0.01
    scale: float = 0.1
    layers: Layers = "kv"
    prompts: tuple[str, ...] = ("a photo of S*",)
    decay: bool = False


def pretrain_e4t(
    pipe: Any,
    images: Sequence[Source],
    out: Path,
    class_word: str = "person",
    config: E4TPretraining | None = None,
    *,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, float], object] | None = None,
) -> Path:
    """Pretrain E4T on images of a domain.

    Args:
        pipe: a PromptNetPipeline with an image encoder; it needs no PromptNet.
        images: of many people, each seen as the person that S* is.
        out: the folder to write; it must not exist.
        class_word: of the domain.
        config: how; None is the published recipe.
        generator: makes the outcome reproducible.
        on_step: (step, loss), called after every step.

    Raises:
        ImageError: an image cannot be used.
        ValueError: there is no image, the loss is no number, or the folder exists.
    """
    config = config or E4TPretraining()
    if not images:
        raise ValueError("There is no image to pretrain E4T on: give images of many people.")
    draws = own_generator(generator)
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=draws)))
        own = with_frozen_networks(pipe)
        model = new_e4t(own, class_word, config.layers, config.scale)
        _pretrain(own, model, images, config, draws, on_step)
        model.save(out, e4t_fingerprint(pipe))
    return out


def _pretrain(
    own: Any,
    model: E4T,
    images: Sequence[Source],
    config: E4TPretraining,
    draws: torch.Generator,
    on_step: Callable[[int, float], object] | None,
) -> None:
    learner = E4TLearner(model, own, torch.zeros(0), config.regularization)
    optimizer = learner.optimizer(config)
    none = EncodedReferences(torch.zeros(0), torch.zeros(0))
    for step in range(config.steps):
        batch, learner.tokens = _batch(own, images, config, draws)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learner.rate_at(step, config.steps)
        with torch.enable_grad():
            loss = learner.total(learner.losses(own, none, batch))
        if not loss.isfinite():
            raise ValueError(
                f"The loss is {float(loss)} at step {step + 1}: lower learning_rate={config.learning_rate}."
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if on_step is not None:
            on_step(step + 1, float(loss.detach()))


@torch.no_grad()
def _batch(own: Any, images: Sequence[Source], config: E4TPretraining, draws: torch.Generator) -> tuple[Batch, Tensor]:
    """Return random images under noise, and their class tokens."""
    size, device = config.batch_size, own.unet.device
    chosen = [open_image(images[i]) for i in torch.randint(len(images), (size,), generator=draws).tolist()]
    pixels = torch.stack([to_pixels(square(image, own.trained_size_px[0])) for image in chosen])
    latents = encode_pixels(own.vae, pixels.to(device)).to(own.unet.dtype)
    num_timesteps = len(own.scheduler.alphas_cumprod)
    timesteps = training_timesteps(size, num_timesteps, torch.empty(0, dtype=torch.long), draws)
    noise = torch.randn(latents.shape, generator=draws).to(latents)
    prompts = [config.prompts[i] for i in torch.randint(len(config.prompts), (size,), generator=draws).tolist()]
    places = torch.arange(size, device=device)
    batch = Batch(latents, torch.ones_like(latents[:, :1]), noise, timesteps.to(device), places, prompts)
    return batch, class_tokens(own, [square(image, min(image.size)) for image in chosen])
