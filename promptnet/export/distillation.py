"""Distil a subject into static words and one LoRA: the subject itself is the teacher.

The teacher draws some images by plain guidance. At every step it predicts with its words for that noise level and that
image, and with its LoRA in its own rows alone. The student has one set of words and one LoRA in both rows. It is fitted
to those predictions (distillation, Hinton et al., arXiv 1503.02531, on the U-Net's outputs). In guidance of scale w,
errors count w in the row with S* and w - 1 in the unconditional one, as in the loss. No photograph is needed.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from promptnet.export.static_subject import StaticSubject
from promptnet.export.static_words import level_step, mean_static, subject_prompts
from promptnet.inference.sampling.conditions import PlainPrompts, networks_of
from promptnet.inference.sampling.loop import UNetInputs, join_inputs
from promptnet.inference.sampling.schedule import plan
from promptnet.inference.subject.lora import LoRALayer, apply_loras, initial_loras, key_value_layers
from promptnet.inference.subject.subject import Subject
from promptnet.inference.values import whole
from promptnet.models.twins import frozen

Progress = Callable[[], object]


@dataclass(frozen=True)
class DistillConfig:
    """How a subject is distilled.

    Args:
        steps: of the optimiser.
        batch_size: the teacher's predictions in one step.
        learning_rate: Adam's, as a share of words and layers; it falls linearly to 0.
        num_images: that the teacher draws; the last is held out.
        drawing_steps: of each.
        rank: of the LoRA where the subject has none.
        prompts: what is drawn, in turn; each holds S*. None takes those that subjects are tuned with.
        seed: of all noise.
    """

    steps: int = 40
    batch_size: int = 4
    learning_rate: float = 5e-3
    num_images: int = 5
    drawing_steps: int = 12
    rank: int = 4
    prompts: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "batch_size": 1, "num_images": 2, "drawing_steps": 1, "rank": 1}.items():
            whole(name, getattr(self, name), least)


@dataclass(frozen=True, eq=False)
class Lessons:
    """The teacher's predictions.

    Args:
        x: (N, C, h, w), as the U-Net gets them.
        timesteps: (N,).
        prompts: (N,) places in the list of prompts.
        outputs: (N, 2, C, h, w), unconditional and with S*.
    """

    x: Tensor
    timesteps: Tensor
    prompts: Tensor
    outputs: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def at(self, places: Tensor) -> "Lessons":
        """Some of them."""
        return Lessons(self.x[places], self.timesteps[places], self.prompts[places], self.outputs[places])


def distill(
    pipe: Any,
    subject: Subject,
    config: DistillConfig | None = None,
    *,
    on_step: Progress | None = None,
) -> StaticSubject:
    """The subject with words and a LoRA that were fitted to its own predictions.

    Args:
        pipe: the PromptNetPipeline that it was made with.
        subject: who.
        config: how; None is the defaults.
        on_step: called after each of `num_rounds(config)` rounds of work.

    Returns:
        The fitted ones, or the mean words with the subject's own LoRA where these predict better on the image that was
        held out; the recipe says which, and both losses.

    Raises:
        ValueError: the subject has no file or is of another base model; see `check_exportable`.
    """
    config = config or DistillConfig()
    tuned_with: Sequence[str] = (pipe.config.get("tuning") or {}).get("prompts", ("a photo of S*",))
    prompts = list(config.prompts or tuned_with)
    start = mean_static(pipe, subject, config.seed)
    lessons, held_out = draw_lessons(pipe, subject, prompts, config, on_step or _nothing)
    with torch.inference_mode(False):
        student = Student(_frozen(pipe), start, prompts, config)
        before = student.loss_of(held_out)
        student.fit(lessons, on_step or _nothing)
        after = student.loss_of(held_out)
    recipe = {
        **asdict(replace(config, prompts=tuple(prompts))),
        "prompts": prompts,
        "static": "distilled" if after < before else "mean",
        "loss_before": before,
        "loss_after": after,
    }
    return replace(student.static() if after < before else start, recipe=recipe)


def num_rounds(config: DistillConfig) -> int:
    """How often `on_step` is called."""
    return config.drawing_steps + config.steps


def _nothing() -> None:
    pass


def _frozen(pipe: Any) -> Any:
    """The pipeline with networks through which gradients run, and that keep none."""
    own = copy.copy(pipe)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            vars(own)[name] = frozen(getattr(pipe, name))
    return own


# -- the teacher ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def draw_lessons(
    pipe: Any, subject: Subject, prompts: list[str], config: DistillConfig, on_step: Progress
) -> tuple[Lessons, Lessons]:
    """Images drawn by plain guidance, and what was predicted on the way; the last image's predictions are held out."""
    order = torch.arange(config.num_images) % len(prompts)
    words = subject_prompts(pipe, subject, [prompts[place] for place in order.tolist()])
    uncond = PlainPrompts(networks_of(pipe), [None]).condition([None] * config.num_images, words.indices)
    scheduler, scale = copy.deepcopy(pipe.scheduler), pipe.sampling_defaults.subject_scale
    scheduler.set_timesteps(config.drawing_steps, device=pipe.unet.device)
    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.num_images, *subject.reference_latents.shape[1:])
    x = torch.randn(shape, generator=generator).to(pipe.unet.device, pipe.unet.dtype) * scheduler.init_noise_sigma
    parts: list[Lessons] = []
    for step in plan(scheduler):
        seen = scheduler.scale_model_input(x, step.timestep)
        conditions, weights = words.references().conditions, subject.weights.tolist()
        plain = _predict(pipe, seen, step.timestep, uncond.inputs(seen, step))
        persons = [_predict(pipe, seen, step.timestep, condition.inputs(seen, step)) for condition in conditions]
        person = torch.stack([weight * output for weight, output in zip(weights, persons, strict=True)]).sum(0)
        timesteps = step.timestep.expand(len(x))
        parts.append(Lessons(seen, timesteps, order.to(x.device), torch.stack([plain, person], dim=1)))
        x = scheduler.step(plain + scale * (person - plain), step.timestep, x, return_dict=False)[0]
        on_step()
    images = torch.arange(config.num_images, device=x.device).repeat(len(parts))
    whole = Lessons(*(torch.cat([getattr(part, name) for part in parts]) for name in _LESSON_FIELDS))
    last = images == config.num_images - 1
    return whole.at((~last).nonzero().flatten()), whole.at(last.nonzero().flatten())


