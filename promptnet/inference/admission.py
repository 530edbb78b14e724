"""Which reference images an encoder may read: those it knows, in the frame it knows; of others it says so.

An encoder draws somebody else where an image is unlike all it was trained on: a photograph, where these were
cartoons; a face at another size, where these were all alike. `promptnet.models.familiarity` measures how far an image
lies from them. What only lies in another frame is brought into the known one by `register`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from PIL import Image

from promptnet.images.load import Source
from promptnet.inference.references import open_references, vision_states
from promptnet.inference.registration import Crop, register
from promptnet.inference.tuning.customize import check_tunable
from promptnet.models.familiarity import Verdict

Registration = Literal["auto", "always", "never"]
REGISTRATIONS = get_args(Registration)


class ForeignReferenceError(ValueError):
    """A reference image that the encoder does not know.

    Attributes:
        distance: of the image, about 1 for what the encoder knows.
        limit: largest distance that is let in.
    """

    def __init__(self, message: str, distance: float, limit: float) -> None:
        super().__init__(message)
        self.distance, self.limit = distance, limit


class UnfamiliarReferenceWarning(UserWarning):
    """A reference image that the encoder hardly knows: it may draw somebody else."""


@dataclass(frozen=True)
class Admission:
    """A reference image as the encoder is to read it.

    Attributes:
        image: upright; in the frame that was found, if one was searched for.
        distance: from what the encoder knows, about 1 for that; None where nobody has measured what it knows.
        verdict: "good", "doubtful" or "foreign"; None likewise.
        moved: whether the frame was changed.
    """

    image: Image.Image
    distance: float | None = None
    verdict: Verdict | None = None
    moved: bool = False


def admit(
    pipe: Any,
    images: Source | Sequence[Source],
    *,
    registration: Registration = "auto",
    allow_foreign: bool = False,
) -> list[Admission]:
    """Open reference images, find their frames, and refuse what the encoder does not know.

    Args:
        pipe: a PromptNetPipeline.
        images: one or several of one person.
        registration: whether to search the frame in which an image looks most like what the base model draws:
            "auto" for doubtful images, if the pipeline lies on one device; "always"; "never".
        allow_foreign: whether foreign images are let in, with a warning.

    Raises:
        ForeignReferenceError: an image is foreign. The error names its distance.
        ImageError: an image cannot be used.
        ValueError: `registration` is not known, or "always" and the pipeline offloads its networks.
    """
    if registration not in REGISTRATIONS:
        raise ValueError(f"registration={registration!r} must be one of {', '.join(REGISTRATIONS)}.")
    if registration == "always" and not _is_in_one_place(pipe):
        raise ValueError("registration='always' needs all networks on one device: call pipe.remove_all_hooks() first.")
    admissions = [_frame(pipe, image, registration) for image in open_references(images)]
    for place, admission in enumerate(admissions, 1):
        _say(
            pipe, admission, f"Reference image {place}" if len(admissions) > 1 else "The reference image", allow_foreign
        )
    return admissions


def assess(pipe: Any, image: Source) -> Admission:
    """Measure how far a reference image is from what the encoder knows, without changing or refusing it."""
    (opened,) = open_references(image)
    return _assessed(pipe, opened)


def likeness(pipe: Any, image: Source, drawn: Source) -> float | None:
    """Return how alike two images are in what the encoder reads, -1 to 1; None where nobody has measured what it knows.

    Args:
        pipe: a PromptNetPipeline.
        image: a reference image.
        drawn: the person drawn again.
    """
    known = pipe.promptnet.familiarity
    if known is None:
        return None
    return float(known.likeness(*(states_of(pipe, [one]) for one in open_references([image, drawn]))))


def _frame(pipe: Any, image: Image.Image, registration: Registration) -> Admission:
    """The image in its own frame, or in the one found."""
    own = _assessed(pipe, image)
    searching = registration == "always" or (own.verdict not in (None, "good") and _is_in_one_place(pipe))
    if registration == "never" or not searching:
        return own
    found = register(pipe, image)
    return own if found.crop == Crop() else _assessed(pipe, found.image, moved=True)


def _assessed(pipe: Any, image: Image.Image, moved: bool = False) -> Admission:
    known = pipe.promptnet.familiarity
    if known is None:
        return Admission(image, moved=moved)
    distance = float(known.distances(states_of(pipe, [image])))
    return Admission(image, distance, known.verdict(distance), moved)


def states_of(pipe: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """Return what the pipeline's image encoder makes of opened images, (K, T, V)."""
    return vision_states(pipe.image_encoder, pipe.feature_extractor, images, pipe._execution_device)


def _is_in_one_place(pipe: Any) -> bool:
    """Searching runs the networks as tuning does."""
    try:
        check_tunable(pipe)
    except ValueError:
        return False
    return True


def _say(pipe: Any, admission: Admission, which: str, allow_foreign: bool) -> None:
    if admission.verdict in (None, "good"):
        return
    known, distance = pipe.promptnet.familiarity, cast(float, admission.distance)
    limit = known.foreign if admission.verdict == "foreign" else known.doubtful
    far = f"{which} lies at {distance:.2f} from what this encoder knows, beyond {limit:.2f}"
    advice = "Give an image of the kind that it was trained on, with the face in the same place and of the same size"
    if admission.verdict == "foreign" and not allow_foreign:
        raise ForeignReferenceError(
            f"{far}: it would draw somebody else. {advice}, or let it in all the same "
            "(allow_foreign=True, --allow-foreign).",
            distance,
            limit,
        )
    warnings.warn(f"{far}: it may draw somebody else. {advice}.", UnfamiliarReferenceWarning, stacklevel=5)
