"""Tasks of every method: held-out people, one reference image each, and prompts for other attributes.

A task list is a function of (split, people, prompts, seed); fewer people or prompts are a prefix of more.
"""

import random
from dataclasses import dataclass

from PIL import Image

from promptnet.datasets.avatars.captions import caption
from promptnet.datasets.avatars.render import (
    ATTRIBUTE_FIELDS,
    FIELDS,
    Attributes,
    Identity,
    Split,
    identities,
    render,
    sample_attributes,
)
from promptnet.metrics.scores import best_constant_guess

PLACEHOLDER = "S*"
CLASS_PHRASE = "a person"
"""The class phrase in the base model's captions."""


@dataclass(frozen=True)
class EvalPrompt:
    """One image to generate."""

    prompt: str
    """The prompt, with `S*` for the subject unless it describes the person in words."""
    attributes: Attributes
    """Attributes of the true answer: the requested values, and the reference image's for other fields."""
    fields: tuple[str, ...]
    """The attribute fields in the prompt."""
    seed: int
    """Seed of all noise in this image, the same for every method."""

    def asked(self) -> dict[str, str]:
        """Return the requested fields with their values."""
        return {field: self.attributes.record()[field] for field in self.fields}


@dataclass(frozen=True)
class Person:
    """One held-out person: the attributes of the reference image, and the prompts."""

    index: int
    identity: Identity
    reference: Attributes
    eval_prompts: tuple[EvalPrompt, ...]
    seed: int
    """Seed of the noise in per-user tuning."""

    def reference_image(self, size_px: int) -> Image.Image:
        """Render the only image of the person that a method gets."""
        return render(self.identity, self.reference, size_px)

    def true_images(self, size_px: int) -> list[Image.Image]:
        """Render the true answers, prompt by prompt."""
        return [render(self.identity, eval_prompt.attributes, size_px) for eval_prompt in self.eval_prompts]


def make_people(split: Split, people: int, prompts: int, seed: int = 0) -> list[Person]:
    """Return the tasks of the comparison: every requested value differs from the reference, so copying it scores 0.

    Args:
        split: "validation" for choices, "test" for results.
        people: number of the split's identities, in an order decided by `seed`.
        prompts: number a person, each with two to four of the attribute fields.
        seed: decides people, references, prompts and noise.

    Raises:
        ValueError: fewer than one person or prompt, or more people than the split has.
    """
    return [
        _person(split, index, who, prompts, seed) for index, who in enumerate(_chosen(split, people, prompts, seed))
    ]


def make_described_people(split: Split, people: int, prompts: int, seed: int = 0) -> list[Person]:
    """Return tasks for the base model alone: full captions of unseen people, with every field and no reference."""
    described = []
    for index, who in enumerate(_chosen(split, people, prompts, seed)):
        rng = random.Random(f"described {seed} {split} {index}")
        attributes = [sample_attributes(rng) for _ in range(prompts)]
        eval_prompts = [
            EvalPrompt(caption(who, each), each, ATTRIBUTE_FIELDS, rng.getrandbits(63)) for each in attributes
        ]
        described.append(Person(index, who, attributes[0], tuple(eval_prompts), seed))
    return described


def identity_chances(split: Split) -> dict[str, dict[str, float]]:
    """Return the accuracy of the best constant guess of identity fields, given the style, over the split's people."""
    return best_constant_guess((who.style, who.record()) for who in identities(split))


def attribute_chances() -> dict[str, dict[str, float]]:
    """Return the accuracy of the best constant guess of requested fields, given the style.

    References are uniform and a requested value is any other than the reference's, so all values are equally likely.
    """
    uniform = {field: 1 / len(FIELDS[field]) for field in ATTRIBUTE_FIELDS}
    return dict.fromkeys(FIELDS["style"], uniform)


def _chosen(split: Split, people: int, prompts: int, seed: int) -> list[Identity]:
    if prompts < 1:
        raise ValueError(f"prompts={prompts}: every person needs 1 prompt at least")
    everyone = list(identities(split))
    if not 1 <= people <= len(everyone):
        raise ValueError(f"people={people}: the {split} split has 1 to {len(everyone)} people")
    random.Random(f"people {seed}").shuffle(everyone)
    return everyone[:people]


def _person(split: Split, index: int, who: Identity, prompts: int, seed: int) -> Person:
    rng = random.Random(f"person {seed} {split} {index}")
    reference, noise = sample_attributes(rng), rng.getrandbits(63)
    return Person(index, who, reference, tuple(_eval_prompt(rng, reference) for _ in range(prompts)), noise)


def _eval_prompt(rng: random.Random, reference: Attributes) -> EvalPrompt:
    """Return a prompt with two to four fields, each with a value that is not the reference's."""
    chosen = rng.sample(ATTRIBUTE_FIELDS, rng.randint(2, 4))
    fields = tuple(field for field in ATTRIBUTE_FIELDS if field in chosen)
    wanted = reference.record()
    for field in fields:
        wanted[field] = _other_value(rng, field, reference)
    attributes = Attributes(**wanted)
    return EvalPrompt(
        caption(None, attributes, subject=PLACEHOLDER, fields=fields), attributes, fields, rng.getrandbits(63)
    )


def _other_value(rng: random.Random, field: str, reference: Attributes) -> str:
    return rng.choice([value for value in FIELDS[field] if value != reference.record()[field]])