_LESSON_FIELDS = ("x", "timesteps", "prompts", "outputs")


def _predict(pipe: Any, x: Tensor, timestep: Tensor, inputs: UNetInputs) -> Tensor:
    states = inputs.encoder_hidden_states
    with apply_loras(pipe.unet, inputs.loras or ()):
        return pipe.unet(x, timestep, encoder_hidden_states=states, **inputs.extra, return_dict=False)[0]


# -- the student ------------------------------------------------------------------------------------------------------


class Student:
    """Words and LoRA under training, float32.

    Args:
        pipe: with frozen networks.
        start: where they start from.
        prompts: of the lessons.
        config: how they are trained.
    """

    def __init__(self, pipe: Any, start: StaticSubject, prompts: list[str], config: DistillConfig) -> None:
        self.pipe, self.start, self.prompts, self.config = pipe, start, prompts, config
        self.draws = torch.Generator().manual_seed(config.seed + 1)
        layers = key_value_layers(pipe.unet)
        loras = start.loras or initial_loras(layers, config.rank, self.draws)
        self.words = start.words.to(pipe.unet.device, torch.float32).clone().requires_grad_()
        self.loras = {name: _leaf(lora, pipe.unet.device) for name, lora in loras.items()}
        scale = pipe.sampling_defaults.subject_scale
        weights = torch.tensor([(scale - 1) ** 2, scale**2], device=pipe.unet.device)
        self.weights = (weights / weights.sum()).reshape(1, 2, 1, 1, 1)

    def fit(self, lessons: Lessons, on_step: Progress) -> None:
        """Take the optimiser's steps."""
        optimizer = torch.optim.Adam(self._groups(), betas=(0.9, 0.99))
        rates = [group["lr"] for group in optimizer.param_groups]
        for step in range(self.config.steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - step / self.config.steps)
            places = torch.randint(len(lessons), (self.config.batch_size,), generator=self.draws)
            batch = lessons.at(places.to(lessons.x.device))
            with torch.enable_grad(), self._acting(2 * len(batch)):
                self._loss(batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            on_step()

    @torch.no_grad()
    def loss_of(self, lessons: Lessons) -> float:
        """The mean loss of some lessons."""
        losses = []
        for places in torch.arange(len(lessons)).split(self.config.batch_size):
            batch = lessons.at(places.to(lessons.x.device))
            with self._acting(2 * len(batch)):
                losses.append(self._loss(batch))
        return float(torch.cat(losses).mean())

    def static(self) -> StaticSubject:
        """What was learned."""
        loras = {name: LoRALayer(d.A.detach().cpu(), d.B.detach().cpu()) for name, d in self.loras.items()}
        return replace(self.start, words=self.words.detach().cpu(), loras=loras)

    def _groups(self) -> list[dict[str, Any]]:
        """Words and `A` move by a share of their own scale, `B` has scale 1."""
        rate = self.config.learning_rate
        scaled = [self.words, *(lora.A for lora in self.loras.values())]
        groups = [{"params": [part], "lr": rate * float(part.detach().square().mean().sqrt())} for part in scaled]
        return [*groups, {"params": [lora.B for lora in self.loras.values()], "lr": rate}]

    def _acting(self, num_rows: int) -> AbstractContextManager[None]:
        rows: list[Mapping[str, LoRALayer]] = [self.loras] * num_rows
        return apply_loras(self.pipe.unet, rows)

    def _loss(self, batch: Lessons) -> Tensor:
        """The weighted squared error of both rows' predictions, (B,)."""
        networks, count = networks_of(self.pipe), len(batch)
        prompts = [self.prompts[place] for place in batch.prompts.tolist()]
        encoded = networks.text_encoders.encode(prompts, [{"S*": self.words}] * count, device=networks.device)
        rows = torch.arange(count, device=networks.device)
        plain = PlainPrompts(networks, [None]).condition([None] * count, rows)
        person = networks.inputs(encoded.hidden_states, encoded.pooled, batch.x)
        inputs = join_inputs([plain.inputs(batch.x, level_step(self.pipe, 0)), person])
        output = self.pipe.unet(
            batch.x.repeat(2, 1, 1, 1),
            batch.timesteps.repeat(2),
            encoder_hidden_states=inputs.encoder_hidden_states,
            **inputs.extra,
            return_dict=False,
        )[0]
        both = torch.stack(output.chunk(2), dim=1).float()  # (B, 2, C, h, w)
        errors = (both - batch.outputs.float()).square() * self.weights
        return errors.sum(1).mean(dim=(1, 2, 3))


def _leaf(lora: LoRALayer, device: torch.device) -> LoRALayer:
    A, B = (part.to(device, torch.float32).clone().requires_grad_() for part in (lora.A, lora.B))
    return LoRALayer(A, B)
