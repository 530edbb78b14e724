"""The methods of the comparison as data: what each generates with, which parameters it may set and which not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Source = Literal["subject", "prompt", "described", "truth"]
"""S*, the prompt with a class phrase in its place, the person described in words, or the true rendering."""
Encoder = Literal["promptnet", "promptnet-published"]
Parameter = float | int
Parameters = Mapping[str, Any]

OURS: Encoder = "promptnet"
PUBLISHED: Encoder = "promptnet-published"

SUBJECT_PARAMETERS: dict[str, Any] = {
    "subject_scale": 3.0,
    "class_scale": 0.0,
    "guidance_rescale": 0.0,
    "guidance_interval": [0.0, 1.0],
    "fusion_steps": 0,
    "fusion_scale": 3.0,
    "fusion_end": 1.0,
    "fusion_eta": 1.0,
    "pseudo_word_scale": 0.8,
    "pseudo_word_every": 1,
    "eta": 0.0,
    "word_positions": "natural",
    "encoder_input": "strided",
}
"""Parameters of the pipeline for a subject (ProFusion, arXiv 2305.13579), without fusion or class term.

All of them are given, so that a method means the same whatever a checkpoint's defaults are."""

PROMPT_PARAMETERS: dict[str, Any] = {
    "guidance_scale": 3.0,
    "guidance_rescale": 0.0,
    "guidance_interval": [0.0, 1.0],
    "eta": 0.0,
}
"""Parameters of the pipeline for a prompt without a subject."""

DEFAULTS: dict[Source, dict[str, Any]] = {
    "subject": SUBJECT_PARAMETERS,
    "prompt": PROMPT_PARAMETERS,
    "described": PROMPT_PARAMETERS,
    "truth": {},
}

# Cached images are found by their record, whose keys do not change.
_SAVED_NAMES = {"fusion_end": "fusion_until"}
_LEFT_OUT = {"guidance_interval": [0.0, 1.0], "pseudo_word_every": 1}  # where they change nothing

FUSION_PARAMETERS = ("fusion_steps", "fusion_scale", "fusion_end", "pseudo_word_scale")


@dataclass(frozen=True)
class MethodSpec:
    """A method before its parameters are chosen."""

    source: Source = "subject"
    encoder: Encoder = OURS
    tuned: bool = False
    chooses: tuple[str, ...] = ()
    """Parameters chosen on validation people; the others keep their values in `DEFAULTS`."""
    positive: tuple[str, ...] = ()
    """Parameters that must be above 0, or the method is not what its name says."""


@dataclass(frozen=True)
class Method:
    """A method with its parameters."""

    name: str
    source: Source
    encoder: Encoder = OURS
    tuned: bool = False
    config: Parameters = field(default_factory=dict)
    customize: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `PromptNetPipeline.customize`; empty if the subject is not tuned."""

    def record(self) -> dict[str, Any]:
        """Return what decides the images, for `results.json` and for the image cache."""
        fused = self.config.get("fusion_steps", 0) > 0
        idle = () if fused else ("fusion_scale", "fusion_end", "fusion_eta", "pseudo_word_scale")
        kept = {parameter: value for parameter, value in self.config.items() if parameter not in idle}
        kept = {name: value for name, value in kept.items() if name not in _LEFT_OUT or value != _LEFT_OUT[name]}
        config = dict(sorted((_SAVED_NAMES.get(parameter, parameter), value) for parameter, value in kept.items()))
        generation = {"source": self.source, "knobs": config}
        if self.source != "subject":
            return generation
        return {**generation, "encoder": self.encoder, "tuned": self.tuned, "customize": dict(self.customize)}


_FUSION = ("subject_scale", *FUSION_PARAMETERS)
_BOTH = ("subject_scale", "class_scale", *FUSION_PARAMETERS)

METHODS: dict[str, MethodSpec] = {
    "prompt-only": MethodSpec("prompt", chooses=("guidance_scale",)),
    "described": MethodSpec("described"),
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
"""The comparison, in printing order. `best` may be untuned, if validation preferred that."""


def our_methods() -> list[str]:
    """Return the methods with our encoder and a subject, other than `best`."""
    return [
        name for name, spec in METHODS.items() if (spec.source, spec.encoder) == ("subject", OURS) and name != "best"
    ]


def make_method(name: str, chosen: Mapping[str, Any], customize: Mapping[str, Mapping[str, Any]]) -> Method:
    """Return a method of `METHODS` with its chosen parameters.

    Args:
        name: of the method.
        chosen: values for the parameters the method chooses; for `best` also `tuned`.
        customize: encoder to the arguments of per-user tuning.

    Raises:
        ValueError: unknown method or parameter, a negative parameter, or a required one that is 0.
    """
    spec = _spec(name)
    values = dict(chosen)
    tuned = bool(values.pop("tuned", spec.tuned)) if name == "best" else spec.tuned
    _check(name, spec, values)
    arguments = customize.get(spec.encoder, {}) if tuned else {}
    return Method(name, spec.source, spec.encoder, tuned, {**DEFAULTS[spec.source], **values}, arguments)


def _spec(name: str) -> MethodSpec:
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}: choose from {', '.join(METHODS)}")
    return METHODS[name]


def _check(name: str, spec: MethodSpec, values: Parameters) -> None:
    for parameter, value in values.items():
        if parameter not in spec.chooses:
            raise ValueError(
                f"method {name!r} does not choose {parameter!r}, only: {', '.join(spec.chooses) or 'nothing'}"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise ValueError(f"{parameter}={value!r} of method {name!r} is not a number of at least 0")
    for parameter in spec.positive:
        if not values.get(parameter):
            raise ValueError(f"method {name!r} needs {parameter} above 0, or it is another method")
