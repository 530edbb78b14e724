import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from promptnet.inference.sampling import schedule
from promptnet.inference.sampling.guidance import ClassifierFreeGuidance, Condition
from promptnet.inference.sampling.loop import Rule, Step, Term, UNetInputs, predict_output, sample
from promptnet.inference.sampling.phases import Role
from promptnet.inference.subject.lora import apply_loras, initial_loras, key_value_layers

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DDIM: dict[str, Any] = {**BETAS, "clip_sample": False}
STEP = Step(0, 1, torch.tensor(500), 0.5, 0.9)


class Recorder(nn.Module):
    """Stands in for a U-Net: output = gain * (x + first state of each row); remembers the rows of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = 1.0
        self.num_rows: list[int] = []
        self.extra: list[dict[str, Any]] = []

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool, **extra: Any) -> Any:
        self.num_rows.append(len(x))
        self.extra.append(extra)
        return (self.gain * (x + encoder_hidden_states[:, 0, 0, None, None, None]),)


@dataclass(frozen=True)
class Doubled:
    """A mode: outputs are doubled."""

    def applied(self, unet: Any, step: Step) -> contextlib.AbstractContextManager[None]:
        return self._context(unet)

    @contextlib.contextmanager
    def _context(self, unet: Any) -> Iterator[None]:
        unet.gain *= 2
        try:
            yield
        finally:
            unet.gain /= 2


class Given(Rule):
    """Makes the terms it is given."""

    def __init__(self, *terms: Term) -> None:
        self.given = terms

    def terms(self, terms: list[Term], step: Step) -> list[Term]:
        return [*terms, *self.given]


def states(value: float, num_rows: int = 2, num_tokens: int = 3) -> UNetInputs:
    return UNetInputs(torch.full((num_rows, num_tokens, 4), value))


def term(role: str, weight: float | Tensor, value: float, num_rows: int = 2, **more: Any) -> Term:
    return Term(Role(role), weight, lambda x, step: states(value, num_rows), **more)


def test_terms_of_one_mode_share_a_batch():
    unet, x = Recorder(), torch.randn(2, 1, 3, 3)
    rule = Given(term("uncond", -1.0, 5), term("prompt", 1.5, 7, mode=Doubled()), term("class", 0.5, 9))
    output = predict_output(unet, x, STEP, [rule])
    torch.testing.assert_close(output, -(x + 5) + 1.5 * 2 * (x + 7) + 0.5 * (x + 9))
    assert unet.num_rows == [4, 2]
    assert unet.gain == 1


def test_conditions_of_different_shapes_do_not_share_a_batch():
    unet, x = Recorder(), torch.randn(2, 1, 3, 3)
    long = Term(Role.CLASS, 0.5, lambda x, step: states(1, num_tokens=5))
    assert predict_output(unet, x, STEP, [Given(term("uncond", 0.5, 5), long)]).shape == x.shape
    assert unet.num_rows == [2, 2]


def test_what_has_no_weight_is_not_even_prepared():
    unet, x = Recorder(), torch.randn(2, 1, 3, 3)

    def refuse(x: Tensor, step: Step) -> UNetInputs:
        raise AssertionError("a term of weight zero was asked for its inputs")

    rule = Given(Term(Role.CLASS, 0.0, refuse), Term(Role.UNCOND, torch.zeros(2), refuse), term("prompt", 1.0, 2))
    predict_output(unet, x, STEP, [rule])
    assert unet.num_rows == [2]


def test_terms_for_some_rows_and_weights_for_each_row():
    unet, x = Recorder(), torch.randn(3, 1, 2, 2)
    rule = Given(
        term("uncond", 0.0, 1, 3),
        term("prompt", 1.0, 10, 1, rows=torch.tensor([1])),
        term("subject.0", torch.tensor([2.0, -3.0]), 20, 2, rows=torch.tensor([2, 0])),
    )
    output = predict_output(unet, x, STEP, [rule])
    expected = torch.stack([-3 * (x[0] + 20), x[1] + 10, 2 * (x[2] + 20)])
    torch.testing.assert_close(output, expected)
    assert unet.num_rows == [3]


def test_deltas_act_in_their_rows_only(unet: UNet2DConditionModel):
    generator = torch.Generator().manual_seed(2)
    x, states_a, states_b = (torch.randn(s, generator=generator) for s in [(2, 4, 8, 8), (2, 5, 32), (2, 5, 32)])
    loras = initial_loras(key_value_layers(unet), 2, generator)
    tuned = {name: replace(lora, B=torch.ones_like(lora.B)) for name, lora in loras.items()}
    rule = Given(
        Term(Role.UNCOND, 0.5, lambda x, step: UNetInputs(states_a)),
        Term(Role.subject(0), 0.5, lambda x, step: UNetInputs(states_b, loras=(None, tuned))),
    )
    output = predict_output(unet, x, STEP, [rule])
    plain = (unet(x, 500, states_a).sample + unet(x, 500, states_b).sample) / 2
    torch.testing.assert_close(output[0], plain[0])
    with apply_loras(unet, [tuned, tuned]):
        changed = unet(x, 500, states_b).sample
    torch.testing.assert_close(output[1], (unet(x, 500, states_a).sample[1] + changed[1]) / 2)
    assert (output[1] - plain[1]).abs().max() > 1e-3


def test_extra_inputs_are_joined_row_by_row():
    unet, x = Recorder(), torch.randn(1, 1, 2, 2)

    def inputs(value: float) -> Any:
        residuals = {"added": {"text": torch.full((1, 2), value)}, "residuals": (torch.full((1, 3), value),)}
        return lambda x, step: UNetInputs(torch.zeros(1, 3, 4), residuals)

    predict_output(unet, x, STEP, [Given(Term(Role.UNCOND, 0.5, inputs(1)), Term(Role.PROMPT, 0.5, inputs(2)))])
    (extra,) = unet.extra
    assert extra["added"]["text"].tolist() == [[1, 1], [2, 2]]
    assert extra["residuals"][0].tolist() == [[1, 1, 1], [2, 2, 2]]


def test_inputs_know_one_evaluation_from_another():
    seen: list[Step] = []

    def inputs(x: Tensor, step: Step) -> UNetInputs:
        seen.append(step)
        return states(0)

    rule = Given(Term(Role.UNCOND, 0.5, inputs), Term(Role.PROMPT, 0.5, inputs))
    for _ in range(2):
        predict_output(Recorder(), torch.zeros(2, 1, 2, 2), STEP, [rule])
    first, second, third, _ = seen
    assert first is second
    assert second is not third


def test_rules_act_before_within_and_after_a_step_in_order():
    log: list[str] = []

    class Logged(Rule):
        def __init__(self, name: str) -> None:
            self.name = name

        def terms(self, terms: list[Term], step: Step) -> list[Term]:
            log.append(f"{self.name}.terms.{step.stage}")
            return terms

        def before(self, x: Tensor, step: Step, predict: Any) -> Tensor:
            predict(x, replace(step, stage="fusion"))
            log.append(f"{self.name}.before")
            return x + 1

        def combine(self, outputs: Any, total: Tensor, step: Step) -> Tensor:
            assert set(outputs) == {"prompt"}
            log.append(f"{self.name}.combine")
            return total

        def after(self, x: Tensor, step: Step) -> Tensor:
            log.append(f"{self.name}.after")
            return x * 0

    scheduler = DDIMScheduler(**DDIM)
    scheduler.set_timesteps(1)
    ends: list[Tensor] = []

    def on_step_end(x: Tensor, step: Step) -> Tensor:
        ends.append(x)
        return x + 7

    rules = [Given(term("prompt", 1.0, 0)), Logged("a")]
    result = sample(Recorder(), scheduler, torch.ones(2, 1, 2, 2), rules, on_step_end=on_step_end)
    assert log == ["a.terms.fusion", "a.combine", "a.before", "a.terms.denoise", "a.combine", "a.after"]
    assert not ends[0].any()
    assert (result == 7).all()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_pass_through_the_whole_loop(unet: UNet2DConditionModel, checkpoint: bool):
    """Checkpointed or not, the same gradient; a mode is entered again when an evaluation is recomputed."""
    entered: list[int] = []

    @dataclass(frozen=True)
    class Shifted:
        def applied(self, unet: Any, step: Step) -> contextlib.AbstractContextManager[Any]:
            entered.append(step.index)
            return _hooked(unet.conv_in)

    unet = unet.double()
    try:
        gradients = [_gradient(unet, Shifted(), flag) for flag in (False, checkpoint)]
    finally:
        unet.float()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=0)
    assert gradients[0].abs().min() > 0
    assert sorted(entered) == ([0, 0, 0, 1, 1, 1] if checkpoint else [0, 0, 1, 1])


@contextlib.contextmanager
def _hooked(module: nn.Module) -> Iterator[None]:
    def enlarge(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * 1.5

    handle = module.register_forward_hook(enlarge)
    try:
        yield
    finally:
        handle.remove()


def _gradient(unet: nn.Module, mode: Any, checkpoint: bool) -> Tensor:
    """How the result depends on two mixing weights, one for each step."""
    generator = torch.Generator().manual_seed(1)
    neutral, styled, x = (torch.randn(s, generator=generator).double() for s in [(1, 5, 32), (1, 5, 32), (1, 4, 8, 8)])
    weights = torch.tensor([0.7, 0.2], dtype=torch.float64, requires_grad=True)

    def inputs(x: Tensor, step: Step) -> UNetInputs:
        weight = weights[step.index]
        return UNetInputs(weight * neutral + (1 - weight) * styled)

    scheduler = DDIMScheduler(**DDIM)
    scheduler.set_timesteps(2)
    rules = [Given(Term(Role.PROMPT, 1.0, inputs, mode=mode))]
    sample(unet, scheduler, x, rules, checkpoint=checkpoint).square().sum().backward()
    assert weights.grad is not None
    return weights.grad


def test_ddim_plan():
    scheduler = DDIMScheduler(**DDIM, timestep_spacing="trailing", rescale_betas_zero_snr=True)
    scheduler.set_timesteps(20)
    steps = schedule.plan(scheduler)
    assert [int(step.timestep) for step in steps[:2]] == [999, 949]
    assert steps[0].alpha == 0
    assert [step.alpha_prev for step in steps] == [*[step.alpha for step in steps[1:]], 1.0]
    assert {step.scale for step in steps} == {1.0}
    assert {step.num_steps for step in steps} == {20}


def test_ddim_plan_leads_where_the_step_leads():
    """With eta 1, the scheduler's noise has the variance (1-b)/(1-a) (1-a/b) of the planned levels, every step."""
    scheduler = DDIMScheduler(**DDIM, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(16)
    zero = torch.zeros(1, 1, 1, 1)
    for step in schedule.plan(scheduler):
        noise = torch.ones_like(zero)
        stepped = scheduler.step(zero, int(step.timestep), zero, eta=1.0, variance_noise=noise, return_dict=False)[0]
        a, b = step.alpha, step.alpha_prev
        assert stepped.item() ** 2 == pytest.approx((1 - b) / (1 - a) * (1 - a / b), rel=1e-4)


def test_euler_plan_is_the_variance_preserving_view_of_sigmas():
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    ddim = DDIMScheduler(**DDIM, timestep_spacing="trailing")
    ddim.set_timesteps(10)
    x = torch.randn(1, 4, 8, 8)
    for euler_step, ddim_step in zip(schedule.plan(scheduler), schedule.plan(ddim), strict=True):
        assert euler_step.alpha == pytest.approx(ddim_step.alpha, abs=1e-6)
        assert euler_step.alpha_prev == pytest.approx(ddim_step.alpha_prev, abs=1e-6)
        scheduler._step_index = euler_step.index
        torch.testing.assert_close(scheduler.scale_model_input(x, euler_step.timestep), x / euler_step.scale)


def stock_cases() -> Iterator[Any]:
    as_stock: dict[str, Any] = {"steps_offset": 1, "clip_sample": False}  # the stock pipeline sets these
    extra: dict[str, Any] = {
        "PNDMScheduler": {"skip_prk_steps": True, "steps_offset": 1},
        "DDIMScheduler": as_stock,
        "DDPMScheduler": as_stock,
    }
    for name in schedule.RENOISING_SCHEDULERS + schedule.OTHER_SCHEDULERS:
        for prediction in ("epsilon", "v_prediction"):
            yield pytest.param(name, prediction, extra.get(name, {}), id=f"{name}-{prediction}")
    more = {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
    yield pytest.param("DPMSolverMultistepScheduler", "epsilon", more, id="sde-karras")
    yield pytest.param(
        "EulerDiscreteScheduler", "epsilon", {"timestep_spacing": "leading", "steps_offset": 1}, id="euler-leading"
    )


@pytest.mark.parametrize(("name", "prediction", "config"), stock_cases())
def test_the_plain_loop_draws_what_diffusers_draws(
    unet: UNet2DConditionModel, name: str, prediction: str, config: dict[str, Any]
):
    def scheduler() -> Any:
        return getattr(diffusers, name)(**BETAS, prediction_type=prediction, **config)

    generator = torch.Generator().manual_seed(3)
    x, prompt, empty = (torch.randn(s, generator=generator) for s in [(1, 4, 8, 8), (1, 5, 32), (1, 5, 32)])
    stock = StableDiffusionPipeline(None, None, None, unet, scheduler(), None, None, requires_safety_checker=False)  # pyright: ignore
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        prompt_embeds=prompt,
        negative_prompt_embeds=empty,
        latents=x,
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(4),
        return_dict=False,
    )[0]
    assert isinstance(expected, Tensor)

    ours = scheduler()
    ours.set_timesteps(4)
    guidance = ClassifierFreeGuidance(
        Condition(lambda x, step: UNetInputs(empty)), Condition(lambda x, step: UNetInputs(prompt)), scale=3.0
    )
    takes_generator = "generator" in ours.step.__code__.co_varnames
    kwargs = {"generator": torch.Generator().manual_seed(4)} if takes_generator else {}
    with torch.no_grad():
        found = sample(unet, ours, x * ours.init_noise_sigma, [guidance], step_kwargs=kwargs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_plms_makes_one_more_call():
    scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True)
    scheduler.set_timesteps(50)
    assert len(schedule.plan(scheduler)) == 51


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.DDIMScheduler(prediction_type="sample"),
        diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        diffusers.LCMScheduler(),
        diffusers.EDMEulerScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_schedulers_that_would_draw_wrong_images_are_refused_by_name(scheduler: Any):
    with pytest.raises(ValueError, match=type(scheduler).__name__):
        schedule.check_scheduler(scheduler)


def unclipped(name: str) -> Any:
    """With its defaults, but for clipping, where it has that."""
    scheduler_class = getattr(diffusers, name)
    return scheduler_class(**({"clip_sample": False} if "clip_sample" in scheduler_class().config else {}))


@pytest.mark.parametrize("name", schedule.OTHER_SCHEDULERS)
def test_solvers_of_unknown_history_are_refused_where_latents_are_renoised(name: str):
    scheduler = unclipped(name)
    schedule.check_scheduler(scheduler)
    with pytest.raises(ValueError, match=f"{name}.*fusion_steps=0"):
        schedule.check_scheduler(scheduler, renoising=True)


@pytest.mark.parametrize("name", schedule.RENOISING_SCHEDULERS)
def test_solvers_whose_memory_can_begin_anew_allow_renoising(name: str):
    schedule.check_scheduler(unclipped(name), renoising=True)


def test_a_solver_inside_unipc_is_refused_where_latents_are_renoised():
    inside = diffusers.DPMSolverMultistepScheduler(**BETAS)
    scheduler = diffusers.UniPCMultistepScheduler(**BETAS, solver_p=inside)  # pyright: ignore[reportArgumentType]
    schedule.check_scheduler(scheduler)
    with pytest.raises(ValueError, match=r"solver_p.*fusion_steps=0"):
        schedule.check_scheduler(scheduler, renoising=True)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_levels_are_those_of_sigmas_where_these_lie_between_timesteps(name: str):
    scheduler = getattr(diffusers, name)(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(7)
    for step, sigma, after in zip(
        schedule.plan(scheduler), scheduler.sigmas[:-1].tolist(), scheduler.sigmas[1:].tolist(), strict=True
    ):
        assert (step.alpha, step.alpha_prev, step.scale) == (1 / (1 + sigma**2), 1 / (1 + after**2), 1)


@pytest.mark.parametrize(
    ("scheduler", "parameter"),
    [
        (diffusers.DDIMScheduler(), "clip_sample"),
        (diffusers.DDPMScheduler(), "clip_sample"),
        (diffusers.DPMSolverMultistepScheduler(thresholding=True), "thresholding"),
    ],
)
def test_what_cuts_pixels_is_refused_for_latents(scheduler: Any, parameter: str):
    with pytest.raises(ValueError, match=f"{type(scheduler).__name__} has {parameter} on.*{parameter}=False"):
        schedule.check_scheduler(scheduler)
