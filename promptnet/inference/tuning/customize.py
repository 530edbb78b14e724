"""Per-user tuning: seconds on one image, after which the person looks like themselves (arXiv 2305.13579, 3.3).

LoRA layers are trained by the base model's own denoising loss on moved and scaled views of the image; the
networks themselves are never changed, nor their modes and flags: others may draw and tune with them meanwhile. What is
kept are the LoRA layers that did best at noise levels no step trained on.

The loop is plain torch, with autocast and loss scaling where the device calls for it: accelerate's `Accelerator` keeps
one precision and one device for the whole process, and a service holds pipelines of several kinds.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from promptnet.images.load import Source
from promptnet.inference.references import EncodedReferences, open_references
from promptnet.inference.sampling.conditions import networks_of
from promptnet.inference.sampling.loop import UNetInputs
from promptnet.inference.sampling.schedule import prediction_type
from promptnet.inference.subject.fingerprint import fingerprint
from promptnet.inference.subject.lora import LoRALayer, apply_loras, initial_loras, key_value_layers, word_layers
from promptnet.inference.subject.subject import Subject, base_name, check_class_word
from promptnet.inference.tuning.budget import Budget, Look, Pace, Take, Watch
from promptnet.inference.tuning.config import LoopConfig, TuningConfig, TuningError, TuningProgress
from promptnet.inference.tuning.loss import denoising_target, held_out_timesteps, masked_error, noised
from promptnet.inference.tuning.views import Batch, TuningViews, held_out_batches, prepare_views, training_batch
from promptnet.inference.values import generators
from promptnet.models.text_encoders import text_encoders_of
from promptnet.models.twins import frozen
from promptnet.models.vocabulary import warn_of_unknown_words

Callback = Callable[[TuningProgress], object]
_NETWORKS = ("vae", "image_encoder", "promptnet", "text_encoder", "text_encoder_2", "unet")
_READ_BEFORE = ("vae", "image_encoder")  # they encode the images, before the first step
_INITIAL_LOSS_SCALE = 1024.0  # torch's own, 65536, wastes the first steps on finding a smaller one


def customize_subject(
    pipe: Any,
    images: Source | Sequence[Source],
    *,
    class_word: str = "person",
    steps: int | None = None,
    learning_rate: float | None = None,
    rank: int | None = None,
    train: Sequence[str] | None = None,
    batch_size: int | None = None,
    num_views: int | None = None,
    scales: tuple[float, float] | None = None,
    flip: bool | None = None,
    prompts: Sequence[str] | str | None = None,
    validate_every: int | None = None,
    patience: int | None = None,
    generator: torch.Generator | None = None,
    progress_bar: bool = True,
    callback: Callback | None = None,
    seconds: float | None = None,
    vram_gb: float | None = None,
) -> Subject:
    """Tune to one person.

    Args:
        pipe: a PromptNetPipeline, all of it on one device.
        images: one image or several of the same person: paths, binary files or PIL images.
        class_word: what the person is in a sentence.
        generator: makes the outcome reproducible, on any device; one number is drawn from it. Default: torch's own.
        progress_bar: whether to show one.
        callback: called after every step.
        seconds: how long the call may take. Views, batch and steps are then planned from a short measurement, `steps`
            are the most there can be, and no step begins that there is no time for.
        vram_gb: GiB of a GPU that may be held, the networks included: smaller batches, then recomputed activations.

    The parameters from `steps` to `patience` are those of `TuningConfig`; None takes the pipeline's own.

    Returns:
        The subject, on the CPU. If tuning only made things worse it has no loras.

    Raises:
        ImageError: an image cannot be used.
        TuningError: the loss became infinite or no number.
        ValueError: a parameter is out of range, or the pipeline cannot be tuned.
    """
    given = {"steps": steps, "learning_rate": learning_rate, "rank": rank, "train": train, "batch_size": batch_size}
    given |= {"num_views": num_views, "scales": scales, "flip": flip, "prompts": prompts}
    given |= {"validate_every": validate_every, "patience": patience}
    config = TuningConfig(**(pipe.config.get("tuning") or {})).replaced(given)
    budget = _budget(pipe, seconds, vram_gb)
    check_class_word(class_word)
    generators(generator)
    check_tunable(pipe)
    warn_of_unknown_words(
        [text_encoder.tokenizer for text_encoder in text_encoders_of(pipe).text_encoders], [*config.prompts, class_word]
    )
    images = open_references(images)
    draws = own_generator(generator)
    made_with = fingerprint(pipe)
    with torch.inference_mode(False):
        own, loras, pace = with_frozen_networks(pipe), {}, None
        config = config if budget is None else budget.with_views(own, images, config)
        tuning_views = prepare_views(own, images, config, draws)
        if config.steps and budget is not None:
            own, config, pace = budget.planned(own, tuning_views, config)
        if config.steps:
            make = functools.partial(Trainable, own, config, draws)
            shown = {"progress_bar": progress_bar, "callback": callback}
            loras = tune(own, tuning_views, config, draws, make, pace=pace, **shown)
    return Subject(
        reference_latents=tuning_views.references.latents.cpu(),
        vision_states=tuning_views.references.vision_states.cpu(),
        weights=torch.ones(len(images)),
        class_word=class_word,
        fingerprint=made_with,
        loras={name: lora.to("cpu", pipe.unet.dtype) for name, lora in loras.items()},
        base=base_name(pipe),
    )


def _budget(pipe: Any, seconds: float | None, vram_gb: float | None) -> Budget | None:
    given = seconds is not None or vram_gb is not None
    return Budget(seconds, vram_gb, Watch(pipe.unet.device), _started) if given else None


def _started(pipe: Any, views: TuningViews, config: TuningConfig, draws: torch.Generator) -> tuple[Take, Look]:
    """One step and one look of a tuning that begins here."""
    trainable = Trainable(pipe, config, draws)
    take = functools.partial(Steps(pipe, trainable, config).take, views.read)
    return take, lambda batches: validation_loss(pipe, views.references, batches, trainable)


def check_tunable(pipe: Any) -> None:
    """Refuse a pipeline that gradients cannot run through.

    Raises:
        ValueError: says what to change.
    """
    if any(hasattr(module, "_hf_hook") for network in _networks(pipe) for module in network.modules()):
        raise ValueError(
            "The pipeline offloads its networks, and gradients need them all in one place: "
            "call pipe.remove_all_hooks() and pipe.to('cuda') before customising."
        )
    devices = {str(network.device) for network in _networks(pipe)}
    if len(devices) > 1:
        raise ValueError(f"The pipeline's networks are on {', '.join(sorted(devices))}: move it with pipe.to(...).")
    prediction_type(pipe.scheduler)


def _networks(pipe: Any) -> list[Any]:
    return [getattr(pipe, name) for name in _NETWORKS if getattr(pipe, name, None) is not None]


def with_frozen_networks(pipe: Any) -> Any:
    """The pipeline with networks that are frozen for this call alone."""
    own = copy.copy(pipe)
    for name in _NETWORKS:
        network = getattr(pipe, name, None)
        if network is not None:
            vars(own)[name] = frozen(network, for_gradients=name not in _READ_BEFORE)
    return own


def own_generator(generator: torch.Generator | None) -> torch.Generator:
    """A CPU generator seeded from the given one, so that devices and library versions' habits do not matter."""
    device = "cpu" if generator is None else generator.device
    seed = torch.randint(2**63 - 1, (1,), generator=generator, device=device)
    return torch.Generator().manual_seed(int(seed))


