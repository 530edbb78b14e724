"""The one loop: every method of this package is a rule on it.

One denoising step is a weighted sum of U-Net evaluations,

    output(x) = sum_k  weight_k * unet(x, t, condition_k; mode_k),

and then a scheduler's step. A condition is what the text encoder made of a prompt, perhaps with pseudo-words in it; a
mode is how the network's layers behave; the weights are the guidance, and sum to one, so that it does not matter
whether the U-Net predicts noise or v. Rules make and rewrite the terms of that sum, and may act before and after a
step. No rule knows of another, and none has its own loop.

Everything here is differentiable where the scheduler is; `checkpoint=True` recomputes each sum in the backward pass
instead of keeping what it was made of, so that a step leaves nothing behind but its latents.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from promptnet.inference.sampling.checkpointing import checkpointed
from promptnet.inference.sampling.history import Solver
from promptnet.inference.sampling.phases import HasPhase, Phase, Role, in_phases
from promptnet.inference.sampling.schedule import Step, plan
from promptnet.inference.subject.lora import LoRALayers, RowLoRAs, apply_loras, joined_rows


@dataclass(frozen=True, eq=False)
class UNetInputs:
    """What a condition gives the U-Net, one row for each latent.

    Args:
        encoder_hidden_states: (B, T, D), the prompt's states.
        extra: further keyword arguments of the U-Net (SDXL's added conditions, ControlNet's residuals): tensors
            with B rows, or dicts, lists and tuples of such.
        loras: for each row the LoRA layers that act in it, or None; None instead of all if none acts in any.
    """

    encoder_hidden_states: Tensor
    extra: Mapping[str, Any] = field(default_factory=dict)
    loras: Sequence[LoRALayers | None] | RowLoRAs | None = None


class Mode(Protocol):
    """How the U-Net's layers behave in a term. Compared by equality: terms of equal mode share a batch."""

    def applied(self, unet: nn.Module, step: Step) -> AbstractContextManager[Any]:
        """A context in which the U-Net behaves so. It is entered anew when an evaluation is recomputed."""
        ...


InputsOf = Callable[[Tensor, Step], UNetInputs]
Evaluator = Callable[[nn.Module, Tensor, Step, UNetInputs, Mode | None], Tensor]
_EVALUATOR: ContextVar[Evaluator | None] = ContextVar("promptnet_evaluator", default=None)


@contextmanager
def evaluated_by(evaluator: Evaluator) -> Iterator[None]:
    """For the length of the block, in this thread, U-Net calls of the loop are made by somebody else.

    Args:
        evaluator: (unet, x, step, inputs, mode) -> what `call_alone` would return.
    """
    token = _EVALUATOR.set(evaluator)
    try:
        yield
    finally:
        _EVALUATOR.reset(token)


def has_evaluator() -> bool:
    """Whether somebody else makes this thread's U-Net calls."""
    return _EVALUATOR.get() is not None


@dataclass(frozen=True, eq=False)
class Term:
    """One U-Net evaluation in the sum.

    Args:
        role: what rules know it by, such as `Role.UNCOND` or `Role.subject(0)`.
        weight: its factor; or one for each of its rows (len(rows),), or for each row and place (len(rows), 1, h, w).
            Zero: not evaluated.
        inputs: (x, step) -> its U-Net arguments for its rows. x is the whole batch in the scale that networks see;
            `step` is a new object in each evaluation, so what terms share may be remembered by it.
        mode: how the layers behave; None is plain.
        rows: (R,) indices of the rows it is for; None is all.
    """

    role: Role
    weight: float | Tensor
    inputs: InputsOf
    mode: Mode | None = None
    rows: Tensor | None = None

    def counts(self) -> bool:
        """Whether the term can change the sum. A weight that is being learned always can."""
        if isinstance(self.weight, Tensor):
            return self.weight.requires_grad or bool(self.weight.any())
        return self.weight != 0


Predict = Callable[[Tensor, Step], Tensor]


