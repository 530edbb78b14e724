"""What is asked for, one row for each image: prompts and subjects matched, or refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from promptnet.inference.sampling.placeholders import check_negative_prompt, match_placeholders, with_class_words
from promptnet.inference.sampling.regions import Region, region_masks
from promptnet.inference.subject.subject import Subject, check_class_word
from promptnet.inference.values import whole

SubjectsOfPrompt = Subject | Sequence[Subject] | None


@dataclass(frozen=True, eq=False)
class Request:
    """One image to draw.

    Args:
        prompt: with placeholders.
        negative_prompt: what to move away from; None if nothing was said, which SDXL tells from an empty text.
        subjects: placeholder -> subject.
        reference_prompt: the prompt with class words for placeholders.
        regions: placeholder -> mask (H, W) of where that subject is; empty: all of them everywhere.
        words: placeholder -> class word.
    """

    prompt: str
    negative_prompt: str | None = None
    subjects: Mapping[str, Subject] = field(default_factory=dict)
    reference_prompt: str = ""
    regions: Mapping[str, Tensor] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    def prompt_of(self, subject: Subject) -> str:
        """The prompt with class words for everybody but this subject."""
        others = {name: word for name, word in self.words.items() if self.subjects[name] is not subject}
        return with_class_words(self.prompt, others)


def make_requests(
    prompt: str | Sequence[str],
    subject: SubjectsOfPrompt | Sequence[SubjectsOfPrompt] = None,
    negative_prompt: str | Sequence[str] | None = None,
    class_word: str | None = None,
    num_images_per_prompt: int = 1,
    regions: str | Sequence[Region] | None = None,
) -> list[Request]:
    """Match prompts with subjects.

    Args:
        prompt: one prompt or several.
        subject: one subject, `S*` in every prompt. Otherwise, with one prompt: a list, whose subjects are `S1*`,
            `S2*`, ...; with a list of prompts: a list with an entry for each, which is a subject, a list of them, or
            None.
        negative_prompt: one for all prompts, or one for each.
        class_word: what stands for every placeholder in the reference prompt; default the subject's own.
        num_images_per_prompt: images of one prompt are rows next to each other.
        regions: of the subjects of each prompt; see `region_masks`.

    Raises:
        ValueError: numbers do not match, a placeholder has no subject, or a subject no placeholder.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, Sequence) else []
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"prompt must be a text or a list of texts, but is {prompt!r}.")
    num_images_per_prompt = whole("num_images_per_prompt", num_images_per_prompt, 1)
    if class_word is not None:
        check_class_word(class_word)
    negatives = _one_each(negative_prompt, len(prompts))
    if isinstance(prompt, str) or subject is None or isinstance(subject, Subject):
        given = [subject] * len(prompts)
    else:
        given = list(subject)
        if len(given) != len(prompts):
            raise ValueError(
                f"{len(prompts)} prompts need {len(prompts)} entries of subject, but there are {len(given)}. With a "
                "list of prompts, each entry is the subject of one prompt, a list of its subjects, or None."
            )
    requests = [
        _make_request(text, negative, _as_list(subjects), class_word, regions)
        for text, negative, subjects in zip(prompts, negatives, given, strict=True)
    ]
    return [request for request in requests for _ in range(num_images_per_prompt)]


def distinct_subjects(requests: Sequence[Request]) -> list[Subject]:
    """Every subject in these rows once."""
    return list({id(subject): subject for request in requests for subject in request.subjects.values()}.values())


def texts_of(requests: Sequence[Request]) -> list[str]:
    """Every text in these rows that a text encoder may read."""
    return [
        text
        for request in requests
        for text in (request.prompt, request.negative_prompt, request.reference_prompt)
        if text
    ]


def moved(requests: Sequence[Request], device: torch.device) -> list[Request]:
    """These rows with their subjects on a device, each moved once."""
    there = {id(subject): subject.to(device) for subject in distinct_subjects(requests)}
    return [
        replace(request, subjects={name: there[id(s)] for name, s in request.subjects.items()}) for request in requests
    ]


def _one_each(negative_prompt: str | Sequence[str] | None, num_prompts: int) -> Sequence[str | None]:
    several = isinstance(negative_prompt, (list, tuple)) and all(isinstance(text, str) for text in negative_prompt)
    if not (negative_prompt is None or isinstance(negative_prompt, str) or several):
        raise ValueError(f"negative_prompt must be a text or a list of texts, but is {negative_prompt!r}.")
    if not negative_prompt or isinstance(negative_prompt, str):
        return [negative_prompt if isinstance(negative_prompt, str) else None] * num_prompts
    if len(negative_prompt) != num_prompts:
        raise ValueError(
            f"There are {len(negative_prompt)} negative prompts for {num_prompts} prompts: give one for all, or one "
            "for each."
        )
    return list(negative_prompt)


def _as_list(subjects: object) -> list[Subject]:
    if subjects is None:
        return []
    found = [subjects] if isinstance(subjects, Subject) else list(subjects) if isinstance(subjects, Sequence) else None
    if found is None or not all(isinstance(one, Subject) for one in found):
        raise ValueError(f"subject must be a Subject or a list of them, but is {subjects!r}: use Subject.load(path).")
    return found


def _make_request(
    prompt: str,
    negative_prompt: str | None,
    subjects: list[Subject],
    class_word: str | None,
    regions: str | Sequence[Region] | None,
) -> Request:
    check_negative_prompt(negative_prompt or "")
    by_name = match_placeholders(prompt, subjects)
    words = {name: subject.class_word if class_word is None else class_word for name, subject in by_name.items()}
    masks = {f"S{index}*": mask for index, mask in enumerate(region_masks(regions, len(subjects)), start=1)}
    if len({id(subject) for subject in subjects}) < len(masks):
        raise ValueError("One subject has two regions: give each region a subject of its own.")
    return Request(prompt, negative_prompt, by_name, with_class_words(prompt, words), masks, words)
