"""The rows of the comparison as data: what each one draws with, which parameters it may set and which ones not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Source = Literal["subject", "prompt", "truth"]
Encoder = Literal["promptnet", "promptnet-published"]
Parameter = float | int
Parameters = Mapping[str, Any]

OURS: Encoder = "promptnet"
PUBLISHED: Encoder = "promptnet-published"

SUBJECT_PARAMETERS: dict[str, Any] = {
    "subject_scale": 3.0,
    "class_scale": 0.0,
    "guidance_rescale": 0.0,
    "fusion_steps": 0,
    "fusion_scale": 3.0,
    "fusion_until": 1.0,
    "fusion_eta": 1.0,
    "pseudo_word_scale": 0.8,
    "eta": 0.0,
    "word_positions": "natural",
    "encoder_input": "strided",
}
"""What the pipeline takes to draw a subject (ProFusion, arXiv 2305.13579), without fusion or class term.

All of them, so that a row means the same whatever a checkpoint's own defaults are."""

PROMPT_PARAMETERS: dict[str, Parameter] = {"guidance_scale": 3.0, "guidance_rescale": 0.0, "eta": 0.0}
"""What it takes to draw plain words."""

DEFAULTS: dict[Source, dict[str, Any]] = {"subject": SUBJECT_PARAMETERS, "prompt": PROMPT_PARAMETERS, "truth": {}}

FUSION_PARAMETERS = ("fusion_steps", "fusion_scale", "fusion_until", "pseudo_word_scale")


@dataclass(frozen=True)
class MethodSpec:
    """One row before its parameters are chosen."""

    source: Source = "subject"
    encoder: Encoder = OURS
    tuned: bool = False
    chooses: tuple[str, ...] = ()
    """Parameters chosen on validation people; the others keep their values in `DEFAULTS`."""
    positive: tuple[str, ...] = ()
    """Parameters without which the row would not be what its name says."""


@dataclass(frozen=True)
class Method:
    """One row, ready to be drawn."""

    name: str
    source: Source
    encoder: Encoder = OURS
    tuned: bool = False
    config: Parameters = field(default_factory=dict)
    customize: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `PromptNetPipeline.customize`; empty where the subject is not tuned."""

    def record(self) -> dict[str, Any]:
        """What decides the row's images, for `results.json` and for finding images drawn before."""
        fused = self.config.get("fusion_steps", 0) > 0
        idle = () if fused else ("fusion_scale", "fusion_until", "fusion_eta", "pseudo_word_scale")
        config = {parameter: value for parameter, value in sorted(self.config.items()) if parameter not in idle}
        drawing = {"source": self.source, "knobs": config}
        if self.source != "subject":
            return drawing
        return {**drawing, "encoder": self.encoder, "tuned": self.tuned, "customize": dict(self.customize)}


_FUSION = ("subject_scale", *FUSION_PARAMETERS)
_BOTH = ("subject_scale", "class_scale", *FUSION_PARAMETERS)

METHODS: dict[str, MethodSpec] = {
    "prompt-only": MethodSpec("prompt", chooses=("guidance_scale",)),
    "plain-guidance": MethodSpec(chooses=("subject_scale",)),
    "plain-guidance-tuned": MethodSpec(tuned=True, chooses=("subject_scale",)),
    "fusion-only": MethodSpec(tuned=True, chooses=_FUSION, positive=("fusion_steps",)),
    "refinement-only": MethodSpec(tuned=True, chooses=("subject_scale", "class_scale"), positive=("class_scale",)),
    "profusion-untuned": MethodSpec(chooses=_BOTH, positive=("class_scale", "fusion_steps")),
    "profusion": MethodSpec(tuned=True, chooses=_BOTH, positive=("class_scale", "fusion_steps")),
    "best": MethodSpec(tuned=True, chooses=(*_BOTH, "guidance_rescale")),
    "published-plain-guidance-tuned": MethodSpec(encoder=PUBLISHED, tuned=True, chooses=("subject_scale",)),
    "published-profusion": MethodSpec(
        encoder=PUBLISHED, tuned=True, chooses=_BOTH, positive=("class_scale", "fusion_steps")
    ),
    "ceiling": MethodSpec("truth"),
}
"""The comparison, in the order it is printed. `best` may leave tuning out, where validation preferred that."""


def our_methods() -> list[str]:
    """The rows drawn with our encoder from a subject, other than `best`."""
    return [
        name for name, spec in METHODS.items() if (spec.source, spec.encoder) == ("subject", OURS) and name != "best"
    ]


def make_method(name: str, chosen: Mapping[str, Any], customize: Mapping[str, Mapping[str, Any]]) -> Method:
    """A row of `METHODS` with its chosen parameters.

    Args:
        name: of the row.
        chosen: values for the parameters the row chooses; for `best` also `tuned`.
        customize: encoder to the arguments of per-user tuning.

    Raises:
        ValueError: no such row, a parameter that the row has not, a negative one, or a needed one that is 0.
    """
    spec = _spec(name)
    values = dict(chosen)
    tuned = bool(values.pop("tuned", spec.tuned)) if name == "best" else spec.tuned
    _check(name, spec, values)
    arguments = customize.get(spec.encoder, {}) if tuned else {}
    return Method(name, spec.source, spec.encoder, tuned, {**DEFAULTS[spec.source], **values}, arguments)


def _spec(name: str) -> MethodSpec:
    if name not in METHODS:
        raise ValueError(f"there is no row {name!r}: choose from {', '.join(METHODS)}")
    return METHODS[name]


def _check(name: str, spec: MethodSpec, values: Parameters) -> None:
    for parameter, value in values.items():
        if parameter not in spec.chooses:
            raise ValueError(
                f"row {name!r} does not choose {parameter!r}, only: {', '.join(spec.chooses) or 'nothing'}"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise ValueError(f"{parameter}={value!r} of row {name!r} is not a number of at least 0")
    for parameter in spec.positive:
        if not values.get(parameter):
            raise ValueError(f"row {name!r} needs {parameter} above 0, or it is another row")