class Rule(HasPhase):
    """One method's part in the loop; what a method does not need it leaves as it is here.

    `phase` says when it acts; the loop sorts rules by it, so a caller may give them in any order.
    """

    phase: ClassVar[Phase] = Phase.EDIT

    def terms(self, terms: list[Term], step: Step) -> list[Term]:
        """Make or rewrite the terms of this evaluation's sum."""
        return terms

    def combine(self, outputs: Mapping[Role, Tensor], total: Tensor, step: Step) -> Tensor:
        """Change the sum, if it is not a plain one. `outputs` are by role, zero in rows that a role is not for."""
        return total

    def before(self, x: Tensor, step: Step, predict: Predict) -> Tensor:
        """Change the scheduler's latents before the step; `predict(x, step)` applies every rule."""
        return x

    def renoised(self, step: Step) -> Tensor | None:
        """Return the rows, (R,), that `before` noises again, which voids a solver's memory of them; None for none."""
        return None

    def after(self, x: Tensor, step: Step) -> Tensor:
        """Change the scheduler's latents after the step."""
        return x


def sample(
    unet: nn.Module,
    scheduler: Any,
    x: Tensor,
    rules: Sequence[Rule],
    *,
    steps: Iterable[Step] | None = None,
    step_kwargs: Mapping[str, Any] | None = None,
    on_step_end: Callable[[Tensor, Step], Tensor] | None = None,
    checkpoint: bool = False,
) -> Tensor:
    """Denoise `x` over the scheduler's steps.

    Args:
        unet: a diffusers U-Net.
        scheduler: a diffusers scheduler whose `set_timesteps` has been called.
        x: (B, C, H, W), starting latents in the scheduler's scale (its `init_noise_sigma` applied).
        rules: applied in the order of their phases.
        steps: the steps to execute, default `plan(scheduler)`.
        step_kwargs: further arguments of `scheduler.step`, such as `eta` and `generator`.
        on_step_end: (x, step) -> x, called after each step.
        checkpoint: keep a step's latents only, and recompute it in the backward pass. The scheduler, which has state,
            is not called again.

    Returns:
        (B, C, H, W), the denoised latents.

    Raises:
        ValueError: the scheduler is not supported, or what is to be recomputed is in training mode.
    """
    if checkpoint and unet.training:
        raise ValueError("checkpoint=True needs a U-Net that does the same again: call unet.eval().")

    rules, solver = in_phases(rules), Solver(scheduler)

    def predict(x: Tensor, step: Step) -> Tensor:
        def output(x: Tensor) -> Tensor:
            return predict_output(unet, x, step, rules)

        x = scheduler.scale_model_input(x, step.timestep)
        return checkpointed(output, x) if checkpoint else output(x)

    for step in plan(scheduler) if steps is None else steps:
        for rule in rules:
            x = rule.before(x, step, predict)
        output = predict(x, step)
        for rule in rules:
            if (rows := rule.renoised(step)) is not None:
                solver.restart(rows, len(x))
        x = solver.step(output, step.timestep, x, step_kwargs or {})
        for rule in rules:
            x = rule.after(x, step)
        if on_step_end is not None:
            x = on_step_end(x, step)
    return x


def predict_output(unet: nn.Module, x: Tensor, step: Step, rules: Sequence[Rule]) -> Tensor:
    """The weighted sum of U-Net evaluations that the rules ask for.

    Args:
        unet: a diffusers U-Net.
        x: (B, C, H, W) in the scale that the network sees.
        step: which step; its stage tells rules what the evaluation is for.
        rules: applied in the order of their phases.

    Returns:
        (B, C, H, W) in the model's output space, epsilon or v.
    """
    step, rules = replace(step), in_phases(rules)
    terms: list[Term] = []
    for rule in rules:
        terms = rule.terms(terms, step)
    terms = [term for term in terms if term.counts()]
    outputs = evaluate(unet, x, step, terms)
    total = weighted_sum(terms, outputs, x)
    by_role = _by_role(terms, outputs, x)
    for rule in rules:
        total = rule.combine(by_role, total, step)
    return total