# -- what is trained --------------------------------------------------------------------------------------------------


class Learner(Protocol):
    """What one run of the loop trains, and what it minimises."""

    def optimizer(self, config: Any) -> torch.optim.Optimizer:
        """Return the optimiser of its parameters; its rates are those of the first step."""
        ...

    def rate_at(self, step: int, num_steps: int) -> float:
        """Return the share of the first step's learning rates that this step, from 0 on, has."""
        ...

    def extended(self, batch: Batch) -> Batch:
        """Return a training batch with the rows that the method adds to it."""
        ...

    def acting(self, pipe: Any, num_rows: int) -> AbstractContextManager[None]:
        """Enter what is trained into the networks, for batches of so many rows."""
        ...

    def losses(self, pipe: Any, references: EncodedReferences, batch: Batch) -> Tensor:
        """Return the loss of each row (B,)."""
        ...

    def total(self, losses: Tensor) -> Tensor:
        """Return what one step minimises, of the losses of an extended batch."""
        ...

    def snapshot(self) -> Any:
        """Return a copy of what was learnt."""
        ...


class Trainable:
    """The LoRA layers under training: float32 leaves, by component and layer."""

    def __init__(self, pipe: Any, config: TuningConfig, draws: torch.Generator) -> None:
        self.of: dict[str, dict[str, LoRALayer]] = {"promptnet": {}, "unet": {}}
        if "words" in config.train:
            self.of["promptnet"] = initial_loras(word_layers(pipe.promptnet), config.rank, draws)
        if "kv" in config.train:
            self.of["unet"] = initial_loras(key_value_layers(pipe.unet), config.rank, draws)
        for lora in self._all():
            lora.A.requires_grad_()
            lora.B.requires_grad_()

    def _all(self) -> list[LoRALayer]:
        return [lora for loras in self.of.values() for lora in loras.values()]

    def optimizer(self, config: TuningConfig) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.groups(config.learning_rate), betas=(0.9, 0.99))

    def rate_at(self, step: int, num_steps: int) -> float:
        return 1 - step / num_steps

    def extended(self, batch: Batch) -> Batch:
        return batch

    def losses(self, pipe: Any, references: EncodedReferences, batch: Batch) -> Tensor:
        return denoising_loss(pipe, references, batch)

    def total(self, losses: Tensor) -> Tensor:
        return losses.mean()

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """For Adam: A has the layer's own scale and moves by a fraction of it, B has scale 1."""
        scales = [(lora.A, float(lora.A.detach().square().mean().sqrt())) for lora in self._all()]
        all_A = [{"params": [A], "lr": learning_rate * scale} for A, scale in scales]
        return [*all_A, {"params": [lora.B for lora in self._all()], "lr": learning_rate}]

    def snapshot(self) -> dict[str, LoRALayer]:
        """Copies by the names that a subject keeps."""
        return {
            f"{component}.{name}": LoRALayer(lora.A.detach().clone(), lora.B.detach().clone())
            for component, loras in self.of.items()
            for name, lora in loras.items()
        }

    @contextmanager
    def acting(self, pipe: Any, num_rows: int) -> Iterator[None]:
        """For the length of the block, in all rows of PromptNet's and the U-Net's batches."""
        with ExitStack() as stack:
            stack.enter_context(apply_loras(pipe.promptnet, [self.of["promptnet"]] * num_rows))
            stack.enter_context(apply_loras(pipe.unet, [self.of["unet"]] * num_rows))
            yield


