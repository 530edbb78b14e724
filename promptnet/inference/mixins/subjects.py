"""How a pipeline makes subjects, and which it can draw."""

import time
from collections.abc import Sequence
from inspect import signature
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from promptnet.images.load import Source
from promptnet.inference.admission import Admission, Registration, admit, assess, likeness
from promptnet.inference.references import EncodedReferences, encode_references, open_references
from promptnet.inference.sampling.arguments import check_encoder
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.sampling.requests import Request, distinct_subjects, texts_of
from promptnet.inference.sampling.schedule import check_scheduler
from promptnet.inference.subject.fingerprint import fingerprint
from promptnet.inference.subject.subject import Subject, base_name, check_class_word, image_weights
from promptnet.inference.values import refuse_unknown
from promptnet.models.text_encoders import text_encoders_of
from promptnet.models.vocabulary import warn_of_unknown_words

_FOR_SUBJECTS = ("promptnet", "image_encoder", "feature_extractor")


class SubjectsMixin(DiffusionPipeline):
    """Makes subjects from reference images."""

    vae: Any
    image_encoder: Any
    promptnet: Any
    feature_extractor: Any
    scheduler: Any
    trained_size_px: tuple[int, int]

    def encode_references(self, images: Source | Sequence[Source]) -> EncodedReferences:
        """Reference images as PromptNet reads them, cropped to their central squares.

        Args:
            images: one or several: paths, files or `PIL.Image`s.

        Raises:
            ValueError: an image cannot be used, or this pipeline has no PromptNet.
        """
        self._require_promptnet()
        opened = open_references(images)
        encoded = encode_references(
            self.vae,
            self.image_encoder,
            self.feature_extractor,
            opened,
            size_px=self.trained_size_px[0],
            device=self._execution_device,
        )
        self.maybe_free_model_hooks()
        return encoded

    def encode(
        self,
        images: Source | Sequence[Source],
        class_word: str = "person",
        weights: Sequence[float] | None = None,
        *,
        registration: Registration = "auto",
        allow_foreign: bool = False,
    ) -> Subject:
        """A subject without tuning: PromptNet's words alone.

        Args:
            images: one reference image of the person or several.
            class_word: what the person is in a sentence.
            weights: how much each image counts; default all the same.
            registration: whether to search the frame that the encoder knows: "auto" where an image is doubtful,
                "always" or "never".
            allow_foreign: whether images that the encoder does not know are let in, with a warning.

        Raises:
            ForeignReferenceError: an image is unlike all that the encoder knows.
            ValueError: an image cannot be used, numbers do not match, or this pipeline has no PromptNet.
        """
        self._require_promptnet()
        check_class_word(class_word)
        opened = self._admitted(images, registration, allow_foreign)
        fractions = image_weights(weights, len(opened))
        latents, vision_states = self.encode_references(opened)
        return Subject(
            latents.cpu(),
            vision_states.cpu(),
            fractions,
            class_word,
            fingerprint(self),
            base=base_name(self),
        )

    def customize(
        self,
        images: Source | Sequence[Source],
        class_word: str = "person",
        *,
        registration: Registration = "auto",
        allow_foreign: bool = False,
        **options: Any,
    ) -> Subject:
        """A subject tuned to this person, in seconds.

        Args:
            images: as `encode`.
            class_word: as `encode`.
            registration: as `encode`.
            allow_foreign: as `encode`.
            options: as in `promptnet.inference.customize_subject`.

        Raises:
            ForeignReferenceError: an image is unlike all that the encoder knows.
            ValueError: as `encode`, or an option is out of range.
        """
        from promptnet.inference.tuning.customize import customize_subject

        known, begin_s = signature(customize_subject).parameters, time.monotonic()
        refuse_unknown("customize", [name for name in options if name not in known], known)
        self._require_promptnet()
        check_class_word(class_word)
        opened = self._admitted(images, registration, allow_foreign)
        options = _without_spent(options, time.monotonic() - begin_s)
        return customize_subject(self, opened, class_word=class_word, **options)

    def assess(self, image: Source) -> Admission:
        """Measure how far a reference image is from what the encoder knows, without changing or refusing it.

        Raises:
            ValueError: the image cannot be used, or this pipeline has no PromptNet.
        """
        self._require_promptnet()
        return assess(self, image)

    def likeness(self, image: Source, generated: Source) -> float | None:
        """Return how alike a reference image and a generated one are to the encoder, -1 to 1.

        None where nobody has measured what the encoder knows (`promptnet calibrate`).

        Raises:
            ValueError: an image cannot be used, or this pipeline has no PromptNet.
        """
        self._require_promptnet()
        return likeness(self, image, generated)

    def _admitted(self, images: Source | Sequence[Source], registration: Registration, allow_foreign: bool) -> Any:
        found = admit(self, images, registration=registration, allow_foreign=allow_foreign)
        return [admission.image for admission in found]

    def _check_rows(self, rows: Sequence[Request], config: SamplingConfig) -> str | None:
        """Refuse subjects that were not made here; the hash of the encoder's weights, if they tell all about it."""
        warn_of_unknown_words([encoder.tokenizer for encoder in text_encoders_of(self).text_encoders], texts_of(rows))
        subjects = distinct_subjects(rows)
        check_scheduler(self.scheduler, renoising=bool(subjects and config.fusion_steps))
        if not subjects:
            return None
        if any(subject.needs_encoder for subject in subjects):
            self._require_promptnet()
        here = fingerprint(self)  # once for all subjects
        for subject in subjects:
            subject.check_fingerprint(here, self)
        return None if _has_adapters(self.promptnet) else here.get("promptnet")

    def _require_promptnet(self) -> None:
        check_encoder({name: getattr(self, name, None) for name in _FOR_SUBJECTS})


def _without_spent(options: dict[str, Any], spent_s: float) -> dict[str, Any]:
    """The options with what is left of `seconds`, where they are a number; anything else is refused later."""
    seconds = options.get("seconds")
    if not isinstance(seconds, (int, float)) or seconds <= 0:
        return options
    return {**options, "seconds": max(seconds - spent_s, 1e-3)}


def _has_adapters(promptnet: Any) -> bool:
    """Whether peft has put something beside the encoder's weights, which their hash leaves out."""
    return promptnet is not None and any(hasattr(module, "base_layer") for module in promptnet.modules())