def evaluate(unet: nn.Module, x: Tensor, step: Step, terms: Sequence[Term]) -> list[Tensor]:
    """Evaluate terms, those of one mode and shape in one batch.

    Returns:
        For each term (R, C, H, W), the U-Net's output in its rows.
    """
    batches: list[list[tuple[int, UNetInputs]]] = []
    for index, term in enumerate(terms):
        inputs = term.inputs(x, step)
        place = next((b for b in batches if _fits(terms[b[0][0]], b[0][1], term, inputs)), None)
        if place is None:
            batches.append([(index, inputs)])
        else:
            place.append((index, inputs))
    outputs: dict[int, Tensor] = {}
    for batch in batches:
        indices = [index for index, _ in batch]
        latents = [_rows_of(x, terms[index].rows) for index in indices]
        inputs = join_inputs([inputs for _, inputs in batch])
        output = _call_unet(unet, torch.cat(latents), step, inputs, terms[indices[0]].mode)
        outputs.update(zip(indices, output.split([len(rows) for rows in latents]), strict=True))
    return [outputs[index] for index in range(len(terms))]


def weighted_sum(terms: Sequence[Term], outputs: Sequence[Tensor], x: Tensor) -> Tensor:
    """sum_k weight_k output_k, each in its rows; half precision is summed in float32."""
    precision = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros_like(x, dtype=precision)
    for term, output in zip(terms, outputs, strict=True):
        weight = term.weight
        if isinstance(weight, Tensor):
            weight = weight.to(total)  # (R,), or (R, 1, h, w)
            weight = weight if weight.ndim == x.ndim else weight.reshape(-1, *[1] * (x.ndim - 1))
        part = weight * output.to(precision)
        total = total + part if term.rows is None else total.index_add(0, term.rows, part)
    return total.to(x.dtype)


def _by_role(terms: Sequence[Term], outputs: Sequence[Tensor], x: Tensor) -> dict[Role, Tensor]:
    """Outputs by role; a role may be shared by terms for different rows."""
    found: dict[Role, Tensor] = {}
    for term, output in zip(terms, outputs, strict=True):
        if term.rows is not None:
            output = found.get(term.role, torch.zeros_like(x)).index_add(0, term.rows, output.to(x.dtype))
        found[term.role] = output
    return found


def _call_unet(unet: nn.Module, x: Tensor, step: Step, inputs: UNetInputs, mode: Mode | None) -> Tensor:
    """One U-Net call; mode and LoRA layers are entered inside, so that a recomputed call sees them too."""
    shared = _EVALUATOR.get()
    if shared is not None:
        return shared(unet, x, step, inputs, mode)
    return call_alone(unet, x, step, inputs, mode)


def call_alone(unet: nn.Module, x: Tensor, step: Step, inputs: UNetInputs, mode: Mode | None) -> Tensor:
    """A U-Net call of this drawing's rows and nobody else's."""
    with ExitStack() as stack:
        if mode is not None:
            stack.enter_context(mode.applied(unet, step))
        stack.enter_context(apply_loras(unet, inputs.loras or ()))
        states = inputs.encoder_hidden_states
        return unet(x, step.timestep, encoder_hidden_states=states, **inputs.extra, return_dict=False)[0]


def _rows_of(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def _fits(first: Term, first_inputs: UNetInputs, term: Term, inputs: UNetInputs) -> bool:
    """Whether two terms can share a batch."""
    return (
        first.mode == term.mode
        and shape_of(first_inputs.encoder_hidden_states) == shape_of(inputs.encoder_hidden_states)
        and shape_of(first_inputs.extra) == shape_of(inputs.extra)
    )


def shape_of(value: Any) -> Any:
    """Shapes and kinds without the batch dimension, for comparison."""
    if isinstance(value, Tensor):
        return (value.shape[1:], value.dtype)
    if isinstance(value, Mapping):
        return {key: shape_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shape_of(item) for item in value]
    return value


def join_inputs(parts: Sequence[UNetInputs]) -> UNetInputs:
    """The rows of several terms, one after another."""
    states = torch.cat([part.encoder_hidden_states for part in parts])
    extra = {key: _join([part.extra[key] for part in parts]) for key in parts[0].extra}
    loras = [_as_rows(part.loras) for part in parts]
    return UNetInputs(states, extra, joined_rows(loras, [len(part.encoder_hidden_states) for part in parts]))


def _as_rows(loras: Sequence[LoRALayers | None] | RowLoRAs | None) -> RowLoRAs | None:
    return loras if loras is None or isinstance(loras, RowLoRAs) else RowLoRAs(tuple(loras))


def _join(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, Mapping):
        return {key: _join([value[key] for value in values]) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(_join(list(items)) for items in zip(*values, strict=True))
    return first