# -- the loop ---------------------------------------------------------------------------------------------------------


def denoising_loss(pipe: Any, references: EncodedReferences, batch: Batch) -> Tensor:
    """The base model's own loss for each row (B,), with S* read from the reference images at these noise levels."""
    return loss_with_words(pipe, batch, lambda noisy: pseudo_words(pipe, references, batch, noisy))


def loss_with_words(pipe: Any, batch: Batch, words_of: Callable[[Tensor], Tensor]) -> Tensor:
    """The base model's own loss for each row (B,), with S* from `words_of`: noisy latents -> (B, L, D)."""
    alphas = pipe.scheduler.alphas_cumprod.to(batch.latents.device)[batch.timesteps]
    latents, noise = batch.latents.float(), batch.noise.float()
    noisy = noised(latents, noise, alphas).to(pipe.unet.dtype)
    inputs = encode_words(pipe, words_of(noisy), batch.prompts, noisy)
    output = predict(pipe, noisy, batch.timesteps, inputs)
    return masked_error(output, denoising_target(latents, noise, alphas, prediction_type(pipe.scheduler)), batch.masks)


def pseudo_words(pipe: Any, references: EncodedReferences, batch: Batch, noisy: Tensor) -> Tensor:
    """S* of each row's image at its noise level, (B, L, D)."""
    return pipe.promptnet(
        references.latents[batch.images].to(noisy.dtype),
        batch.timesteps,
        references.vision_states[batch.images].to(noisy.dtype),
        noisy_latents=noisy,
    ).pseudo_words


def encode_words(pipe: Any, words: Tensor, prompts: Sequence[str], noisy: Tensor) -> UNetInputs:
    """What the U-Net gets for prompts that hold S*; SDXL's is told of images as large as these latents, uncropped.

    Views have the trained size whatever was moved and scaled in them, and drawing will tell it of no other kind.
    """
    positions = (pipe.config.get("sampling") or {}).get("word_positions", "natural")
    networks = networks_of(pipe)
    encoded = networks.text_encoders.encode(prompts, [{"S*": word} for word in words], positions=positions)
    return networks.inputs(encoded.hidden_states, encoded.pooled, noisy)


def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, inputs: UNetInputs) -> Tensor:
    """The U-Net's output, (B, C, h, w)."""
    states = inputs.encoder_hidden_states
    return pipe.unet(noisy, timesteps, encoder_hidden_states=states, **inputs.extra, return_dict=False)[0]


def backward(loss: Tensor, scaler: torch.amp.GradScaler) -> None:
    scaler.scale(loss).backward()


@torch.no_grad()
def validation_loss(pipe: Any, references: EncodedReferences, batches: Sequence[Batch], trainable: Learner) -> float:
    """Mean loss at the held-out noise levels."""
    losses = []
    for batch in batches:
        with trainable.acting(pipe, len(batch.latents)), autocast(pipe):
            losses.append(trainable.losses(pipe, references, batch))
    return float(torch.cat(losses).mean())


def autocast(pipe: Any) -> Any:
    """Mixed precision on GPUs: the weights' own half precision, or bfloat16 (float16 on old ones) over float32."""
    device, dtype = pipe.unet.device.type, pipe.unet.dtype
    if device != "cuda":
        return nullcontext()
    if dtype == torch.float32:
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.autocast(device, dtype)


