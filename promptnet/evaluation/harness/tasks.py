"""What is asked of every row: people no training saw, one reference image each, and prompts for other attributes.

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
"""What the base model's captions call whoever they describe."""


@dataclass(frozen=True)
class EvalPrompt:
    """One image to draw."""

    prompt: str
    """What is asked for; holds `S*` where the subject goes, unless it describes the person in words."""
    attributes: Attributes
    """Of the true answer: the asked values, and the reference image's where nothing was asked."""
    fields: tuple[str, ...]
    """The attribute fields that the prompt asks for."""
    seed: int
    """Of all noise in this image, the same in every row."""

    def asked(self) -> dict[str, str]:
        """The asked fields with their asked values."""
        return {field: self.attributes.record()[field] for field in self.fields}


@dataclass(frozen=True)
class Person:
    """One held-out person, with the attributes of the reference image and everything to be drawn."""

    index: int
    identity: Identity
    reference: Attributes
    eval_prompts: tuple[EvalPrompt, ...]
    seed: int
    """Of the noise in per-user tuning."""

    def reference_image(self, size_px: int) -> Image.Image:
        """The only image of the person that a row is shown."""
        return render(self.identity, self.reference, size_px)

    def true_images(self, size_px: int) -> list[Image.Image]:
        """The true answers, ask by ask."""
        return [render(self.identity, eval_prompt.attributes, size_px) for eval_prompt in self.eval_prompts]


def make_people(split: Split, people: int, prompts: int, seed: int = 0) -> list[Person]:
    """The tasks of the comparison: every asked value differs from the reference image's, so copying it scores 0.

    Args:
        split: "validation" for choices, "test" for results.
        people: how many of the split's identities, in an order decided by `seed`.
        prompts: asks a person, each for two to four of the attribute fields.
        seed: decides people, references, asks and noise.

    Raises:
        ValueError: fewer than one person or prompt, or more people than the split has.
    """
    return [
        _person(split, index, who, prompts, seed) for index, who in enumerate(_chosen(split, people, prompts, seed))
    ]


def make_described_people(split: Split, people: int, prompts: int, seed: int = 0) -> list[Person]:
    """Tasks for the base model alone: the full caption of an unseen person, every field named, nothing to copy from."""
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
    """The best constant guess at who somebody is, given the style, over all people of the split."""
    return best_constant_guess((who.style, who.record()) for who in identities(split))


def attribute_chances() -> dict[str, dict[str, float]]:
    """The best constant guess at what a prompt asks for, given the style.

    References are uniform and an asked value is any but the reference's: not knowing the reference, each is as likely.
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
    """Two to four fields, each with a value that is not the reference's."""
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
