"""How an image is drawn unless a call says otherwise: every parameter, its range, and the published values."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from promptnet.inference.values import interval, real, whole

_OLD_NAMES = {"fusion_until": "fusion_end"}  # in checkpoints and config files of before


@dataclass(frozen=True)
class SamplingConfig:
    """The parameters of one drawing. A checkpoint keeps those measured for it in its pipeline's config, `sampling`.

    Args:
        num_inference_steps: denoising steps.
        guidance_scale: w of classifier-free guidance, for prompts without a subject.
        guidance_interval: (start, end), 0 <= start < end <= 1: the share of the steps, from the noisiest on, that are
            guided. Outside it only the conditional prediction is evaluated (arXiv 2404.07724); under a subject and a
            class word their mean, weighted by w_s and w_c. The fusion stage has `fusion_end`.
        guidance_rescale: 0 to 1, how far guidance is kept from raising the contrast (arXiv 2305.08891, section 3.4).
        subject_scale: w_s, weight of the prediction under S* in the refinement.
        class_scale: w_c, weight of the prediction under the class word in the refinement; 0 leaves it out.
        fusion_steps: m, fusion iterations before each step.
        fusion_scale: w_f, guidance inside the fusion stage.
        fusion_eta: 0 to 1, how much of the noise a fusion iteration exchanges.
        fusion_end: 0 to 1, the share of the steps, from the noisiest on, that are fused.
        pseudo_word_scale: gamma, how strongly the subject speaks in the fusion stage.
        pseudo_word_every: k, S* is made once for k steps, in the first evaluation among them; 1 makes it anew in every
            evaluation.
        eta: 0 to 1, noise of DDIM's own steps.
        start_timestep: the noisiest of the 1000 trained timesteps that is executed, as the published code's start gate:
            steps above it are left out, and the noise is taken as latents of that level; 1000 leaves out none.
        word_positions: position embeddings of pseudo-words, "natural" or "published" (promptnet.models.text).
        encoder_input: what PromptNet sees of an image drawn at another size than the reference images':
            "strided", every n-th of its latents, or "reference", the reference's latents at the same noise level.
        reference_weights: what several reference images weigh in the refinement: "shared", together w_s, or as
            published "each", on average w_s for each of them, so that more images pull harder.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    subject_scale: float = 5.0
    class_scale: float = 0.0
    fusion_steps: int = 1
    fusion_scale: float = 3.0
    fusion_eta: float = 1.0
    fusion_end: float = 1.0
    pseudo_word_scale: float = 0.8
    pseudo_word_every: int = 1
    eta: float = 0.0
    start_timestep: int = 1000
    word_positions: Literal["natural", "published"] = "natural"
    encoder_input: Literal["strided", "reference"] = "strided"
    reference_weights: Literal["shared", "each"] = "shared"

    def __post_init__(self) -> None:
        least_values = {"num_inference_steps": 1, "fusion_steps": 0, "pseudo_word_every": 1, "start_timestep": 0}
        for name, least in least_values.items():
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        for name in ("guidance_scale", "subject_scale", "class_scale", "fusion_scale", "pseudo_word_scale"):
            object.__setattr__(self, name, real(name, getattr(self, name)))
        for name in ("guidance_rescale", "fusion_eta", "fusion_end", "eta"):
            object.__setattr__(self, name, real(name, getattr(self, name), 0, 1))
        object.__setattr__(self, "guidance_interval", interval("guidance_interval", self.guidance_interval))
        for name, known in (
            ("word_positions", ("natural", "published")),
            ("encoder_input", ("strided", "reference")),
            ("reference_weights", ("shared", "each")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(map(repr, known))}.")

    def replaced(self, given: Mapping[str, Any]) -> "SamplingConfig":
        """These parameters, with those given that are not None.

        Raises:
            ValueError: a parameter does not exist, or its value is out of range.
        """
        given = {_OLD_NAMES.get(name, name): value for name, value in given.items()}
        unknown = set(given) - {parameter.name for parameter in fields(self)}
        if unknown:
            known = ", ".join(parameter.name for parameter in fields(self))
            raise ValueError(f"Unknown sampling parameter {', '.join(sorted(unknown))}: there are {known}.")
        return replace(self, **{name: value for name, value in given.items() if value is not None})


# ProFusion's published values, with one fusion iteration (its code leaves m to the user, 0 or 1).
PUBLISHED = SamplingConfig(
    num_inference_steps=50,
    guidance_scale=7.5,
    subject_scale=5.0,
    class_scale=0.0,
    fusion_steps=1,
    fusion_scale=3.0,
    fusion_eta=1.0,
    fusion_end=1.0,
    pseudo_word_scale=0.8,
    start_timestep=1000,
    word_positions="published",
    reference_weights="each",
)