def _needs_scaler(pipe: Any) -> bool:
    """float16 gradients of a small loss vanish."""
    context = autocast(pipe)
    return isinstance(context, torch.autocast) and context.fast_dtype == torch.float16


class Steps:
    """The optimiser, its falling learning rate, and what the device's precision calls for."""

    def __init__(self, pipe: Any, trainable: Learner, config: LoopConfig) -> None:
        self.pipe, self.trainable, self.num_steps = pipe, trainable, config.steps
        self.optimizer = trainable.optimizer(config)
        self.initial_rates = [group["lr"] for group in self.optimizer.param_groups]
        device = pipe.unet.device.type
        self.scaler = torch.amp.GradScaler(device, init_scale=_INITIAL_LOSS_SCALE, enabled=_needs_scaler(pipe))
        self.taken = 0

    def take(self, references: EncodedReferences, batch: Batch) -> float:
        """One step; its loss."""
        for group, rate in zip(self.optimizer.param_groups, self.initial_rates, strict=True):
            group["lr"] = rate * self.trainable.rate_at(self.taken, self.num_steps)
        batch = self.trainable.extended(batch)
        with torch.enable_grad(), self.trainable.acting(self.pipe, len(batch.latents)):
            with autocast(self.pipe):
                loss = self.trainable.total(self.trainable.losses(self.pipe, references, batch))
            backward(loss, self.scaler)  # inside the block: checkpointed layers run again
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.taken += 1
        return float(loss.detach())


class Best:
    """What had the lowest validation loss, and for how many looks there has been none lower; at first nothing."""

    def __init__(self, loss: float) -> None:
        self.loss, self.looks_since = loss, 0
        self.kept: Any = {}

    def look(self, loss: float, trainable: Learner) -> None:
        self.looks_since += 1
        if loss < self.loss:
            self.loss, self.kept, self.looks_since = loss, trainable.snapshot(), 0


def tune(
    pipe: Any,
    tuning_views: TuningViews,
    config: LoopConfig,
    draws: torch.Generator,
    make: Callable[[], Learner],
    *,
    pace: Pace | None = None,
    keep_last: bool = False,
    progress_bar: bool = True,
    callback: Callback | None = None,
) -> Any:
    """Run the loop.

    Args:
        pipe: with networks that are frozen for this call.
        tuning_views: of the person.
        config: of the loop.
        draws: a CPU generator.
        make: makes what is trained.
        pace: a `budget.Pace`, which is asked before each step whether there is time; None: there is.
        keep_last: take every step and keep what the last one leaves, whatever the held-out noise levels say.
        progress_bar: whether to show one.
        callback: called after every step.

    Returns:
        The best snapshot, an empty dict if the first look was the best; or the last one.

    Raises:
        TuningError: the loss became infinite or no number.
    """
    num_timesteps = len(pipe.scheduler.alphas_cumprod)
    held_out = held_out_timesteps(num_timesteps)
    held_out_set = held_out_batches(tuning_views, config, held_out, draws)
    trainable = make()
    taking = Steps(pipe, trainable, config)
    validation = _finite(validation_loss(pipe, tuning_views.references, held_out_set, trainable), 0, config)
    best, first = Best(validation), validation
    with pipe.progress_bar(total=config.steps) if progress_bar else nullcontext() as bar:
        for step in range(1, config.steps + 1):
            left = config.steps if pace is None else pace.left()
            if not left:
                break
            begin_s = 0.0 if pace is None else pace.watch.now_s()
            batch = training_batch(tuning_views, config, num_timesteps, held_out, draws)
            loss = _finite(taking.take(tuning_views.read, batch), step, config)
            is_last = step == config.steps or left == 1
            if looks := step % config.validate_every == 0 or is_last:
                validation = validation_loss(pipe, tuning_views.references, held_out_set, trainable)
                best.look(_finite(validation, step, config), trainable)
            if pace is not None:
                pace.note(pace.watch.now_s() - begin_s, looked=looks)
            if bar is not None:
                bar.update()
            if callback is not None:
                callback(TuningProgress(step, config.steps, loss, validation, best.loss, first))
            if is_last or (best.looks_since >= config.patience and not keep_last):
                break
    return trainable.snapshot() if keep_last else best.kept


def _finite(loss: float, step: int, config: LoopConfig) -> float:
    if loss - loss != 0:
        raise TuningError(
            f"Tuning failed: the loss is {loss} at step {step} of {config.steps}. "
            + (
                f"Lower learning_rate={config.learning_rate}."
                if step
                else "The base model itself gives no finite output here: check its weights and their precision."
            )
        )
    return loss
