"""What rules have to know of each other, and all of it: the roles of terms, and the order in which rules act."""

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar, TypeVar


class Role(str):
    """What a term stands for in the sum: rules address it by its role. It equals its text; rules may add roles.

    `UNCOND` is the empty or negative prompt, `PROMPT` a prompt without a subject, `CLASS` the sentence with the class
    word in place of S*, and `Role.subject(k)` the sentence with S* as the k-th reference image gives it. `DAMPED` is
    the unconditional term in its damped mode (arXiv 2310.07702 section 3.4).
    """

    __slots__ = ()

    UNCOND: ClassVar["Role"]
    PROMPT: ClassVar["Role"]
    CLASS: ClassVar["Role"]
    DAMPED: ClassVar["Role"]

    @classmethod
    def subject(cls, k: int) -> "Role":
        """Return the role of the k-th reference image's term."""
        return cls(f"subject.{k}")


Role.UNCOND, Role.PROMPT, Role.CLASS, Role.DAMPED = map(Role, ("uncond", "prompt", "class", "uncond.damped"))


class Phase(IntEnum):
    """When a rule acts, within each of the loop's moments. Rules of one phase act in the order in which they are given.

    Guidance makes the terms; fusion puts its own in their place; rescaling changes their sum; edits rewrite their
    conditions; inversion corrects the latents, and masks act on corrected ones; resolution gives terms their mode, and
    damping splits a term that has its mode.
    """

    GUIDANCE = 0
    FUSION = 1
    RESCALE = 2
    EDIT = 3
    INVERSION = 4
    MASK = 5
    RESOLUTION = 6
    DAMPING = 7


class HasPhase:
    """Anything with a phase."""

    phase: ClassVar[Phase]


Phased = TypeVar("Phased", bound=HasPhase)


def in_phases(rules: Sequence[Phased]) -> list[Phased]:
    """Return the rules in the order of their phases; the order within a phase stays as given."""
    return sorted(rules, key=lambda rule: rule.phase)
